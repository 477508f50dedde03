//! `snapshot …`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::volume::name;
use super::{Outcome, output, resolve, unexpected};
use crate::daemon::protocol::{
    ControlError, Kind, Request, Response, SnapshotCreate, SnapshotInfo, SnapshotsDeleted, Target,
};
use crate::types::limits::SNAPSHOT_NAME_BYTES_MAX;
use crate::types::point::rfc3339;

/// Names in one delete request: far under its limit of 64 KiB, also with every byte escaped.
const DELETE_NAMES: usize = 64 * 1024 / (8 * SNAPSHOT_NAME_BYTES_MAX);

/// Take, list, delete and hold snapshots.
#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    /// Take a snapshot; prints its name.
    Create(Create),
    /// List the snapshots of a volume, oldest first.
    List(List),
    /// Delete snapshots.
    Delete(Delete),
    /// Keep a snapshot from being deleted.
    Hold(Named),
    /// Let a held snapshot go.
    Release(Named),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    at: resolve::Where,
    /// Its name [default: the time].
    #[arg(value_parser = name)]
    name: Option<String>,
    /// A label; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// Keep it from being deleted.
    #[arg(long)]
    hold: bool,
    /// Take one of every volume of the store, at the same moment.
    #[arg(long)]
    all_volumes: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: resolve::Where,
    /// Only those with that tag; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    at: resolve::Where,
    /// Their names.
    #[arg(required = true, value_name = "NAME", value_parser = name)]
    names: Vec<String>,
    /// Only say what would be deleted and freed.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Named {
    #[command(flatten)]
    at: resolve::Where,
    /// Its name.
    #[arg(value_parser = name)]
    name: String,
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is KEY=VALUE".to_owned()),
    }
}

impl Snapshot {
    pub(super) fn run(self) -> Outcome {
        match self {
            Snapshot::Create(command) => command.run(),
            Snapshot::List(command) => command.run(),
            Snapshot::Delete(command) => command.run(),
            Snapshot::Hold(command) => command.run(true),
            Snapshot::Release(command) => command.run(false),
        }
    }
}

impl Create {
    fn run(self) -> Outcome {
        let mut tags = BTreeMap::new();
        for (key, value) in self.tag {
            if tags.insert(key.clone(), value).is_some() {
                return Err(ControlError::usage(format!("the tag {key} was given twice")));
            }
        }
        let resolved = self.at.resolve()?;
        let concerned = |volume: &str| self.all_volumes || resolved.volume() == Some(volume);
        let mounts = resolved.mounts.iter().filter(|mount| concerned(&mount.volume));
        // PATH first: it may be open to the caller where the mount's root is not. Not a store directory: that
        // would sync the whole filesystem below.
        let inside = matches!(resolved.target, Target::File { .. }).then_some(self.at.path.as_path());
        let paths = inside.into_iter().chain(mounts.map(|m| Path::new(&m.mountpoint)));
        resolve::sync_mounts(paths)?;
        let target = resolved.target.clone();
        let (hold, all_volumes) = (self.hold, self.all_volumes);
        let create = SnapshotCreate { target, name: self.name, tags, hold, all_volumes };
        let Response::SnapshotCreated(created) = resolved.ask(Request::SnapshotCreate(create))? else {
            return Err(unexpected());
        };
        if self.json {
            output::json(&created)?;
        } else {
            output::line(&created.name)?;
        }
        output::done()
    }
}

impl List {
    fn run(self) -> Outcome {
        let resolved = self.at.resolve()?;
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let request = Request::SnapshotList { target: resolved.target.clone(), after };
            let Response::Snapshots { snapshots, more } = resolved.ask(request)? else {
                return Err(unexpected());
            };
            let last = snapshots.last().map(|snapshot| snapshot.lsn);
            // A server that goes in circles must not make us go with it.
            let more = more && last > after;
            let tagged =
                |s: &&SnapshotInfo| self.tag.iter().all(|(key, value)| s.tags.get(key) == Some(value));
            let mut wanted = snapshots.iter().filter(tagged);
            if self.json {
                wanted.try_for_each(output::json)?;
            } else {
                all.extend(wanted.map(row));
            }
            if !more {
                break;
            }
            after = last;
        }
        if !self.json {
            output::table(["NAME", "TIME", "LSN", "TAGS", "HOLD", "ONLY HERE"], &["LSN", "ONLY HERE"], &all)?;
        }
        output::done()
    }
}

