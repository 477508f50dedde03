//! Starting a server in the background and waiting until its mount is usable.
//!
//! `rewindfs mount` runs `rewindfs hold STORE`, the holder, gives it its [`ServeOptions`] as one line on standard input
//! and reads [`Reply`] lines from its standard output until the last one. Both are pipes that only these two
//! processes hold, so an ended server is noticed at once, however it ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::lines::LineReader;
use super::protocol::{
    ControlError, MountRequest, Progress, REPLY_BYTES_MAX, Reply, Response, decode, encode, wire_path,
    wire_path_option,
};
use crate::types::limits::CONTROL_REQUEST_BYTES_MAX;

/// How long a starting server may say nothing. It reports progress while it rebuilds an index, which may
/// take longer.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// What a server is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeOptions {
    /// The store's directory, absolute.
    #[serde(with = "wire_path")]
    pub store: PathBuf,
    /// The key file, absolute; None means the default place.
    #[serde(with = "wire_path_option")]
    pub key_file: Option<PathBuf>,
    /// The first mount.
    pub mount: MountRequest,
    /// Where metrics are served; None: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// Where a starting server says how far it is. The last word is [`Ready::usable`] or [`Ready::failed`];
/// later calls of either only reach the log. A server that fails just returns its error: whoever runs it
/// passes it on.
#[derive(Debug)]
pub struct Ready(Mutex<Option<File>>);

impl Ready {
    /// For a server in the foreground: says it in the log.
    pub fn foreground() -> Ready {
        Ready(Mutex::new(None))
    }

    /// Reports progress.
    pub fn progress(&self, progress: Progress) {
        tracing::debug!("{} {} of {} {}", progress.what, progress.done, progress.total, progress.unit);
        self.say(&Reply::Progress(progress), false);
    }

    /// The mount can be used.
    pub fn usable(&self, mountpoint: &Path) {
        tracing::info!("mounted at {}", mountpoint.display());
        self.say(&Reply::Ok(Response::Mounted { mountpoint: mountpoint.to_owned() }), true);
    }

    /// The server ends with an error.
    pub fn failed(&self, error: &ControlError) {
        tracing::error!("{error}");
        self.say(&Reply::Error(error.clone()), true);
    }

    fn say(&self, reply: &Reply, last: bool) {
        let mut pipe = self.0.lock();
        // A starter that was interrupted has left; the server goes on without it.
        let gone = match (pipe.as_mut(), encode(reply)) {
            (Some(file), Ok(line)) => file.write_all(&line).is_err(),
            _ => false,
        };
        if last || gone {
            *pipe = None;
        }
    }
}

/// Starts a server and waits until it is usable. Answers where it is mounted.
///
/// # Errors
/// What the server reports; or that it ended, or said nothing for ten minutes (then it is told to end).
pub fn start(
    options: &ServeOptions,
    log_hint: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, ControlError> {
    let mut child = launch(options).map_err(|e| {
        ControlError::failed(format!("starting a server for {}: {e}", options.store.display()))
    })?;
    let Some(stdout) = child.stdout.take() else {
        return Err(ControlError::failed("starting a server: it has no output"));
    };
    let mut lines = LineReader::new(stdout, REPLY_BYTES_MAX);
    loop {
        let line = match lines.next_line(START_PATIENCE) {
            Ok(Some(line)) => line,
            Ok(None) => {
                let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                let text = format!("the server ended before its mount was usable ({how}); see {log_hint}");
                return Err(ControlError::failed(text));
            }
            Err(e) => return Err(give_up(&mut child, &e, log_hint)),
        };
        match decode(&line)? {
            Reply::Alive {} => {}
            Reply::Progress(news) => progress(news),
            Reply::Ok(Response::Mounted { mountpoint }) => return Ok(mountpoint),
            Reply::Ok(_) | Reply::Part(_) => {
                return Err(ControlError::failed("the server gave an answer that was not asked for"));
            }
            Reply::Error(error) => {
                // It has let go of the store when the user reads the error.
                let _ = child.wait();
                return Err(error);
            }
        }
    }
}

fn give_up(child: &mut Child, error: &io::Error, log_hint: &str) -> ControlError {
    let why = match error.kind() {
        io::ErrorKind::TimedOut => format!("it said nothing for {} s", START_PATIENCE.as_secs()),
        _ => error.to_string(),
    };
    if let Ok(pid) = i32::try_from(child.id()) {
        // Not SIGKILL: it may still be able to unmount.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    ControlError::failed(format!("the server did not start: {why}; see {log_hint}"))
}

fn launch(options: &ServeOptions) -> io::Result<Child> {
    let line = encode(options).map_err(io::Error::other)?;
    let mut child = Command::new(program()?)
        // Whatever the file is called (mount.rewindfs), this is how it is to behave.
        .arg0("rewindfs")
        .args([OsString::from("hold"), options.store.clone().into_os_string()])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(&line)?,
        None => return Err(io::Error::other("no standard input")),
    }
    Ok(child)
}

/// This program's file; after an upgrade removed it, what the kernel still has of it.
fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() { path } else { PathBuf::from("/proc/self/exe") })
}

