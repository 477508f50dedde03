//! A kernel that does not send requests again, as before Linux 6.9: what a killed server had read and not
//! answered fails, and nothing hangs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::server::kill;
use crate::harness::{Store, args, eventually};

/// What one program was told.
#[derive(Default)]
struct Told {
    /// How many numbers were written, one behind the other.
    written: u64,
    made: Vec<PathBuf>,
    failed: u64,
}

impl Told {
    /// Whether the call worked; no other error than the one that was announced may come.
    fn hear<T>(&mut self, result: io::Result<T>) -> bool {
        match result {
            Ok(_) => true,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
                self.failed += 1;
                false
            }
        }
    }
}

fn program(dir: &Path, number: usize, stop: &AtomicBool) -> Told {
    let mut told = Told::default();
    let path = dir.join(format!("numbers{number}"));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("creating");
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if told.hear(file.write_all_at(&told.written.to_le_bytes(), told.written * 8)) {
            told.written += 1;
        }
        let made = dir.join(format!("made{number}-{round}"));
        let created = File::create_new(&made);
        if told.hear(created) {
            told.made.push(made);
        }
        told.hear(file.sync_all());
        told.hear(fs::read_dir(dir).and_then(|mut names| names.try_for_each(|name| name.map(drop))));
    }
    told
}

#[test]
fn what_was_read_and_not_answered_fails_and_nothing_hangs() {
    let store = Store::encrypted();
    let mount = store.mount_with("mnt", &args!["-o", "resend=off"]);
    let stop = Arc::new(AtomicBool::new(false));
    let programs: Vec<_> = (0..4)
        .map(|number| {
            let (dir, stop) = (mount.path().to_owned(), stop.clone());
            std::thread::spawn(move || program(&dir, number, &stop))
        })
        .collect();
    for round in 0..8 {
        std::thread::sleep(std::time::Duration::from_millis(100 + round * 31));
        kill(&mount);
        // Asked of the next server.
        let served = || fs::metadata(mount.path().join(format!("nothing{round}"))).is_err_and(not_found);
        eventually("a server that answers", served);
    }
    stop.store(true, Ordering::Relaxed);
    eventually("programs to end", || programs.iter().all(std::thread::JoinHandle::is_finished));
    let all: Vec<Told> = programs.into_iter().map(|p| p.join().expect("a program failed")).collect();
    assert!(all.iter().any(|told| told.failed > 0), "no request was under way at any of the kills");
    for (number, told) in all.iter().enumerate() {
        let found = fs::read(mount.path().join(format!("numbers{number}"))).expect("reading");
        for n in 0..told.written {
            let at = n as usize * 8;
            assert_eq!(found[at..at + 8], n.to_le_bytes(), "number {n} of program {number}");
        }
        assert!(told.made.iter().all(|path| path.exists()));
    }
    let store = mount.umount();
    store.ok(&args!["fsck", store.path()]);
}

fn not_found(e: io::Error) -> bool {
    e.raw_os_error() == Some(libc::ENOENT)
}
