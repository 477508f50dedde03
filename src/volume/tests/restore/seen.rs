//! How comparisons and lists of versions show a restore.

use super::super::changes::lines_between;
use super::*;
use crate::store::control::Control;
use crate::volume::purge::{Host, Past};
use crate::volume::restore::Touched;

/// Of a point before and one after, what is in directories that came or went as a whole belongs to it. Neither the
/// preparation nor what is still to be emptied is seen at a point.
#[test]
fn a_comparison_with_a_moment_before_a_restore_tells_all_that_it_did() {
    let bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let gone = bench.make(dir, "gone", FileKind::Dir);
    let deep = bench.make(gone, "deep", FileKind::Dir);
    for (parent, name) in [(dir, "changed"), (dir, "one"), (gone, "x"), (deep, "y")] {
        let file = bench.file(parent, name);
        bench.write(file, 0, b"then");
    }
    // Names of one file: in what comes back as a whole, and in what stays.
    bench.main().link(bench.find(None, "d/one").unwrap(), deep, b"two", None).unwrap();
    let at = bench.point("s");
    let main = bench.main();
    bench.write(bench.find(None, "d/changed").unwrap(), 0, b"now!");
    for (parent, name) in [(deep, "y"), (deep, "two"), (gone, "x"), (dir, "one")] {
        main.unlink(parent, name.as_bytes(), None).unwrap();
    }
    main.rmdir(gone, b"deep", None).unwrap();
    main.rmdir(dir, b"gone", None).unwrap();
    let came = bench.make(dir, "extra", FileKind::Dir);
    let more = bench.make(came, "more", FileKind::Dir);
    bench.file(more, "z");
    bench.let_go();
    let told = || lines_between(&bench, at, main.latest(), Scope::Dir(Ino::ROOT), None);
    main.commit_all().unwrap();
    let changed = told();
    let before = main.latest();
    let snapshot = bench.restore(&of(at, "")).unwrap().snapshot.unwrap().lsn;
    let expected = [
        "Modified d/changed*",
        "Removed d/extra",
        "Removed d/extra/more",
        "Removed d/extra/more/z",
        "Added d/gone",
        "Added d/gone/deep",
        "Added d/gone/deep/two",
        "Added d/gone/deep/y",
        "Added d/gone/x",
        "Added d/one",
    ];
    let restored = main.latest();
    for point in [before, snapshot] {
        // At once, and as far as it was emptied by then.
        assert_eq!(lines_between(&bench, point, restored, Scope::Dir(Ino::ROOT), None), expected);
    }
    let scope = Scope::Name((dir, main.name_hash(b"extra")));
    let extra = ["Removed extra", "Removed extra/more", "Removed extra/more/z"];
    assert_eq!(lines_between(&bench, snapshot, restored, scope, None), extra);
    main.empty_orphan(came).unwrap();
    assert_eq!(lines_between(&bench, snapshot, main.latest(), Scope::Dir(Ino::ROOT), None), expected);
    bench.let_go();
    // What came back was changed, but for its content.
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    for path in ["d/gone", "d/gone/deep/two", "d/gone/deep/y"] {
        main.setattr(bench.find(None, path).unwrap(), &mode, None).unwrap();
    }
    for point in [before, snapshot] {
        assert_eq!(lines_between(&bench, point, main.latest(), Scope::Dir(Ino::ROOT), None), expected);
    }
    assert_eq!(lines_between(&bench, before, snapshot, Scope::Dir(Ino::ROOT), None), Vec::<String>::new());
    assert_eq!(lines_between(&bench, at, snapshot, Scope::Dir(Ino::ROOT), None), changed);
    bench.fsck();
}

fn versions(bench: &Bench, dir: Ino, name: &str) -> Vec<(String, u64, String)> {
    let mut all = Vec::new();
    let mut visit = |v: FileVersion| {
        all.push((String::from_utf8(v.path).unwrap(), v.size, v.snapshots.join(",")));
        Ok(true)
    };
    let path = bench.main().name_path(dir, &[name]).unwrap();
    bench.main().versions(&path, None, &mut visit).unwrap();
    all
}

#[test]
fn versions_of_what_a_restore_removed_or_brought_back_are_told_where_they_can_be_read() {
    let bench = Bench::new(quiet());
    let old = bench.make(Ino::ROOT, "old", FileKind::Dir);
    let deep = bench.make(old, "deep", FileKind::Dir);
    let file = bench.file(deep, "f");
    bench.write(file, 0, b"then");
    let at = bench.point("s");
    bench.main().unlink(deep, b"f", None).unwrap();
    bench.main().rmdir(old, b"deep", None).unwrap();
    bench.main().rmdir(Ino::ROOT, b"old", None).unwrap();
    let new = bench.make(Ino::ROOT, "new", FileKind::Dir);
    let below = bench.make(new, "below", FileKind::Dir);
    let file = bench.file(below, "g");
    bench.write(file, 0, b"newer");
    bench.point("t");
    bench.let_go();
    let before = bench.restore(&of(at, "")).unwrap().snapshot.unwrap().spec.name;
    let removed = ("new/below/g".to_owned(), 5, format!("{before},t"));
    assert_eq!(versions(&bench, below, "g")[0], removed, "not emptied yet");
    bench.point("u");
    bench.let_go();
    assert_eq!(versions(&bench, below, "g")[0], removed);
    let path = bench.main().name_path(Ino::ROOT, &["new", "below", "g"]).unwrap();
    assert_eq!(bench.main().files_of(&path).unwrap(), BTreeSet::from([file]));
    let purged = bench.volumes().purge(bench.main(), &path, true, &Nobody, &Control::new(0)).unwrap();
    assert_eq!(purged.names[0].path, b"new/below/g");
    let back = bench.find(None, "old/deep").unwrap();
    let told = versions(&bench, back, "f");
    assert_eq!(told, [("old/deep/f".to_owned(), 4, "u".to_owned())], "and not at the snapshot before");
    bench.fsck();
}

/// A kernel that knows of nothing.
struct Nobody;

impl Host for Nobody {
    fn tell(&self, _: &Touched) -> Result<(), String> {
        Ok(())
    }

    fn tell_past(&self, _: &Past) -> Result<(), String> {
        Ok(())
    }

    fn holds(&self, _: &[Ino]) -> Vec<Ino> {
        Vec::new()
    }
}
