//! A process that takes locks when it is told to.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::eventually;

/// Milliseconds until an answer must have come.
const DEADLINE: u16 = 60_000;

/// The process; it ends, and lets everything go, when this is dropped.
pub struct Locker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Locker {
    /// Starts one in a directory.
    pub fn start(dir: &Path) -> Locker {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("locker.py")]).current_dir(dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let (orders, answers) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Locker { child, orders, answers: BufReader::new(answers) }
    }

    /// Sends commands without waiting for their end.
    pub fn send(&mut self, commands: &str) {
        writeln!(self.orders, "{commands}").expect("the locker takes orders");
    }

    /// The answer to what was sent before.
    pub fn answer(&mut self) -> String {
        let mut ready = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
        let found = poll(&mut ready, PollTimeout::from(DEADLINE)).expect("waiting for an answer");
        assert!(found == 1, "a lock was not granted in a minute");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    /// Sends commands and waits for what they come to.
    pub fn ask(&mut self, commands: &str) -> String {
        self.send(commands);
        self.answer()
    }

    /// Returns when the process waits inside of `flock` or `fcntl`.
    pub fn until_it_waits(&self) {
        let calls = [libc::SYS_flock, libc::SYS_fcntl].map(|number| format!("{number} "));
        eventually("a process to wait for a lock", || {
            let call = fs::read_to_string(format!("/proc/{}/syscall", self.child.id())).unwrap_or_default();
            calls.iter().any(|number| call.starts_with(number))
        });
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
