//! Servers that end: asked to, or killed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::mounting::is_mounted;
use crate::harness::process::Process;
use crate::harness::{Mount, Store, args, eventually};

fn server(mount: &Mount) -> (Process, Pid) {
    let pid = i32::try_from(mount.status_number("/server_pid")).expect("a process number");
    (Process::of(pid).expect("the server runs"), Pid::from_raw(pid))
}

#[test]
fn a_signal_ends_a_server_in_order_also_while_files_are_open() {
    let store = Store::encrypted();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mount = store.mount();
        let name = mount.path().join(signal.as_str());
        let mut file = File::create(&name).expect("creating");
        file.write_all(b"written before").expect("writing");
        let (process, pid) = server(&mount);
        kill(pid, signal).expect("sending a signal");
        eventually("the server to end", || !process.alive());
        assert!(!is_mounted(mount.path()), "{signal} unmounts");
        drop(file);
        let mount = store.mount();
        let found = fs::read(mount.path().join(signal.as_str())).expect("reading after the end");
        assert_eq!(found, b"written before");
    }
}

#[test]
fn the_mount_of_killed_processes_is_named_as_dead_and_can_be_unmounted() {
    let store = Store::encrypted();
    let mount = store.mount();
    let dir = mount.path().to_owned();
    fs::write(dir.join("f"), "kept").expect("writing");
    store.ok(&args!["snapshot", "create", dir, "s"]);
    // Held open: the kernel cannot let go of the mount at once.
    let held =
        File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&dir).expect("opening the mount");
    mount.kill_both();
    fs::read_dir(&dir).expect_err("a dead mount serves nothing");
    for command in [
        args!["status", dir].to_vec(),
        args!["snapshot", "list", dir].to_vec(),
        args!["mount", store.path(), dir].to_vec(),
    ] {
        let line = store.refused(1, &command);
        assert!(line.contains("rewindfs umount"), "it says what to do: {line}");
    }
    store.ok(&args!["umount", dir]);
    assert!(!is_mounted(&dir));
    store.refused(10, &args!["umount", dir]);
    let again = store.mount();
    assert_eq!(fs::read(again.path().join("f")).expect("reading"), b"kept");
    assert_eq!(again.snapshot_names(), ["s".into()].into());
    drop(held);
    drop(mount);
}

#[test]
fn a_busy_mount_says_so_and_goes_on() {
    let mount = Store::encrypted().mount();
    let mut file = File::create(mount.path().join("f")).expect("creating");
    let line = mount.store().refused(11, &args!["umount", mount.path()]);
    assert!(line.contains("in use"), "{line}");
    file.write_all(b"still works").expect("writing");
    file.sync_all().expect("fsync");
}
