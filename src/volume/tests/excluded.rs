//! What is excluded from the history: never shown by a point, freed at once, and ordinary as soon as it leaves.

mod moved;

use super::restore::of;
use super::*;
use crate::store::index::keys;
use crate::volume::policy::Setting;

fn exclude(bench: &Bench, patterns: &[&str]) {
    let settings: Vec<String> = patterns.iter().map(|p| format!("exclude={p}")).collect();
    bench.main().set_policy(&Setting::all(&settings).unwrap(), false).unwrap();
}

/// A store that keeps every moment, with patterns.
fn excluding(patterns: &[&str]) -> Bench {
    let bench = Bench::new(Config { window_seconds: 1_000_000, ..quiet() });
    exclude(&bench, patterns);
    bench
}

/// Versions that there are of an inode, its blocks and attributes: now, and in the history.
fn versions(bench: &Bench, ino: Ino) -> (u64, u64) {
    let (mut heads, mut history) = (0, 0);
    let count = |row: crate::store::index::frozen::VersionRow<'_>| {
        let entry = keys::family_of(row.key) == Some(keys::Family::Dirent);
        if !entry && keys::ino_of(row.key) == Some(ino) {
            *(if row.end.is_none() { &mut heads } else { &mut history }) += 1;
        }
        Ok(())
    };
    bench.store().index().freeze().versions(count).unwrap();
    (heads, history)
}

fn history_bytes(bench: &Bench) -> u64 {
    let state = bench.store().index().state();
    state.volumes.get(&bench.main().id()).unwrap().history_bytes
}

fn is_excluded(bench: &Bench, ino: Ino) -> bool {
    bench.main().getattr(None, ino).unwrap().attrs.excluded
}

