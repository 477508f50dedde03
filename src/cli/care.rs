//! `fsck` and `scrub`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::progress::Display;
use super::{Outcome, output, resolve, shown, unexpected};
use crate::daemon::protocol::{
    AffectedFile, ControlError, FsckReport, Kind, Progress, RepairReport, Request, Response, ScrubAction,
    ScrubState, Target,
};

/// Between two looks at a scrub.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// Between two lines about a scrub where there is no terminal.
const LINE_PERIOD: Duration = Duration::from_secs(5);
/// Files of one damaged chunk that are printed; `--json` has them all.
const FILES_PRINTED: usize = 20;

/// Check a store's structure; with --repair, mend what can be mended.
#[derive(Debug, Args)]
pub(super) struct Fsck {
    /// The store's directory.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The key file, if it is not in its default place.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Mend what can be mended, after showing how and asking. The store must not be mounted. What is taken
    /// out of the way is kept in the store, in a folder of its own.
    #[arg(long)]
    repair: bool,
    /// Only show what --repair would do.
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Do not ask.
    #[arg(long, requires = "repair", conflicts_with = "dry_run")]
    yes: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub(super) fn run(self) -> Outcome {
        let resolved = resolve::store(&self.store, Target::Store, self.key_file.as_deref())?;
        if self.repair {
            return self.mend(&resolved);
        }
        let Response::Fsck(report) = resolved.ask(Request::Fsck {})? else { return Err(unexpected()) };
        if self.json {
            output::json(&report)?;
        } else {
            print(&report)?;
        }
        verdict(&report, "fsck")
    }

    fn mend(&self, resolved: &resolve::Resolved) -> Outcome {
        let ask = |agreed: Option<String>| match resolved.ask(Request::Repair { agreed })? {
            Response::Repair(report) => Ok(*report),
            _ => Err(unexpected()),
        };
        let planned = ask(None)?;
        if !self.json {
            print(&planned.fsck)?;
            print_plan(&planned)?;
        }
        if self.dry_run || planned.steps.is_empty() {
            if self.json {
                output::json(&planned)?;
            }
            return verdict(&planned.fsck, "fsck");
        }
        if !self.yes && !agreed_to()? {
            return Err(ControlError::failed("nothing was changed"));
        }
        let done = ask(Some(planned.plan))?;
        if self.json {
            output::json(&done)?;
        } else {
            print(&done.fsck)?;
            let aside = done.aside.as_deref().unwrap_or_default();
            output::line(&shown(format!("what was moved aside is kept in {aside}")))?;
        }
        match &done.failed {
            Some(failed) => {
                Err(ControlError::new(Kind::Partial, format!("the repair was not finished: {failed}")))
            }
            None => verdict(&done.fsck, "after the repair, fsck"),
        }
    }
}

