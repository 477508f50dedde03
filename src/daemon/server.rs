//! The server: one process per store. It opens the store, mounts volumes, answers the control socket and
//! ends with its last mount.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use fuser::SessionACL;
use nix::mount::MsFlags;
use nix::sys::signal::{SigSet, Signal};
use parking_lot::{Mutex, MutexGuard};

use super::control::ControlServer;
use super::handler::{Handler, Mounts};
use super::mount_options::{Atime, MountOptions};
use super::protocol::{ControlError, Kind, MountRequest, Progress};
use super::registry::{MOUNT_ATTRIBUTE, MountAttribute, MountEntry, Registration, RuntimeDir};
use super::rights::control_error;
use super::spawn::{Ready, ServeOptions};
use crate::mount::{KernelOptions, Mounted, Settings, is_mounted, nodeid::Node, unmount};
use crate::store::{OpenOptions, Store};
use crate::volume::{Volume, Volumes};

/// How long requests under way get when the server ends.
const GRACE: Duration = Duration::from_secs(10);
/// How long a mount that was detached may still be in use before the server ends without waiting for it.
const DETACH_PATIENCE: Duration = Duration::from_secs(5);

/// How long an unmount waits for a mount that is in use.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether a session has ended, which takes no longer after an unmount.
const END_PAUSE: Duration = Duration::from_millis(1);
/// Between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

enum Event {
    /// The kernel has let go of a mount.
    Ended(MountNumber),
    /// Somebody asked the server to end.
    Stop,
}

/// Tells a mount from a later one at the same place.
type MountNumber = u64;

struct TableEntry {
    mounted: Mounted,
    read_only: bool,
    number: MountNumber,
}

/// What is mounted where.
#[derive(Default)]
struct Table {
    mounted: HashMap<PathBuf, TableEntry>,
    /// How many mounts there have been.
    count: MountNumber,
    /// The server ends: whoever comes now is to wait for the next one.
    ending: bool,
}

impl Table {
    /// Fails when `volume`, or something else at `mountpoint`, is mounted.
    fn check_free(&self, volume: &Volume, mountpoint: &Path) -> Result<(), ControlError> {
        if self.ending {
            return Err(ControlError::new(Kind::Ending, "the store's server is just ending; try again"));
        }
        if let Some(entry) = self.mounted.values().find(|e| e.mounted.volume().id() == volume.id()) {
            let at = entry.mounted.mountpoint().display();
            return Err(ControlError::in_use(format!("volume {} is mounted at {at}", volume.name())));
        }
        if let Some(other) = self.mounted.get(mountpoint) {
            let (name, at) = (other.mounted.volume().name(), mountpoint.display());
            return Err(ControlError::in_use(format!("volume {name} of this store is mounted at {at}")));
        }
        Ok(())
    }

    /// Takes out the mount of that number, if it has not been taken yet.
    fn take(&mut self, number: MountNumber) -> Option<Mounted> {
        let (at, _) = self.mounted.iter().find(|(_, entry)| entry.number == number)?;
        let at = at.clone();
        self.mounted.remove(&at).map(|entry| entry.mounted)
    }
}

/// The mounts of this server.
struct Server {
    volumes: Arc<Volumes>,
    owner: u32,
    socket: PathBuf,
    events: Sender<Event>,
    mounts: Mutex<Table>,
    registration: Mutex<Option<Registration>>,
}

impl Server {
    fn settings(&self, request: &MountRequest) -> Settings {
        let store = self.volumes.store();
        let config = store.config();
        let options = &request.options;
        let attribute = MountAttribute {
            store: store.path().to_owned(),
            node: store.node().to_string(),
            volume: request.volume.clone(),
            mountpoint: request.mountpoint.clone(),
            socket: self.socket.clone(),
            ino: 0,
        };
        Settings {
            kernel: kernel_options(options, store.path()),
            acl: match (options.allow_other, options.allow_root) {
                (true, _) => SessionACL::All,
                (_, true) => SessionACL::RootAndOwner,
                _ => SessionACL::Owner,
            },
            threads: config.fuse_workers(),
            snapdir_visible: options.snapdir_visible,
            snapdir_name: options.snapdir_name.clone(),
            owner_uid: self.owner,
            readahead_bytes: config.readahead_bytes,
            attribute: Arc::new(move |name, node| {
                if name != MOUNT_ATTRIBUTE.as_bytes() {
                    return None;
                }
                let ino = match node {
                    Node::Live(ino) | Node::Second(ino) | Node::Snapshots(ino) => ino.0,
                    Node::Past { ino, .. } => ino.0,
                };
                serde_json::to_vec(&MountAttribute { ino, ..attribute.clone() }).ok()
            }),
        }
    }

