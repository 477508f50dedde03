//! Purging: by hand, of random files in random histories against the model, and cut short.

mod cut;
mod paths;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestError, TestRunner};

use super::model::{Model, compare_all};
use super::ops::{Op, Setup, op, setup};
use super::run::{Outcome, Run, Snap};
use super::*;
use crate::store::control::Control;
use crate::store::index::keys::{self, Family};
use crate::store::model::Recipe;
use crate::types::ChunkId;
use crate::volume::policy::Setting;
use crate::volume::purge::{Host, Past, Purged};
use crate::volume::restore::{Restore, Touched};

/// A kernel that holds some inodes, and nothing else.
#[derive(Default)]
struct Kernel {
    holds: BTreeSet<Ino>,
    told: Mutex<Vec<Touched>>,
    past: Mutex<Vec<Past>>,
}

impl Host for Kernel {
    fn tell(&self, touched: &Touched) -> Result<(), String> {
        self.told.lock().push(touched.clone());
        Ok(())
    }

    fn tell_past(&self, past: &Past) -> Result<(), String> {
        self.past.lock().push(past.clone());
        Ok(())
    }

    fn holds(&self, inodes: &[Ino]) -> Vec<Ino> {
        inodes.iter().copied().filter(|ino| self.holds.contains(ino)).collect()
    }
}

impl Bench {
    /// A name in a directory, whatever path that has.
    fn name_in(&self, dir: Ino, name: &str) -> NamePath {
        self.main().name_path(dir, &[name]).unwrap()
    }

    fn purge_by(&self, path: &NamePath, dry_run: bool, kernel: &Kernel) -> FsResult<Purged> {
        self.rest();
        self.clock.advance(1_000_000);
        self.volumes().purge(self.main(), path, dry_run, kernel, &Control::new(0))
    }

    fn purge(&self, path: &NamePath) -> FsResult<Purged> {
        self.purge_by(path, false, &Kernel::default())
    }

    /// The chunks of all versions of inodes.
    fn chunks_of(&self, inodes: &BTreeSet<Ino>) -> BTreeSet<ChunkId> {
        let mut chunks = BTreeSet::new();
        for ino in inodes {
            let prefix = keys::prefix(self.main().id(), Family::Block, *ino);
            let visit = |_: &[u8], _, stored: crate::store::index::rows::Stored| {
                chunks.extend(Recipe::join_public(&stored.public).unwrap().chunks().copied());
                Ok(())
            };
            self.store().index().visit_versions(&prefix, visit).unwrap();
        }
        chunks
    }

    /// Whether nothing of inodes is left: no row, and no chunk that no other file names.
    fn nothing_left(&self, inodes: &BTreeSet<Ino>, chunks: &BTreeSet<ChunkId>) -> Outcome {
        let (vol, index) = (self.main().id(), self.store().index());
        let mut left = 0;
        for family in [Family::Inode, Family::Block, Family::Xattr] {
            for ino in inodes {
                let count = |_: &[u8], _, _| {
                    left += 1;
                    Ok(())
                };
                index.visit_versions(&keys::prefix(vol, family, *ino), count).unwrap();
            }
        }
        let names = keys::family(vol, Family::Dirent);
        let count = |_: &[u8], _, _, _| {
            left += 1;
            Ok(())
        };
        index.visit_names(&names, inodes, count).unwrap();
        if left > 0 || !index.purges(vol).unwrap().is_empty() {
            return Err(format!("{left} rows of {inodes:?} are left"));
        }
        let entry = |id: &&ChunkId| index.chunk(id).unwrap().is_some_and(|entry| entry.refs == 0);
        let dead = chunks.iter().filter(entry).count();
        if dead == 0 { Ok(()) } else { Err(format!("{dead} dead chunks of {inodes:?} are left")) }
    }
}

fn all_erased(purged: &Purged) {
    assert_eq!((&purged.left, &purged.refused), (&Vec::new(), &Vec::new()));
}

