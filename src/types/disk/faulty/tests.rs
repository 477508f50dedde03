//! The simulated disk does what the medium may do (GUARANTEES, M-1 to M-4), and all of it.

use std::collections::BTreeSet;

use super::medium::SECTOR;
use super::*;

fn path(name: &str) -> std::path::PathBuf {
    Path::new("/d").join(name)
}

fn read(disk: &FaultyDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(&path(name), false).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

/// A durable file of three sectors of `a`.
fn with_file() -> (FaultyDisk, Arc<dyn DiskFile>) {
    let disk = FaultyDisk::new();
    let file = disk.create(&path("f")).unwrap();
    file.write_all_at(&[b'a'; 3 * SECTOR], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    (disk, file)
}

#[test]
fn what_was_synced_stays_and_the_rest_may_go() {
    let (disk, file) = with_file();
    file.write_all_at(b"new", 0).unwrap();
    disk.create(&path("g")).unwrap();
    let nothing = disk.crash(Keep::Nothing);
    assert_eq!(read(&nothing, "f").unwrap(), [b'a'; 3 * SECTOR]);
    assert_eq!(nothing.list(Path::new("/d")).unwrap(), ["f"]);
    let all = disk.crash(Keep::All);
    assert!(read(&all, "f").unwrap().starts_with(b"newa"));
    assert_eq!(all.list(Path::new("/d")).unwrap(), ["f", "g"]);
    assert_eq!(all.list(Path::new("/e")).unwrap(), [""; 0]);
    assert_eq!(read(&all.crash(Keep::Nothing), "f").unwrap(), [b'a'; 3 * SECTOR], "still not synced");
}

#[test]
fn sectors_are_kept_in_any_order_and_each_at_any_of_its_versions() {
    let (disk, file) = with_file();
    file.write_all_at(&[b'b'; 2 * SECTOR], SECTOR as u64).unwrap();
    file.write_all_at(&[b'c'; 2 * SECTOR], SECTOR as u64).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let bytes = read(&disk.crash(Keep::Some(seed)), "f").unwrap();
        assert_eq!(bytes.len(), 3 * SECTOR);
        let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|s| s[0]).collect();
        assert!(bytes.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])), "a sector is never torn");
        seen.insert(String::from_utf8(sectors).unwrap());
    }
    let all = ["aaa", "aab", "aac", "aba", "abb", "abc", "aca", "acb", "acc"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(all));
}

#[test]
fn lengths_are_those_that_the_file_had() {
    let (disk, file) = with_file();
    file.set_len(10).unwrap();
    file.write_all_at(b"x", 700).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let bytes = read(&disk.crash(Keep::Some(seed)), "f").unwrap();
        assert!(bytes.iter().enumerate().all(|(i, b)| matches!(b, b'a' | 0) || (i, *b) == (700, b'x')));
        seen.insert(bytes.len());
    }
    assert_eq!(seen, BTreeSet::from([10, 701, 3 * SECTOR]));
}

#[test]
fn directories_are_found_as_they_were_at_some_moment_each_for_itself() {
    let (disk, _) = with_file();
    disk.create(&path("g")).unwrap();
    disk.rename(&path("g"), &path("h")).unwrap();
    disk.remove(&path("f")).unwrap();
    disk.create(Path::new("/e/x")).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let after = disk.crash(Keep::Some(seed));
        let names = |dir: &str| after.list(Path::new(dir)).unwrap().join("".as_ref()).into_string().unwrap();
        seen.insert((names("/d"), names("/e")));
    }
    let all = ["f", "fg", "fh", "h"].map(|d| ["", "x"].map(|e| (d.to_owned(), e.to_owned())));
    assert_eq!(seen, all.into_iter().flatten().collect());
    disk.sync_dir(Path::new("/e")).unwrap();
    let after = disk.crash(Keep::Nothing);
    assert_eq!(after.list(Path::new("/e")).unwrap(), ["x"]);
    assert_eq!(after.list(Path::new("/d")).unwrap(), ["f"], "another directory's sync is not this one's");
}

#[test]
fn a_write_can_be_torn_at_every_border_of_a_sector() {
    let (disk, file) = with_file();
    let n = disk.ops();
    file.write_all_at(&[b'b'; 2 * SECTOR], 100).unwrap();
    file.sync_data().unwrap();
    let mut cuts = disk.cuts();
    assert_eq!((cuts.ops(), disk.what(n)), (n + 2, "write"));
    let tears = cuts.change(n).tears();
    assert_eq!(tears, [0, SECTOR - 100, 2 * SECTOR - 100]);
    for torn in tears {
        let bytes = read(&cuts.at(n, torn, Keep::All), "f").unwrap();
        assert!(bytes.iter().enumerate().all(|(i, b)| (*b == b'b') == (100..100 + torn).contains(&i)));
    }
    assert_eq!(cuts.change(n + 1).tears(), [0]);
    assert_eq!(read(&cuts.at(n + 1, 0, Keep::Nothing), "f").unwrap(), [b'a'; 3 * SECTOR]);
    assert!(read(&cuts.at(n + 2, 0, Keep::Nothing), "f").unwrap()[100..].starts_with(b"bbb"));
}

