//! Volumes: the filesystem itself, without FUSE. Every operation takes and returns plain values, so that it
//! can be tested without a kernel; `mount` only translates.
//!
//! Locks, in the order they are taken: the gate (shared by every operation that changes something, alone by
//! a barrier), a volume's namespace lock, cells' flush locks, cells' states in the order of their inode
//! numbers, the store's append lock. Waiting for the dirty budget happens before the gate.

mod access;
pub mod acl;
mod attr;
mod budget;
mod cell;
mod changes;
mod copy;
mod dir;
mod error;
mod exclusion;
mod extents;
mod file;
mod flush;
mod lineage;
mod log;
mod namespace;
mod patience;
pub mod policy;
mod protect;
pub mod purge;
mod range;
mod rename;
pub mod restore;
mod revealing;
mod same;
mod snapshot;
mod user;
mod xattr;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

pub use access::AccessTimes;
pub use attr::{Attr, SetAttr, Writer};
pub use changes::{Change, How, Scope, What};
pub use copy::CopySource;
pub use dir::DirEntry;
pub use error::{FsError, FsResult};
pub use lineage::{NamePath, Place};
pub use log::FileVersion;
pub use namespace::NewNode;
pub use range::{Allocate, Seek};
pub use rename::RenameMode;
pub use snapshot::{SnapshotCreate, SnapshotRow};
pub use user::{READ, SEARCH, User, WRITE};
pub use xattr::XattrMode;

use crate::arena::{self, Arena, Recovered};
use crate::store::index::{Version, View};
use crate::store::model::{Edit, FileKind, Inode, RequestId};
use crate::store::{Store, care::Care};
use crate::types::error::IoContext;
use crate::types::limits::{INO_MAX, VOLUMES_MAX};
use crate::types::{Ino, Lsn, Timestamp, VolumeId};
use access::Accesses;
use attr::new_attrs;
use budget::Budget;
use cell::{Cell, Cells};
use exclusion::Exclusions;
use flush::Flusher;

/// The volume that `init` promises.
pub const DEFAULT_VOLUME: &str = "main";

/// What all volumes of a store share.
pub struct Shared {
    store: Arc<Store>,
    cells: Cells,
    arena: Arc<Arena>,
    budget: Budget,
    accesses: Accesses,
    /// Whether a write is committed before it is answered, if the arena does not outlive the server.
    commits_first: bool,
    wake: Arc<flush::Wake>,
    readers: policy::keeper::Readers,
    keeping: policy::keeper::Keeping,
    /// How often a purge has taken files from the past, before it frees their data.
    purges: AtomicU64,
    /// One snapshot or volume change at a time; taken before every other lock.
    admin: Mutex<()>,
    /// Read: an operation that changes something. Written: a barrier.
    gate: RwLock<()>,
}

/// The volumes of an open store, with their background work. Dropping it stops the work; call
/// [`Volumes::close`] first to make everything durable. What is not committed then stays in the arena.
pub struct Volumes {
    shared: Arc<Shared>,
    open: Mutex<HashMap<VolumeId, Arc<Volume>>>,
    /// Dropped before the store: they end with it.
    _flusher: Flusher,
    care: Mutex<Option<Care>>,
    keeper: Mutex<Option<policy::keeper::Keeper>>,
}

/// One volume.
pub struct Volume {
    shared: Arc<Shared>,
    vol: VolumeId,
    name: String,
    next_ino: AtomicU64,
    /// One change of names at a time, so that a look-up made under it still holds when its record commits.
    namespace: Mutex<()>,
    /// What gets no history.
    exclusions: Mutex<Exclusions>,
    /// One restore or purge at a time; taken before every other lock but `admin`.
    restoring: Mutex<()>,
    /// The first inode numbers of stages that a restore of this process is preparing.
    staging: Mutex<std::collections::BTreeSet<Ino>>,
}

