//! What can go wrong below the volume layer. One sentence each: what failed, on what, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A store error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; `what` says what was tried.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried, as a verb ("reading").
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Stored bytes are not what was written.
    #[error("damaged {what} in {place}: {detail}")]
    Corrupt {
        /// Kind of object ("journal record").
        what: &'static str,
        /// File and offset, or key.
        place: String,
        /// What did not hold.
        detail: String,
    },
    /// No store at that path.
    #[error("no store at {0}; make one with: rewindfs init {0}")]
    NoStore(PathBuf),
    /// A store of another format version.
    #[error(
        "{path}: store format {found}, this program reads format {expected}; use the matching rewindfs version"
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version understood.
        expected: u32,
    },
    /// Another process has the store open.
    #[error("{0} is in use by another process; stop it first, or use its mount")]
    InUse(PathBuf),
    /// No key slot opens with the key given.
    #[error("wrong key for {store}: {detail}")]
    WrongKey {
        /// The store.
        store: PathBuf,
        /// Which key was tried and what to do.
        detail: String,
    },
    /// A sync failed earlier; what was written since then may not be on the disk.
    #[error("the store is read-only since a failed sync ({0}); restart the server to recover")]
    Poisoned(String),
    /// The filesystem below is full.
    #[error("no space left for {0}")]
    NoSpace(String),
    /// The store was opened read-only, or this node is not the primary.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    /// An argument is outside what the format can hold.
    #[error("{0}")]
    Invalid(String),
    /// RocksDB reported an error.
    #[error("index: {0}")]
    Index(String),
}

/// Shorthand for results of the store layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error with its context; a full disk becomes [`Error::NoSpace`].
    pub fn io(what: &'static str, path: &Path, source: io::Error) -> Error {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace(path.display().to_string()),
            _ => Error::Io { what, path: path.to_owned(), source },
        }
    }

    /// Damaged bytes, with their place.
    pub fn corrupt(what: &'static str, place: impl Into<String>, detail: impl Into<String>) -> Error {
        Error::Corrupt { what, place: place.into(), detail: detail.into() }
    }
}

/// Adds what and where to an [`io::Result`].
pub trait IoContext<T> {
    /// Wraps the error with the action and the path it concerned.
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(what, path, e))
    }
}
