//! `upgrade`: checks a program before it becomes the server.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::control::Caller;
use super::mounts::Mounts;
use super::protocol::{ControlError, one_line};

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of what it says.
const VERSION_BYTES_MAX: u64 = 4096;

/// Hands the mounts over to `program`.
pub(super) fn to(mounts: &dyn Mounts, caller: &Caller, program: &Path) -> Result<(), ControlError> {
    let failed = |what: &str| ControlError::failed(format!("{}: {what}", program.display()));
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(program).map_err(|e| failed(&e.to_string()))?;
    let meta = file.metadata().map_err(|e| failed(&e.to_string()))?;
    let own = nix::unistd::geteuid().as_raw();
    // It runs with this process's rights: nobody else may have written it, or ask for it.
    let safe = meta.is_file() && (meta.uid() == 0 || meta.uid() == own) && meta.mode() & 0o022 == 0;
    if !safe {
        return Err(failed(
            "a server's program must be a file of root's or the server's user, written by no one else",
        ));
    }
    if caller.uid != 0 && caller.uid != own {
        return Err(ControlError::denied("replacing another user's server"));
    }
    let file = OwnedFd::from(file);
    let version = version_of(&file).map_err(|e| failed(&e))?;
    tracing::info!(program = %program.display(), %version, "upgrading");
    mounts.replace(file)
}

/// What the program says of itself.
fn version_of(program: &OwnedFd) -> Result<String, String> {
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg("--version")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("it cannot be run: {e}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it does not say its version".to_owned());
            }
        }
    };
    let mut text = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(VERSION_BYTES_MAX).read_to_string(&mut text);
    }
    if status.success() && text.starts_with("rewindfs ") {
        Ok(one_line(text.trim()))
    } else {
        Err("it is not rewindfs".to_owned())
    }
}
