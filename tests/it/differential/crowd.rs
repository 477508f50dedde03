//! Several processes at once.
//!
//! On trees of their own, every call of each process is compared with ext4 as it is made; the trees, and
//! snapshots that were taken meanwhile, are compared at the end.
//!
//! On one shared tree the order is not known, so every call is one of these:
//! * a race that exactly one process must win, for a name, an attribute or a file: the processes note what
//!   they won, the notes of all are counted, and what was won is done again on ext4, whose tree must then be
//!   the same;
//! * something that commutes: own names in shared directories, own places in shared files, names of a shared
//!   file. It is done on ext4 as well, and both calls must return the same;
//! * an append, which must be found once, whole and in its process's order;
//! * an exchange of two files, which must lose and double none.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::RenameFlags;

use super::ops::{Op, Told, World};
use crate::harness::sys::{create_new, mkdir, names, rename, set_xattr};
use crate::harness::twin::errno;
use crate::harness::{Mount, Rng, Times, Tree, Twin, setting};

/// What a process of the crowd is told: its task, as `KIND WHO SEED OPERATIONS MOUNTED PLAIN NOTES`.
const TASK: &str = "REWINDFS_TEST_CROWD_TASK";
const ALONE: u64 = 8;
const TOGETHER: u64 = 4;
/// Shared directories.
const DIRS: u64 = 5;
/// Files that are exchanged.
const RING: u64 = 12;
/// Bytes of an appended record.
const RECORD: usize = 40;
/// Bytes of a place in the shared file of places; borders of pages fall inside of them.
const PLACE: u64 = 700;

/// Operations of all processes together.
fn operations() -> u64 {
    setting("REWINDFS_TEST_CROWD", 24_000)
}

/// Starts processes that do their share and waits for all.
fn crowd(twin: &Twin, kind: &str, many: u64, operations: u64, meanwhile: impl Fn()) {
    let seed = Rng::printed().next();
    let home = twin.mount().store().home();
    let start = |who: u64| -> Child {
        let shown = |path: &Path| path.display().to_string();
        let notes = home.join(format!("notes-{who}"));
        let words = [shown(twin.mount().path()), shown(twin.plain()), shown(&notes)].join(" ");
        let task = format!("{kind} {who} {} {} {words}", seed.wrapping_add(who), operations / many);
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "differential::crowd::a_process_of_the_crowd_does_its_task", "--nocapture"]);
        let output = File::create(home.join(format!("output-{who}"))).expect("a file for output");
        command.env(TASK, task).stdout(output.try_clone().expect("a handle")).stderr(output);
        command.spawn().expect("starting a process of the crowd")
    };
    let mut crowd: Vec<Child> = (0..many).map(start).collect();
    meanwhile();
    let mut failed = Vec::new();
    for (who, child) in crowd.iter_mut().enumerate() {
        if !child.wait().expect("waiting").success() {
            let said = fs::read_to_string(home.join(format!("output-{who}"))).expect("what it said");
            failed.push(format!("process {who}:\n{said}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Does nothing by itself: the processes of the other tests are this one, with a task.
#[test]
fn a_process_of_the_crowd_does_its_task() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [kind, who, seed, operations, mounted, plain, notes] = words[..] else { panic!("no task: {task}") };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (who, operations, mut rng) = (number(who), number(operations), Rng::new(number(seed)));
    let roots = [mounted, plain].map(PathBuf::from);
    match kind {
        "alone" => {
            let done = alone(roots.map(|root| root.join(format!("tree-{who}"))), operations, &mut rng);
            fs::write(notes, done.to_string()).expect("noting");
        }
        _ => {
            let notes = File::create(notes).expect("a file for notes");
            Member { who, roots, notes, own: 0, appended: 0 }.play(operations, &mut rng);
        }
    }
}

/// How many operations did something.
fn alone(roots: [PathBuf; 2], operations: u64, rng: &mut Rng) -> u64 {
    let mut succeeded = 0;
    let mut worlds = [World::default(), World::default()];
    for i in 0..operations {
        let op = Op::any(rng);
        let [a, b] = &mut worlds;
        let [ours, theirs] = [a.apply(&op, &roots[0]), b.apply(&op, &roots[1])];
        assert_eq!(ours, theirs, "operation {i}: {op:?}; left is the mount, right is ext4");
        succeeded += u64::from(theirs.is_ok_and(|told| told != Told::NoHandle));
    }
    succeeded
}

#[test]
fn processes_on_trees_of_their_own_agree_with_ext4() {
    let mut twin = Twin::new();
    twin.ok("trees", |dir| (0..ALONE).try_for_each(|who| mkdir(&dir.join(format!("tree-{who}")), 0o755)));
    let past = std::cell::RefCell::new(BTreeMap::new());
    crowd(&twin, "alone", ALONE, operations(), || {
        for i in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(700));
            let name = format!("s{i}");
            twin.mount().snapshot(&name);
            past.borrow_mut().insert(name.clone(), Tree::read(&twin.mount().at(&name)));
        }
    });
    let home = twin.mount().store().home();
    let done = |who| fs::read_to_string(home.join(format!("notes-{who}"))).expect("notes").parse::<u64>();
    let succeeded: u64 = (0..ALONE).map(|who| done(who).expect("a number")).sum();
    println!("{succeeded} of {} operations succeeded", operations());
    assert!(succeeded * 10 > operations(), "only {succeeded} of {} operations did anything", operations());
    let unchanged = |mount: &Mount, when: &str| {
        for (name, then) in past.borrow().iter() {
            then.assert_same(&Tree::read(&mount.at(name)), Times::All, &format!("snapshot {name} {when}"));
        }
    };
    twin.compare("after all");
    unchanged(twin.mount(), "after all");
    twin.remount_without_index();
    twin.compare("after the index was rebuilt");
    unchanged(twin.mount(), "after the index was rebuilt");
}

/// One of the processes on the shared tree.
struct Member {
    who: u64,
    roots: [PathBuf; 2],
    notes: File,
    /// Own names made so far.
    own: u64,
    /// Records appended so far.
    appended: u64,
}

/// The races: what all try to do first, with a number that all count up alike.
const RACES: [&str; 9] =
    ["create", "mkdir", "symlink", "link", "noreplace", "attribute", "take", "unlink", "rmdir"];

/// Which race number `n` is; ext4 has room for some 4 KiB of attributes.
fn race(n: u64) -> &'static str {
    match RACES[(n % 9) as usize] {
        "attribute" if n >= 900 => "create",
        race => race,
    }
}

