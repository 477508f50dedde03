//! `scrub`: reads and verifies everything, contents too, at a limited rate. Nothing is changed, and writers go
//! on: the index is looked at as it was at one record, as `fsck` does.

mod packs;

use std::path::Path;

use super::Store;
use super::check::Findings;
use super::control::Control;
use super::index::frozen::VersionRow;
use super::index::keys::{self, Family};
use super::index::{self, Frozen, Index};
use super::last_scrub::LastScrub;
use super::layout::{is_ghost, remove_tree};
use super::model::{Dirent, Inode, Recipe, Xattr};
use super::problem::Part;
use super::replay::open_record;
use super::sums::Seen;
use crate::types::{Error, Lsn, OsDisk, PackId, Result};

/// What a scrub costs that reads one frame or row beside its bytes, so that small ones count too.
const STEP_BYTES: u64 = 64;

impl Store {
    /// Reads everything once. A round that goes to its end is remembered; see [`Store::last_scrub`].
    /// Packs below `from_pack` are taken to have been read before.
    ///
    /// # Errors
    /// It was cancelled, or something stops the reading itself; what does not hold is in the findings.
    pub fn scrub(&self, control: &Control, from_pack: PackId) -> Result<Findings> {
        let frozen = self.index.freeze();
        let end = self.chunks.end();
        let mut findings = Findings { at: frozen.state.applied, ..Findings::default() };
        control.expect(self.bytes_to_read());
        for problem in &self.damage {
            findings.problem(problem.part, &problem.text);
        }
        findings.notes.extend(self.notes.iter().cloned());
        self.check_small_files(&mut findings);
        control.begin("scrubbing the journal");
        self.scrub_journal(findings.at, control, &mut findings)?;
        control.begin("scrubbing the index");
        let mut seen = Seen::new();
        self.scrub_index(&frozen, control, &mut seen, &mut findings)?;
        control.begin("scrubbing the checkpoints");
        self.scrub_checkpoints(control, &mut seen, &mut findings)?;
        control.begin("scrubbing the packs");
        self.scrub_packs(&frozen, (from_pack, end), control, &mut findings)?;
        self.name_files(&frozen, &mut findings, &|| control.advance(0))?;
        let (ended, problem) = (self.clock.now(), sentence(&findings));
        self.remember_scrub(|last| *last = LastScrub { ended, problem, next_pack: PackId(0) });
        Ok(findings)
    }

    /// Bytes of everything, for the progress.
    fn bytes_to_read(&self) -> u64 {
        let index = bytes_below(&self.layout.index);
        // The index is read three times: its rows with what they hold, its files' blocks, and their checksums.
        3 * index
            + bytes_below(&self.layout.packs)
            + self.journal.bytes()
            + bytes_below(&self.layout.checkpoints)
    }

    /// Every frame's checksum and chain, and that every body opens and decodes.
    fn scrub_journal(&self, last: Lsn, control: &Control, findings: &mut Findings) -> Result<()> {
        forget_cached(&self.layout.journal);
        self.check_journal(last, findings, |r| {
            control.advance(r.body.len() as u64 + STEP_BYTES)?;
            Ok(open_record(&self.sealer, r.lsn, r.term, &r.body).map(drop))
        })
    }

