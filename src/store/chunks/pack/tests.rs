use super::frame::*;
use super::*;
use crate::store::keys::{Keyring, Sealer};
use crate::types::disk::faulty::{Fault, FaultyDisk, Keep};
use crate::types::limits::CHUNK_MAX_BYTES;
use crate::types::{ChunkId, DiskFile, Error, OsDisk, StoreUuid, Timestamp};
use proptest::prelude::*;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STORE: StoreUuid = StoreUuid([3; 16]);

fn encrypted() -> Sealer {
    let (keyring, key) = Keyring::create_encrypted(STORE, Timestamp::default()).unwrap();
    Sealer::new(&keyring.unlock(Path::new("/s"), Some(&key)).unwrap())
}

fn plain(i: u64) -> Vec<u8> {
    let mut out = vec![0; 100 + (i as usize % 7) * 300];
    blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

struct Packs {
    dir: tempfile::TempDir,
    sealer: Arc<Sealer>,
}

impl Packs {
    fn new(sealer: Sealer) -> Packs {
        Packs { dir: tempfile::tempdir().unwrap(), sealer: Arc::new(sealer) }
    }

    fn writer_on(&self, disk: Arc<dyn Disk>) -> PackWriter {
        PackWriter::open(disk, self.dir.path(), STORE, PackId(1)).unwrap()
    }

    fn writer(&self) -> PackWriter {
        self.writer_on(Arc::new(OsDisk))
    }

    fn reader(&self) -> PackReader {
        PackReader::new(Arc::new(OsDisk), self.dir.path(), STORE, self.sealer.clone())
    }

    fn chunk(&self, data: &[u8]) -> SealedChunk {
        SealedChunk::seal(&self.sealer, 1, self.sealer.chunk_id(data), data, &mut Vec::new()).unwrap()
    }

    fn fill(&self, writer: &PackWriter, count: u64) -> Vec<(ChunkId, Location)> {
        let chunks = (0..count).map(|i| self.chunk(&plain(i)));
        chunks.map(|c| (c.id(), writer.append(c).unwrap())).collect()
    }

    fn scan(&self, pack: u64, from: u64, trust: Trust) -> (Vec<(ChunkId, Location)>, ScanReport) {
        let mut found = Vec::new();
        let mut visit = |id, at| {
            found.push((id, at));
            Ok(())
        };
        let report = scan(&OsDisk, self.dir.path(), STORE, PackId(pack), from, trust, &mut visit).unwrap();
        (found, report)
    }

    fn path(&self, pack: u64) -> PathBuf {
        pack_path(self.dir.path(), PackId(pack))
    }
}

#[test]
fn a_footer_that_is_not_usable_is_written_anew() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let writer = packs.writer();
    let chunks = packs.fill(&writer, 9);
    writer.finish().unwrap();
    let (path, whole) = (packs.path(1), std::fs::read(packs.path(1)).unwrap());
    let mut damaged = whole.clone();
    let at = damaged.len() - 30;
    damaged[at] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let (found, report) = packs.scan(1, 0, Trust::Frames);
    assert!(matches!(report.footer, Footer::Unusable(_)) && report.damage.is_empty(), "{report:?}");
    write_footer_anew(&OsDisk, &path, STORE, PackId(1), &found, report.valid_end).unwrap();
    assert!(std::fs::read(&path).unwrap() == whole);
    assert_eq!(packs.scan(1, 0, Trust::Footer), (chunks, packs.scan(1, 0, Trust::Footer).1));
}

