//! `diff`.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, output, resolve, restore, unexpected};
use crate::daemon::news::Listener;
use crate::daemon::protocol::{
    Aspect, ChangeInfo, ChangeKind, ControlError, DiffRequest, DiffTotals, NodeKind, Part, Progress, Request,
    Response,
};

/// Show what changed between two points: A added, D removed, M modified, R renamed.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// A path inside a mount, or a store directory. Only what lies at or below it is shown.
    path: PathBuf,
    /// The earlier point: a snapshot, @TIME, @AGE (90s, 10m, 2h, 3d) or @lsn:N.
    #[arg(value_name = "A", value_parser = restore::point)]
    from: String,
    /// The later point [default: now].
    #[arg(value_name = "B", value_parser = restore::point)]
    to: Option<String>,
    /// Only print how many.
    #[arg(long)]
    summary: bool,
    /// The volume, when it is not the one that PATH lies in [default with a store directory: main].
    #[arg(long)]
    volume: Option<String>,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Gathers what is printed, so that a reader who takes his time keeps no server waiting. The number of changes is
/// bounded, and with it this.
struct Printer {
    json: bool,
    text: Vec<u8>,
}

impl Listener for Printer {
    fn progress(&mut self, _: Progress) {}

    fn part(&mut self, part: Part) -> Result<(), ControlError> {
        let Part::Changes(changes) = part else { return Err(unexpected()) };
        for change in &changes {
            if self.json {
                output::json_into(change, &mut self.text)?;
            } else {
                self.text.extend_from_slice(line(change).as_bytes());
                self.text.push(b'\n');
            }
        }
        Ok(())
    }
}

impl Diff {
    pub(super) fn run(self) -> Outcome {
        let (resolved, path) = resolve::named(&self.path, self.volume.as_deref(), self.key_file.as_deref())?;
        // As they were typed, since messages name them.
        let (from, to) = (self.from.clone(), self.to.clone());
        let target = resolved.target.clone();
        let request = Request::Diff(DiffRequest { target, path, from, to, summary: self.summary });
        let mut printer = Printer { json: self.json, text: Vec::new() };
        let Response::Diff(totals) = resolved.ask_in_parts(request, &mut printer)? else {
            return Err(unexpected());
        };
        output::raw(&printer.text)?;
        match (self.summary, self.json) {
            (true, true) => output::json(&totals)?,
            (true, false) => output::line(&summary(&totals))?,
            _ => {}
        }
        output::done()
    }
}

fn summary(totals: &DiffTotals) -> String {
    let DiffTotals { added, removed, modified, renamed, .. } = totals;
    format!("{added} added, {removed} removed, {modified} modified, {renamed} renamed")
}

/// A change as one line, which no name can break.
fn line(change: &ChangeInfo) -> String {
    let path = |path: &PathBuf| {
        let slash = if change.kind == NodeKind::Directory { "/" } else { "" };
        format!("{}{slash}", output::escaped(path))
    };
    let letter = match change.change {
        ChangeKind::Added => "A",
        ChangeKind::Removed => "D",
        ChangeKind::Modified => "M",
        ChangeKind::Renamed => "R",
    };
    let from = change.from.as_ref().map_or(String::new(), |from| format!("{} -> ", path(from)));
    let notes = notes(change);
    let notes = if notes.is_empty() { String::new() } else { format!("  ({})", notes.join(", ")) };
    format!("{letter}  {from}{}{notes}", path(&change.path))
}

fn notes(change: &ChangeInfo) -> Vec<String> {
    let size = |size: Option<u64>| size.map(output::bytes);
    match (change.change, change.size_before, change.size_after) {
        (ChangeKind::Added, _, after) => return size(after).into_iter().collect(),
        (ChangeKind::Removed, before, _) => return size(before).into_iter().collect(),
        _ => {}
    }
    let note = |aspect: &Aspect| match aspect {
        Aspect::Content => match (change.size_before, change.size_after) {
            (Some(before), Some(after)) if before != after => {
                format!("{} -> {}", output::bytes(before), output::bytes(after))
            }
            _ => "content".to_owned(),
        },
        Aspect::Mode => "mode".to_owned(),
        Aspect::Owner => "owner".to_owned(),
        Aspect::Group => "group".to_owned(),
        Aspect::Xattrs => "xattrs".to_owned(),
    };
    change.what.iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn lines_are_those_of_name_status_with_sizes() {
        let change =
            |change, path: &[u8], from: Option<&str>, sizes: (Option<u64>, Option<u64>)| ChangeInfo {
                change,
                path: OsStr::from_bytes(path).into(),
                from: from.map(Into::into),
                kind: NodeKind::File,
                size_before: sizes.0,
                size_after: sizes.1,
                what: Vec::new(),
            };
        let added = change(ChangeKind::Added, b"a\nb\xff\\", None, (None, Some(3)));
        assert_eq!(line(&added), r"A  a\nb\xff\\  (3 B)");
        let what = vec![Aspect::Content, Aspect::Mode];
        let renamed = change(ChangeKind::Renamed, b"new", Some("old"), (Some(1), Some(2)));
        assert_eq!(line(&renamed), "R  old -> new");
        let renamed = ChangeInfo { what: what.clone(), ..renamed };
        assert_eq!(line(&renamed), "R  old -> new  (1 B -> 2 B, mode)");
        let modified = change(ChangeKind::Modified, b"m", None, (Some(2), Some(2)));
        assert_eq!(line(&ChangeInfo { what, ..modified }), "M  m  (content, mode)");
        let mut dir = change(ChangeKind::Removed, b"d", None, (None, None));
        dir.kind = NodeKind::Directory;
        assert_eq!(line(&dir), "D  d/");
    }
}