/// One attempt at race `n`; what it does is done again for the winner alone.
fn attempt(n: u64, who: u64, root: &Path) -> io::Result<()> {
    let dir = root.join(format!("d{}", n % DIRS));
    let at = |name: &str| dir.join(format!("{name}-{n}"));
    let mine = |name: &str| dir.join(format!("{name}-{n}-by-{who}"));
    match race(n) {
        "create" => create_new(&at("created"), 0o640)?.write_all_at(format!("{who}").as_bytes(), 0),
        "mkdir" => {
            mkdir(&at("made"), 0o750)?;
            fs::write(at("made").join(format!("by-{who}")), b"")
        }
        "symlink" => symlink(format!("{who}"), at("symlink")),
        "link" => fs::hard_link(root.join(format!("linked-{who}")), at("link")),
        "noreplace" => {
            fs::write(mine("source"), format!("{who}"))?;
            let moved = rename(&mine("source"), &at("target"), RenameFlags::RENAME_NOREPLACE);
            moved.inspect_err(|_| drop(fs::remove_file(mine("source"))))
        }
        "attribute" => {
            let value = format!("{who}");
            set_xattr(&root.join("attributes"), &format!("user.a{n}"), value.as_bytes(), libc::XATTR_CREATE)
        }
        "take" => fs::rename(at("token"), mine("taken")),
        "unlink" => fs::remove_file(at("victim")),
        _ => fs::remove_dir(at("empty")),
    }
}

