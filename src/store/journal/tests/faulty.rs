//! A disk in memory that forgets what was not synced, tears, fills up and fails on demand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::{Disk, DiskFile};

/// Bytes that reach the medium together.
const PAGE: usize = 512;

/// What happens at one chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this operation and all later ones fail; a write gets `0..=1` of its bytes, in 256ths.
    Power(u8),
    /// This one fails with that errno after `0..=1` of a write, in 256ths; later ones work.
    Once(i32, u8),
}

/// What of the unsynced changes is still there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// All: only the process died.
    All,
    /// Page by page by chance, directory changes up to some moment: a real power cut.
    Some(u64),
}

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    /// Every state of the directory since it was synced, that one first.
    history: Vec<BTreeMap<PathBuf, usize>>,
    ops: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
    log: Vec<&'static str>,
}

#[derive(Clone, Default)]
pub struct FaultyDisk(Arc<Mutex<State>>);

struct Handle(FaultyDisk, usize);

fn errno(n: i32) -> io::Error {
    io::Error::from_raw_os_error(n)
}

impl State {
    /// Counts a changing operation; an error carries how much of a write happens all the same.
    fn op(&mut self, what: &'static str) -> Result<(), (io::Error, u8)> {
        let n = self.ops;
        self.ops += 1;
        self.log.push(what);
        if self.off {
            return Err((errno(libc::EIO), 0));
        }
        match self.fault {
            Some((at, Fault::Power(part))) if at == n => {
                self.off = true;
                Err((errno(libc::EIO), part))
            }
            Some((at, Fault::Once(e, part))) if at == n => Err((errno(e), part)),
            _ => Ok(()),
        }
    }

    fn renamed(&mut self) {
        let names = self.names.clone();
        self.history.push(names);
    }
}

impl FaultyDisk {
    pub fn new() -> FaultyDisk {
        let disk = FaultyDisk::default();
        disk.0.lock().history.push(BTreeMap::new());
        disk
    }

    pub fn ops(&self) -> u64 {
        self.0.lock().ops
    }

    /// What operation `n` was.
    pub fn what(&self, n: u64) -> &'static str {
        self.0.lock().log[n as usize]
    }

    /// Makes operation `at` (counted from the disk's beginning) go wrong.
    pub fn set_fault(&self, at: u64, fault: Fault) {
        self.0.lock().fault = Some((at, fault));
    }

    /// The disk that the next server finds.
    pub fn crash(&self, keep: Keep) -> FaultyDisk {
        let state = self.0.lock();
        let mut random = match keep {
            Keep::Some(seed) => seed | 1,
            _ => 1,
        };
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random >> 11
        };
        let names = match keep {
            Keep::Nothing => state.history[0].clone(),
            Keep::All => state.names.clone(),
            Keep::Some(_) => state.history[next() as usize % state.history.len()].clone(),
        };
        let mut inodes = state.inodes.clone();
        for inode in &mut inodes {
            match keep {
                Keep::Nothing => inode.now = inode.durable.clone(),
                Keep::All => {}
                Keep::Some(_) => {
                    let (old, new) = (inode.durable.clone(), std::mem::take(&mut inode.now));
                    let len = if next() % 2 == 0 { old.len() } else { new.len() };
                    inode.now = vec![0; len];
                    for (page, out) in inode.now.chunks_mut(PAGE).enumerate() {
                        let from = if next() % 2 == 0 { &old } else { &new };
                        let source = from.get(page * PAGE..).unwrap_or_default();
                        let n = out.len().min(source.len());
                        out[..n].copy_from_slice(&source[..n]);
                    }
                }
            }
            if keep != Keep::All {
                inode.durable = inode.now.clone();
            }
        }
        let history = if keep == Keep::All { state.history.clone() } else { vec![names.clone()] };
        FaultyDisk(Arc::new(Mutex::new(State { inodes, names, history, ..State::default() })))
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.0.0.lock();
        let source = state.inodes[self.1].now.get(offset as usize..).unwrap_or_default();
        let n = buf.len().min(source.len());
        buf[..n].copy_from_slice(&source[..n]);
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.0.lock();
        let result = state.op("write");
        let n = match &result {
            Ok(()) => buf.len(),
            Err((_, part)) => (buf.len() * usize::from(*part)).div_ceil(255).min(buf.len()),
        };
        if n > 0 {
            let file = &mut state.inodes[self.1].now;
            let end = offset as usize + n;
            if file.len() < end {
                file.resize(end, 0);
            }
            file[offset as usize..end].copy_from_slice(&buf[..n]);
        }
        if result.is_err() && !state.off {
            // The kernel may write back at any moment; right after a failed write is the worst one.
            let inode = &mut state.inodes[self.1];
            inode.durable = inode.now.clone();
        }
        result.map_err(|(e, _)| e)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.0.lock();
        state.op("sync").map_err(|(e, _)| e)?;
        let inode = &mut state.inodes[self.1];
        inode.durable = inode.now.clone();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.0.lock();
        state.op("set_len").map_err(|(e, _)| e)?;
        state.inodes[self.1].now.resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().inodes[self.1].now.len() as u64)
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.op("create").map_err(|(e, _)| e)?;
        if state.names.contains_key(path) {
            return Err(errno(libc::EEXIST));
        }
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(path.to_owned(), inode);
        state.renamed();
        Ok(Arc::new(Handle(self.clone(), inode)))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let inode = *self.0.lock().names.get(path).ok_or_else(|| errno(libc::ENOENT))?;
        Ok(Arc::new(Handle(self.clone(), inode)))
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.0.lock().names.keys().map(|p| p.file_name().unwrap().to_owned()).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.contains_key(path) {
            return Err(errno(libc::ENOENT));
        }
        state.op("remove").map_err(|(e, _)| e)?;
        state.names.remove(path);
        state.renamed();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let result = state.op("rename");
        // The worst failure is one that did happen.
        if !matches!(result, Err((_, part)) if part < 255) {
            let inode = state.names.remove(from).ok_or_else(|| errno(libc::ENOENT))?;
            state.names.insert(to.to_owned(), inode);
            state.renamed();
        }
        result.map_err(|(e, _)| e)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.op("sync_dir").map_err(|(e, _)| e)?;
        state.history = vec![state.names.clone()];
        Ok(())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}
