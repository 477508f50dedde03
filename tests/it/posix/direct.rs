//! `O_DIRECT`, `O_SYNC` and `O_DSYNC`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::harness::sys::{Mapping, data_ranges};
use crate::harness::{Rng, Twin, eventually};

/// Memory at the start of a page, as direct transfers want it.
struct Pages(Vec<u8>, usize);

impl Pages {
    fn of(bytes: &[u8]) -> Pages {
        let mut memory = vec![0; bytes.len() + 4096];
        let start = memory.as_ptr().align_offset(4096);
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Pages(memory, start)
    }

    fn bytes(&mut self) -> &mut [u8] {
        let end = self.0.len() - 4096 + self.1;
        &mut self.0[self.1..end]
    }
}

fn direct(path: &Path, more: i32) -> io::Result<File> {
    let flags = libc::O_DIRECT | more;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
}

fn read_into(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut pages = Pages::of(&vec![0xee; len]);
    let found = file.read_at(pages.bytes(), at)?;
    Ok(pages.bytes()[..found].to_vec())
}

#[test]
fn aligned_direct_transfers_are_as_on_ext4() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("writing and reading whole pages", |dir| {
        let mut rng = Rng::new(seed);
        let file = direct(&dir.join("f"), 0)?;
        for _ in 0..60 {
            let (at, len) = (rng.below(300) * 4096, (1 + rng.below(200)) as usize * 4096);
            assert_eq!(file.write_at(Pages::of(&rng.bytes(len)).bytes(), at)?, len);
        }
        let reads =
            (0..60).map(|_| read_into(&file, rng.below(500) * 4096, (1 + rng.below(400)) as usize * 4096));
        reads.collect::<io::Result<Vec<_>>>()
    });
    twin.ok("at and behind the end", |dir| {
        let file = direct(&dir.join("f"), 0)?;
        file.set_len(1_000_000)?;
        [995_328, 999_424, 1_003_520, 1 << 30]
            .iter()
            .map(|at| read_into(&file, *at, 8192))
            .collect::<io::Result<Vec<_>>>()
    });
    twin.compare_over_remount();
}

/// ext4 refuses these with `EINVAL`; ours takes any place, any length and any memory.
#[test]
fn unaligned_direct_transfers_work_like_any_others() {
    let twin = Twin::new();
    let path = twin.mount().path().join("f");
    let file = direct(&path, 0).expect("opening");
    let mut rng = Rng::printed();
    let mut model = vec![0; 700_000];
    for _ in 0..100 {
        let (at, len) = (rng.below(500_000) as usize, 1 + rng.below(150_000) as usize);
        let bytes = rng.bytes(len);
        // Not at the start of a page, and of any length.
        let mut pages = Pages::of(&[&[0u8; 3][..], &bytes].concat());
        assert_eq!(file.write_at(&pages.bytes()[3..], at as u64).expect("writing"), len);
        model[at..at + len].copy_from_slice(&bytes);
        let (at, len) = (rng.below(650_000), 1 + rng.below(50_000) as usize);
        let size = file.metadata().expect("stat").len();
        let end = size.min(at + len as u64).max(at.min(size)) as usize;
        let expected = &model[(at as usize).min(end)..end];
        assert!(read_into(&file, at, len).expect("reading") == expected, "{len} bytes at {at}");
    }
    let size = file.metadata().expect("stat").len() as usize;
    assert!(fs::read(&path).expect("a buffered read") == model[..size]);
}

#[test]
fn direct_and_buffered_transfers_of_one_file_see_each_other() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("in turns", |dir| {
        let mut rng = Rng::new(seed);
        let path = dir.join("f");
        fs::write(&path, rng.bytes(400_000))?;
        let (direct, buffered) = (direct(&path, 0)?, crate::harness::sys::open_rw(&path)?);
        let mut seen = Vec::new();
        for _ in 0..100 {
            let page = rng.below(90);
            let mut buf = vec![0; 20_000];
            match rng.below(4) {
                0 => drop(direct.write_at(Pages::of(&rng.bytes(8192)).bytes(), page * 4096)?),
                1 => buffered.write_all_at(&rng.bytes(5000), page * 4000)?,
                2 => seen.push(read_into(&direct, page * 4096, 16_384)?),
                _ => {
                    let len = buffered.read_at(&mut buf, page * 4096)?;
                    seen.push(buf[..len].to_vec());
                }
            }
        }
        Ok(seen)
    });
    twin.ok("beside a mapping", |dir| {
        let file = direct(&dir.join("f"), 0)?;
        let map = Mapping::shared(&crate::harness::sys::open_rw(&dir.join("f"))?, 65_536)?;
        map.write(5000, b"stored");
        map.sync()?;
        let through = read_into(&file, 4096, 4096)?;
        file.write_at(Pages::of(&[7; 4096]).bytes(), 8192)?;
        Ok((through, map.read(8190, 10)))
    });
    twin.compare_over_remount();
}

#[test]
fn direct_appends_land_at_the_end() {
    let mut twin = Twin::new();
    twin.ok("O_APPEND and O_DIRECT", |dir| {
        let path = dir.join("f");
        let flags = libc::O_DIRECT | libc::O_APPEND;
        let mut files = (0..3)
            .map(|_| OpenOptions::new().append(true).create(true).custom_flags(flags).open(&path))
            .collect::<io::Result<Vec<_>>>()?;
        for i in 0..60u8 {
            let mut pages = Pages::of(&vec![i; 4096 * (1 + usize::from(i) % 3)]);
            assert_eq!(files[usize::from(i) % 3].write(pages.bytes())?, pages.bytes().len());
        }
        fs::read(&path)
    });
    let path = twin.mount().path().join("both");
    std::thread::scope(|scope| {
        for who in [b'a', b'b'] {
            let path = &path;
            scope.spawn(move || {
                let flags = libc::O_DIRECT;
                let file = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path);
                let mut file = file.expect("opening");
                for _ in 0..300 {
                    assert_eq!(file.write(Pages::of(&[who; 4096]).bytes()).expect("appending"), 4096);
                }
            });
        }
    });
    let found = fs::read(&path).expect("reading");
    assert_eq!(found.len(), 600 * 4096, "an append was lost");
    assert!(found.chunks(4096).all(|part| part.iter().all(|b| *b == part[0])), "an append was torn");
    fs::remove_file(&path).expect("removing");
    twin.compare_over_remount();
}

#[test]
fn synchronous_writes_are_there_after_the_server_was_killed() {
    let mut twin = Twin::new();
    for (name, flags) in
        [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC), ("both", libc::O_SYNC | libc::O_DIRECT)]
    {
        twin.ok(name, |dir| {
            let file = direct(&dir.join(name), flags & !libc::O_DIRECT | libc::O_DIRECT)?;
            file.write_at(Pages::of(&[1; 16_384]).bytes(), 4096)?;
            file.write_at(Pages::of(&[2; 4096]).bytes(), 65_536)?;
            data_ranges(&file)
        });
        let buffered = twin.ok("without O_DIRECT", |dir| {
            let mut options = OpenOptions::new();
            let path = dir.join(format!("{name}-buffered"));
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(flags & !libc::O_DIRECT)
                .open(&path)?;
            file.write_all(b"line\n")?;
            file.write_all(b"another\n")?;
            fs::read(&path)
        });
        assert_eq!(buffered, b"line\nanother\n");
    }
    let server = twin.mount().server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
    twin.compare("by the next server");
    twin.compare_over_remount();
}