/// What the races for things that must be there need, made beforehand.
fn prepare(root: &Path, races: u64) -> io::Result<()> {
    (0..DIRS).try_for_each(|d| mkdir(&root.join(format!("d{d}")), 0o755))?;
    (0..TOGETHER).try_for_each(|who| fs::write(root.join(format!("linked-{who}")), format!("{who}")))?;
    (0..RING).try_for_each(|i| fs::write(root.join(format!("ring-{i}")), format!("stone {i}")))?;
    ["attributes", "places", "log-0", "log-1", "hub"]
        .iter()
        .try_for_each(|n| fs::write(root.join(n), b""))?;
    for n in 0..races {
        let dir = root.join(format!("d{}", n % DIRS));
        match race(n) {
            "take" => fs::write(dir.join(format!("token-{n}")), format!("{n}"))?,
            "unlink" => fs::write(dir.join(format!("victim-{n}")), b"")?,
            "rmdir" => mkdir(&dir.join(format!("empty-{n}")), 0o755)?,
            _ => {}
        }
    }
    Ok(())
}

/// Of the operations of one process, one in three is a race.
fn races_of(operations: u64) -> u64 {
    operations / TOGETHER / 3
}

impl Member {
    fn play(mut self, operations: u64, rng: &mut Rng) {
        let races = races_of(operations * TOGETHER);
        let mut next = 0;
        for i in 0..operations {
            // Evenly over all operations, so that the processes meet.
            if next < races && next * operations <= i * races {
                self.race(next);
                next += 1;
                continue;
            }
            match rng.below(8) {
                0..4 => self.own_name(rng),
                4 => self.append(rng),
                5 => self.exchange(rng),
                6 => self.hub(rng),
                _ => self.place(rng),
            }
        }
        self.notes.sync_all().expect("notes");
    }

    fn note(&mut self, line: &str) {
        writeln!(self.notes, "{line}").expect("noting");
    }

    fn race(&mut self, n: u64) {
        match errno(attempt(n, self.who, &self.roots[0])) {
            Ok(()) => self.note(&format!("{} {n}", race(n))),
            Err(Errno::EEXIST | Errno::ENOENT) => {}
            Err(e) => panic!("{} {n}: {e}", race(n)),
        }
    }

    /// The same on both sides, with the same answer.
    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, act: impl Fn(&Path) -> io::Result<T>) {
        let [ours, theirs] = self.roots.each_ref().map(|root| errno(act(root)));
        assert_eq!(ours, theirs, "{what}: left is the mount, right is ext4");
    }

    fn own_name(&mut self, rng: &mut Rng) {
        let who = self.who;
        let name = |n: u64, dir: u64| format!("d{dir}/own-{who}-{n}");
        let (old, [here, there]) = (rng.below(self.own.max(1)), [rng.below(DIRS), rng.below(DIRS)]);
        let (new, bytes) = (self.own, rng.text(2000));
        match rng.below(6) {
            0..2 => {
                self.own += 1;
                self.same("create", |root| fs::write(root.join(name(new, here)), &bytes));
            }
            2 => {
                self.own += 1;
                self.same("mkdir", |root| mkdir(&root.join(name(new, here)), 0o755));
            }
            3 => self
                .same("rename", |root| fs::rename(root.join(name(old, here)), root.join(name(old, there)))),
            4 => self.same("unlink", |root| fs::remove_file(root.join(name(old, here)))),
            _ => self.same("rmdir", |root| fs::remove_dir(root.join(name(old, here)))),
        }
    }

    fn append(&mut self, rng: &mut Rng) {
        let log = rng.below(2);
        let line = format!("{:02} {:08} {}", self.who, self.appended, "x".repeat(RECORD));
        self.appended += 1;
        self.same("append", |root| {
            let mut file = OpenOptions::new().append(true).open(root.join(format!("log-{log}")))?;
            file.write(format!("{}\n", &line[..RECORD - 1]).as_bytes())
        });
    }

    fn exchange(&mut self, rng: &mut Rng) {
        let [a, b] = [rng.below(RING), rng.below(RING)].map(|i| self.roots[0].join(format!("ring-{i}")));
        rename(&a, &b, RenameFlags::RENAME_EXCHANGE).expect("both are there at any time");
    }

    fn hub(&mut self, rng: &mut Rng) {
        let name = format!("d{}/hub-{}-{}", rng.below(DIRS), self.who, rng.below(20));
        match rng.below(2) {
            0 => self.same("link", |root| fs::hard_link(root.join("hub"), root.join(&name))),
            _ => self.same("unlink", |root| fs::remove_file(root.join(&name))),
        }
    }

    fn place(&mut self, rng: &mut Rng) {
        let at = (rng.below(200) * TOGETHER + self.who) * PLACE;
        let bytes = rng.bytes(PLACE as usize);
        self.same("write", |root| {
            let file = OpenOptions::new().read(true).write(true).open(root.join("places"))?;
            file.write_all_at(&bytes, at)?;
            let mut back = vec![0; PLACE as usize];
            file.read_exact_at(&mut back, at)?;
            Ok(back == bytes)
        });
    }
}

