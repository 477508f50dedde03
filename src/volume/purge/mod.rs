//! Erasing a file from every point: all that its name ever meant, under all names, live and past.
//!
//! `find` says what belongs to it, `guard` what forbids it, `erase` does it: from the moment at which an intent is
//! recorded the purge is carried through, by the next server if need be. What is recorded is only which inodes go;
//! everything else is found by looking for what is left of them.

mod erase;
mod find;
mod guard;

use super::lineage::NamePath;
use super::restore::Touched;
use super::{FsError, FsResult, Volume, Volumes};
use crate::store::NamedFile;
use crate::store::control::Control;
use crate::types::{Ino, Lsn};
use find::Found;

/// How often everything is looked at anew because programs changed it meanwhile.
const TRIES: usize = 8;
/// Reasons of a refusal that are told.
const REASONS_MAX: usize = 5;

/// What a kernel may know of the past of files that are erased, with the records from which on and before which
/// points show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Names in directories.
    pub names: Vec<(Ino, Vec<u8>, Lsn, Lsn)>,
    /// Inodes.
    pub inodes: Vec<(Ino, Lsn, Lsn)>,
}

/// What a purge asks of whoever serves the volume.
pub trait Host: Sync {
    /// The kernel is to forget these, live; what is in `orphans` is to go when nobody holds it.
    ///
    /// # Errors
    /// It cannot be told.
    fn tell(&self, touched: &Touched) -> Result<(), String>;

    /// The kernel is to forget what it knows of the past, pages included.
    ///
    /// # Errors
    /// It cannot be told.
    fn tell_past(&self, past: &Past) -> Result<(), String>;

    /// Which of these live inodes the kernel holds: when it has forgotten their names, somebody has them open.
    fn holds(&self, inodes: &[Ino]) -> Vec<Ino>;

    /// So many versions have been erased.
    fn erased(&self, _versions: u64) {}
}

/// A name under which the file is or was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgedName {
    /// Its path, from the volume's root on.
    pub path: Vec<u8>,
    /// Whether it has it now.
    pub live: bool,
    /// Versions that the file had under it.
    pub versions: u64,
}

/// What a purge comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Names, in the order of their paths; at most [`PURGE_LISTED_MAX`](crate::types::limits::PURGE_LISTED_MAX).
    pub names: Vec<PurgedName>,
    /// How many there are.
    pub names_total: u64,
    /// Inodes: more than one where the file was replaced.
    pub files: u64,
    /// Versions of them.
    pub versions: u64,
    /// Snapshots that show one of these, oldest first, at most as many.
    pub snapshots: Vec<String>,
    /// How many there are.
    pub snapshots_total: u64,
    /// Bytes of data in all versions.
    pub bytes: u64,
    /// Bytes that remain because other files have them, too.
    pub shared_bytes: u64,
    /// Some of those files: volume and path. None where it would take too long to find them.
    pub shared_with: Option<Vec<NamedFile>>,
    /// Why it is refused: only of a dry run, else it is an error.
    pub refused: Vec<String>,
    /// What keeps some of the bytes on the disk for now: they go when …
    pub left: Vec<String>,
    /// What the purge leaves alone and may hold some of it.
    pub notes: Vec<String>,
}

impl Volumes {
    /// Erases what `path` means or ever meant from the present and from every point, and its bytes from the disk;
    /// with `dry_run` only says what that would be.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the path never meant anything that is still known, [`FsError::IsDir`],
    /// [`FsError::Held`] and [`FsError::Refused`] with the reason, with nothing changed. After any other error the
    /// purge may have begun, and [`Volumes::resume_purge`] goes on.
    pub fn purge(
        &self,
        volume: &Volume,
        path: &NamePath,
        dry_run: bool,
        host: &dyn Host,
        control: &Control,
    ) -> FsResult<Purged> {
        if !dry_run {
            volume.check_writable()?;
        }
        let _one = volume.restoring.lock();
        if !dry_run {
            // What a restore had prepared is not to keep any of it.
            volume.remove_stages()?;
        }
        for _ in 0..TRIES {
            let found = volume.find_purge(path)?;
            let mut report = volume.describe_purge(&found)?;
            report.refused = volume.purge_refusals(&found)?;
            if report.refused.is_empty() && self.shared.store.read_only().is_none() {
                report.refused.extend(volume.open_somewhere(&found, host)?);
            }
            if dry_run {
                return Ok(report);
            }
            refuse(&report.refused)?;
            if let Some(touched) = self.begin_purge(volume, path, &found)? {
                report.left = self.carry_out(volume, found, touched, host, control)?;
                report.notes = self.shared.store.purge_notes()?;
                return Ok(report);
            }
        }
        Err(FsError::Refused("programs change the file all the time; stop them and try again".into()))
    }

    /// Goes on with purges that were cut short; None when there are none, or when one is under way.
    ///
    /// # Errors
    /// From the store.
    pub fn resume_purge(
        &self,
        volume: &Volume,
        host: &dyn Host,
        control: &Control,
    ) -> FsResult<Option<Purged>> {
        let Some(_one) = volume.restoring.try_lock() else { return Ok(None) };
        let inodes = self.shared.store.index().purges(volume.vol)?;
        if inodes.is_empty() {
            return Ok(None);
        }
        volume.check_writable()?;
        let found = Found::of(volume, inodes)?;
        let touched = {
            let _admin = self.shared.admin.lock();
            volume.take_names(&found.purge.inodes)?
        };
        let files = found.purge.inodes.len() as u64;
        let left = self.carry_out(volume, found, touched, host, control)?;
        Ok(Some(Purged { files, left, notes: self.shared.store.purge_notes()?, ..Purged::default() }))
    }

    /// Whether purges of a volume were cut short, or wait for something.
    ///
    /// # Errors
    /// From the store.
    pub fn has_purges(&self, volume: &Volume) -> FsResult<bool> {
        Ok(!self.shared.store.index().purges(volume.vol)?.is_empty())
    }
}

fn refuse(reasons: &[String]) -> FsResult<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    let more = reasons.len().saturating_sub(REASONS_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let told: Vec<&str> = reasons.iter().take(REASONS_MAX).map(String::as_str).collect();
    Err(FsError::Held(format!("{}{more}", told.join("; "))))
}
