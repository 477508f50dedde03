//! The steps that work on files, before the store is opened again.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Plan, Step};
use crate::store::chunks::pack;
use crate::store::journal::{Journal, JournalOptions};
use crate::store::layout::{Layout, identify};
use crate::types::error::IoContext;
use crate::types::{Clock, PackId};
use crate::types::{Disk, Error, OsDisk, Result, SystemClock};

/// The folder of one repair.
pub(super) struct Aside<'a> {
    path: PathBuf,
    disk: &'a dyn Disk,
}

impl<'a> Aside<'a> {
    /// Makes it, with the plan in it.
    pub(super) fn make(layout: &Layout, disk: &'a dyn Disk, plan: &Plan) -> Result<Aside<'a>> {
        let mut seconds = SystemClock.now().secs;
        let path = loop {
            let path = layout.root.join(format!("repair-{seconds}"));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
                made => break made.map(|()| path.clone()).at("making", &path)?,
            }
        };
        // No file names of users: those are nowhere in the store in plain text.
        let steps: String = plan.steps.iter().map(|step| format!("{step}\n")).collect();
        let text = format!("What rewindfs fsck --repair moved aside. It may be deleted.\n\n{steps}");
        let note = path.join("plan");
        fs::write(&note, text).and_then(|()| File::open(&note)?.sync_all()).at("writing", &note)?;
        disk.sync_dir(&layout.root).at("syncing", &layout.root)?;
        Ok(Aside { path, disk })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does what a step does to files; may be repeated after a crash, as every step looks at what is there.
    pub(super) fn on_files(&self, layout: &Layout, step: &Step) -> Result<()> {
        match step {
            Step::Checkpoint { path, .. } => self.take(path, "checkpoint-"),
            Step::Index => self.take(&layout.index, ""),
            Step::CutTail { cut, segments, .. } => {
                self.take_all(segments)?;
                cut.as_ref().map_or(Ok(()), |(path, at)| self.cut(path, *at))
            }
            Step::DropFront { segments } => self.take_all(segments),
            Step::BeginAnew { first, before, segments } => {
                self.take_all(segments)?;
                let (store, options) = (identify(&layout.root)?, JournalOptions::default());
                let disk = std::sync::Arc::new(OsDisk);
                Journal::start_at(disk, &layout.journal, store, options, *first, *before).map(drop)
            }
            Step::Footer { pack } => self.footer(layout, *pack),
            Step::GiveUp { .. } | Step::Rewrite | Step::Recount => Ok(()),
        }
    }

    /// Moves segments aside, newest first, so that what is left is one run at every moment.
    fn take_all(&self, segments: &[PathBuf]) -> Result<()> {
        segments.iter().rev().try_for_each(|segment| self.take(segment, ""))
    }

    /// Moves a file or directory here.
    fn take(&self, path: &Path, prefix: &str) -> Result<()> {
        let to = self.place_of(path, prefix);
        match fs::rename(path, &to) {
            // A missing index is one of the reasons to be here.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            moved => moved.at("moving aside", path)?,
        }
        self.disk.sync_dir(&self.path).at("syncing", &self.path)?;
        let parent = path.parent().unwrap_or(path);
        self.disk.sync_dir(parent).at("syncing", parent)
    }

    fn place_of(&self, path: &Path, prefix: &str) -> PathBuf {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        self.path.join(format!("{prefix}{name}"))
    }

    /// Copies a segment here, then ends it at `at`.
    fn cut(&self, path: &Path, at: u64) -> Result<()> {
        let copy = self.place_of(path, "");
        fs::copy(path, &copy).and_then(|_| File::open(&copy)?.sync_all()).at("copying", &copy)?;
        self.disk.sync_dir(&self.path).at("syncing", &self.path)?;
        let file = self.disk.open(path, true).at("opening", path)?;
        file.set_len(at).and_then(|()| file.sync_data()).at("cutting", path)
    }

    /// Writes a pack's footer behind its frames; what lies there now is copied here.
    fn footer(&self, layout: &Layout, pack: PackId) -> Result<()> {
        let (dir, store) = (&layout.packs, identify(&layout.root)?);
        let path = pack::pack_path(dir, pack);
        let mut entries = Vec::new();
        let scanned =
            pack::scan(self.disk, dir, store, pack, 0, pack::Trust::Frames, &mut |id, location| {
                entries.push((id, location));
                Ok(())
            })?;
        if !scanned.damage.is_empty() || scanned.valid_end == 0 {
            return Err(Error::corrupt("pack", path.display().to_string(), "its frames are not whole"));
        }
        let mut rest = Vec::new();
        let mut file = File::open(&path).at("opening", &path)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(scanned.valid_end)).at("reading", &path)?;
        file.take(pack::FOOTER_BYTES_MAX as u64 * 2).read_to_end(&mut rest).at("reading", &path)?;
        let copy = self.place_of(&path, "footer-");
        fs::write(&copy, rest).and_then(|()| File::open(&copy)?.sync_all()).at("writing", &copy)?;
        pack::write_footer_anew(self.disk, &path, store, pack, &entries, scanned.valid_end)
    }
}
