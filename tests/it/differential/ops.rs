//! The operations, how they are chosen, and how one is done to a directory.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::RenameFlags;
use nix::sys::stat::SFlag;

use crate::harness::Rng;
use crate::harness::sys::{
    Facts, chmod, chown, create_new, facts, facts_of, get_xattr, list_xattrs, mkdir, mtime, names, raw_name,
    remove_xattr, rename, set_times, set_xattr, special,
};
use crate::harness::twin::errno;

/// Files held open at once.
const HANDLES: u64 = 6;
/// Largest offset of random writes: some blocks of 256 KiB.
const OFFSET_MAX: u64 = 1_200_000;

/// One call, with all that decides its effect.
#[derive(Clone, Debug)]
pub enum Op {
    Create(Name, u32),
    Open(u64, Name, bool),
    Close(u64),
    HandleWrite(u64, u64, Data),
    HandleRead(u64, u64, usize),
    HandleTruncate(u64, u64),
    HandleStat(u64),
    HandleSync(u64),
    Write(Name, u64, Data),
    Append(Name, Data),
    Truncate(Name, u64),
    Read(Name, u64, usize),
    Mkdir(Name, u32),
    Rmdir(Name),
    Unlink(Name),
    Rename(Name, Name, u32),
    Link(Name, Name),
    Symlink(Data, Name),
    Readlink(Name),
    Special(Name, u32),
    Chmod(Name, u32),
    Chown(Name, u32, u32),
    Times(Name, (i64, i64)),
    SetXattr(Name, usize, Data, i32),
    GetXattr(Name, usize),
    RemoveXattr(Name, usize),
    Stat(Name),
    List(Name),
}

/// A path below the root, out of a small set, so that operations meet.
#[derive(Clone, Debug)]
pub struct Name(PathBuf);

/// Bytes by seed and length, so that a failing operation is printed in one line.
#[derive(Clone, Debug)]
pub struct Data {
    seed: u64,
    len: usize,
}

impl Data {
    fn any(rng: &mut Rng, max: u64) -> Data {
        // Small ones most of the time, zeros never as such: ext4 keeps what we may turn into holes.
        let len = if rng.below(4) == 0 { rng.below(max) } else { rng.below(max.min(3000)) };
        Data { seed: rng.next(), len: len as usize }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut rng = Rng::new(self.seed);
        if self.seed.is_multiple_of(2) { rng.bytes(self.len) } else { rng.text(self.len) }
    }
}

impl Name {
    fn any(rng: &mut Rng) -> Name {
        let depth = 1 + rng.below(6) / 4 + rng.below(6) / 5;
        Name((0..depth).map(|_| Name::part(rng)).collect())
    }

    /// A name in the root.
    fn flat(rng: &mut Rng) -> Name {
        Name(Name::part(rng).into())
    }

    /// A name that is often free, in a directory that is often there.
    fn fresh(rng: &mut Rng) -> Name {
        let last = raw_name(format!("n{}", rng.below(40)).as_bytes());
        if rng.below(2) == 0 { Name(Name::any(rng).0.join(last)) } else { Name(last.into()) }
    }

