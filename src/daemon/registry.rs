//! Which servers run: one small file for each in the runtime directory, beside its socket. The files are
//! hints; whether a server lives is decided by its socket, and who it is by the kernel.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::protocol::{ControlError, one_line, wire_path};
use super::sys::Process;
use crate::store::{self, identify};
use crate::types::NodeUuid;
use crate::types::disk::{OsDisk, read_file};
use crate::types::ids::unhex;

/// The extended attribute that every file of a mount answers with a [`MountAttribute`].
pub const MOUNT_ATTRIBUTE: &str = "user.rewindfs.mount";
/// Bytes of a [`MountAttribute`]: three paths of `PATH_MAX` in hex.
pub const MOUNT_ATTRIBUTE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a registry file.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a holder may take to bring up the next server, before its store counts as free.
const NEXT_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const NEXT_PAUSE: Duration = Duration::from_millis(20);
/// Where root's servers are.
const ROOT_DIR: &str = "/run/rewindfs";

/// The value of [`MOUNT_ATTRIBUTE`], as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttribute {
    /// The store's directory.
    #[serde(with = "wire_path")]
    pub store: PathBuf,
    /// The node's id, in hex.
    pub node: String,
    /// The volume's name.
    pub volume: String,
    /// Where the volume is mounted.
    #[serde(with = "wire_path")]
    pub mountpoint: PathBuf,
    /// The server's control socket.
    #[serde(with = "wire_path")]
    pub socket: PathBuf,
    /// The inode that was asked.
    pub ino: u64,
}

/// One mount of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// The volume's name.
    pub volume: String,
    /// Where it is mounted.
    #[serde(with = "wire_path")]
    pub mountpoint: PathBuf,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The node's id, in hex.
    pub node: String,
    /// The store's directory.
    #[serde(with = "wire_path")]
    pub store: PathBuf,
    /// The server's process.
    pub pid: u32,
    /// The server's control socket; readers take the one beside the file instead.
    #[serde(with = "wire_path")]
    pub socket: PathBuf,
    /// What it has mounted.
    pub mounts: Vec<MountEntry>,
    /// The process that starts the next server should this one die.
    #[serde(default)]
    pub holder: Option<u32>,
    /// When these two processes began, in clock ticks: their numbers may be other programs' by now.
    #[serde(default)]
    pub began: Began,
    /// Why there is no server although there should be one.
    #[serde(default)]
    pub failed: Option<String>,
}

/// See [`Entry::began`]; 0 for one that was not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    server: u64,
    holder: u64,
}

impl Entry {
    fn server_process(&self) -> Option<Process> {
        Process::that_began(self.pid, self.began.server)
    }

    fn holder_process(&self) -> Option<Process> {
        Process::that_began(self.holder?, self.began.holder)
    }
}

/// What is known of a store's server.
#[derive(Debug)]
pub enum Found {
    /// It answers at `socket` of the entry.
    Running(Entry),
    /// It does not answer any more, but has not ended either, and so still holds the store.
    Leaving(Process),
    /// Servers keep dying; the holder says so in the entry.
    Failed(Entry),
    /// There is none, or only what a dead one left.
    Absent,
}