#[test]
fn a_file_goes_from_every_point_under_all_its_names_and_nothing_else_does() {
    let mut bench = Bench::new(quiet());
    let main = bench.main().clone();
    let (a, b) = (bench.make(Ino::ROOT, "a", FileKind::Dir), bench.make(Ino::ROOT, "b", FileKind::Dir));
    let other = bench.file(a, "other");
    bench.write(other, 0, &noise(9, 300_000));
    let first = bench.file(a, "draft");
    bench.write(first, 0, &noise(1, 300_000));
    main.setxattr(first, b"user.x", b"secret", XattrMode::Set, None).unwrap();
    let one = bench.snapshot("one");
    bench.write(first, 100_000, &noise(2, 100_000));
    main.link(first, b, b"linked", None).unwrap();
    main.rename((a, b"draft"), (b, b"paper"), RenameMode::Replace, None).unwrap();
    let two = bench.snapshot("two");
    // Saved by writing another file and renaming it.
    let second = bench.file(b, "tmp");
    bench.write(second, 0, &noise(3, 200_000));
    main.rename((b, b"tmp"), (b, b"paper"), RenameMode::Replace, None).unwrap();
    main.link(second, Ino::ROOT, b"again", None).unwrap();
    let three = bench.snapshot("three");
    let inodes = BTreeSet::from([first, second]);
    let chunks = bench.chunks_of(&inodes);
    let path = bench.name_in(b, "paper");
    let last = bench.store().last();
    let dry = bench.purge_by(&path, true, &Kernel::default()).unwrap();
    assert_eq!(bench.store().last(), last, "a dry run commits nothing");
    let kernel = Kernel::default();
    let done = bench.purge_by(&path, false, &kernel).unwrap();
    all_erased(&done);
    let counts = |p: &Purged| (p.files, p.versions, p.names.clone(), p.snapshots.clone(), p.bytes);
    assert_eq!(counts(&dry), counts(&done));
    let names: Vec<_> =
        done.names.iter().map(|n| (String::from_utf8_lossy(&n.path).into_owned(), n.live)).collect();
    let expected =
        [("a/draft", false), ("again", true), ("b/linked", true), ("b/paper", true), ("b/tmp", false)];
    assert_eq!(names, expected.map(|(name, live)| (name.to_owned(), live)));
    assert_eq!((done.files, done.snapshots.join(",")), (2, "one,two,three".to_owned()));
    assert_eq!(done.shared_bytes, 0);
    // The kernel is told of each name, now and then.
    let told: BTreeSet<_> = kernel.told.lock().iter().flat_map(|t| t.entries.clone()).collect();
    let now = [(b, &b"linked"[..]), (b, b"paper"), (Ino::ROOT, b"again")];
    assert_eq!(told, now.iter().map(|(dir, name)| (*dir, name.to_vec())).collect());
    let past: BTreeSet<_> = kernel.past.lock()[0].names.iter().map(|n| (n.0, n.1.clone())).collect();
    assert!(past.contains(&(a, b"draft".to_vec())) && past.contains(&(b, b"tmp".to_vec())));
    drop(main);
    for _ in 0..2 {
        for at in [None, Some(one), Some(two), Some(three)] {
            for (dir, name) in [(a, "draft"), (b, "linked"), (b, "paper"), (b, "tmp"), (Ino::ROOT, "again")] {
                let found = bench.main().lookup(at, dir, name.as_bytes());
                assert!(matches!(found, Err(FsError::NotFound)), "{name} at {at:?}");
            }
            for ino in &inodes {
                assert!(matches!(bench.main().read(at, *ino, 0, 10), Err(FsError::NotFound)));
            }
            assert!(bench.read(at, other) == noise(9, 300_000));
        }
        bench.nothing_left(&inodes, &chunks).unwrap();
        bench.fsck();
        bench.crash();
    }
    assert!(matches!(bench.purge(&path), Err(FsError::NotFound)), "nothing of that name is known");
}

#[test]
fn copies_keep_their_data_and_are_named() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, &noise(1, 400_000));
    let copy = bench.file(Ino::ROOT, "copy");
    bench.write(copy, 0, &noise(1, 400_000));
    bench.volumes().sync().unwrap();
    bench.care();
    let done = bench.purge(&bench.name_in(Ino::ROOT, "f")).unwrap();
    all_erased(&done);
    assert_eq!(done.shared_bytes, 400_000);
    assert_eq!(done.shared_with, Some(vec![("main".to_owned(), b"/copy".to_vec())]));
    assert!(bench.read(None, copy) == noise(1, 400_000));
    bench.fsck();
}

