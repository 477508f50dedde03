//! What the tests share: stores and mounts, running commands, comparing trees, raw system calls.

pub mod acl;
pub mod command;
pub mod http;
pub mod listing;
pub mod locker;
pub mod mounting;
pub mod process;
pub mod rng;
pub mod sample;
pub mod sys;
pub mod tree;
pub mod twin;

pub use command::{Run, run, tool};
pub use mounting::{Mount, Store};
pub use rng::Rng;
pub use tree::{Times, Tree, same_tree};
pub use twin::Twin;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A number from the environment, or its default.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, it is {text:?}")),
        Err(_) => default,
    }
}

/// Where the tests may write.
pub fn test_root() -> PathBuf {
    let root = std::env::var_os("REWINDFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    root.canonicalize().unwrap_or_else(|e| panic!("cannot use {} for tests: {e}", root.display()))
}

/// Waits until `ready` holds; fails the test after a minute.
pub fn eventually(what: &str, ready: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(60), ready), "waited a minute in vain for: {what}");
}

/// Whether `ready` came to hold within `limit`.
pub fn within(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A list of arguments out of strings and paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$(std::ffi::OsStr::new(&$arg).to_owned()),*] };
}
pub(crate) use args;