/// A directory of registry files and sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// The caller's own, made if it is missing: `/run/rewindfs` (0755) for root, else
    /// `$XDG_RUNTIME_DIR/rewindfs` or `/tmp/rewindfs-<uid>` (0700).
    ///
    /// # Errors
    /// Also when the directory belongs to someone else or others may write to it.
    pub fn own() -> io::Result<RuntimeDir> {
        let uid = geteuid().as_raw();
        let path = own_path(uid);
        RuntimeDir::make(path, uid)
    }

    /// A directory of `uid`'s, made if it is missing; mode 0755 for root, else 0700.
    pub fn make(path: PathBuf, uid: u32) -> io::Result<RuntimeDir> {
        let mode = if uid == 0 { 0o755 } else { 0o700 };
        match DirBuilder::new().mode(mode).create(&path) {
            // The umask may have taken bits that other users need to reach the socket.
            Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(mode))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        if !is_trusted(&path, uid) {
            let text = format!("{} is not a private directory of user {uid}", path.display());
            return Err(io::Error::other(text));
        }
        Ok(RuntimeDir(path))
    }

    /// Where a store's server may be registered: the caller's own directory, root's, and, when root asks,
    /// those of the user who owns the store. Only trustworthy ones that exist.
    pub fn candidates(store_owner: Option<u32>) -> Vec<RuntimeDir> {
        let uid = geteuid().as_raw();
        let mut dirs = vec![(own_path(uid), uid), (PathBuf::from(ROOT_DIR), 0)];
        if let (0, Some(owner)) = (uid, store_owner) {
            dirs.push((PathBuf::from(format!("/run/user/{owner}/rewindfs")), owner));
            dirs.push((fallback_path(owner), owner));
        }
        dirs.retain(|(path, owner)| is_trusted(path, *owner));
        let mut dirs: Vec<RuntimeDir> = dirs.into_iter().map(|(path, _)| RuntimeDir(path)).collect();
        dirs.dedup();
        dirs
    }

    /// The control socket of a node's server.
    pub fn socket_path(&self, node: NodeUuid) -> PathBuf {
        self.0.join(format!("{node}.sock"))
    }

    fn entry_path(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.json"))
    }

    /// Waits until no one else starts a server for `node`, and keeps others waiting until the guard is
    /// dropped.
    pub fn lock_start(&self, node: NodeUuid) -> io::Result<Flock<File>> {
        let path = self.0.join(format!("{node}.lock"));
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
    }

    fn read(&self, node: &str) -> Option<Entry> {
        let content = read_file(&OsDisk, &self.entry_path(node), ENTRY_BYTES_MAX).ok()?;
        let mut entry: Entry = serde_json::from_slice(&content).ok()?;
        entry.socket = self.0.join(format!("{node}.sock"));
        (entry.node == node).then_some(entry)
    }

    fn look(&self, node: &str) -> Found {
        let deadline = Instant::now() + NEXT_PATIENCE;
        loop {
            let Some(entry) = self.read(node) else { return Found::Absent };
            if UnixStream::connect(&entry.socket).is_ok() {
                return Found::Running(entry);
            }
            let held = entry.holder_process().is_some();
            if held && entry.failed.is_some() {
                return Found::Failed(entry);
            }
            match entry.server_process() {
                Some(process) => return Found::Leaving(process),
                // The next server is on its way.
                None if held && Instant::now() < deadline => std::thread::sleep(NEXT_PAUSE),
                None => return Found::Absent,
            }
        }
    }
}

fn own_path(uid: u32) -> PathBuf {
    if uid == 0 {
        return PathBuf::from(ROOT_DIR);
    }
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let owned =
        |dir: &PathBuf| dir.is_absolute() && fs::metadata(dir).is_ok_and(|m| m.uid() == uid && m.is_dir());
    match session.filter(owned) {
        Some(dir) => dir.join("rewindfs"),
        None => fallback_path(uid),
    }
}

fn fallback_path(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/rewindfs-{uid}"))
}

/// A real directory (no link) of that user, to which no one else may write.
fn is_trusted(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.uid() == uid && m.mode() & 0o022 == 0)
}

/// The node id of the store in a directory.
///
/// # Errors
/// `NoStore` where there is none; another format version; damage.
pub fn node_of(store: &Path) -> Result<NodeUuid, ControlError> {
    identify(store)?;
    Ok(store::node_of(store)?)
}

/// The server of a store.
pub fn find(store: &Path, node: NodeUuid) -> Found {
    let owner = fs::metadata(store).ok().map(|m| m.uid());
    let node = node.to_string();
    let mut leaving = Found::Absent;
    for dir in RuntimeDir::candidates(owner) {
        match dir.look(&node) {
            Found::Absent => {}
            found @ (Found::Running(_) | Found::Failed(_)) => return found,
            found @ Found::Leaving(_) => leaving = found,
        }
    }
    leaving
}

/// All servers that answer or should, of the caller and of root, by store path.
pub fn running() -> Vec<Entry> {
    let mut entries = Vec::new();
    for dir in RuntimeDir::candidates(None) {
        let Ok(files) = fs::read_dir(&dir.0) else { continue };
        for name in files.flatten().map(|file| file.file_name()) {
            let node = name.to_str().and_then(|name| name.strip_suffix(".json")).unwrap_or_default();
            if unhex::<16>(node).is_none() {
                continue;
            }
            if let Found::Running(entry) | Found::Failed(entry) = dir.look(node) {
                entries.push(entry);
            }
        }
    }
    entries.sort_by(|a, b| a.store.cmp(&b.store));
    entries
}

/// A server's own registry file; removed when this is dropped.
#[derive(Debug)]
pub struct Registration {
    dir: RuntimeDir,
    entry: Entry,
    left: bool,
}

impl Registration {
    /// Writes the file, in place of what a dead server left. The caller holds the store's lock and listens
    /// already.
    pub fn publish(
        dir: RuntimeDir,
        node: NodeUuid,
        store: PathBuf,
        mounts: Vec<MountEntry>,
        holder: Option<u32>,
    ) -> io::Result<Registration> {
        let socket = dir.socket_path(node);
        let pid = std::process::id();
        let (node, began) = (node.to_string(), Began::default());
        let entry = Entry { node, store, pid, socket, mounts, holder, began, failed: None };
        let mut registration = Registration { dir, entry, left: false };
        registration.write()?;
        Ok(registration)
    }

