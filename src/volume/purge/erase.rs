//! Carrying a purge out, from its intent on. Each step leaves a state from which [`Volumes::resume_purge`] goes on.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::find::Found;
use super::{Host, Past, TRIES, refuse};
use crate::store::control::Control;
use crate::store::model::Edit;
use crate::types::limits::SWEEP_ITEMS_MAX;
use crate::types::{Ino, Lsn};
use crate::volume::lineage::NamePath;
use crate::volume::restore::Touched;
use crate::volume::{FsError, FsResult, Volume, Volumes};

/// How long the kernel may take to let go of a file without names, and programs to get their answers.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

impl Volumes {
    /// Records what is to be erased and takes its names away: from here on no new point shows it. None when it is
    /// not what was found any more.
    ///
    /// # Errors
    /// As [`Volumes::purge`].
    pub(super) fn begin_purge(
        &self,
        volume: &Volume,
        path: &NamePath,
        found: &Found,
    ) -> FsResult<Option<Touched>> {
        // No snapshot is made, held or deleted between the last look at them and the intent.
        let _admin = self.shared.admin.lock();
        {
            let _gate = volume.enter();
            let _names = volume.namespace.lock();
            match volume.files_of(path) {
                // Some of it may have been forgotten meanwhile; its bytes are still to go.
                Ok(inodes) if inodes.is_subset(&found.purge.inodes) => {}
                Err(FsError::NotFound) => {}
                Ok(_) => return Ok(None),
                Err(e) => return Err(e),
            }
            refuse(&volume.purge_refusals(found)?)?;
            volume.note_purges(&found.purge.inodes, true)?;
        }
        volume.take_names(&found.purge.inodes).map(Some)
    }

    /// Erases what has lost its names. Returns what keeps some of it for now.
    pub(super) fn carry_out(
        &self,
        volume: &Volume,
        found: Found,
        touched: Touched,
        host: &dyn Host,
        control: &Control,
    ) -> FsResult<Vec<String>> {
        let store = &self.shared.store;
        let mut left = BTreeSet::new();
        let mut tell = |told: Result<(), String>| {
            if told.is_err() {
                left.insert("the volume is unmounted: until then the kernel may know some of it".to_owned());
            }
        };
        tell(host.tell(&touched));
        let open = volume.let_go(&found.purge.inodes, host)?;
        store.purge_blocks(&found.purge)?;
        let past = past(&found);
        tell(host.tell_past(&past));
        let mut gone = || {
            self.shared.purges.fetch_add(1, Ordering::AcqRel);
        };
        store.purge_history(&found.purge, &mut gone, &mut |erased| host.erased(erased))?;
        // Programs may have looked meanwhile.
        tell(host.tell_past(&past));
        if open {
            left.insert("the programs have closed it that opened it just now".to_owned());
            return Ok(left.into_iter().collect());
        }
        store.sync_all()?;
        let packs = match &found.data {
            Some(data) => store.purge_packs(data)?,
            None => None,
        };
        let is_quiet = |from: Lsn| within(PATIENCE, || !self.shared.arena.asked_before(from));
        left.extend(store.purge_bytes(&found.purge, packs.as_ref(), &is_quiet, control)?);
        if left.is_empty() {
            volume.note_purges(&found.purge.inodes, false)?;
            store.sync_all()?;
        }
        Ok(left.into_iter().collect())
    }
}

impl Volume {
    fn note_purges(&self, inodes: &BTreeSet<Ino>, pending: bool) -> FsResult<()> {
        let vol = self.vol;
        let edits: Vec<Edit> = inodes.iter().map(|ino| Edit::Purge { vol, ino: *ino, pending }).collect();
        for edits in edits.chunks(SWEEP_ITEMS_MAX) {
            self.commit(edits.to_vec(), None)?;
        }
        Ok(())
    }

    /// Takes away the names that inodes have. The caller holds the admin lock.
    pub(super) fn take_names(&self, inodes: &BTreeSet<Ino>) -> FsResult<Touched> {
        let mut touched = Touched::default();
        for _ in 0..TRIES {
            let names = self.names_of(inodes)?;
            let live: Vec<_> = names.into_iter().filter(|name| name.is_live()).collect();
            if live.is_empty() {
                let inodes = inodes.iter().copied().filter(|ino| self.is_alive(*ino));
                touched.orphans = inodes.collect();
                return Ok(touched);
            }
            for name in live {
                match self.unlink_from(name.place.0, &name.name, name.ino) {
                    Ok(_) | Err(FsError::NotFound) => {}
                    Err(e) => return Err(e),
                }
                touched.inodes.extend([name.place.0, name.ino]);
                touched.entries.push((name.place.0, name.name));
            }
        }
        Err(FsError::Refused("programs give it new names all the time; the purge goes on by itself".into()))
    }

    fn is_alive(&self, ino: Ino) -> bool {
        matches!(self.view(None).inode(ino), Ok(Some(_)))
    }

    /// Removes what has no name from the present, once the kernel does not hold it. Whether some of it is open.
    fn let_go(&self, inodes: &BTreeSet<Ino>, host: &dyn Host) -> FsResult<bool> {
        let mut failed = None;
        let all_gone = within(PATIENCE, || {
            let alive: Vec<Ino> = inodes.iter().copied().filter(|ino| self.is_alive(*ino)).collect();
            let held = host.holds(&alive);
            for ino in alive.into_iter().filter(|ino| !held.contains(ino)) {
                if let Err(e) = self.remove_orphan(ino) {
                    failed = Some(e);
                    return true;
                }
            }
            held.is_empty()
        });
        failed.map_or(Ok(!all_gone), Err)
    }
}

/// Whether something comes true in time.
fn within(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if since.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What a kernel may know of it. Of an inode of which nothing is left, at any point.
fn past(found: &Found) -> Past {
    let name = |n: &super::find::Name| (n.place.0, n.name.clone(), n.since, n.end);
    let inode = |ino: &Ino| {
        let lives = || found.lives.get(ino).into_iter().flatten();
        let since = lives().map(|life| life.since).min().unwrap_or(Lsn::ZERO);
        (*ino, since, lives().map(|life| life.end).max().unwrap_or(Lsn::MAX))
    };
    Past {
        names: found.names.iter().map(name).collect(),
        inodes: found.purge.inodes.iter().map(inode).collect(),
    }
}
