//! What contents take below: once for all copies, and what was removed until it is used again.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use crate::harness::sys::open_rw;
use crate::harness::{Mount, Rng, Store, args, eventually};

const BIG: u64 = 8 << 20;

fn written(mount: &Mount, name: &str, bytes: &[u8]) {
    fs::write(mount.path().join(name), bytes).expect("writing");
    open_rw(&mount.path().join(name)).and_then(|f| f.sync_all()).expect("syncing");
}

/// Bytes of packs, all chunks included.
fn packs(mount: &Mount) -> u64 {
    mount.status_number("/bytes/packs")
}

#[test]
fn contents_that_are_there_already_take_no_more_space_in_whatever_file_or_volume() {
    let store = Store::encrypted();
    store.ok(&args!["volume", "create", store.path(), "second"]);
    let (main, other) = (store.mount(), store.mount_with("other", &args!["--volume", "second"]));
    let bytes = Rng::printed().bytes(BIG as usize);
    written(&main, "first", &bytes);
    let once = packs(&main);
    assert!(once > BIG - (1 << 20), "{once} bytes of packs hold {BIG} that no codec makes smaller");
    main.snapshot("then");
    fs::remove_file(main.path().join("first")).expect("removing");
    written(&main, "again", &bytes);
    written(&main, "and again", &bytes);
    written(&other, "elsewhere", &bytes);
    // Moved by some bytes: the cuts find themselves again.
    let mut shifted = fs::File::create(main.path().join("shifted")).expect("creating");
    shifted.write_all(b"a few bytes before").and_then(|()| shifted.write_all(&bytes)).expect("writing");
    shifted.seek(SeekFrom::Start(0)).and_then(|_| shifted.sync_all()).expect("syncing");
    let five = packs(&main);
    assert!(five < once + BIG / 4, "{once} bytes of packs for one, {five} for five");
    assert!(main.status_number("/bytes/live") >= 3 * BIG, "plain bytes count as often as they are there");
}

#[test]
fn what_was_removed_counts_as_dead_until_the_same_contents_come_back() {
    let store = Store::encrypted();
    fs::write(store.path().join("config.toml"), "window_seconds = 0\n").expect("configuring");
    let mount = store.mount();
    let bytes = Rng::printed().bytes(BIG as usize);
    written(&mount, "f", &bytes);
    let full = packs(&mount);
    fs::remove_file(mount.path().join("f")).expect("removing");
    eventually("the bytes of a removed file to count as dead", || {
        // Something must be committed for the window to move.
        written(&mount, "tick", b"tick");
        mount.status_number("/bytes/dead") > BIG - (1 << 20)
    });
    assert!(packs(&mount) >= full, "nothing is given back yet");
    written(&mount, "f", &bytes);
    assert!(packs(&mount) < full + BIG / 2, "what lay there was used again");
    assert!(mount.status_number("/bytes/dead") < BIG / 2);
    assert!(fs::read(mount.path().join("f")).expect("reading") == bytes);
}
