//! Exit codes and one-line errors, and who may open a store.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::harness::mounting::is_mounted;
use crate::harness::{Rng, Store, args, eventually, run};

#[test]
fn what_cannot_be_understood_is_a_usage_error() {
    let store = Store::uninitialised();
    let lines: [&[&str]; 8] = [
        &["no-such-command"],
        &["mount"],
        &["mount", "--no-such-flag", "a", "b"],
        &["snapshot"],
        &["snapshot", "create"],
        &["snapshot", "frobnicate", "x"],
        &["volume", "create"],
        &["init"],
    ];
    for line in lines {
        let args: Vec<_> = line.iter().map(std::ffi::OsString::from).collect();
        let run = store.cli(&args);
        assert_eq!(run.code, 2, "{line:?}: {run:?}");
        assert!(!run.stderr.trim().is_empty() && run.stdout.is_empty(), "{run:?}");
    }
}

#[test]
fn help_and_version_succeed_and_name_the_commands() {
    let store = Store::uninitialised();
    let help = store.ok(&args!["--help"]);
    for command in ["init", "mount", "umount", "snapshot", "volume", "status", "fsck", "key"] {
        assert!(help.contains(command), "--help names {command}: {help}");
    }
    assert!(store.ok(&args!["--version"]).starts_with("rewindfs "));
}

#[test]
fn where_there_is_no_store_every_command_says_so_with_code_10() {
    let store = Store::uninitialised();
    let (empty, target) = (store.directory("empty"), store.directory("target"));
    let missing = store.home().join("missing");
    for path in [&empty, &missing] {
        let lines = [
            args!["mount", path, target].to_vec(),
            args!["status", path].to_vec(),
            args!["fsck", path].to_vec(),
            args!["volume", "list", path].to_vec(),
            args!["snapshot", "list", path].to_vec(),
            args!["snapshot", "create", path, "s"].to_vec(),
            args!["key", "export", path].to_vec(),
        ];
        for line in lines {
            let said = store.refused(10, &line);
            assert!(said.contains(&*path.to_string_lossy()), "the line names {path:?}: {said}");
        }
    }
    assert!(!is_mounted(&target));
    assert!(!missing.exists(), "a refused command makes nothing");
}

#[test]
fn init_makes_a_store_only_where_there_is_nothing() {
    let store = Store::uninitialised();
    let printed = store.ok(&args!["init", store.path()]);
    assert!(
        printed.contains(&*store.key_file().to_string_lossy()),
        "init prints where the key is: {printed}"
    );
    assert!(printed.contains("key export"), "and how to export a recovery key: {printed}");
    let line = store.cli(&args!["init", store.path()]);
    assert_eq!(line.code, 1, "a second init: {line:?}");
    line.one_line();
    let full = store.directory("full");
    fs::write(full.join("precious"), b"data").expect("writing");
    assert_eq!(store.cli(&args!["init", full]).code, 1, "init in a directory with files");
    assert_eq!(fs::read(full.join("precious")).expect("reading"), b"data");
    assert_eq!(crate::harness::sys::names(&full).expect("listing"), ["precious"]);
    store.mount();
}

#[test]
fn the_store_and_its_key_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let store = Store::encrypted();
    let mode = |path: &std::path::Path| path.metadata().expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&store.key_file()), 0o600);
    assert_eq!(mode(&store.path()) & 0o077, 0, "others do not reach into the store");
    let name = store.key_file();
    assert_eq!(name.extension().and_then(|e| e.to_str()), Some("key"));
}

