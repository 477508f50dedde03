//! Acknowledged bytes wait in the arena, across servers, for a disk that is full or has failed to be written again.

use std::mem::ManuallyDrop;

use super::*;
use crate::types::Error;
use crate::types::disk::faulty::{Fault, FaultyDisk, Keep};

/// A server whose arena outlives it; its last trace in shared memory goes with this.
struct Server {
    bench: Bench,
    disk: FaultyDisk,
}

impl Server {
    fn new() -> Server {
        let mut bench = Bench::with(Config { reserve_bytes: 1 << 20, ..quiet() }, false);
        bench.drop_all();
        std::fs::remove_dir_all(bench.root().join("index")).unwrap();
        let disk = FaultyDisk::new();
        bench.disk = Arc::new(disk.clone());
        let mut server = Server { bench, disk };
        server.start();
        server
    }

    fn store(&self) -> Arc<Store> {
        let store = Store::open(&self.bench.root(), self.bench.options(), &mut |_, _| {}).unwrap();
        store.pause_care(true);
        store
    }

    fn start(&mut self) {
        let volumes = Volumes::surviving(self.store()).unwrap();
        assert!(volumes.arena().survives(), "this test needs a tmpfs at /dev/shm");
        self.bench.main = Some(volumes.open(DEFAULT_VOLUME).unwrap());
        self.bench.volumes = Some(volumes);
    }

    /// What is uncommitted stays in the arena as it is.
    fn kill(&mut self) {
        for (_, cell) in self.bench.volumes().shared.cells.dirty() {
            let _ = ManuallyDrop::new(cell.state.write().dirty.take());
        }
        self.bench.drop_all();
    }

    fn restart(&mut self) {
        self.kill();
        self.start();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        let ino = self.bench.main().lookup(None, Ino::ROOT, name.as_bytes()).unwrap().ino;
        self.bench.read(None, ino)
    }

    fn fsync(&self, name: &str) -> FsResult<()> {
        let ino = self.bench.main().lookup(None, Ino::ROOT, name.as_bytes())?.ino;
        self.bench.main().fsync(ino)
    }

    /// Everything is committed, also on a disk that forgets what is not durable, and the arena is gone.
    fn ends_with(mut self, name: &str, content: &[u8]) {
        self.fsync(name).unwrap();
        self.bench.fsck();
        self.bench.volumes().close().unwrap();
        assert_eq!(self.bench.volumes().arena().used(), 0);
        self.bench.drop_all();
        self.disk = self.disk.crash(Keep::Nothing);
        self.bench.disk = Arc::new(self.disk.clone());
        self.start();
        assert!(self.content(name) == content, "after a power cut");
        self.bench.fsck();
        self.bench.volumes().close().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.bench.drop_all();
        if let Ok(node) = std::fs::read_to_string(self.bench.root().join("node")) {
            let _ = std::fs::remove_file(format!("/dev/shm/rewindfs-{}", node.trim()));
        }
    }
}

#[test]
fn a_server_that_starts_on_a_full_disk_takes_up_what_was_acknowledged() {
    let mut server = Server::new();
    let ino = server.bench.file(Ino::ROOT, "f");
    server.bench.file(Ino::ROOT, "old");
    server.bench.volumes().sync().unwrap();
    let content = noise(2, 700_000);
    server.bench.write(ino, 0, &content);
    server.disk.set_fault(server.disk.ops(), Fault::Full);
    for death in 0..4 {
        let refused = server.fsync("f");
        assert!(matches!(refused, Err(FsError::Store(Error::NoSpace(_)))), "{death}: {refused:?}");
        assert!(server.content("f") == content, "{death}");
        assert_eq!(server.bench.store().read_only(), None);
        // A stop in order cannot commit it either, and keeps it.
        if death == 2 {
            server.bench.volumes().close().unwrap_err();
            assert!(server.bench.volumes().arena().used() > 0);
        }
        server.restart();
        assert!(server.content("f") == content, "taken up, {death}");
    }
    server.bench.main().unlink(Ino::ROOT, b"old", None).unwrap();
    server.disk.lift();
    server.ends_with("f", &content);
}

#[test]
fn a_failed_sync_leaves_what_was_not_committed_to_the_next_server() {
    let mut server = Server::new();
    let ino = server.bench.file(Ino::ROOT, "f");
    server.bench.volumes().sync().unwrap();
    let other = server.bench.file(Ino::ROOT, "g");
    let content = noise(3, 200_000);
    server.bench.write(ino, 0, &content);
    server.bench.write(other, 0, b"small");
    // The sync of the packs, or of the journal.
    server.disk.set_fault(server.disk.ops(), Fault::Once(libc::EIO, 0));
    server.bench.store().sync_all().unwrap_err();
    let reason = server.bench.store().read_only();
    assert!(reason.is_some_and(|r| r.contains("sync")), "poisoned");
    server.fsync("f").unwrap_err();
    server.bench.volumes().close().unwrap();
    assert!(server.content("f") == content && server.content("g") == b"small");
    server.restart();
    assert_eq!(server.bench.store().read_only(), None);
    assert!(server.content("f") == content && server.content("g") == b"small");
    server.ends_with("f", &content);
}
