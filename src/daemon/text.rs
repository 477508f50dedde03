//! Text on the wire: paths that may not be UTF-8, secrets, and lines that stay one line.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::ids;

/// `text` without control characters (line ends become spaces, others `?`), so that it stays one line and
/// cannot drive a terminal.
pub fn one_line(text: &str) -> String {
    let clean = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    text.trim_end().chars().map(clean).collect()
}

/// Text that must not reach a log: key material. Wiped when dropped, hidden by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Paths are bytes: text where they are UTF-8, else `{"hex": …}`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WirePath {
    Text(String),
    Hex { hex: String },
}

impl From<&Path> for WirePath {
    fn from(path: &Path) -> WirePath {
        use std::os::unix::ffi::OsStrExt as _;
        match path.to_str() {
            Some(text) => WirePath::Text(text.to_owned()),
            None => WirePath::Hex { hex: ids::hex(path.as_os_str().as_bytes()) },
        }
    }
}

impl WirePath {
    fn into_path<E: serde::de::Error>(self) -> Result<PathBuf, E> {
        use std::os::unix::ffi::OsStringExt as _;
        let bytes = match self {
            WirePath::Text(text) => text.into_bytes(),
            WirePath::Hex { hex } => unhex(&hex).ok_or_else(|| E::custom("bad hex in a path"))?,
        };
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(E::custom("empty path or NUL in a path"));
        }
        Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| ids::unhex::<1>(std::str::from_utf8(pair).ok()?).map(|[b]| b);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// Serde of a [`PathBuf`] field as bytes.
pub mod wire_path {
    use super::WirePath;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use std::path::{Path, PathBuf};

    /// Writes text, or hex for what is not UTF-8.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        WirePath::from(path).serialize(to)
    }

    /// Reads either form.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        WirePath::deserialize(from)?.into_path()
    }
}

/// Serde of an `Option<PathBuf>` field as bytes.
pub mod wire_path_option {
    use super::WirePath;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use std::path::PathBuf;

    /// Writes null, text, or hex for what is not UTF-8.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(WirePath::from).serialize(to)
    }

    /// Reads any of these.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<WirePath>::deserialize(from)?.map(WirePath::into_path).transpose()
    }
}
