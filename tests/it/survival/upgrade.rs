//! `upgrade` puts another program in the server's place.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::load::Load;
use crate::harness::mounting::REWINDFS;
use crate::harness::{Store, args};

#[test]
fn programs_do_not_notice_an_upgrade() {
    let store = Store::encrypted();
    let mount = store.mount();
    let program = store.home().join("rewindfs-next");
    fs::copy(REWINDFS, &program).expect("another program");
    let load = Load::start(mount.path());
    for _ in 0..3 {
        load.advance(1);
        let (server, holder) = (mount.server(), mount.holder());
        // Servers of other tests are not ours to replace, so by store: the control request behind it.
        let said = store.ok(&args!["upgrade", "--store", store.path(), "--binary", program]);
        assert!(said.contains(" -> "), "{said}");
        assert!(!server.alive() && holder.alive());
        let exe = fs::read_link(format!("/proc/{}/exe", mount.status_number("/server_pid"))).expect("exe");
        assert_eq!(exe, program);
        load.advance(1);
    }
    // What is not a program of ours is refused, and nothing changes.
    let server = mount.server();
    for (content, mode) in [("#!/bin/sh\necho hello\n", 0o755), ("text", 0o755), ("text", 0o644)] {
        let bad = store.home().join("bad");
        fs::write(&bad, content).expect("writing");
        fs::set_permissions(&bad, fs::Permissions::from_mode(mode)).expect("chmod");
        store.refused(1, &args!["upgrade", "--store", store.path(), "--binary", bad]);
    }
    store.refused(1, &args!["upgrade", "--store", store.path(), "--binary", "/nonexistent"]);
    assert!(server.alive());
    load.advance(1);
    load.end();
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}
