//! `-o` options of a mount: the names `mount(8)` users know, plus ours.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use super::text::wire_path_option;
use crate::mount::KernelOptions;
use crate::volume::AccessTimes;

/// Bytes of one `-o` text; `mount(2)` takes a page.
const TEXT_BYTES_MAX: usize = 4096;

/// Generic options that are the business of `mount(8)`, systemd or the kernel and mean nothing to us.
const DROPPED: [&str; 19] = [
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "group",
    "owner",
    "async",
    "silent",
    "loud",
    "nomand",
    "norelatime",
    "nolazytime",
    "noiversion",
    "nostrictatime",
];

/// How access times are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Atime {
    /// Updated when older than a day or than the last change (the kernel's default).
    #[default]
    Relatime,
    /// Never updated by reading.
    Noatime,
    /// Updated by every read.
    Strictatime,
}

/// Everything a mount can be told. The default is that of an unprivileged user; see
/// [`MountOptions::defaults_for`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountOptions {
    /// Others than the mounting user may enter.
    pub allow_other: bool,
    /// Root may enter; excluded by `allow_other`.
    pub allow_root: bool,
    /// The kernel checks modes and owners before asking us.
    pub default_permissions: bool,
    /// No writes through this mount.
    pub ro: bool,
    /// Device files work.
    pub dev: bool,
    /// Set-user-id bits work.
    pub suid: bool,
    /// Programs can be executed.
    pub exec: bool,
    /// Access times.
    pub atime: Atime,
    /// No access times of directories.
    pub nodiratime: bool,
    /// All writes are durable on return.
    pub sync: bool,
    /// Directory changes are durable on return.
    pub dirsync: bool,
    /// The first column of `mount`; None means the store's path.
    pub fsname: Option<String>,
    /// The part after `fuse.`; None means `rewindfs`, the empty text a plain `fuse`.
    pub subtype: Option<String>,
    /// `.snapshots` shows up in listings of the root.
    pub snapdir_visible: bool,
    /// The name of the snapshot directory.
    pub snapdir_name: String,
    /// Requests that a killed server had read are sent again by a kernel that can.
    #[serde(default = "yes")]
    pub resend: bool,
}

fn yes() -> bool {
    true
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            allow_other: false,
            allow_root: false,
            default_permissions: true,
            ro: false,
            dev: false,
            suid: false,
            exec: true,
            atime: Atime::default(),
            nodiratime: false,
            sync: false,
            dirsync: false,
            fsname: None,
            subtype: None,
            snapdir_visible: false,
            snapdir_name: ".snapshots".to_owned(),
            resend: true,
        }
    }
}

impl MountOptions {
    /// When reading a file moves its access time.
    pub fn access_times(&self) -> AccessTimes {
        match self.atime {
            _ if self.ro => AccessTimes::Never,
            Atime::Noatime => AccessTimes::Never,
            Atime::Relatime => AccessTimes::Relatime,
            Atime::Strictatime => AccessTimes::Always,
        }
    }

    /// The defaults of `uid`: root's mounts look like a disk's (`allow_other,default_permissions,dev,suid`);
    /// other users get what `fusermount3` grants without configuration.
    pub fn defaults_for(uid: u32) -> MountOptions {
        let root = uid == 0;
        MountOptions { allow_other: root, dev: root, suid: root, ..MountOptions::default() }
    }

    /// Checks what must hold together, also of options that came over the control socket.
    pub fn check(&self) -> Result<(), String> {
        if self.allow_other && self.allow_root {
            return Err("allow_other and allow_root exclude each other".to_owned());
        }
        let name = self.snapdir_name.as_bytes();
        if matches!(name, b"" | b"." | b"..")
            || name.len() > 255
            || name.iter().any(|b| matches!(b, b'/' | 0))
        {
            return Err("snapdir-name must be a file name".to_owned());
        }
        for (what, text) in [("fsname", &self.fsname), ("subtype", &self.subtype)] {
            let text = text.as_deref().unwrap_or_default();
            if text.len() > TEXT_BYTES_MAX || text.bytes().any(|b| b.is_ascii_control()) {
                return Err(format!("{what} is too long or has control characters"));
            }
        }
        Ok(())
    }
}

/// What one or more `-o` texts said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parsed {
    /// For the mount itself.
    pub options: MountOptions,
    /// `volume=`.
    pub volume: Option<String>,
    /// `keyfile=`.
    #[serde(with = "wire_path_option")]
    pub key_file: Option<PathBuf>,
    /// `metrics=`.
    pub metrics: Option<String>,
}

/// Parses `-o` texts over the defaults of `uid`; a later option wins over an earlier one. A comma inside a
/// value is written `\,`. With `sloppy` (`mount -s`) unknown options are dropped, else they are an error that
/// names them.
pub fn parse<S: AsRef<str>>(texts: &[S], uid: u32, sloppy: bool) -> Result<Parsed, String> {
    let mut parsed = Parsed { options: MountOptions::defaults_for(uid), ..Parsed::default() };
    for text in texts {
        let text = text.as_ref();
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("mount options are longer than {TEXT_BYTES_MAX} bytes"));
        }
        for option in split(text) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option.as_str(), None),
            };
            let known = match value {
                None => set_flag(&mut parsed.options, name),
                Some(value) => set_value(&mut parsed, name, value)?,
            };
            if !known && !sloppy && !is_dropped(name) {
                return Err(format!("unknown mount option {option:?}"));
            }
        }
    }
    parsed.options.check()?;
    Ok(parsed)
}

