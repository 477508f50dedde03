//! `mount`, `umount`, `mount.rewindfs` and the server that they start.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser};
use nix::unistd::geteuid;

use super::progress::Display;
use super::{Outcome, Stopped, io_error, output, resolve, shown, unexpected};
use crate::daemon::client::{Backend as _, Client};
use crate::daemon::holder::Holder;
use crate::daemon::mount_options::{self, Parsed};
use crate::daemon::protocol::{ControlError, Health, Kind, MountRequest, Progress, Request, Response};
use crate::daemon::registry::{self, Found, RuntimeDir};
use crate::daemon::spawn::{self, Ready, ServeOptions};
use crate::daemon::sys::{self, END_PATIENCE};
use crate::daemon::{logging, metrics, server, unmount};
use crate::types::NodeUuid;

/// What is behind the node's id in the name of the holder's log: it is a process of its own, and two that
/// rotate one file would lose lines.
const HOLDER_LOG: &str = "-holder";
/// The same for the server's.
const SERVER_LOG: &str = "";
/// Where metrics are served unless the command says it.
const METRICS_VARIABLE: &str = "REWINDFS_METRICS";
/// Servers that may be found ending, one after the other, before a mount gives up.
const SERVERS_TRIED: usize = 4;

/// Mount a volume; returns when the mount is usable.
#[derive(Debug, Args)]
pub(super) struct Mount {
    /// The store's directory.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// An existing directory.
    mountpoint: PathBuf,
    /// Which volume [default: main].
    #[arg(long)]
    volume: Option<String>,
    /// Allow no writes through this mount.
    #[arg(long)]
    read_only: bool,
    /// Serve in this process, with the log on standard error, until it is unmounted.
    #[arg(long)]
    foreground: bool,
    /// Mount options, separated by commas: those of mount(8), fsname=, subtype=, snapdir=visible,
    /// snapdir-name=, resend=off, volume=, keyfile=, metrics=.
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// The key file, if it is not in its default place.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Where metrics are served for Prometheus, or off; only the store's first mount decides
    /// [default: $REWINDFS_METRICS, else 127.0.0.1:9671].
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
}

/// Mount a rewindfs volume; run by mount(8) for the type rewindfs.
#[derive(Debug, Parser)]
#[command(name = "mount.rewindfs", version, max_term_width = 100)]
pub(super) struct Helper {
    /// The store's directory.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// An existing directory.
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Tolerate unknown options.
    #[arg(short = 's')]
    sloppy: bool,
    /// Only check the arguments.
    #[arg(short = 'f')]
    fake: bool,
    /// Accepted and ignored: there is no mtab.
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Accepted and ignored.
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// Accepted and ignored: the type is known.
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Unmount; returns when everything is durable.
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted.
    mountpoint: PathBuf,
}

/// Hold the mounts of a store and run its servers; started by `mount`.
#[derive(Debug, Args)]
pub(super) struct Hold {
    /// The store's directory, for those who look at the process list.
    #[arg(value_name = "STORE")]
    _store: PathBuf,
    /// For a server whose holder was killed.
    #[arg(long)]
    adopt: bool,
}

/// Run a server; started by `hold`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The store's directory, for those who look at the process list.
    #[arg(value_name = "STORE")]
    _store: PathBuf,
}

impl Helper {
    pub(super) fn run(self) -> Result<ExitCode, Stopped> {
        let parsed = parse_options(&self.options, self.sloppy)?;
        if self.fake {
            return Ok(ExitCode::SUCCESS);
        }
        let mount = Mount {
            store: self.store,
            mountpoint: self.mountpoint,
            volume: None,
            read_only: false,
            foreground: false,
            options: Vec::new(),
            key_file: None,
            metrics: None,
        };
        Ok(mount.run_with(parsed)?)
    }
}

fn parse_options(texts: &[String], sloppy: bool) -> Result<Parsed, ControlError> {
    mount_options::parse(texts, geteuid().as_raw(), sloppy).map_err(ControlError::usage)
}

impl Mount {
    pub(super) fn run(self) -> Outcome {
        let parsed = parse_options(&self.options, false)?;
        self.run_with(parsed)
    }

