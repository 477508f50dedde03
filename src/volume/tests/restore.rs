//! Restoring: by hand, of random directories at random moments of random histories against the model, and cut
//! short.

mod cut;
mod random;
mod seen;

use std::collections::BTreeSet;

use super::run::Outcome;
use super::*;
use crate::volume::restore::{Counts, Restore, Restored};

fn path(text: &str) -> Vec<Vec<u8>> {
    text.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect()
}

pub fn of(at: Lsn, text: &str) -> Restore {
    Restore { at, path: path(text), to: None, actor: None }
}

impl Bench {
    /// Time passes between all that is done by hand.
    pub fn point(&self, name: &str) -> Lsn {
        let at = self.snapshot(name);
        self.clock.advance(1_000_000);
        at
    }

    pub fn restore(&self, restore: &Restore) -> FsResult<Restored> {
        self.clock.advance(1_000_000);
        self.volumes().restore(self.main(), restore, false, &mut |_, _, _| {})
    }

    pub fn find(&self, at: Option<Lsn>, text: &str) -> FsResult<Ino> {
        path(text).iter().try_fold(Ino::ROOT, |dir, name| Ok(self.main().lookup(at, dir, name)?.ino))
    }

    pub fn content(&self, text: &str) -> Vec<u8> {
        self.read(None, self.find(None, text).unwrap())
    }

    /// What a mount does when the kernel has let go of everything.
    pub fn let_go(&self) {
        self.main().remove_stages().unwrap();
        loop {
            let orphans = self.main().orphans().unwrap();
            if orphans.is_empty() {
                return;
            }
            for ino in orphans {
                while self.main().empty_orphan(ino).unwrap().is_some() {}
                self.main().remove_orphan(ino).unwrap();
            }
        }
    }

    /// Whether every inode that there is can be reached: nothing has leaked.
    pub fn nothing_leaked(&self) -> Outcome {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![Ino::ROOT]);
        while let Some(ino) = todo.pop() {
            if !seen.insert(ino) || self.main().getattr(None, ino).unwrap().attrs.kind != FileKind::Dir {
                continue;
            }
            let add = |entry: DirEntry| {
                todo.extend((entry.name != b"." && entry.name != b"..").then_some(entry.ino));
                Ok(true)
            };
            self.main().readdir(None, ino, 0, add).unwrap();
        }
        let state = self.store().index().state();
        let inodes = state.volumes.get(&self.main().id()).unwrap().inodes;
        if inodes == seen.len() as u64 {
            Ok(())
        } else {
            Err(format!("{inodes} inodes, {} named", seen.len()))
        }
    }
}

