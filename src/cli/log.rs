//! `log`.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use nix::unistd::{Uid, User};

use super::{Outcome, output, resolve, unexpected};
use crate::daemon::news::Listener;
use crate::daemon::protocol::{ControlError, LogRequest, Part, Progress, Request, Response, VersionInfo};
use crate::types::point::rfc3339;

/// Show the versions of one file, newest first: also of a file that is gone, and through renames.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// A file inside a mount, which may be gone.
    file: PathBuf,
    /// No more versions than that.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Snapshots named in a line that people read.
const SNAPSHOTS_SHOWN: usize = 3;

/// Gathers what is printed, so that a reader who takes his time keeps no server waiting. The number of versions
/// is bounded, and with it this.
#[derive(Default)]
struct Printer {
    json: bool,
    text: Vec<u8>,
    /// Names of users, as far as they have been looked up.
    users: HashMap<u32, Option<String>>,
    /// The path of the newest version.
    path: Option<PathBuf>,
}

impl Listener for Printer {
    fn progress(&mut self, _: Progress) {}

    fn part(&mut self, part: Part) -> Result<(), ControlError> {
        let Part::Versions(versions) = part else { return Err(unexpected()) };
        for mut version in versions {
            version.author_name = self.user(version.author);
            if self.json {
                output::json_into(&version, &mut self.text)?;
                continue;
            }
            let path = self.path.get_or_insert_with(|| version.path.clone());
            // What is listed are the snapshots, where there are any.
            let listed = version.snapshot_path.as_ref().unwrap_or(&version.path);
            let renamed = (path != listed).then(|| output::escaped(listed));
            let text = line(&version, renamed.as_deref());
            self.text.extend_from_slice(text.as_bytes());
            self.text.push(b'\n');
        }
        Ok(())
    }
}

impl Printer {
    fn user(&mut self, uid: u32) -> Option<String> {
        let find = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        self.users.entry(uid).or_insert_with(find).clone()
    }
}

impl Log {
    pub(super) fn run(self) -> Outcome {
        if self.file.is_dir() && !self.file.is_symlink() {
            let text =
                format!("{} is a directory; log tells the versions of a file", super::shown(&self.file));
            return Err(ControlError::usage(text));
        }
        let (dir, path) = resolve::split(&self.file)?;
        if resolve::mount_of(&dir)?.is_none() {
            return Err(ControlError::no_store(&self.file));
        }
        let resolved = resolve::path(&dir, None, None)?;
        let request = LogRequest { target: resolved.target.clone(), path, limit: self.limit };
        let mut printer = Printer { json: self.json, ..Printer::default() };
        let Response::Log { more, .. } = resolved.ask_in_parts(Request::Log(request), &mut printer)? else {
            return Err(unexpected());
        };
        if !self.json {
            output::line(&columns("TIME", "SIZE", "AUTHOR", "LSN", "SNAPSHOTS"))?;
        }
        output::raw(&printer.text)?;
        if more && self.limit.is_none() {
            output::warn("there are older versions, more than one answer holds");
        }
        output::done()
    }
}

fn columns(time: &str, size: &str, author: &str, lsn: &str, snapshots: &str) -> String {
    format!("{time:<30}  {size:>8}  {author:<12}  {lsn:>10}  {snapshots}").trim_end().to_owned()
}

fn line(version: &VersionInfo, renamed: Option<&str>) -> String {
    let mut shown = version.snapshots.iter().take(SNAPSHOTS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = version.snapshots_total.saturating_sub(SNAPSHOTS_SHOWN as u64);
    if more > 0 {
        shown.push_str(&format!(" and {more} more"));
    }
    if let Some(path) = renamed {
        let space = if shown.is_empty() { "" } else { "  " };
        shown.push_str(&format!("{space}(as {path})"));
    }
    let author = version.author_name.clone().unwrap_or_else(|| version.author.to_string());
    let lsn = version.lsn.to_string();
    output::clean(&columns(&rfc3339(version.time), &output::bytes(version.size), &author, &lsn, &shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::NodeKind;
    use crate::types::Timestamp;

    #[test]
    fn a_line_names_some_snapshots_and_another_name() {
        let version = VersionInfo {
            time: Timestamp::default(),
            size: 2048,
            author: 4_000_000_000,
            author_name: None,
            lsn: 12,
            snapshots: ["a", "b\u{1b}", "c", "d"].map(str::to_owned).to_vec(),
            snapshots_total: 9,
            path: "p".into(),
            snapshot_path: None,
            kind: NodeKind::File,
        };
        let text = line(&version, Some("old"));
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>().join(" "),
            "1970-01-01T00:00:00Z 2.00 KiB 4000000000 12 a, b?, c and 6 more (as old)"
        );
    }
}
