//! Opening a store: keys, lock, journal, index, replay. What cannot be trusted is rebuilt; what cannot be
//! rebuilt is said, and then nothing is written. The table of what may be found is in docs/GUARANTEES.md.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use super::care::CareState;
use super::config::Config;
use super::keys::{KeyMaterial, Keyring, Sealer, keyfile};
use super::last_scrub::Memory;
use super::layout::{Layout, identify, node_of, remove_tree};
use super::model::Edit;
use super::opener::{Base, Opener};
use super::room::Room;
use super::sums::{edited_settings, remember_settings};
use super::{Committed, Problems, Store};
use crate::types::error::IoContext;
use crate::types::{Clock, Disk, Error, OsDisk, Result, StoreUuid, SystemClock, Term};

/// Room without which opening does not even try: RocksDB's logs and manifest, a journal segment.
const OPENING_BYTES: u64 = 4 << 20;

pub use super::opener::{FileBytes, Progress};

/// Held while a store is open.
pub(super) type Lock = Arc<Flock<File>>;

/// What the store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Everything.
    ReadWrite,
    /// No record is committed, and nothing of the journal is changed. The index is brought up to the journal
    /// in memory.
    ReadOnly,
}

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// What for.
    pub mode: OpenMode,
    /// The key file, unless it lies where [`keyfile::default_path`] says.
    pub key_file: Option<PathBuf>,
    /// The disk below journal and packs.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The settings, instead of those in `config.toml`.
    pub config: Option<Config>,
    /// Counts chunks that replay finds in no pack as lost, and allows writing all the same.
    pub give_up_chunks: bool,
    /// When a file is finished and the next one begun.
    pub file_bytes: FileBytes,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            mode: OpenMode::ReadWrite,
            key_file: None,
            disk: Arc::new(OsDisk),
            clock: Arc::new(SystemClock),
            config: None,
            give_up_chunks: false,
            file_bytes: FileBytes::default(),
        }
    }
}

/// The store's lock, which its handles share.
pub(super) fn lock(layout: &Layout) -> Result<Lock> {
    let path = &layout.lock;
    let file = File::options().create(true).truncate(false).write(true).open(path).at("opening", path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Arc::new).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => Error::InUse(layout.root.clone()),
        e => Error::io("locking", path, e.into()),
    })
}

/// Unlocks the keys; also says whether a recovery key was exported and what to tell the operator.
fn unlock(
    layout: &Layout,
    id: StoreUuid,
    key_file: Option<&Path>,
    problems: &mut Problems,
) -> Result<(Sealer, bool)> {
    let keyring = Keyring::load(&OsDisk, &layout.keyring)?;
    if keyring.store() != id {
        let place = layout.keyring.display().to_string();
        let identity = layout.identity.display();
        return Err(Error::corrupt(
            "keyring",
            place,
            format!("it belongs to another store than {identity} names"),
        ));
    }
    let key: Option<KeyMaterial> = if keyring.is_encrypted() {
        let path = match key_file {
            Some(path) => path.to_owned(),
            None => keyfile::default_path(id)?,
        };
        let loaded = keyfile::read(&path).map_err(|e| Error::WrongKey {
            store: layout.root.clone(),
            detail: format!("{e}; put the key file or the exported recovery key there"),
        })?;
        if loaded.exposed {
            problems.push(format!("others may read the key file {}: chmod 600 it", path.display()));
        }
        Some(loaded.key)
    } else {
        None
    };
    let secrets = keyring.unlock(&layout.root, key.as_ref())?;
    Ok((Sealer::new(&secrets), keyring.recovery_exported()))
}

