//! Holes and far offsets.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::sys::{allocated, data_ranges, facts, open_rw};
use crate::harness::{Twin, args, same_tree, tool};

#[test]
fn holes_read_as_zeros_and_take_no_space() {
    let mut twin = Twin::new();
    twin.ok("a sparse file", |dir| {
        let file = File::options().create_new(true).read(true).write(true).open(dir.join("f"))?;
        file.write_all_at(b"head", 0)?;
        file.write_all_at(b"tail", 64 << 20)?;
        file.sync_all()?;
        let mut zeros = vec![1; 1 << 20];
        file.read_exact_at(&mut zeros, 32 << 20)?;
        assert!(zeros.iter().all(|&b| b == 0), "a hole reads as zeros");
        facts(&dir.join("f"))
    });
    for when in ["at once", "after a remount"] {
        let path = twin.mount().path().join("f");
        let taken = allocated(&path).expect("stat");
        assert!(taken < 1 << 20, "{when}: two words in a 64 MiB file take {taken} bytes by st_blocks");
        let ranges = data_ranges(&File::open(&path).expect("opening")).expect("SEEK_DATA");
        let data: u64 = ranges.iter().map(|(from, to)| to - from).sum();
        assert!(data < 1 << 20, "{when}: SEEK_DATA finds {ranges:?}");
        assert!(
            ranges.iter().any(|r| r.0 == 0) && ranges.iter().any(|r| r.1 >= (64 << 20) + 4),
            "{ranges:?}"
        );
        twin.compare_over_remount();
    }
}

#[test]
fn st_blocks_counts_what_was_written() {
    let twin = Twin::new();
    let path = twin.mount().path().join("f");
    fs::write(&path, crate::harness::Rng::new(5).bytes(4 << 20)).expect("writing");
    File::open(&path).and_then(|f| f.sync_all()).expect("syncing");
    let taken = allocated(&path).expect("stat");
    assert!(taken >= 4 << 20, "4 MiB that no codec makes smaller take {taken} bytes by st_blocks");
}

#[test]
fn far_offsets_work() {
    let mut twin = Twin::new();
    twin.ok("a byte at 1 TiB", |dir| {
        let file = File::options().create_new(true).read(true).write(true).open(dir.join("tebi"))?;
        file.write_all_at(b"x", 1 << 40)?;
        let mut around = [9; 20];
        let len = file.read_at(&mut around, (1 << 40) - 10)?;
        Ok((len, around, facts(&dir.join("tebi"))?))
    });
    twin.compare_over_remount();
    // ext4 stops at 16 TiB; ours goes to the end of off_t.
    let path = twin.mount().path().join("exbi");
    fs::write(&path, b"").expect("creating");
    let file = open_rw(&path).expect("opening");
    file.write_all_at(b"far", 1 << 62).expect("writing at 4 EiB");
    file.sync_all().expect("syncing");
    let mut back = [0; 4];
    assert_eq!(file.read_at(&mut back, (1 << 62) - 1).expect("reading at 4 EiB"), 4);
    assert_eq!(&back, b"\0far");
    file.set_len(i64::MAX as u64).expect("8 EiB - 1");
    assert_eq!(file.metadata().expect("stat").len(), i64::MAX as u64);
}

#[test]
fn seeking_for_data_and_holes_answers_as_on_ext4_at_the_edges() {
    use nix::unistd::{Whence, lseek};
    let twin = Twin::new();
    twin.ok("a file with a hole in the middle", |dir| {
        let file = File::create(dir.join("f"))?;
        file.write_all_at(&[1; 4096], 0)?;
        file.write_all_at(&[2; 4096], 1 << 20)?;
        file.set_len(2 << 20)?;
        file.sync_all()
    });
    for at in [0, 1, 4095, 4096, 5000, 1 << 20, (1 << 20) + 4096, (2 << 20) - 1, 2 << 20, 3 << 20, -1] {
        for whence in [Whence::SeekData, Whence::SeekHole] {
            // The answer itself, since every border here is one that ext4 knows too.
            let _: Result<i64, _> = twin.same(&format!("{whence:?} from {at}"), |dir| {
                Ok(lseek(File::open(dir.join("f"))?, at, whence)?)
            });
        }
    }
}

#[test]
fn punching_by_copy_keeps_contents_and_saves_space() {
    let twin = Twin::new();
    let dir = twin.mount().path();
    let mut content = vec![0; 8 << 20];
    content[..5].copy_from_slice(b"start");
    content[6 << 20..(6 << 20) + 3].copy_from_slice(b"end");
    fs::write(dir.join("dense"), &content).expect("writing");
    tool(dir, "cp", &args!["-a", "--sparse=always", "dense", "sparse"]);
    File::open(dir.join("sparse")).and_then(|f| f.sync_all()).expect("syncing");
    assert_eq!(fs::read(dir.join("sparse")).expect("reading"), content);
    let taken = allocated(&dir.join("sparse")).expect("stat");
    assert!(taken < 1 << 20, "after cp --sparse=always, two words of data take {taken} bytes");
    // And out of the mount.
    tool(dir, "cp", &args!["-a", "--sparse=always", "sparse", twin.plain().join("out")]);
    same_tree(&dir.join("sparse"), &twin.plain().join("out"));
}
