//! Moments between snapshots: `@lsn:N`, `@TIME`, `@AGE`.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use crate::harness::sys::names;
use crate::harness::{Mount, Store, args, tool};

/// Writes and syncs: file data gets its place in the past at the latest then.
fn write(mount: &Mount, content: &str) {
    fs::write(mount.path().join("f"), content).expect("writing");
    File::open(mount.path().join("f")).and_then(|f| f.sync_all()).expect("syncing");
}

fn read(mount: &Mount, point: &str) -> String {
    let path = mount.at(point).join("f");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// This moment in RFC 3339 with nanoseconds.
fn now(mount: &Mount) -> String {
    tool(mount.path(), "date", &args!["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).trim().to_owned()
}

/// Longer than the kernel's coarse clock takes for a tick, so that moments are told apart.
fn let_time_pass() {
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn the_tree_at_an_lsn_is_what_it_was_when_status_named_that_lsn() {
    let mut mount = Store::encrypted().mount();
    let mut points = Vec::new();
    for i in 0..20 {
        write(&mount, &format!("version {i}"));
        if i == 10 {
            fs::create_dir(mount.path().join("d")).expect("mkdir");
        }
        points.push(mount.status_number("/lsn"));
    }
    for when in ["at once", "after a remount"] {
        for (i, lsn) in points.iter().enumerate() {
            let point = format!("@lsn:{lsn}");
            assert_eq!(read(&mount, &point), format!("version {i}"), "{when}");
            assert_eq!(mount.at(&point).join("d").exists(), i >= 10, "{when}: {i}");
        }
        mount = mount.remount();
    }
    assert_eq!(
        fs::read_to_string(mount.path().join(".snapshots").join(format!("@lsn:{}", points[3])).join("f"))
            .expect("reading"),
        "version 3"
    );
}

#[test]
fn points_that_do_not_exist_are_not_found() {
    let mount = Store::encrypted().mount();
    write(&mount, "x");
    for point in
        ["@lsn:99999999999", "@lsn:x", "@lsn:-1", "@", "@10", "@2026-11-21T10:00:00", "@soon", "@99999d"]
    {
        let error = fs::read(mount.at(point).join("f")).expect_err(point);
        assert!(matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)), "{point}: {error}");
    }
    assert_eq!(
        names(&mount.at("")).expect("listing"),
        Vec::<std::ffi::OsString>::new(),
        "points are not listed"
    );
}

#[test]
fn the_tree_at_a_time_is_what_it_was_then() {
    let mut mount = Store::encrypted().mount();
    let mut moments = Vec::new();
    for i in 0..5 {
        write(&mount, &format!("version {i}"));
        let_time_pass();
        moments.push(now(&mount));
        let_time_pass();
    }
    write(&mount, "last");
    for when in ["at once", "after a remount"] {
        for (i, moment) in moments.iter().enumerate() {
            assert_eq!(read(&mount, &format!("@{moment}")), format!("version {i}"), "{when}");
        }
        mount = mount.remount();
    }
    // The same moment with another zone.
    let there = tool(
        mount.path(),
        "env",
        &args!["TZ=XXX-05:30", "date", "-d", moments[2], "+%Y-%m-%dT%H:%M:%S.%N%:z"],
    );
    assert!(there.trim().ends_with("+05:30"), "{there}");
    assert_eq!(read(&mount, &format!("@{}", there.trim())), "version 2");
}

#[test]
fn an_age_keeps_the_moment_it_first_meant() {
    let mount = Store::encrypted().mount();
    // Another spelling each time, since one that was used keeps its moment. On a machine so busy that the age
    // was passed before it could be used, nothing can be said, and a longer one is tried.
    for secs in [2u64, 4, 8, 16, 32] {
        let (old, new) = (format!("before {secs}"), format!("after {secs}"));
        write(&mount, &old);
        std::thread::sleep(Duration::from_millis(secs * 1000 + 300));
        let changed = Instant::now();
        write(&mount, &new);
        let point = format!("@{secs}s");
        let seen = read(&mount, &point);
        if changed.elapsed() > Duration::from_secs(secs) {
            continue;
        }
        assert_eq!(seen, old);
        std::thread::sleep(Duration::from_millis(secs * 1000 + 300));
        assert_eq!(read(&mount, &point), old, "{point} moved on within 60 s of use");
        assert_eq!(read(&mount, &format!("@{}s", 1)), new, "another age means another moment");
        return;
    }
    panic!("the machine was too busy to read a file within 32 s");
}

#[test]
fn a_point_works_in_every_directory_and_a_deleted_tree_is_found_there() {
    let mount = Store::encrypted().mount();
    fs::create_dir_all(mount.path().join("a/b")).expect("mkdir");
    fs::write(mount.path().join("a/b/f"), b"here").expect("writing");
    File::open(mount.path().join("a/b/f")).and_then(|f| f.sync_all()).expect("syncing");
    let point = format!("@lsn:{}", mount.status_number("/lsn"));
    fs::remove_file(mount.path().join("a/b/f")).expect("removing");
    assert_eq!(
        fs::read(mount.path().join("a/b/.snapshots").join(&point).join("f")).expect("reading"),
        b"here"
    );
    fs::remove_dir_all(mount.path().join("a")).expect("removing");
    assert_eq!(fs::read(mount.at(&point).join("a/b/f")).expect("reading"), b"here");
    let error = fs::write(mount.at(&point).join("a/b/f"), b"").expect_err("the past is read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}