    fn part(rng: &mut Rng) -> std::ffi::OsString {
        let parts: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"long name with spaces", b"\xff\xfe", b"\n", b"x"];
        // The first ones more often, so that paths of several parts exist.
        let which = rng.below(parts.len() as u64).min(rng.below(parts.len() as u64));
        raw_name(parts[which as usize])
    }

    fn at(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

const XATTRS: [&str; 5] = ["user.a", "user.b", "trusted.c", "security.d", "user.long.name.with.dots"];

impl Op {
    /// Any operation.
    pub fn any(rng: &mut Rng) -> Op {
        match rng.below(10) {
            0..3 => Op::file_data(rng),
            3..6 => Op::namespace(rng),
            _ => Op::metadata(rng),
        }
    }

    /// Contents: creating, writing, cutting, reading; through paths and through open files.
    pub fn file_data(rng: &mut Rng) -> Op {
        let name = if rng.below(4) == 0 { Name::any(rng) } else { Name::flat(rng) };
        let (handle, offset) = (rng.below(HANDLES), rng.below(OFFSET_MAX));
        let len = rng.below(300_000) as usize;
        match rng.below(16) {
            0 => Op::Create(name, 0o644),
            1 | 2 => Op::Open(handle, name, rng.below(3) == 0),
            3 => Op::Close(handle),
            4..7 => Op::HandleWrite(handle, offset, Data::any(rng, 200_000)),
            7 => Op::HandleRead(handle, offset, len),
            8 => Op::HandleTruncate(handle, offset),
            9 => Op::HandleStat(handle),
            10 => Op::HandleSync(handle),
            11 | 12 => Op::Write(name, offset, Data::any(rng, 600_000)),
            13 => Op::Append(name, Data::any(rng, 50_000)),
            14 => Op::Truncate(name, offset),
            _ => Op::Read(name, offset, len),
        }
    }

    /// Names: making, removing, renaming, linking.
    pub fn namespace(rng: &mut Rng) -> Op {
        // Sources that are likely to be there, targets that are often free.
        let (name, other) = (Name::any(rng), Name::fresh(rng));
        match rng.below(15) {
            0 => Op::Create(name, 0o600),
            1 => Op::Create(other, 0o666),
            2 => Op::Mkdir(name, 0o755),
            3 => Op::Mkdir(other, *rng.pick(&[0o755, 0o700, 0o777])),
            4 => Op::Rmdir(name),
            5 => Op::Unlink(name),
            6..9 => {
                Op::Rename(name, other, *rng.pick(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]))
            }
            9 | 10 => Op::Link(name, other),
            11 => Op::Symlink(Data { seed: 1, len: 1 + rng.below(300) as usize }, name),
            12 => Op::List(name),
            13 => Op::Special(other, rng.below(3) as u32),
            _ => Op::Unlink(other),
        }
    }

    fn metadata(rng: &mut Rng) -> Op {
        let (name, xattr) = (Name::any(rng), rng.below(XATTRS.len() as u64) as usize);
        match rng.below(10) {
            0 => Op::Chmod(name, *rng.pick(&[0o644, 0o600, 0o755, 0o4711, 0o2755, 0o1777])),
            1 => Op::Chown(name, rng.below(5) as u32, rng.below(5) as u32),
            // Before 2000 or after 2040: these are compared later.
            2 => {
                let secs = *rng.pick(&[-86_400, 5, 900_000_000, 2_500_000_000, 4_000_000_000]);
                Op::Times(name, (secs, rng.below(1_000_000_000) as i64))
            }
            3 => Op::SetXattr(name, xattr, Data::any(rng, 400), *rng.pick(&[0, 0, 1, 2])),
            4 => Op::GetXattr(name, xattr),
            5 => Op::RemoveXattr(name, xattr),
            6 => Op::Readlink(name),
            7 => Op::List(name),
            _ => Op::Stat(name),
        }
    }
}

/// What a call that succeeded told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// The slot held no open file; both sides agree on that as well.
    NoHandle,
    Facts(Facts),
    /// How many bytes, and their hash.
    Bytes(usize, u64),
    Names(u64, Vec<std::ffi::OsString>),
}

fn bytes(bytes: &[u8]) -> Told {
    let mut hash = DefaultHasher::new();
    bytes.hash(&mut hash);
    Told::Bytes(bytes.len(), hash.finish())
}

/// One side: its open files.
#[derive(Default)]
pub struct World {
    open: [Option<File>; HANDLES as usize],
}

impl World {
    /// Closes every file.
    pub fn close_all(&mut self) {
        self.open = Default::default();
    }

    /// Does the operation below `root`.
    pub fn apply(&mut self, op: &Op, root: &Path) -> Result<Told, Errno> {
        errno(self.call(op, root))
    }

    fn call(&mut self, op: &Op, root: &Path) -> io::Result<Told> {
        match op {
            Op::Open(..)
            | Op::Close(_)
            | Op::HandleWrite(..)
            | Op::HandleRead(..)
            | Op::HandleTruncate(..)
            | Op::HandleStat(_)
            | Op::HandleSync(_) => self.by_handle(op, root),
            Op::Read(..) | Op::Readlink(_) | Op::GetXattr(..) | Op::Stat(_) | Op::List(_) => ask(op, root),
            _ => change(op, root).map(|()| Told::Nothing),
        }
    }

