//! `status`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Outcome, output, resolve, shown, unexpected};
use crate::daemon::client::Backend as _;
use crate::daemon::protocol::{
    ControlError, Health, Kind, Progress, ReplicationReport, Request, Response, Role, StatusReport, Target,
};
use crate::daemon::registry;
use crate::types::point::rfc3339;

/// Show how a volume fares; without PATH, all that are mounted.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// A path inside a mount, or a store directory.
    path: Option<PathBuf>,
    /// The volume, when it is not the one that PATH lies in.
    #[arg(long, requires = "path")]
    volume: Option<String>,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE", requires = "path")]
    key_file: Option<PathBuf>,
    /// Exit with 3 when something needs attention.
    #[arg(long)]
    check: bool,
    /// One JSON object for each volume, one per line.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Outcome {
        let reports = match &self.path {
            Some(path) => self.of(path)?,
            None => all(),
        };
        if self.json {
            reports.iter().try_for_each(output::json)?;
        } else if reports.is_empty() {
            output::line("no store is mounted")?;
        } else {
            let screens: Vec<String> = reports.iter().map(screen).collect();
            output::raw(screens.join("\n").as_bytes())?;
        }
        let attention = reports.iter().any(|report| report.health != Health::Ok);
        let code = if self.check && attention { Kind::Partial.exit_code() } else { 0 };
        Ok(ExitCode::from(code))
    }

    fn of(&self, path: &std::path::Path) -> Result<Vec<StatusReport>, ControlError> {
        if let Some(entry) = resolve::failed_store(path) {
            return Ok(vec![failed(&entry, resolve::servers_die(&entry))]);
        }
        let key_file = self.key_file.as_deref();
        let resolved = resolve::mount_or_store(path, self.volume.as_deref(), key_file)?;
        resolved.status()
    }
}

/// Of every running server. One that does not answer is reported as failed, so that the others still show.
fn all() -> Vec<StatusReport> {
    let mut reports = Vec::new();
    for entry in registry::running() {
        if entry.failed.is_some() {
            reports.push(failed(&entry, resolve::servers_die(&entry)));
            continue;
        }
        let client = resolve::server_of(&entry.store, &entry);
        let answer = match client.call(Request::Status { target: Target::Store }, &mut |_: Progress| {}) {
            Ok(Response::Status(answer)) => Ok(answer),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => reports.extend(answer),
            Err(error) => reports.push(failed(&entry, error)),
        }
    }
    reports
}

/// The report of a server that does not answer.
fn failed(entry: &registry::Entry, error: ControlError) -> StatusReport {
    StatusReport {
        store: shown(&entry.store),
        node: entry.node.clone(),
        volume: entry.mounts.first().map(|m| m.volume.clone()).unwrap_or_default(),
        mountpoint: entry.mounts.first().map(|m| shown(&m.mountpoint)),
        server_pid: Some(entry.pid).filter(|_| entry.failed.is_none()),
        holder_pid: entry.holder,
        health: Health::Failed,
        problems: vec![error.to_string()],
        ..StatusReport::default()
    }
}

/// One volume on one screen.
fn screen(report: &StatusReport) -> String {
    let StatusReport { bytes, .. } = report;
    let mut lines: Vec<(&str, String)> = vec![
        ("store", report.store.clone()),
        ("volume", report.volume.clone()),
        ("mounted", report.mountpoint.clone().unwrap_or_else(|| "no".to_owned())),
        ("role", role(report)),
        ("health", health(report.health).to_owned()),
    ];
    lines.extend(report.problems.iter().map(|problem| ("", format!("- {problem}"))));
    lines.extend(report.replication.iter().map(|peer| ("standby", lag(peer))));
    let durable = if report.durable_lsn >= report.lsn {
        "all durable".to_owned()
    } else {
        format!("durable to {}", report.durable_lsn)
    };
    lines.push(("lsn", format!("{} ({durable})", report.lsn)));
    let last = report.last_snapshot.as_ref().map(|s| format!(", last {} at {}", s.name, rfc3339(s.time)));
    let going =
        Some(report.forgetting).filter(|n| *n > 0).map(|n| format!("; {n} deleted ones are being forgotten"));
    let text = format!("{}{}{}", report.snapshots, last.unwrap_or_default(), going.unwrap_or_default());
    lines.push(("snapshots", text));
    if let Some(window) = &report.window {
        let [oldest, minutes, continuous] = [window.oldest, window.minutes, window.continuous].map(rfc3339);
        let text = format!("back to {oldest}, every minute since {minutes}, every change since {continuous}");
        lines.push(("window", text));
    }
    let [live, history, packs, dead, free] =
        [bytes.live, bytes.history, bytes.packs, bytes.dead, bytes.free].map(output::bytes);
    lines
        .push(("space", format!("live {live}, history {history}, packs {packs} (dead {dead}), free {free}")));
    if let Some(adopt) = &report.adopt {
        let (done, total) = (adopt.files_protected, adopt.files_total);
        let text = format!("{}, {done} of {total} files protected", adopt.state);
        lines.push(("adopted", text));
    }
    if let Some(pid) = report.server_pid {
        lines.push(("server", format!("process {pid}")));
    }
    lines.iter().map(|(name, value)| format!("{name:<10} {}\n", shown(value))).collect()
}

fn role(report: &StatusReport) -> String {
    let role = match report.role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Alone => "alone",
    };
    let read_only = if report.read_only { ", read-only" } else { "" };
    format!("{role}, term {}{read_only}", report.term)
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Attention => "attention",
        Health::Failed => "failed",
    }
}

fn lag(peer: &ReplicationReport) -> String {
    let bytes = output::bytes(peer.lag_bytes);
    let ReplicationReport { peer, state, mode, lag_records, lag_seconds, .. } = peer;
    format!("{peer} {state} ({mode}), {lag_records} records, {bytes}, {lag_seconds:.1} s behind")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::protocol::LastSnapshot;
    use crate::types::Timestamp;

    #[test]
    fn json_has_the_keys_of_the_contract() {
        let report = serde_json::to_value(StatusReport::default()).unwrap();
        for key in [
            "store",
            "mountpoint",
            "volume",
            "role",
            "term",
            "lsn",
            "durable_lsn",
            "chain",
            "digest",
            "server_pid",
            "holder_pid",
            "read_only",
            "health",
            "problems",
            "snapshots",
            "bytes",
        ] {
            assert!(report.get(key).is_some(), "{key}");
        }
        for key in ["live", "history", "packs", "dead"] {
            assert!(report.pointer(&format!("/bytes/{key}")).is_some(), "{key}");
        }
        assert_eq!(report.get("role"), Some(&"alone".into()));
        assert_eq!(report.get("health"), Some(&"ok".into()));
    }

    #[test]
    fn one_screen() {
        let report = StatusReport {
            store: "/s\n".into(),
            problems: vec!["no recovery key was exported".into()],
            last_snapshot: Some(LastSnapshot { name: "a".into(), time: Timestamp { secs: 0, nanos: 0 } }),
            ..StatusReport::default()
        };
        let text = screen(&report);
        assert!(text.contains("- no recovery key was exported"), "{text}");
        assert!(text.contains("last a at 1970-01-01T00:00:00Z"), "{text}");
        assert!(text.lines().count() <= 24);
    }
}