#[test]
fn a_second_opener_is_refused_with_code_11() {
    let store = Store::encrypted();
    let first = store.mount();
    fs::write(first.path().join("f"), b"x").expect("writing");
    let (again, alias) = (store.directory("again"), store.directory("alias"));
    store.refused(11, &args!["mount", store.path(), again]);
    store.refused(11, &args!["mount", store.path(), first.path()]);
    assert!(!is_mounted(&again));
    // The same store under another name.
    let none: Option<&str> = None;
    mount(Some(&store.path()), &alias, none, MsFlags::MS_BIND, none).expect("a bind mount");
    let run = store.cli(&args!["mount", alias, again]);
    umount2(&alias, MntFlags::MNT_DETACH).expect("undoing the bind mount");
    run.expect_refusal(11);
    assert_eq!(fs::read(first.path().join("f")).expect("the first mount goes on"), b"x");
    let mount = first.remount();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"x");
}

#[test]
fn of_two_mounts_at_once_exactly_one_wins() {
    let store = Store::encrypted();
    let dirs = [store.directory("a"), store.directory("b")];
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let mount = |dir| store.cli(&args!["mount", store.path(), dir]).code;
        let threads = dirs.each_ref().map(|dir| scope.spawn(move || mount(dir)));
        threads.into_iter().map(|t| t.join().expect("a thread")).collect()
    });
    let mounted: Vec<bool> = dirs.iter().map(|dir| is_mounted(dir)).collect();
    for dir in dirs.iter().filter(|dir| is_mounted(dir)) {
        store.ok(&args!["umount", dir]);
    }
    let mut sorted = codes.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 11]);
    assert_eq!(mounted, codes.iter().map(|&code| code == 0).collect::<Vec<_>>());
}

#[test]
fn mounting_needs_a_directory_and_unmounting_a_mount() {
    let store = Store::encrypted();
    store.refused(1, &args!["mount", store.path(), store.home().join("missing")]);
    let plain = store.directory("plain");
    let run = store.cli(&args!["umount", plain]);
    assert!(matches!(run.code, 1 | 10), "umount of what is no mount of ours: {run:?}");
    run.one_line();
}

#[test]
fn a_busy_mount_is_not_unmounted_and_goes_on() {
    let store = Store::encrypted();
    let mount = store.mount();
    let open = fs::File::create(mount.path().join("open")).expect("creating");
    let run = store.cli(&args!["umount", mount.path()]);
    assert!(matches!(run.code, 1 | 11), "umount with a file open: {run:?}");
    run.one_line();
    fs::write(mount.path().join("f"), b"still here").expect("writing");
    drop(open);
    let mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"still here");
}

#[test]
fn mount_lets_go_of_its_standard_streams() {
    // Whoever reads its output to the end, as `rewindfs mount … | tee log` does, must not wait for the server.
    let store = Store::encrypted();
    let mount = store.mount();
    let name = mount.path().to_owned();
    mount.umount();
    let mut child = store
        .command(&args!["mount", store.path(), name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.as_mut().expect("starting mount");
    let mut streams: (Option<_>, Option<_>) = (child.stdout.take(), child.stderr.take());
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let out = streams.0.as_mut().map(|s| std::io::Read::read_to_end(s, &mut all));
        let err = streams.1.as_mut().map(|s| std::io::Read::read_to_end(s, &mut all));
        done.send(out.is_some() && err.is_some())
    });
    let ended = wait.recv_timeout(Duration::from_secs(120));
    let mounted = is_mounted(&name);
    store.ok(&args!["umount", name]);
    let status = child.wait().expect("waiting for mount");
    assert_eq!(ended, Ok(true), "the pipes stayed open after mount had ended");
    assert!(status.success() && mounted);
}

#[test]
fn a_plain_umount_8_is_a_clean_stop() {
    let store = Store::encrypted();
    let mount = store.mount();
    let content = Rng::printed().bytes(3 << 20);
    fs::write(mount.path().join("f"), &content).expect("writing");
    run(Command::new("umount").arg(mount.path())).expect_ok();
    assert!(!is_mounted(mount.path()));
    eventually("a mount after umount(8)", || {
        store.cli(&args!["mount", store.path(), mount.path()]).code == 0
    });
    assert!(fs::read(mount.path().join("f")).expect("reading") == content);
    assert_eq!(store.ok(&args!["fsck", store.path()]).lines().filter(|l| l.contains("DAMAGED")).count(), 0);
}

