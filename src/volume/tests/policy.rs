//! Schedules, retention, limits of space, immutability, completed files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::store::model::{Policy, SnapshotKind};
use crate::types::{DiskFile, Space};
use crate::volume::policy::Setting;
use crate::volume::policy::keeper::Rounds;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// What keeps a point by the rules, worked out for each point on its own.
pub fn stays(policy: &Policy, now: i64, all: &[(i64, SnapshotKind)], which: usize) -> bool {
    let (time, kind) = all[which];
    let age = now - time;
    let continuous = policy.continuous_secs as i64;
    let last_of = |period: &dyn Fn(i64) -> String, most: u32| {
        let later = all[which + 1..].iter().filter(|(_, k)| *k == kind).map(|(t, _)| period(*t));
        let later: BTreeSet<String> = later.collect();
        !later.contains(&period(time)) && later.len() < most as usize
    };
    let form = |format: &'static str| {
        move |secs: i64| jiff::Timestamp::from_second(secs).unwrap().strftime(format).to_string()
    };
    let kept = &policy.retention;
    match kind {
        SnapshotKind::Scheduled => {
            age < DAY
                || age < continuous
                || last_of(&form("%Y-%m-%d %H"), kept.hourly)
                || last_of(&form("%Y-%m-%d"), kept.daily)
                || last_of(&form("%G-%V"), kept.weekly)
                || last_of(&form("%Y-%m"), kept.monthly)
                || last_of(&form("%Y"), kept.yearly)
        }
        SnapshotKind::Mark => {
            age < continuous
                && (age < DAY || {
                    let hour = form("%Y-%m-%d %H");
                    !all[which + 1..]
                        .iter()
                        .any(|(t, k)| *k == kind && now - t >= DAY && hour(*t) == hour(time))
                })
        }
        _ => true,
    }
}

pub fn points(bench: &Bench) -> BTreeMap<Lsn, (String, Timestamp, SnapshotKind)> {
    let state = bench.store().index().state();
    let volume = state.volumes.get(&bench.main().id()).unwrap();
    let readable = volume.points.iter().filter(|(_, p)| !p.deleting);
    readable.map(|(at, p)| (*at, (p.spec.name.clone(), p.time, p.spec.kind))).collect()
}

pub fn keep(bench: &Bench, rounds: &mut Rounds) -> Vec<String> {
    let mut problems = Vec::new();
    bench.volumes().shared.keep(rounds, &mut problems).unwrap();
    problems
}

fn set(bench: &Bench, settings: &[&str]) -> FsResult<Policy> {
    let texts: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    bench.main().set_policy(&Setting::all(&texts).unwrap(), false)
}

fn bench() -> Bench {
    let bench = Bench::new(Config { window_seconds: 900, ..quiet() });
    set(&bench, &["free-min=0", "history-max=100%"]).unwrap();
    bench
}

fn pass(bench: &Bench, secs: i64) {
    bench.clock.advance(secs * 1_000_000_000);
}

fn change(bench: &Bench, file: Ino, n: u64) {
    bench.write(file, 0, &n.to_le_bytes());
    bench.volumes().sync().unwrap();
}

