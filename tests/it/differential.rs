//! Random operations done to a mount and to a plain ext4 directory: results, trees and snapshots must agree.
//! A failed run prints its seed; `REWINDFS_TEST_OPS` makes runs longer.

mod crowd;
mod ops;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ops::{Op, Told, World};

use crate::harness::{Rng, Times, Tree, Twin, setting};

/// Operations between two comparisons of the whole trees.
const COMPARE_EVERY: u64 = 500;
/// Operations between two snapshots.
const SNAPSHOT_EVERY: u64 = 350;
/// Operations between two remounts; every other one rebuilds the index.
const REMOUNT_EVERY: u64 = 1100;
/// Operations between two moments that are remembered by their record and looked at later.
const MOMENT_EVERY: u64 = 1700;
/// Time after which everything written is committed without being asked for (`commit_interval_ms`, and some).
const SETTLING: Duration = Duration::from_millis(2500);

/// Operations with results that are listed when a run fails.
const HISTORY: usize = 40;

fn run(mut rng: Rng, mut pick: impl FnMut(&mut Rng) -> Op) {
    let mut twin = Twin::new();
    let mut worlds = [World::default(), World::default()];
    let mut snapshots: Vec<(String, Tree)> = Vec::new();
    let mut history: Vec<String> = Vec::new();
    let mut succeeded = 0;
    let total = setting("REWINDFS_TEST_OPS", 5000);
    for i in 1..=total {
        let op = pick(&mut rng);
        let [ours, theirs] = {
            let roots = twin.roots();
            let [a, b] = &mut worlds;
            [a.apply(&op, roots[0]), b.apply(&op, roots[1])]
        };
        history.push(format!("{i}: {op:?} -> {theirs:?}"));
        if history.len() > HISTORY {
            history.remove(0);
        }
        let before = || history.join("\n");
        assert_eq!(ours, theirs, "left is the mount, right is ext4, at the last of\n{}", before());
        succeeded += u64::from(theirs.is_ok_and(|told| told != Told::NoHandle));
        if i % SNAPSHOT_EVERY == 0 {
            let name = format!("at-{i}");
            twin.mount().snapshot(&name);
            snapshots.push((name, Tree::read(twin.plain())));
        }
        if i % REMOUNT_EVERY == 0 {
            // What is open and unlinked ends here, on both sides.
            worlds.iter_mut().for_each(World::close_all);
            if (i / REMOUNT_EVERY).is_multiple_of(2) { twin.remount() } else { twin.remount_without_index() }
        }
        if i % MOMENT_EVERY == 0 {
            // A record's number stands for everything that was committed before it.
            std::thread::sleep(SETTLING);
            let lsn = &twin.mount().status()["lsn"];
            snapshots.push((format!("@lsn:{lsn}"), Tree::read(twin.plain())));
        }
        if i % COMPARE_EVERY == 0 || i == total {
            twin.compare(&format!("after\n{}", before()));
        }
    }
    worlds.iter_mut().for_each(World::close_all);
    compare_snapshots(&twin, &snapshots);
    twin.compare_over_remount();
    compare_snapshots(&twin, &snapshots);
    println!("{succeeded} of {total} operations succeeded");
    assert!(succeeded * 10 > total, "only {succeeded} of {total} operations did anything");
}

/// Each snapshot against the plain tree as it was then.
fn compare_snapshots(twin: &Twin, snapshots: &[(String, Tree)]) {
    for (name, then) in snapshots {
        let now = Tree::read(&twin.mount().at(name));
        then.assert_same(&now, Times::Planted, &format!("snapshot {name}"));
    }
}

#[test]
fn random_operations_of_all_kinds_agree_with_ext4() {
    run(Rng::printed(), Op::any);
}

#[test]
fn random_writes_and_truncations_of_few_files_agree_with_ext4() {
    run(Rng::printed(), Op::file_data);
}

#[test]
fn random_renames_and_links_in_a_small_tree_agree_with_ext4() {
    run(Rng::printed(), Op::namespace);
}

#[test]
fn one_seed_gives_one_sequence() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let sequence = |seed| {
        let mut rng = Rng::new(seed);
        (0..100).map(|_| format!("{:?}", Op::any(&mut rng))).collect::<Vec<_>>()
    };
    assert_eq!(sequence(clock), sequence(clock));
    assert_ne!(sequence(clock), sequence(clock + 1));
}