/// Asks on the terminal.
fn agreed_to() -> Result<bool, ControlError> {
    if !io::stdin().is_terminal() {
        return Err(ControlError::usage(
            "fsck --repair changes the store: add --yes to do what is listed, or --dry-run to only list it",
        ));
    }
    let failed = |e: io::Error| ControlError::failed(format!("asking: {e}"));
    let mut terminal = io::stderr().lock();
    terminal.write_all(b"Do this? [y/N] ").and_then(|()| terminal.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn verdict(report: &FsckReport, what: &str) -> Outcome {
    if report.clean {
        return output::done();
    }
    let count = report.problem_count();
    let problems = if count == 1 { "problem" } else { "problems" };
    Err(ControlError::failed(format!("{}: {what} found {count} {problems}", report.store)))
}

fn print_plan(report: &RepairReport) -> Result<(), ControlError> {
    for (i, step) in report.steps.iter().enumerate() {
        output::line(&shown(format!("step {}: {step}", i + 1)))?;
    }
    for cannot in &report.cannot {
        output::line(&shown(format!("not mended: {cannot}")))?;
    }
    if report.steps.is_empty() {
        output::line("there is nothing to repair")?;
    }
    Ok(())
}

fn print(report: &FsckReport) -> Result<(), ControlError> {
    for problem in &report.problems {
        output::line(&shown(format!("{} in {}: {}", problem.what, problem.place, problem.detail)))?;
    }
    if report.problems_more > 0 {
        output::line(&format!("and {} more", report.problems_more))?;
    }
    for note in &report.notes {
        output::line(&shown(format!("note: {note}")))?;
    }
    for damaged in &report.damaged {
        output::line(&format!("chunk {} is needed by:", damaged.chunk))?;
        for file in damaged.files.iter().take(FILES_PRINTED) {
            output::line(&shown(format!("  {}", place_of(file))))?;
        }
        let more = damaged.files.len().saturating_sub(FILES_PRINTED) as u64 + damaged.files_more;
        if more > 0 {
            output::line(&format!("  and {more} more"))?;
        }
        if damaged.files.is_empty() && more == 0 {
            output::line("  no file")?;
        }
    }
    if report.damaged_more > 0 {
        output::line(&format!("and {} more damaged chunks", report.damaged_more))?;
    }
    let checked = report.checked.iter().filter(|(_, count)| **count > 0);
    let checked: Vec<String> = checked.map(|(what, count)| format!("{count} {what}")).collect();
    let verdict = if report.clean { "clean" } else { "DAMAGED" };
    output::line(&shown(format!("{}: {verdict} ({})", report.store, checked.join(", "))))
}

/// `volume:/path (live)`.
fn place_of(file: &AffectedFile) -> String {
    let when = match (&file.snapshot, file.live) {
        (Some(name), _) => format!("snapshot {name}"),
        (None, true) => "live".to_owned(),
        (None, false) => "within the window".to_owned(),
    };
    format!("{}:{} ({when})", file.volume, file.path)
}

/// Read and verify everything, contents too, at the rate of the setting scrub_bytes_per_second.
///
/// A mounted store is scrubbed by its server, which goes on when this command is interrupted.
#[derive(Debug, Args)]
pub(super) struct Scrub {
    /// A path inside a mount, or a store directory.
    path: PathBuf,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// End the round that the server is doing.
    #[arg(long)]
    cancel: bool,
    /// One JSON object a line while it runs; the last one has the report.
    #[arg(long)]
    json: bool,
}

impl Scrub {
    pub(super) fn run(self) -> Outcome {
        let resolved = resolve::mount_or_store(&self.path, None, self.key_file.as_deref())?;
        let mut display = Display::new();
        let mut ask = |action| match resolved.ask_quietly(Request::Scrub { action }, &mut display)? {
            Response::Scrub(state) => Ok(*state),
            _ => Err(unexpected()),
        };
        if self.cancel {
            let state = ask(ScrubAction::Cancel)?;
            return if state.running { output::done() } else { Err(ControlError::failed("no scrub runs")) };
        }
        let mut state = ask(ScrubAction::Start)?;
        let mut bar = Watch::new();
        while state.running {
            if self.json {
                output::json(&state)?;
            } else {
                bar.show(&state);
            }
            std::thread::sleep(LOOK_PERIOD);
            state = ask(ScrubAction::Look)?;
        }
        drop(bar);
        if self.json {
            output::json(&state)?;
        }
        let Some(report) = state.report else {
            let why = state.failed.unwrap_or_else(|| "the scrub did not come to its end".to_owned());
            return Err(ControlError::new(Kind::Partial, why));
        };
        if !self.json {
            print(&report)?;
        }
        match verdict(&report, "scrub") {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(error),
        }
    }
}

/// Shows a scrub that the server is doing.
struct Watch {
    display: Display,
    terminal: bool,
    said: Option<Instant>,
}

impl Watch {
    fn new() -> Watch {
        Watch { display: Display::new(), terminal: io::stderr().is_terminal(), said: None }
    }

    fn show(&mut self, state: &ScrubState) {
        if state.total_bytes == 0 {
            return;
        }
        let line = line_of(state);
        if self.terminal {
            let (done, total) = (state.done_bytes, state.total_bytes);
            self.display.show(&Progress { what: line, done, total, unit: "bytes".to_owned() });
        } else if self.said.is_none_or(|said| said.elapsed() >= LINE_PERIOD) {
            self.said = Some(Instant::now());
            output::warn(&line);
        }
    }
}

fn line_of(state: &ScrubState) -> String {
    let [done, total, rate] =
        [state.done_bytes, state.total_bytes, state.bytes_per_second].map(output::bytes);
    let left = state.eta_seconds.map(|s| format!(", {s} s left")).unwrap_or_default();
    format!("{}: {done} of {total}, {rate}/s{left}", state.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_in_one_line() {
        let state = ScrubState {
            running: true,
            what: "scrubbing the packs".into(),
            done_bytes: 1 << 20,
            total_bytes: 3 << 20,
            bytes_per_second: 1 << 20,
            eta_seconds: Some(2),
            ..ScrubState::default()
        };
        assert_eq!(line_of(&state), "scrubbing the packs: 1.00 MiB of 3.00 MiB, 1.00 MiB/s, 2 s left");
    }

    #[test]
    fn a_file_says_when_it_is_meant() {
        let file = |snapshot: Option<&str>, live| AffectedFile {
            volume: "main".into(),
            snapshot: snapshot.map(str::to_owned),
            live,
            path: "/a/b".into(),
        };
        assert_eq!(place_of(&file(None, true)), "main:/a/b (live)");
        assert_eq!(place_of(&file(Some("s"), false)), "main:/a/b (snapshot s)");
        assert_eq!(place_of(&file(None, false)), "main:/a/b (within the window)");
    }
}