    /// The table, with room for a volume at a mountpoint. A mount that somebody else has unmounted stays in
    /// the table until its session has ended, which is waited for.
    fn free_table(&self, volume: &Volume, mountpoint: &Path) -> Result<MutexGuard<'_, Table>, ControlError> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            let table = self.mounts.lock();
            let Err(taken) = table.check_free(volume, mountpoint) else { return Ok(table) };
            let leaving = table.mounted.keys().any(|at| matches!(is_mounted(at), Ok(false)));
            if table.ending || !leaving || Instant::now() >= deadline {
                return Err(taken);
            }
            drop(table);
            std::thread::sleep(BUSY_PAUSE);
        }
    }

    /// Waits until the session of a mount that was unmounted has ended, and takes it out of the table, unless
    /// the main thread was first (`Some(None)`). None when the kernel does not let go of it.
    fn take_ended(&self, mountpoint: &Path) -> Option<Option<Mounted>> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            let mut table = self.mounts.lock();
            match table.mounted.get(mountpoint) {
                None => return Some(None),
                Some(entry) if entry.mounted.has_ended() => {
                    return Some(table.mounted.remove(mountpoint).map(|entry| entry.mounted));
                }
                Some(_) if Instant::now() >= deadline => return None,
                Some(_) => {}
            }
            drop(table);
            std::thread::sleep(END_PAUSE);
        }
    }

    /// Decides to end when nothing is mounted; whether the server ends.
    fn ends_unused(&self) -> bool {
        let mut table = self.mounts.lock();
        table.ending |= table.mounted.is_empty();
        table.ending
    }

    /// Tells the registry what is mounted.
    fn publish(&self) {
        let list = self.list();
        if let Some(registration) = self.registration.lock().as_mut()
            && let Err(e) = registration.set_mounts(list)
        {
            tracing::warn!(error = %e, "the registry of mounts could not be written");
        }
    }
}

/// What the kernel is told.
fn kernel_options(options: &MountOptions, store: &Path) -> KernelOptions {
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

impl Mounts for Server {
    fn mount(&self, request: &MountRequest) -> Result<(), ControlError> {
        let volume = self
            .volumes
            .open(&request.volume)
            .map_err(|e| control_error(&format!("volume {}", request.volume), e))?;
        let mut table = self.free_table(&volume, &request.mountpoint)?;
        table.count += 1;
        let (events, number) = (self.events.clone(), table.count);
        let mounted = Mounted::start(
            self.volumes.clone(),
            volume,
            &request.mountpoint,
            self.settings(request),
            move || {
                // The main thread outlives every mount.
                let _ = events.send(Event::Ended(number));
            },
        )
        .map_err(|e| ControlError::failed(format!("mounting at {}: {e}", request.mountpoint.display())))?;
        let entry = TableEntry { mounted, read_only: request.options.ro, number };
        table.mounted.insert(request.mountpoint.clone(), entry);
        drop(table);
        self.publish();
        Ok(())
    }

    fn unmount(&self, mountpoint: &Path) -> Result<bool, ControlError> {
        if !self.mounts.lock().mounted.contains_key(mountpoint) {
            return Err(ControlError::failed(format!(
                "nothing of this store is mounted at {}",
                mountpoint.display()
            )));
        }
        self.volumes.sync().map_err(|e| control_error("making everything durable", e))?;
        unmount_patiently(mountpoint).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => ControlError::in_use(format!(
                "{} is in use: files are open in it, or somebody's working directory is there",
                mountpoint.display()
            )),
            _ => ControlError::failed(format!("unmounting {}: {e}", mountpoint.display())),
        })?;
        let ended = self.take_ended(mountpoint).ok_or_else(|| {
            ControlError::in_use(format!(
                "{} is unmounted here, but lives on in a bind mount or another mount namespace",
                mountpoint.display()
            ))
        })?;
        if let Some(mounted) = ended
            && let Err(e) = mounted.join()
        {
            tracing::warn!(error = %e, "a mount ended with an error");
        }
        self.publish();
        // What programs wrote through shared mappings came during the unmount.
        self.volumes.sync().map_err(|e| control_error("making everything durable", e))?;
        Ok(self.ends_unused())
    }

    fn list(&self) -> Vec<MountEntry> {
        let mounts = self.mounts.lock();
        let mut list: Vec<MountEntry> = mounts
            .mounted
            .iter()
            .map(|(at, entry)| MountEntry {
                volume: entry.mounted.volume().name().to_owned(),
                mountpoint: at.clone(),
            })
            .collect();
        list.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        list
    }

    fn is_read_only(&self, mountpoint: &Path) -> bool {
        self.mounts.lock().mounted.get(mountpoint).is_some_and(|entry| entry.read_only)
    }

    fn stop(&self) {
        let _ = self.events.send(Event::Stop);
    }
}