    fn run_with(self, parsed: Parsed) -> Outcome {
        let foreground = self.foreground;
        let options = self.serve_options(parsed)?;
        let node = registry::node_of(&options.store)?;
        let dir =
            RuntimeDir::own().map_err(|e| ControlError::failed(format!("the runtime directory: {e}")))?;
        // Two mounts of one store at the same moment: the second waits, and then finds the first's server.
        let lock =
            dir.lock_start(node).map_err(|e| ControlError::failed(format!("waiting to start: {e}")))?;
        if mount_by_server(&options, node, foreground)? {
            warn_of_trouble(&options.mount.mountpoint);
            return output::done();
        }
        if foreground {
            // The store's own lock decides from here on; this one would be held for days.
            drop(lock);
            logging::to_stderr();
            Holder::new(options, true)?.run(Ready::foreground())?;
            return output::done();
        }
        let log = logging::log_path(&node.to_string()).map_or_else(|| "no log".to_owned(), shown);
        spawn::start(&options, &log, &mut show(&mut Display::new()))?;
        warn_of_trouble(&options.mount.mountpoint);
        output::done()
    }

    /// Everything a server needs to know, with paths that mean the same in its working directory.
    fn serve_options(self, parsed: Parsed) -> Result<ServeOptions, ControlError> {
        let store = resolve::store_directory(&self.store)?;
        let failed = |e: std::io::Error| io_error("mounting at", &self.mountpoint, &e);
        let mountpoint = self.mountpoint.canonicalize().map_err(failed)?;
        if resolve::is_dead(&mountpoint) {
            let path = shown(&mountpoint);
            let text = format!("the server of the mount at {path} is gone; run: rewindfs umount {path}");
            return Err(ControlError::failed(text));
        }
        if !mountpoint.metadata().map_err(failed)?.is_dir() {
            return Err(ControlError::failed(format!("{} is not a directory", shown(&mountpoint))));
        }
        if store.starts_with(&mountpoint) || mountpoint.starts_with(&store) {
            let text = format!("{} and the store {} contain each other", shown(&mountpoint), shown(&store));
            return Err(ControlError::usage(text));
        }
        let key_file = self.key_file.or(parsed.key_file);
        let key_file = key_file.map(|path| path.canonicalize().map_err(|e| io_error("reading", &path, &e)));
        let metrics = metrics_address(self.metrics.or(parsed.metrics))?;
        let volume = self.volume.or(parsed.volume).unwrap_or_else(|| resolve::DEFAULT_VOLUME.to_owned());
        let mut options = parsed.options;
        options.ro |= self.read_only;
        let mount = MountRequest { volume, mountpoint, options };
        Ok(ServeOptions { store, key_file: key_file.transpose()?, mount, metrics })
    }
}

/// Where metrics are to be served; None for nowhere.
fn metrics_address(asked_for: Option<String>) -> Result<Option<SocketAddr>, ControlError> {
    let text = asked_for.or_else(|| std::env::var(METRICS_VARIABLE).ok().filter(|text| !text.is_empty()));
    let text = text.as_deref().unwrap_or(metrics::DEFAULT_ADDRESS);
    if text == "off" {
        return Ok(None);
    }
    let usage = |_| {
        ControlError::usage(format!("metrics: {text:?} is not an address such as 127.0.0.1:9671, or off"))
    };
    text.parse().map(Some).map_err(usage)
}

/// Asks the store's server to mount, if one runs and is not just ending. False when the store is free.
fn mount_by_server(options: &ServeOptions, node: NodeUuid, foreground: bool) -> Result<bool, ControlError> {
    let mut failure = None;
    for _ in 0..SERVERS_TRIED {
        let entry = match registry::find(&options.store, node) {
            Found::Running(entry) => entry,
            Found::Leaving(process) => {
                process.wait(END_PATIENCE);
                continue;
            }
            Found::Failed(entry) => return Err(resolve::servers_die(&entry)),
            Found::Absent => return Ok(false),
        };
        let client = resolve::server_of(&options.store, &entry);
        let process = client.process();
        if foreground {
            let text = format!("{} has a server already; mount without --foreground", shown(&options.store));
            return Err(ControlError::in_use(text));
        }
        match client.call(Request::Mount(options.mount.clone()), &mut show(&mut Display::new())) {
            Ok(Response::Mounted { .. }) => return Ok(true),
            Ok(_) => return Err(unexpected()),
            // The last mount of that server has just gone: the next server can have the store.
            Err(e) if e.kind == Kind::Ending => {
                if let Some(process) = process {
                    process.wait(END_PATIENCE);
                }
                failure = Some(e);
            }
            // A server that died under the request is no reason not to start the next one.
            Err(e) => match registry::find(&options.store, node) {
                Found::Running(_) => return Err(e),
                _ => failure = Some(e),
            },
        }
    }
    failure.map_or(Ok(false), Err)
}

