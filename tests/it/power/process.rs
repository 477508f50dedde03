//! The process in which the disk lives: a FUSE mount with one file, `disk`, that a loop device lies on, and a
//! socket through which the power is cut. A process of its own, because the one that mounts what lies above
//! would wait for itself; it touches nothing above the disk.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

use super::image::{Image, Keep};
use crate::harness::eventually;

/// Bytes of the disk; only what is written takes memory.
pub const DISK_BYTES: u64 = 512 << 20;
/// Set for the child: where it mounts and listens.
const PLACE: &str = "REWINDFS_POWER_DISK";
/// `prctl(2)`: allocations of this process never wait for what is written through it. Not in the libc crate.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// A cut to come.
#[derive(Clone, Copy)]
struct Armed {
    /// Writes and flushes until then.
    left: u64,
    keep: Keep,
}

#[derive(Default)]
struct State {
    image: Image,
    /// The number of the disk's life, which is its inode number, so that the kernel mixes nothing up.
    life: u64,
    armed: Option<Armed>,
    /// What the power cut left, once it has happened.
    left: Option<Image>,
    template: Image,
    writes: u64,
    flushes: u64,
    lies: bool,
}

impl State {
    /// Counts a write or flush of that life; an error if the power is gone.
    fn tick(&mut self, life: u64) -> Result<(), Errno> {
        if let Some(armed) = &mut self.armed {
            match armed.left.checked_sub(1) {
                Some(left) => armed.left = left,
                None => {
                    let keep = armed.keep;
                    self.cut(keep);
                }
            }
        }
        if life == self.life && self.left.is_none() { Ok(()) } else { Err(Errno::EIO) }
    }

    fn cut(&mut self, keep: Keep) {
        self.armed = None;
        self.left.get_or_insert_with(|| self.image.after(keep));
    }

    fn begin(&mut self, image: Image) {
        *self = State {
            image,
            life: self.life + 1,
            template: std::mem::take(&mut self.template),
            ..State::default()
        };
    }

    /// Does what one line of the control connection asks; the answer.
    fn command(&mut self, line: &str) -> String {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["arm", after, keep] => {
                let (Ok(left), Some(keep)) = (after.parse(), Keep::parse(keep)) else {
                    return "what?".into();
                };
                self.armed = Some(Armed { left, keep });
            }
            ["cut", keep] => match Keep::parse(keep) {
                Some(keep) => self.cut(keep),
                None => return "what?".into(),
            },
            ["next"] => match self.left.take() {
                Some(image) => self.begin(image),
                None => return "the power is on".into(),
            },
            ["save"] => self.template = self.image.after(Keep::All),
            ["load"] => self.begin(self.template.clone()),
            ["lie"] => self.lies = true,
            ["stats"] => {
                let off = u64::from(self.left.is_some());
                return format!("ok {} {} {} {off}", self.writes, self.flushes, self.image.unflushed());
            }
            _ => return "what?".into(),
        }
        "ok".into()
    }
}