/// Unmounts, giving short uses (a program that is just ending) a moment to pass.
fn unmount_patiently(mountpoint: &Path) -> std::io::Result<()> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match unmount(mountpoint, false) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

/// Turns SIGTERM and SIGINT into an orderly end. Must run before any other thread starts.
fn catch_signals(events: Sender<Event>) -> Result<(), ControlError> {
    let failed = |e: &dyn std::fmt::Display| ControlError::failed(format!("handling signals: {e}"));
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| failed(&e))?;
    std::thread::Builder::new()
        .name("rewindfs-signal".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                tracing::info!(%signal, "ending");
                if events.send(Event::Stop).is_err() {
                    return;
                }
            }
        })
        .map_err(|e| failed(&e))?;
    Ok(())
}

/// Serves a store until its last mount is gone or somebody asks for the end.
///
/// # Errors
/// What kept the server from starting, or the store from being closed in order.
pub fn run(options: ServeOptions, ready: &Ready) -> Result<(), ControlError> {
    let (events, happened) = unbounded();
    catch_signals(events.clone())?;
    let open = OpenOptions {
        key_file: options.key_file.clone(),
        salvage: options.mount.options.ro,
        ..OpenOptions::default()
    };
    let store = Store::open(&options.store, open, &mut |what, done| {
        ready.progress(Progress { what: what.to_owned(), done, total: 100, unit: "%".to_owned() });
    })?;
    for problem in store.problems() {
        tracing::warn!("{problem}");
    }
    let node = store.node();
    let failed = |what: &str, e: std::io::Error| ControlError::failed(format!("{what}: {e}"));
    let dir = RuntimeDir::own().map_err(|e| failed("the runtime directory", e))?;
    let volumes = Arc::new(Volumes::new(store).map_err(|e| control_error("opening the store", e))?);
    let socket = dir.socket_path(node);
    let handler = Handler::new(volumes.clone(), None, options.key_file.clone())?;
    let server = Arc::new(Server {
        volumes: volumes.clone(),
        owner: handler.owner(),
        socket: socket.clone(),
        events,
        mounts: Mutex::default(),
        registration: Mutex::default(),
    });
    let handler = Handler { mounts: Some(server.clone()), ..handler };
    let control =
        ControlServer::start(&socket, Arc::new(handler)).map_err(|e| failed("the control socket", e))?;
    let store_path = volumes.store().path().to_owned();
    let registration = Registration::publish(dir, node, store_path, Vec::new())
        .map_err(|e| failed("the registry of mounts", e))?;
    *server.registration.lock() = Some(registration);
    let result = server.mount(&options.mount);
    if result.is_ok() {
        ready.usable(&options.mount.mountpoint);
        serve(&server, &happened);
    }
    control.stop(GRACE);
    detach_all(&server, &happened);
    let closed = volumes.close().map_err(|e| control_error("closing the store", e));
    let registration = server.registration.lock().take();
    let store = volumes.store().clone();
    drop((server, volumes));
    // Who finds no server registered takes the store to be free.
    match (Arc::into_inner(store), registration) {
        (Some(store), registration) => drop((store, registration)),
        (None, Some(registration)) => registration.leave(),
        (None, None) => {}
    }
    tracing::info!("the server ended");
    result.and(closed)
}

/// Waits for the end.
fn serve(server: &Server, happened: &Receiver<Event>) {
    for event in happened {
        match event {
            Event::Stop => {
                server.mounts.lock().ending = true;
                return;
            }
            Event::Ended(number) => {
                let ended = server.mounts.lock().take(number);
                if let Some(mounted) = ended {
                    tracing::info!(mountpoint = %mounted.mountpoint().display(), "unmounted");
                    if let Err(e) = mounted.join() {
                        tracing::warn!(error = %e, "a mount ended with an error");
                    }
                    server.publish();
                }
                if server.ends_unused() {
                    return;
                }
            }
        }
    }
}

/// Detaches what is still mounted and waits a little for those who use it.
fn detach_all(server: &Server, happened: &Receiver<Event>) {
    let left: Vec<PathBuf> = server.mounts.lock().mounted.keys().cloned().collect();
    for mountpoint in &left {
        if let Err(e) = unmount(mountpoint, true) {
            tracing::warn!(error = %e, mountpoint = %mountpoint.display(), "cannot unmount");
        }
    }
    let deadline = Instant::now() + DETACH_PATIENCE;
    while !server.mounts.lock().mounted.is_empty() {
        match happened.recv_deadline(deadline) {
            Ok(Event::Ended(number)) => {
                let ended = server.mounts.lock().take(number);
                drop(ended.map(Mounted::join));
            }
            Ok(Event::Stop) => {}
            Err(_) => {
                tracing::warn!("files are still open in a mount; they end with this server");
                return;
            }
        }
    }
}
