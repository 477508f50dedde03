//! `purge`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Outcome, io_error, output, resolve, restore, shown, unexpected};
use crate::daemon::protocol::{ControlError, Kind, PurgeReport, PurgeRequest, Request, Response};

/// Erase a file from every point: the present, all snapshots and every moment.
///
/// All that the path ever meant goes, also what it replaced and what it was called before, under all other names of
/// it. The bytes leave the disk before this returns. Refused while a held snapshot or an immutable period needs it,
/// and while a program has it open. Copies of it are other files. It cannot be undone.
#[derive(Debug, Args)]
pub(super) struct Purge {
    /// A file inside a mount, which may be gone.
    path: PathBuf,
    /// Says that it is meant: every version of it, for good.
    #[arg(long)]
    all_history: bool,
    /// Only say what would be erased, what stays, and what would refuse it.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Lines of a list that people read.
const SHOWN: usize = 10;

impl Purge {
    pub(super) fn run(self) -> Outcome {
        if !self.all_history {
            let text = "purge erases every version for good; say --all-history if that is meant, with --dry-run to look first";
            return Err(ControlError::usage(text));
        }
        let Some(inside) = restore::inside(&self.path)? else {
            let path = shown(&self.path);
            return Err(ControlError::usage(format!("{path}: name a file by its path inside a mount")));
        };
        refuse_links(&self.path)?;
        let resolved = resolve::path(&inside.dir, None, None)?;
        let request = PurgeRequest { place: inside.place, dry_run: self.dry_run };
        let Response::Purged(report) = resolved.ask(Request::Purge(request))? else {
            return Err(unexpected());
        };
        if self.json {
            output::json(&*report)?;
        } else {
            for line in lines(&report) {
                output::line(&line)?;
            }
        }
        if report.dry_run && !report.refused.is_empty() {
            return Err(ControlError::failed("it would be refused"));
        }
        if report.bytes_go_when.is_empty() {
            return output::done();
        }
        let when = report.bytes_go_when.join("; ");
        Err(ControlError::new(
            Kind::Partial,
            format!("no point shows it any more; the last bytes go when {when}"),
        ))
    }
}

/// A symbolic link in a mount leads elsewhere at other times, and what points show behind it then is not what it leads
/// to now: one of the two would be left, or taken without having been meant.
fn refuse_links(path: &Path) -> Result<(), ControlError> {
    let path = std::path::absolute(path).map_err(|e| io_error("finding", path, &e))?;
    let above = path.ancestors().skip(1).filter(|above| above.is_symlink());
    for link in above {
        let Some(dir) = link.parent() else { continue };
        if !matches!(resolve::mount_of(dir), Ok(Some(_))) {
            continue;
        }
        let real = path.parent().and_then(|dir| dir.canonicalize().ok()).zip(path.file_name());
        let real =
            real.map_or_else(|| "the file by its real path".to_owned(), |(dir, name)| shown(dir.join(name)));
        return Err(ControlError::usage(format!(
            "{} is a symbolic link; purge {real}, or rename the link to purge what had that path before it",
            shown(link)
        )));
    }
    Ok(())
}

fn lines(report: &PurgeReport) -> Vec<String> {
    let mut lines = Vec::new();
    if report.resumed {
        lines.push(format!("a purge that had been cut short is carried through: {} files", report.files));
    } else {
        let would = if report.dry_run { "would be erased" } else { "erased" };
        lines.push(format!(
            "{would}: {} versions of {} files under {} names, {} of data, shown by {} snapshots",
            report.versions,
            report.files,
            report.names_total,
            output::bytes(report.bytes),
            report.snapshots_total
        ));
    }
    for name in report.names.iter().take(SHOWN) {
        let live = if name.live { "" } else { ", not there any more" };
        lines.push(format!("  {} ({} versions{live})", output::escaped(&name.path), name.versions));
    }
    let more = report.names_total.saturating_sub(report.names.len().min(SHOWN) as u64);
    if more > 0 {
        lines.push(format!("  and {more} more names"));
    }
    if report.snapshots_total > 0 {
        let shown = report.snapshots.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = report.snapshots_total.saturating_sub(SHOWN as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("snapshots: {shown}{more}"));
    }
    if report.shared_bytes > 0 {
        let bytes = output::bytes(report.shared_bytes);
        lines.push(format!("{bytes} stay, since other files have the same data"));
        for file in report.shared_with.iter().flatten() {
            lines.push(format!("  {} (volume {})", output::escaped(&file.path), file.volume));
        }
    }
    lines.extend(report.refused.iter().map(|reason| format!("would be refused: {reason}")));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::{PurgedName, SharingFile};

    #[test]
    fn what_goes_and_what_stays_is_said_in_lines() {
        let report = PurgeReport {
            dry_run: true,
            names: vec![PurgedName { path: "a/b".into(), live: false, versions: 3 }],
            names_total: 2,
            files: 1,
            versions: 4,
            snapshots: vec!["s".into()],
            snapshots_total: 12,
            bytes: 2048,
            shared_bytes: 1024,
            shared_with: Some(vec![SharingFile { volume: "main".into(), path: "/copy".into() }]),
            refused: vec!["snapshot s is held".into()],
            notes: vec!["n".into()],
            ..PurgeReport::default()
        };
        let expected = [
            "would be erased: 4 versions of 1 files under 2 names, 2.00 KiB of data, shown by 12 snapshots",
            "  a/b (3 versions, not there any more)",
            "  and 1 more names",
            "snapshots: s and 2 more",
            "1.00 KiB stay, since other files have the same data",
            "  /copy (volume main)",
            "would be refused: snapshot s is held",
            "note: n",
        ];
        assert_eq!(lines(&report), expected);
    }
}
