//! The text form of a key: one line, the same in a key file and on paper.
//!
//! `rewindfs-key-1:<64 hex digits>:<8 hex digits>`, the latter the CRC-32C of the 32 key bytes, so that a
//! mistyped digit is told from a wrong key.

use crate::types::error::IoContext as _;
use crate::types::ids::unhex;
use crate::types::{Error, Result, StoreUuid};
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize as _, Zeroizing};

const PREFIX: &str = "rewindfs-key-1";
/// A key file is one line; more than this is some other file.
const FILE_BYTES_MAX: u64 = 4096;
/// Environment variable that overrides where key files are.
const KEY_DIR_VARIABLE: &str = "REWINDFS_KEY_DIR";

/// A key that opens a slot of a keyring: what is in a key file or on a printed recovery sheet. Wiped on drop,
/// never printed by `Debug`.
#[derive(Clone)]
pub struct KeyMaterial(Zeroizing<[u8; 32]>);

impl KeyMaterial {
    /// A fresh random key.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel gives no random bytes.
    pub fn generate() -> Result<KeyMaterial> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice())
            .map_err(|e| Error::io("drawing random bytes from", Path::new("getrandom(2)"), e.into()))?;
        Ok(KeyMaterial(bytes))
    }

    pub(super) fn from_secret(secret: &Zeroizing<[u8; 32]>) -> KeyMaterial {
        KeyMaterial(secret.clone())
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The one-line text form, without a line end.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it: growing would leave copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 80));
        text.push_str(PREFIX);
        text.push(':');
        for byte in self.0.iter() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, ":{:08x}", crc32c::crc32c(self.0.as_slice()));
        text
    }

    /// Reads the text form; white space around it and upper-case digits are fine.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a sentence that says what is wrong, without repeating the key.
    pub fn parse(text: &str) -> Result<KeyMaterial> {
        let bad = |why: &str| Error::Invalid(format!("not a usable rewindfs key: {why}"));
        let mut parts = text.trim().split(':');
        if parts.next() != Some(PREFIX) {
            return Err(bad("it does not start with rewindfs-key-1:"));
        }
        let (Some(digits), Some(check), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("expected rewindfs-key-1:<64 hex digits>:<8 hex digits>"));
        };
        let key = unhex::<32>(digits).map(Zeroizing::new);
        let key = key.ok_or_else(|| bad("its middle part is not 64 hex digits"))?;
        let check = unhex::<4>(check).ok_or_else(|| bad("its last part is not 8 hex digits"))?;
        if u32::from_be_bytes(check) != crc32c::crc32c(key.as_slice()) {
            return Err(bad("its check digits do not match; a digit is mistyped"));
        }
        Ok(KeyMaterial(key))
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(..)")
    }
}

/// A key read from a file.
#[derive(Debug)]
pub struct LoadedKey {
    /// The key.
    pub key: KeyMaterial,
    /// Whether group or others have any right on the file: worth a warning, not a refusal, because it may be
    /// a mounted secret whose mode the operator cannot choose.
    pub exposed: bool,
}

/// Reads a key file.
///
/// # Errors
/// [`Error::Io`] naming the file; [`Error::Invalid`] naming it if it holds no usable key.
pub fn read(path: &Path) -> Result<LoadedKey> {
    let file = File::open(path).at("opening key file", path)?;
    let mode = file.metadata().at("reading key file", path)?.permissions().mode();
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
    let in_file = |why: &dyn fmt::Display| Error::Invalid(format!("key file {}: {why}", path.display()));
    match file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            return Err(in_file(&"not a usable rewindfs key: it is not text"));
        }
        r => r.at("reading key file", path)?,
    };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(in_file(&"not a usable rewindfs key: it is longer than one line"));
    }
    let key = KeyMaterial::parse(&text).map_err(|e| in_file(&e))?;
    Ok(LoadedKey { key, exposed: mode & 0o077 != 0 })
}

/// Writes a new key file, mode 0600, durable on return; missing directories above it are made with mode 0700.
///
/// # Errors
/// [`Error::Io`] naming the file; an existing file is never replaced, since it may be the only key of a
/// store.
pub fn write(path: &Path, key: &KeyMaterial) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).at("making directory", dir)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.at("making key file", path)?;
    let mut line = key.to_text();
    line.push('\n');
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
    line.zeroize();
    if let Err(e) = written {
        // A part of a key opens nothing; leaving it would block the next attempt.
        let _ = std::fs::remove_file(path);
        return Err(Error::io("writing key file", path, e));
    }
    File::open(dir).and_then(|d| d.sync_all()).at("syncing directory", dir)
}