/// Each process's records once and in its order, over both logs; the logs are removed.
fn check_logs(root: &Path) {
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for log in ["log-0", "log-1"] {
        let text = fs::read_to_string(root.join(log)).expect("a log");
        assert!(text.split_inclusive('\n').all(|line| line.len() == RECORD), "{log} has a torn record");
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for line in text.lines() {
            let number = line[3..11].parse().unwrap_or_else(|_| panic!("{log}: {line:?}"));
            let before = last.insert(&line[..2], number);
            assert!(before < Some(number), "{log}: {line:?} after {before:?}");
            seen.entry(line[..2].to_owned()).or_default().push(number);
        }
        fs::remove_file(root.join(log)).expect("removing a log");
    }
    for (who, mut numbers) in seen {
        numbers.sort_unstable();
        let expected: Vec<u64> = (0..numbers.len() as u64).collect();
        assert!(numbers == expected, "{who} appended {} records: some are lost or doubled", numbers.len());
    }
}

/// Every stone once; the ring is removed.
fn check_ring(root: &Path) {
    let read = |i| fs::read_to_string(root.join(format!("ring-{i}"))).expect("a stone");
    let mut stones: Vec<String> = (0..RING).map(read).collect();
    stones.sort();
    let mut expected: Vec<String> = (0..RING).map(|i| format!("stone {i}")).collect();
    expected.sort();
    assert_eq!(stones, expected);
    (0..RING).for_each(|i| fs::remove_file(root.join(format!("ring-{i}"))).expect("removing a stone"));
}

/// Who won each race, by the notes of all: exactly one.
fn winners(home: &Path, races: u64) -> Vec<u64> {
    let mut won: Vec<Vec<u64>> = vec![Vec::new(); races as usize];
    for who in 0..TOGETHER {
        let notes = fs::read_to_string(home.join(format!("notes-{who}"))).expect("notes");
        for line in notes.lines() {
            let n: usize = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a race");
            won[n].push(who);
        }
    }
    let wrong: Vec<_> = won.iter().enumerate().filter(|(_, who)| who.len() != 1).take(5).collect();
    assert!(wrong.is_empty(), "races with no winner or more than one: {wrong:?}");
    won.concat()
}

#[test]
fn processes_on_one_tree_race_append_and_exchange_and_nothing_is_lost_or_doubled() {
    let mut twin = Twin::new();
    // Half of what the others do: each call here meets others.
    let total = operations() / 2;
    let races = races_of(total);
    twin.ok("preparing", |dir| prepare(dir, races));
    crowd(&twin, "together", TOGETHER, total, || ());
    let won = winners(twin.mount().store().home(), races);
    for (n, who) in won.iter().enumerate() {
        attempt(n as u64, *who, twin.plain()).unwrap_or_else(|e| panic!("{} {n} again: {e}", race(n as u64)));
    }
    let by_each: Vec<usize> = (0..TOGETHER).map(|who| won.iter().filter(|w| **w == who).count()).collect();
    println!("{races} races were won by {by_each:?}");
    for root in twin.roots() {
        check_logs(root);
        check_ring(root);
    }
    let made: usize =
        (0..DIRS).map(|d| names(&twin.plain().join(format!("d{d}"))).expect("names").len()).sum();
    assert!(made as u64 > races / 2, "only {made} names are left");
    twin.compare("the winners' tree");
    twin.remount_without_index();
    twin.compare("after the index was rebuilt");
}