#[test]
fn append_roll_read_and_scan() {
    for sealer in [Sealer::plain([1; 32]), encrypted()] {
        let packs = Packs::new(sealer);
        let writer = packs.writer().with_pack_bytes(20_000);
        let written = packs.fill(&writer, 60);
        assert!(written.last().unwrap().1.pack > PackId(2));
        let reader = packs.reader();
        for (i, (id, at)) in written.iter().enumerate() {
            assert_eq!(reader.read(at, id).unwrap(), plain(i as u64));
            let copy = reader.read_sealed(at, id).unwrap();
            let again = SealedChunk::from_parts(*id, copy.raw_len(), copy.codec(), copy.body()).unwrap();
            assert_eq!(again.open(&packs.sealer).unwrap(), plain(i as u64));
        }
        let all = |trust| -> (Vec<_>, Vec<_>) {
            let ids = list(&OsDisk, packs.dir.path()).unwrap();
            let scans: Vec<_> = ids.iter().map(|p| packs.scan(p.0, 0, trust)).collect();
            let footers = scans.iter().map(|(_, r)| r.footer.clone()).collect();
            (scans.into_iter().flat_map(|(found, _)| found).collect(), footers)
        };
        let (found, footers) = all(Trust::Footer);
        assert_eq!(found, written);
        assert!(footers.iter().all(|f| *f == Footer::Absent));
        writer.finish().unwrap();
        for trust in [Trust::Footer, Trust::Frames] {
            let (found, footers) = all(trust);
            assert_eq!(found, written);
            assert!(footers.iter().all(|f| *f == Footer::Whole));
        }
    }
}

#[test]
fn a_new_writer_starts_a_new_pack_and_never_reuses_a_number() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    packs.fill(&packs.writer(), 1);
    let second = packs.writer();
    assert_eq!(second.position(), (PackId(2), PACK_HEADER_BYTES as u64));
    assert_eq!(packs.fill(&second, 1)[0].1.pack, PackId(2));
    std::fs::remove_file(packs.path(2)).unwrap();
    let third = PackWriter::open(Arc::new(OsDisk), packs.dir.path(), STORE, PackId(3)).unwrap();
    assert_eq!(packs.fill(&third, 1)[0].1.pack, PackId(3));
}

#[test]
fn a_scan_can_start_at_a_position() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let writer = packs.writer();
    packs.fill(&writer, 5);
    let (pack, from) = writer.position();
    let later = packs.fill(&writer, 5);
    assert_eq!(packs.scan(pack.0, from, Trust::Footer).0, later);
    writer.finish().unwrap();
    assert_eq!(packs.scan(pack.0, from, Trust::Footer).0, later);
    assert_eq!(packs.scan(pack.0, from, Trust::Frames).0, later);
    let beyond = packs.scan(pack.0, 1 << 30, Trust::Frames).1;
    assert_eq!(beyond.damage.len(), 1);
}

#[test]
fn every_flipped_byte_is_found_named_and_never_served() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let writer = packs.writer();
    let written = packs.fill(&writer, 4);
    writer.finish().unwrap();
    let good = std::fs::read(packs.path(1)).unwrap();
    let frames_end = written.last().map(|(_, at)| at.offset + at.frame_bytes()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        std::fs::write(packs.path(1), &bad).unwrap();
        let reader = packs.reader();
        let hit = |l: &Location| (l.offset..l.offset + l.frame_bytes()).contains(&(at as u64));
        for (i, (id, location)) in written.iter().enumerate() {
            match reader.read(location, id) {
                Ok(data) => assert!(!hit(location) && data == plain(i as u64)),
                Err(e) => {
                    let place = format!("0000000000000001.pack at offset {}:", location.offset);
                    assert!(hit(location) && e.to_string().contains(&place), "{e}");
                }
            }
            assert_eq!(reader.read_sealed(location, id).is_err(), hit(location));
        }
        let (found, report) = packs.scan(1, 0, Trust::Frames);
        let expected: Vec<_> = written.iter().filter(|(_, l)| !hit(l)).copied().collect();
        assert_eq!(found, expected, "{at}");
        if (at as u64) < frames_end {
            assert_eq!((report.damage.len(), report.torn), (1, None), "{at}");
            assert!(report.damage[0].bytes.contains(&(at as u64)));
        } else {
            assert!(matches!(report.footer, Footer::Unusable(_)), "{at}");
            assert!(report.damage.is_empty());
            assert_eq!(packs.scan(1, 0, Trust::Footer).0, written);
        }
    }
}

