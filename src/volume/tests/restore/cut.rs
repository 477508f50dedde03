//! Restores that end before they are done.

use super::*;

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// What lies on the disk at many moments of the preparation is what a killed server leaves.
#[test]
fn a_restore_that_is_cut_short_changes_nothing_and_leaks_nothing() {
    let mut bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    for i in 0..30 {
        let file = bench.file(dir, &format!("f{i}"));
        bench.write(file, 0, &noise(i, 2000 + i as usize * 20_000));
        bench.main().link(file, dir, format!("l{i}").as_bytes(), None).unwrap();
    }
    let at = bench.point("s");
    for i in 0..30 {
        bench.main().unlink(dir, format!("f{i}").as_bytes(), None).unwrap();
        bench.main().unlink(dir, format!("l{i}").as_bytes(), None).unwrap();
    }
    bench.file(dir, "mine");
    bench.let_go();
    bench.volumes().sync().unwrap();
    let (root, mut images) = (bench.root(), Vec::new());
    let main = bench.main().clone();
    bench
        .volumes()
        .restore(&main, &of(at, "d"), false, &mut |_, done, _| {
            if done % 7 == 3 {
                let image = root.with_file_name(format!("image{done}"));
                copy_dir(&root, &image);
                images.push(image);
            }
        })
        .unwrap();
    assert!(images.len() >= 4);
    drop(main);
    let mut with_stage = 0;
    for image in images {
        bench.drop_all();
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::rename(&image, &root).unwrap();
        bench.open();
        with_stage += usize::from(!bench.store().index().stages(bench.main().id()).unwrap().is_empty());
        assert!(bench.find(None, "d/mine").is_ok() && bench.find(None, "d/f1").is_err(), "as before");
        bench.fsck();
        // A name made now gets a number of its own.
        let fresh = bench.file(dir, "fresh");
        bench.write(fresh, 0, b"kept");
        bench.let_go();
        bench.nothing_leaked().unwrap();
        assert_eq!(bench.content("d/fresh"), b"kept");
        bench.restore(&of(at, "d")).unwrap();
        for i in 0..30 {
            assert!(bench.content(&format!("d/f{i}")) == noise(i, 2000 + i as usize * 20_000));
            let found = ["f", "l"].map(|kind| bench.find(None, &format!("d/{kind}{i}")).unwrap());
            assert_eq!(found[0], found[1]);
        }
        bench.let_go();
        bench.nothing_leaked().unwrap();
        bench.fsck();
    }
    assert!(with_stage >= 3, "of the moments most lay within the preparation");
}