fn row(snapshot: &SnapshotInfo) -> [String; 6] {
    let tags: Vec<String> = snapshot.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let hold = match (snapshot.hold, snapshot.immutable_until) {
        (true, _) => "hold".to_owned(),
        (false, Some(until)) => format!("until {}", rfc3339(until)),
        (false, None) => String::new(),
    };
    [
        snapshot.name.clone(),
        rfc3339(snapshot.time),
        snapshot.lsn.to_string(),
        tags.join(","),
        hold,
        output::bytes(snapshot.bytes_only),
    ]
}

impl Delete {
    fn run(self) -> Outcome {
        let resolved = self.at.resolve()?;
        let mut all = SnapshotsDeleted { dry_run: self.dry_run, ..SnapshotsDeleted::default() };
        for names in self.names.chunks(DELETE_NAMES) {
            let (target, dry_run) = (resolved.target.clone(), self.dry_run);
            let request = Request::SnapshotDelete { target, names: names.to_vec(), dry_run };
            let Response::SnapshotsDeleted(some) = resolved.ask(request)? else { return Err(unexpected()) };
            all.deleted.extend(some.deleted);
            all.failed.extend(some.failed);
            all.bytes_freed = all.bytes_freed.saturating_add(some.bytes_freed);
            all.data_bytes = all.data_bytes.saturating_add(some.data_bytes);
            all.at_most |= some.at_most;
        }
        if self.json {
            output::json(&all)?;
        } else if self.dry_run {
            for name in &all.deleted {
                output::line(&format!("would delete {name}"))?;
            }
            output::line(&freed(&all))?;
        }
        verdict(&all)
    }
}

fn freed(all: &SnapshotsDeleted) -> String {
    let at_most = if all.at_most { "at most " } else { "" };
    let (freed, data) = (output::bytes(all.bytes_freed), output::bytes(all.data_bytes));
    format!(
        "would free {at_most}{freed}: {data} of file data that nothing else shows, as stored, less what it shares"
    )
}

/// Everything deleted is success, nothing is a failure, in between is partly done; one line names the rest.
fn verdict(all: &SnapshotsDeleted) -> Outcome {
    let reasons: Vec<String> = all.failed.iter().map(|f| format!("{}: {}", f.name, f.reason)).collect();
    if reasons.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let kind = if all.deleted.is_empty() { Kind::Failed } else { Kind::Partial };
    Err(ControlError::new(kind, format!("not deleted: {}", reasons.join("; "))))
}

impl Named {
    fn run(self, hold: bool) -> Outcome {
        let resolved = self.at.resolve()?;
        let request = Request::SnapshotHold { target: resolved.target.clone(), name: self.name, hold };
        match resolved.ask(request)? {
            Response::Done {} => output::done(),
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::{SnapshotFailure, encode_request};

    #[test]
    fn a_full_delete_request_fits() {
        let names = vec!["\u{1}".repeat(SNAPSHOT_NAME_BYTES_MAX); DELETE_NAMES];
        let target = Target::Volume { volume: "\u{1}".repeat(SNAPSHOT_NAME_BYTES_MAX) };
        assert!(encode_request(&Request::SnapshotDelete { target, names, dry_run: false }).is_ok());
    }

    #[test]
    fn deleting_some_is_partly_done() {
        let code = |deleted: &[&str], failed: &[&str]| {
            let failed =
                failed.iter().map(|name| SnapshotFailure { name: (*name).into(), reason: "held".into() });
            let deleted = deleted.iter().map(|name| (*name).to_owned()).collect();
            let all = SnapshotsDeleted { deleted, failed: failed.collect(), ..SnapshotsDeleted::default() };
            verdict(&all).map_or_else(|e| (e.kind.exit_code(), e.to_string()), |_| (0, String::new()))
        };
        assert_eq!(code(&["a"], &[]), (0, String::new()));
        assert_eq!(code(&["a"], &["b"]), (3, "not deleted: b: held".to_owned()));
        assert_eq!(code(&[], &["a", "b"]), (1, "not deleted: a: held; b: held".to_owned()));
    }
}
