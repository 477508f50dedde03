//! `scrub`: what has rotted is found before somebody needs it, and said by the names of files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use serde_json::Value;

use super::patient::{Patient, flip};
use crate::harness::{Rng, Store, args, eventually};

#[test]
fn a_scrub_of_a_mounted_store_names_files_and_snapshots_until_all_is_well() {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    let left = patient.store.path().join("checkpoints/scrubbing");
    fs::create_dir(&left).expect("what a killed scrub leaves");
    let mount = patient.store.mount();
    assert!(!left.exists(), "it would keep the space of old tables");
    let problems = || mount.status()["problems"].to_string();
    patient.store.ok(&args!["scrub", mount.path()]);
    assert!(!problems().contains("scrub"), "{}", problems());
    let pack = patient.largest("packs");
    let at = pack.metadata().expect("stat").len() / 2;
    let was = flip(&pack, at, &mut rng);
    let run = patient.store.cli(&args!["scrub", mount.path()]);
    assert_eq!(run.code, 1, "{run:?}");
    let path = |when: &str| {
        let line = run.stdout.lines().find_map(|l| l.trim().strip_suffix(when)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no file{when}: {run:?}"))
    };
    let file = path(" (live)");
    assert_eq!(file, path(" (snapshot s)"), "the same file, now and in the snapshot");
    let file = file.strip_prefix("main:").expect("the volume").to_owned();
    let said = problems();
    assert!(said.contains("scrub found 1 damaged chunk") && said.contains(&file), "{said}");
    assert_eq!(mount.status()["health"], Value::from("attention"));
    // It is remembered over a restart.
    let mount = mount.remount();
    let problems = || mount.status()["problems"].to_string();
    assert!(problems().contains("scrub found 1 damaged chunk"), "{}", problems());
    let file = fs::File::options().write(true).open(&pack).expect("opening the pack");
    file.write_all_at(&[was], at).expect("mending it");
    patient.store.ok(&args!["scrub", mount.path()]);
    assert!(!problems().contains("scrub found"), "{}", problems());
}

#[test]
fn a_scrub_works_on_a_store_that_is_not_mounted() {
    let mut rng = Rng::printed();
    let patient = Patient::small(&mut rng);
    patient.store.ok(&args!["scrub", patient.store.path()]);
    let pack = patient.largest("packs");
    flip(&pack, pack.metadata().expect("stat").len() / 2, &mut rng);
    let (run, state) = patient.report(&["scrub"]);
    assert_eq!(run.code, 1, "{run:?}");
    let damaged = state.pointer("/report/damaged").and_then(Value::as_array).expect("a list");
    assert_eq!(damaged.len(), 1, "{state}");
    let files = damaged[0]["files"].as_array().expect("a list");
    assert!(files.iter().any(|f| f["snapshot"] == "s") && files.iter().any(|f| f["live"] == true), "{state}");
}

#[test]
fn a_scrub_can_be_watched_and_cancelled_and_goes_on_without_a_watcher() {
    let store = Store::encrypted();
    let settings = store.path().join("config.toml");
    let text = fs::read_to_string(&settings).expect("the settings");
    // Slow enough that it does not end by itself while this test looks.
    let slow = text.lines().map(|l| match l.starts_with("scrub_bytes_per_second") {
        true => "scrub_bytes_per_second = 100\n".to_owned(),
        false => format!("{l}\n"),
    });
    fs::write(&settings, slow.collect::<String>()).expect("writing the settings");
    let mount = store.mount();
    fs::write(mount.path().join("f"), Rng::printed().bytes(2 << 20)).expect("writing");
    mount.snapshot("s");
    assert_eq!(store.cli(&args!["scrub", mount.path(), "--cancel"]).code, 1, "none runs yet");
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| store.cli(&args!["scrub", mount.path(), "--json"]));
        eventually("the round to begin", || store.cli(&args!["scrub", mount.path(), "--cancel"]).code == 0);
        let run = watcher.join().expect("the watcher");
        assert_eq!(run.code, 3, "{run:?}");
        let first: Value = serde_json::from_str(run.stdout.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["running"], Value::Bool(true), "{first}");
        run.one_line();
    });
    fs::write(mount.path().join("g"), b"x").expect("the mount goes on");
    // A server that has to end does not wait for a round.
    let mut command = store.command(&args!["scrub", mount.path(), "--json"]);
    let mut watcher = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("scrubbing");
    let mut said = BufReader::new(watcher.stdout.take().expect("its output"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(line.contains("\"running\":true"), "{line}");
    let store = mount.umount();
    assert!(!watcher.wait().expect("the watcher").success(), "the round did not come to its end");
    store.ok(&args!["fsck", store.path()]);
}
