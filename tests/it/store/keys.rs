//! Keys: the wrong one, a lost one, a recovery key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::harness::mounting::is_mounted;
use crate::harness::sys::NOBODY;
use crate::harness::{Rng, Store, Times, Tree, args, sample};

/// A store with a sample tree in it, unmounted.
fn filled(more: &[std::ffi::OsString]) -> (Arc<Store>, Tree) {
    let store = Store::init(more);
    let mount = store.mount();
    sample::plant(mount.path(), &mut Rng::printed()).expect("planting");
    let tree = Tree::read(mount.path());
    (mount.umount(), tree)
}

fn install(key: &[u8], at: &Path) {
    fs::write(at, key).expect("writing a key file");
    fs::set_permissions(at, fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn opens_with_the_same_tree(store: &Arc<Store>, tree: &Tree) {
    let mount = store.mount();
    tree.assert_same(&Tree::read(mount.path()), Times::All, "with that key");
    mount.umount();
}

#[test]
fn a_wrong_key_is_refused_with_code_12_and_harms_nothing() {
    let (store, tree) = filled(&[]);
    let key = fs::read(store.key_file()).expect("the key");
    let stranger = Store::encrypted();
    let wrong = fs::read(stranger.key_file()).expect("another store's key");
    let dir = store.home().join("mnt");
    install(&wrong, &store.key_file());
    for line in [args!["mount", store.path(), dir].to_vec(), args!["fsck", store.path()].to_vec()] {
        let said = store.refused(12, &line);
        assert!(said.contains(&*store.path().to_string_lossy()), "{said}");
        assert!(!is_mounted(&dir));
    }
    install(&key, &store.key_file());
    opens_with_the_same_tree(&store, &tree);
}

#[test]
fn damaged_empty_and_missing_key_files_open_nothing() {
    let (store, tree) = filled(&[]);
    let (path, key) = (store.key_file(), fs::read(store.key_file()).expect("the key"));
    let dir = store.home().join("mnt");
    let mut changed = key.clone();
    let last_letter = changed.iter().rposition(u8::is_ascii_alphanumeric).expect("a key has letters");
    changed[last_letter] = if changed[last_letter] == b'0' { b'1' } else { b'0' };
    for bad in [&b""[..], b"not a key", &key[..key.len() / 2], &changed, &[0xff; 64]] {
        install(bad, &path);
        let run = store.cli(&args!["mount", store.path(), dir]);
        assert!(matches!(run.code, 1 | 12), "{run:?}");
        run.one_line();
        assert!(!is_mounted(&dir));
    }
    fs::remove_file(&path).expect("losing the key");
    let run = store.cli(&args!["mount", store.path(), dir]);
    assert!(matches!(run.code, 1 | 12), "{run:?}");
    let line = run.one_line();
    assert!(line.contains(&*path.to_string_lossy()), "the line says where the key was looked for: {line}");
    install(&key, &path);
    opens_with_the_same_tree(&store, &tree);
}

#[test]
fn an_exported_recovery_key_opens_the_store_when_the_key_file_is_lost() {
    let (store, tree) = filled(&[]);
    let path = store.key_file();
    let printed = store.ok(&args!["key", "export", store.path()]);
    let file = store.home().join("recovery");
    store.ok(&args!["key", "export", store.path(), file]);
    assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o777, 0o600);
    let own = fs::read(&path).expect("the key file");
    for recovery in [printed.into_bytes(), fs::read(file).expect("the exported file")] {
        assert_ne!(recovery, own, "a key of its own");
        fs::remove_file(&path).expect("losing the key");
        install(&recovery, &path);
        opens_with_the_same_tree(&store, &tree);
    }
}

#[test]
fn a_recovery_key_made_by_init_opens_the_store() {
    let home = Store::uninitialised();
    let file = home.home().join("recovery");
    let (store, tree) = filled(&args!["--recovery-key-file", file]);
    let path = store.key_file();
    fs::remove_file(&path).expect("losing the key");
    install(&fs::read(file).expect("the recovery key"), &path);
    opens_with_the_same_tree(&store, &tree);
}

#[test]
fn a_store_without_encryption_needs_no_key() {
    let (store, tree) = filled(&args!["--no-encryption"]);
    assert_eq!(fs::read_dir(store.home().join("keys")).expect("the key directory").count(), 0);
    opens_with_the_same_tree(&store, &tree);
}

#[test]
fn keys_are_handed_out_to_nobody_but_root_and_the_owner() {
    use std::os::unix::process::CommandExt;
    let store = Store::encrypted();
    let mount = store.mount();
    let program = store.home().join("rewindfs");
    fs::copy(crate::harness::mounting::REWINDFS, &program).expect("copying the program");
    for path in [mount.path().to_owned(), store.path()] {
        let mut command = std::process::Command::new(&program);
        command.args(args!["key", "export", path]).uid(NOBODY).gid(NOBODY).current_dir("/");
        let run = crate::harness::run(&mut command);
        assert!(run.code != 0 && run.stdout.is_empty(), "{run:?}");
    }
}