#[test]
fn a_deleted_tree_comes_back_with_its_directories_and_an_overwritten_file_as_it_was() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let deep = bench.make(dir, "deep", FileKind::Dir);
    let file = bench.file(deep, "f");
    bench.write(file, 0, &noise(1, 700_000));
    bench.write(file, 5 << 20, b"behind a hole");
    let other = bench.file(dir, "other");
    bench.write(other, 0, b"old");
    let at = bench.point("s");
    let main = bench.main();
    main.unlink(deep, b"f", None).unwrap();
    main.rmdir(dir, b"deep", None).unwrap();
    bench.write(other, 0, b"newer");
    bench.file(dir, "extra");
    let before = bench.store().packs_bytes().unwrap();
    let done = bench.restore(&of(at, "d")).unwrap();
    assert_eq!(done.counts.brought_back, 2);
    assert_eq!((done.counts.replaced, done.counts.removed), (2, 1), "the file and the directory's times");
    assert!(done.snapshot.unwrap().spec.name.starts_with("before-restore-"));
    assert_eq!(bench.store().packs_bytes().unwrap(), before, "no byte was copied");
    let now = bench.content("d/deep/f");
    assert!(now == bench.read(Some(at), file) && now.len() > 5 << 20);
    assert_eq!(bench.content("d/other"), b"old");
    assert!(matches!(bench.find(None, "d/extra"), Err(FsError::NotFound)));
    assert_eq!(bench.read(None, other), b"newer", "whoever has it open keeps it");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
    // The directories above may be gone as well.
    main.unlink(dir, b"other", None).unwrap();
    let deep = bench.find(None, "d/deep").unwrap();
    main.unlink(deep, b"f", None).unwrap();
    main.rmdir(dir, b"deep", None).unwrap();
    main.rmdir(Ino::ROOT, b"d", None).unwrap();
    bench.restore(&of(at, "d/deep/f")).unwrap();
    assert!(bench.content("d/deep/f") == now);
    assert!(matches!(bench.find(None, "d/other"), Err(FsError::NotFound)), "only what leads to it");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn what_has_not_changed_keeps_its_inode_and_names_of_one_file_stay_names_of_one() {
    let bench = Bench::new(quiet());
    let (a, b) = (bench.make(Ino::ROOT, "a", FileKind::Dir), bench.make(Ino::ROOT, "b", FileKind::Dir));
    let same = bench.file(a, "same");
    let linked = bench.file(a, "one");
    bench.write(linked, 0, b"linked");
    bench.main().link(linked, b, b"two", None).unwrap();
    bench.main().link(linked, b, b"three", None).unwrap();
    let at = bench.point("s");
    assert!(bench.restore(&of(at, "")).unwrap().snapshot.is_none(), "nothing to be done, nothing done");
    bench.main().unlink(b, b"two", None).unwrap();
    bench.restore(&of(at, "")).unwrap();
    let found = ["a/one", "b/two", "b/three"].map(|name| bench.find(None, name).unwrap());
    assert!(found.iter().all(|ino| *ino == found[0] && *ino != linked), "{found:?}");
    assert_eq!(bench.main().getattr(None, found[0]).unwrap().attrs.nlink, 3);
    assert_eq!(bench.find(None, "a/same").unwrap(), same);
    let again = bench.restore(&of(at, "")).unwrap();
    assert_eq!((again.snapshot, again.counts), (None, Counts::default()), "it is as it was by now");
    // Of names outside of what is restored none changes.
    bench.write(found[0], 0, b"change");
    bench.restore(&of(at, "a")).unwrap();
    assert_eq!((bench.content("a/one"), bench.content("b/two")), (b"linked".to_vec(), b"change".to_vec()));
    assert_eq!(bench.main().getattr(None, found[0]).unwrap().attrs.nlink, 2);
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn a_change_too_large_for_one_record_replaces_whole_directories() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for i in 0..60 {
        let file = bench.file(dir, &format!("f{i}"));
        bench.write(file, 0, format!("old {i}").as_bytes());
    }
    let at = bench.point("s");
    for i in 0..60 {
        bench.write(bench.find(None, &format!("d/f{i}")).unwrap(), 0, b"NEW");
    }
    let done = bench.restore(&of(at, "d")).unwrap();
    assert_eq!(done.counts.replaced, 60);
    assert_eq!(done.touched.entries, [(Ino::ROOT, b"d".to_vec())], "one name");
    for i in 0..60 {
        assert_eq!(bench.content(&format!("d/f{i}")), format!("old {i}").as_bytes());
    }
    assert!(bench.main().orphans().unwrap().contains(&dir), "the old tree, with all that is in it");
    bench.fsck();
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn a_copy_gets_a_new_name_and_takes_no_other() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.write(file, 0, b"now!");
    let to = |name: &str| Restore { to: Some((Ino::ROOT, name.as_bytes().to_vec())), ..of(at, "d") };
    assert!(matches!(bench.restore(&to("d")), Err(FsError::Exists)));
    let done = bench.restore(&to("copy")).unwrap();
    assert!(done.snapshot.is_none(), "nothing was replaced");
    assert_eq!((bench.content("copy/f"), bench.content("d/f")), (b"then".to_vec(), b"now!".to_vec()));
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

/// What was written after the plan was made, and before the record, is in the snapshot at least.
#[test]
fn what_is_written_while_a_restore_prepares_is_never_lost() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.write(file, 0, b"now!");
    let (mut rounds, main) = (0, bench.main().clone());
    let done = bench
        .volumes()
        .restore(&main, &of(at, "d"), false, &mut |_, _, _| {
            rounds += 1;
            bench.clock.advance(1000);
            main.write(file, 0, format!("late {rounds}").as_bytes(), Writer::ROOT).unwrap();
            if rounds < 3 {
                bench.file(dir, &format!("new{rounds}"));
            }
        })
        .unwrap();
    let snapshot = done.snapshot.unwrap().lsn;
    assert!(rounds >= 3, "a new name makes the plan be made anew");
    assert_eq!(bench.read(Some(snapshot), file), format!("late {rounds}").as_bytes());
    assert!(bench.find(Some(snapshot), "d/new2").is_ok() && bench.find(None, "d/new2").is_err());
    assert_eq!(bench.content("d/f"), b"then");
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn who_restores_needs_the_rights_to_do_it_by_hand() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "f");
    let suid = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    main.setattr(file, &suid, None).unwrap();
    let at = bench.point("s");
    main.unlink(dir, b"f", None).unwrap();
    let as_user =
        |uid, group, text| Restore { actor: Some(User { uid, gid: group, groups: vec![] }), ..of(at, text) };
    let denied = |restore: &Restore| {
        let result = bench.restore(restore);
        assert!(matches!(result, Err(FsError::Denied(_))), "{result:?}");
    };
    // The bench's files belong to 7:8, mode 0640.
    denied(&as_user(9, 8, "d"));
    denied(&as_user(9, 9, "d/f"));
    denied(&as_user(7, 9, "d/f"));
    let may_all = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    main.setattr(dir, &may_all, None).unwrap();
    let at = {
        let back = bench.restore(&of(at, "d/f")).unwrap();
        assert_eq!(back.counts, Counts { brought_back: 1, ..Counts::default() });
        bench.point("t")
    };
    main.unlink(dir, b"f", None).unwrap();
    let own = Restore { at, ..as_user(7, 8, "d/f") };
    bench.restore(&own).unwrap();
    let found = main.getattr(None, bench.find(None, "d/f").unwrap()).unwrap().attrs;
    assert_eq!((found.mode, found.uid), (0o755, 7), "nobody but root gets setuid bits by it");
    let root = SetAttr { uid: Some(0), ..SetAttr::default() };
    main.setattr(bench.find(None, "d/f").unwrap(), &root, None).unwrap();
    denied(&own);
}
