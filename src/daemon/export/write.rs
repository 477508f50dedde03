//! The writer: one file after the other, each with all that it has, then under its name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use super::source::{Node, Source, Spot, same_bytes};
use super::{ASIDE, BUFFER_BYTES, failed, xattr};
use crate::daemon::protocol::{ControlError, Progress, RestoreReport};
use crate::store::model::FileKind;
use crate::types::limits::{PATH_DEPTH_MAX, RESTORE_LINKS_MAX};

/// Between two words about progress.
const NEWS: Duration = Duration::from_millis(200);

pub(super) struct Writer<'a> {
    source: &'a dyn Source,
    dest: &'a Path,
    /// Where a file is written before it gets its name.
    part: PathBuf,
    /// Whether an earlier try may have left something.
    resumed: bool,
    report: &'a mut RestoreReport,
    progress: &'a mut dyn FnMut(Progress),
    /// Of files with several names: the first of them.
    links: HashMap<u64, PathBuf>,
    buffer: Vec<u8>,
    /// Objects whose owner only root could have set.
    not_owned: u64,
    said: Instant,
}

/// A directory that is being filled.
struct Filling {
    spot: Spot,
    /// The attributes that it gets when all is in it; the root gets them from whoever asked.
    node: Option<Node>,
    entries: std::vec::IntoIter<Spot>,
}

/// Why a file is not there.
enum Trouble {
    /// Of this file alone.
    File(io::Error),
    /// Of the destination: there is no point in going on.
    Destination(io::Error),
}

impl Trouble {
    fn writing(error: io::Error) -> Trouble {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EIO) => Trouble::Destination(error),
            _ => Trouble::File(error),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::File(error)
    }
}

fn times(node: &Node) -> [TimeSpec; 2] {
    node.times.map(|(secs, nanos)| TimeSpec::new(secs, nanos))
}

