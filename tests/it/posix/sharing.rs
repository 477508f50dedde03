//! Several readers and writers of the same thing: listings during changes, mappings, processes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::sys::{Mapping, open_rw};
use crate::harness::{Twin, args, tool};

#[test]
fn a_listing_of_ten_thousand_entries_is_right_while_entries_come_and_go() {
    let twin = Twin::new();
    let dir = twin.mount().path().join("many");
    fs::create_dir(&dir).expect("mkdir");
    for i in 0..10_000 {
        File::create(dir.join(format!("stays-{i}"))).expect("creating");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut made = 0u32;
            while !stop.load(Ordering::Relaxed) {
                // Never the same name twice, so that no name may be listed twice.
                File::create(dir.join(format!("comes-{made}"))).expect("creating");
                if made >= 50 {
                    let old = dir.join(format!("comes-{}", made - 50));
                    match made % 2 {
                        0 => fs::remove_file(old).expect("removing"),
                        _ => fs::rename(old, dir.join(format!("moved-{made}"))).expect("renaming"),
                    }
                }
                made += 1;
            }
            made
        });
        let mut changed_during = 0;
        for _ in 0..10 {
            let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for entry in fs::read_dir(&dir).expect("opening the directory") {
                let name = entry.expect("reading the directory").file_name();
                *seen.entry(name.as_bytes().to_vec()).or_default() += 1;
            }
            let twice: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).take(5).collect();
            assert!(twice.is_empty(), "listed more than once: {twice:?}");
            let stays = seen.keys().filter(|name| name.starts_with(b"stays-")).count();
            assert_eq!(stays, 10_000, "entries that were there all along");
            changed_during += seen.keys().filter(|name| !name.starts_with(b"stays-")).count();
        }
        stop.store(true, Ordering::Relaxed);
        let made = changes.join().expect("the changing thread");
        assert!(made > 50 && changed_during > 0, "the directory did change meanwhile ({made} names)");
    });
}

#[test]
fn a_listing_can_be_left_and_taken_up_at_any_position() {
    let twin = Twin::new();
    let dir = twin.mount().path();
    for i in 0..3000 {
        File::create(dir.join(format!("entry number {i}"))).expect("creating");
    }
    let script = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.opendir.argtypes = [ctypes.c_char_p]
for f in (libc.readdir64, libc.telldir): f.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
d = libc.opendir(b'.')
def name(): e = libc.readdir64(d); return e and ctypes.string_at(e + 19)
first = []
while True:
    at = libc.telldir(d); n = name()
    if not n: break
    first.append((at, n))
assert len(first) == 3002 == len({n for _, n in first}), len(first)
for i in list(range(0, 3002, 97)) + [3001, 0]:
    libc.seekdir(d, first[i][0])
    assert name() == first[i][1], i
os.remove(b'entry number 7')
libc.seekdir(d, first[1500][0])
rest = []
while True:
    n = name()
    if not n: break
    rest.append(n)
assert [n for n in rest if n != b'entry number 7'] == [n for _, n in first[1500:] if n != b'entry number 7']
print('right')
";
    assert_eq!(tool(dir, "python3", &args!["-c", script]).trim(), "right");
}

#[test]
fn a_shared_mapping_and_the_file_are_one() {
    let mut twin = Twin::new();
    twin.ok("mmap", |dir| {
        fs::write(dir.join("f"), vec![b'.'; 600_000])?;
        let file = open_rw(&dir.join("f"))?;
        let map = Mapping::shared(&file, 600_000)?;
        map.write(300_000, b"through the mapping");
        let mut through_read = vec![0; 19];
        file.read_exact_at(&mut through_read, 300_000)?;
        file.write_all_at(b"through write", 262_140)?;
        let through_map = map.read(262_140, 13);
        map.sync()?;
        Ok((through_read, through_map))
    });
    // Stored but not synced: the last close of the mapping and the umount must carry it.
    twin.ok("mmap without msync", |dir| {
        let file = open_rw(&dir.join("f"))?;
        Mapping::shared(&file, 4096)?.write(10, b"never synced");
        Ok(())
    });
    twin.compare_over_remount();
    let bytes = fs::read(twin.mount().path().join("f")).expect("reading");
    assert_eq!(&bytes[10..22], b"never synced");
}

