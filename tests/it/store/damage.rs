//! Damaged bytes: found and named, never served.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::harness::mounting::is_mounted;
use crate::harness::{Mount, Rng, Store, args, run, tool};

/// A store with files of known content, unmounted, and a spare copy of it.
struct Patient {
    store: Arc<Store>,
    spare: PathBuf,
    files: Vec<(String, Vec<u8>)>,
}

impl Patient {
    fn new(rng: &mut Rng) -> Patient {
        let store = Store::encrypted();
        let mount = store.mount();
        let mut files = Vec::new();
        for i in 0..60 {
            let len = [10, 600, 5000, 100_000, 700_000][i % 5];
            let content = if i % 2 == 0 { rng.bytes(len) } else { rng.text(len) };
            fs::write(mount.path().join(format!("f{i}")), &content).expect("writing");
            files.push((format!("f{i}"), content));
        }
        files.push(("big".into(), rng.bytes(12 << 20)));
        let mut big = File::create(mount.path().join("big")).expect("creating");
        std::io::Write::write_all(&mut big, &files[60].1).and_then(|()| big.sync_all()).expect("writing");
        drop(big);
        mount.snapshot("s");
        mount.umount();
        let spare = store.home().join("spare");
        tool(store.home(), "cp", &args!["-a", store.path(), spare]);
        Patient { store, spare, files }
    }

    /// Puts the undamaged store back.
    fn heal(&self) {
        fs::remove_dir_all(self.store.path()).expect("removing the damaged store");
        tool(self.store.home(), "cp", &args!["-a", self.spare, self.store.path()]);
    }

    /// The files of a part of the store, or the part itself if it is a file.
    fn part(&self, name: &str) -> Vec<PathBuf> {
        let path = self.store.path().join(name);
        if path.is_file() {
            return vec![path];
        }
        let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut files: Vec<PathBuf> =
            entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_file()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} holds files", path.display());
        files
    }

    /// Mounts the damaged store: either refused with one line that names the part, or mounted.
    fn try_mount(&self, part: &str) -> Option<Mount> {
        let refusal = match self.store.try_mount("mnt", &[]) {
            Ok(mount) => return Some(mount),
            Err(refusal) => refusal,
        };
        assert!(!is_mounted(&self.store.home().join("mnt")), "refused and mounted");
        assert!(matches!(refusal.code, 1 | 12), "{refusal:?}");
        let line = refusal.one_line();
        assert!(line.contains(part), "the line names what is damaged, {part}: {line}");
        None
    }

    /// Every file is served as it was written, or refused with EIO. How many were refused.
    fn assert_nothing_wrong_is_served(&self, mount: &Mount, what: &str) -> usize {
        let mut refused = 0;
        for root in [mount.path().to_owned(), mount.at("s")] {
            for (name, content) in &self.files {
                match fs::read(root.join(name)) {
                    Ok(bytes) => assert!(bytes == *content, "{what}: wrong bytes of {name} were served"),
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{what}: {name}: {e}");
                        refused += 1;
                    }
                }
            }
        }
        refused
    }
}

fn flip(file: &Path, at: u64, rng: &mut Rng) {
    let open = File::options().read(true).write(true).open(file).expect("opening a file of the store");
    let mut byte = [0];
    open.read_exact_at(&mut byte, at).expect("reading the byte");
    byte[0] ^= 1 + rng.below(255) as u8;
    open.write_all_at(&byte, at).expect("damaging it");
}

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
        let bytes = fs::read(&file).expect("the journal");
        let written = bytes.iter().rposition(|&b| b != 0).expect("it is not empty") as u64;
        flip(&file, written / 4 + rng.below(written / 2), &mut rng);
        let damaged = patient.try_mount("journal");
        assert!(damaged.is_none(), "{} lost records and was mounted all the same", file.display());
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
        ("packs", &|file, _| shorten(file)),
        ("packs", &|file, rng| flip(file, file.metadata().expect("stat").len() / 2, rng)),
        ("journal", &|file, _| fs::remove_file(file).expect("losing a segment")),
        ("journal", &|file, rng| flip(file, 100, rng)),
        ("keyring", &|file, _| shorten(file)),
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

fn shorten(file: &Path) {
    let len = file.metadata().expect("stat").len();
    File::options().write(true).open(file).and_then(|f| f.set_len(len / 2)).expect("shortening");
}