/// A cell in use; given back when dropped.
struct CellRef<'a> {
    shared: &'a Shared,
    vol: VolumeId,
    cell: Option<Arc<Cell>>,
}

impl std::ops::Deref for CellRef<'_> {
    type Target = Cell;
    #[expect(clippy::expect_used, reason = "only `drop` takes the cell out")]
    fn deref(&self) -> &Cell {
        self.cell.as_ref().expect("a cell in use")
    }
}

impl Drop for CellRef<'_> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.shared.cells.give_back(self.vol, cell);
        }
    }
}

impl Volumes {
    /// Takes over an open store. Makes the volume `main` if the store has none and may be written.
    ///
    /// # Errors
    /// From the store, or when the operating system gives no threads.
    pub fn new(store: Arc<Store>) -> FsResult<Volumes> {
        let arena = Arena::volatile(store.config().dirty_bytes_max).at("mapping memory for", store.path())?;
        Volumes::over(store, arena, false)
    }

    /// As [`Volumes::new`], for a server: what programs write lies in memory that outlives it, and what an
    /// earlier server left there is taken up. What an operator should know of that becomes a problem of the
    /// store's.
    ///
    /// # Errors
    /// As [`Volumes::new`].
    pub fn surviving(store: Arc<Store>) -> FsResult<Volumes> {
        let opened = arena::open(store.path(), store.node(), store.config().dirty_bytes_max)?;
        // Opening has written a record of its own, perhaps with the LSN of one that was noted and never came.
        let last = match opened.arena.noted() {
            Some((lsn, term)) => store.last_of(term, lsn)?,
            None => store.last(),
        };
        let left = opened.arena.recover(last);
        opened.arena.reign(store.term());
        let volumes = Volumes::over(store, opened.arena, true)?;
        volumes.take_up(left)?;
        if let Some(problem) = opened.problem {
            volumes.store().note_problem(problem);
        }
        Ok(volumes)
    }

    fn over(store: Arc<Store>, arena: Arc<Arena>, commits_first: bool) -> FsResult<Volumes> {
        let budget = Budget::new(arena.clone(), store.config().dirty_bytes_max);
        let shared = Arc::new(Shared {
            cells: Cells::new(),
            arena,
            budget,
            accesses: Accesses::default(),
            commits_first,
            wake: Arc::default(),
            readers: Default::default(),
            keeping: Default::default(),
            purges: AtomicU64::new(0),
            admin: Mutex::new(()),
            gate: RwLock::new(()),
            store: store.clone(),
        });
        let writable = store.read_only().is_none();
        let volumes = Volumes {
            _flusher: Flusher::start(&shared)?,
            care: Mutex::new(if writable { Some(Care::start(&store)?) } else { None }),
            keeper: Mutex::default(),
            shared,
            open: Mutex::new(HashMap::new()),
        };
        if writable && store.index().state().volumes.is_empty() {
            // Who owns the store is to be able to write in it.
            let path = volumes.store().path();
            let owner = std::fs::metadata(path).at("looking at", path)?;
            volumes.create(DEFAULT_VOLUME, (owner.uid(), owner.gid()))?;
        }
        Ok(volumes)
    }

    /// Makes what an earlier server left in the arena, newest first, the uncommitted bytes of their files.
    fn take_up(&self, left: Vec<Recovered>) -> FsResult<()> {
        let (mut bytes, mut lost) = (0, 0);
        for recovered in left {
            let (vol, ino, len) = (recovered.owner.volume, recovered.owner.ino, recovered.slot.len());
            let view = self.shared.store.view(vol, None);
            // Of a file that is gone nothing is left to be written.
            let Some(inode) = view.inode(ino)?.filter(|i| i.item.attrs.kind == FileKind::File) else {
                lost += len;
                drop(ManuallyDrop::into_inner(recovered.slot));
                continue;
            };
            let committed = inode.item.attrs.ctime;
            let load = || FsResult::Ok(inode.item.attrs);
            if let Some(cell) = self.shared.cells.get_or_load(vol, ino, load)? {
                cell.state.write().take_up(recovered, committed);
                bytes += len;
                self.shared.cells.give_back(vol, cell);
            }
        }
        if bytes + lost > 0 {
            tracing::info!(
                bytes,
                of_removed_files = lost,
                "took up what an earlier server had not committed"
            );
        }
        Ok(())
    }