/// Two days, with pauses in which nothing changes and a restart in the middle.
#[test]
fn after_two_days_exactly_what_the_policy_promises_is_there() {
    let mut bench = bench();
    let policy = set(
        &bench,
        &["every=15m", "continuous=26h", "hourly=30", "daily=2", "weekly=1", "monthly=1", "yearly=0"],
    )
    .unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    let mut made: BTreeMap<Lsn, (i64, SnapshotKind)> = BTreeMap::new();
    let mut rng = 7u64;
    let (mut changed, mut slot, mut minute) = (true, i64::MIN, i64::MIN);
    let mut expected_made = (0, 0);
    for step in 0..(48 * HOUR / 20) {
        pass(&bench, 20);
        let now = bench.clock.now().secs;
        let asleep = (now / HOUR) % 8 == 3;
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if !asleep && rng >> 62 == 0 {
            change(&bench, file, step as u64);
            changed = true;
        }
        if step == 4000 {
            bench.reopen();
            rounds = Rounds::default();
            // Whether something changed since the last point is not remembered: one more is made.
            changed = true;
        }
        assert_eq!(keep(&bench, &mut rounds), Vec::<String>::new());
        bench.care();
        let begins = slot != i64::MIN && now / (15 * MINUTE) > slot;
        let new: Vec<_> = points(&bench).into_iter().filter(|(at, _)| !made.contains_key(at)).collect();
        for (at, (_, time, kind)) in &new {
            assert_eq!(time.secs, now);
            made.insert(*at, (now, *kind));
        }
        // One point for whatever is due, if something changed.
        let newest_named = made.values().rev().find(|(_, k)| *k == SnapshotKind::Scheduled).map(|(t, _)| *t);
        match new.as_slice() {
            [] => assert!(!changed || !(begins || now / MINUTE > minute), "step {step}: a point is missing"),
            [(_, (_, _, SnapshotKind::Scheduled))] => {
                assert!(begins || slot == i64::MIN, "step {step}: not the schedule's moment");
                assert_eq!(newest_named, Some(now));
                expected_made.0 += 1;
            }
            [(_, (name, _, SnapshotKind::Mark))] => {
                assert!(changed && now / MINUTE > minute && name.is_empty(), "step {step}: a needless mark");
                expected_made.1 += 1;
            }
            other => panic!("step {step}: {other:?}"),
        }
        if !new.is_empty() {
            (changed, minute) = (false, now / MINUTE);
        }
        slot = now / (15 * MINUTE);
        if step % 90 == 0 {
            let all: Vec<(i64, SnapshotKind)> = made.values().copied().collect();
            // Retention is worked off once a minute.
            let last = now / MINUTE * MINUTE;
            let left: Vec<Lsn> = points(&bench).into_keys().collect();
            let at = |when: i64| {
                let kept = made.keys().enumerate().filter(|(i, _)| stays(&policy, when, &all, *i));
                kept.map(|(_, at)| *at).collect::<BTreeSet<Lsn>>()
            };
            let (low, high) = (at(now), at(last));
            let left: BTreeSet<Lsn> = left.into_iter().collect();
            assert!(
                left.is_superset(&low) && left.is_subset(&high),
                "step {step}: {left:?}\n{low:?}\n{high:?}"
            );
        }
    }
    assert!(expected_made.0 > 150 && expected_made.1 > 1500, "{expected_made:?}");
    bench.fsck();
}

#[test]
fn every_minute_of_the_window_can_be_read_and_what_is_before_it_cannot() {
    let bench = bench();
    set(&bench, &["every=off", "continuous=2h"]).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    let mut wrote = Vec::new();
    for n in 0..180 {
        change(&bench, file, n);
        wrote.push((bench.clock.now(), n));
        pass(&bench, 60);
        keep(&bench, &mut rounds);
        bench.care();
    }
    let now = bench.clock.now().secs;
    let mut readable = 0;
    for (time, n) in wrote {
        let point = crate::types::point::Point::Time(Timestamp { secs: time.secs + 59, nanos: 999_000_000 });
        match bench.main().resolve(&point) {
            Ok(at) => {
                let ago = (now - time.secs) / 60;
                let found = u64::from_le_bytes(bench.read(Some(at), file).try_into().unwrap());
                // Between two marks the older one is shown.
                assert!(found == n || (ago > 14 && found + 1 == n), "{ago} minutes ago: {found}, not {n}");
                readable += 1;
            }
            Err(e) => {
                assert!(now - time.secs >= 2 * HOUR - 60 && e.to_string().contains("the oldest is"), "{e}");
            }
        }
    }
    assert!((118..=121).contains(&readable), "{readable} minutes are readable");
    let kept = bench.main().kept().unwrap();
    // The window moves only where that frees something.
    assert!(kept.records_since.is_none_or(|since| now - since.secs >= 890), "{kept:?}");
    assert!((now - kept.marks_since.unwrap().secs - 2 * HOUR).abs() <= 120, "{kept:?}");
}

