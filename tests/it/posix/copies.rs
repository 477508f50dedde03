//! `copy_file_range`: live and past, within and across, at every border.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;

use crate::harness::sys::{allocated, copy_on, copy_range, data_ranges, open_rw, special};
use crate::harness::twin::errno;
use crate::harness::{Mount, Rng, Store, Times, Tree, Twin, args, tool};

/// Copies all of it, however many calls that takes; how many bytes it was.
fn copy_all(from: &File, at: i64, to: &File, to_at: i64, len: usize) -> io::Result<usize> {
    let mut done = 0;
    while done < len {
        match copy_range(from, at + done as i64, to, to_at + done as i64, len - done)? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

#[test]
fn unaligned_copies_past_any_border_are_as_on_ext4() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("preparing", |dir| {
        fs::write(dir.join("source"), Rng::new(seed).bytes(1_000_000))?;
        let file = open_rw(&dir.join("source"))?;
        file.write_all_at(b"far", 1_500_000)?;
        fs::write(dir.join("target"), Rng::new(seed + 1).bytes(400_000))
    });
    let mut rng = Rng::new(seed + 2);
    let places =
        [0, 1, 4096, 262_143, 262_144, 999_999, 1_000_000, 1_400_000, 1_500_002, 1_500_003, 2_000_000];
    for i in 0..150 {
        let place = |rng: &mut Rng| if rng.below(2) == 0 { *rng.pick(&places) } else { rng.below(1_600_000) };
        let (at, to_at) = (place(&mut rng), place(&mut rng));
        let len = *rng.pick(&[0, 1, 7, 4096, 100_000, 262_144, 700_001, 5_000_000]);
        twin.ok(&format!("copy {i}: {len} bytes from {at} to {to_at}"), |dir| {
            let (from, to) = (File::open(dir.join("source"))?, open_rw(&dir.join("target"))?);
            let copied = copy_all(&from, at as i64, &to, to_at as i64, len)?;
            Ok((copied, to.metadata()?.len()))
        });
        if i % 10 == 0 {
            twin.compare(&format!("after copy {i}"));
        }
    }
    twin.compare_over_remount();
}

#[test]
fn copies_within_one_file_move_bytes_unless_the_ranges_overlap() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("preparing", |dir| fs::write(dir.join("f"), Rng::new(seed).bytes(900_000)));
    for (at, to_at, len) in [
        (0, 500_000, 400_000),
        (500_000, 0, 300_000),
        (100, 400_100, 400_000),
        (0, 900_000, 900_000),
        (1_700_000, 10, 500_000),
        (0, 1, 100),
        (100, 0, 101),
        (5, 5, 10),
        (0, 99, 100),
        (0, 100, 100),
        (7, 7, 0),
    ] {
        let told = twin.same(&format!("{len} bytes from {at} to {to_at} of one file"), |dir| {
            let (from, to) = (File::open(dir.join("f"))?, open_rw(&dir.join("f"))?);
            let copied = copy_range(&from, at, &to, to_at, len)?;
            Ok((copied, to.metadata()?.len()))
        });
        let overlap = len > 0 && at < to_at + len as i64 && to_at < at + len as i64;
        assert_eq!(told == Err(Errno::EINVAL), overlap, "{told:?}");
    }
    // Through another name it is the same file.
    twin.err("overlapping through a hard link", Errno::EINVAL, |dir| {
        fs::hard_link(dir.join("f"), dir.join("g"))?;
        copy_range(&File::open(dir.join("f"))?, 0, &open_rw(&dir.join("g"))?, 50, 100).map(drop)
    });
    twin.compare_over_remount();
}

