//! Power cuts of the whole machine, RocksDB and ext4 included: the store lies on a disk of ours, which forgets
//! what was not flushed. `tools/powercut` runs many rounds.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use crate::harness::sys::names;
use crate::harness::{Rng, args, setting, within};

mod image;
mod machine;
mod process;
mod writers;

use image::Keep;
use machine::Machine;
use writers::Writers;

/// Cuts after which the disk is made new, so that it does not fill.
const CUTS_PER_DISK: u64 = 10;

/// How ext4 is mounted by default.
const ORDERED: &str = "data=ordered";

/// The rig itself: what ext4 flushes reaches the disk as a flush, and what it does not is lost.
#[test]
fn an_fsync_on_the_disk_below_is_a_flush_and_the_rest_is_lost() {
    let mut machine = Machine::new();
    machine.power_on(ORDERED);
    let (synced, unsynced) = (machine.ext4().join("synced"), machine.ext4().join("unsynced"));
    let before = machine.disk.stats();
    let mut file = File::create(&synced).expect("creating");
    file.write_all(&[7; 300_000]).and_then(|()| file.sync_all()).expect("fsync");
    let after = machine.disk.stats();
    assert!(after.flushes > before.flushes && after.writes > before.writes, "{before:?}, {after:?}");
    fs::write(&unsynced, [8; 300_000]).expect("writing");
    machine.disk.cut(Keep::Nothing);
    drop(file);
    machine.power_off(None);
    machine.power_on(ORDERED);
    assert_eq!(fs::read(&synced).expect("it was synced"), [7; 300_000]);
    let left = fs::read(&unsynced).unwrap_or_default();
    assert!(left.is_empty(), "{} bytes came through that nobody flushed", left.len());
}

fn any_keep(rng: &mut Rng) -> Keep {
    match rng.below(8) {
        0 => Keep::Nothing,
        1 => Keep::All,
        _ => Keep::Some(rng.next() >> 1),
    }
}

fn any_mode(rng: &mut Rng) -> &'static str {
    [ORDERED, "data=writeback"][rng.below(2) as usize]
}

/// Mounts, and the power goes meanwhile, or right behind it.
fn interrupt_the_recovery(machine: &mut Machine, rng: &mut Rng) -> Result<(), String> {
    let keep = any_keep(rng);
    machine.disk.arm(rng.below(60), keep);
    let run = machine.store.try_mount("mnt", &[]);
    match run {
        Err(refused) if !machine.disk.stats().off => {
            return Err(format!("the store does not open: {}", refused.stderr));
        }
        _ => machine.disk.cut(keep),
    }
    machine.power_off(run.ok());
    machine.power_on(any_mode(rng));
    Ok(())
}

/// One round: mount, look, write, and the power goes. Behind it the machine is on again.
fn write_until_the_power_goes(
    machine: &mut Machine,
    writers: &mut Writers,
    rng: &mut Rng,
) -> Result<(), String> {
    if rng.below(4) == 0 {
        interrupt_the_recovery(machine, rng)?;
    }
    let run = machine.store.try_mount("mnt", &[]);
    let mount = run.map_err(|refused| format!("the store does not open: {}", refused.stderr))?;
    judge(machine, &mount, writers)?;
    let root = mount.path().to_owned();
    writers.run(&root, rng, |rng| {
        std::thread::sleep(Duration::from_millis(50 + rng.below(900)));
        let keep = any_keep(rng);
        // In the middle of whatever is written then; now, if nothing is.
        machine.disk.arm(rng.below(80), keep);
        if !within(Duration::from_secs(3), || machine.disk.stats().off) {
            machine.disk.cut(keep);
        }
        machine.power_off(Some(mount));
    });
    let beneath = names(&root).map_err(|e| format!("the mountpoint: {e}"))?;
    assert!(beneath.is_empty(), "the writers wrote beneath the mount: {beneath:?}");
    machine.power_on(any_mode(rng));
    Ok(())
}

/// Opened by itself and writable, all that was promised there, nothing wrong in the structure.
fn judge(machine: &Machine, mount: &crate::harness::Mount, writers: &mut Writers) -> Result<(), String> {
    let status = mount.status();
    if status["read_only"] != false {
        return Err(format!("it came back read-only: {status}"));
    }
    writers.check(mount.path())?;
    let fsck = machine.store.cli(&args!["fsck", machine.store.path()]);
    if fsck.code != 0 {
        return Err(format!("fsck ends with {}: {}{}", fsck.code, fsck.stdout, fsck.stderr));
    }
    Ok(())
}

#[test]
fn what_was_promised_survives_power_cuts_of_the_whole_machine() {
    let rounds = setting("REWINDFS_POWER_ROUNDS", 6);
    let mut rng = Rng::printed();
    let (mut machine, mut writers) = (Machine::new(), Writers::default());
    let (start, mut disks, mut files, mut log) = (Instant::now(), 1, 0, 0);
    machine.power_on(ORDERED);
    for round in 0..rounds {
        if round % CUTS_PER_DISK == CUTS_PER_DISK - 1 || machine.is_filling() {
            machine.renew();
            machine.power_on(ORDERED);
            writers = Writers::default();
            disks += 1;
        }
        write_until_the_power_goes(&mut machine, &mut writers, &mut rng)
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        let promised = writers.promised();
        (files, log) = (files.max(promised.0), log.max(promised.1));
        println!("round {round} after {:?}: promised files, log, snapshots {promised:?}", start.elapsed());
    }
    let mount = machine.store.mount();
    judge(&machine, &mount, &mut writers).unwrap_or_else(|e| panic!("after the last round: {e}"));
    mount.umount();
    println!("{rounds} power cuts on {disks} disks in {:?}", start.elapsed());
    assert!(files > 0 && log > 0, "nothing was ever promised: {files} files, {log} of the log");
}

/// The canary: on a disk whose flushes do nothing, the same checks must fail.
#[test]
fn a_disk_that_lies_about_flushes_is_caught() {
    let mut rng = Rng::printed();
    let (mut machine, mut writers) = (Machine::new(), Writers::default());
    machine.power_on(ORDERED);
    machine.disk.lie();
    let mount = machine.store.mount();
    let root = mount.path().to_owned();
    writers.run(&root, &mut rng, |_| {
        std::thread::sleep(Duration::from_millis(700));
        machine.disk.cut(Keep::Nothing);
        machine.power_off(Some(mount));
    });
    let (files, log, _) = writers.promised();
    assert!(files > 0 || log > 0, "nothing was promised");
    machine.power_on(ORDERED);
    let judged = machine.store.try_mount("mnt", &[]).map(|mount| {
        let judged = judge(&machine, &mount, &mut writers);
        mount.umount();
        judged
    });
    let caught = match judged {
        Ok(Ok(())) => panic!("{files} files and {log} of the log were promised, lost, and not missed"),
        Ok(Err(e)) => e,
        Err(refused) => refused.stderr,
    };
    println!("caught: {caught}");
}
