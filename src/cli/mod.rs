//! The command line: parses, asks a server (or the store, opened in this process), prints. What it promises
//! is in `docs/`; what decides and changes anything is below `daemon`.

mod care;
mod diff;
mod docs;
mod gc;
mod key;
mod log;
mod mount;
mod output;
mod policy;
mod progress;
mod purge;
mod resolve;
mod restore;
mod snapshot;
mod status;
mod store;
mod upgrade;
mod volume;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::daemon::protocol::{ControlError, Kind, one_line};

/// What a command comes to: an exit code, or the one line that says why not.
type Outcome = Result<ExitCode, ControlError>;

/// A filesystem over your training data and models that remembers every moment of it.
#[derive(Debug, Parser)]
#[command(name = "rewindfs", version, max_term_width = 100, arg_required_else_help = true)]
#[command(subcommand_required = true, disable_help_subcommand = true, infer_subcommands = false)]
#[command(after_help = "\
PATH is any path inside a mount, or a store directory. Errors are one line on standard error. Exit codes: \
0 done, 1 failed, 2 usage, 3 partly done, 10 no store there, 11 in use, 12 wrong key, 13 not the primary.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(store::Init),
    Mount(mount::Mount),
    Umount(mount::Umount),
    #[command(subcommand)]
    Volume(volume::Volume),
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    #[command(subcommand)]
    Policy(policy::Policy),
    Diff(diff::Diff),
    Log(log::Log),
    Restore(restore::Restore),
    Purge(purge::Purge),
    Status(status::Status),
    Fsck(care::Fsck),
    Scrub(care::Scrub),
    Gc(gc::Gc),
    #[command(subcommand)]
    Key(key::Key),
    Completions(docs::Completions),
    Man(docs::Man),
    Upgrade(upgrade::Upgrade),
    #[command(hide = true)]
    Hold(mount::Hold),
    #[command(hide = true)]
    Serve(mount::Serve),
}

/// Runs the program with its arguments, the first of which is its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let outcome = match args.first() {
        Some(name) if name.as_bytes().ends_with(b"mount.rewindfs") => {
            parse(&args).and_then(mount::Helper::run)
        }
        _ => parse::<Cli>(&args).and_then(|cli| cli.command.run()),
    };
    match outcome {
        Ok(code) => code,
        Err(Stopped::Said(code)) => code,
        Err(Stopped::Error(error)) => {
            output::error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Why a command ended early.
enum Stopped {
    /// An error that is still to be printed.
    Error(ControlError),
    /// Help or the version was printed.
    Said(ExitCode),
}

impl From<ControlError> for Stopped {
    fn from(error: ControlError) -> Stopped {
        Stopped::Error(error)
    }
}

fn parse<P: Parser>(args: &[OsString]) -> Result<P, Stopped> {
    P::try_parse_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has seen enough (`| head`) is no error.
            let _ = error.print();
            Stopped::Said(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
        }
        _ => Stopped::Error(ControlError::usage(usage_line(&error.to_string()))),
    })
}

/// The first paragraph of clap's message, which says what is wrong, as one line.
fn usage_line(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or_default();
    let paragraph = paragraph.strip_prefix("error: ").unwrap_or(paragraph);
    let words: Vec<&str> = paragraph.split_ascii_whitespace().collect();
    format!("{}; see rewindfs --help", one_line(&words.join(" ")))
}