#[test]
fn descriptors_that_cannot_be_copied_between_are_refused_as_on_ext4() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| {
        fs::write(dir.join("f"), b"content")?;
        fs::write(dir.join("g"), b"more content")?;
        fs::create_dir(dir.join("d"))?;
        special(&dir.join("p"), nix::sys::stat::SFlag::S_IFIFO, 0o600, 0)
    });
    let open = |dir: &Path| Ok::<_, io::Error>((File::open(dir.join("f"))?, open_rw(&dir.join("g"))?));
    twin.err("to one that appends", Errno::EBADF, |dir| {
        let to = OpenOptions::new().append(true).open(dir.join("g"))?;
        copy_range(&open(dir)?.0, 0, &to, 0, 4).map(drop)
    });
    twin.err("to one for reading", Errno::EBADF, |dir| {
        copy_range(&open(dir)?.0, 0, &File::open(dir.join("g"))?, 0, 4).map(drop)
    });
    twin.err("from one for writing", Errno::EBADF, |dir| {
        let from = OpenOptions::new().write(true).open(dir.join("f"))?;
        copy_range(&from, 0, &open(dir)?.1, 0, 4).map(drop)
    });
    twin.err("from a directory", Errno::EISDIR, |dir| {
        copy_range(&File::open(dir.join("d"))?, 0, &open(dir)?.1, 0, 4).map(drop)
    });
    twin.same("from a fifo", |dir| copy_range(&open_rw(&dir.join("p"))?, 0, &open(dir)?.1, 0, 4).map(drop))
        .expect_err("a fifo has no ranges");
    for (at, to_at) in [(-1, 0), (0, -1), (i64::MAX, 0)] {
        let _: Result<usize, _> = twin.same(&format!("from {at} to {to_at}"), |dir| {
            let (from, to) = open(dir)?;
            copy_range(&from, at, &to, to_at, 4)
        });
    }
    twin.same("with flags", |dir| {
        let (from, to) = open(dir)?;
        copy_on(&from, &to, 4, 1).map(drop)
    })
    .expect_err("there are no flags");
    twin.compare("nothing was changed");
}

#[test]
fn the_descriptors_positions_move_by_what_was_copied() {
    let twin = Twin::new();
    let moved = twin.ok("copying without offsets", |dir| {
        fs::write(dir.join("f"), b"0123456789")?;
        fs::write(dir.join("g"), b"abcdefghij")?;
        let (mut from, mut to) = (File::open(dir.join("f"))?, open_rw(&dir.join("g"))?);
        from.seek(SeekFrom::Start(4))?;
        to.seek(SeekFrom::Start(2))?;
        let copied = copy_on(&from, &to, 5, 0)?;
        let mut rest = [String::new(), String::new()];
        from.read_to_string(&mut rest[0])?;
        to.read_to_string(&mut rest[1])?;
        Ok((copied, rest, fs::read_to_string(dir.join("g"))?))
    });
    assert_eq!(moved, (5, ["9".to_owned(), "hij".to_owned()], "ab45678hij".to_owned()));
}

/// A file of 6 GiB, nearly all of it a hole.
fn vast(path: &Path) -> File {
    let file = File::options().create_new(true).read(true).write(true).open(path).expect("creating");
    for at in [0, (1 << 30) - 3, (4u64 << 30) - 3, 5 << 30] {
        file.write_all_at(format!("at {at}").as_bytes(), at).expect("writing");
    }
    file.set_len(6 << 30).expect("growing");
    file
}

#[test]
fn copies_beyond_4_gib_are_whole_and_keep_their_holes() {
    let mount = Store::encrypted().mount();
    let from = vast(&mount.path().join("f"));
    from.sync_all().expect("syncing");
    let to = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(mount.path().join("g"))
        .expect("creating");
    assert_eq!(copy_all(&from, 0, &to, 0, 7 << 30).expect("copying"), 6 << 30);
    assert_eq!(to.metadata().expect("stat").len(), 6 << 30);
    assert_eq!(data_ranges(&to).expect("SEEK_DATA"), data_ranges(&from).expect("SEEK_DATA"));
    let [whole, copy] = ["f", "g"].map(|name| Tree::read(&mount.path().join(name)));
    whole.assert_same(&copy, Times::Planted, "the copy");
    // To a place as far, and over what lies there.
    assert_eq!(copy_all(&from, 1 << 30, &to, 8 << 30, 5 << 30).expect("copying"), 5 << 30);
    assert_eq!(copy_all(&from, 6 << 30, &to, 0, 1 << 30).expect("copying from the end"), 0);
    assert_eq!(copy_all(&from, 2 << 30, &to, 0, 1 << 30).expect("copying a hole over data"), 1 << 30);
    let mut found = [1; 4];
    to.read_exact_at(&mut found, 0).expect("reading");
    assert_eq!(found, [0; 4], "a hole was copied over data");
    let taken = allocated(&mount.path().join("g")).expect("stat");
    assert!(taken < 1 << 20, "{taken} bytes for some words");
    drop((from, to));
    let mount = mount.remount();
    let to = File::open(mount.path().join("g")).expect("opening");
    let mut found = [0; 13];
    to.read_exact_at(&mut found, (11 << 30) - 3).expect("reading");
    assert_eq!(&found, b"at 4294967293");
}

