//! Opening a store of which something does not hold: one test for each row of the table in
//! docs/GUARANTEES.md that no other file has.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::patient::{Patient, cut, flip, written};
use crate::harness::{Mount, Rng, Store, args, eventually, tool};

/// The store opens read-only, and says so everywhere: on the command line, in `status`, to programs.
fn mounts_read_only(patient: &Patient, because: &str) -> Mount {
    let mount = patient.store.mount();
    let status = mount.status();
    assert_eq!((&status["read_only"], &status["health"]), (&Value::Bool(true), &"failed".into()), "{status}");
    assert!(status["problems"].to_string().contains(because), "{because}: {status}");
    let denied = fs::write(mount.path().join("new"), b"x").expect_err("writing");
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
    let dir = mount.path().to_owned();
    mount.umount();
    let run = patient.store.cli(&args!["mount", patient.store.path(), dir]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("read-only") && run.stderr.contains(because), "mount warns: {run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "in one line: {run:?}");
    patient.store.ok(&args!["umount", dir]);
    patient.store.mount()
}

/// The index as it was when the store was made: behind everything.
fn forget_index(patient: &Patient) {
    for part in ["index", "checkpoints"] {
        fs::remove_dir_all(patient.store.path().join(part)).expect("removing");
    }
    fs::create_dir(patient.store.path().join("checkpoints")).expect("an empty folder");
}

#[test]
fn a_torn_end_of_the_last_segment_is_cut_off() {
    let patient = Patient::new(&mut Rng::printed());
    forget_index(&patient);
    let file = patient.part("journal").pop().expect("a segment");
    cut(&file, written(&file) - 5);
    let (run, report) = patient.report(&["fsck"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(report["notes"].to_string().contains("is torn"), "{report}");
    let mount = patient.store.mount();
    assert_eq!(mount.status()["read_only"], Value::Bool(false));
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "torn"), 0);
    fs::write(mount.path().join("new"), b"x").expect("it can be written");
}

#[test]
fn damage_in_the_middle_that_the_index_lacks_shows_the_state_before_it() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    forget_index(&patient);
    let file = patient.part("journal").remove(0);
    let before = fs::read(&file).expect("reading");
    flip(&file, written(&file) / 2, &mut rng);
    let mount = mounts_read_only(&patient, "damaged journal");
    let there = patient.present(&mount);
    assert!(there > 0 && there < patient.files.len(), "{there} files are shown");
    mount.umount();
    let after = fs::read(&file).expect("reading");
    assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 1, "nothing was cut or mended");
}

#[test]
fn damage_in_the_middle_that_the_index_has_shows_everything() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    let file = patient.part("journal").remove(0);
    flip(&file, written(&file) / 2, &mut rng);
    let mount = mounts_read_only(&patient, "what is shown is the state that the index has");
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "damaged journal"), 0);
}

#[test]
fn a_store_of_which_nothing_can_be_shown_is_refused() {
    let mut rng = Rng::printed();
    let patient = Patient::new(&mut rng);
    forget_index(&patient);
    let file = patient.part("journal").remove(0);
    flip(&file, 20, &mut rng);
    let before = fs::read(&file).expect("reading");
    let dir = patient.store.directory("m");
    let said = patient.store.refused(1, &args!["mount", patient.store.path(), dir]);
    assert!(said.contains("damaged journal") && said.contains("nothing is left"), "{said}");
    assert!(fs::read(&file).expect("reading") == before, "nothing was changed");
}

#[test]
fn an_index_ahead_of_the_journal_is_the_better_witness() {
    let patient = Patient::new(&mut Rng::printed());
    let file = patient.part("journal").pop().expect("a segment");
    cut(&file, written(&file) / 2);
    let mount = mounts_read_only(&patient, "the journal ends here");
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "short journal"), 0);
}