#[test]
fn a_foreground_mount_runs_until_it_is_stopped() {
    let store = Store::encrypted();
    let dir = store.directory("mnt");
    let log = store.home().join("log");
    let mut server = Server(
        store
            .command(&args!["mount", store.path(), dir, "--foreground"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("starting the server"),
    );
    eventually("the foreground mount", || is_mounted(&dir));
    fs::write(dir.join("f"), b"x").expect("writing");
    assert_eq!(server.ended(), None, "it stays in the foreground");
    store.ok(&args!["umount", dir]);
    eventually("the server to end after umount", || server.ended().is_some());
    assert_eq!(
        server.ended(),
        Some(true),
        "after umount it ends well: {}",
        fs::read_to_string(&log).expect("the log")
    );
}

/// A server in the foreground, killed if the test ends before it does.
struct Server(std::process::Child);

impl Server {
    /// Whether it ended well, once it has ended.
    fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().expect("waiting for a child").map(|status| status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_read_only_mount_refuses_writes_and_shows_everything() {
    let store = Store::encrypted();
    let mount = store.mount();
    fs::write(mount.path().join("f"), b"content").expect("writing");
    mount.snapshot("s");
    mount.umount();
    let mount = store.mount_with("ro", &args!["--read-only"]);
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"content");
    assert_eq!(fs::read(mount.at("s/f")).expect("reading"), b"content");
    let error = fs::write(mount.path().join("g"), b"").expect_err("writing");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    fs::create_dir(mount.at("new")).expect_err("mkdir would take a snapshot");
    assert_eq!(mount.status()["read_only"], Value::Bool(true));
}

#[test]
fn status_has_the_fields_that_were_promised() {
    let mount = Store::encrypted().mount();
    let status = mount.status();
    let text =
        |key: &str| status[key].as_str().unwrap_or_else(|| panic!("{key} is text: {status}")).to_owned();
    assert_eq!(text("mountpoint"), mount.path().to_string_lossy());
    assert_eq!(text("store"), mount.store().path().to_string_lossy());
    assert_eq!((text("volume").as_str(), text("role").as_str()), ("main", "alone"));
    assert!(["ok", "attention"].contains(&text("health").as_str()), "{status}");
    for key in ["chain", "digest"] {
        assert!(text(key).len() >= 32 && text(key).bytes().all(|b| b.is_ascii_hexdigit()), "{key}: {status}");
    }
    for pointer in
        ["/term", "/lsn", "/durable_lsn", "/snapshots", "/bytes/live", "/bytes/history", "/bytes/packs"]
    {
        assert!(status.pointer(pointer).is_some_and(Value::is_u64), "{pointer}: {status}");
    }
    assert!(status.pointer("/bytes/dead").is_some_and(Value::is_u64) && status["problems"].is_array());
    assert_eq!(status["read_only"], Value::Bool(false));
    assert!(status["durable_lsn"].as_u64() <= status["lsn"].as_u64());
    // A store that is not mounted has a status, too.
    let store = mount.umount();
    let objects = store.json(&args!["status", store.path()]);
    assert_eq!(objects[0]["store"].as_str(), Some(&*store.path().to_string_lossy()), "{objects:?}");
    assert!(objects[0]["server_pid"].is_null());
}

#[test]
fn status_asks_for_a_recovery_key_until_there_is_one() {
    let store = Store::encrypted();
    let mount = store.mount();
    let asks = || mount.status()["problems"].to_string().contains("key export");
    assert!(asks(), "{}", mount.status());
    assert_eq!(mount.status()["health"], Value::from("attention"));
    store.ok(&args!["key", "export", store.path(), store.home().join("recovery")]);
    assert!(!asks(), "{}", mount.status());
    let run = store.cli(&args!["status", mount.path(), "--check"]);
    assert!(matches!(run.code, 0 | 3), "--check: {run:?}");
}