fn checked(mount: &Mount, from: &Path, what: &str) {
    let path = mount.path().join("copy");
    let _ = fs::remove_file(&path);
    let source = File::open(from).expect("the source");
    let target = File::options().create_new(true).read(true).write(true).open(&path).expect("the target");
    let len = source.metadata().expect("stat").len();
    let copied = copy_all(&source, 0, &target, 0, len as usize).expect("copying");
    assert_eq!(copied as u64, len, "{what}");
    assert!(fs::read(from).expect("reading") == fs::read(&path).expect("reading"), "{what}");
}

#[test]
fn a_copy_out_of_a_snapshot_is_of_then_and_into_one_is_refused() {
    let mount = Store::encrypted().mount();
    let path = mount.path().join("f");
    let mut rng = Rng::printed();
    let then = rng.bytes(700_000);
    fs::write(&path, &then).expect("writing");
    open_rw(&path).and_then(|f| f.set_len(1_200_000)).expect("growing");
    mount.snapshot("then");
    fs::write(&path, rng.bytes(500_000)).expect("writing");
    checked(&mount, &mount.at("then").join("f"), "from a snapshot");
    assert_eq!(fs::read(mount.path().join("copy")).expect("reading")[..700_000], then[..]);
    // Over the very file whose past it is.
    let (past, live) =
        (File::open(mount.at("then").join("f")).expect("opening"), open_rw(&path).expect("opening"));
    assert_eq!(copy_range(&past, 0, &live, 0, 100).expect("over itself"), 100);
    assert_eq!(copy_range(&past, 50, &live, 0, 400_000).expect("shifted over itself"), 400_000);
    let mut found = vec![0; 400_000];
    live.read_exact_at(&mut found, 0).expect("reading");
    assert!(found == then[50..400_050], "the past's bytes");
    let refused = errno(open_rw(&mount.at("then").join("f")).map(drop));
    assert_eq!(refused, Err(Errno::EROFS));
    let refused = errno(copy_range(&live, 0, &past, 0, 100));
    assert_eq!(refused, Err(Errno::EBADF), "it is open for reading");
}

#[test]
fn copies_between_volumes_and_filesystems_arrive_or_are_refused_whole() {
    let store = Store::encrypted();
    store.ok(&args!["volume", "create", store.path(), "second"]);
    let (main, other) = (store.mount(), store.mount_with("other", &args!["--volume", "second"]));
    let outside = store.directory("outside");
    let bytes = Rng::printed().bytes(900_000);
    fs::write(main.path().join("f"), &bytes).expect("writing");
    main.snapshot("then");
    for from in [main.path().join("f"), main.at("then").join("f")] {
        for to in [other.path().join("g"), outside.join("g")] {
            let source = File::open(&from).expect("opening");
            let target = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&to)
                .expect("opening");
            match errno(copy_all(&source, 10, &target, 5, 800_000)) {
                Ok(copied) => {
                    assert_eq!(copied, 800_000);
                    assert!(fs::read(&to).expect("reading")[5..] == bytes[10..800_010], "{}", to.display());
                }
                Err(e) => {
                    assert_eq!(e, Errno::EXDEV, "from {} to {}", from.display(), to.display());
                    assert_eq!(fs::read(&to).expect("reading"), b"", "nothing was copied");
                }
            }
            tool(main.path(), "cp", &args![from, to]);
            assert!(fs::read(&to).expect("reading") == bytes, "cp to {}", to.display());
            drop((source, target));
        }
    }
    let source = File::open(outside.join("g")).expect("opening");
    let target = open_rw(&main.path().join("f")).expect("opening");
    assert_eq!(errno(copy_range(&source, 0, &target, 0, 10)), Err(Errno::EXDEV), "from ext4");
}

#[test]
fn what_is_copied_is_what_was_written_just_before() {
    let twin = Twin::new();
    twin.ok("written, copied, written again", |dir| {
        let from = File::options().create_new(true).read(true).write(true).open(dir.join("f"))?;
        let to = File::options().create_new(true).read(true).write(true).open(dir.join("g"))?;
        for i in 0..50u8 {
            from.write_all_at(&[i; 10_000], u64::from(i) * 5000)?;
            to.write_all_at(&[255; 100], u64::from(i) * 7000)?;
            copy_all(&from, i64::from(i) * 4000, &to, i64::from(i) * 6000, 9000)?;
            to.write_all_at(&[i], u64::from(i) * 6000)?;
        }
        // Past the kernel's pages too.
        let mut through = vec![0; 100_000];
        let read = to.read_at(&mut through, 3)?;
        Ok((read, through, to.metadata()?.len()))
    });
    twin.compare("both files");
}