/// The holder's side of [`start`]: takes its options from standard input, the ready pipe from standard
/// output, and leaves the starter's session, directory and descriptors. Must come before anything else in
/// the process has opened a file.
pub fn detach() -> Result<(ServeOptions, Ready), ControlError> {
    super::sys::close_inherited();
    let failed = |e: io::Error| ControlError::failed(format!("detaching the server: {e}"));
    let mut line = Vec::new();
    io::stdin().lock().take(2 * CONTROL_REQUEST_BYTES_MAX as u64).read_to_end(&mut line).map_err(failed)?;
    let options: ServeOptions = decode(line.trim_ascii_end()).map_err(|_| {
        ControlError::usage("hold is internal; use rewindfs mount, with --foreground if wanted")
    })?;
    let take_stdout = || {
        // A shell or systemd that starts a server itself may have made it a group leader, which cannot
        // leave its session and need not.
        let _ = nix::unistd::setsid();
        std::env::set_current_dir("/")?;
        let pipe = io::stdout().as_fd().try_clone_to_owned()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(File::from(pipe))
    };
    Ok((options, Ready(Mutex::new(Some(take_stdout().map_err(failed)?)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::mount_options::MountOptions;

    #[test]
    fn ready_lines_end_with_the_first_last_word() {
        let (reader, writer) = io::pipe().unwrap();
        let ready = Ready(Mutex::new(Some(File::from(std::os::fd::OwnedFd::from(writer)))));
        let news = Progress { what: "rebuilding".into(), done: 1, total: 2, unit: "records".into() };
        ready.progress(news.clone());
        ready.usable(Path::new("/m"));
        ready.failed(&ControlError::failed("late"));
        let mut lines = LineReader::new(reader, 1 << 20);
        let mut next = || lines.next_line(Duration::from_secs(5)).unwrap();
        assert_eq!(decode::<Reply>(&next().unwrap()).unwrap(), Reply::Progress(news));
        let mounted = Reply::Ok(Response::Mounted { mountpoint: "/m".into() });
        assert_eq!(decode::<Reply>(&next().unwrap()).unwrap(), mounted);
        assert_eq!(next(), None);
    }

    #[test]
    fn a_starter_that_left_does_not_disturb() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let ready = Ready(Mutex::new(Some(File::from(std::os::fd::OwnedFd::from(writer)))));
        ready.usable(Path::new("/m"));
        ready.usable(Path::new("/m"));
    }

    #[test]
    fn options_round_trip_with_any_path() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = PathBuf::from(OsString::from_vec(b"/s/\xff\n".to_vec()));
        let mount =
            MountRequest { volume: "main".into(), mountpoint: odd.clone(), options: MountOptions::default() };
        let options =
            ServeOptions { store: odd.clone(), key_file: Some(odd), mount, metrics: "[::1]:1".parse().ok() };
        let line = encode(&options).unwrap();
        assert_eq!(decode::<ServeOptions>(line.trim_ascii_end()).unwrap(), options);
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
    }
}