/// Splits at commas that no backslash precedes, drops empty parts, and takes the backslashes of `\,` and
/// `\\` away.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' {
            parts.push(String::new());
            continue;
        }
        let escaped = if c == '\\' { chars.next_if(|next| matches!(next, ',' | '\\')) } else { None };
        if let Some(part) = parts.last_mut() {
            part.push(escaped.unwrap_or(c));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn is_dropped(name: &str) -> bool {
    // `X-` and `x-` are reserved for user space (mount(8)); `comment` is their older form.
    name.starts_with("x-") || name.starts_with("X-") || name == "comment" || DROPPED.contains(&name)
}

/// Sets an option without a value; false if there is none of that name.
fn set_flag(options: &mut MountOptions, name: &str) -> bool {
    match name {
        "allow_other" => (options.allow_other, options.allow_root) = (true, false),
        "allow_root" => (options.allow_other, options.allow_root) = (false, true),
        "default_permissions" => options.default_permissions = true,
        "ro" => options.ro = true,
        "rw" => options.ro = false,
        "dev" => options.dev = true,
        "nodev" => options.dev = false,
        "suid" => options.suid = true,
        "nosuid" => options.suid = false,
        "exec" => options.exec = true,
        "noexec" => options.exec = false,
        "atime" | "relatime" => options.atime = Atime::Relatime,
        "noatime" => options.atime = Atime::Noatime,
        "strictatime" => options.atime = Atime::Strictatime,
        "diratime" => options.nodiratime = false,
        "nodiratime" => options.nodiratime = true,
        "sync" => options.sync = true,
        "async" => options.sync = false,
        "dirsync" => options.dirsync = true,
        // What these imply in mount(8).
        "user" | "users" => (options.dev, options.suid, options.exec) = (false, false, false),
        "owner" | "group" => (options.dev, options.suid) = (false, false),
        _ => return false,
    }
    true
}

/// Sets an option with a value; `Ok(false)` if there is none of that name.
fn set_value(parsed: &mut Parsed, name: &str, value: &str) -> Result<bool, String> {
    let options = &mut parsed.options;
    match name {
        "fsname" => options.fsname = Some(value.to_owned()),
        "subtype" => options.subtype = Some(value.to_owned()),
        "snapdir" => {
            options.snapdir_visible = match value {
                "visible" => true,
                "hidden" => false,
                other => return Err(format!("snapdir must be visible or hidden, not {other:?}")),
            }
        }
        "resend" => {
            options.resend = match value {
                "on" => true,
                "off" => false,
                other => return Err(format!("resend must be on or off, not {other:?}")),
            }
        }
        "snapdir-name" => options.snapdir_name = value.to_owned(),
        "volume" => parsed.volume = Some(value.to_owned()),
        "keyfile" => parsed.key_file = Some(PathBuf::from(value)),
        "metrics" => parsed.metrics = Some(value.to_owned()),
        _ => return Ok(false),
    }
    Ok(true)
}

/// What the kernel is told.
pub fn kernel_options(options: &MountOptions, store: &Path) -> KernelOptions {
    let flags = [
        (options.ro, MsFlags::MS_RDONLY),
        (!options.dev, MsFlags::MS_NODEV),
        (!options.suid, MsFlags::MS_NOSUID),
        (!options.exec, MsFlags::MS_NOEXEC),
        (options.atime == Atime::Noatime, MsFlags::MS_NOATIME),
        (options.atime == Atime::Strictatime, MsFlags::MS_STRICTATIME),
        (options.nodiratime, MsFlags::MS_NODIRATIME),
        (options.sync, MsFlags::MS_SYNCHRONOUS),
        (options.dirsync, MsFlags::MS_DIRSYNC),
    ];
    KernelOptions {
        fsname: options.fsname.clone().unwrap_or_else(|| store.display().to_string()),
        subtype: options.subtype.clone().unwrap_or_else(|| "rewindfs".to_owned()),
        allow_other: options.allow_other || options.allow_root,
        default_permissions: options.default_permissions,
        flags: flags.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn roots_defaults_and_others() {
        let root = parse::<&str>(&[], 0, false).unwrap().options;
        assert!(
            root.allow_other && root.default_permissions && root.dev && root.suid && root.exec && !root.ro
        );
        let user = parse::<&str>(&[], 1000, false).unwrap().options;
        assert!(!user.allow_other && user.default_permissions && !user.dev && !user.suid);
    }

    #[test]
    fn fstab_line() {
        let text =
            "rw,noauto,_netdev,x-systemd.automount,nodev,ro,volume=models,keyfile=/k\\,1,subtype=,fsname=a=b";
        let parsed = parse(&[text, "snapdir=visible", "snapdir-name=.hist"], 0, false).unwrap();
        assert_eq!(parsed.volume.as_deref(), Some("models"));
        assert_eq!(parsed.key_file, Some(PathBuf::from("/k,1")));
        let options = parsed.options;
        assert!(options.ro && !options.dev && options.snapdir_visible);
        assert_eq!(options.subtype.as_deref(), Some(""));
        assert_eq!(options.fsname.as_deref(), Some("a=b"));
        assert_eq!(options.snapdir_name, ".hist");
    }

    #[test]
    fn unknown_options_are_named() {
        assert_eq!(parse(&["ro,bogus=1"], 0, false).unwrap_err(), "unknown mount option \"bogus=1\"");
        assert!(parse(&["ro,bogus=1"], 0, true).unwrap().options.ro);
        for bad in ["snapdir=maybe", "resend=", "snapdir-name=a/b", "snapdir-name=", "snapdir-name=.."] {
            assert!(parse(&[bad], 0, false).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = parse(&[text], 0, true);
        }
    }
}
