//! Records that no writer of ours makes: whatever decodes may be refused, but nothing may panic.

use proptest::prelude::*;

use super::*;
use crate::store::model::{
    Attrs, Dirent, ForgetFrom, Hidden, ItemKey, PastVersion, Piece, Recipe, Record, SnapshotSpec, Source,
    Xattr,
};
use crate::types::ChunkId;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..6,
        1 => (0u64..3).prop_map(|n| u64::MAX - n),
        1 => (0u64..3).prop_map(|n| (1 << 46) - n),
        1 => any::<u64>(),
    ]
}

fn vol() -> impl Strategy<Value = VolumeId> {
    prop_oneof![9 => Just(1), 1 => Just(0), 1 => Just(u32::MAX), 1 => 0u32..4].prop_map(VolumeId)
}

fn ino() -> impl Strategy<Value = Ino> {
    number().prop_map(Ino)
}

fn lsn() -> impl Strategy<Value = Lsn> {
    number().prop_map(Lsn)
}

fn piece() -> impl Strategy<Value = Piece> {
    (prop_oneof![0u32..40, Just(256 << 10), any::<u32>()], 0u8..9, any::<u32>()).prop_map(
        |(len, how, offset)| {
            let source = match how {
                0..4 => Source::Hole,
                4..8 => Source::Inline(vec![how; (len as usize).min(300_000)]),
                _ => Source::Chunk { id: ChunkId([1; 32]), offset },
            };
            Piece { len, source }
        },
    )
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    prop::collection::vec(piece(), 0..4)
}

fn file_kind() -> impl Strategy<Value = FileKind> {
    prop_oneof![Just(FileKind::File), Just(FileKind::Dir), Just(FileKind::Symlink)]
}

fn attrs() -> impl Strategy<Value = Attrs> {
    (file_kind(), any::<u16>(), number(), number(), number(), number(), any::<i64>()).prop_map(
        |(kind, mode, size, nlink, parent, entries, secs)| {
            let time = Timestamp { secs, nanos: 999_999_999 };
            let mut attrs = new_attrs(kind, mode, (1, 1), time, entries);
            (attrs.size, attrs.nlink, attrs.parent) = (size, nlink as u32, Ino(parent));
            (attrs.entries, attrs.xattrs) = (entries, nlink as u32);
            attrs.excluded = entries % 2 == 1;
            attrs.hidden = (nlink % 2 == 1).then_some(Hidden { entries, dirs: nlink as u32 });
            attrs
        },
    )
}

