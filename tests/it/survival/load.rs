//! Programs that take every error for a failure, on threads of their own.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::libc;

/// Running programs. Dropping it without [`Load::end`] leaves them to the end of the test's process.
pub struct Load {
    stop: Arc<AtomicBool>,
    steps: Vec<(&'static str, Arc<AtomicU64>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts them below `dir`.
    pub fn start(dir: &Path) -> Load {
        let mut load = Load { stop: Arc::default(), steps: Vec::new(), threads: Vec::new() };
        let (a, b, c, d) = (dir.join("names"), dir.join("log"), dir.join("ckpt"), dir.join("sparse"));
        fs::create_dir(&a).expect("a directory for names");
        load.run("names", move |n| names(&a, n));
        let mut log = Appender::new(&b);
        load.run("appender", move |n| log.step(n));
        load.run("checkpoints", move |n| checkpoint(&c, n));
        load.run("sparse", move |n| sparse(&d, n));
        load
    }

    fn run(&mut self, name: &'static str, mut step: impl FnMut(u64) + Send + 'static) {
        let (stop, count) = (self.stop.clone(), Arc::new(AtomicU64::new(0)));
        self.steps.push((name, count.clone()));
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                step(count.fetch_add(1, Ordering::Relaxed));
            }
        }));
    }

    /// How many steps all of them made.
    pub fn steps(&self) -> Vec<u64> {
        self.steps.iter().map(|(_, count)| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until each has made `more` steps from now on, and none has failed.
    pub fn advance(&self, more: u64) {
        let before = self.steps();
        crate::harness::eventually("programs to get on", || {
            assert!(self.threads.iter().all(|t| !t.is_finished()), "a program failed: see above");
            self.steps().iter().zip(&before).all(|(now, then)| *now >= then + more)
        });
    }

    /// Ends them; each must have had no error.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a program under load failed");
        }
    }
}

/// Every operation of names: each must work, and exactly once.
fn names(dir: &Path, n: u64) {
    let at = |kind: &str| dir.join(format!("{kind}{n}"));
    let mut file = OpenOptions::new().write(true).read(true).create_new(true).open(at("a")).expect("create");
    file.write_all(&n.to_le_bytes()).expect("write");
    fs::hard_link(at("a"), at("b")).expect("link");
    fs::create_dir(at("c")).expect("mkdir");
    fs::rename(at("b"), at("c").join("in")).expect("rename");
    std::os::unix::fs::symlink("target", at("d")).expect("symlink");
    let name = CString::new(at("a").as_os_str().as_bytes()).expect("a path");
    // SAFETY: all three strings end with NUL, and the value has the length given.
    let set = unsafe {
        libc::setxattr(name.as_ptr(), c"user.n".as_ptr(), c"v".as_ptr().cast(), 1, libc::XATTR_CREATE)
    };
    assert_eq!(set, 0, "setxattr: {}", std::io::Error::last_os_error());
    assert_eq!(file.metadata().expect("fstat").nlink(), 2);
    fs::remove_file(at("a")).expect("unlink");
    file.set_len(4).expect("truncate");
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_end(&mut found).expect("read");
    assert_eq!(found, n.to_le_bytes()[..4]);
    fs::remove_file(at("c").join("in")).expect("unlink");
    fs::remove_dir(at("c")).expect("rmdir");
    fs::remove_file(at("d")).expect("unlink");
    assert_eq!(fs::read_dir(dir).expect("readdir").count(), 0, "something was made twice");
}

/// Appends without fsync to a file that stays open.
struct Appender {
    file: File,
    written: Vec<u8>,
}

impl Appender {
    fn new(path: &Path) -> Appender {
        let file = OpenOptions::new().append(true).read(true).create_new(true).open(path).expect("create");
        Appender { file, written: Vec::new() }
    }

    fn step(&mut self, n: u64) {
        if self.written.len() > 1 << 20 {
            self.file.set_len(0).expect("truncate");
            self.written.clear();
        }
        let line = vec![n as u8; (n * 37 % 5000) as usize + 1];
        self.file.write_all(&line).expect("append");
        self.written.extend_from_slice(&line);
        assert_eq!(self.file.metadata().expect("fstat").len(), self.written.len() as u64);
        if n.is_multiple_of(16) {
            let mut found = vec![0; self.written.len()];
            self.file.read_exact_at(&mut found, 0).expect("read");
            assert!(found == self.written, "what was appended reads otherwise");
        }
    }
}

fn content(n: u64) -> Vec<u8> {
    let len = (n * 1_234_567 % 3_000_000) as usize + 1;
    (0..len).map(|i| ((i as u64 * (n + 3)) >> 7) as u8).collect()
}

/// Writes, fsyncs, renames over the last one, reads back.
fn checkpoint(path: &Path, n: u64) {
    let new = path.with_extension("tmp");
    let mut file = File::create(&new).expect("create");
    file.write_all(&content(n)).expect("write");
    file.sync_all().expect("fsync");
    fs::rename(&new, path).expect("rename");
    assert!(fs::read(path).expect("read") == content(n), "checkpoint {n} reads otherwise");
}

/// Scattered writes with holes between, fallocate and truncate.
fn sparse(path: &Path, n: u64) {
    let path: PathBuf = path.with_extension(format!("{}", n % 3));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(&path).expect("create");
    let mut expected = vec![0u8; 400_000];
    for i in 0..20u64 {
        let at = (n * 7919 + i * 104_729) as usize % 390_000;
        let bytes = vec![(n + i) as u8 | 1; (i * 431 % 9000) as usize + 1];
        file.write_all_at(&bytes, at as u64).expect("write");
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file.set_len(400_000).expect("extend");
    let mut found = vec![1; 400_000];
    file.read_exact_at(&mut found, 0).expect("read");
    assert!(found == expected, "a sparse file reads otherwise");
    file.set_len(1000).expect("cut");
    assert!(fs::read(&path).expect("read") == expected[..1000], "a cut file reads otherwise");
}