#[test]
fn a_torn_tail_is_told_from_damage_in_the_middle() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let written = packs.fill(&packs.writer(), 4);
    let good = std::fs::read(packs.path(1)).unwrap();
    let (last, second) = (written[3].1, written[1].1);
    for cut in 0..good.len() {
        std::fs::write(packs.path(1), &good[..cut]).unwrap();
        let (found, report) = packs.scan(1, 0, Trust::Footer);
        let whole = written.iter().filter(|(_, l)| l.offset + l.frame_bytes() <= cut as u64);
        assert_eq!(found, whole.copied().collect::<Vec<_>>());
        let torn = report.torn.map_or(0, |t| t.end - t.start);
        assert!(report.damage.is_empty());
        assert_eq!(report.valid_end + torn, cut as u64);
    }
    let mut both = good.clone();
    both[second.offset as usize..][..60].fill(0);
    both.truncate(good.len() - 5);
    std::fs::write(packs.path(1), &both).unwrap();
    let (found, report) = packs.scan(1, 0, Trust::Footer);
    assert_eq!(found, [written[0], written[2]]);
    assert_eq!(report.damage[0].bytes, second.offset..written[2].1.offset);
    assert_eq!(report.torn, Some(last.offset..both.len() as u64));
    assert!(report.errors().next().unwrap().to_string().contains(&format!("offset {}", second.offset)));
}

#[test]
fn a_pack_stored_in_a_pack_is_not_mistaken_for_frames() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    packs.fill(&packs.writer(), 3);
    let inner = std::fs::read(packs.path(1)).unwrap();
    let outer = packs.writer();
    let id = packs.sealer.chunk_id(&inner);
    let chunk = SealedChunk::seal(&packs.sealer, 0, id, &inner, &mut Vec::new()).unwrap();
    let first = outer.append(chunk).unwrap();
    let rest = packs.fill(&outer, 2);
    let mut bytes = std::fs::read(packs.path(2)).unwrap();
    bytes[first.offset as usize] ^= 1;
    std::fs::write(packs.path(2), &bytes).unwrap();
    assert_eq!(packs.scan(2, 0, Trust::Footer).0, rest);
}

#[test]
fn another_store_another_number_and_another_chunk_are_refused() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let written = packs.fill(&packs.writer(), 2);
    let other =
        scan(&OsDisk, packs.dir.path(), StoreUuid([9; 16]), PackId(1), 0, Trust::Footer, &mut |_, _| Ok(()));
    assert!(matches!(other, Err(Error::Corrupt { .. })));
    std::fs::rename(packs.path(1), packs.path(7)).unwrap();
    let moved = scan(&OsDisk, packs.dir.path(), STORE, PackId(7), 0, Trust::Footer, &mut |_, _| Ok(()));
    assert!(matches!(moved, Err(Error::Corrupt { .. })));
    std::fs::rename(packs.path(7), packs.path(1)).unwrap();
    let reader = packs.reader();
    assert!(reader.read(&written[0].1, &written[1].0).unwrap_err().to_string().contains("is there"));
    let longer = Location { raw_len: written[0].1.raw_len + 1, ..written[0].1 };
    assert!(reader.read(&longer, &written[0].0).is_err());
    let gone = Location { pack: PackId(99), ..written[0].1 };
    assert!(matches!(reader.read(&gone, &written[0].0), Err(Error::Io { .. })));
}

#[test]
fn a_body_under_a_false_name_is_not_served() {
    let packs = Packs::new(encrypted());
    let (data, writer) = (plain(1), packs.writer());
    let id = packs.sealer.chunk_id(b"something else");
    // Correctly sealed under a name that is not its hash: only the last check can see it.
    let chunk = SealedChunk::seal(&packs.sealer, 1, id, &data, &mut Vec::new()).unwrap();
    let at = writer.append(chunk).unwrap();
    assert!(packs.reader().read(&at, &id).unwrap_err().to_string().contains("hash to"));
}

