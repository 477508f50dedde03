//! `SEEK_DATA` and `SEEK_HOLE` over holes at random places.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::harness::sys::{data_ranges, fallocate, open_rw};
use crate::harness::{Rng, Store, Twin};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Ranges of data.
type Ranges = Vec<(u64, u64)>;

/// What a file must hold, and which of its bytes were written.
struct Model {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Model {
    fn write(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        self.resize(self.bytes.len().max(end));
        self.bytes[at..end].copy_from_slice(data);
        self.written[at..end].fill(true);
    }

    fn resize(&mut self, len: usize) {
        self.bytes.resize(len, 0);
        self.written.resize(len, false);
    }

    fn punch(&mut self, at: usize, len: usize) {
        let end = self.bytes.len().min(at + len);
        let at = at.min(end);
        self.bytes[at..end].fill(0);
        self.written[at..end].fill(false);
    }

    fn ranges(&self) -> Ranges {
        let mut ranges: Ranges = Vec::new();
        for (at, _) in self.written.iter().enumerate().filter(|(_, written)| **written) {
            match ranges.last_mut() {
                Some(last) if last.1 == at as u64 => last.1 += 1,
                _ => ranges.push((at as u64, at as u64 + 1)),
            }
        }
        ranges
    }
}

/// Some random writes, cuts and holes on a file and on its model.
fn scribble(file: &File, model: &mut Model, rng: &mut Rng, times: u32, longest: u64) {
    for _ in 0..times {
        let (at, len) = (rng.below(3_000_000), 1 + rng.below(longest));
        match rng.below(8) {
            0 => {
                fallocate(file, PUNCH, at as i64, len as i64).expect("punching");
                model.punch(at as usize, len as usize);
            }
            1 => {
                let to = model.bytes.len() as u64 / 2 + at / 2;
                file.set_len(to).expect("cutting");
                model.resize(to as usize);
            }
            2 => {
                // Zeros that were written are data.
                file.write_all_at(&vec![0; len as usize], at).expect("writing zeros");
                model.write(at as usize, &vec![0; len as usize]);
            }
            _ => {
                let data = rng.bytes(len as usize);
                file.write_all_at(&data, at).expect("writing");
                model.write(at as usize, &data);
            }
        }
    }
}

/// Every answer of `lseek` from `at` against the ranges of data.
fn seeks_agree(file: &File, ranges: &[(u64, u64)], size: u64, at: u64, when: &str) {
    let data =
        ranges.iter().find(|(_, end)| *end > at).map(|(start, _)| (*start).max(at)).ok_or(Errno::ENXIO);
    let covered = ranges.iter().find(|(start, end)| (*start..*end).contains(&at));
    let hole = covered.map_or(at, |(_, end)| *end);
    let hole = if at < size { Ok(hole) } else { Err(Errno::ENXIO) };
    let seek = |whence| lseek(file, at as i64, whence).map(|found| found as u64);
    assert_eq!(seek(Whence::SeekData), data, "{when}: SEEK_DATA from {at} in {ranges:?}");
    assert_eq!(seek(Whence::SeekHole), hole, "{when}: SEEK_HOLE from {at} in {ranges:?}");
}

#[test]
fn random_holes_are_found_to_the_byte_live_past_and_after_remounts() {
    let mut rng = Rng::printed();
    let mut mount = Store::encrypted().mount();
    let mut model = Model { bytes: Vec::new(), written: Vec::new() };
    let mut past: Vec<(String, Ranges, u64)> = Vec::new();
    for round in 0..6 {
        let path = mount.path().join("f");
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).expect("opening");
        // Few, so that no block is rewritten because of its many pieces.
        scribble(&file, &mut model, &mut rng, 12, 100_000);
        for when in ["as written", "synced"] {
            let (ranges, size) = (model.ranges(), model.bytes.len() as u64);
            assert_eq!(data_ranges(&file).expect("SEEK_DATA"), ranges, "round {round}, {when}");
            for (start, end) in &ranges {
                for at in [start.saturating_sub(1), *start, start + 1, end - 1, *end, end + 1] {
                    seeks_agree(&file, &ranges, size, at, when);
                }
            }
            for _ in 0..50 {
                seeks_agree(&file, &ranges, size, rng.below(size + 1000), when);
            }
            assert!(fs::read(&path).expect("reading") == model.bytes, "round {round}, {when}");
            file.sync_all().expect("syncing");
        }
        drop(file);
        let name = format!("s{round}");
        mount.snapshot(&name);
        past.push((name, model.ranges(), model.bytes.len() as u64));
        if round % 2 == 1 {
            mount = mount.remount();
        }
        for (name, ranges, size) in &past {
            let file = File::open(mount.at(name).join("f")).expect("a past file");
            assert_eq!(&data_ranges(&file).expect("SEEK_DATA"), ranges, "{name}");
            (0..20).for_each(|_| seeks_agree(&file, ranges, *size, rng.below(size + 1000), name));
        }
    }
}