fn names(bench: &Bench, at: Option<Lsn>, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let add = |entry: DirEntry| {
        names.push(String::from_utf8(entry.name).unwrap());
        Ok(true)
    };
    bench.main().readdir(at, dir, 0, add).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

fn rename(bench: &Bench, from: (Ino, &str), to: (Ino, &str)) {
    let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
    bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
}

#[test]
fn no_point_shows_what_is_excluded_and_nothing_of_it_is_kept() {
    let mut bench = excluding(&["scratch/**", "**/*.tmp"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let dir = bench.make(scratch, "job", FileKind::Dir);
    let file = bench.file(dir, "spill");
    let temp = bench.file(Ino::ROOT, "x.tmp");
    let kept = bench.file(Ino::ROOT, "kept");
    assert!([dir, file, temp].into_iter().all(|ino| is_excluded(&bench, ino)));
    assert!(![scratch, kept].into_iter().any(|ino| is_excluded(&bench, ino)));
    let mut points = Vec::new();
    for i in 0..5 {
        for ino in [file, temp, kept] {
            bench.write(ino, i * 1000, &noise(i, 300_000));
            let value = i.to_le_bytes();
            bench.main().setxattr(ino, b"user.i", &value, XattrMode::Set, None).unwrap();
        }
        points.push(bench.snapshot(&format!("s{i}")));
        bench.volumes().sync().unwrap();
        points.push(bench.main().latest());
    }
    for at in points.iter().copied().map(Some) {
        assert_eq!(names(&bench, at, Ino::ROOT), ["kept", "scratch"]);
        assert!(names(&bench, at, scratch).is_empty());
        let root = bench.main().getattr(at, scratch).unwrap().attrs;
        assert_eq!((root.nlink, root.entries, root.hidden), (2, 0, None), "no count shows it");
        for ino in [dir, file, temp] {
            assert!(matches!(bench.main().getattr(at, ino), Err(FsError::NotFound)));
            assert!(matches!(bench.main().getxattr(at, ino, b"user.i"), Err(FsError::NotFound)));
            assert!(bench.main().read(at, ino, 0, 10).is_err());
        }
        assert!(matches!(bench.main().lookup(at, Ino::ROOT, b"x.tmp"), Err(FsError::NotFound)));
    }
    assert_eq!(bench.main().getattr(None, scratch).unwrap().attrs.nlink, 3);
    // Two blocks, one attribute, the inode.
    assert_eq!((versions(&bench, file), versions(&bench, temp)), ((4, 0), (4, 0)));
    assert_eq!(versions(&bench, dir), (1, 0));
    assert!(versions(&bench, kept).1 > 0 && history_bytes(&bench) > 0);
    bench.fsck();
    let content = bench.read(None, file);
    bench.crash();
    assert!(bench.read(None, file) == content, "it survives like everything else");
    let main = bench.main();
    main.removexattr(file, b"user.i", None).unwrap();
    main.unlink(dir, b"spill", None).unwrap();
    main.remove_orphan(file).unwrap();
    assert_eq!(versions(&bench, file), (0, 0));
    main.unlink(Ino::ROOT, b"x.tmp", None).unwrap();
    main.remove_orphan(temp).unwrap();
    assert_eq!(versions(&bench, temp), (0, 0), "attributes too");
    bench.fsck();
}

#[test]
fn blocks_that_are_reaped_after_their_excluded_file_are_freed_whatever_points_there_are() {
    let bench = excluding(&["**/*.tmp"]);
    let blocks = 3 * crate::types::limits::DIRECT_REMOVE_BLOCKS_MAX;
    let write = |ino: Ino, seed: u64| {
        for i in 0..blocks {
            bench.write(ino, i * crate::types::limits::BLOCK_BYTES, &noise(seed + i, 900));
        }
        bench.volumes().sync().unwrap();
    };
    let (gone, cut) = (bench.file(Ino::ROOT, "gone.tmp"), bench.file(Ino::ROOT, "cut.tmp"));
    let shrunk = bench.file(Ino::ROOT, "shrunk.tmp");
    [gone, cut, shrunk].into_iter().for_each(|ino| write(ino, ino.0 * 10_000));
    bench.snapshot("s");
    let main = bench.main();
    let empty = SetAttr { size: Some(0), ..SetAttr::default() };
    main.setattr(cut, &empty, None).unwrap();
    assert!(bench.read(None, cut).is_empty());
    main.setattr(shrunk, &empty, None).unwrap();
    // Ordinary before its blocks are reaped, and written again over some of them.
    rename(&bench, (Ino::ROOT, "shrunk.tmp"), (Ino::ROOT, "shrunk"));
    bench.write(shrunk, 0, b"new");
    let long = SetAttr { size: Some(blocks * crate::types::limits::BLOCK_BYTES), ..SetAttr::default() };
    main.setattr(cut, &long, None).unwrap();
    assert!(bench.read(None, cut).iter().all(|b| *b == 0), "what was cut does not come back");
    main.unlink(Ino::ROOT, b"gone.tmp", None).unwrap();
    main.remove_orphan(gone).unwrap();
    bench.snapshot("t");
    bench.care();
    assert_eq!((versions(&bench, gone), versions(&bench, cut)), ((0, 0), (1, 0)));
    let (heads, history) = versions(&bench, shrunk);
    assert!(heads == 2 && history <= 3, "{heads} {history}");
    assert_eq!(bench.read(None, shrunk), b"new");
    assert!(history_bytes(&bench) < 2000, "{}", history_bytes(&bench));
    bench.fsck();
    let found = bench.store().gc(&crate::store::control::Control::new(0), false);
    found.unwrap();
    let left = bench.store().packs_bytes().unwrap();
    assert!(left < 50_000, "{left} bytes for one new file");
    bench.fsck();
}

#[test]
fn turning_a_pattern_off_makes_new_files_ordinary_and_leaves_what_there_is() {
    let bench = excluding(&["scratch", "**/cache"]);
    let scratch = bench.make(Ino::ROOT, "scratch", FileKind::Dir);
    let deep = bench.make(scratch, "deep", FileKind::Dir);
    let old = bench.file(deep, "old");
    let before = bench.snapshot("before");
    exclude(&bench, &["off"]);
    let new = bench.file(deep, "new");
    assert!(!is_excluded(&bench, new) && is_excluded(&bench, old));
    assert!(!is_excluded(&bench, deep) && !is_excluded(&bench, scratch), "points show where it lies");
    let at = bench.snapshot("after");
    assert_eq!(names(&bench, Some(at), deep), ["new"]);
    assert!(bench.main().getattr(Some(before), scratch).is_err());
    rename(&bench, (deep, "old"), (deep, "older"));
    let at = bench.snapshot("renamed");
    assert_eq!(names(&bench, Some(at), deep), ["new", "older"]);
    let settings = Setting::of(&bench.main().policy().unwrap());
    assert!(settings.iter().all(|(name, _)| *name != "exclude"));
    bench.fsck();
}

#[test]
fn a_restore_leaves_what_is_excluded_alone() {
    let bench = excluding(&["**/*.tmp", "**/cache"]);
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let inner = bench.make(dir, "inner", FileKind::Dir);
    let file = bench.file(inner, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.write(file, 0, b"now!");
    let spill = bench.file(inner, "spill.tmp");
    bench.write(spill, 0, b"spilled");
    // A directory that was not there, with what was not, and with something excluded far below.
    let later = bench.make(dir, "later", FileKind::Dir);
    bench.file(later, "goes");
    let deep = bench.make(later, "deep", FileKind::Dir);
    let empty = bench.make(later, "empty", FileKind::Dir);
    bench.file(empty, "goes");
    let cache = bench.make(deep, "cache", FileKind::Dir);
    let cached = bench.file(cache, "c");
    bench.write(cached, 0, b"cached");
    for i in 0..3 {
        bench.file(deep, &format!("goes{i}"));
    }
    bench.restore(&of(at, "d")).unwrap();
    let check = || {
        assert_eq!(
            (bench.content("d/inner/f"), bench.content("d/inner/spill.tmp")),
            (b"then".to_vec(), b"spilled".to_vec())
        );
        assert_eq!(names(&bench, None, dir), ["inner", "later"]);
        assert_eq!(names(&bench, None, later), ["deep"]);
        assert_eq!(names(&bench, None, deep), ["cache"]);
        assert_eq!(bench.read(None, cached), b"cached");
        assert_eq!(bench.find(None, "d/inner/spill.tmp").unwrap(), spill);
    };
    check();
    bench.restore(&of(at, "")).unwrap();
    check();
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn a_restore_of_whole_directories_loses_nothing_excluded_and_names_what_is_in_the_way() {
    let bench = excluding(&["**/*.tmp"]);
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let inner = bench.make(dir, "inner", FileKind::Dir);
    for i in 0..20 {
        let file = bench.file(inner, &format!("f{i}"));
        bench.write(file, 0, b"then");
    }
    let plain = bench.make(dir, "plain", FileKind::Dir);
    for i in 0..40 {
        bench.file(plain, &format!("p{i}"));
    }
    let at = bench.point("s");
    let spill = bench.file(inner, "spill.tmp");
    for i in 0..5 {
        bench.main().unlink(inner, format!("f{i}").as_bytes(), None).unwrap();
    }
    for i in 0..40 {
        bench.main().unlink(plain, format!("p{i}").as_bytes(), None).unwrap();
    }
    // More than one record of single names holds: `plain` is put in its place as a whole, `inner` is not.
    bench.restore(&of(at, "d")).unwrap();
    assert_eq!(names(&bench, None, bench.find(None, "d/plain").unwrap()).len(), 40);
    assert_ne!(bench.find(None, "d/plain").unwrap(), plain);
    assert_eq!((bench.find(None, "d/inner").unwrap(), names(&bench, None, inner).len()), (inner, 21));
    assert_eq!(bench.find(None, "d/inner/spill.tmp").unwrap(), spill);
    bench.let_go();
    bench.fsck();
    // What is excluded has the name of something that was there.
    exclude(&bench, &["**/f1", "**/*.tmp"]);
    bench.main().unlink(inner, b"f1", None).unwrap();
    let now = bench.file(inner, "f1");
    for path in ["d", "d/inner", "d/inner/f1", ""] {
        let refused = bench.restore(&of(at, path)).unwrap_err().to_string();
        assert!(refused.contains("f1") && refused.contains("excluded"), "{path}: {refused}");
    }
    assert_eq!(bench.find(None, "d/inner/f1").unwrap(), now);
    bench.let_go();
    bench.nothing_leaked().unwrap();
    bench.fsck();
}

#[test]
fn log_diff_and_rules_pass_over_what_is_excluded() {
    let bench = excluding(&["**/*.tmp"]);
    let file = bench.file(Ino::ROOT, "a.tmp");
    let from = bench.snapshot("s");
    bench.write(file, 0, b"one");
    let dir = bench.make(Ino::ROOT, "d.tmp", FileKind::Dir);
    bench.file(dir, "inside");
    bench.volumes().sync().unwrap();
    let to = bench.snapshot("t");
    let main = bench.main();
    assert_eq!(main.diff(from, to, [Scope::Dir(Ino::ROOT); 2], None).unwrap(), []);
    let path = main.name_path(Ino::ROOT, &[b"a.tmp"]).unwrap();
    let refused = main.versions(&path, None, &mut |_| Ok(true)).unwrap_err().to_string();
    assert!(refused.contains("excluded from the history"), "{refused}");
    main.set_policy(&Setting::all(&["on-close=**".into()]).unwrap(), false).unwrap();
    let plain = bench.file(Ino::ROOT, "plain");
    [file, plain].into_iter().for_each(|ino| main.completed(ino));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let before = main.snapshots(Lsn::ZERO, 99).unwrap().len();
    policy::keep(&bench, &mut Default::default());
    let rows = main.snapshots(Lsn::ZERO, 99).unwrap();
    let of_rules = rows.iter().filter(|r| r.spec.kind == crate::store::model::SnapshotKind::OnClose);
    let tags: Vec<_> = of_rules.flat_map(|r| r.spec.tags.clone()).collect();
    assert_eq!((tags, before), (vec![("path".to_owned(), "plain".to_owned())], 2));
}
