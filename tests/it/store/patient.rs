//! A store with files of known content, to be damaged and put back again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::harness::mounting::is_mounted;
use crate::harness::{Mount, Rng, Run, Store, args, eventually, tool};

/// A store with files of known content, unmounted, and a spare copy of it.
pub struct Patient {
    /// The store.
    pub store: Arc<Store>,
    spare: PathBuf,
    /// The files, live and in the snapshot `s`.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Patient {
    /// Sixty small files and a large one, with a snapshot.
    pub fn new(rng: &mut Rng) -> Patient {
        let store = Store::encrypted();
        let mount = store.mount();
        let mut files = Vec::new();
        for i in 0..60 {
            let len = [10, 600, 5000, 100_000, 700_000][i % 5];
            files.push((format!("f{i}"), if i % 2 == 0 { rng.bytes(len) } else { rng.text(len) }));
        }
        files.push(("big".into(), rng.bytes(12 << 20)));
        plant(&mount, &files);
        Patient::rested(store, mount, files)
    }

    /// Few files and two checkpoints: quick to copy and to read.
    pub fn small(rng: &mut Rng) -> Patient {
        let store = Store::encrypted();
        let settings = store.path().join("config.toml");
        let text = fs::read_to_string(&settings).expect("the settings");
        let text = set(&text, "checkpoint_journal_bytes", 1 << 20);
        let text = set(&text, "scrub_bytes_per_second", 1 << 40);
        fs::write(&settings, text).expect("writing the settings");
        let mount = store.mount();
        let checkpoints = || fs::read_dir(store.path().join("checkpoints")).expect("listing").count();
        let mut files = Vec::new();
        for i in 0..200 {
            let name = format!("dir-{}/f{i}", i % 3);
            let len = [300, 40_000, 60_000][i % 3];
            let file = [(name, if i % 2 == 0 { rng.bytes(len) } else { rng.text(len) })];
            plant(&mount, &file);
            files.extend(file);
            if checkpoints() == 2 && i > 20 {
                break;
            }
        }
        eventually("two checkpoints", || checkpoints() == 2);
        files.push(("big".into(), rng.bytes(1 << 20)));
        plant(&mount, &files[files.len() - 1..]);
        Patient::rested(store, mount, files)
    }

    /// With a snapshot and unmounted.
    fn rested(store: Arc<Store>, mount: Mount, files: Vec<(String, Vec<u8>)>) -> Patient {
        mount.snapshot("s");
        mount.umount();
        let spare = store.home().join("spare");
        tool(store.home(), "cp", &args!["-a", store.path(), spare]);
        Patient { store, spare, files }
    }

    /// Puts the undamaged store back.
    pub fn heal(&self) {
        fs::remove_dir_all(self.store.path()).expect("removing the damaged store");
        tool(self.store.home(), "cp", &args!["-a", self.spare, self.store.path()]);
    }

    /// The files of a part of the store, or the part itself if it is a file.
    pub fn part(&self, name: &str) -> Vec<PathBuf> {
        let path = self.store.path().join(name);
        if path.is_file() {
            return vec![path];
        }
        let mut files = Vec::new();
        let mut todo = vec![path];
        while let Some(dir) = todo.pop() {
            let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            for path in entries.map(|e| e.expect("an entry").path()) {
                if path.is_dir() { todo.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        assert!(!files.is_empty(), "{name} holds files");
        files
    }

    /// The largest file of a part.
    pub fn largest(&self, name: &str) -> PathBuf {
        let files = self.part(name);
        files.into_iter().max_by_key(|f| f.metadata().map(|m| m.len()).unwrap_or(0)).expect("a file")
    }

    /// Mounts the damaged store: either refused with one line that names the part, or mounted.
    pub fn try_mount(&self, part: &str) -> Option<Mount> {
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
    pub fn assert_nothing_wrong_is_served(&self, mount: &Mount, what: &str) -> usize {
        self.refused(mount, what).len()
    }

    /// As above; the names of the refused ones, those of the snapshot behind `s:`.
    pub fn refused(&self, mount: &Mount, what: &str) -> Vec<String> {
        let mut refused = Vec::new();
        for (root, prefix) in [(mount.path().to_owned(), ""), (mount.at("s"), "s:")] {
            for (name, content) in &self.files {
                match fs::read(root.join(name)) {
                    Ok(bytes) => assert!(bytes == *content, "{what}: wrong bytes of {name} were served"),
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{what}: {name}: {e}");
                        refused.push(format!("{prefix}{name}"));
                    }
                }
            }
        }
        refused
    }

    /// Every file is as it was written or, since the store went back in time, not there; how many are there.
    pub fn present(&self, mount: &Mount) -> usize {
        let mut there = 0;
        for (name, content) in &self.files {
            match fs::read(mount.path().join(name)) {
                // A record of the file's name may be there and that of its bytes not.
                Ok(bytes) => {
                    assert!(bytes == *content || bytes.len() < content.len(), "wrong bytes of {name}");
                    there += usize::from(bytes == *content);
                }
                Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{name}: {e}"),
            }
        }
        there
    }

    /// As [`Patient::present`], where some may give EIO as well.
    pub fn present_or_refused(&self, mount: &Mount, what: &str) {
        for (name, content) in &self.files {
            match fs::read(mount.path().join(name)) {
                Ok(bytes) => {
                    assert!(
                        bytes == *content || bytes.len() < content.len(),
                        "{what}: wrong bytes of {name}"
                    );
                }
                Err(e) => {
                    let known = matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EIO));
                    assert!(known, "{what}: {name}: {e}");
                }
            }
        }
    }

    /// Runs `fsck` or another command on the store with `--json`; the object it prints last.
    pub fn report(&self, words: &[&str]) -> (Run, Value) {
        let words: Vec<_> = words.iter().map(|w| std::ffi::OsString::from(*w)).collect();
        let run =
            self.store.cli(&[&words[..1], &args![self.store.path()], &words[1..], &args!["--json"]].concat());
        let last = run.stdout.lines().last().map(|l| serde_json::from_str(l).expect("JSON"));
        (run, last.unwrap_or(Value::Null))
    }
}

/// The settings with one of them changed.
pub fn set(text: &str, key: &str, value: u64) -> String {
    let line = |l: &str| if l.starts_with(key) { format!("{key} = {value}\n") } else { format!("{l}\n") };
    text.lines().map(line).collect()
}

/// Writes files and syncs each.
fn plant(mount: &Mount, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = mount.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        let mut file = File::create(path).expect("creating");
        file.write_all(content).and_then(|()| file.sync_all()).expect("writing");
    }
}

/// Changes the byte at `at`, and says from what.
pub fn flip(file: &Path, at: u64, rng: &mut Rng) -> u8 {
    let open = File::options().read(true).write(true).open(file).expect("opening a file of the store");
    let mut byte = [0];
    open.read_exact_at(&mut byte, at).expect("reading the byte");
    let was = byte[0];
    byte[0] ^= 1 + rng.below(255) as u8;
    open.write_all_at(&byte, at).expect("damaging it");
    was
}

/// Cuts a file to a length.
pub fn cut(file: &Path, len: u64) {
    File::options().write(true).open(file).and_then(|f| f.set_len(len)).expect("cutting a file");
}

/// Where the last byte lies that is not zero.
pub fn written(file: &Path) -> u64 {
    let bytes = fs::read(file).expect("reading a file of the store");
    bytes.iter().rposition(|&b| b != 0).expect("it is not empty") as u64
}
