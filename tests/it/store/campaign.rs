//! Ten random changes of a byte in every kind of file: each is named by `fsck`, `scrub` or the refusal to open,
//! with the files concerned, and nothing wrong is ever served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::patient::{Patient, flip};
use crate::harness::Rng;

/// Changes of each kind of file.
const ROUNDS: usize = 10;

/// What was said about one change.
struct Said {
    /// All text of `fsck` and `scrub`.
    text: String,
    /// Whether something was found wrong or noted.
    named: bool,
}

fn ask(patient: &Patient) -> Said {
    let mut said = Said { text: String::new(), named: false };
    for command in ["fsck", "scrub"] {
        let (run, report) = patient.report(&[command]);
        assert!(matches!(run.code, 0 | 1 | 12), "{run:?}");
        assert!(!run.stderr.contains("panicked"), "{run:?}");
        let notes = report.pointer("/notes").or(report.pointer("/report/notes"));
        said.named |= run.code != 0 || notes.is_some_and(|n| n != &Value::Array(vec![]));
        said.text += &format!("{}{}", run.stdout, run.stderr);
    }
    said
}

/// The files that a report lists, those of the snapshot `s` behind `s:`.
fn listed(report: &Value) -> Vec<String> {
    let damaged = report.pointer("/damaged").or(report.pointer("/report/damaged")).and_then(Value::as_array);
    let mut names = Vec::new();
    for file in damaged.into_iter().flatten().flat_map(|d| d["files"].as_array().into_iter().flatten()) {
        let path = file["path"].as_str().expect("a path").trim_start_matches('/');
        match file["snapshot"].as_str() {
            Some(snapshot) => names.push(format!("{snapshot}:{path}")),
            None if file["live"] == Value::Bool(true) => names.push(path.to_owned()),
            None => {}
        }
    }
    names.sort();
    names.dedup();
    names
}

/// The report names exactly the files that cannot be read.
pub fn assert_named(report: &Value, refused: &[String], what: &str) {
    let mut refused = refused.to_vec();
    refused.sort();
    assert_eq!(listed(report), refused, "{what}: left are the files named, right those that give EIO");
}

/// Changes a byte of a file that `choose` picks, `ROUNDS` times, each in an otherwise sound store.
fn campaign(part: &str, choose: impl Fn(&Path) -> bool, after: impl Fn(&Patient, &PathBuf, &Said, &str)) {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    for round in 0..ROUNDS {
        let mut files = patient.part(part);
        files.retain(|f| choose(f) && f.metadata().is_ok_and(|m| m.len() > 0));
        let file = rng.pick(&files).clone();
        let at = rng.below(file.metadata().expect("stat").len());
        flip(&file, at, &mut rng);
        let what = format!("round {round}: byte {at} of {}", file.display());
        let said = ask(&patient);
        after(&patient, &file, &said, &what);
        if let Some(mount) = patient.try_mount("") {
            if mount.status()["read_only"] == Value::Bool(true) {
                patient.present_or_refused(&mount, &what);
            } else {
                patient.assert_nothing_wrong_is_served(&mount, &what);
            }
            mount.umount();
        }
        patient.heal();
    }
}

fn must_be_named(said: &Said, what: &str) {
    assert!(said.named, "{what} was not noticed: {}", said.text);
}

fn is_table(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "sst")
}

fn is_list(file: &Path) -> bool {
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name == "CURRENT" || name.starts_with("MANIFEST")
}

#[test]
fn every_change_of_a_journal_segment_is_named() {
    campaign(
        "journal",
        |_| true,
        |_, file, said, what| {
            must_be_named(said, what);
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            assert!(said.text.contains(&name), "{what}: the segment is named: {}", said.text);
        },
    );
}

#[test]
fn every_change_of_a_pack_is_named_with_the_files_concerned() {
    campaign(
        "packs",
        |_| true,
        |patient, _, said, what| {
            must_be_named(said, what);
            let (_, by_fsck) = patient.report(&["fsck"]);
            let (_, by_scrub) = patient.report(&["scrub"]);
            let mount = patient.store.mount();
            let refused = patient.refused(&mount, what);
            mount.umount();
            assert_named(&by_fsck, &refused, what);
            assert_named(&by_scrub, &refused, what);
        },
    );
}

#[test]
fn every_change_of_the_keyring_is_named() {
    campaign(
        "keyring",
        |_| true,
        |_, _, said, what| {
            must_be_named(said, what);
            assert!(said.text.contains("keyring"), "{what}: {}", said.text);
        },
    );
}

#[test]
fn every_change_of_settings_and_ids_is_named() {
    for part in ["config.toml", "node", "store"] {
        campaign(
            part,
            |_| true,
            |patient, _, said, what| {
                must_be_named(said, what);
                let path = patient.store.path().join(part).display().to_string();
                assert!(said.text.contains(&path), "{what}: {}", said.text);
            },
        );
    }
}

#[test]
fn an_edit_of_the_settings_is_told_until_the_store_is_opened_with_it() {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    let path = patient.store.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("reading");
    fs::write(&path, format!("# mine\n{text}")).expect("writing");
    for _ in 0..2 {
        let (run, report) = patient.report(&["fsck"]);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(report["notes"].to_string().contains("config.toml has changed"), "{report}");
    }
    patient.store.mount().umount();
    let (run, report) = patient.report(&["fsck"]);
    assert!(run.code == 0 && report["notes"] == Value::Array(vec![]), "{report}");
}

/// The file and nothing else is said to be changed, or what RocksDB could not read for it.
fn named_as_index(said: &Said, what: &str) {
    must_be_named(said, what);
    assert!(said.text.contains("index"), "{what}: {}", said.text);
}

#[test]
fn every_change_of_an_index_table_is_named() {
    campaign("index", is_table, |_, _, said, what| named_as_index(said, what));
}

#[test]
fn every_change_of_the_index_s_lists_is_named() {
    campaign("index", is_list, |_, _, said, what| named_as_index(said, what));
}

#[test]
fn every_change_of_a_checkpoint_is_named() {
    campaign(
        "checkpoints",
        |f| is_table(f) || is_list(f),
        |_, file, said, what| {
            must_be_named(said, what);
            let checkpoint = file.parent().and_then(Path::file_name).expect("a checkpoint").to_string_lossy();
            assert!(said.text.contains(&*checkpoint), "{what}: {}", said.text);
        },
    );
}
