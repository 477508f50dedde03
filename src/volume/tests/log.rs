//! `versions` against looking at every moment.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config as Proptest, TestRunner};

use super::ops::{Op, Setup, op, setup};
use super::run::{self, Outcome, Run};
use super::*;

/// What a version is known by: inode, size, modification time and author.
type Key = (Ino, u64, Timestamp, u32);

/// The versions; `None` of a directory.
fn versions(volume: &Volume, path: &NamePath) -> Result<Option<Vec<FileVersion>>, String> {
    let mut all = Vec::new();
    let result = volume.versions(path, None, &mut |version| {
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

fn found(volume: &Volume, path: &NamePath) -> Result<Vec<FileVersion>, String> {
    versions(volume, path).map(Option::unwrap_or_default)
}

/// From where on every moment can be read. A policy moves it: before it, there are only points.
fn floor(volume: &Volume) -> Lsn {
    volume.with_state(|v| v.floor.max(v.created)).unwrap()
}

/// The versions by looking at every record's moment, backwards: of all that the path meant, and, where it began to
/// mean something out of nothing, of what that was before.
fn expected(volume: &Volume, path: &NamePath) -> Vec<Key> {
    let moments: Vec<Lsn> = (floor(volume).0..=volume.latest().0).rev().map(Lsn).collect();
    let entry = |place: Place, at: Lsn| volume.view(Some(at)).dirent(place.0, &place.1).unwrap();
    let meant = |at: Lsn| {
        let place = volume.place_at(path, at, None).unwrap()?;
        entry(place, at).filter(|entry| entry.kind != FileKind::Dir).map(|entry| (place, entry.ino))
    };
    let mut keys: Vec<(Place, Key)> = Vec::new();
    let mut told: BTreeSet<(Place, Ino, Lsn)> = BTreeSet::new();
    for (i, start) in moments.iter().enumerate() {
        // Where an interval of the path ends.
        let Some(mut now) = meant(*start).filter(|now| i == 0 || meant(moments[i - 1]) != Some(*now)) else {
            continue;
        };
        let (mut on_path, mut last) = (true, None);
        for at in &moments[i..] {
            let on_path_still = on_path && meant(*at) == Some(now);
            if on_path && !on_path_still && meant(*at).is_some() {
                // What it replaced is an interval of its own.
                break;
            }
            on_path = on_path_still;
            if !on_path {
                let there = entry(now.0, *at).filter(|entry| entry.kind != FileKind::Dir);
                match there {
                    Some(there) => now = (now.0, there.ino),
                    None => {
                        let inode = volume.view(Some(*at)).inode(now.1).unwrap();
                        let Some(inode) = inode.filter(|inode| inode.item.attrs.nlink > 0) else { break };
                        let place = (inode.item.attrs.parent, inode.item.attrs.name);
                        if place == now.0 || entry(place, *at).is_none_or(|entry| entry.ino != now.1) {
                            break;
                        }
                        now = (place, now.1);
                    }
                }
            }
            let reached = volume.view(Some(*at)).path(now.0.0).unwrap().is_some();
            if !told.insert((now.0, now.1, *at)) || !reached {
                continue;
            }
            let attrs = volume.view(Some(*at)).inode(now.1).unwrap().unwrap().item.attrs;
            let key = (now.1, attrs.size, attrs.mtime, attrs.author);
            if last != Some((now.0, key)) {
                keys.push((now.0, key));
            }
            last = Some((now.0, key));
        }
    }
    let mut keys: Vec<Key> = keys.into_iter().map(|(_, key)| key).collect();
    keys.sort_unstable();
    keys
}

/// Each version can be read at the moment it names, and the snapshots it names show it.
fn check_moments(volume: &Volume, path: &NamePath) -> Result<usize, String> {
    let all = found(volume, path)?;
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

/// What a path itself showed comes newest first.
fn check_order(volume: &Volume, path: &NamePath, names: &[Vec<u8>]) -> Outcome {
    let shown = found(volume, path)?.into_iter().filter(|version| version.path == names.join(&b'/'));
    let moments: Vec<Lsn> = shown.map(|version| version.lsn).collect();
    if moments.is_sorted_by(|a, b| a > b) { Ok(()) } else { Err(format!("out of order: {moments:?}")) }
}

fn history(setup: Setup, ops: &[Op], picks: &[(u8, u8)]) -> Outcome {
    let mut run = Run::new(setup);
    for (i, op) in ops.iter().enumerate() {
        run.step(op).map_err(|e| format!("step {i}, {op:?}: {e}"))?;
    }
    run.sync()?;
    let volume = run.volume();
    let (dirs, paths): (Vec<Ino>, Vec<_>) =
        (run.known.iter().copied().collect(), run.paths().into_iter().collect());
    for (dir, name) in picks {
        // A path that the model knows, or some name in some directory.
        let path = match paths.get(*name as usize % paths.len().max(1)).filter(|_| dir % 4 > 0) {
            Some(names) => {
                let path = volume.name_path(Ino::ROOT, names).unwrap();
                check_order(&volume, &path, names)?;
                path
            }
            None => {
                let dir = dirs[*dir as usize / 4 % dirs.len().min(4)];
                volume.name_path(dir, &[run::name(name % 6)]).unwrap()
            }
        };
        check_moments(&volume, &path)?;
        if let Some(found) = versions(&volume, &path)?.filter(|_| setup.window) {
            let found = found.iter().filter(|v| v.lsn >= floor(&volume));
            let mut found: Vec<_> = found.map(|v| (v.ino, v.size, v.time, v.author)).collect();
            found.sort_unstable();
            let expected = expected(&volume, &path);
            if found != expected {
                return Err(format!("{path:?}: found {found:#?}, expected {expected:#?}"));
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
    let path = bench.main().name_path(Ino::ROOT, &[b"f"]).unwrap();
    let told = || {
        let all = found(bench.main(), &path).unwrap();
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
    let path = bench.main().name_path(Ino::ROOT, &[b"final"]).unwrap();
    let all = found(bench.main(), &path).unwrap();
    let told: Vec<_> = all.iter().map(|v| (String::from_utf8(v.path.clone()).unwrap(), v.size)).collect();
    let expected = [("final", 7), ("d/draft", 7), ("d/draft", 3), ("d/draft", 0)];
    assert_eq!(told, expected.map(|(name, size)| (name.to_owned(), size)));
    bench.main().rmdir(Ino::ROOT, b"d", None).unwrap();
    let old = bench.main().name_path(Ino::ROOT, &["d", "draft"]).unwrap();
    assert_eq!(found(bench.main(), &old).unwrap().len(), 3, "a file in a directory that is gone, too");
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
    let path = bench.main().name_path(Ino::ROOT, &["dir9", "f3n"]).unwrap();
    let told = |v: &FileVersion| {
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        (text(&v.path), v.snapshot_path.as_deref().map(text), v.snapshots.join(","))
    };
    let told: Vec<_> = found(bench.main(), &path).unwrap().iter().map(told).collect();
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
    let path = bench.main().name_path(Ino::ROOT, &[b"f"]).unwrap();
    let user = User { uid: 1000, gid: 1000, groups: vec![] };
    let mut sizes = Vec::new();
    let mut visit = |v: FileVersion| {
        sizes.push(v.size);
        Ok(true)
    };
    bench.main().versions(&path, Some(&user), &mut visit).unwrap();
    assert_eq!(sizes, [3, 1]);
    let dir = bench.make(Ino::ROOT, "closed", FileKind::Dir);
    bench.file(dir, "g");
    let path = bench.main().name_path(Ino::ROOT, &["closed", "g"]).unwrap();
    let told = |user| bench.main().versions(&path, user, &mut |_| Ok(true));
    assert!(matches!(told(Some(&user)), Err(FsError::NotFound)), "no guessing of names in there");
    told(None).unwrap();
}
