//! What is acknowledged lies in an arena that outlives the server.

use super::*;
use std::os::unix::fs::FileExt;

/// Opens the bench's store as a server does.
fn serve(bench: &Bench) -> (Volumes, Arc<Volume>) {
    let store = Store::open(&bench.root(), bench.options(), &mut |_, _| {}).unwrap();
    store.pause_care(true);
    let volumes = Volumes::surviving(store).unwrap();
    assert!(volumes.arena().survives(), "the test needs a tmpfs at /dev/shm");
    let main = volumes.open(DEFAULT_VOLUME).unwrap();
    (volumes, main)
}

fn arena_path(volumes: &Volumes) -> PathBuf {
    PathBuf::from(format!("/dev/shm/rewindfs-{}", volumes.store().node()))
}

/// The descriptors' words in an arena's file, as docs/FORMAT.md has them.
const DESCRIPTORS: u64 = 4096 + 1024 * 32 + 1024 * 128;

/// Ends a server as SIGKILL would, in the moment behind the note that the record `lsn` takes all slots.
fn kill_behind_note(volumes: Volumes, main: Arc<Volume>, lsn: Lsn) {
    let path = arena_path(&volumes);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut noted = 0;
    for slot in 0..1000u64 {
        let mut seq = [0; 8];
        file.read_exact_at(&mut seq, DESCRIPTORS + slot * 64).unwrap();
        if u64::from_le_bytes(seq) != 0 {
            let words = [lsn.0.to_le_bytes(), [0; 8]].concat();
            file.write_all_at(&words, DESCRIPTORS + slot * 64 + 48).unwrap();
            noted += 1;
        }
    }
    assert!(noted > 0, "nothing was dirty");
    let memory = std::fs::read(&path).unwrap();
    drop((main, volumes));
    std::fs::write(&path, memory).unwrap();
}

/// The next server's first record gets the LSN that was noted: it is not the record that was meant. Nor is it
/// when that server is killed as well before it looked.
#[test]
fn a_record_that_was_noted_and_never_came_takes_nothing_with_it() {
    for servers_between in [0, 1, 3] {
        let mut bench = Bench::new(quiet());
        bench.drop_all();
        let (volumes, main) = serve(&bench);
        let made = main.make(Ino::ROOT, b"f", node(FileKind::File), None).unwrap();
        main.write(made.ino, 0, &noise(1, 9000), Writer::ROOT).unwrap();
        let next = volumes.store().last().next();
        kill_behind_note(volumes, main, next);
        for _ in 0..servers_between {
            let store = Store::open(&bench.root(), bench.options(), &mut |_, _| {}).unwrap();
            assert!(store.last() >= next);
        }
        let (volumes, main) = serve(&bench);
        assert!(main.read(None, made.ino, 0, 10_000).unwrap() == noise(1, 9000), "{servers_between}");
        drop(main);
        volumes.close().unwrap();
    }
}

/// A server that must end though not everything can be committed, as after a failed sync, or that cannot take
/// up what it found, takes nothing with it.
#[test]
fn what_a_server_could_not_commit_is_there_for_the_next() {
    let mut bench = Bench::new(quiet());
    bench.drop_all();
    let (volumes, main) = serve(&bench);
    let made = main.make(Ino::ROOT, b"f", node(FileKind::File), None).unwrap();
    main.write(made.ino, 0, &noise(1, 200_000), Writer::ROOT).unwrap();
    drop((main, volumes));
    // This one finds the disk failing when it looks at what is left.
    let store = Store::open(&bench.root(), bench.options(), &mut |_, _| {}).unwrap();
    let opened = arena::open(store.path(), store.node(), 8 << 20).unwrap();
    assert!(!opened.arena.recover(store.last()).is_empty());
    drop((opened, store));
    let (volumes, main) = serve(&bench);
    assert!(main.read(None, made.ino, 0, 300_000).unwrap() == noise(1, 200_000));
    drop(main);
    volumes.close().unwrap();
    assert!(!arena_path(&volumes).exists(), "nothing is left");
}