    /// Every row as it was frozen, opened and compared with its check; then the files on the disk, past every
    /// cache of ours.
    fn scrub_index(
        &self,
        frozen: &Frozen<'_>,
        control: &Control,
        seen: &mut Seen,
        findings: &mut Findings,
    ) -> Result<()> {
        let read = frozen.versions(|row| {
            findings.versions += 1;
            control.advance(row.key.len() as u64 + row.stored.public.len() as u64 + STEP_BYTES)?;
            if let Err(e) = verify(&self.index, &row) {
                findings.problem(Part::Index, e);
            }
            Ok(())
        });
        let mut changed = Vec::new();
        let files = read.and_then(|()| {
            if self.read_only().is_some() {
                return frozen.read_all(|bytes| control.advance(bytes)).map(drop);
            }
            let linked = &self.layout.checkpoint_scrubbed;
            remove_tree(linked)?;
            self.index.checkpoint(linked)?;
            let advance = |bytes| control.advance(bytes);
            let read = self.read_files(linked, control, seen).and_then(|()| {
                changed = self.index.compare_tables(linked, seen, &advance)?;
                Ok(())
            });
            remove_tree(linked)?;
            read
        });
        changed.into_iter().for_each(|e| findings.problem(Part::Table, e));
        match files {
            Err(e) if control.is_cancelled() => Err(e),
            Err(e) => {
                findings.problem(Part::Index, e);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn scrub_checkpoints(&self, control: &Control, seen: &mut Seen, findings: &mut Findings) -> Result<()> {
        for (lsn, path) in self.layout.checkpoints_made() {
            match self.read_files(&path, control, seen) {
                Ok(()) => {}
                Err(e) if control.is_cancelled() => return Err(e),
                // One that retention has removed meanwhile is no problem.
                Err(_) if is_ghost(&path) => {}
                Err(e) => {
                    findings.checkpoints.push(lsn);
                    let place = path.display().to_string();
                    findings.problem(Part::Checkpoint, Error::corrupt("checkpoint", place, e.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Reads all blocks of a checkpoint's files, and compares with their sums those not yet `seen` to be well.
    fn read_files(&self, checkpoint: &Path, control: &Control, seen: &mut Seen) -> Result<()> {
        forget_cached(checkpoint);
        let opened = Index::open_checkpoint(checkpoint, self.sealer.clone())?;
        index::compare_checkpoint(checkpoint, seen, &|bytes| control.advance(bytes))?;
        opened.freeze().read_all(|bytes| control.advance(bytes)).map(drop)
    }

    /// What the last whole round came to.
    pub fn last_scrub(&self) -> LastScrub {
        self.scrubbed.get()
    }

    /// Changes what is remembered of scrubs. Where it cannot be written it is remembered till the next start.
    pub fn remember_scrub(&self, change: impl FnOnce(&mut LastScrub)) {
        if let Err(error) = self.scrubbed.change((&OsDisk, &self.layout.scrub, &self.sealer), change) {
            tracing::warn!(%error, "what the scrub found is not remembered over a restart");
        }
    }
}

/// What an operator is told until a later scrub finds everything well.
fn sentence(findings: &Findings) -> String {
    let first = findings.damaged.iter().find_map(|d| d.affected.files.first());
    if let Some(file) = first {
        let path = String::from_utf8_lossy(&file.path);
        let count = findings.damaged.len();
        let chunks = if count == 1 { "1 damaged chunk" } else { &format!("{count} damaged chunks") };
        return format!(
            "scrub found {chunks}; the first file that needs one is {path} of volume {} ({})",
            file.volume, file.when
        );
    }
    match findings.problems.as_slice() {
        [] => String::new(),
        [only] => format!("scrub found: {}", only.text),
        [first, rest @ ..] => format!("scrub found: {}; and {} more", first.text, rest.len()),
    }
}

fn verify(index: &Index, row: &VersionRow<'_>) -> Result<()> {
    match keys::family_of(row.key) {
        Some(Family::Block) => index.verified_item::<Recipe>(row).map(drop),
        Some(Family::Inode) => index.verified_item::<Inode>(row).map(drop),
        Some(Family::Dirent) => index.verified_item::<Dirent>(row).map(drop),
        Some(Family::Xattr) => index.verified_item::<Xattr>(row).map(drop),
        None => Err(Error::corrupt("index key", crate::types::ids::hex(row.key), "no family has such keys")),
    }
}

/// Bytes of the files in a directory and one level below it.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Asks the kernel to drop what it caches of a file, or of the files in a directory, so that the disk is read.
fn forget_cached(path: &Path) {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter(|e| e.path().is_file()).for_each(|e| forget_cached(&e.path()));
        return;
    }
    if let Ok(file) = std::fs::File::open(path) {
        // Advice: where it is not taken, the cached bytes are verified.
        let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}
