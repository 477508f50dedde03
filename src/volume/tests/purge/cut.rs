//! Purges that end before they are done.

use std::path::{Path, PathBuf};

use super::*;

fn copy_dir(from: &Path, to: &Path) {
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

/// Keeps what lies on the disk at many moments: what a killed server leaves.
struct Camera {
    root: PathBuf,
    images: Mutex<Vec<PathBuf>>,
}

impl Camera {
    fn take(&self) {
        let mut images = self.images.lock();
        let image = self.root.with_file_name(format!("image{}", images.len()));
        copy_dir(&self.root, &image);
        images.push(image);
    }
}

impl Host for Camera {
    fn tell(&self, _: &Touched) -> Result<(), String> {
        self.take();
        Ok(())
    }

    fn tell_past(&self, _: &Past) -> Result<(), String> {
        self.take();
        Ok(())
    }

    fn holds(&self, _: &[Ino]) -> Vec<Ino> {
        Vec::new()
    }

    fn erased(&self, versions: u64) {
        if versions.is_multiple_of(10) {
            self.take();
        }
    }
}

/// At no moment does a point show a name that leads nowhere, or a file with holes where there was data.
fn whole_or_gone(bench: &Bench, at: Option<Lsn>, dir: Ino, name: &str, size: u64) {
    let Ok(attr) = bench.main().lookup(at, dir, name.as_bytes()) else { return };
    assert_eq!(attr.attrs.size, size, "{name} at {at:?}");
    let read = bench.read(at, attr.ino);
    assert!(read.chunks(256 << 10).all(|block| block[0] == 7), "{name} at {at:?} has lost data");
}

#[test]
fn a_purge_that_is_cut_short_is_carried_through_by_whoever_comes_next() {
    let mut bench = Bench::new(quiet());
    let dir = bench.make(Ino::ROOT, "d", FileKind::Dir);
    let other = bench.file(dir, "other");
    bench.write(other, 0, &noise(4, 200_000));
    let file = bench.file(dir, "f");
    // More blocks than go in the record that removes the file.
    let size = 70 * (256 << 10);
    for block in 0..70u64 {
        bench.write(file, block * (256 << 10), &[&[7][..], &noise(block, 3000)].concat());
    }
    let end = SetAttr { size: Some(size), ..SetAttr::default() };
    bench.main().setattr(file, &end, None).unwrap();
    bench.main().link(file, Ino::ROOT, b"link", None).unwrap();
    let points = ["one", "two"].map(|name| {
        let at = bench.snapshot(name);
        bench.write(file, 1, name.as_bytes());
        bench.volumes().sync().unwrap();
        at
    });
    let inodes = BTreeSet::from([file]);
    let chunks = bench.chunks_of(&inodes);
    let camera = Camera { root: bench.root(), images: Mutex::default() };
    let path = bench.name_in(dir, "f");
    bench.rest();
    let done = bench.volumes().purge(bench.main(), &path, false, &camera, &Control::new(0)).unwrap();
    all_erased(&done);
    bench.nothing_left(&inodes, &chunks).unwrap();
    let images = camera.images.into_inner();
    assert!(images.len() > 8, "{} moments", images.len());
    let (mut cut, root) = (BTreeMap::new(), bench.root());
    for image in images {
        bench.drop_all();
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::rename(&image, &root).unwrap();
        bench.open();
        for at in points.map(Some).into_iter().chain([None]) {
            whole_or_gone(&bench, at, dir, "f", size);
            whole_or_gone(&bench, at, Ino::ROOT, "link", size);
        }
        bench.fsck();
        let shown = bench.main().lookup(Some(points[0]), dir, b"f").is_ok();
        let noted = bench.volumes().has_purges(bench.main()).unwrap();
        *cut.entry((noted, shown)).or_insert(0) += 1;
        if !noted {
            continue;
        }
        bench.rest();
        let resumed =
            bench.volumes().resume_purge(bench.main(), &Kernel::default(), &Control::new(0)).unwrap();
        all_erased(&resumed.expect("a purge to go on with"));
        bench.nothing_left(&inodes, &chunks).unwrap();
        for at in points.map(Some).into_iter().chain([None]) {
            assert!(bench.main().lookup(at, dir, b"f").is_err() && bench.main().getattr(at, file).is_err());
            assert!(bench.read(at, other) == noise(4, 200_000));
        }
        bench.fsck();
        bench.crash();
        bench.fsck();
        assert!(!bench.volumes().has_purges(bench.main()).unwrap());
    }
    // Before it was begun, with its names still in the past, and without.
    assert!(cut[&(true, true)] >= 1 && cut[&(true, false)] >= 3, "{cut:?}");
}
