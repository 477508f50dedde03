//! `fsck --repair`: shows what it would do, does it, and keeps what it takes away.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::patient::{Patient, cut, flip, written};
use crate::harness::{Rng, args};

/// The folders that repairs left.
fn kept(patient: &Patient) -> Vec<PathBuf> {
    let entries = fs::read_dir(patient.store.path()).expect("listing").map(|e| e.expect("an entry").path());
    entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("repair-"))).collect()
}

/// Asks for the plan, checks that nothing happens without agreement, and repairs. The exit code.
fn repair(patient: &Patient, expected_step: &str) -> i32 {
    let (run, plan) = patient.report(&["fsck", "--repair", "--dry-run"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(plan["steps"].to_string().contains(expected_step), "{expected_step}: {plan}");
    let said = patient.store.refused(2, &args!["fsck", patient.store.path(), "--repair"]);
    assert!(said.contains("--yes"), "{said}");
    assert!(kept(patient).is_empty(), "nothing is done without agreement");
    let run = patient.store.cli(&args!["fsck", patient.store.path(), "--repair", "--yes"]);
    assert!(run.stdout.contains(expected_step), "{run:?}");
    assert_eq!(kept(patient).len(), 1, "{run:?}");
    run.code
}

fn forget_index(patient: &Patient) {
    for part in ["index", "checkpoints"] {
        fs::remove_dir_all(patient.store.path().join(part)).expect("removing");
    }
    fs::create_dir(patient.store.path().join("checkpoints")).expect("an empty folder");
}

/// It can be written, and what is written is there the next time.
fn assert_goes_on(patient: &Patient) {
    let mount = patient.store.mount();
    assert_eq!(mount.status()["read_only"], Value::Bool(false), "{}", mount.status());
    fs::write(mount.path().join("new"), b"after the repair").expect("writing");
    let mount = mount.remount();
    assert_eq!(fs::read(mount.path().join("new")).expect("reading"), b"after the repair");
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn a_journal_damaged_in_the_middle_is_cut_there_and_its_bytes_are_kept() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    forget_index(&patient);
    let file = patient.part("journal").remove(0);
    flip(&file, written(&file) / 2, &mut rng);
    let before = fs::read(&file).expect("reading");
    assert_eq!(repair(&patient, "end the journal before record"), 0);
    let copy = kept(&patient).remove(0).join(file.file_name().expect("a name"));
    assert!(fs::read(copy).expect("the copy") == before, "the segment is kept as it was");
    let mount = patient.store.mount();
    assert!(patient.present(&mount) > 0);
    mount.umount();
    assert_goes_on(&patient);
}

#[test]
fn nothing_is_lost_of_a_damaged_journal_whose_records_the_index_has() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    let file = patient.part("journal").remove(0);
    flip(&file, written(&file) / 2, &mut rng);
    assert_eq!(repair(&patient, "the index has all before"), 0);
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "repaired"), 0);
    mount.umount();
    assert_goes_on(&patient);
    // The journal goes on where the index is, and so does what is rebuilt from the checkpoint.
    fs::remove_dir_all(patient.store.path().join("index")).expect("removing");
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "rebuilt"), 0);
}

#[test]
fn a_journal_that_ends_before_its_index_begins_anew_behind_it() {
    let patient = Patient::new(&mut Rng::printed());
    let file = patient.part("journal").pop().expect("a segment");
    cut(&file, written(&file) / 2);
    assert_eq!(repair(&patient, "begin a new one at record"), 0);
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "repaired"), 0);
    mount.umount();
    assert_goes_on(&patient);
}

#[test]
fn an_index_with_damaged_rows_is_built_anew() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    let tables = patient.part("index").into_iter().filter(|f| f.extension().is_some_and(|e| e == "sst"));
    let table = tables.max_by_key(|f| f.metadata().map_or(0, |m| m.len())).expect("a table");
    flip(&table, 100, &mut rng);
    assert_eq!(repair(&patient, "build it anew"), 0);
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "rebuilt"), 0);
    mount.umount();
    assert_goes_on(&patient);
}