    /// The memory for what is written and not yet committed.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.shared.arena
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn open(&self, name: &str) -> FsResult<Arc<Volume>> {
        let state = self.shared.store.index().state();
        let (vol, next_ino) =
            state.volume_named(name).map(|(vol, v)| (vol, v.next_ino)).ok_or(FsError::NotFound)?;
        drop(state);
        let mut open = self.open.lock();
        let volume = open.entry(vol).or_insert_with(|| {
            Arc::new(Volume {
                shared: self.shared.clone(),
                vol,
                name: name.to_owned(),
                next_ino: AtomicU64::new(next_ino),
                namespace: Mutex::new(()),
                exclusions: Mutex::default(),
                restoring: Mutex::new(()),
                staging: Mutex::default(),
            })
        });
        Ok(volume.clone())
    }

    /// Names of the volumes.
    pub fn names(&self) -> Vec<String> {
        let state = self.shared.store.index().state();
        state.volumes.values().filter(|v| !v.deleted).map(|v| v.name.clone()).collect()
    }

    /// Makes a volume whose root belongs to `owner` (user, group).
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::Invalid`] for a bad name.
    pub fn create(&self, name: &str, owner: (u32, u32)) -> FsResult<()> {
        if crate::types::point::check_new_name(name).is_err() {
            let text = "not a volume name: 1-128 bytes that can be seen, no /, not starting with @ or .";
            return Err(FsError::Invalid(text));
        }
        let _admin = self.shared.admin.lock();
        let store = &self.shared.store;
        let (taken, count, number) = {
            let state = store.index().state();
            (state.volume_named(name).is_some(), state.volumes.len(), state.next_volume)
        };
        if taken {
            return Err(FsError::Exists);
        }
        if count >= VOLUMES_MAX {
            return Err(FsError::Invalid("the store has as many volumes as it may"));
        }
        let vol = VolumeId(number.max(1));
        let now = store.clock().now();
        let mut attrs = new_attrs(FileKind::Dir, 0o755, owner, now, store.term().0);
        attrs.parent = Ino::ROOT;
        let lsn = store.commit(
            vec![
                Edit::VolumeCreate { vol, name: name.to_owned() },
                Edit::PutInode { vol, ino: Ino::ROOT, attrs },
            ],
            None,
        )?;
        store.sync(lsn)?;
        Ok(())
    }

    /// Gives up a volume and its history; its space is freed in the background.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Held`] when a snapshot of it is held.
    pub fn delete(&self, name: &str) -> FsResult<()> {
        let _admin = self.shared.admin.lock();
        let store = &self.shared.store;
        let vol = {
            let state = store.index().state();
            let (vol, volume) = state.volume_named(name).ok_or(FsError::NotFound)?;
            let points = volume.points.values().filter(|p| !p.deleting);
            protect::check_may_go(volume, points, store.clock().now())?;
            vol
        };
        let lsn = store.commit(vec![Edit::VolumeDelete { vol }], None)?;
        store.sync(lsn)?;
        self.open.lock().remove(&vol);
        Ok(())
    }

    /// Commits everything written so far and makes it durable.
    pub fn sync(&self) -> FsResult<Lsn> {
        self.shared.flush_all()?;
        Ok(self.shared.store.sync_all()?)
    }

    /// Commits everything, makes it durable and writes the index: what a clean stop does.
    pub fn close(&self) -> FsResult<()> {
        drop(self.keeper.lock().take());
        drop(self.care.lock().take());
        if self.shared.store.read_only().is_none() {
            self.shared.flush_all()?;
            self.shared.store.close()?;
            if !self.shared.arena.remove() {
                tracing::warn!("what could not be committed is kept in memory for the next mount");
            }
        }
        Ok(())
    }

    /// Commits everything, makes it durable and lets nothing change any more, for the server that comes next.
    /// Programs wait.
    ///
    /// # Errors
    /// From the store; then everything goes on as before.
    pub fn retire(&self) -> FsResult<()> {
        // Most of it while programs go on.
        self.sync()?;
        self.shared.store.flush_index()?;
        let kept = self.keeper.lock().take().is_some();
        drop(self.care.lock().take());
        let gate = self.shared.gate.write();
        match self.shared.flush_all().and_then(|()| Ok(self.shared.store.close()?)) {
            Ok(()) => {
                // Held until the process ends.
                let _held = ManuallyDrop::new(gate);
                Ok(())
            }
            Err(e) => {
                drop(gate);
                *self.care.lock() = Some(Care::start(&self.shared.store)?);
                if kept {
                    self.start_keeper()?;
                }
                Err(e)
            }
        }
    }

    /// Bytes written by programs and not yet committed.
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.budget.used()
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        // Before the cells go.
        self.shared.arena.leave();
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.store.clock().now()
    }

    /// The cell of an inode that exists.
    fn cell(&self, vol: VolumeId, ino: Ino) -> FsResult<CellRef<'_>> {
        let load = || {
            let inode = self.store.view(vol, None).inode(ino)?;
            inode.map(|v| v.item.attrs).ok_or(FsError::NotFound)
        };
        let cell = self.cells.get_or_load(vol, ino, load)?;
        Ok(CellRef { shared: self, vol, cell: Some(cell.ok_or(FsError::NotFound)?) })
    }
}

