//! The holder is killed, alone.

use super::load::Load;
use super::server::kill;
use crate::harness::{Store, eventually};

#[test]
fn nobody_notices_and_the_next_holder_does_its_work() {
    let store = Store::encrypted();
    let mount = store.mount();
    let load = Load::start(mount.path());
    let server = mount.server();
    for round in 0..5 {
        let holder = mount.holder();
        holder.kill();
        eventually("another holder", || {
            let pid = mount.status().get("holder_pid").and_then(serde_json::Value::as_i64);
            pid.is_some_and(|pid| {
                holder != crate::harness::process::Process::of(pid as i32).unwrap_or(holder)
            })
        });
        assert!(round > 2 || server.alive(), "the server goes on");
        load.advance(1);
        if round >= 2 {
            kill(&mount);
            load.advance(1);
        }
    }
    load.end();
    // Mounting and unmounting are the holder's work.
    let more = mount.store().ok(&crate::harness::args!["volume", "create", mount.store().path(), "more"]);
    assert_eq!(more, "");
    let other = store.mount_with("other", &crate::harness::args!["--volume", "more"]);
    std::fs::write(other.path().join("f"), "x").expect("writing");
    other.umount();
    mount.umount();
}