/// The window ended for a file with the same data, which nobody has forgotten yet.
#[test]
fn data_that_only_forgotten_versions_share_goes_too() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let other = bench.file(Ino::ROOT, "other");
    bench.write(other, 0, &noise(1, 400_000));
    bench.volumes().sync().unwrap();
    main.unlink(Ino::ROOT, b"other", None).unwrap();
    main.remove_orphan(other).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, &noise(1, 400_000));
    bench.volumes().sync().unwrap();
    bench.clock.advance(10 * 24 * 3600 * 1_000_000_000);
    let inodes = BTreeSet::from([file]);
    let chunks = bench.chunks_of(&inodes);
    all_erased(&bench.purge(&bench.name_in(Ino::ROOT, "f")).unwrap());
    bench.nothing_left(&inodes, &chunks).unwrap();
    bench.fsck();
}

#[test]
fn old_records_tables_and_checkpoints_are_gone_from_the_disk() {
    let bench = Bench::with(quiet(), false);
    let file = bench.file(Ino::ROOT, "licence-of-somebody");
    let link = NewNode { target: b"points-to-somebody".to_vec(), ..node(FileKind::Symlink) };
    bench.main().make(Ino::ROOT, b"link", link, None).unwrap();
    let marker = noise(5, 60);
    bench.write(file, 0, &[noise(1, 100_000), marker.clone(), noise(2, 100_000)].concat());
    bench.snapshot("s");
    bench.write(file, 300_000, &marker);
    bench.main().fsync(file).unwrap();
    bench.store().checkpoint().unwrap();
    let found = |needle: &[u8]| {
        let mut todo = vec![bench.root()];
        let mut found = Vec::new();
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            } else if std::fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle) {
                found.push(path);
            }
        }
        found
    };
    for needle in [&marker[..], b"licence-of-somebody", b"points-to-somebody"] {
        assert!(!found(needle).is_empty(), "the search would miss it");
    }
    all_erased(&bench.purge(&bench.name_in(Ino::ROOT, "licence-of-somebody")).unwrap());
    all_erased(&bench.purge(&bench.name_in(Ino::ROOT, "link")).unwrap());
    for needle in [&marker[..], b"licence-of-somebody", b"points-to-somebody"] {
        assert_eq!(found(needle), Vec::<PathBuf>::new());
    }
    bench.fsck();
}