#[test]
fn without_a_policy_for_it_nothing_is_kept() {
    let bench = bench();
    set(&bench, &["every=off", "continuous=off"]).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    for n in 0..100 {
        change(&bench, file, n);
        pass(&bench, 60);
        keep(&bench, &mut rounds);
        bench.care();
    }
    let marks: Vec<_> = points(&bench)
        .into_values()
        .filter(|(_, time, _)| bench.clock.now().secs - time.secs < 5000)
        .collect();
    assert_eq!(marks, []);
    assert_eq!(bench.main().kept().unwrap().marks, 0);
}

#[test]
fn a_moment_that_is_being_read_stays() {
    let bench = bench();
    set(&bench, &["every=off", "continuous=1h"]).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    change(&bench, file, 1);
    pass(&bench, 60);
    keep(&bench, &mut rounds);
    let (mark, _) = points(&bench).pop_last().unwrap();
    change(&bench, file, 2);
    let record = bench.store().last();
    change(&bench, file, 3);
    bench.main().touch(mark);
    bench.main().touch(record);
    pass(&bench, 2 * HOUR);
    change(&bench, file, 4);
    keep(&bench, &mut rounds);
    bench.care();
    assert_eq!(bench.read(Some(mark), file), 1u64.to_le_bytes());
    assert!(bench.main().is_readable(mark) && bench.main().is_readable(record));
    assert_eq!(bench.read(Some(record), file), 2u64.to_le_bytes());
}

#[test]
fn nothing_forgets_what_is_immutable() {
    let bench = bench();
    set(&bench, &["every=1m", "continuous=1m", "hourly=0", "daily=0", "weekly=0", "monthly=0"]).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut rounds = Rounds::default();
    bench.snapshot("before");
    set(&bench, &["immutable=3d"]).unwrap();
    let mut held = vec![bench.main().snapshot_named("before").unwrap().lsn];
    for n in 0..40 {
        change(&bench, file, n);
        pass(&bench, HOUR);
        keep(&bench, &mut rounds);
        held = points(&bench).into_keys().collect();
    }
    assert!(held.len() >= 40);
    let refused = bench.main().delete_snapshots(&["before"], None).unwrap_err().to_string();
    assert!(refused.contains("immutable until"), "{refused}");
    assert!(matches!(bench.volumes().delete(DEFAULT_VOLUME), Err(FsError::Held(_))));
    // A shorter period, none, and no policy at all change nothing for what is there.
    set(&bench, &["immutable=1m"]).unwrap();
    set(&bench, &["immutable=off", "every=off", "continuous=off"]).unwrap();
    let made_later = bench.snapshot("later");
    for _ in 0..10 {
        pass(&bench, HOUR);
        keep(&bench, &mut rounds);
        bench.care();
    }
    let left = points(&bench);
    assert!(held.iter().all(|at| left.contains_key(at)), "something immutable is gone");
    bench.main().delete_snapshots(&["later"], None).unwrap();
    assert!(!points(&bench).contains_key(&made_later));
    pass(&bench, 4 * DAY);
    keep(&bench, &mut rounds);
    bench.main().delete_snapshots(&["before"], None).unwrap();
    bench.care();
    assert!(points(&bench).is_empty(), "{:?}", points(&bench));
    bench.fsck();
}

/// A disk that says it is as large and as full as a test likes.
struct SizedDisk {
    total: u64,
    free: AtomicU64,
}

impl Disk for SizedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        OsDisk.create(path)
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
    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let free = self.free.load(Ordering::SeqCst);
        Ok(Space { total: self.total, free, usable: free })
    }
}

fn sized(total: u64, free: u64) -> (Bench, Arc<SizedDisk>) {
    let mut bench = Bench::new(Config { window_seconds: 0, ..quiet() });
    bench.drop_all();
    let disk = Arc::new(SizedDisk { total, free: AtomicU64::new(free) });
    bench.disk = disk.clone();
    bench.open();
    (bench, disk)
}

