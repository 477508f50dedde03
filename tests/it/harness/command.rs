//! Running programs to their end, with their output kept and a deadline.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{setting, test_root, within};

/// How a program ended.
#[derive(Debug)]
pub struct Run {
    /// The command line.
    pub line: String,
    /// Its exit code; 128 + the signal if one killed it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// Fails the test unless the program ended well.
    pub fn expect_ok(self) -> String {
        assert_eq!(self.code, 0, "`{}` failed\nstdout: {}\nstderr: {}", self.line, self.stdout, self.stderr);
        self.stdout
    }

    /// Fails the test unless the program ended with `code` and one line of explanation, which is returned.
    pub fn expect_refusal(self, code: i32) -> String {
        assert_eq!(self.code, code, "`{}` has the wrong exit code; stderr: {}", self.line, self.stderr);
        self.one_line()
    }

    /// The error, which must be one line.
    pub fn one_line(self) -> String {
        let lines: Vec<&str> = self.stderr.lines().filter(|l| !l.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "`{}` must explain itself in one line, not: {:?}", self.line, self.stderr);
        assert!(!self.stderr.contains("panicked"), "`{}` panicked: {}", self.line, self.stderr);
        self.stderr
    }
}

/// Runs a command to its end. Output goes to files and not to pipes: a background server that keeps the
/// streams open must not keep the test waiting.
pub fn run(command: &mut Command) -> Run {
    let limit = Duration::from_secs(setting("REWINDFS_TEST_DEADLINE_SECS", 300));
    let line = format!("{command:?}");
    let scratch = || tempfile::tempfile_in(test_root()).expect("a file for output");
    let handle = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
    let (mut stdout, mut stderr) = (scratch(), scratch());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(handle(&stdout))
        .stderr(handle(&stderr))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start `{line}`: {e}; the tests need that program"));
    let mut status = None;
    let ended = within(limit, || {
        status = child.try_wait().expect("waiting for a child");
        status.is_some()
    });
    let (stdout, stderr) = (content(&mut stdout), content(&mut stderr));
    if !ended {
        // Its own process group: nothing else is in it than this command and its children.
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let _ = child.wait();
        panic!("`{line}` had not ended after {limit:?}\nstdout: {stdout}\nstderr: {stderr}");
    }
    let status = status.expect("an ended child has a status");
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Run { line, code, stdout, stderr }
}

/// Runs a program in a directory and fails the test unless it ends well; its output is returned.
pub fn tool(dir: &Path, program: &str, args: &[OsString]) -> String {
    run(Command::new(program).args(args).current_dir(dir)).expect_ok()
}

fn content(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("reading captured output");
    String::from_utf8_lossy(&bytes).into_owned()
}
