//! Advisory locks: `flock`, those of POSIX, and those of open files.

use std::fs;
use std::path::Path;

use crate::harness::locker::Locker;
use crate::harness::{Store, Twin, eventually};

/// Two processes `A` and `B` do what the script says, on both sides; lines are `A: commands = answer`.
fn play(twin: &Twin, script: &str) {
    let told = twin.ok("the script", |dir| {
        fs::write(dir.join("f"), b"x")?;
        let _ = fs::remove_file(dir.join("link"));
        fs::hard_link(dir.join("f"), dir.join("link"))?;
        let [mut a, mut b] = [dir, dir].map(Locker::start);
        let mut told = Vec::new();
        for (who, commands, _) in lines(script) {
            told.push(if who == "A" { a.ask(commands) } else { b.ask(commands) });
        }
        Ok(told)
    });
    for ((who, commands, expected), told) in lines(script).zip(told) {
        assert_eq!(told, expected, "{who}: {commands}");
    }
}

fn lines(script: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    script.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let (who, rest) = line.split_once(": ").expect("who");
        let (commands, answer) = rest.split_once(" = ").expect("an answer");
        (who, commands, answer)
    })
}

#[test]
fn flock_is_the_descriptors_and_shared_by_its_copies() {
    let twin = Twin::new();
    play(
        &twin,
        "A: open 1 f rw; open 2 f r; open 3 link rw = done; done; done
         B: open 1 f r = done
         A: flock 1 sh = done
         B: flock 1 sh = done
         A: flock 1 ex = EAGAIN
         B: flock 1 un = done
         A: flock 1 ex = done
         B: flock 1 sh = EAGAIN
         A: flock 2 sh = EAGAIN
         A: flock 3 ex = EAGAIN
         A: dup 1 4; close 1 = done; done
         B: flock 1 ex = EAGAIN
         A: flock 4 sh = done
         B: flock 1 sh = done
         B: flock 1 un = done
         A: flock 4 ex = done
         A: child flock 4 un = done
         B: flock 1 ex = done
         A: flock 4 ex = EAGAIN
         B: child flock 1 ex = done
         B: child close 1 = done
         A: flock 4 ex = EAGAIN
         B: close 1 = done
         A: flock 4 ex; close 4 = done; done
         B: open 1 f r; flock 1 ex = done; done",
    );
}

#[test]
fn posix_locks_are_the_processs_and_cover_ranges() {
    let twin = Twin::new();
    play(
        &twin,
        "A: open 1 f rw; open 2 link rw; open 3 f r = done; done; done
         B: open 1 f rw; open 2 f r; open 3 f w = done; done; done
         A: posix 1 w 100 50 = done
         A: posix 2 w 120 10 = done
         B: posix 1 w 149 1 = EAGAIN
         B: posix 1 w 150 1 = done
         B: posix 1 r 0 100 = done
         B: posix-get 1 w 0 0 = w 100 50 another's
         A: posix-get 1 w 0 10 = r 0 100 another's
         A: posix-get 1 r 0 10 = free
         A: posix 1 u 110 10 = done
         B: posix 1 w 110 10 = done
         B: posix-get 1 r 120 5 = w 120 30 another's
         B: posix-get 1 r 100 5 = w 100 10 another's
         A: posix 1 r 100 10 = done
         B: posix 1 r 105 10 = done
         B: posix-get 1 r 100 5 = free
         A: child posix-get 1 r 100 5 = free
         A: child posix-get 1 w 130 5 = w 120 30 another's
         A: child posix 1 w 130 5 = EAGAIN
         A: child close 1 = done
         B: posix 1 w 130 5 = EAGAIN
         A: dup 1 5; close 5 = done; done
         B: posix 1 w 130 5 = done
         A: posix 1 w 0 0 = EAGAIN
         B: close 3 = done
         A: posix 1 w 0 0 = done
         A: posix 1 w 9223372036854775807 1 = done
         A: posix 1 w 9223372036854775807 2 = EOVERFLOW
         A: posix 1 w 10 -5 = done
         A: posix 1 w 3 -5 = EINVAL
         A: posix 3 w 0 1 = EBADF
         A: posix 3 r 0 1 = done
         B: posix 2 r 500 1 = EAGAIN
         A: close 3 = done
         B: posix 2 r 500 1 = done",
    );
}

#[test]
fn locks_of_open_files_are_neither_the_processs_nor_the_descriptors() {
    let twin = Twin::new();
    play(
        &twin,
        "A: open 1 f rw; open 2 f rw; dup 1 3 = done; done; done
         B: open 1 link rw = done
         A: ofd 1 w 0 100 = done
         A: ofd 2 w 50 100 = EAGAIN
         A: ofd 3 w 50 100 = done
         A: posix 2 w 10 1 = EAGAIN
         A: ofd-get 2 r 0 200 = w 0 150 a descriptor's
         A: ofd-get 3 r 0 200 = free
         B: posix-get 1 r 0 200 = w 0 150 a descriptor's
         A: close 2 = done
         B: ofd 1 r 0 1 = EAGAIN
         A: child ofd 1 u 0 50 = done
         B: ofd 1 w 0 50 = done
         B: posix 1 r 0 10 = EAGAIN
         A: close 1 = done
         B: ofd 1 r 60 1 = EAGAIN
         A: close 3 = done
         B: ofd 1 r 60 1 = done
         B: child close 1 = done
         A: open 1 f rw; ofd 1 w 0 1 = done; EAGAIN
         B: close 1 = done
         A: ofd 1 w 0 0 = done",
    );
}