#[test]
fn a_pack_that_is_shorter_or_gone_costs_the_files_that_need_it_and_they_are_named() {
    let patient = Patient::new(&mut Rng::printed());
    for harm in ["shorter", "gone"] {
        let pack = patient.largest("packs");
        match harm {
            "shorter" => cut(&pack, pack.metadata().expect("stat").len() / 2),
            _ => fs::remove_file(&pack).expect("losing a pack"),
        }
        let (run, report) = patient.report(&["fsck"]);
        assert_eq!(run.code, 1, "{run:?}");
        let mount = patient.store.mount();
        assert_eq!(mount.status()["read_only"], Value::Bool(false));
        let refused = patient.refused(&mount, harm);
        assert!(!refused.is_empty());
        super::campaign::assert_named(&report, &refused, harm);
        fs::write(mount.path().join("new"), b"x").expect("all else goes on");
        mount.umount();
        patient.heal();
    }
}

#[test]
fn chunks_that_replay_finds_in_no_pack_leave_the_store_read_only() {
    let patient = Patient::new(&mut Rng::printed());
    forget_index(&patient);
    fs::remove_file(patient.largest("packs")).expect("losing a pack");
    let mount = mounts_read_only(&patient, "are in no pack");
    assert!(patient.assert_nothing_wrong_is_served(&mount, "lost pack") > 0);
}

#[test]
fn an_index_that_does_not_open_is_rebuilt() {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    fs::write(patient.store.path().join("index/CURRENT"), "MANIFEST-999999\n").expect("writing");
    let (run, report) = patient.report(&["fsck"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(report["problems"].to_string().contains("what is shown was rebuilt"), "{report}");
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "rebuilt"), 0);
    let status = mount.status();
    assert!(status["problems"].to_string().contains("the index was rebuilt"), "{status}");
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let patient = Patient::small(&mut Rng::printed());
    fs::remove_dir_all(patient.store.path().join("index")).expect("removing");
    let mut checkpoints: Vec<_> = fs::read_dir(patient.store.path().join("checkpoints"))
        .expect("listing")
        .map(|e| e.expect("an entry").path())
        .collect();
    checkpoints.sort();
    let newest = checkpoints.pop().expect("a checkpoint");
    fs::write(newest.join("CURRENT"), "MANIFEST-999999\n").expect("writing");
    let (run, _) = patient.report(&["fsck"]);
    assert!(run.code == 1 && run.stdout.contains("checkpoint"), "{run:?}");
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "older checkpoint"), 0);
    assert_eq!(mount.status()["read_only"], Value::Bool(false));
}

#[test]
fn a_keyring_of_another_store_is_refused() {
    let mut rng = Rng::printed();
    let (patient, other) = (Patient::new(&mut rng), Patient::new(&mut rng));
    fs::copy(other.store.path().join("keyring"), patient.store.path().join("keyring")).expect("copying");
    for line in [
        args!["mount", patient.store.path(), patient.store.directory("m")].to_vec(),
        args!["fsck", patient.store.path()].to_vec(),
    ] {
        let said = patient.store.refused(1, &line);
        assert!(said.contains("keyring") && said.contains("another store"), "{said}");
    }
}