#[derive(Clone)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attributes(ino: INodeNo) -> FileAttr {
    let root = ino == INodeNo::ROOT;
    FileAttr {
        ino,
        size: if root { 0 } else { DISK_BYTES },
        blocks: if root { 0 } else { DISK_BYTES / 512 },
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if root { FileType::Directory } else { FileType::RegularFile },
        perm: if root { 0o700 } else { 0o600 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The inode of a life; 1 is the root.
fn inode(life: u64) -> u64 {
    life + 2
}

impl Filesystem for Disk {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            let ino = INodeNo(inode(self.state().life));
            reply.entry(&Duration::ZERO, &attributes(ino), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(3600), &attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        if u64::from(ino) != inode(state.life) || state.left.is_some() {
            return reply.error(Errno::EIO);
        }
        let mut bytes = vec![0; (DISK_BYTES.saturating_sub(offset)).min(u64::from(size)) as usize];
        state.image.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        if let Err(e) = state.tick(u64::from(ino) - 2) {
            return reply.error(e);
        }
        state.writes += 1;
        state.image.write(offset, data);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.state();
        if let Err(e) = state.tick(u64::from(ino) - 2) {
            return reply.error(e);
        }
        state.flushes += 1;
        if !state.lies {
            state.image.flush();
        }
        reply.ok();
    }

    /// A close; it makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

#[test]
#[ignore = "no test: the process of the disk, which the tests of power cuts start"]
fn disk_process() {
    let place = std::env::var_os(PLACE).expect("only the tests of power cuts start this");
    serve(Path::new(&place)).expect("the disk");
}

/// Mounts the disk and answers until the one connection ends.
fn serve(place: &Path) -> io::Result<()> {
    // Needs CAP_SYS_RESOURCE. Without it the machine must have memory to spare, as it does in CI.
    // SAFETY: prctl with plain numbers.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    let disk = Disk(Arc::default());
    let listener = UnixListener::bind(place.join("control"))?;
    let session = fuser::spawn_mount(disk.clone(), place.join("fuse"), &fuser::Config::default())?;
    let (connection, _) = listener.accept()?;
    let mut answers = connection.try_clone()?;
    for line in BufReader::new(connection).lines() {
        let answer = disk.state().command(&line?);
        answers.write_all(format!("{answer}\n").as_bytes())?;
    }
    session.umount_and_join()
}

/// The process and the connection to it. It ends when this is dropped, or its owner dies.
pub struct DiskProcess {
    child: Child,
    connection: Option<BufReader<UnixStream>>,
    file: PathBuf,
}

/// What the disk has done in its present life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub writes: u64,
    pub flushes: u64,
    /// Writes in the cache.
    pub unflushed: u64,
    /// Whether the power is gone.
    pub off: bool,
}

impl DiskProcess {
    /// Starts it; its mount and its socket lie in `place`.
    pub fn start(place: &Path) -> DiskProcess {
        std::fs::create_dir_all(place.join("fuse")).expect("a mountpoint for the disk");
        let program = std::env::current_exe().expect("the test binary");
        let mut command = Command::new(program);
        command.args(["--ignored", "--exact", "power::process::disk_process", "--test-threads", "1"]);
        let child = command.env(PLACE, place).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.expect("starting the disk's process");
        let mut disk = DiskProcess { child, connection: None, file: place.join("fuse/disk") };
        eventually("the disk's process listens", || {
            let ended = disk.child.try_wait().expect("waiting for a child");
            assert!(ended.is_none(), "the disk's process ended: {ended:?}");
            let connected = UnixStream::connect(place.join("control"));
            disk.connection = connected.ok().map(BufReader::new);
            disk.connection.is_some()
        });
        eventually("the disk is there", || disk.file.exists());
        disk
    }

    /// The file that is the disk.
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn ask(&mut self, line: &str) -> String {
        let connection = self.connection.as_mut().expect("connected until it is dropped");
        let mut answer = String::new();
        let asked = connection.get_mut().write_all(format!("{line}\n").as_bytes());
        asked.and_then(|()| connection.read_line(&mut answer)).expect("the disk's process answers");
        let answer = answer.trim_end().to_owned();
        assert!(answer.starts_with("ok"), "the disk's process answers {answer:?} to {line:?}");
        answer
    }

    /// Cuts the power at the write or flush behind the next `after`.
    pub fn arm(&mut self, after: u64, keep: Keep) {
        self.ask(&format!("arm {after} {}", keep.word()));
    }

    /// Cuts the power now, unless it is gone.
    pub fn cut(&mut self, keep: Keep) {
        self.ask(&format!("cut {}", keep.word()));
    }

    /// Puts what the cut left in the disk's place.
    pub fn next(&mut self) {
        self.ask("next");
    }

    /// Remembers the disk as it is.
    pub fn save(&mut self) {
        self.ask("save");
    }

    /// Puts what was saved in the disk's place.
    pub fn load(&mut self) {
        self.ask("load");
    }

    /// From now on flushes of this life do nothing and succeed.
    pub fn lie(&mut self) {
        self.ask("lie");
    }

    /// What it has done.
    pub fn stats(&mut self) -> Stats {
        let answer = self.ask("stats");
        let numbers: Vec<u64> = answer.split(' ').skip(1).map(|n| n.parse().expect("a number")).collect();
        Stats { writes: numbers[0], flushes: numbers[1], unflushed: numbers[2], off: numbers[3] != 0 }
    }
}

impl Drop for DiskProcess {
    fn drop(&mut self) {
        drop(self.connection.take());
        let ended = crate::harness::within(Duration::from_secs(20), || {
            self.child.try_wait().is_ok_and(|status| status.is_some())
        });
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let fuse = self.file.parent().expect("the mountpoint");
        let _ = nix::mount::umount2(fuse, nix::mount::MntFlags::MNT_DETACH);
    }
}
