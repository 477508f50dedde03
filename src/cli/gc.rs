//! `gc`.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, output, resolve, unexpected};
use crate::daemon::protocol::{Request, Response};
use crate::daemon::report::GcInfo;

/// Give the space of what was deleted back to the filesystem below.
///
/// This also happens by itself, to packs that are half dead, at the rate of the setting gc_bytes_per_second; here it
/// is done now, to all packs with dead bytes, as fast as the disk allows.
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// A path inside a mount, or a store directory.
    path: PathBuf,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Only say what it would come to.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(super) fn run(self) -> Outcome {
        let resolved = resolve::mount_or_store(&self.path, None, self.key_file.as_deref())?;
        let Response::Gc(info) = resolved.ask(Request::Gc { dry_run: self.dry_run })? else {
            return Err(unexpected());
        };
        if self.json {
            output::json(&info)?;
        } else {
            output::line(&line_of(&info))?;
        }
        output::done()
    }
}

fn line_of(info: &GcInfo) -> String {
    let [copied, before, after, freed] =
        [info.copied_bytes, info.before_bytes, info.after_bytes, info.freed_bytes].map(output::bytes);
    let (would, rewritten) =
        if info.dry_run { ("would free", "to be rewritten") } else { ("freed", "rewritten") };
    if info.packs == 0 && info.freed_bytes == 0 {
        return format!(
            "{would} nothing: all {before} in the packs are needed by live files, snapshots or the window"
        );
    }
    let packs = if info.packs == 1 { "pack" } else { "packs" };
    format!(
        "{would} {freed}: packs {before}, then {after} ({} {packs} {rewritten}, {copied} copied)",
        info.packs
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_it_came_to() {
        let mut info = GcInfo {
            store: "/s".into(),
            dry_run: true,
            packs: 2,
            copied_bytes: 1 << 20,
            before_bytes: 5 << 20,
            after_bytes: 2 << 20,
            freed_bytes: 3 << 20,
        };
        let text =
            "would free 3.00 MiB: packs 5.00 MiB, then 2.00 MiB (2 packs to be rewritten, 1.00 MiB copied)";
        assert_eq!(line_of(&info), text);
        info.dry_run = false;
        info.packs = 1;
        assert!(line_of(&info).starts_with("freed 3.00 MiB") && line_of(&info).contains("(1 pack rewritten"));
        (info.packs, info.freed_bytes) = (0, 0);
        assert!(line_of(&info).starts_with("freed nothing: all 5.00 MiB"));
    }
}
