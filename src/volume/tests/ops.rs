//! What a history is made of.

use proptest::prelude::*;

/// One step. Small numbers choose among what there is, modulo its count.
#[derive(Clone, Debug)]
pub enum Op {
    Make { dir: u8, name: u8, kind: u8, mode: u16 },
    Write { file: u8, offset: u64, len: u32, seed: u8 },
    Read { file: u8, offset: u64, len: u32 },
    Truncate { file: u8, size: u64 },
    Allocate { file: u8, offset: u64, len: u64, how: u8 },
    Seek { file: u8 },
    Copy { from: u8, moment: u8, at: u64, to: u8, offset: u64, len: u64 },
    Rename { from: u8, to: u8, name: u8, mode: u8 },
    Link { file: u8, dir: u8, name: u8 },
    Remove { entry: u8, wrong: bool },
    RemoveOrphan { orphan: u8 },
    SetAttr { node: u8, mode: Option<u16>, uid: Option<u32>, mtime: Option<u32> },
    SetXattr { node: u8, name: u8, len: u16, mode: u8 },
    RemoveXattr { node: u8, name: u8 },
    Fsync { file: u8 },
    Sync,
    Snapshot { hold: bool },
    DeleteSnapshot { which: u8 },
    Restore { which: u8, moment: u8 },
    Hold { which: u8, hold: bool },
    LookBack { which: u8 },
    LookNow { seeks: bool },
    Care { rounds: u8 },
    Idle,
    Advance { secs: u8 },
    SetPolicy { every: u16, continuous: u16, kept: u8, immutable: u16 },
    Exclude { patterns: u8 },
    Keep { minutes: u32 },
    Checkpoint,
    Gc,
    FlushIndex,
    Reopen,
    Crash { flushed: bool },
    LoseIndex { keep: u8 },
    Fsck,
    Pause,
}

fn offset() -> impl Strategy<Value = u64> {
    const BLOCK: u64 = 256 * 1024;
    prop_oneof![
        4 => 0u64..3000,
        4 => (0u64..6, 0u64..9).prop_map(|(b, d)| (b * BLOCK + d).saturating_sub(4)),
        3 => 0u64..2_000_000,
        1 => (0u64..160).prop_map(|b| b * BLOCK),
        1 => 0u64..45_000_000,
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 1u32..6000, 4 => 6000u32..140_000, 3 => 140_000u32..700_000, 1 => 700_000u32..3_000_000]
}

fn span() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 1u64..9000, 3 => 1u64..1_500_000, 1 => 20_000_000u64..50_000_000]
}

pub fn op() -> impl Strategy<Value = Op> {
    let b = any::<u8>;
    let data = prop_oneof![
        8 => (b(), offset(), len(), 0u8..12)
            .prop_map(|(file, offset, len, seed)| Op::Write { file, offset, len, seed }),
        2 => (b(), offset(), len()).prop_map(|(file, offset, len)| Op::Read { file, offset, len }),
        4 => (b(), offset()).prop_map(|(file, size)| Op::Truncate { file, size }),
        4 => (b(), offset(), span(), 0u8..6)
            .prop_map(|(file, offset, len, how)| Op::Allocate { file, offset, len, how }),
        1 => b().prop_map(|file| Op::Seek { file }),
        5 => (b(), b(), offset(), b(), offset(), span())
            .prop_map(|(from, moment, at, to, offset, len)| Op::Copy { from, moment, at, to, offset, len }),
        2 => b().prop_map(|file| Op::Fsync { file }),
    ];
    let names = prop_oneof![
        8 => (b(), 0u8..6, 0u8..10, 0u16..0o10000)
            .prop_map(|(dir, name, kind, mode)| Op::Make { dir, name, kind, mode }),
        6 => (b(), b(), 0u8..6, 0u8..4).prop_map(|(from, to, name, mode)| Op::Rename { from, to, name, mode }),
        2 => (b(), b(), 0u8..6).prop_map(|(file, dir, name)| Op::Link { file, dir, name }),
        4 => (b(), prop::bool::weighted(0.1)).prop_map(|(entry, wrong)| Op::Remove { entry, wrong }),
        3 => b().prop_map(|orphan| Op::RemoveOrphan { orphan }),
        2 => (b(), any::<Option<u16>>(), any::<Option<u32>>(), any::<Option<u32>>())
            .prop_map(|(node, mode, uid, mtime)| Op::SetAttr { node, mode, uid, mtime }),
        3 => (b(), 0u8..5, 0u16..3000, 0u8..4)
            .prop_map(|(node, name, len, mode)| Op::SetXattr { node, name, len, mode }),
        1 => (b(), 0u8..5).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => (0u8..8).prop_map(|patterns| Op::Exclude { patterns }),
    ];
    let points = prop_oneof![
        4 => prop::bool::weighted(0.1).prop_map(|hold| Op::Snapshot { hold }),
        3 => b().prop_map(|which| Op::DeleteSnapshot { which }),
        1 => (b(), any::<bool>()).prop_map(|(which, hold)| Op::Hold { which, hold }),
        3 => (b(), b()).prop_map(|(which, moment)| Op::Restore { which, moment }),
        4 => b().prop_map(|which| Op::LookBack { which }),
        2 => any::<bool>().prop_map(|seeks| Op::LookNow { seeks }),
        2 => Just(Op::Sync),
    ];
    let store = prop_oneof![
        4 => (1u8..4).prop_map(|rounds| Op::Care { rounds }),
        2 => Just(Op::Idle),
        3 => b().prop_map(|secs| Op::Advance { secs }),
        1 => (0u16..200, 0u16..3000, b(), 0u16..3000).prop_map(|(every, continuous, kept, immutable)| {
            Op::SetPolicy { every, continuous, kept, immutable: immutable.saturating_sub(1500) }
        }),
        5 => prop_oneof![0u32..5, 0u32..4000].prop_map(|minutes| Op::Keep { minutes }),
        2 => Just(Op::Checkpoint),
        2 => Just(Op::Gc),
        2 => Just(Op::FlushIndex),
        1 => Just(Op::Reopen),
        2 => any::<bool>().prop_map(|flushed| Op::Crash { flushed }),
        1 => b().prop_map(|keep| Op::LoseIndex { keep }),
        1 => Just(Op::Fsck),
        1 => Just(Op::Pause),
    ];
    prop_oneof![8 => data, 6 => names, 4 => points, 3 => store]
}

/// How the store of a history is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub encryption: bool,
    pub window: bool,
    pub eager: bool,
    pub small: bool,
    /// Whether at the end everything is given up.
    pub thorough: bool,
}

pub fn setup() -> impl Strategy<Value = Setup> {
    (prop::bool::weighted(0.7), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(encryption, window, eager, small, thorough)| Setup { encryption, window, eager, small, thorough },
    )
}
