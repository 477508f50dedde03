//! `policy`: what a volume does by itself.

use clap::{Args, Subcommand};

use super::{Outcome, output, resolve, unexpected};
use crate::daemon::policy_report::PolicyInfo;
use crate::daemon::protocol::{Request, Response};
use crate::types::point::rfc3339;

const SETTINGS: &str = "\
Settings:
  every=15m             a scheduled snapshot that often, where something changed; off
  continuous=24h        every moment of that long stays readable: each change for the last minutes, then each
                        minute, after a day each hour; off
  hourly=48 daily=14 weekly=8 monthly=12 yearly=0
                        the last scheduled snapshot of so many of the most recent hours, days, ... that have one
                        stays; those of the last 24 hours (or of the continuous window, if longer) all do
  history-max=20%       what history may take of the filesystem, or a size such as 500G; the oldest goes first
  free-min=10%          what is to stay free, or a size; the oldest history goes first
  on-close='ckpt/{run}/**/*.safetensors'
                        a snapshot when such a file is complete (closed, or renamed into place), tagged with its path and
                        with run=...; what is completed within a second of each other, 10 seconds at most, is one
                        moment: versions that follow so soon become one snapshot, of the last, and several files of
                        one directory become one, tagged with the path of the directory;
                        may be given more than once; on-close= takes all away
  exclude='scratch/**' exclude='**/*.tmp'
                        what is made under such a path, or below a directory that has one, gets no history: no snapshot
                        and no moment shows it, and what it was is freed at once, until it gets a name that is not
                        excluded; what exists stays as it is; may be given more than once; exclude=off takes all away
  immutable=7d          nothing and nobody forgets a snapshot or a minute younger than that; a shorter period counts
                        only for what is made afterwards; off
  webhook=https://...   where word goes when much more than usual is removed or written over; off";

/// Show or change what a volume does by itself: schedule, retention, space.
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Show the policy, and what is really kept.
    Show(Show),
    /// Change settings of the policy.
    Set(Set),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    at: resolve::Where,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = SETTINGS)]
pub(super) struct Set {
    #[command(flatten)]
    at: resolve::Where,
    /// What to change; everything else stays.
    #[arg(required = true, value_name = "SETTING=VALUE")]
    settings: Vec<String>,
    /// Only say what the policy would be.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Policy {
    pub(super) fn run(self) -> Outcome {
        match self {
            Policy::Show(Show { at, json }) => run(&at, Vec::new(), false, json),
            Policy::Set(Set { at, settings, dry_run, json }) => run(&at, settings, dry_run, json),
        }
    }
}

fn run(at: &resolve::Where, settings: Vec<String>, dry_run: bool, json: bool) -> Outcome {
    let resolved = at.resolve()?;
    let request = Request::Policy { target: resolved.target.clone(), settings, dry_run };
    let Response::Policy(info) = resolved.ask(request)? else { return Err(unexpected()) };
    if json {
        output::json(&as_json(&info))?;
    } else {
        screen(&info).iter().try_for_each(|line| output::line(line))?;
    }
    output::done()
}

/// One object: each setting under its name, `on-close` and `exclude` as lists.
fn as_json(info: &PolicyInfo) -> serde_json::Value {
    let mut all = serde_json::Map::new();
    all.insert("volume".into(), info.volume.clone().into());
    let (mut on_close, mut exclude) = (Vec::new(), Vec::new());
    for (name, value) in &info.settings {
        match (name.as_str(), value.parse::<u64>()) {
            ("on-close", _) => on_close.push(serde_json::Value::from(value.as_str())),
            ("exclude", _) => exclude.push(serde_json::Value::from(value.as_str())),
            (name, Ok(number)) => drop(all.insert(name.into(), number.into())),
            (name, Err(_)) => drop(all.insert(name.into(), value.as_str().into())),
        }
    }
    all.insert("on-close".into(), on_close.into());
    all.insert("exclude".into(), exclude.into());
    all.insert("dry_run".into(), info.dry_run.into());
    if let Ok(kept) = serde_json::to_value(&info.kept) {
        all.insert("kept".into(), kept);
    }
    all.into()
}

fn screen(info: &PolicyInfo) -> Vec<String> {
    let line = |name: &str, value: &str| format!("{name:<12} {value}");
    let not_changed = if info.dry_run { " (not changed)" } else { "" };
    let mut lines = vec![line("volume", &format!("{}{not_changed}", info.volume))];
    lines.extend(info.settings.iter().map(|(name, value)| line(name, value)));
    let [oldest, minutes, changes] = [info.kept.oldest, info.kept.minutes, info.kept.continuous].map(rfc3339);
    lines.push(line(
        "kept",
        &format!("back to {oldest}, every minute since {minutes}, every change since {changes}"),
    ));
    lines
}
