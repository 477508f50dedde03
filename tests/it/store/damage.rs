//! Damaged bytes: found and named, never served.

use std::fs;
use std::path::Path;

use super::patient::{Patient, cut, flip, written};
use crate::harness::{Rng, args, run};

/// Flips one byte of a part, `rounds` times, each in an otherwise sound store. How often it was noticed.
fn rounds(part: &str, rounds: usize) -> usize {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    let mut noticed = 0;
    for round in 0..rounds {
        let files = patient.part(part);
        let file = rng.pick(&files).clone();
        let len = file.metadata().expect("stat").len();
        // The beginning, the end and everything between.
        let at = match round % 4 {
            0 => rng.below(len.min(128)),
            1 => len - 1 - rng.below(len.min(128)),
            _ => rng.below(len),
        };
        flip(&file, at, &mut rng);
        let what = format!("byte {at} of {} damaged", file.display());
        match patient.try_mount(part) {
            None => noticed += 1,
            Some(mount) => noticed += usize::from(patient.assert_nothing_wrong_is_served(&mount, &what) > 0),
        }
        patient.heal();
    }
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "healed"), 0, "the spare copy is sound");
    noticed
}

#[test]
fn a_damaged_byte_in_a_pack_is_never_served() {
    let noticed = rounds("packs", 16);
    assert!(noticed >= 4, "most bytes of a pack are data, but only {noticed} of 16 damages were noticed");
}

#[test]
fn a_damaged_byte_in_the_journal_is_never_served() {
    rounds("journal", 16);
}

#[test]
fn a_damaged_byte_in_the_keyring_never_opens_to_garbage() {
    let noticed = rounds("keyring", 12);
    assert!(noticed >= 6, "only {noticed} of 12 damages to the keyring were noticed");
}

#[test]
fn damage_in_the_journal_is_not_taken_for_its_end_when_the_index_is_rebuilt() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    for _ in 0..8 {
        fs::remove_dir_all(patient.store.path().join("index")).expect("deleting the index");
        let checkpoints = patient.store.path().join("checkpoints");
        for checkpoint in fs::read_dir(checkpoints).expect("the checkpoints") {
            fs::remove_dir_all(checkpoint.expect("a checkpoint").path()).expect("deleting a checkpoint");
        }
        // The middle of what was written: more records follow, so this cannot be a torn tail.
        let file = patient.part("journal").remove(0);
        let end = written(&file);
        flip(&file, end / 4 + rng.below(end / 2), &mut rng);
        let damaged = patient.try_mount("journal").expect("what lies before the damage can be shown");
        let status = damaged.status();
        assert_eq!(status["read_only"], serde_json::Value::Bool(true), "{status}");
        assert!(status["problems"].to_string().contains("damaged journal"), "{status}");
        assert!(patient.present(&damaged) < patient.files.len(), "records behind the damage are not shown");
        damaged.umount();
        patient.heal();
    }
}

#[test]
fn fsck_finds_a_sound_store_clean() {
    let patient = Patient::new(&mut Rng::printed());
    patient.store.ok(&args!["fsck", patient.store.path()]);
    let report = patient.store.json(&args!["fsck", patient.store.path()]);
    assert_eq!(report[0]["clean"], serde_json::Value::Bool(true), "{report:?}");
    // And through the server, while it is mounted and after changes.
    let mount = patient.store.mount();
    fs::remove_file(mount.path().join("big")).expect("removing");
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "s"]);
    mount.store().ok(&args!["fsck", patient.store.path()]);
    mount.umount().ok(&args!["fsck", patient.store.path()]);
}

#[test]
fn fsck_finds_damage_and_names_the_file() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path, &mut Rng));
    let harms: [Harm; 6] = [
        ("packs", &|file, _| fs::remove_file(file).expect("losing a pack")),
        ("packs", &|file, _| cut(file, file.metadata().expect("stat").len() / 2)),
        ("packs", &|file, rng| {
            flip(file, file.metadata().expect("stat").len() / 2, rng);
        }),
        ("journal", &|file, _| fs::remove_file(file).expect("losing a segment")),
        ("journal", &|file, rng| {
            flip(file, 100, rng);
        }),
        ("keyring", &|file, _| cut(file, file.metadata().expect("stat").len() / 2)),
    ];
    for (i, (part, harm)) in harms.iter().enumerate() {
        // The largest file of that part.
        let files = patient.part(part);
        let file = files.iter().max_by_key(|f| f.metadata().map(|m| m.len()).unwrap_or(0)).expect("a file");
        harm(file, &mut rng);
        let run = run(&mut patient.store.command(&args!["fsck", patient.store.path()]));
        assert!(run.code == 1 || run.code == 12, "harm {i} to {}: {run:?}", file.display());
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).expect("a name");
        let told = format!("{}{}", run.stdout, run.stderr);
        assert!(told.contains(&name), "{name}: {told}");
        run.one_line();
        patient.heal();
    }
    patient.store.ok(&args!["fsck", patient.store.path()]);
}
