//! Regular files: contents, truncation, open flags, files without a name, syncs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::errno::Errno;

use crate::harness::sys::{create_new, facts, facts_of, open_rw};
use crate::harness::{Rng, Twin};

#[test]
fn bytes_written_at_any_offset_are_read_back_also_after_a_remount() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("writing", |dir| {
        let mut rng = Rng::new(seed);
        let file = File::create(dir.join("f"))?;
        for _ in 0..200 {
            let len = 1 + rng.below(100_000) as usize;
            let bytes = if rng.below(2) == 0 { rng.bytes(len) } else { rng.text(len) };
            file.write_all_at(&bytes, rng.below(2_000_000))?;
        }
        Ok(())
    });
    let pieces = |twin: &Twin, when: &str| {
        twin.ok(when, |dir| {
            let mut rng = Rng::new(seed + 1);
            let file = File::open(dir.join("f"))?;
            let mut read = |_| {
                let mut buf = vec![0; 1 + rng.below(70_000) as usize];
                let len = file.read_at(&mut buf, rng.below(2_200_000))?;
                buf.truncate(len);
                Ok(buf)
            };
            (0..200).map(&mut read).collect::<io::Result<Vec<_>>>()
        })
    };
    let before = pieces(&twin, "reading");
    twin.compare_over_remount();
    assert_eq!(before, pieces(&twin, "reading after the remount"));
}

#[test]
fn truncating_down_and_up_leaves_zeros_and_never_old_bytes() {
    let mut twin = Twin::new();
    for (i, cut) in [0, 1, 4095, 4096, 100_001, 262_143, 262_144, 262_145, 600_000].into_iter().enumerate() {
        twin.ok("truncating", |dir| {
            let path = dir.join(format!("f{i}"));
            fs::write(&path, [b'x'; 500_000])?;
            let file = open_rw(&path)?;
            file.set_len(cut)?;
            let middle = fs::read(&path)?;
            file.set_len(550_000)?;
            file.write_all_at(b"tail", 549_990)?;
            Ok((middle, fs::read(&path)?, facts(&path)?))
        });
    }
    twin.compare_over_remount();
    let end = twin.ok("reading the end", |dir| Ok(fs::read(dir.join("f4"))?.split_off(100_000)));
    assert_eq!(end[..3], [b'x', 0, 0], "bytes beyond the cut are zeros");
}

#[test]
fn truncate_at_open_and_bad_lengths_answer_as_on_ext4() {
    let twin = Twin::new();
    twin.ok("O_TRUNC", |dir| {
        fs::write(dir.join("f"), b"long content")?;
        fs::write(dir.join("f"), b"short")?;
        fs::read(dir.join("f"))
    });
    twin.err("truncating a directory", Errno::EISDIR, |dir| Ok(nix::unistd::truncate(dir, 0)?));
    twin.err("a negative length", Errno::EINVAL, |dir| Ok(nix::unistd::truncate(&dir.join("f"), -1)?));
    twin.err("truncating through a read-only descriptor", Errno::EINVAL, |dir| {
        File::open(dir.join("f"))?.set_len(0)
    });
}

#[test]
fn open_flags_do_what_they_say() {
    let twin = Twin::new();
    twin.ok("creating", |dir| create_new(&dir.join("f"), 0o640)?.write_all(b"first"));
    twin.err("O_EXCL on an existing file", Errno::EEXIST, |dir| create_new(&dir.join("f"), 0o640).map(drop));
    twin.err("opening what is not there", Errno::ENOENT, |dir| File::open(dir.join("none")).map(drop));
    twin.err("writing to a directory", Errno::EISDIR, |dir| open_rw(dir).map(drop));
    twin.err("a file as a directory", Errno::ENOTDIR, |dir| File::open(dir.join("f/x")).map(drop));
    twin.err("O_DIRECTORY on a file", Errno::ENOTDIR, |dir| {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir.join("f")).map(drop)
    });
    twin.err("reading a write-only descriptor", Errno::EBADF, |dir| {
        OpenOptions::new().write(true).open(dir.join("f"))?.read(&mut [0; 4]).map(drop)
    });
    twin.err("writing a read-only descriptor", Errno::EBADF, |dir| {
        File::open(dir.join("f"))?.write(b"x").map(drop)
    });
    twin.ok("O_CREAT without O_EXCL opens what is there", |dir| {
        let mut file = OpenOptions::new().create(true).append(true).open(dir.join("f"))?;
        file.write_all(b" and second")?;
        fs::read(dir.join("f"))
    });
}

