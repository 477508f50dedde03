//! Servers that cannot live.

use std::fs;
use std::time::Duration;

use nix::libc;

use crate::harness::mounting::is_mounted;
use crate::harness::{Store, args, eventually, within};

#[test]
fn when_servers_keep_dying_requests_fail_and_status_says_why() {
    let store = Store::encrypted();
    let mount = store.mount();
    let dir = mount.path().to_owned();
    fs::write(dir.join("f"), "kept").expect("writing");
    let key = store.key_file();
    let hidden = store.home().join("hidden-key");
    let server = mount.server();
    fs::rename(&key, &hidden).expect("taking the key away");
    server.kill();
    // Waits while servers are tried, then fails.
    let error = fs::read(dir.join("f")).expect_err("no server can open the store");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let line = store.refused(11, &args!["snapshot", "list", store.path()]);
    assert!(line.contains("keep dying") && line.contains("key"), "{line}");
    let report = store.json(&args!["status", store.path()]);
    assert_eq!(report[0]["health"], "failed");
    assert!(report[0]["problems"].to_string().contains("keep dying"), "{report:?}");
    let report = store.json(&args!["status", dir]);
    assert_eq!(report[0]["health"], "failed");
    fs::rename(&hidden, &key).expect("giving the key back");
    let healed = || fs::read(dir.join("f")).is_ok_and(|text| text == b"kept");
    assert!(within(Duration::from_secs(120), healed), "a server comes back by itself");
    eventually("status to be well again", || mount.status()["health"] != "failed");
    mount.umount();
}

#[test]
fn a_mount_whose_servers_die_can_be_unmounted() {
    let store = Store::encrypted();
    let mount = store.mount();
    let dir = mount.path().to_owned();
    fs::write(dir.join("f"), "kept").expect("writing");
    let (server, holder) = (mount.server(), mount.holder());
    let key = store.key_file();
    fs::rename(&key, store.home().join("hidden-key")).expect("taking the key away");
    server.kill();
    fs::read(dir.join("f")).expect_err("no server can open the store");
    store.ok(&args!["umount", dir]);
    assert!(!is_mounted(&dir));
    eventually("the holder to end", || !holder.alive());
    fs::rename(store.home().join("hidden-key"), &key).expect("giving the key back");
    let mount = store.mount();
    assert_eq!(fs::read(mount.path().join("f")).expect("reading"), b"kept", "from memory");
}