impl Volume {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub fn id(&self) -> VolumeId {
        self.vol
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// The memory for what is written and not yet committed.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.shared.arena
    }

    fn view(&self, at: Option<Lsn>) -> View {
        self.shared.store.view(self.vol, at)
    }

    /// The name hash that directory keys use.
    fn name_hash(&self, name: &[u8]) -> [u8; 16] {
        self.shared.store.sealer().name_hash(b"name", name)
    }

    /// An inode as the index has it.
    fn inode(&self, at: Option<Lsn>, ino: Ino) -> FsResult<Version<Inode>> {
        self.view(at).inode(ino)?.ok_or(FsError::NotFound)
    }

    /// The cell of an inode that exists.
    fn cell(&self, ino: Ino) -> FsResult<CellRef<'_>> {
        self.shared.cell(self.vol, ino)
    }

    /// The cell of an inode that is being changed just now, if it is.
    fn cell_if_any(&self, ino: Ino) -> Option<CellRef<'_>> {
        let cell = self.shared.cells.get(self.vol, ino)?;
        Some(CellRef { shared: &self.shared, vol: self.vol, cell: Some(cell) })
    }

    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.shared.gate.read()
    }

    fn commit(&self, edits: Vec<Edit>, request: Option<RequestId>) -> FsResult<Lsn> {
        Ok(self.shared.store.commit(edits, request)?)
    }

    fn new_ino(&self) -> FsResult<Ino> {
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        if ino > INO_MAX {
            return Err(FsError::Invalid("the volume has used all its inode numbers"));
        }
        Ok(Ino(ino))
    }

    /// Fails early where nothing may be written.
    fn check_writable(&self) -> FsResult<()> {
        if let Some(reason) = self.shared.store.read_only() {
            return Err(crate::types::Error::ReadOnly(reason).into());
        }
        let state = self.shared.store.index().state();
        if state.volumes.get(&self.vol).is_some_and(|v| !v.deleted) { Ok(()) } else { Err(FsError::NotFound) }
    }
}