#[test]
fn an_append_descriptor_writes_at_the_end_wherever_it_was_moved() {
    let mut twin = Twin::new();
    let content = twin.ok("appending", |dir| {
        let mut append = OpenOptions::new().create(true).read(true).append(true).open(dir.join("log"))?;
        let other = OpenOptions::new().write(true).open(dir.join("log"))?;
        for i in 0..1000u32 {
            append.seek(SeekFrom::Start(0))?;
            append.write_all(format!("line {i}\n").as_bytes())?;
            if i % 100 == 0 {
                // Another descriptor makes the file longer; the next append must see it.
                other.write_all_at(b"#", facts_of(&append.metadata()?).size + 3)?;
            }
        }
        fs::read(dir.join("log"))
    });
    assert!(content.ends_with(b"line 999\n"));
    twin.compare_over_remount();
}

#[test]
fn a_file_unlinked_while_open_lives_until_the_last_close() {
    let mut twin = Twin::new();
    twin.ok("unlinked but open", |dir| {
        let path = dir.join("f");
        fs::write(&path, [7; 300_000])?;
        let file = open_rw(&path)?;
        fs::remove_file(&path)?;
        let gone = path.symlink_metadata().map_err(|e| e.kind()).err();
        file.write_all_at(b"still here", 299_995)?;
        file.sync_all()?;
        let mut end = vec![0; 100];
        let len = file.read_at(&mut end, 299_990)?;
        let facts = facts_of(&file.metadata()?);
        assert_eq!((facts.nlink, facts.size), (0, 300_005), "fstat of an unlinked file");
        file.set_len(10)?;
        // A new file of that name is another file.
        fs::write(&path, b"new")?;
        Ok((gone, end, len, facts, facts_of(&file.metadata()?), fs::read(&path)?))
    });
    twin.compare_over_remount();
}

#[test]
fn space_of_unlinked_open_files_is_free_after_the_close() {
    let twin = Twin::new();
    let mount = twin.mount();
    let path = mount.path().join("big");
    fs::write(&path, Rng::new(3).bytes(8 << 20)).expect("writing");
    File::open(&path).and_then(|f| f.sync_all()).expect("syncing");
    let full = mount.status_number("/bytes/live");
    let file = File::open(&path).expect("opening");
    fs::remove_file(&path).expect("unlinking");
    drop(file);
    crate::harness::eventually("the bytes of a closed, unlinked file to leave bytes.live", || {
        mount.status_number("/bytes/live") + (7 << 20) < full
    });
}

#[test]
fn replacing_an_open_file_by_rename_keeps_the_old_one_readable() {
    let twin = Twin::new();
    let seen = twin.ok("rename over an open file", |dir| {
        fs::write(dir.join("a"), b"old")?;
        fs::write(dir.join("b"), b"new")?;
        let mut old = File::open(dir.join("a"))?;
        fs::rename(dir.join("b"), dir.join("a"))?;
        let mut text = String::new();
        old.read_to_string(&mut text)?;
        Ok((text, fs::read_to_string(dir.join("a"))?, facts_of(&old.metadata()?)))
    });
    assert_eq!((seen.0.as_str(), seen.1.as_str()), ("old", "new"));
}

#[test]
fn syncs_succeed_on_files_and_directories() {
    let twin = Twin::new();
    twin.ok("fsync, fdatasync, fsync of a directory, syncfs", |dir| {
        fs::create_dir(dir.join("d"))?;
        let file = File::create(dir.join("d/f"))?;
        file.write_all_at(b"x", 10)?;
        file.sync_data()?;
        file.sync_all()?;
        let read_only = File::open(dir.join("d/f"))?;
        read_only.sync_all()?;
        File::open(dir.join("d"))?.sync_all()?;
        Ok(nix::unistd::syncfs(&read_only)?)
    });
}

#[test]
fn reads_and_writes_at_the_edges_answer_as_on_ext4() {
    let twin = Twin::new();
    let _ = twin.ok("empty reads and writes", |dir| {
        let file = File::options().create_new(true).read(true).write(true).open(dir.join("f"))?;
        let mut buf = [1; 8];
        let nothing = (file.write_at(b"", 100)?, file.read_at(&mut buf, 0)?, facts(&dir.join("f"))?);
        file.write_all_at(b"abc", 0)?;
        let lens = [0, 2, 3, 4, 1 << 40].map(|at| file.read_at(&mut buf, at).map_err(|e| e.kind()));
        Ok((nothing, lens, buf))
    });
    twin.same("a write past the largest offset", |dir| {
        File::options().write(true).open(dir.join("f"))?.write_at(b"xx", i64::MAX as u64).map(drop)
    })
    .expect_err("no file can be that long");
    twin.same("reading a directory as a file", |dir| File::open(dir)?.read(&mut [0; 10]).map(drop))
        .expect_err("directories are not read as files");
}
