//! What a path that is asked about means at the two points.

use super::*;

/// The scopes of a path, as a directory if it is one now.
fn scopes(bench: &Bench, path: &[&str], a: Lsn) -> [Scope; 2] {
    let main = bench.main();
    let look = |dir, name: &&str| main.lookup(None, dir, name.as_bytes()).map(|attr| attr.ino);
    let dir = path.iter().try_fold(Ino::ROOT, look).ok();
    let dir = dir.filter(|ino| main.getattr(None, *ino).unwrap().attrs.kind == FileKind::Dir);
    let path = main.name_path(Ino::ROOT, path).unwrap();
    main.scopes(&path, dir.is_some(), [a, main.latest()], None).unwrap().unwrap()
}

#[test]
fn what_is_made_again_as_it_was_has_not_changed_and_other_contents_have() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for (i, name) in ["same", "other", "gone"].iter().enumerate() {
        let file = bench.file(dir, name);
        bench.write(file, 0, &noise(i as u64, 700_000));
    }
    let a = bench.snapshot("a");
    rename(&bench, (Ino::ROOT, "d"), (Ino::ROOT, "old"));
    let new = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for (name, seed) in [("same", 0), ("other", 7), ("added", 8)] {
        let file = bench.file(new, name);
        bench.write(file, 0, &noise(seed, 700_000));
    }
    main.commit_all().unwrap();
    let told = |path: &[&str]| {
        let changes = main.diff(a, main.latest(), scopes(&bench, path, a), None).unwrap();
        changes
            .iter()
            .map(|c| format!("{:?} {}", c.how, String::from_utf8_lossy(&c.path)))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&["d"]), ["Added added", "Removed gone", "Modified other"]);
    assert_eq!(told(&["d", "same"]), Vec::<String>::new());
    assert_eq!(told(&["d", "other"]), ["Modified other"]);
    assert_eq!(told(&["d", "gone"]), ["Removed gone"]);
    assert_eq!(told(&["old"]), Vec::<String>::new(), "it had another name");
    let path = main.name_path(Ino::ROOT, &["d", "never"]).unwrap();
    assert_eq!(main.scopes(&path, false, [a, main.latest()], None).unwrap(), None);
    for name in ["same", "other", "added"] {
        main.unlink(new, name.as_bytes(), None).unwrap();
    }
    main.rmdir(Ino::ROOT, b"d", None).unwrap();
    assert_eq!(told(&["d", "same"]), ["Removed same"]);
    // The very files, in a directory that takes the other's path.
    let third = bench.make(Ino::ROOT, "third", FileKind::Dir);
    for name in ["same", "other", "gone"] {
        rename(&bench, (dir, name), (third, name));
    }
    main.rmdir(Ino::ROOT, b"old", None).unwrap();
    rename(&bench, (Ino::ROOT, "third"), (Ino::ROOT, "d"));
    for path in [&["d"][..], &["d", "other"]] {
        assert_eq!(told(path), Vec::<String>::new());
    }
    let changes = main.diff(a, main.latest(), [ROOT; 2], None).unwrap();
    assert_eq!(changes, [], "of the whole volume");
}

/// What the path is today decides nothing but how it is told.
#[test]
fn a_path_is_what_it_was_at_the_two_points_whatever_it_is_now() {
    let bench = Bench::new(quiet());
    let main = bench.main();
    let write = |dir: Ino, name: &str, data: &[u8]| {
        let there = main.lookup(None, dir, name.as_bytes()).map(|attr| attr.ino);
        let file = there.unwrap_or_else(|_| bench.file(dir, name));
        bench.write(file, 0, data);
    };
    let q = bench.make(Ino::ROOT, "q", FileKind::Dir);
    write(Ino::ROOT, "p", b"1");
    write(q, "x", b"1");
    let a = bench.snapshot("a");
    write(Ino::ROOT, "p", b"22");
    write(q, "x", b"22");
    let b = bench.snapshot("b");
    let told = |name: &str, points: [Lsn; 2], inside| {
        let path = main.name_path(Ino::ROOT, &[name]).unwrap();
        let scopes = main.scopes(&path, inside, points, None).unwrap()?;
        let changes = main.diff(points[0], points[1], scopes, None).unwrap();
        let line = |c: &Change| format!("{:?} {}", c.how, String::from_utf8_lossy(&c.path));
        Some(changes.iter().map(line).collect::<Vec<_>>())
    };
    main.unlink(Ino::ROOT, b"p", None).unwrap();
    rename(&bench, (Ino::ROOT, "q"), (Ino::ROOT, "p"));
    let now = main.latest();
    assert_eq!(told("p", [a, b], true).unwrap(), ["Modified p"]);
    assert_eq!(told("p", [a, now], true).unwrap(), ["Removed p", "Added p", "Added p/x"]);
    assert_eq!(told("q", [a, b], false).unwrap(), ["Modified q/x"]);
    assert_eq!(told("q", [a, b], true).unwrap(), ["Modified x"]);
    assert_eq!(told("never", [a, b], true), None);
    // A directory that had the path, and one that has it since.
    let d = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let y = bench.make(Ino::ROOT, "y", FileKind::Dir);
    write(d, "f", b"1");
    write(y, "g", b"1");
    let e = bench.snapshot("e");
    rename(&bench, (Ino::ROOT, "d"), (Ino::ROOT, "gone"));
    let f = bench.snapshot("f");
    rename(&bench, (Ino::ROOT, "y"), (Ino::ROOT, "d"));
    assert_eq!(told("d", [e, f], true).unwrap(), ["Removed f"]);
    assert_eq!(told("d", [e, main.latest()], true).unwrap(), ["Removed f", "Added g"]);
}
