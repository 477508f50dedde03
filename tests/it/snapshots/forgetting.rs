//! Snapshots that are forgotten while the server is killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Mount, Rng, Store, args, eventually, setting};

const FILES: u64 = 1500;
/// Snapshots that stay.
const KEPT: usize = 4;

fn content(file: u64, round: u64) -> String {
    format!("file {file} as round {round} left it")
}

/// The round that last changed each file.
type Rounds = BTreeMap<u64, u64>;

fn change(root: &Path, rounds: &mut Rounds, round: u64, rng: &mut Rng) {
    for file in (rng.below(2)..FILES).step_by(2) {
        fs::write(root.join(format!("f{file}")), content(file, round)).expect("writing");
        rounds.insert(file, round);
    }
}

fn assert_same(root: &Path, rounds: &Rounds) {
    for (file, round) in rounds {
        let path = root.join(format!("f{file}"));
        let found = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(found, content(*file, *round), "{}", path.display());
    }
}

fn points(mount: &Mount) -> Vec<String> {
    mount.snapshots().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_server_that_is_killed_while_it_forgets_loses_nothing_that_a_snapshot_needs() {
    let mut rng = Rng::printed();
    let mount = Store::encrypted().mount();
    let (mut now, mut kept) = (Rounds::new(), Vec::<(String, Rounds)>::new());
    (0..FILES).for_each(|file| {
        fs::write(mount.path().join(format!("f{file}")), content(file, 0)).expect("writing");
        now.insert(file, 0);
    });
    for round in 1..=setting("REWINDFS_TEST_KILLS", 8) {
        change(mount.path(), &mut now, round, &mut rng);
        let name = format!("s{round}");
        mount.snapshot(&name);
        kept.push((name, now.clone()));
        if kept.len() > KEPT {
            let (gone, _) = kept.remove(rng.below(kept.len() as u64) as usize);
            let mut command = mount.store().command(&args!["snapshot", "delete", mount.path(), gone]);
            let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starting");
            std::thread::sleep(Duration::from_millis(rng.below(120)));
            let server = mount.server();
            server.kill();
            eventually("the server to be gone", || !server.alive());
            child.wait().expect("waiting");
            // The kill came before the command was heard: then it is still there.
            if points(&mount).contains(&gone) {
                mount.store().ok(&args!["snapshot", "delete", mount.path(), gone]);
            }
        }
        assert_same(mount.path(), &now);
        let (name, then) = &kept[rng.below(kept.len() as u64) as usize];
        assert_same(&mount.at(name), then);
    }
    let names: Vec<String> = kept.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(points(&mount), names);
    kept.iter().for_each(|(name, then)| assert_same(&mount.at(name), then));
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
    store.ok(&args!["gc", store.path()]);
    let mount = store.mount();
    kept.iter().for_each(|(name, then)| assert_same(&mount.at(name), then));
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}
