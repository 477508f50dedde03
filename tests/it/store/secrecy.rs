//! What a thief of the store's directory can read: nothing. And that the search would find it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::harness::sys::set_xattr;
use crate::harness::{Rng, Store, args};

/// Words that exist nowhere else, by what they are used for.
struct Markers(Vec<(&'static str, String)>);

impl Markers {
    fn new() -> Markers {
        let mut rng = Rng::printed();
        let uses = [
            "file name",
            "directory name",
            "renamed file",
            "deleted file",
            "small content",
            "big content",
            "synced content",
            "deleted content",
            "link target",
            "link name",
            "xattr name",
            "xattr value",
        ];
        Markers(uses.iter().map(|what| (*what, rng.marker())).collect())
    }

    fn get(&self, what: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| *name == what);
        &found.unwrap_or_else(|| panic!("no marker for {what}")).1
    }

    /// Those whose bytes are in some file of these trees.
    fn found_in(&self, places: &[PathBuf]) -> Vec<String> {
        let mut found = Vec::new();
        for file in places.iter().flat_map(|place| files(place)) {
            let bytes = fs::read(&file).unwrap_or_default();
            for (what, marker) in &self.0 {
                if contains(&bytes, marker.as_bytes()) || contains(&bytes, hex(marker).as_bytes()) {
                    found.push(format!("the {what} in {}", file.display()));
                }
            }
            let name = file.to_string_lossy();
            found.extend(
                self.0.iter().filter(|(_, m)| name.contains(m)).map(|(w, _)| format!("the {w} as {name}")),
            );
        }
        found
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02x}")).collect()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let mut rest = bytes;
    // Looking for the first byte first makes this quick enough for a whole store.
    while let Some(at) = rest.iter().position(|b| *b == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn files(place: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![place.to_owned()]);
    while let Some(path) = todo.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => todo.extend(entries.filter_map(|e| e.ok().map(|e| e.path()))),
            Err(_) if path.is_file() => found.push(path),
            Err(_) => {}
        }
    }
    found
}

/// Uses every marker in a mount, in each way that leaves bytes behind, and unmounts.
fn leave_traces(store: &Arc<Store>, markers: &Markers) {
    let mount = store.mount();
    let (dir, mut rng) = (mount.path(), Rng::new(7));
    let named = |what: &str| dir.join(markers.get(what));
    fs::write(named("file name"), markers.get("small content")).expect("writing");
    fs::create_dir(named("directory name")).expect("mkdir");
    // Markers among random bytes, so that no codec hides them.
    let mut big = Vec::new();
    for _ in 0..200 {
        big.extend_from_slice(markers.get("big content").as_bytes());
        big.extend(rng.bytes(10_000));
    }
    fs::write(named("directory name").join("big"), &big).expect("writing");
    let mut synced = File::create(dir.join("synced")).expect("creating");
    synced
        .write_all(markers.get("synced content").as_bytes())
        .and_then(|()| synced.sync_all())
        .expect("fsync");
    drop(synced);
    fs::write(dir.join("plain"), b"x").expect("writing");
    fs::rename(dir.join("plain"), named("renamed file")).expect("renaming");
    fs::write(named("deleted file"), markers.get("deleted content")).expect("writing");
    symlink(markers.get("link target"), named("link name")).expect("linking");
    let xattr = format!("user.{}", markers.get("xattr name"));
    set_xattr(&named("file name"), &xattr, markers.get("xattr value").as_bytes(), 0).expect("setxattr");
    mount.snapshot("s");
    fs::remove_file(named("deleted file")).expect("removing");
    // Errors are logged; they must not tell names either.
    fs::read(named("file name").join("x")).expect_err("a file is no directory");
    fs::remove_dir(named("directory name")).expect_err("it is not empty");
    let text =
        fs::read_to_string(mount.at("s").join(markers.get("deleted file"))).expect("reading the snapshot");
    assert_eq!(text, markers.get("deleted content"));
    let store = mount.remount().umount();
    store.ok(&args!["fsck", store.path()]);
}

/// Everything that is left behind: the store, and the logs of root's servers.
fn places(store: &Store) -> Vec<PathBuf> {
    vec![store.path(), PathBuf::from("/var/log/rewindfs")]
}

#[test]
fn no_plain_text_is_found_in_an_encrypted_store_or_its_logs() {
    let (store, markers) = (Store::encrypted(), Markers::new());
    leave_traces(&store, &markers);
    assert!(files(&store.path()).len() > 5, "the store's files are looked at");
    assert_eq!(markers.found_in(&places(&store)), Vec::<String>::new());
    // And while it is mounted and working.
    let mount = store.mount();
    for i in 0..50 {
        fs::write(
            mount.path().join(format!("{}-{i}", markers.get("link name"))),
            markers.get("small content"),
        )
        .expect("writing");
    }
    File::open(mount.path()).and_then(|d| d.sync_all()).expect("fsync");
    assert_eq!(markers.found_in(&places(&store)), Vec::<String>::new());
}

#[test]
fn the_same_search_finds_everything_in_a_store_without_encryption() {
    let (store, markers) = (Store::init(&args!["--no-encryption"]), Markers::new());
    leave_traces(&store, &markers);
    let found = markers.found_in(&[store.path()]).join("\n");
    for what in ["file name", "directory name", "small content", "big content", "link target", "xattr value"]
    {
        assert!(
            found.contains(&format!("the {what} in")),
            "the search would miss the {what}; it found {found}"
        );
    }
    // Logs are no place for names, encrypted or not.
    assert_eq!(markers.found_in(&[PathBuf::from("/var/log/rewindfs")]), Vec::<String>::new());
}

#[test]
fn the_key_is_not_in_the_store() {
    let store = Store::encrypted();
    store.mount().umount();
    let key = fs::read(store.key_file()).expect("the key file");
    let text = String::from_utf8_lossy(&key);
    // The longest word of the key file is the key, however it is framed.
    let word = text.split(|c: char| !c.is_ascii_alphanumeric()).max_by_key(|w| w.len()).unwrap_or_default();
    assert!(word.len() >= 16, "a key file holds a key");
    for file in files(&store.path()) {
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(!contains(&bytes, word.as_bytes()), "the key is in {}", file.display());
    }
}