fn set_times(path: &Path, node: &Node) -> io::Result<()> {
    let [atime, mtime] = times(node);
    utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        source: &'a dyn Source,
        dest: &'a Path,
        part: PathBuf,
        resumed: bool,
        report: &'a mut RestoreReport,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Writer<'a> {
        let (links, buffer, said) = (HashMap::new(), vec![0; BUFFER_BYTES], Instant::now());
        Writer { source, dest, part, resumed, report, progress, links, buffer, not_owned: 0, said }
    }

    fn dest_of(&self, spot: &Spot) -> PathBuf {
        if spot.path.as_os_str().is_empty() { self.dest.to_owned() } else { self.dest.join(&spot.path) }
    }

    /// Writes one file that is not part of a tree.
    pub(super) fn file(mut self, spot: &Spot, node: &Node) -> Result<(), ControlError> {
        self.one(spot, node)?;
        self.note_owners();
        Ok(())
    }

    /// Whether nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.report.failed.is_empty()
    }

    /// Gives the destination the attributes of the tree's root, if nothing is missing in it.
    pub(super) fn finish(mut self, spot: &Spot, node: &Node) {
        if self.is_complete() {
            self.close(spot, node);
        }
        self.note_owners();
    }

    /// Writes a tree into the destination, which exists and gets its attributes later.
    pub(super) fn tree(&mut self, spot: &Spot) -> Result<(), ControlError> {
        let entries = self.source.entries(spot).map_err(|e| failed("listing", &spot.path, &e))?;
        let mut stack = vec![Filling { spot: spot.clone(), node: None, entries: entries.into_iter() }];
        while let Some(top) = stack.last_mut() {
            let Some(spot) = top.entries.next() else {
                if let Some(Filling { spot, node: Some(node), .. }) = stack.pop() {
                    self.close(&spot, &node);
                }
                continue;
            };
            if stack.len() == 1 && spot.path.as_os_str() == ASIDE {
                self.fail(&spot, "the name is used for the restore itself");
                continue;
            }
            let node = match self.source.node(&spot) {
                Ok(node) => node,
                Err(e) => {
                    self.fail(&spot, e);
                    continue;
                }
            };
            if node.kind != FileKind::Dir {
                self.one(&spot, &node)?;
            } else if stack.len() >= PATH_DEPTH_MAX {
                self.fail(&spot, "it lies too deep");
            } else if let Some(filling) = self.open(spot, node) {
                stack.push(filling);
            }
        }
        Ok(())
    }

    fn note_owners(&mut self) {
        if self.not_owned > 0 {
            let text =
                format!("{} files belong to you: only root can give them their owners", self.not_owned);
            self.report.fail(text);
        }
    }

    fn fail(&mut self, spot: &Spot, why: impl std::fmt::Display) {
        self.report.fail(format!("{}: {why}", spot.path.display()));
    }

    fn news(&mut self) {
        if self.said.elapsed() >= NEWS {
            self.said = Instant::now();
            let done = self.report.brought_back + self.report.skipped;
            (self.progress)(Progress { what: "writing".into(), done, total: 0, unit: "files".into() });
        }
    }

    /// Makes a directory, for the time being open to its maker alone.
    fn open(&mut self, spot: Spot, node: Node) -> Option<Filling> {
        let dest = self.dest_of(&spot);
        let entries = self.source.entries(&spot);
        let made = match fs::create_dir(&dest) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.resumed => fs::symlink_metadata(&dest)
                .and_then(|m| match m.is_dir() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::NotADirectory.into()),
                }),
            made => made,
        };
        let made = made.and_then(|()| fs::set_permissions(&dest, Permissions::from_mode(0o700)));
        match made.and(entries) {
            Ok(entries) => Some(Filling { spot, node: Some(node), entries: entries.into_iter() }),
            Err(e) => {
                self.fail(&spot, e);
                None
            }
        }
    }

    /// Gives a directory its attributes when all is in it.
    fn close(&mut self, spot: &Spot, node: &Node) {
        let dest = self.dest_of(spot);
        match self.dress(spot, node, &dest) {
            Ok(()) => self.report.brought_back += 1,
            Err(e) => self.fail(spot, e),
        }
    }

    /// Writes what is no directory.
    fn one(&mut self, spot: &Spot, node: &Node) -> Result<(), ControlError> {
        self.news();
        let dest = self.dest_of(spot);
        match self.write(spot, node, &dest) {
            Ok(()) => Ok(()),
            Err(Trouble::File(e)) => {
                let _ = fs::remove_file(&self.part);
                self.fail(spot, e);
                Ok(())
            }
            Err(Trouble::Destination(e)) => {
                let _ = fs::remove_file(&self.part);
                let text = format!("writing {}: {e}; run it again to go on", dest.display());
                Err(ControlError::failed(text))
            }
        }
    }

    fn write(&mut self, spot: &Spot, node: &Node, dest: &Path) -> Result<(), Trouble> {
        if self.resumed {
            let _ = fs::remove_file(&self.part);
        }
        if node.nlink > 1 {
            // Numbers of a listing; of a single file there is no second name.
            if let Some(first) = self.links.get(&spot.ino) {
                self.link(&first.clone(), dest)?;
                self.report.brought_back += 1;
                return Ok(());
            }
        }
        if self.resumed && self.is_done(spot, node, dest)? {
            self.report.skipped += 1;
        } else {
            self.make(spot, node)?;
            let part = self.part.clone();
            self.dress(spot, node, &part)?;
            fs::rename(&part, dest).map_err(Trouble::writing)?;
            self.report.brought_back += 1;
        }
        if node.nlink > 1 {
            if self.links.len() >= RESTORE_LINKS_MAX {
                let text = "too many files with several names: its other names become files of their own";
                return Err(io::Error::other(text).into());
            }
            self.links.insert(spot.ino, dest.to_owned());
        }
        Ok(())
    }

    /// Gives what was written one more name.
    fn link(&self, first: &Path, dest: &Path) -> Result<(), Trouble> {
        if self.resumed {
            let (a, b) = (fs::symlink_metadata(first)?, fs::symlink_metadata(dest));
            if b.is_ok_and(|b| (a.dev(), a.ino()) == (b.dev(), b.ino())) {
                return Ok(());
            }
        }
        fs::hard_link(first, &self.part).map_err(Trouble::writing)?;
        fs::rename(&self.part, dest).map_err(Trouble::writing)
    }

    /// Whether an earlier try has written it and it is what it should be.
    fn is_done(&self, spot: &Spot, node: &Node, dest: &Path) -> Result<bool, Trouble> {
        let Ok(m) = fs::symlink_metadata(dest) else { return Ok(false) };
        let owned = (m.uid(), m.gid()) == node.owner || !nix::unistd::geteuid().is_root();
        if node.kind != FileKind::File || !m.is_file() || !owned {
            return Ok(false);
        }
        if (m.mtime(), m.mtime_nsec()) != node.times[1] || m.mode() & 0o7777 != node.mode {
            return Ok(false);
        }
        let sorted = |mut xattrs: xattr::Xattrs| {
            xattrs.sort();
            xattrs
        };
        let same = sorted(self.source.xattrs(spot)?) == sorted(xattr::all(dest)?);
        Ok(same && same_bytes(&mut *self.source.content(spot, node.size)?, node.size, dest)?)
    }

    /// Writes it aside.
    fn make(&mut self, spot: &Spot, node: &Node) -> Result<(), Trouble> {
        let format = match node.kind {
            FileKind::File => return self.bytes(spot, node),
            FileKind::Symlink => {
                let target = self.source.target(spot)?;
                return symlink(OsStr::from_bytes(&target), &self.part).map_err(Trouble::writing);
            }
            FileKind::Fifo => SFlag::S_IFIFO,
            FileKind::Socket => SFlag::S_IFSOCK,
            FileKind::Char => SFlag::S_IFCHR,
            FileKind::Block => SFlag::S_IFBLK,
            FileKind::Dir => return Err(io::Error::from(io::ErrorKind::IsADirectory).into()),
        };
        mknod(&self.part, format, Mode::from_bits_truncate(0o600), node.rdev)
            .map_err(|e| Trouble::writing(e.into()))
    }

    /// The content, with its holes.
    fn bytes(&mut self, spot: &Spot, node: &Node) -> Result<(), Trouble> {
        let mut content = self.source.content(spot, node.size)?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&self.part);
        let file = file.map_err(Trouble::writing)?;
        file.set_len(node.size).map_err(Trouble::writing)?;
        let mut at = 0;
        while let Some((start, end)) = content.data(at)? {
            at = start;
            while at < end.min(node.size) {
                let len = usize::try_from(end.min(node.size) - at).unwrap_or(usize::MAX).min(BUFFER_BYTES);
                let Some(buffer) = self.buffer.get_mut(..len) else { break };
                content.read(at, buffer)?;
                file.write_all_at(buffer, at).map_err(Trouble::writing)?;
                at += len as u64;
                self.report.bytes += len as u64;
            }
            at = end;
        }
        Ok(())
    }

    /// Owner, extended attributes, mode, times: in this order, since each takes something of the next along.
    fn dress(&mut self, spot: &Spot, node: &Node, path: &Path) -> io::Result<()> {
        let mut mode = node.mode;
        let m = fs::symlink_metadata(path)?;
        if (m.uid(), m.gid()) != node.owner
            && let Err(e) = lchown(path, Some(node.owner.0), Some(node.owner.1))
        {
            if e.raw_os_error() != Some(libc::EPERM) {
                return Err(e);
            }
            // Of another owner they would mean something else.
            mode &= 0o1777;
            self.not_owned += 1;
        }
        for (name, value) in self.source.xattrs(spot)? {
            xattr::set(path, &name, &value).map_err(|e| {
                io::Error::new(e.kind(), format!("attribute {}: {e}", String::from_utf8_lossy(&name)))
            })?;
        }
        if node.kind != FileKind::Symlink {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        set_times(path, node)
    }
}
