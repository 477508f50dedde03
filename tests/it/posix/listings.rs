//! Listings of large directories: while they change, from any position, and over a server's death.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};

use crate::harness::listing::{Entry, Listing, listed};
use crate::harness::sys::facts;
use crate::harness::{Rng, Store, Twin, eventually, setting};

/// Adds, renames and removes names that nobody else has, for ever; never the same name twice.
const CHANGES: &str = "
import os, sys
os.chdir(sys.argv[1])
made = 0
while True:
    name = lambda n: 'comes-%s-%d' % (sys.argv[2], n)
    if made % 3 == 0: os.mkdir(name(made))
    else: os.close(os.open(name(made), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    old = made - 40
    if old >= 0:
        if old % 3 == 0: os.rmdir(name(old))
        elif old % 3 == 1: os.unlink(name(old))
        else: os.rename(name(old), 'moved-%s-%d' % (sys.argv[2], old))
    if old >= 40 and (old - 40) % 3 == 2: os.unlink('moved-%s-%d' % (sys.argv[2], old - 40))
    made += 1
";

/// Processes that change a directory until this is dropped.
struct Changers(Vec<Child>);

impl Changers {
    fn start(dir: &Path) -> Changers {
        let start = |who: u32| {
            let mut command = Command::new("python3");
            command.args(["-c", CHANGES]).arg(dir).arg(who.to_string()).spawn().expect("python3")
        };
        Changers((0..2).map(start).collect())
    }
}

impl Drop for Changers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn stays(i: u64) -> String {
    // Of many lengths, so that buffers end at many places.
    format!("stays-{i}-{}", "x".repeat((i * 7919 % 60) as usize))
}

/// How often each name was listed.
fn counted(entries: &[Entry]) -> BTreeMap<Vec<u8>, u32> {
    let mut counts = BTreeMap::new();
    for entry in entries {
        *counts.entry(entry.name.clone()).or_default() += 1;
    }
    counts
}

/// Fails the test unless every name that stays was listed once, and no other one twice.
fn complete(entries: &[Entry], many: u64, what: &str) {
    let counts = counted(entries);
    let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).take(3).collect();
    assert!(twice.is_empty(), "{what}: listed more than once: {twice:?}");
    let missing: Vec<u64> =
        (0..many).filter(|i| !counts.contains_key(stays(*i).as_bytes())).take(3).collect();
    assert!(missing.is_empty(), "{what}: never listed: {missing:?}");
    assert!(counts.contains_key(&b"."[..]) && counts.contains_key(&b".."[..]), "{what}: the dots");
}

/// `REWINDFS_TEST_ENTRIES` makes it larger: a million take some minutes.
#[test]
fn a_large_directory_is_listed_whole_while_other_processes_change_it() {
    let quick = setting("REWINDFS_TEST_QUICK", 0) == 1;
    let many = setting("REWINDFS_TEST_ENTRIES", if quick { 20_000 } else { 100_000 });
    let mut mount = Store::encrypted().mount();
    let dir = mount.path().join("many");
    fs::create_dir(&dir).expect("mkdir");
    // More subdirectories than ext4 counts (it says 1 from 65,000 on), and files.
    let dirs = many / 100 * 66;
    (0..dirs).for_each(|i| fs::create_dir(dir.join(stays(i))).expect("mkdir"));
    (dirs..many).for_each(|i| drop(File::create(dir.join(stays(i))).expect("creating")));
    assert_eq!(facts(&dir).expect("stat").nlink, dirs + 2);
    let quiet = listed(&dir).expect("listing");
    assert_eq!(quiet.len() as u64, many + 2);
    complete(&quiet, many, "in peace");
    {
        let _changers = Changers::start(&dir);
        let mut came = 0;
        for buffer in [32 * 1024, 1 << 20, 1000] {
            let entries = Listing::open(&dir).and_then(|l| l.rest(buffer)).expect("listing");
            complete(&entries, many, &format!("buffers of {buffer} bytes"));
            came += entries.len() as u64 - many - 2;
        }
        assert!(came > 0, "the directory did change meanwhile");
        // Begun before the server dies, gone on with by the next one, several times.
        let listing = Listing::open(&dir).expect("opening");
        let mut entries = Vec::new();
        for _ in 0..3 {
            for _ in 0..5 {
                entries.extend(listing.next(4096).expect("listing"));
            }
            let server = mount.server();
            server.kill();
            eventually("the server to be gone", || !server.alive());
        }
        entries.extend(listing.rest(32 * 1024).expect("the rest"));
        complete(&entries, many, "over three servers");
    }
    mount = mount.remount();
    let again = listed(&mount.path().join("many")).expect("listing");
    complete(&again, many, "after a remount");
    let order = |all: &[Entry]| -> Vec<Vec<u8>> {
        all.iter().filter(|e| e.name.starts_with(b"stays")).map(|e| e.name.clone()).collect()
    };
    assert!(order(&again) == order(&quiet), "the order stays");
}

#[test]
fn positions_lead_to_what_follows_them_whatever_came_and_went() {
    let mut rng = Rng::printed();
    let mut mount = Store::encrypted().mount();
    let dir = mount.path().join("d");
    fs::create_dir(&dir).expect("mkdir");
    (0..4000).for_each(|i| drop(File::create(dir.join(stays(i))).expect("creating")));
    let all = listed(&dir).expect("listing");
    let positions: BTreeSet<i64> = all.iter().map(|entry| entry.next).collect();
    assert_eq!(positions.len(), all.len(), "every entry has a position of its own");
    let names = |entries: &[Entry]| entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
    let listing = Listing::open(&dir).expect("opening");
    for _ in 0..60 {
        let at = rng.below(all.len() as u64) as usize;
        listing.seek(all[at].next).expect("seeking");
        let buffer = *rng.pick(&[300, 4096, 100_000]);
        let rest =
            if rng.below(4) == 0 { listing.rest(buffer) } else { listing.next(buffer) }.expect("listing");
        let expected = names(&all[at + 1..]);
        assert!(expected.starts_with(&names(&rest)), "from behind entry {at}");
        assert!(at + 1 == all.len() || !rest.is_empty(), "from behind entry {at}");
    }
    // Every other one goes, those at the positions too; others come.
    for entry in all.iter().filter(|e| e.name.starts_with(b"stays")).step_by(2) {
        fs::remove_file(dir.join(crate::harness::sys::raw_name(&entry.name))).expect("removing");
    }
    (0..500).for_each(|i| drop(File::create(dir.join(format!("new-{i}"))).expect("creating")));
    let left: BTreeSet<Vec<u8>> = listed(&dir)
        .expect("listing")
        .into_iter()
        .map(|e| e.name)
        .filter(|n| n.starts_with(b"stays"))
        .collect();
    assert_eq!(left.len(), 2000);
    for when in ["after changes", "over a kill", "on another descriptor"] {
        for at in (0..all.len()).step_by(371) {
            listing.seek(all[at].next).expect("seeking");
            let rest = listing.rest(32 * 1024).expect("listing");
            let old: Vec<_> = names(&rest).into_iter().filter(|n| n.starts_with(b"stays")).collect();
            let expected: Vec<_> = names(&all[at + 1..]).into_iter().filter(|n| left.contains(n)).collect();
            assert!(old == expected, "{when}: from behind entry {at}");
        }
        if when == "after changes" {
            let server = mount.server();
            server.kill();
            eventually("the server to be gone", || !server.alive());
        }
    }
    drop(listing);
    mount = mount.remount();
    let listing = Listing::open(&mount.path().join("d")).expect("opening");
    listing.seek(all[1000].next).expect("a position of before the remount");
    let old: Vec<_> = names(&listing.rest(4096).expect("listing"))
        .into_iter()
        .filter(|n| n.starts_with(b"stays"))
        .collect();
    let expected: Vec<_> = names(&all[1001..]).into_iter().filter(|n| left.contains(n)).collect();
    assert!(old == expected, "positions outlive remounts");
}

#[test]
fn a_listing_that_is_begun_again_shows_what_is_there_now() {
    let twin = Twin::new();
    let seen = twin.ok("rewinding", |dir| {
        for i in 0..300 {
            File::create(dir.join(format!("old-{i}")))?;
        }
        let listing = Listing::open(dir)?;
        let sorted = |mut all: Vec<Entry>| {
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all.into_iter().map(|e| (e.kind, e.name)).collect::<Vec<_>>()
        };
        let first = sorted(listing.rest(5000)?);
        let end = listing.rest(5000)?.len();
        for i in 0..200 {
            fs::remove_file(dir.join(format!("old-{i}")))?;
            fs::create_dir(dir.join(format!("new-{i}")))?;
        }
        listing.seek(0)?;
        let second = sorted(listing.rest(700)?);
        Ok((first, end, second))
    });
    assert_eq!((seen.0.len(), seen.1, seen.2.len()), (302, 0, 302));
    assert!(seen.2.iter().any(|(kind, name)| *kind == libc::DT_DIR && name == b"new-7"));
}

#[test]
fn a_buffer_too_small_for_one_entry_is_einval_and_harms_nothing() {
    let twin = Twin::new();
    let names = twin.ok("a long name", |dir| {
        fs::create_dir(dir.join("d"))?;
        File::create(dir.join("d").join("n".repeat(255)))?;
        let listing = Listing::open(&dir.join("d"))?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut refused = 0;
        while names.len() < 3 {
            match crate::harness::twin::errno(listing.next(40)) {
                Ok(more) => names.extend(more.into_iter().map(|e| e.name)),
                Err(e) => {
                    assert_eq!(e, nix::errno::Errno::EINVAL);
                    refused += 1;
                    names.extend(listing.next(1000)?.into_iter().map(|e| e.name));
                }
            }
        }
        names.sort();
        Ok((names, refused))
    });
    assert_eq!((names.0.len(), names.1), (3, 1));
}

#[test]
fn an_open_directory_that_was_removed_is_not_listed_any_more() {
    let twin = Twin::new();
    twin.ok("removed while open", |dir| {
        fs::create_dir(dir.join("d"))?;
        (0..50).try_for_each(|i| File::create(dir.join(format!("d/{i}"))).map(drop))?;
        let listing = Listing::open(&dir.join("d"))?;
        let first = listing.next(500)?.len() > 1;
        fs::remove_dir_all(dir.join("d"))?;
        listing.seek(0)?;
        Ok((first, crate::harness::twin::errno(listing.rest(4096)).is_err()))
    });
}