fn refused(result: FsResult<Purged>) -> String {
    match result {
        Err(e @ (FsError::Held(_) | FsError::Refused(_))) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn holds_immutability_and_programs_refuse_a_purge_and_leave_everything_as_it_is() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let file = bench.file(Ino::ROOT, "f");
    bench.write(file, 0, b"then");
    let at = bench.snapshot("kept");
    main.hold_snapshot("kept", true).unwrap();
    bench.write(file, 0, b"now!");
    let path = bench.name_in(Ino::ROOT, "f");
    let unchanged = || {
        assert_eq!(
            (bench.read(Some(at), file), bench.read(None, file)),
            (b"then".to_vec(), b"now!".to_vec())
        );
        assert!(bench.store().index().purges(main.id()).unwrap().is_empty());
    };
    assert!(refused(bench.purge(&path)).contains("snapshot kept is held"));
    let dry = bench.purge_by(&path, true, &Kernel::default()).unwrap();
    assert!(dry.refused.len() == 1 && dry.refused[0].contains("snapshot kept is held"), "{dry:?}");
    unchanged();
    main.hold_snapshot("kept", false).unwrap();
    let set = |text: &str| main.set_policy(&Setting::all(&[text.into()]).unwrap(), false).unwrap();
    set("immutable=1h");
    let line = refused(bench.purge(&path));
    assert!(
        line.contains("kept is immutable until") && line.contains("within the immutable period"),
        "{line}"
    );
    unchanged();
    // What has been gone for so long, and is in no point that young, may go.
    let gone = main.unlink(Ino::ROOT, b"f", None).unwrap().unwrap();
    main.remove_orphan(gone).unwrap();
    assert!(refused(bench.purge(&path)).contains("within the immutable period"));
    bench.clock.advance(4000 * 1_000_000_000);
    bench.snapshot("later");
    all_erased(&bench.purge(&path).unwrap());
    assert!(main.getattr(Some(at), file).is_err());
    bench.clock.advance(4000 * 1_000_000_000);
    set("immutable=off");
    bench.clock.advance(4000 * 1_000_000_000);
    // Somebody has it open.
    let file = bench.file(Ino::ROOT, "f");
    let kernel = Kernel { holds: BTreeSet::from([file]), ..Kernel::default() };
    assert!(refused(bench.purge_by(&path, false, &kernel)).contains("has f open"));
    assert!(main.lookup(None, Ino::ROOT, b"f").is_ok());
    let dir = bench.make(Ino::ROOT, "dir", FileKind::Dir);
    assert!(matches!(bench.purge(&bench.name_in(Ino::ROOT, "dir")), Err(FsError::IsDir)));
    assert!(matches!(bench.purge(&bench.name_in(dir, "never")), Err(FsError::NotFound)));
    all_erased(&bench.purge(&path).unwrap());
    bench.fsck();
}

/// The present version of what is excluded began before the snapshot, which does not show it all the same.
#[test]
fn a_held_snapshot_does_not_keep_what_is_excluded() {
    let bench = Bench::new(quiet());
    bench.main().set_policy(&Setting::all(&["exclude=*.tmp".into()]).unwrap(), false).unwrap();
    let file = bench.file(Ino::ROOT, "f.tmp");
    bench.write(file, 0, &noise(1, 100_000));
    bench.main().link(file, Ino::ROOT, b"g.tmp", None).unwrap();
    bench.snapshot("held");
    bench.main().hold_snapshot("held", true).unwrap();
    let purged = bench.purge(&bench.name_in(Ino::ROOT, "f.tmp")).unwrap();
    all_erased(&purged);
    assert_eq!((purged.names_total, purged.snapshots_total), (2, 0));
    bench.fsck();
}

#[test]
fn a_directory_that_lost_a_file_to_a_purge_is_restored_and_removed_as_any_other() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for name in ["f", "g"] {
        let file = bench.file(dir, name);
        bench.write(file, 0, name.as_bytes());
    }
    let at = bench.snapshot("s");
    all_erased(&bench.purge(&bench.name_in(dir, "f")).unwrap());
    main.unlink(dir, b"g", None).unwrap();
    main.rmdir(Ino::ROOT, b"d", None).unwrap();
    let restore = Restore { at, path: vec![b"d".to_vec()], to: None, actor: None };
    bench.clock.advance(1_000_000);
    bench.volumes().restore(main, &restore, false, &mut |_, _, _| {}).unwrap();
    bench.fsck();
    let dir = main.lookup(None, Ino::ROOT, b"d").unwrap().ino;
    assert!(matches!(main.lookup(None, dir, b"f"), Err(FsError::NotFound)));
    main.unlink(dir, b"g", None).unwrap();
    main.rmdir(Ino::ROOT, b"d", None).unwrap();
    bench.fsck();
}

fn without(model: &Model, inodes: &BTreeSet<Ino>) -> Model {
    let mut model = model.clone();
    model.nodes.retain(|ino, _| !inodes.contains(ino));
    let holders = model.of_kind(|n| n.entries.values().any(|ino| inodes.contains(ino)));
    for dir in holders {
        let node = model.node(dir);
        node.entries.retain(|_, ino| !inodes.contains(ino));
        node.hidden.retain(|name| node.entries.contains_key(name));
    }
    model
}