/// Cutting afterwards is the same as a disk that failed at that moment.
#[test]
fn a_cut_in_hindsight_is_what_a_power_fault_leaves() {
    let work = |disk: &FaultyDisk| -> io::Result<()> {
        let f = disk.create(&path("f"))?;
        f.write_all_at(&[1; 1500], 0)?;
        f.sync_data()?;
        disk.sync_dir(Path::new("/d"))?;
        f.write_all_at(&[2; 700], 1000)?;
        f.set_len(1200)?;
        disk.create(&path("g"))?.write_all_at(b"g", 0)?;
        disk.rename(&path("g"), &path("f"))?;
        disk.sync_dir(Path::new("/d"))
    };
    let whole = FaultyDisk::new();
    work(&whole).unwrap();
    let mut cuts = whole.cuts();
    let mut different = BTreeSet::new();
    for at in (0..cuts.ops()).rev().chain(0..cuts.ops()) {
        for keep in [Keep::Nothing, Keep::All, Keep::Some(at), Keep::Some(at + 77)] {
            let disk = FaultyDisk::new();
            disk.set_fault(at, Fault::Power(0));
            work(&disk).unwrap_err();
            let left = disk.crash(keep).fingerprint();
            assert_eq!(cuts.at(at, 0, keep).fingerprint(), left, "{} {at}, {keep:?}", whole.what(at));
            different.insert(left);
        }
    }
    assert!(different.len() > 8, "fingerprints tell disks apart");
}

#[test]
fn faults_strike_once_or_for_good() {
    let (disk, file) = with_file();
    disk.set_fault(disk.ops(), Fault::Once(libc::ENOSPC, 128));
    let e = file.write_all_at(&[b'b'; 100], 0).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
    let part = read(&disk, "f").unwrap().iter().filter(|b| **b == b'b').count();
    assert!(part > 0 && part < 100);
    file.write_all_at(b"c", 0).unwrap();
    disk.set_fault(disk.ops(), Fault::Power(0));
    file.sync_data().unwrap_err();
    file.write_all_at(b"d", 0).unwrap_err();
    disk.create(&path("g")).err().unwrap();
    assert!(read(&disk.crash(Keep::Nothing), "f").unwrap().starts_with(b"bb"), "c was not synced");
}

#[test]
fn a_lie_is_told_only_where_it_was_asked_for() {
    let (disk, file) = with_file();
    let other = disk.create(&path("g")).unwrap();
    disk.set_lie(|what, about| what == "sync_dir" || about.ends_with("f"));
    file.write_all_at(b"b", 0).unwrap();
    other.write_all_at(b"b", 0).unwrap();
    file.sync_data().unwrap();
    other.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    let after = disk.crash(Keep::Nothing);
    assert_eq!(after.list(Path::new("/d")).unwrap(), ["f"]);
    assert!(read(&after, "f").unwrap().starts_with(b"a"));
    let cut = disk.cuts().at(disk.ops(), 0, Keep::Nothing);
    assert_eq!(cut.fingerprint(), after.fingerprint(), "lies are remembered as lies");
}

#[test]
fn a_full_disk_takes_only_what_others_gave_back() {
    let (disk, file) = with_file();
    let other = disk.create(&path("g")).unwrap();
    disk.set_fault(disk.ops(), Fault::Full);
    let full = |e: io::Error| assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
    full(file.write_all_at(b"b", 3 * SECTOR as u64).unwrap_err());
    full(file.set_len(4 * SECTOR as u64).unwrap_err());
    full(disk.set_aside(&path("h"), 2 * SECTOR as u64).unwrap_err());
    assert_eq!(disk.space(Path::new("/d")).unwrap().free, 0);
    file.write_all_at(b"b", 0).unwrap();
    disk.remove(&path("h")).unwrap();
    file.set_len(SECTOR as u64).unwrap();
    assert_eq!(disk.space(Path::new("/d")).unwrap().free, 2 * SECTOR as u64);
    other.write_all_at(&[b'b'; 2 * SECTOR], 0).unwrap();
    disk.lift();
    file.write_all_at(&[b'b'; 9 * SECTOR], 0).unwrap();
}

#[test]
fn what_a_failed_sync_dropped_no_later_one_brings_back() {
    let (disk, file) = with_file();
    file.write_all_at(&[b'b'; 2 * SECTOR], 0).unwrap();
    disk.set_fault(disk.ops(), Fault::Once(libc::EIO, 0));
    file.sync_data().unwrap_err();
    assert!(read(&disk, "f").unwrap().starts_with(b"b"), "still to be read");
    file.write_all_at(b"c", SECTOR as u64).unwrap();
    for left in [disk.clone(), disk.crash(Keep::All)] {
        left.open(&path("f"), true).unwrap().sync_data().unwrap();
        let bytes = read(&left.crash(Keep::Nothing), "f").unwrap();
        let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|s| s[0]).collect();
        assert_eq!(sectors, b"aca", "only what was written again arrived");
    }
}

#[test]
fn a_read_fails_when_it_is_told_to() {
    let (disk, _) = with_file();
    disk.set_read_fault(disk.reads(), libc::EIO);
    let file = disk.open(&path("f"), false).unwrap();
    assert_eq!(file.read_at(&mut [0; 4], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(file.read_at(&mut [0; 4], 0).unwrap(), 4);
}