impl Command {
    fn run(self) -> Result<ExitCode, Stopped> {
        let outcome = match self {
            Command::Init(command) => command.run(),
            Command::Mount(command) => command.run(),
            Command::Umount(command) => command.run(),
            Command::Volume(command) => command.run(),
            Command::Snapshot(command) => command.run(),
            Command::Policy(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::Log(command) => command.run(),
            Command::Restore(command) => command.run(),
            Command::Purge(command) => command.run(),
            Command::Status(command) => command.run(),
            Command::Fsck(command) => command.run(),
            Command::Scrub(command) => command.run(),
            Command::Gc(command) => command.run(),
            Command::Key(command) => command.run(),
            Command::Completions(command) => command.run(Cli::command()),
            Command::Man(command) => command.run(Cli::command()),
            Command::Upgrade(command) => command.run(),
            Command::Hold(command) => command.run(),
            Command::Serve(command) => command.run(),
        };
        Ok(outcome?)
    }
}

/// The error of an answer that does not fit its request: server and client differ, or the peer lies.
fn unexpected() -> ControlError {
    ControlError::failed("the server gave an answer that was not asked for; use its version of rewindfs")
}

/// A path for display.
fn shown(path: impl AsRef<OsStr>) -> String {
    one_line(&path.as_ref().to_string_lossy())
}

/// An I/O error on a path.
fn io_error(doing: &str, path: impl AsRef<OsStr>, error: &std::io::Error) -> ControlError {
    ControlError::new(Kind::Failed, format!("{doing} {}: {error}", shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(args: &[&str]) -> Result<(), (u8, String)> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse::<Cli>(&args) {
            Ok(_) => Ok(()),
            Err(Stopped::Error(error)) => Err((error.kind.exit_code(), error.to_string())),
            Err(Stopped::Said(_)) => Err((0, String::new())),
        }
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
        mount::Helper::command().debug_assert();
    }

    #[test]
    fn what_is_built_parses() {
        for line in [
            "init S",
            "init S --key-file F --recovery-key-file G",
            "init S --no-encryption --json",
            "mount S M",
            "mount S M --volume V --read-only --foreground -o ro,dev -o x-a --key-file F",
            "umount M",
            "volume create S N",
            "volume list S --json",
            "volume delete S N --dry-run",
            "snapshot create P",
            "snapshot create P N --tag a=b --tag c=d=e --hold --all-volumes --json",
            "snapshot list P --json",
            "snapshot delete P A B --dry-run",
            "snapshot hold P N",
            "snapshot release P N",
            "policy show P --json",
            "policy set P every=15m on-close=* --dry-run",
            "diff P A",
            "diff P @10m @lsn:7 --json --summary --volume V --key-file F",
            "log F",
            "log F --limit 3 --json",
            "restore P --at @1m",
            "restore P --at N --to D --volume V --dry-run --json",
            "purge P --all-history",
            "purge P --all-history --dry-run --json",
            "status",
            "status P --check --json",
            "fsck S --json",
            "fsck S --repair --dry-run",
            "fsck S --repair --yes --json",
            "scrub P --json",
            "scrub P --cancel",
            "key export S",
            "key export S F --json",
            "key add S",
            "key remove S 1 --dry-run",
            "key rotate S",
            "key list S --json",
            "completions bash",
            "man D",
            "upgrade",
            "upgrade --binary F",
        ] {
            let args: Vec<&str> = std::iter::once("rewindfs").chain(line.split(' ')).collect();
            assert_eq!(usage(&args), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_is_not_built_is_a_usage_error_in_one_line() {
        for line in [
            "adopt D",
            "protect D",
            "release D",
            "diff P",
            "diff P @nonsense",
            "diff P A B C",
            "log",
            "log F --limit x",
            "restore P",
            "restore P --at a/b",
            "purge",
            "policy P",
            "policy set P",
            "pair create P",
            "replicate status P",
            "promote P",
            "demote P",
            "switchover P",
            "ha status",
            "drill P",
            "fsck S --dry-run",
            "scrub P --repair",
            "gc P Q",
            "offsite status",
            "recover U S",
            "report P",
            "mount S",
            "snapshot create P .x",
            "snapshot create P a/b",
            "snapshot create P n --tag novalue",
            "init S --no-encryption --key-file F",
            "help",
        ] {
            let args: Vec<&str> = std::iter::once("rewindfs").chain(line.split(' ')).collect();
            let (code, text) = usage(&args).unwrap_err();
            assert_eq!(code, 2, "{line}");
            assert!(!text.is_empty() && !text.contains('\n'), "{line}: {text}");
        }
        assert_eq!(usage(&["rewindfs", "--help"]), Err((0, String::new())));
    }
}