#[test]
fn threads_append_and_sync_together() {
    let packs = Packs::new(encrypted());
    let writer = packs.writer().with_pack_bytes(50_000);
    let all: Vec<Vec<(ChunkId, Location, u64)>> = std::thread::scope(|scope| {
        let (packs, writer) = (&packs, &writer);
        let run = |t: u64| {
            move || {
                let one = |i| {
                    let chunk = packs.chunk(&plain(i));
                    let entry = (chunk.id(), writer.append(chunk).unwrap(), i);
                    writer.sync().unwrap();
                    entry
                };
                (t * 100..t * 100 + 50).map(one).collect()
            }
        };
        let threads: Vec<_> = (0..4).map(|t| scope.spawn(run(t))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    writer.finish().unwrap();
    let reader = packs.reader();
    for (id, at, i) in all.into_iter().flatten() {
        assert_eq!(reader.read(&at, &id).unwrap(), plain(i));
    }
    for pack in list(&OsDisk, packs.dir.path()).unwrap() {
        let (_, report) = packs.scan(pack.0, 0, Trust::Frames);
        assert!(report.footer == Footer::Whole && report.damage.is_empty());
    }
}

#[test]
fn open_descriptors_are_bounded() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let written = packs.fill(&packs.writer().with_pack_bytes(1), reader::OPEN_PACKS_MAX as u64 + 20);
    let reader = packs.reader();
    for round in 0..2 {
        for (i, (id, at)) in written.iter().enumerate() {
            assert_eq!(reader.read(at, id).unwrap(), plain(i as u64), "round {round}");
        }
    }
    assert_eq!(reader.open_packs(), reader::OPEN_PACKS_MAX);
    reader.forget(written.last().unwrap().1.pack);
    assert_eq!(reader.open_packs(), reader::OPEN_PACKS_MAX - 1);
}

/// Fails one operation: writes are torn half-way with ENOSPC, syncs are EIO.
#[derive(Clone, Default)]
struct Faulty {
    /// Fails when this many more operations of the kind were done; 0 is never.
    write: Arc<AtomicU64>,
    sync: Arc<AtomicU64>,
}

struct FaultyFile(Arc<dyn DiskFile>, Faulty);

fn due(counter: &AtomicU64) -> bool {
    counter.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)) == Ok(1)
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if due(&self.1.write) {
            self.0.write_all_at(&buf[..buf.len() / 2], offset)?;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        if due(&self.1.sync) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { self.0.sync_data() }
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FaultyFile(OsDisk.create(path)?, self.clone())))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        OsDisk.open(path, write)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        OsDisk.list(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir(dir)
    }
}

#[test]
fn a_full_disk_fails_one_append_and_leaves_no_trace() {
    for failing in 1..6 {
        let packs = Packs::new(Sealer::plain([1; 32]));
        let disk = Faulty::default();
        disk.write.store(failing, Relaxed);
        let writer = packs.writer_on(Arc::new(disk));
        let attempts = (0..6).map(|i| packs.chunk(&plain(i))).map(|c| (c.id(), writer.append(c)));
        let (good, bad): (Vec<_>, Vec<_>) = attempts.partition(|(_, r)| r.is_ok());
        assert!(bad.len() == 1 && matches!(bad[0].1, Err(Error::NoSpace(_))));
        writer.finish().unwrap();
        let good: Vec<_> = good.into_iter().map(|(id, r)| (id, r.unwrap())).collect();
        let (found, report) = packs.scan(good[0].1.pack.0, 0, Trust::Frames);
        assert_eq!(found, good);
        assert_eq!((report.footer, report.damage, report.torn), (Footer::Whole, vec![], None));
    }
}

#[test]
fn a_failed_sync_poisons_and_a_failed_footer_does_not() {
    let packs = Packs::new(Sealer::plain([1; 32]));
    let disk = Faulty::default();
    let writer = packs.writer_on(Arc::new(disk.clone()));
    let written = packs.fill(&writer, 2);
    // The pack header and two frames are written; the footer is the next write.
    disk.write.store(1, Relaxed);
    writer.finish().unwrap();
    let (found, report) = packs.scan(1, 0, Trust::Frames);
    assert_eq!((found, report.footer, report.torn), (written.clone(), Footer::Absent, None));
    packs.fill(&writer, 1);
    disk.sync.store(1, Relaxed);
    assert!(matches!(writer.sync(), Err(Error::Io { .. })));
    assert!(matches!(writer.sync(), Err(Error::Poisoned(_))));
    assert!(matches!(writer.append(packs.chunk(b"x")), Err(Error::Poisoned(_))));
    packs.reader().read(&written[0].1, &written[0].0).unwrap();
}