/// Twenty snapshots, each of which keeps about 100 kB alone; the third is held.
fn twenty(bench: &Bench) -> Vec<Lsn> {
    let file = bench.file(Ino::ROOT, "f");
    let mut made = Vec::new();
    for n in 0..20 {
        bench.write(file, 0, &noise(n + 1, 100_000));
        made.push(bench.snapshot(&format!("s{n}")));
        pass(bench, HOUR);
    }
    bench.write(file, 0, &noise(99, 100_000));
    bench.main().hold_snapshot("s2", true).unwrap();
    bench.volumes().sync().unwrap();
    bench.care();
    made
}

fn until_settled(bench: &Bench) -> Vec<String> {
    let mut before = usize::MAX;
    loop {
        let problems = keep(bench, &mut Rounds::impatient());
        bench.care();
        let left = points(bench).len();
        if left == before {
            return problems;
        }
        before = left;
    }
}

#[test]
fn history_over_its_limit_goes_oldest_first_but_for_what_is_held() {
    let (bench, _) = sized(10_000_000, 5_000_000);
    let made = twenty(&bench);
    set(&bench, &["every=off", "continuous=off", "history-max=1M", "free-min=0"]).unwrap();
    assert_eq!(until_settled(&bench), Vec::<String>::new());
    let left: Vec<Lsn> = points(&bench).into_keys().collect();
    assert!((9..=11).contains(&left.len()), "{} are left", left.len());
    assert_eq!(left[0], made[2], "what is held stays");
    assert_eq!(left[1..], made[made.len() - (left.len() - 1)..], "the youngest stay");
    bench.fsck();
}

#[test]
fn little_free_space_thins_history_and_never_what_is_held() {
    let (bench, disk) = sized(10_000_000, 5_000_000);
    let made = twenty(&bench);
    set(&bench, &["every=off", "continuous=off", "history-max=100%", "free-min=10%"]).unwrap();
    assert_eq!(until_settled(&bench), Vec::<String>::new());
    assert_eq!(points(&bench).len(), 20, "there is room enough");
    disk.free.store(400_000, Ordering::SeqCst);
    keep(&bench, &mut Rounds::impatient());
    let left: Vec<Lsn> = points(&bench).into_keys().collect();
    assert!((12..=15).contains(&left.len()), "{} are left after one look", left.len());
    let problems = until_settled(&bench);
    assert_eq!(points(&bench).into_keys().collect::<Vec<_>>(), [made[2]]);
    assert!(problems.iter().any(|p| p.contains("less than free-min")), "{problems:?}");
    // Nobody is told to delete when there is room again.
    disk.free.store(4_000_000, Ordering::SeqCst);
    assert_eq!(until_settled(&bench), Vec::<String>::new());
    bench.fsck();
}

#[test]
fn a_nearly_full_disk_thins_the_youngest_history_too_but_no_more_than_it_needs() {
    let (bench, disk) = sized(10_000_000, 5_000_000);
    set(&bench, &["every=off", "history-max=100%", "free-min=10%"]).unwrap();
    let file = bench.file(Ino::ROOT, "f");
    let mut made = Vec::new();
    for n in 0..20 {
        bench.write(file, 0, &noise(n + 1, 100_000));
        made.push(bench.snapshot(&format!("s{n}")));
        pass(&bench, 30);
    }
    bench.main().hold_snapshot("s1", true).unwrap();
    bench.volumes().sync().unwrap();
    let mut rounds = Rounds::impatient();
    let mut look = |free: u64| {
        disk.free.store(free, Ordering::SeqCst);
        rounds.look_at_space();
        keep(&bench, &mut rounds);
        points(&bench).into_keys().filter(|at| made.contains(at)).collect::<Vec<_>>()
    };
    for _ in 0..20 {
        assert_eq!(look(1_300_000).len(), 20, "there is what is to be free");
        assert!(!bench.store().is_tight());
    }
    // A third of a megabyte is missing until the disk is not nearly full.
    let left = (0..20).map(|_| look(900_000)).find(|left| left.len() < 20).unwrap();
    assert!((14..=17).contains(&left.len()), "{} are left", left.len());
    assert_eq!(left[0], made[1], "what is held stays");
    assert_eq!(left[1..], made[made.len() - (left.len() - 1)..], "the youngest stay");
    look(100_000);
    assert!(bench.store().is_tight(), "programs wait for what is about to be free");
    look(5_000_000);
    assert!(!bench.store().is_tight());
    bench.fsck();
}