fn item() -> impl Strategy<Value = ItemKey> {
    prop_oneof![
        ino().prop_map(ItemKey::Inode),
        ino().prop_map(|ino| ItemKey::Entry(ino, [0; 16])),
        (ino(), 0u64..3).prop_map(|(ino, block)| ItemKey::Block(ino, block)),
        ino().prop_map(|ino| ItemKey::Xattr(ino, [0; 16])),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let hash = || prop_oneof![Just([0u8; 16]), Just([255u8; 16])];
    let items = prop_oneof![
        4 => (vol(), ino(), attrs()).prop_map(|(vol, ino, attrs)| Edit::PutInode { vol, ino, attrs }),
        1 => (vol(), ino()).prop_map(|(vol, ino)| Edit::DelInode { vol, ino }),
        2 => (vol(), ino(), hash(), ino(), file_kind(), 0usize..3).prop_map(|(vol, parent, hash, ino, kind, len)| {
            let (excluded, name) = (len == 2, vec![b'n'; len]);
            Edit::PutDirent { vol, parent, hash, dirent: Dirent { ino, kind, name, excluded } }
        }),
        1 => (vol(), ino(), hash()).prop_map(|(vol, parent, hash)| Edit::DelDirent { vol, parent, hash }),
        4 => (vol(), ino(), number(), prop_oneof![0u32..9, any::<u32>()], pieces()).prop_map(
            |(vol, ino, block, offset, pieces)| Edit::PatchBlock { vol, ino, block, offset, pieces }
        ),
        2 => (vol(), ino(), number(), number())
            .prop_map(|(vol, ino, from, to)| Edit::DropBlocks { vol, ino, from, to }),
        3 => (vol(), ino(), number(), number()).prop_map(|(vol, ino, from, to)| Edit::Cut { vol, ino, from, to }),
        2 => (vol(), ino(), lsn(), 1u32..=1000).prop_map(|(vol, ino, cut, items)| Edit::Reap { vol, ino, cut, items }),
        1 => (vol(), ino(), hash(), 0usize..3).prop_map(|(vol, ino, hash, len)| {
            Edit::PutXattr { vol, ino, hash, xattr: Xattr { name: vec![b'x'; len], value: vec![1; len] } }
        }),
        1 => (vol(), ino(), hash()).prop_map(|(vol, ino, hash)| Edit::DelXattr { vol, ino, hash }),
        1 => (vol(), ino(), any::<bool>()).prop_map(|(vol, ino, orphan)| Edit::Orphan { vol, ino, orphan }),
        1 => (vol(), ino(), ino(), any::<bool>())
            .prop_map(|(vol, from, to, staged)| Edit::Stage { vol, from, to, staged }),
        2 => (vol(), ino(), number(), lsn(), pieces()).prop_map(|(vol, ino, block, since, pieces)| {
            let small = pieces.into_iter().filter(|p| p.len < 1000).collect();
            Edit::Rebind { vol, ino, block, since, recipe: Recipe::new(small) }
        }),
    ];
    let others = prop_oneof![
        (vol(), any::<u32>(), any::<bool>()).prop_map(|(vol, view, hold)| {
            let spec = SnapshotSpec { name: "s".into(), view, hold, ..SnapshotSpec::default() };
            Edit::SnapshotCreate { vol, spec }
        }),
        (vol(), any::<bool>()).prop_map(|(vol, hold)| {
            let spec = SnapshotSpec { name: "m".into(), view: u32::MAX, hold, ..SnapshotSpec::default() };
            Edit::SnapshotCreate { vol, spec }
        }),
        (vol(), lsn()).prop_map(|(vol, at)| Edit::SnapshotDelete { vol, at }),
        (vol(), lsn(), any::<bool>()).prop_map(|(vol, at, hold)| Edit::SnapshotHold { vol, at, hold }),
        (vol(), lsn()).prop_map(|(vol, floor)| {
            let since = Timestamp::default();
            Edit::Window { vol, floor, since }
        }),
        (vol(), 1u32..=1000, lsn(), lsn(), lsn()).prop_map(|(vol, items, window, first, end)| {
            Edit::Forget { vol, items, from: ForgetFrom { window, first, end } }
        }),
        (vol(), ino(), any::<bool>()).prop_map(|(vol, ino, pending)| Edit::Purge { vol, ino, pending }),
        (vol(), item(), 0u64..4, 1u64..9).prop_map(|(vol, item, first, more)| {
            let version = PastVersion { item, first: Lsn(first), end: Lsn(first + more) };
            Edit::Erase { vol, version }
        }),
        vol().prop_map(|vol| Edit::VolumeCreate { vol, name: "v".into() }),
        vol().prop_map(|vol| Edit::VolumeDelete { vol }),
        vol().prop_map(|vol| Edit::VolumeSweep { vol }),
        Just(Edit::Term),
    ];
    prop_oneof![3 => items, 1 => others]
}

fn record() -> impl Strategy<Value = Record> {
    (prop::collection::vec(edit(), 1..12), any::<i64>(), lsn()).prop_map(|(edits, secs, durable)| {
        let time = Timestamp { secs, nanos: 7 };
        Record { time, durable, request: None, edits }
    })
}

/// Uses everything that reads, whatever it says.
fn look_around(bench: &Bench) {
    let volume = bench.main();
    for ino in [0, 1, 2, 3, 4, 5, u64::MAX].map(Ino) {
        for at in [None, Some(Lsn(3)), Some(Lsn::MAX)] {
            let _ = volume.getattr(at, ino);
            let _ = volume.readdir(at, ino, 0, |_| Ok(true));
            let _ = volume.listxattr(at, ino);
            let _ = volume.lookup(at, ino, b"n");
            for offset in [0, 1 << 62, u64::MAX] {
                let _ = volume.read(at, ino, offset, 100);
                let _ = volume.seek(at, ino, offset, Seek::Data);
                let _ = volume.seek(at, ino, offset, Seek::Hole);
            }
            let _ = volume.seek(at, ino, 0, Seek::Hole);
        }
        let _ = volume.snapshot_of_view(ino.0 as u32);
        let _ = volume.make(ino, b"new", node(FileKind::Dir), None);
        let _ = volume.setxattr(ino, b"user.x", b"y", XattrMode::Set, None);
        let _ = volume.write(ino, 3, b"abc", Writer::ROOT);
        let _ = volume.fsync(ino);
        let _ = volume.setattr(ino, &SetAttr { size: Some(1), ..SetAttr::default() }, None);
        let _ = volume.allocate(ino, 0, 1 << 40, Allocate::Punch, Writer::ROOT, None);
        let _ = volume.rename((Ino::ROOT, b"new"), (ino, b"other"), RenameMode::Replace, None);
        let _ = volume.remove_orphan(ino);
    }
}

#[test]
fn hostile_records_are_refused_or_applied() {
    let config = ProptestConfig { cases: cases(60), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(records in prop::collection::vec(record(), 1..6))| {
        let mut bench = Bench::with(quiet(), false);
        bench.file(Ino::ROOT, "f");
        for record in records {
            // What does not decode never gets to be applied.
            if let Ok(record) = Record::decode(&record.encode()) {
                let _ = bench.store().commit(record.edits, None);
            }
        }
        look_around(&bench);
        bench.store().pause_care(false);
        for _ in 0..3 {
            bench.clock.advance(10_000_000_000_000);
            let _ = bench.store().care_round(bench.store().last());
        }
        let _ = bench.store().check(&mut |_, _| {});
        bench.drop_all();
        if let Ok(store) = Store::open(&bench.root(), bench.options(), &mut |_, _| {}) {
            let _ = store.check(&mut |_, _| {});
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_round_trip_or_are_refused(record in record()) {
        let bytes = record.encode();
        if let Ok(decoded) = Record::decode(&bytes) {
            prop_assert_eq!(Record::decode(&decoded.encode()), Ok(decoded));
        }
    }

    #[test]
    fn changed_records_do_not_panic(
        record in record(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = record.encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Record::decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = Record::decode(&bytes);
    }
}