#[test]
fn the_three_kinds_meet_as_on_ext4() {
    let twin = Twin::new();
    play(
        &twin,
        "A: open 1 f rw; open 2 f rw = done; done
         B: open 1 f rw = done
         A: flock 1 ex = done
         B: posix 1 w 0 0 = done
         B: flock 1 ex = EAGAIN
         A: posix 2 w 0 0 = EAGAIN
         A: ofd 2 w 0 0 = EAGAIN
         B: posix 1 u 0 0 = done
         A: ofd 2 w 0 0 = done
         B: posix 1 r 0 1 = EAGAIN
         A: posix 1 w 0 0 = EAGAIN",
    );
}

/// `A` holds what `B` asks for and waits for; `A` writes before it lets go, and `B` must see that.
fn waits(dir: &Path, take: &str, wait: &str, leave: &str) -> String {
    fs::write(dir.join("f"), b"early").expect("writing");
    let [mut a, mut b] = [dir, dir].map(Locker::start);
    assert_eq!(a.ask(&format!("open 1 f rw; {take}")), "done; done");
    assert_eq!(b.ask("open 1 f rw"), "done");
    b.send(&format!("{wait}; read 1"));
    b.until_it_waits();
    assert_eq!(a.ask("write 1 later"), "done");
    a.send(leave);
    b.answer()
}

#[test]
fn who_waits_for_a_lock_gets_it_when_the_holder_lets_go() {
    let twin = Twin::new();
    for (take, wait, leave) in [
        ("flock 1 ex", "flock-wait 1 sh", "flock 1 un"),
        ("flock 1 sh", "flock-wait 1 ex", "close 1"),
        ("posix 1 w 0 0", "posix-wait 1 r 5 1", "posix 1 u 0 0"),
        ("posix 1 r 0 10", "posix-wait 1 w 9 9", "close 1"),
        ("ofd 1 w 0 10", "ofd-wait 1 w 0 0", "ofd 1 u 0 10"),
        ("ofd 1 w 0 10", "posix-wait 1 w 0 0", "close 1"),
    ] {
        let told = twin.ok(wait, |dir| Ok(waits(dir, take, wait, leave)));
        assert_eq!(told, "done; later", "{take}, then {wait}");
    }
}

#[test]
fn a_holder_that_dies_lets_everything_go() {
    let twin = Twin::new();
    for (take, wait) in [
        ("flock 1 ex", "flock-wait 1 ex"),
        ("posix 1 w 0 0", "posix-wait 1 w 0 0"),
        ("ofd 1 w 0 0", "ofd-wait 1 w 0 0"),
    ] {
        let told = twin.ok(wait, |dir| {
            fs::write(dir.join("f"), b"x")?;
            let [mut a, mut b] = [dir, dir].map(Locker::start);
            assert_eq!(a.ask(&format!("open 1 f rw; {take}")), "done; done");
            b.send(&format!("open 1 f rw; {wait}"));
            b.until_it_waits();
            drop(a);
            Ok(b.answer())
        });
        assert_eq!(told, "done; done");
    }
}

#[test]
fn two_that_wait_for_each_other_are_told() {
    let twin = Twin::new();
    let told = twin.ok("a deadlock", |dir| {
        fs::write(dir.join("f"), b"x")?;
        let [mut a, mut b] = [dir, dir].map(Locker::start);
        assert_eq!(a.ask("open 1 f rw; posix 1 w 0 1"), "done; done");
        assert_eq!(b.ask("open 1 f rw; posix 1 w 1 1"), "done; done");
        a.send("posix-wait 1 w 1 1");
        a.until_it_waits();
        let told = b.ask("posix-wait 1 w 0 1");
        drop(b);
        Ok((told, a.answer()))
    });
    assert_eq!(told, ("EDEADLK".to_owned(), "done".to_owned()));
}

#[test]
fn locks_outlive_a_killed_server() {
    let mount = Store::encrypted().mount();
    let dir = mount.path();
    for name in ["flocked", "ranged", "open"] {
        fs::write(dir.join(name), b"x").expect("writing");
    }
    let [mut a, mut b] = [dir, dir].map(Locker::start);
    let opened = "open 1 flocked rw; open 2 ranged rw; open 3 open rw";
    assert_eq!(a.ask(opened), "done; done; done");
    assert_eq!(b.ask(opened), "done; done; done");
    let locks = "flock 1 ex; posix 2 w 0 5; ofd 3 w 0 5";
    assert_eq!(a.ask(locks), "done; done; done");
    let server = mount.server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
    assert_eq!(b.ask(locks), "EAGAIN; EAGAIN; EAGAIN");
    assert_eq!(a.ask("flock 1 un; posix 2 u 0 0; close 3"), "done; done; done");
    assert_eq!(b.ask(locks), "done; done; done");
}

#[test]
fn files_in_snapshots_can_be_locked_apart_from_the_live_ones() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), b"x").expect("writing");
    mount.snapshot("then");
    let mut a = Locker::start(mount.path());
    let mut b = Locker::start(&mount.at("then"));
    assert_eq!(a.ask("open 1 f rw; flock 1 ex; posix 1 w 0 0"), "done; done; done");
    assert_eq!(b.ask("open 1 f r; flock 1 ex; posix 1 r 0 0"), "done; done; done");
    let mut c = Locker::start(&mount.at("then"));
    assert_eq!(c.ask("open 1 f r; flock 1 sh"), "done; EAGAIN");
}