#[test]
fn a_mapping_outlives_its_descriptor_and_its_name() {
    let twin = Twin::new();
    twin.ok("mmap of an unlinked file", |dir| {
        fs::write(dir.join("f"), vec![b'a'; 10_000])?;
        let file = open_rw(&dir.join("f"))?;
        let map = Mapping::shared(&file, 10_000)?;
        drop(file);
        fs::remove_file(dir.join("f"))?;
        map.write(5000, b"b");
        map.sync()?;
        Ok(map.read(4999, 3))
    });
}

#[test]
fn two_processes_see_each_others_writes() {
    let twin = Twin::new();
    let seen = twin.ok("a child and its parent", |dir| {
        let file = File::options().create_new(true).read(true).write(true).open(dir.join("f"))?;
        file.write_all_at(b"from the parent\n", 0)?;
        let child_saw = tool(dir, "sh", &args!["-c", "cat f; echo from the child >>f; mv f g; mkdir d"]);
        let mut both = vec![0; 100];
        let len = file.read_at(&mut both, 0)?;
        both.truncate(len);
        Ok((child_saw, both, dir.join("d").is_dir(), dir.join("f").exists()))
    });
    assert_eq!(seen.0, "from the parent\n");
    assert_eq!(seen.1, b"from the parent\nfrom the child\n");
}

#[test]
fn appends_of_several_processes_are_neither_lost_nor_torn() {
    let twin = Twin::new();
    let dir = twin.mount().path();
    let script = "
import os, sys
fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for i in range(5000): os.write(fd, (sys.argv[1] + ' %06d ' % i).ljust(99, 'x').encode() + b'\\n')
";
    std::thread::scope(|scope| {
        for who in ["A", "B"] {
            scope.spawn(move || tool(dir, "python3", &args!["-c", script, who]));
        }
    });
    let log = fs::read_to_string(dir.join("log")).expect("reading the log");
    for who in ["A", "B"] {
        let numbers: Vec<&str> = log.lines().filter(|l| l.starts_with(who)).map(|l| &l[2..8]).collect();
        let expected: Vec<String> = (0..5000).map(|i| format!("{i:06}")).collect();
        assert!(numbers == expected, "{} of 5000 records of {who}, in order", numbers.len());
    }
    assert!(log.lines().all(|line| line.len() == 99), "a torn record");
    assert_eq!(log.len(), 1_000_000);
}

#[test]
fn locks_keep_other_processes_out_and_are_let_go_at_exit() {
    let twin = Twin::new();
    twin.ok("flock", |dir| {
        let mut file = OpenOptions::new().create_new(true).write(true).open(dir.join("lock"))?;
        file.write_all(b"x")?;
        file.lock()?;
        let held = tool(dir, "sh", &args!["-c", "flock -n lock true && echo free || echo held"]);
        file.unlock()?;
        let free = tool(dir, "sh", &args!["-c", "flock -n lock true && echo free || echo held"]);
        Ok((held.trim() == "held", free.trim() == "free"))
    });
}

#[test]
fn writers_in_many_threads_do_not_disturb_each_other() {
    let mut twin = Twin::new();
    twin.ok("eight writers of one file", |dir| {
        let file = File::create(dir.join("f"))?;
        std::thread::scope(|scope| {
            for who in 0..8u64 {
                let file = &file;
                scope.spawn(move || {
                    for i in 0..200 {
                        let bytes = [b'a' + who as u8; 1500];
                        file.write_all_at(&bytes, (i * 8 + who) * 1500).expect("writing");
                    }
                });
            }
        });
        fs::read(dir.join("f"))
    });
    twin.ok("eight makers of one directory", |dir| {
        std::thread::scope(|scope| {
            for who in 0..8 {
                scope.spawn(move || {
                    for i in 0..100 {
                        fs::write(dir.join(format!("{who}-{i}.tmp")), format!("{who} {i}")).expect("writing");
                        fs::rename(dir.join(format!("{who}-{i}.tmp")), dir.join(format!("{who}-{i}")))
                            .expect("mv");
                    }
                });
            }
        });
        Ok(())
    });
    twin.compare_over_remount();
}