/// Holes may be lost where they are small; they never cover what was written, and no large one becomes data.
#[test]
fn in_files_of_very_many_pieces_holes_hold_zeros_and_large_ones_stay() {
    let mut rng = Rng::printed();
    let mount = Store::encrypted().mount();
    let path = mount.path().join("f");
    let file = File::create(&path).and_then(|_| open_rw(&path)).expect("creating");
    let mut model = Model { bytes: Vec::new(), written: Vec::new() };
    for round in 0..5 {
        scribble(&file, &mut model, &mut rng, 400, 3000);
        file.sync_all().expect("syncing");
        let ranges = data_ranges(&file).expect("SEEK_DATA");
        let bytes = fs::read(&path).expect("reading");
        assert!(bytes == model.bytes, "round {round}");
        let holes = std::iter::once(0).chain(ranges.iter().map(|r| r.1));
        let holes = holes.zip(ranges.iter().map(|r| r.0).chain([bytes.len() as u64]));
        for (start, end) in holes {
            let hole = &model.written[start as usize..end as usize];
            assert!(!hole.contains(&true), "round {round}: written bytes in the hole {start}..{end}");
        }
        let mut run = 0u64;
        for (at, written) in model.written.iter().enumerate() {
            run = if *written { 0 } else { run + 1 };
            // Twice a small hole: one border of a block may lie within.
            if run == 8192 {
                let middle = at as u64 - 4096;
                let inside = ranges.iter().any(|(start, end)| (*start..*end).contains(&middle));
                assert!(!inside, "round {round}: the hole around {middle} became data");
            }
        }
    }
}

#[test]
fn holes_among_very_many_small_writes_stay_holes() {
    let mut mount = Store::encrypted().mount();
    let mut rng = Rng::printed();
    let holes = [(100_000, 104_200), (262_000, 270_000), (300_000, 380_000), (500_000, 504_096)];
    let path = mount.path().join("f");
    let file = File::create(&path).and_then(|_| open_rw(&path)).expect("creating");
    let mut parts: Vec<(u64, u64)> = (0..900).map(|i| (i * 700, i * 700 + 700)).collect();
    for (start, end) in holes {
        parts.retain(|part| part.1 <= start || part.0 >= end);
        parts.extend([(start / 700 * 700, start), (end, end.next_multiple_of(700))]);
    }
    for i in (1..parts.len()).rev() {
        parts.swap(i, rng.below(i as u64 + 1) as usize);
    }
    for (start, end) in parts {
        file.write_all_at(&rng.bytes((end - start) as usize), start).expect("writing");
        if rng.below(40) == 0 {
            file.sync_all().expect("syncing");
        }
    }
    let starts = std::iter::once(0).chain(holes.map(|hole| hole.1));
    let expected: Vec<(u64, u64)> =
        starts.zip(holes.map(|hole| hole.0).into_iter().chain([630_000])).collect();
    assert_eq!(data_ranges(&file).expect("SEEK_DATA"), expected, "as written");
    file.sync_all().expect("syncing");
    assert_eq!(data_ranges(&file).expect("SEEK_DATA"), expected, "synced");
    drop(file);
    mount = mount.remount();
    let file = File::open(mount.path().join("f")).expect("opening");
    assert_eq!(data_ranges(&file).expect("SEEK_DATA"), expected, "after a remount");
}

#[test]
fn holes_of_whole_pages_are_where_ext4_has_them() {
    let mut twin = Twin::new();
    let seed = Rng::printed().next();
    twin.ok("pages here and there", |dir| {
        let mut rng = Rng::new(seed);
        let file = File::create(dir.join("f"))?;
        for _ in 0..40 {
            let (at, len) = (rng.below(700) * 4096, (1 + rng.below(20)) * 4096);
            match rng.below(4) {
                0 => fallocate(&file, PUNCH, at as i64, len as i64)?,
                1 => file.set_len(file.metadata()?.len().max(4096) / 8192 * 4096 + at)?,
                _ => file.write_all_at(&rng.bytes(len as usize), at)?,
            }
        }
        file.sync_all()
    });
    let compare = |twin: &Twin, when: &str| {
        let ranges = twin.ok(when, |dir| data_ranges(&File::open(dir.join("f"))?));
        let mut rng = Rng::new(seed + 1);
        for _ in 0..200 {
            let at = rng.below(3_000_000) as i64;
            for whence in [Whence::SeekData, Whence::SeekHole] {
                let _: Result<i64, _> = twin.same(&format!("{when}: {whence:?} from {at}"), |dir: &Path| {
                    Ok(lseek(File::open(dir.join("f"))?, at, whence)?)
                });
            }
        }
        ranges
    };
    let before = compare(&twin, "as written");
    twin.remount();
    assert_eq!(before, compare(&twin, "after a remount"));
}