fn on_close(bench: &Bench) -> Vec<BTreeMap<String, String>> {
    let rows = bench.main().snapshots(Lsn::ZERO, usize::MAX).unwrap();
    let of_rules = rows.into_iter().filter(|r| r.spec.kind == SnapshotKind::OnClose);
    of_rules.map(|r| r.spec.tags.into_iter().collect()).collect()
}

fn settle(bench: &Bench) {
    std::thread::sleep(std::time::Duration::from_millis(1100));
    keep(bench, &mut Rounds::default());
}

#[test]
fn completed_files_get_a_snapshot_with_tags() {
    let bench = bench();
    set(&bench, &["every=off", "continuous=off", "on-close=models/{model}/**/*.pt"]).unwrap();
    let models = bench.make(Ino::ROOT, "models", FileKind::Dir);
    let resnet = bench.make(models, "resnet", FileKind::Dir);
    let tags = |model: &str, path: &str| {
        BTreeMap::from([("model".to_owned(), model.to_owned()), ("path".to_owned(), path.to_owned())])
    };
    let a = bench.file(resnet, "a.pt");
    bench.write(a, 0, b"one");
    bench.main().completed(a);
    assert!(on_close(&bench).is_empty(), "its parts are waited for");
    settle(&bench);
    assert_eq!(on_close(&bench), [tags("resnet", "models/resnet/a.pt")]);
    let at = bench.main().snapshots(Lsn::ZERO, 9).unwrap()[0].lsn;
    assert_eq!(bench.read(Some(at), a), b"one");
    // Closed again without a change, and closed under a name that nobody watches.
    bench.main().completed(a);
    let log = bench.file(resnet, "log");
    bench.main().completed(log);
    settle(&bench);
    assert_eq!(on_close(&bench).len(), 1);
    // Written under another name and renamed into place; two parts of one thing; a directory renamed.
    let rename = |from: (Ino, &str), to: (Ino, &str)| {
        let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
        bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
    };
    let temp = bench.file(resnet, "a.tmp");
    bench.write(temp, 0, b"two");
    bench.main().completed(temp);
    rename((resnet, "a.tmp"), (resnet, "a.pt"));
    settle(&bench);
    assert_eq!(on_close(&bench)[1..], [tags("resnet", "models/resnet/a.pt")]);
    let step = bench.make(Ino::ROOT, "tmp-step-2", FileKind::Dir);
    for name in ["p1.pt", "p2.pt"] {
        let part = bench.file(step, name);
        bench.write(part, 0, name.as_bytes());
        bench.main().completed(part);
    }
    rename((Ino::ROOT, "tmp-step-2"), (models, "step-2"));
    settle(&bench);
    assert_eq!(on_close(&bench)[2..], [tags("step-2", "models/step-2")]);
}

#[test]
fn a_policy_outlives_everything() {
    let mut bench = bench();
    let policy = set(&bench, &["every=7m", "on-close=a/*", "immutable=1d", "weekly=77"]).unwrap();
    bench.reopen();
    assert_eq!(bench.main().policy().unwrap(), policy);
    bench.crash();
    assert_eq!(bench.main().policy().unwrap(), policy);
    let layout = bench.store().layout().clone();
    bench.drop_all();
    std::fs::remove_dir_all(&layout.index).unwrap();
    bench.open();
    assert_eq!(bench.main().policy().unwrap(), policy);
    bench.fsck();
}
