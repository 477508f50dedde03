//! `versions` against looking at every moment.

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestRunner};

use super::ops::{Op, Setup, op, setup};
use super::run::{self, Outcome, Run};
use super::*;

type Place = (Ino, [u8; 16]);
/// What a version is known by: inode, size, modification time, author, and the name.
type Key = (Ino, u64, Timestamp, u32, Place);

/// The versions; `None` of a directory.
fn versions(volume: &Volume, place: Place) -> Result<Option<Vec<FileVersion>>, String> {
    let mut all = Vec::new();
    let result = volume.versions(place, None, &mut |version| {
        all.push(version);
        Ok(true)
    });
    match result {
        // Refused: it is excluded now.
        Ok(()) | Err(FsError::NotFound | FsError::Refused(_)) => Ok(Some(all)),
        Err(FsError::IsDir) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

fn found(volume: &Volume, place: Place) -> Result<Vec<FileVersion>, String> {
    versions(volume, place).map(Option::unwrap_or_default)
}

/// From where on every moment can be read. A policy moves it: before it, there are only points.
fn floor(volume: &Volume) -> Lsn {
    volume.with_state(|v| v.floor.max(v.created)).unwrap()
}

/// The versions by looking at every record's moment, backwards.
fn expected(volume: &Volume, mut place: Place) -> Vec<Key> {
    let floor = floor(volume);
    let mut keys: Vec<Key> = Vec::new();
    // The inode that is followed, and the oldest moment at which the name was seen to mean it.
    let mut followed: Option<(Ino, Lsn)> = None;
    for at in (floor.0..=volume.latest().0).rev().map(Lsn) {
        let view = volume.view(Some(at));
        let mut entry = view.dirent(place.0, &place.1).unwrap();
        if let Some((ino, since)) =
            followed.filter(|_| entry.as_ref().is_none_or(|e| e.kind == FileKind::Dir))
            && since == at.next()
            && let Some(inode) = view.inode(ino).unwrap().filter(|i| i.item.attrs.nlink > 0)
        {
            let before = (inode.item.attrs.parent, inode.item.attrs.name);
            let other = view.dirent(before.0, &before.1).unwrap().filter(|e| e.ino == ino && before != place);
            if other.is_some() {
                (place, entry) = (before, other);
            }
        }
        match entry {
            Some(entry) if entry.kind == FileKind::Dir => break,
            Some(entry) => {
                let attrs = view.inode(entry.ino).unwrap().unwrap().item.attrs;
                let key = (entry.ino, attrs.size, attrs.mtime, attrs.author, place);
                if keys.last() != Some(&key) {
                    keys.push(key);
                }
                followed = Some((entry.ino, at));
            }
            None => {}
        }
    }
    keys
}

/// Each version can be read at the moment it names, and the snapshots it names show it.
fn check_moments(volume: &Volume, place: Place) -> Result<usize, String> {
    let all = found(volume, place)?;
    for version in &all {
        let resolve = |at: Lsn| {
            let names: Vec<&[u8]> = version.path.split(|b| *b == b'/').collect();
            names
                .iter()
                .try_fold(Ino::ROOT, |dir, name| volume.lookup(Some(at), dir, name).map(|attr| attr.ino))
        };
        let mut moments = vec![version.lsn];
        for name in &version.snapshots {
            moments.push(volume.snapshot_named(name).map_err(|e| format!("{name}: {e}"))?.lsn);
        }
        if version.snapshots_total != version.snapshots.len() as u64 {
            return Err(format!("{} snapshots counted: {version:?}", version.snapshots_total));
        }
        for at in moments {
            let attrs = volume.getattr(Some(at), version.ino).map_err(|e| e.to_string())?.attrs;
            let shown = (attrs.size, attrs.mtime, attrs.author);
            if shown != (version.size, version.time, version.author) || !volume.is_readable(at) {
                return Err(format!("at {at} there is {shown:?}, not {version:?}"));
            }
            let path = volume.view(Some(at)).path(version.ino).map_err(|e| e.to_string())?;
            if path.is_none() && attrs.nlink == 1 && attrs.parent != Ino(0) {
                return Err(format!("at {at} nothing leads to {version:?}"));
            }
            if at == version.lsn && resolve(at).ok() != Some(version.ino) {
                return Err(format!("at {at} that path is another file: {version:?}"));
            }
        }
    }
    Ok(all.len())
}

fn history(setup: Setup, ops: &[Op], picks: &[(u8, u8)]) -> Outcome {
    let mut run = Run::new(setup);
    for (i, op) in ops.iter().enumerate() {
        run.step(op).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
    }
    run.sync()?;
    let volume = run.volume();
    let dirs: Vec<Ino> = run.known.iter().copied().collect();
    for (dir, name) in picks {
        let dir = dirs[*dir as usize % dirs.len().min(4)];
        let place = (dir, volume.name_hash(&run::name(name % 6)));
        check_moments(&volume, place)?;
        if let Some(found) = versions(&volume, place)?.filter(|_| setup.window) {
            let found = found.iter().filter(|v| v.lsn >= floor(&volume));
            let found: Vec<_> = found.map(|v| (v.ino, v.size, v.time, v.author)).collect();
            let expected: Vec<_> =
                expected(&volume, place).into_iter().map(|(i, s, t, a, _)| (i, s, t, a)).collect();
            if found != expected {
                return Err(format!("{place:?}: found {found:#?}, expected {expected:#?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn versions_of_histories_agree_with_looking_at_every_moment() {
    let config = Proptest { cases: cases(60), failure_persistence: None, ..Proptest::default() };
    let picks = prop::collection::vec(any::<(u8, u8)>(), 16);
    let strategy = (setup(), prop::collection::vec(op(), 1..80), picks);
    TestRunner::new(config)
        .run(&strategy, |(setup, ops, picks)| history(setup, &ops, &picks).map_err(TestCaseError::fail))
        .unwrap();
}

fn save(bench: &Bench, name: &str, uid: u32, data: &[u8]) {
    let new = bench.file(Ino::ROOT, "tmp");
    bench.main().write(new, 0, data, Writer { uid: Some(uid), kill_privileges: false }).unwrap();
    let (from, to) = ((Ino::ROOT, b"tmp".as_slice()), (Ino::ROOT, name.as_bytes()));
    bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
    bench.clock.advance(1_000_000_000);
}

#[test]
fn a_file_that_is_saved_by_renaming_has_all_its_versions_also_when_it_is_gone() {
    let bench = Bench::new(Config { window_seconds: 0, ..quiet() });
    for n in 1..=5u32 {
        save(&bench, "f", n, &noise(u64::from(n), n as usize * 100));
        if n % 2 == 1 {
            bench.snapshot(&format!("s{n}"));
        }
    }
    bench.clock.advance(1_000_000_000);
    bench.care();
    let place = bench.main().place_of(Ino::ROOT, &[b"f"], None).unwrap();
    let told = || {
        let all = found(bench.main(), place).unwrap();
        all.into_iter().map(|v| (v.author, v.size, v.snapshots.join(","))).collect::<Vec<_>>()
    };
    let kept = [(5, 500, "s5".to_owned()), (3, 300, "s3".to_owned()), (1, 100, "s1".to_owned())];
    assert_eq!(told(), kept);
    bench
        .main()
        .setattr(place_ino(&bench, "f"), &SetAttr { mode: Some(0), ..SetAttr::default() }, None)
        .unwrap();
    assert_eq!(told(), kept, "another mode is no version");
    bench.main().unlink(Ino::ROOT, b"f", None).unwrap();
    assert_eq!(told(), kept);
}

fn place_ino(bench: &Bench, name: &str) -> Ino {
    bench.main().lookup(None, Ino::ROOT, name.as_bytes()).unwrap().ino
}

#[test]
fn a_renamed_file_keeps_its_versions_and_says_what_it_was_called() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let file = bench.file(dir, "draft");
    bench.write(file, 0, b"one");
    bench.main().fsync(file).unwrap();
    bench.clock.advance(1_000_000_000);
    bench.write(file, 0, b"one two");
    let (from, to) = ((dir, b"draft".as_slice()), (Ino::ROOT, b"final".as_slice()));
    bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
    let place = bench.main().place_of(Ino::ROOT, &[b"final"], None).unwrap();
    let all = found(bench.main(), place).unwrap();
    let told: Vec<_> = all.iter().map(|v| (String::from_utf8(v.path.clone()).unwrap(), v.size)).collect();
    let expected = [("final", 7), ("d/draft", 7), ("d/draft", 3), ("d/draft", 0)];
    assert_eq!(told, expected.map(|(name, size)| (name.to_owned(), size)));
    bench.main().rmdir(Ino::ROOT, b"d", None).unwrap();
    let old = bench.main().place_of(Ino::ROOT, &[b"d", b"draft"], None).unwrap();
    assert_eq!(found(bench.main(), old).unwrap().len(), 3, "a file in a directory that is gone, too");
}

/// The last moment that shows a version may give it another path than the snapshot that is listed.
#[test]
fn a_version_has_the_path_that_its_newest_snapshot_shows() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "dir2", FileKind::Dir);
    let file = bench.file(dir, "f3");
    bench.write(file, 0, b"one");
    bench.snapshot("dA");
    let rename = |from: (Ino, &[u8]), to: (Ino, &[u8])| {
        bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
    };
    rename((Ino::ROOT, b"dir2"), (Ino::ROOT, b"dir9"));
    rename((dir, b"f3"), (dir, b"f3n"));
    let place = bench.main().place_of(Ino::ROOT, &[b"dir9", b"f3n"], None).unwrap();
    let told = |v: &FileVersion| {
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        (text(&v.path), v.snapshot_path.as_deref().map(text), v.snapshots.join(","))
    };
    let told: Vec<_> = found(bench.main(), place).unwrap().iter().map(told).collect();
    assert_eq!(told[0], ("dir9/f3n".into(), None, String::new()));
    assert_eq!(told[1], ("dir9/f3".into(), Some("dir2/f3".into()), "dA".into()));
}

#[test]
fn a_user_is_told_only_the_versions_that_he_could_read() {
    let bench = Bench::new(quiet());
    bench.main().setattr(Ino::ROOT, &SetAttr { mode: Some(0o711), ..SetAttr::default() }, None).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let chmod = |mode| {
        bench.main().setattr(file, &SetAttr { mode: Some(mode), ..SetAttr::default() }, None).unwrap();
    };
    for (n, mode) in [(1, 0o644), (2, 0o660), (3, 0o604)] {
        chmod(0);
        bench.clock.advance(1_000_000_000);
        bench.write(file, 0, &vec![1; n]);
        bench.main().fsync(file).unwrap();
        chmod(mode);
    }
    let place = bench.main().place_of(Ino::ROOT, &[b"f"], None).unwrap();
    let user = User { uid: 1000, gid: 1000, groups: vec![] };
    let mut sizes = Vec::new();
    let mut visit = |v: FileVersion| {
        sizes.push(v.size);
        Ok(true)
    };
    bench.main().versions(place, Some(&user), &mut visit).unwrap();
    assert_eq!(sizes, [3, 1]);
    let dir = bench.make(Ino::ROOT, "closed", FileKind::Dir);
    bench.file(dir, "g");
    let find = |user| bench.main().place_of(Ino::ROOT, &[b"closed", b"g"], user);
    assert!(matches!(find(Some(&user)), Err(FsError::NotFound)), "no guessing of names in there");
    assert_eq!(find(None).unwrap().0, dir);
}