/// Says so when what was mounted cannot be written although it should be.
fn warn_of_trouble(mountpoint: &Path) {
    let ask = || resolve::path(mountpoint, None, None)?.status();
    // Whoever may mount but not ask finds out by `status`.
    let Ok(reports) = ask() else { return };
    let failed = reports.iter().find(|r| r.health == Health::Failed);
    let reason = failed.and_then(|r| r.problems.iter().find(|p| p.starts_with("the store is read-only")));
    reason.into_iter().for_each(|reason| output::warn(reason));
}

fn show(display: &mut Display) -> impl FnMut(Progress) {
    |news| display.show(&news)
}

impl Umount {
    pub(super) fn run(self) -> Outcome {
        // This only names the mountpoint and does not enter it, so that it works on a dead one too.
        let mountpoint =
            self.mountpoint.canonicalize().map_err(|e| io_error("unmounting", &self.mountpoint, &e))?;
        if resolve::is_dead(&mountpoint) {
            unmount_dead(&mountpoint)?;
            return output::done();
        }
        // Nobody answers there, and what was acknowledged is in the journal or in memory for the next mount.
        if resolve::failing(&mountpoint).is_some() {
            unmount_dead(&mountpoint)?;
            return output::done();
        }
        let Some(mount) = resolve::mount_of(&mountpoint)? else {
            return Err(not_a_mount(&mountpoint));
        };
        if mount.mountpoint != mountpoint && !same_directory(&mount.mountpoint, &mountpoint) {
            return Err(not_a_mount(&mountpoint));
        }
        let client = Client::new(mount.socket, None);
        let process = client.process();
        let answer =
            client.call(Request::Unmount { mountpoint: mount.mountpoint }, &mut show(&mut Display::new()))?;
        match (answer, process) {
            // What comes next may be a mount, which needs the store's lock.
            (Response::Unmounted { stopping: true }, Some(process)) => {
                process.wait(END_PATIENCE);
            }
            (Response::Unmounted { .. }, _) => {}
            _ => return Err(unexpected()),
        }
        output::done()
    }
}

fn not_a_mount(path: &Path) -> ControlError {
    ControlError::new(Kind::NoStore, format!("{} is not where a rewindfs volume is mounted", shown(path)))
}

/// Whether two paths are one directory (a bind mount, another namespace's name for it).
fn same_directory(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Takes away a mount whose server is gone; there is nothing left in it that could become durable.
fn unmount_dead(mountpoint: &Path) -> Result<(), ControlError> {
    unmount(mountpoint, false)
        .or_else(|_| unmount(mountpoint, true))
        .map_err(|e| io_error("unmounting", mountpoint, &e))
}

/// Logs where a store's processes log. A full or read-only /var must not keep data from being mounted.
fn log(options: &ServeOptions, foreground: bool, name: &str) -> Result<(), String> {
    if foreground {
        logging::to_stderr();
        return Ok(());
    }
    let node = registry::node_of(&options.store).map_err(|e| e.to_string())?;
    logging::to_file(node, name, &options.store).map(drop).map_err(|e| e.to_string())
}

impl Hold {
    pub(super) fn run(self) -> Outcome {
        if self.adopt {
            sys::close_inherited();
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            let stdin = stdin.map_err(|e| io_error("reading", "standard input", &e))?;
            Holder::adopt(stdin, |options, foreground| drop(log(options, foreground, HOLDER_LOG)))?;
            return output::done();
        }
        let (options, ready) = spawn::detach()?;
        if let Err(error) = log(&options, false, HOLDER_LOG) {
            let what = format!("running without a log: {error}");
            ready.progress(Progress { what, done: 0, total: 0, unit: String::new() });
        }
        match Holder::new(options, false) {
            Ok(holder) => holder.run(ready)?,
            Err(error) => {
                ready.failed(&error);
                return Err(error);
            }
        }
        output::done()
    }
}

impl Serve {
    pub(super) fn run(self) -> Outcome {
        sys::close_inherited();
        server::main(|options, foreground| drop(log(options, foreground, SERVER_LOG)))?;
        output::done()
    }
}