#[test]
fn an_index_of_another_store_is_replaced() {
    let mut rng = Rng::printed();
    let (patient, other) = (Patient::new(&mut rng), Patient::new(&mut rng));
    let index = patient.store.path().join("index");
    fs::remove_dir_all(&index).expect("removing");
    tool(patient.store.home(), "cp", &args!["-a", other.store.path().join("index"), index]);
    let mount = patient.store.mount();
    assert_eq!(patient.assert_nothing_wrong_is_served(&mount, "foreign index"), 0);
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn halves_of_a_store_that_went_two_ways_are_not_mixed() {
    // A copy goes on by itself; then the first store gets the copy's index: same store, same chain for a
    // while, another one after it.
    let patient = Patient::new(&mut Rng::printed());
    let work = |text: &str, files: usize| {
        let mount = patient.store.mount();
        for i in 0..files {
            fs::write(mount.path().join(format!("{text}-{i}")), text).expect("writing");
        }
        mount.umount();
    };
    work("copy", 20);
    let index = patient.store.home().join("index of the copy");
    tool(patient.store.home(), "cp", &args!["-a", patient.store.path().join("index"), index]);
    patient.heal();
    // So many more that its journal is the longer one, whatever either wrote down by itself meanwhile. An index that is
    // ahead of the journal is another case: the journal has lost its end.
    work("first", 100);
    let own = patient.store.path().join("index");
    fs::remove_dir_all(&own).expect("removing");
    tool(patient.store.home(), "cp", &args!["-a", index, own]);
    let mount = patient.store.mount();
    assert_eq!(patient.refused(&mount, "mixed"), Vec::<String>::new());
    assert_eq!(fs::read(mount.path().join("first-19")).expect("reading"), b"first");
    assert!(!mount.path().join("copy-0").exists(), "nothing of the other way is shown");
    assert!(mount.status()["problems"].to_string().contains("two halves"), "{}", mount.status());
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

#[test]
fn settings_and_ids_that_do_not_read_are_refused_by_name() {
    let patient = Patient::new(&mut Rng::printed());
    let dir = patient.store.directory("m");
    let id = fs::read_to_string(patient.store.path().join("store")).expect("reading");
    let another = format!("{}\n", &id.trim_end()[..id.trim_end().len() - 1]);
    let versions = ["rewindfs-store 9", "rewindfs-store 0"].map(|v| id.replacen("rewindfs-store 2", v, 1));
    for (name, content, says) in [
        ("config.toml", "zstd_level = \n", "config.toml"),
        ("config.toml", "zstd_level = 99\n", "zstd_level"),
        ("node", "no id\n", "node"),
        ("store", "something else\n", "store"),
        ("store", another.as_str(), "store"),
        ("store", versions[0].as_str(), "store format 9"),
        ("store", versions[1].as_str(), "store format 0"),
    ] {
        let path = patient.store.path().join(name);
        let whole = fs::read(&path).expect("reading");
        fs::write(&path, content).expect("writing");
        for line in
            [args!["mount", patient.store.path(), dir].to_vec(), args!["fsck", patient.store.path()].to_vec()]
        {
            let said = patient.store.refused(1, &line);
            assert!(said.contains(says), "{name} {content:?}: {said}");
        }
        fs::write(&path, whole).expect("writing");
    }
    patient.store.mount();
}

#[test]
fn what_waits_in_memory_is_left_alone_until_the_store_can_be_written_again() {
    let store = Store::encrypted();
    let mount = store.mount();
    let path = mount.path().join("f");
    fs::write(&path, vec![1; 100_000]).expect("writing");
    let mount = mount.remount();
    let file = OpenOptions::new().write(true).open(&path).expect("opening");
    file.write_all_at(&[2; 5000], 1000).expect("writing");
    mount.crash();
    let segment = store.path().join("journal").read_dir().expect("listing").next().expect("a segment");
    let segment = segment.expect("an entry").path();
    flip(&segment, 4096 + 100, &mut Rng::printed());

    let mount = store.mount();
    let waiting = || {
        let status = mount.status();
        assert_eq!(status["read_only"], Value::Bool(true), "{status}");
        assert!(status["problems"].to_string().contains("5000 bytes that were acknowledged"), "{status}");
    };
    waiting();
    let server = mount.server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
    let committed = fs::read(&path).expect("the next server answers");
    assert!(committed == [1; 100_000], "what is shown is what the journal and the index have");
    waiting();
    mount.umount();

    let said = store.ok(&args!["fsck", store.path(), "--repair", "--yes"]);
    assert!(said.contains("step 1: move the journal aside"), "{said}");
    let mount = store.mount();
    let whole = fs::read(&path).expect("reading");
    assert!(whole[1000..6000] == [2; 5000] && whole[6000..] == [1; 94_000], "it was taken up");
    assert_eq!(mount.status()["read_only"], Value::Bool(false));
    drop(mount);
}