impl Store {
    /// Opens the store in `root`, bringing the index up to the journal. What is damaged opens read-only:
    /// [`Store::read_only`] says why, and [`Store::problems`] all of it.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::Version`], [`Error::InUse`], [`Error::WrongKey`], [`Error::Corrupt`]
    /// naming what is so damaged that nothing can be shown, [`Error::Io`].
    pub fn open(root: &Path, options: OpenOptions, progress: Progress<'_>) -> Result<Arc<Store>> {
        let root = std::fs::canonicalize(root).map_err(|_| Error::NoStore(root.to_owned()))?;
        // Before the lock, so that another version and a directory that is no store are called that.
        identify(&root)?;
        let layout = Layout::new(&root);
        let lock = lock(&layout)?;
        Store::open_locked(layout, lock, options, progress)
    }

    /// As [`Store::open`], by whoever holds the lock.
    pub(super) fn open_locked(
        layout: Layout,
        lock: Lock,
        options: OpenOptions,
        progress: Progress<'_>,
    ) -> Result<Arc<Store>> {
        let id = identify(&layout.root)?;
        let node = node_of(&layout.root)?;
        let mut problems = Problems::new();
        let (sealer, recovery_exported) = unlock(&layout, id, options.key_file.as_deref(), &mut problems)?;
        let sealer = Arc::new(sealer);
        let config = match options.config {
            Some(config) => config,
            None => Config::load(&*options.disk, &layout.config)?,
        };
        let wants_writes = options.mode == OpenMode::ReadWrite;
        let wanted = wants_writes.then_some(config.reserve_bytes);
        let room = Arc::new(Room::open(options.disk.clone(), &layout.root, &layout.reserve, wanted)?);
        if wants_writes && room.take() {
            // Where this does not help, whatever finds no room says so.
            let _ = room.make(OPENING_BYTES);
        }
        let opener = Opener {
            layout: &layout,
            id,
            sealer: &sealer,
            config: &config,
            disk: &options.disk,
            room: &room,
            file_bytes: options.file_bytes,
            wants_writes,
            give_up_chunks: options.give_up_chunks,
        };
        let Base { journal, index, chunks, scanned_bytes, damage, notes } =
            opener.base(&mut problems, progress)?;
        let blocking = damage.iter().find(|d| opener.blocks_writing(d.part)).map(|d| d.text.clone());
        let writable = wants_writes && blocking.is_none();
        let read_only = blocking.or_else(|| (!writable).then(|| "it was opened for reading only".to_owned()));
        let term = index.state().term;
        let (durable, applied) = (journal.durable(), index.state().applied);
        let settled = AtomicU64::new(journal.last().0.0);
        let store = Arc::new(Store {
            care: CareState::new(index.opened_at(), applied, scanned_bytes),
            gc: Mutex::default(),
            scrubbed: Memory::load(&OsDisk, &layout.scrub, &sealer),
            layout,
            id,
            node,
            config,
            sealer,
            recovery_exported: AtomicBool::new(recovery_exported),
            journal,
            index: Arc::new(index),
            chunks,
            clock: options.clock,
            disk: options.disk,
            room,
            read_only,
            damage,
            notes,
            wants_writes,
            poison: OnceLock::new(),
            durable: AtomicU64::new(durable.0),
            settled,
            commit: Mutex::new(Committed { term }),
            opening_problems: Mutex::new(problems),
            _lock: lock,
        });
        if writable {
            // What a killed scrub left keeps the space of old tables.
            remove_tree(&store.layout.checkpoint_scrubbed)?;
            // Files alone forget the numbers of packs that were deleted.
            store.chunks.skip_to(store.index.state().packed.0);
            store.begin_reign(Term(term.0 + 1))?;
            for edited in edited_settings(&store.layout.root) {
                tracing::warn!("{edited}");
            }
            if let Err(error) = remember_settings(&store.layout.root) {
                tracing::warn!(%error, "settings and ids were not summed up: fsck compares them with older ones");
            }
            store.room.take();
        }
        Ok(store)
    }

    /// A new term for each opening: generations and stale writers are told apart by it.
    fn begin_reign(&self, term: Term) -> Result<()> {
        self.commit.lock().term = term;
        self.commit(vec![Edit::Term], None).map(drop)
    }
}