#[test]
fn a_chunk_given_up_comes_back_when_its_bytes_are_written_again() {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    let pack = patient.largest("packs");
    flip(&pack, pack.metadata().expect("stat").len() / 2, &mut rng);
    assert_eq!(repair(&patient, "count 1 unreadable chunks as lost"), 1, "the file is still not readable");
    let (run, report) = patient.report(&["fsck"]);
    assert_eq!(run.code, 1, "{run:?}");
    let mount = patient.store.mount();
    let refused = patient.refused(&mount, "given up");
    super::campaign::assert_named(&report, &refused, "it stays listed");
    let (_, content) = patient.files.iter().find(|(name, _)| *name == refused[0]).expect("one of the files");
    fs::write(mount.path().join("again"), content).expect("writing");
    mount.store().ok(&args!["snapshot", "create", mount.path(), "t"]);
    assert_eq!(patient.refused(&mount, "written again"), Vec::<String>::new());
    let store = mount.umount();
    // What lies damaged in the pack is nobody's any more.
    let (run, report) = patient.report(&["fsck"]);
    assert!(report["damaged"].as_array().is_some_and(Vec::is_empty), "{run:?}");
    drop(store);
}

#[test]
fn files_of_a_lost_pack_can_be_removed_after_the_repair() {
    let patient = Patient::new(&mut Rng::printed());
    forget_index(&patient);
    fs::remove_file(patient.largest("packs")).expect("losing a pack");
    assert_eq!(repair(&patient, "count the chunks as lost"), 1);
    let mount = patient.store.mount();
    assert_eq!(mount.status()["read_only"], Value::Bool(false), "{}", mount.status());
    let refused = patient.refused(&mount, "lost pack");
    assert!(!refused.is_empty());
    for name in refused.iter().filter(|n| !n.starts_with("s:")) {
        fs::remove_file(mount.path().join(name)).expect("removing");
    }
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "s"]);
    fs::write(mount.path().join("new"), b"x").expect("writing");
    mount.umount();
}

#[test]
fn a_damaged_checkpoint_is_moved_aside() {
    let patient = Patient::small(&mut Rng::printed());
    let list = patient.part("checkpoints").into_iter().find(|f| f.ends_with("CURRENT")).expect("a list");
    fs::write(&list, "MANIFEST-999999\n").expect("writing");
    assert_eq!(repair(&patient, "move the checkpoint"), 0);
    assert_goes_on(&patient);
}

#[test]
fn a_sound_store_needs_no_repair_and_a_mounted_one_is_left_alone() {
    let patient = Patient::small(&mut Rng::printed());
    let said = patient.store.ok(&args!["fsck", patient.store.path(), "--repair", "--yes"]);
    assert!(said.contains("there is nothing to repair"), "{said}");
    assert!(kept(&patient).is_empty());
    let mount = patient.store.mount();
    patient.store.refused(11, &args!["fsck", patient.store.path(), "--repair", "--yes"]);
    mount.umount();
}

/// Rot in a Bloom filter, say. Here the sum is changed instead of the table, which comes to the same.
#[test]
fn a_table_that_changed_where_no_row_lies_is_written_anew() {
    let patient = Patient::small(&mut Rng::printed());
    let sums = patient.store.path().join("index/sums");
    let text = fs::read_to_string(&sums).expect("the sums");
    let body = text.rsplit_once("end ").expect("their end").0;
    let table = body.lines().find(|line| line.ends_with(".sst")).expect("a table");
    let first = if table.starts_with('0') { "1" } else { "0" };
    let changed = body.replace(table, &format!("{first}{}", &table[1..]));
    fs::write(&sums, format!("{changed}end {}\n", blake3::hash(changed.as_bytes()))).expect("writing");
    let name = table.rsplit_once(' ').expect("its name").1;
    let (run, report) = patient.report(&["fsck"]);
    assert!(run.code == 1 && report["problems"].to_string().contains(name), "{run:?}");
    assert_eq!(repair(&patient, "write the tables of the index anew"), 0);
    assert_goes_on(&patient);
}
