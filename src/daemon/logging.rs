//! Where log lines go: standard error in the foreground, else a file that is rotated by size.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::types::NodeUuid;

/// A log file is put aside at this size.
const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// Log files that are kept, the current one included.
const LOG_FILES: u32 = 4;
/// The environment variable with the filter.
const FILTER_VARIABLE: &str = "REWINDFS_LOG";

/// Where a process of that name, a server's being its node's id, logs: `/var/log/rewindfs` for root, else `$XDG_STATE_HOME/rewindfs`
/// (`~/.local/state/rewindfs`).
pub fn log_path(name: &str) -> Option<PathBuf> {
    let dir = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/log")
    } else {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p: &PathBuf| p.is_absolute());
        variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?
    };
    Some(dir.join("rewindfs").join(format!("{name}.log")))
}

/// Logs to standard error from now on.
pub fn to_stderr() {
    install(io::stderr, io::IsTerminal::is_terminal(&io::stderr()));
}

/// Logs to the file of the node's id and a suffix from now on. Must come before the first mount: see [`RotatingLog`].
///
/// # Errors
/// The file cannot be written, or it lies in the store; the server can run without a log.
pub fn to_file(node: NodeUuid, suffix: &str, store: &Path) -> io::Result<PathBuf> {
    let path = log_path(&format!("{node}{suffix}"))
        .ok_or_else(|| io::Error::other("neither XDG_STATE_HOME nor HOME is set"))?;
    // The part of the path that exists; what is missing would be made below it.
    let existing = path.ancestors().find_map(|dir| dir.canonicalize().ok());
    if existing.is_some_and(|dir| dir.starts_with(store)) {
        return Err(io::Error::other(format!("{} lies in the store", path.display())));
    }
    let log = RotatingLog::open(&path, LOG_BYTES)?;
    install(LogWriter(Mutex::new(log)), false);
    Ok(path)
}

fn install<W>(writer: W, color: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let filter = if wanted.is_empty() { Ok(EnvFilter::new("info")) } else { EnvFilter::try_new(&wanted) };
    let problem = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    // Whatever was asked for: below this, fuser logs every request with the names in it.
    let quiet = ["fuser=warn", "fuser::request=warn"].into_iter().filter_map(|text| text.parse().ok());
    let filter = quiet.fold(filter, EnvFilter::add_directive);
    // Already installed is fine: tests run several servers in one process.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(writer).try_init();
    if let Some(problem) = problem {
        tracing::warn!("{FILTER_VARIABLE}: {problem}; using info");
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let owned = payload.downcast_ref::<String>().map(String::as_str);
        let text = payload.downcast_ref::<&str>().copied().or(owned).unwrap_or("panic");
        tracing::error!("panic at {place}: {text}");
    }));
}

/// A file that is put aside as `.1`, `.2`, … when it is full.
///
/// It keeps its directory open and names files relative to it: the path may later lie *below our own mount*
/// (a mounted home directory), where opening it would wait for the very server that opens it.
#[derive(Debug)]
struct RotatingLog {
    dir: OwnedFd,
    name: String,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl RotatingLog {
    fn open(path: &Path, bytes_max: u64) -> io::Result<RotatingLog> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let dir = OwnedFd::from(File::open(parent)?);
        let file = open_in(&dir, name)?;
        let bytes = file.metadata()?.len();
        Ok(RotatingLog { dir, name: name.to_owned(), file, bytes, bytes_max })
    }

    fn numbered(&self, number: u32) -> String {
        if number == 0 { self.name.clone() } else { format!("{}.{number}", self.name) }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..LOG_FILES).rev() {
            let (from, to) = (self.numbered(number - 1), self.numbered(number));
            match renameat(&self.dir, from.as_str(), &self.dir, to.as_str()) {
                Err(e) if e != nix::errno::Errno::ENOENT => return Err(e.into()),
                _ => {}
            }
        }
        self.file = open_in(&self.dir, &self.name)?;
        self.bytes = 0;
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line)
    }
}

fn open_in(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(File::from(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP)?))
}

/// One line of the subscriber is one write.
#[derive(Debug)]
struct LogWriter(Mutex<RotatingLog>);

impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full disk must not make the subscriber complain to a standard error that leads nowhere.
        let _ = self.0.lock().append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a LogWriter;

    fn make_writer(&'a self) -> &'a LogWriter {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_full_log_is_put_aside_and_the_oldest_is_lost() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("logs");
        let path = dir.join("n.log");
        let mut log = RotatingLog::open(&path, 8).unwrap();
        // The directory is held, not named: it may be covered or renamed meanwhile.
        let moved = base.path().join("moved");
        fs::rename(&dir, &moved).unwrap();
        for n in 0..6 {
            log.append(format!("line {n}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(moved.join(name)).unwrap();
        let kept = ["n.log", "n.log.1", "n.log.2", "n.log.3"].map(read);
        assert_eq!(kept, ["line 5\n", "line 4\n", "line 3\n", "line 2\n"]);
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 4);
    }

    #[test]
    fn an_old_log_is_continued() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("n.log");
        fs::write(&path, "old\n").unwrap();
        RotatingLog::open(&path, 100).unwrap().append(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\nnew\n");
    }
}
