//! Every bug that the histories found, as the few steps that show it.

use super::ops::{Op, Op::*, Setup};
use super::points::history;
use super::*;

const PLAIN: Setup = Setup { encryption: false, window: true, eager: false, small: false, thorough: true };

fn check(setup: Setup, ops: &[Op]) {
    if let Err(e) = history(setup, ops) {
        panic!("{e}");
    }
}

/// The cut of a deleted inode went into its last version, which then seemed cut at points before.
#[test]
fn removing_a_large_orphan_leaves_it_readable_in_snapshots() {
    let ops = [
        Make { dir: 0, name: 0, kind: 0, mode: 0 },
        Remove { entry: 0, wrong: false },
        Write { file: 0, offset: 16_777_216, len: 1, seed: 1 },
        Snapshot { hold: false },
        RemoveOrphan { orphan: 0 },
    ];
    check(PLAIN, &ops);
}