#[test]
fn after_a_failed_sync_the_next_server_writes_the_packs_again() {
    for marked in [true, false] {
        let packs = Packs::new(Sealer::plain([1; 32]));
        let disk = FaultyDisk::new();
        let writer = packs.writer_on(Arc::new(disk.clone()));
        let written = packs.fill(&writer, 5);
        disk.set_fault(disk.ops(), Fault::Once(libc::EIO, 0));
        assert!(matches!(writer.sync(), Err(Error::Io { .. })));
        drop(writer);
        let mark = packs.dir.path().join("sync-failed");
        assert!(disk.open(&mark, false).is_ok(), "the mark is left");
        if !marked {
            disk.remove(&mark).unwrap();
        }
        make_durable(&disk, packs.dir.path(), PackId(0)).unwrap();
        assert!(disk.open(&mark, false).is_err(), "the mark is gone");
        let after = Arc::new(disk.crash(Keep::Nothing));
        let reader = PackReader::new(after, packs.dir.path(), STORE, packs.sealer.clone());
        for (i, (id, at)) in written.iter().enumerate() {
            let kept = reader.read(at, id).is_ok_and(|bytes| bytes == plain(i as u64));
            assert_eq!(kept, marked, "chunk {i}: a sync alone cannot bring back what a failed one dropped");
        }
    }
}

#[test]
fn chunks_of_impossible_size_are_refused() {
    let sealer = Sealer::plain([1; 32]);
    let id = sealer.chunk_id(b"");
    for len in [0, CHUNK_MAX_BYTES + 1] {
        assert!(SealedChunk::seal(&sealer, 1, id, &vec![0; len], &mut Vec::new()).is_err());
    }
    assert!(SealedChunk::from_parts(id, 1, 0, &[]).is_err());
    assert!(SealedChunk::from_parts(id, 1, 0, &vec![0; STORED_BYTES_MAX + 1]).is_err());
    assert!(SealedChunk::from_parts(id, 1, 77, b"abc").unwrap().open(&sealer).is_err());
}

proptest! {
    #[test]
    fn locations_round_trip(pack: u64, offset: u64, stored_len in 0..=STORED_BYTES_MAX as u32,
                            raw_len in 0..=CHUNK_MAX_BYTES as u32, codec: u8) {
        let at = Location { pack: PackId(pack), offset, stored_len, raw_len, codec };
        let mut e = Encoder::new();
        at.encode(&mut e);
        let bytes = e.finish();
        prop_assert!(bytes.len() <= 27);
        let mut d = Decoder::new(&bytes);
        prop_assert_eq!(Location::decode(&mut d), Ok(at));
        prop_assert!(d.end().is_ok());
    }

    #[test]
    fn hostile_input_is_an_error_and_not_a_panic(bytes: Vec<u8>, offset: u64, wide in any::<[u8; 60]>()) {
        let salt = Salt::new(STORE, PackId(1));
        let _ = Location::decode(&mut Decoder::new(&bytes));
        prop_assert!(FrameHeader::decode(&bytes, salt).is_err());
        prop_assert!(FrameHeader::decode(&wide, salt).is_err());
        prop_assert!(decode_footer(&bytes, offset, PackId(1), salt).is_err());
        prop_assert!(decode_pack_header(wide.first_chunk().unwrap()).is_err());
    }

    #[test]
    fn a_footer_with_false_fields_is_refused(
        ids in prop::collection::vec(any::<[u8; 32]>(), 1..5), at: usize, to: u8,
    ) {
        // The fields behind the checksum, with the checksum mended.
        let salt = Salt::new(STORE, PackId(1));
        let mut offset = PACK_HEADER_BYTES as u64;
        let entries: Vec<_> = ids.into_iter().map(|id| {
            let at = Location { pack: PackId(1), offset, stored_len: 10, raw_len: 20, codec: 0 };
            offset += at.frame_bytes();
            (ChunkId(id), at)
        }).collect();
        let good = encode_footer(&entries, offset, salt);
        prop_assert_eq!(decode_footer(&good, offset, PackId(1), salt), Ok(entries));
        let content = good.len() - 12;
        let mut bad = good.clone();
        bad[at % content] = to;
        let mended = mend(bad, content, salt);
        let Ok(found) = decode_footer(&mended, offset, PackId(1), salt) else { return Ok(()) };
        // Ids, raw lengths, codecs and reserved bytes carry no redundancy; offsets and stored lengths do.
        prop_assert!(found.iter().all(|(_, l)| l.stored_len == 10));
    }
}

fn mend(mut footer: Vec<u8>, content: usize, salt: Salt) -> Vec<u8> {
    let crc = salt.crc(&footer[..content]);
    footer[content..content + 4].copy_from_slice(&crc.to_le_bytes());
    footer
}