    fn by_handle(&mut self, op: &Op, root: &Path) -> io::Result<Told> {
        type Act<'a> = &'a dyn Fn(&File) -> io::Result<Told>;
        let (slot, act): (u64, Act) = match op {
            Op::Open(slot, name, create) => {
                let path = name.at(root);
                regular(&path)?;
                let file = OpenOptions::new().read(true).write(true).create(*create).open(path)?;
                self.open[*slot as usize] = Some(file);
                return Ok(Told::Nothing);
            }
            Op::Close(slot) => {
                self.open[*slot as usize] = None;
                return Ok(Told::Nothing);
            }
            Op::HandleWrite(slot, at, data) => {
                (*slot, &|f| f.write_all_at(&data.bytes(), *at).map(|()| Told::Nothing))
            }
            Op::HandleRead(slot, at, len) => (*slot, &|f| read_at(f, *at, *len)),
            Op::HandleTruncate(slot, len) => (*slot, &|f| f.set_len(*len).map(|()| Told::Nothing)),
            Op::HandleStat(slot) => (*slot, &|f| Ok(Told::Facts(facts_of(&f.metadata()?)))),
            Op::HandleSync(slot) => (*slot, &|f| f.sync_all().map(|()| Told::Nothing)),
            _ => return Err(io::Error::other("not an operation on an open file")),
        };
        self.open[slot as usize].as_ref().map_or(Ok(Told::NoHandle), act)
    }
}

/// Opening a fifo would wait for its other end, and a device is none of our files.
fn regular(path: &Path) -> io::Result<()> {
    let kind = path.metadata().map(|m| m.file_type());
    match kind {
        Ok(kind) if !kind.is_file() && !kind.is_dir() => Err(Errno::ENXIO.into()),
        _ => Ok(()),
    }
}

fn read_at(file: &File, at: u64, len: usize) -> io::Result<Told> {
    let mut buf = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut buf[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(bytes(&buf[..filled]))
}

fn ask(op: &Op, root: &Path) -> io::Result<Told> {
    match op {
        Op::Read(name, at, len) => {
            regular(&name.at(root))?;
            read_at(&File::open(name.at(root))?, *at, *len)
        }
        Op::Readlink(name) => {
            let target = name.at(root).read_link()?;
            Ok(bytes(target.as_os_str().as_encoded_bytes()))
        }
        Op::GetXattr(name, which) => get_xattr(&name.at(root), XATTRS[*which].as_bytes()).map(|v| bytes(&v)),
        Op::Stat(name) => {
            let path = name.at(root);
            let xattrs = list_xattrs(&path)?.len() as u64;
            let mut facts = facts(&path)?;
            // Folded into one: how many attributes, and the time where it was set by hand.
            let set_by_hand =
                mtime(&path).map(|t| if t.0 < 946_684_800 || t.0 > 2_208_988_800 { t.0 } else { 0 })?;
            facts.rdev = facts.rdev.wrapping_add(xattrs << 40).wrapping_add(set_by_hand as u64);
            Ok(Told::Facts(facts))
        }
        Op::List(name) => {
            let list = names(&name.at(root))?;
            Ok(Told::Names(list.len() as u64, list))
        }
        _ => Err(io::Error::other("not a question")),
    }
}

fn change(op: &Op, root: &Path) -> io::Result<()> {
    let at = |name: &Name| name.at(root);
    match op {
        Op::Create(name, mode) => create_new(&at(name), *mode).map(drop),
        Op::Write(name, offset, data) => {
            regular(&at(name))?;
            OpenOptions::new().write(true).open(at(name))?.write_all_at(&data.bytes(), *offset)
        }
        Op::Append(name, data) => {
            regular(&at(name))?;
            let mut file = OpenOptions::new().append(true).open(at(name))?;
            io::Write::write_all(&mut file, &data.bytes())
        }
        Op::Truncate(name, len) => Ok(nix::unistd::truncate(&at(name), *len as i64)?),
        Op::Mkdir(name, mode) => mkdir(&at(name), *mode),
        Op::Rmdir(name) => fs::remove_dir(at(name)),
        Op::Unlink(name) => fs::remove_file(at(name)),
        Op::Rename(from, to, flags) => rename(&at(from), &at(to), RenameFlags::from_bits_retain(*flags)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Symlink(target, name) => symlink(String::from_utf8_lossy(&target.bytes()).as_ref(), at(name)),
        Op::Special(name, kind) => {
            let kinds = [SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFCHR];
            special(
                &at(name),
                kinds[*kind as usize],
                0o600,
                u64::from(*kind / 2) * nix::sys::stat::makedev(1, 3),
            )
        }
        Op::Chmod(name, mode) => chmod(&at(name), *mode),
        Op::Chown(name, uid, gid) => chown(&at(name), *uid, *gid),
        Op::Times(name, time) => set_times(&at(name), *time, *time),
        Op::SetXattr(name, which, data, flags) => set_xattr(&at(name), XATTRS[*which], &data.bytes(), *flags),
        Op::RemoveXattr(name, which) => remove_xattr(&at(name), XATTRS[*which]),
        _ => Err(io::Error::other("not a change")),
    }
}
