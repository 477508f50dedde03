//! The files of a store, and the small ones that say what it is.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use crate::types::disk::{read_file, replace_file};
use crate::types::error::IoContext;
use crate::types::ids::unhex;
use crate::types::limits::FORMAT_VERSION;
use crate::types::{Disk, Error, Lsn, NodeUuid, OsDisk, Result, StoreUuid};

const SMALL_FILE_BYTES_MAX: usize = 4096;
const MAGIC: &str = "rewindfs-store";

/// Paths of a store's parts.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The store's directory.
    pub root: PathBuf,
    /// `rewindfs-store VERSION UUID`, one line; written last by `init`, so its presence makes a store.
    pub identity: PathBuf,
    /// This copy's own id in hex, one line.
    pub node: PathBuf,
    /// Locked while the store is open.
    pub lock: PathBuf,
    /// What the last scrub came to, sealed.
    pub scrub: PathBuf,
    /// How much usually happens in its volumes, sealed.
    pub rates: PathBuf,
    /// Settings.
    pub config: PathBuf,
    /// Wrapped keys.
    pub keyring: PathBuf,
    /// Segments.
    pub journal: PathBuf,
    /// Packs.
    pub packs: PathBuf,
    /// RocksDB.
    pub index: PathBuf,
    /// An index that was rebuilt where nothing may be written; of the opening that made it only.
    pub index_scratch: PathBuf,
    /// RocksDB checkpoints, each named by its LSN in 16 hex digits.
    pub checkpoints: PathBuf,
    /// The index's files as a scrub reads them; of the process that has the store open only.
    pub checkpoint_scrubbed: PathBuf,
    /// Room kept back for deleting on a full disk.
    pub reserve: PathBuf,
}

impl Layout {
    /// The layout of a store at `root`.
    pub fn new(root: &Path) -> Layout {
        let at = |name: &str| root.join(name);
        Layout {
            identity: at("store"),
            node: at("node"),
            lock: at("lock"),
            scrub: at("scrub"),
            rates: at("rates"),
            config: at("config.toml"),
            keyring: at("keyring"),
            journal: at("journal"),
            packs: at("packs"),
            index: at("index"),
            index_scratch: at("index.scratch"),
            checkpoints: at("checkpoints"),
            checkpoint_scrubbed: at("checkpoints").join("scrubbing"),
            reserve: at("reserve"),
            root: root.to_owned(),
        }
    }

    /// The checkpoints that were made, newest first, each with the LSN that it reaches at least.
    pub(super) fn checkpoints_made(&self) -> Vec<(Lsn, PathBuf)> {
        let mut found = self.checkpoints_named();
        found.retain(|(_, path)| !is_ghost(path));
        found.sort_by_key(|found| Reverse(found.0));
        found
    }

    /// Removes what is left of checkpoints that went while somebody opened them.
    pub(super) fn remove_ghosts(&self) -> Result<()> {
        let named = self.checkpoints_named().into_iter();
        named.filter(|(_, path)| is_ghost(path)).try_for_each(|(_, path)| remove_tree(&path))
    }

    /// Whatever has the name of a checkpoint.
    fn checkpoints_named(&self) -> Vec<(Lsn, PathBuf)> {
        let Ok(dir) = std::fs::read_dir(&self.checkpoints) else { return Vec::new() };
        dir.filter_map(|entry| {
            let path = entry.ok()?.path();
            let lsn = unhex::<8>(path.file_name()?.to_str()?).map(u64::from_be_bytes)?;
            Some((Lsn(lsn), path))
        })
        .collect()
    }

    /// Removes a checkpoint, in one step for whoever looks.
    pub(super) fn remove_checkpoint(&self, path: &Path) -> Result<()> {
        let removing = self.checkpoints.join("removing");
        remove_tree(&removing)?;
        match std::fs::rename(path, &removing) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("renaming", path),
            _ => remove_tree(&removing),
        }
    }

    /// Writes the identity.
    pub(super) fn write_identity(&self, disk: &dyn Disk, id: StoreUuid) -> Result<()> {
        let text = format!("{MAGIC} {FORMAT_VERSION} {id}\n");
        replace_file(disk, &self.identity, text.as_bytes())
            .map_err(|e| Error::io("writing", &self.identity, e))
    }

    /// Writes the node id.
    pub(super) fn write_node(&self, disk: &dyn Disk, node: NodeUuid) -> Result<()> {
        replace_file(disk, &self.node, format!("{node}\n").as_bytes())
            .map_err(|e| Error::io("writing", &self.node, e))
    }
}

fn read_line(path: &Path) -> std::io::Result<String> {
    let bytes = read_file(&OsDisk, path, SMALL_FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map(|s| s.trim().to_owned()).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

/// The id of the store in `root`.
///
/// # Errors
/// [`Error::NoStore`], [`Error::Version`], [`Error::Corrupt`].
pub fn identify(root: &Path) -> Result<StoreUuid> {
    let layout = Layout::new(root);
    let line = match read_line(&layout.identity) {
        Ok(line) => line,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Err(Error::NoStore(root.to_owned()));
        }
        Err(e) => return Err(Error::io("reading", &layout.identity, e)),
    };
    let bad = |detail: &str| Error::corrupt("store identity", layout.identity.display().to_string(), detail);
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(bad("it does not begin with rewindfs-store"));
    }
    let version = words.next().and_then(|v| v.parse::<u32>().ok()).ok_or_else(|| bad("no version"))?;
    if version != FORMAT_VERSION {
        return Err(Error::Version { path: root.to_owned(), found: version, expected: FORMAT_VERSION });
    }
    let id = words.next().and_then(unhex).ok_or_else(|| bad("no store id"))?;
    Ok(StoreUuid(id))
}

/// The node id of the store in `root`.
pub fn node_of(root: &Path) -> Result<NodeUuid> {
    let layout = Layout::new(root);
    let line = read_line(&layout.node).map_err(|e| Error::io("reading", &layout.node, e))?;
    let bad = || Error::corrupt("node id", layout.node.display().to_string(), "not 32 hex digits");
    Ok(NodeUuid(unhex(&line).ok_or_else(bad)?))
}

/// Whether a checkpoint has been removed: RocksDB makes a directory anew, with its log in it, where one goes
/// while it is being opened.
pub(super) fn is_ghost(checkpoint: &Path) -> bool {
    let mut files = match std::fs::read_dir(checkpoint) {
        Ok(files) => files,
        Err(e) => return e.kind() == std::io::ErrorKind::NotFound,
    };
    files.all(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("LOG")))
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("removing", path),
        _ => Ok(()),
    }
}