    /// Replaces the list of mounts and the holder.
    pub fn set_mounts(&mut self, mounts: Vec<MountEntry>, holder: Option<u32>) -> io::Result<()> {
        (self.entry.mounts, self.entry.holder) = (mounts, holder);
        self.write()
    }

    /// Leaves the file, for a process that may hold the store until it has ended: the file says which process
    /// that is, and nothing once it is gone.
    pub fn leave(mut self) {
        self.left = true;
    }

    fn write(&mut self) -> io::Result<()> {
        let began = |pid: Option<u32>| pid.and_then(Process::find).map_or(0, Process::start_ticks);
        self.entry.began = Began { server: began(Some(self.entry.pid)), holder: began(self.entry.holder) };
        let path = self.dir.entry_path(&self.entry.node);
        let temporary = path.with_extension(format!("new{}", self.entry.pid));
        let content = serde_json::to_vec(&self.entry).map_err(io::Error::other)?;
        let mut file =
            File::options().create(true).truncate(true).write(true).mode(0o644).open(&temporary)?;
        // Everyone may find the server; it decides itself who may do what.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(&content)?;
        // The directory is in memory and gone with the machine: no sync.
        fs::rename(&temporary, &path)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let path = self.dir.entry_path(&self.entry.node);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!("removing {}: {}", path.display(), one_line(&error.to_string()));
        }
    }
}

/// For a holder whose servers keep dying: says so where the server would be found.
pub fn publish_failure(node: NodeUuid, store: &Path, mounts: Vec<MountEntry>, text: &str) {
    let written = RuntimeDir::own().and_then(|dir| {
        let holder = Some(std::process::id());
        let mut registration = Registration::publish(dir, node, store.to_owned(), mounts, holder)?;
        registration.entry.failed = Some(text.to_owned());
        let written = registration.write();
        registration.leave();
        written
    });
    if let Err(error) = written {
        tracing::warn!(%error, "the registry of mounts could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const NODE: NodeUuid = NodeUuid([7; 16]);

    fn dir() -> (tempfile::TempDir, RuntimeDir) {
        let base = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::make(base.path().join("run"), geteuid().as_raw()).unwrap();
        (base, dir)
    }

    #[test]
    fn a_server_is_found_while_it_listens() {
        let (_base, dir) = dir();
        let node = NODE.to_string();
        assert!(matches!(dir.look(&node), Found::Absent));
        let listener = UnixListener::bind(dir.socket_path(NODE)).unwrap();
        let mut registration =
            Registration::publish(dir.clone(), NODE, "/s".into(), Vec::new(), None).unwrap();
        let mounts = vec![MountEntry { volume: "main".into(), mountpoint: "/m".into() }];
        registration.set_mounts(mounts.clone(), Some(1)).unwrap();
        match dir.look(&node) {
            Found::Running(entry) => assert_eq!((entry.mounts, entry.pid), (mounts, std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(listener);
        assert!(matches!(dir.look(&node), Found::Leaving(_)), "the socket refuses, the process lives");
        drop(registration);
        assert!(matches!(dir.look(&node), Found::Absent));
    }

    #[test]
    fn what_a_dead_server_left_is_absent() {
        let (_base, dir) = dir();
        let node = NODE.to_string();
        for content in ["{", "[]", "{\"node\":\"00\"}", ""] {
            fs::write(dir.entry_path(&node), content).unwrap();
            assert!(matches!(dir.look(&node), Found::Absent), "{content}");
        }
        let entry = Entry {
            node: node.clone(),
            store: "/s".into(),
            // Numbers that live, of processes that do not: such as these began at other times.
            pid: std::process::id(),
            socket: "/x".into(),
            mounts: vec![],
            holder: Some(std::process::id()),
            began: Began { server: 1, holder: 1 },
            failed: None,
        };
        fs::write(dir.entry_path(&node), serde_json::to_vec(&entry).unwrap()).unwrap();
        let since = Instant::now();
        assert!(matches!(dir.look(&node), Found::Absent));
        assert!(since.elapsed() < NEXT_PATIENCE, "nobody is waited for");
    }

    #[test]
    fn a_directory_that_others_may_write_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let uid = geteuid().as_raw();
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RuntimeDir::make(open.clone(), uid).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert!(RuntimeDir::make(link, uid).is_err());
        assert!(RuntimeDir::make(base.path().join("theirs"), uid + 1).is_err());
    }

    #[test]
    fn no_store_has_no_node() {
        let base = tempfile::tempdir().unwrap();
        let code = |path: &Path| node_of(path).map_err(|e| e.kind.exit_code());
        assert_eq!(code(base.path()), Err(10));
        assert_eq!(code(&base.path().join("none")), Err(10));
    }
}