impl Run {
    /// Purges some file, and compares every point with the model without it.
    fn purge(&mut self, which: u8) -> Outcome {
        self.sync()?;
        let paths: Vec<_> = self.paths().into_iter().collect();
        let Some(names) = paths.get(which as usize % paths.len().max(1)) else { return Ok(()) };
        let volume = self.volume();
        let path = volume.name_path(Ino::ROOT, names).unwrap();
        let inodes = match volume.files_of(&path) {
            Ok(inodes) => inodes,
            // By now a directory has the name, or no point shows the file any more.
            Err(FsError::IsDir | FsError::NotFound) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        let past = self.snaps.iter().map(|s| (s.lsn, &s.model));
        let past = past.chain(self.moments.iter().map(|(at, model)| (*at, model)));
        let past = past.filter(|(at, _)| volume.is_readable(*at)).map(|(_, model)| model.shown());
        for model in past.chain([self.model.clone()]) {
            if let Some(ino) = model.find(names)
                && model.get(ino).kind != FileKind::Dir
                && !inodes.contains(&ino)
            {
                return Err(format!("{names:?} meant {ino}, which is not among {inodes:?}"));
            }
        }
        // Without a name nothing shows it: open files, and what a restore had prepared.
        let has = |s: &Snap, ino: &Ino| s.model.shown().nodes.get(ino).is_some_and(|node| node.nlink > 0);
        let held = self.snaps.iter().any(|s| s.hold && inodes.iter().any(|ino| has(s, ino)));
        let guarded = self.immutable.iter().any(|(_, secs)| *secs > 0);
        let chunks = self.bench.chunks_of(&inodes);
        match self.bench.purge(&path) {
            Err(FsError::Held(_)) if held || guarded => return self.look(true),
            Ok(_) if held => return Err("a held snapshot showed it".into()),
            Ok(purged) if purged.left.is_empty() => {}
            other => return Err(format!("purge: {other:?}")),
        }
        self.bench.nothing_left(&inodes, &chunks)?;
        let now = self.now();
        for model in
            self.snaps.iter_mut().map(|s| &mut s.model).chain(self.moments.iter_mut().map(|m| &mut m.1))
        {
            *model = without(model, &inodes);
        }
        let touched = self.model.of_kind(|n| n.entries.values().any(|ino| inodes.contains(ino)));
        touched.into_iter().for_each(|dir| self.model.touch_dir(dir, now));
        self.model = without(&self.model, &inodes);
        self.settled = self.bench.store().last();
        self.everywhere()
    }

    /// Compares all that can be read with the model.
    fn everywhere(&mut self) -> Outcome {
        let volume = self.volume();
        compare_all(&volume, None, &self.model, &self.known, false)?;
        for snap in &self.snaps {
            snap.compare(&volume, &self.known, false)?;
        }
        for (at, model) in self.moments.iter().filter(|(at, _)| volume.is_readable(*at)) {
            compare_all(&volume, Some(*at), model, &self.known, false)?;
        }
        let problems = self.bench.problems();
        if problems.is_empty() { Ok(()) } else { Err(format!("fsck: {problems:?}")) }
    }
}

fn purged_history(setup: Setup, ops: &[Op], more: &[Op], which: [u8; 3]) -> Outcome {
    let mut run = Run::new(setup);
    let step = |run: &mut Run, op: &Op| run.step(op).map_err(|e| format!("{op:?}: {e}"));
    ops.iter().try_for_each(|op| step(&mut run, op))?;
    run.bench.clock.advance(1_000_003);
    run.purge(which[0])?;
    run.purge(which[1])?;
    more.iter().try_for_each(|op| step(&mut run, op))?;
    run.bench.clock.advance(1_000_003);
    run.purge(which[2])
}

#[test]
fn after_a_purge_every_point_is_what_the_model_was_without_the_file() {
    let config = Proptest {
        cases: cases(60),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Proptest::default()
    };
    let ops = |range| prop::collection::vec(op(), range);
    let strategy = (setup(), ops(10..80), ops(0..30), any::<[u8; 3]>());
    let result = TestRunner::new(config).run(&strategy, |(setup, ops, more, which)| {
        purged_history(setup, &ops, &more, which).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (setup, ops, more, which))) => {
            panic!("{reason}\n{setup:?}, {which:?}, &{ops:?}, &{more:?}")
        }
        Err(e) => panic!("{e}"),
    }
}