/// Where the key file of a store is unless the user says otherwise.
///
/// # Errors
/// [`Error::Invalid`] if neither of the variables that say where is set.
pub fn default_path(store: StoreUuid) -> Result<PathBuf> {
    let root = nix::unistd::geteuid().is_root();
    Ok(default_dir(root, |name| std::env::var_os(name))?.join(format!("{store}.key")))
}

/// `$REWINDFS_KEY_DIR`, else `/etc/rewindfs/keys` for root, else below the user's configuration directory.
fn default_dir(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = path(KEY_DIR_VARIABLE) {
        return Ok(dir);
    }
    if root {
        return Ok(PathBuf::from("/etc/rewindfs/keys"));
    }
    // The XDG base directory specification says to ignore relative paths.
    let config = path("XDG_CONFIG_HOME").filter(|p| p.is_absolute());
    let config = config.or_else(|| path("HOME").map(|home| home.join(".config")));
    let config = config.ok_or_else(|| {
        Error::Invalid(format!("no place for key files: set {KEY_DIR_VARIABLE}, XDG_CONFIG_HOME or HOME"))
    })?;
    Ok(config.join("rewindfs/keys"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(bytes: [u8; 32]) -> KeyMaterial {
        KeyMaterial(Zeroizing::new(bytes))
    }

    proptest! {
        #[test]
        fn text_round_trip_with_white_space(bytes: [u8; 32]) {
            let text = format!("\n \t{}\r\n\n", key(bytes).to_text().as_str());
            prop_assert_eq!(*KeyMaterial::parse(&text).unwrap().bytes(), bytes);
            let upper = text.to_uppercase().replace("REWINDFS-KEY", "rewindfs-key");
            prop_assert_eq!(*KeyMaterial::parse(&upper).unwrap().bytes(), bytes);
        }

        #[test]
        fn every_mistyped_digit_is_detected(bytes: [u8; 32], at in 0usize..88, digit in "[0-9a-f]") {
            let mut text = key(bytes).to_text().to_string();
            let at = at % text.len();
            prop_assume!(text.as_bytes()[at] != digit.as_bytes()[0]);
            text.replace_range(at..=at, &digit);
            prop_assert!(KeyMaterial::parse(&text).is_err());
        }

        #[test]
        fn hostile_text_is_an_error(text: String, hex in "[0-9a-fé]{0,70}", check in "[0-9a-f:]{0,9}") {
            prop_assert!(KeyMaterial::parse(&text).is_err());
            let close = KeyMaterial::parse(&format!("{PREFIX}:{hex}:{check}"));
            prop_assert!(close.is_err());
        }
    }

    #[test]
    fn errors_are_one_line_and_do_not_repeat_the_key() {
        let text = key([0xab; 32]).to_text().replace(":ab", ":bb");
        let message = KeyMaterial::parse(&text).unwrap_err().to_string();
        assert!(message.contains("mistyped") && !message.contains("abab") && !message.contains('\n'));
    }

    #[test]
    fn files_are_private_new_and_durable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/k.key");
        write(&path, &key([5; 32])).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let loaded = read(&path).unwrap();
        assert_eq!((loaded.key.bytes(), loaded.exposed), (&[5; 32], false));
        assert!(write(&path, &key([6; 32])).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap().exposed);
        std::fs::write(&path, [0xff; 5]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("k.key"));
        std::fs::write(&path, vec![b' '; 5000]).unwrap();
        assert!(matches!(read(&path), Err(Error::Invalid(_))));
        assert!(matches!(read(&dir.path().join("none")), Err(Error::Io { .. })));
    }

    #[test]
    fn default_directory_order() {
        let with = |root, set: &[(&str, &str)]| {
            let set: Vec<_> = set.iter().map(|(k, v)| (k.to_string(), OsString::from(v))).collect();
            let look = move |name: &str| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
            default_dir(root, look).ok().map(|p| p.display().to_string())
        };
        let all = [(KEY_DIR_VARIABLE, "/k"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(true, &all).unwrap(), "/k");
        assert_eq!(with(true, &all[1..]).unwrap(), "/etc/rewindfs/keys");
        assert_eq!(with(false, &all[1..]).unwrap(), "/x/rewindfs/keys");
        assert_eq!(with(false, &[("XDG_CONFIG_HOME", "rel"), all[2]]).unwrap(), "/h/.config/rewindfs/keys");
        assert_eq!(with(false, &[]), None);
    }
}
