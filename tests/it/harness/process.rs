//! A process known by its number and its start, so that a number used again is never killed by mistake.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that this test caused to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The living process with that number.
    pub fn of(pid: i32) -> Option<Process> {
        start_of(pid).map(|started| Process { pid, started })
    }

    /// Whether it still runs; a zombie does not.
    pub fn alive(self) -> bool {
        start_of(self.pid) == Some(self.started)
    }

    /// Sends SIGKILL if it still runs.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
    }

    /// Lets it do nothing more until it is killed.
    pub fn stop(self) {
        self.signal(Signal::SIGSTOP);
    }

    fn signal(self, signal: Signal) {
        if self.alive() {
            // It may have ended meanwhile, which is what is wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Field 22 of `/proc/PID/stat` (start in clock ticks since boot); none for zombies and the dead.
fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}
