//! What forbids a purge.

use std::time::Duration;

use super::Host;
use super::find::Found;
use crate::types::Lsn;
use crate::types::point::rfc3339;
use crate::volume::protect::check_may_go;
use crate::volume::restore::Touched;
use crate::volume::{FsError, FsResult, Volume};

/// How often the kernel is asked whether somebody has the file open: a look at a name holds it for a moment, too.
const ASKED: usize = 6;
/// Between two times.
const PAUSE: Duration = Duration::from_millis(25);

impl Volume {
    /// Why points and policy forbid it: a sentence for each.
    pub(super) fn purge_refusals(&self, found: &Found) -> FsResult<Vec<String>> {
        let now = self.shared.now();
        let points = self.points_showing(found)?;
        let (mut reasons, since, older) = self.with_state(|volume| {
            let shown = points.iter().filter_map(|at| volume.points.get(at));
            let reasons = shown.filter_map(|point| check_may_go(volume, [point], now).err());
            let reasons: Vec<String> = reasons.map(|e| format!("{e}, and shows it")).collect();
            let since = volume.policy.immutable_since(now);
            let mut before = volume.points.iter().rev();
            let older = since.and_then(|since| before.find(|(_, p)| p.time <= since).map(|(at, _)| *at));
            (reasons, since, older)
        })?;
        if let Some(since) = since {
            let before = self.shared.store.index().lsn_at(since)?.max(older.unwrap_or(Lsn::ZERO));
            if found.lives.values().flatten().any(|life| life.end > before) {
                let since = rfc3339(since);
                reasons.push(format!("it was there within the immutable period, which began at {since}"));
            }
        }
        Ok(reasons)
    }

    /// Why programs forbid it: they have it open. The kernel forgets its names to tell, and asks for them again.
    pub(super) fn open_somewhere(&self, found: &Found, host: &dyn Host) -> FsResult<Option<String>> {
        let live = || found.names.iter().filter(|name| name.is_live());
        let entries = live().map(|name| (name.place.0, name.name.clone())).collect();
        let touched = Touched { entries, ..Touched::default() };
        let alive: Vec<_> = found
            .purge
            .inodes
            .iter()
            .copied()
            .filter(|ino| matches!(self.view(None).inode(*ino), Ok(Some(_))))
            .collect();
        let mut held = alive;
        for asked in 0..ASKED {
            if held.is_empty() {
                return Ok(None);
            }
            if asked > 0 {
                std::thread::sleep(PAUSE);
            }
            host.tell(&touched).map_err(FsError::Refused)?;
            held = host.holds(&held);
        }
        let Some(ino) = held.first() else { return Ok(None) };
        let name = live().find(|name| name.ino == *ino);
        Ok(Some(match name {
            Some(name) => {
                let name = String::from_utf8_lossy(&name.name).into_owned();
                format!("a program has {name} open; have it closed")
            }
            None => "a program has it open although it has no name any more; have it closed".to_owned(),
        }))
    }
}
