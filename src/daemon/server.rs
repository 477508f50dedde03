//! The server: one process per store, a child of its holder. It opens the store, serves the mounts that the
//! holder makes and keeps, answers the control socket and ends with its last mount. One that dies is followed
//! by another, which takes the mounts over as they are.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::{Mutex, MutexGuard};

use super::control::ControlServer;
use super::courier::Courier;
use super::handler::Handler;
use super::holder::{Kept, Link, Start, UnmountError};
use super::metrics::MetricsServer;
use super::mounts::{Mounts, Number, Table, TableEntry, make_durable, tell, tell_past};
use super::offline::open_volumes;
use super::protocol::{ControlError, MountRequest, Progress};
use super::purge::Purger;
use super::registry::{MountEntry, Registration, RuntimeDir};
use super::rights::control_error;
use super::settings::settings;
use super::spawn::ServeOptions;
use crate::mount::{Connection, Mounted, is_mounted};
use crate::store::{OpenOptions, Store};
use crate::types::{Ino, VolumeId};
use crate::volume::purge::Past;
use crate::volume::restore::Touched;
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
    Ended(Number),
    /// Somebody asked the server to end.
    Stop,
    /// Everything is durable and held back; that program is to go on.
    Replace(OwnedFd),
}

/// The mounts of this server.
struct Server {
    volumes: Arc<Volumes>,
    owner: u32,
    socket: PathBuf,
    link: Arc<Link>,
    events: Sender<Event>,
    mounts: Mutex<Table>,
    registration: Mutex<Option<Registration>>,
}

impl Server {
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
    fn take_ended(&self, mountpoint: &Path) -> Option<Option<TableEntry>> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            let mut table = self.mounts.lock();
            match table.mounted.get(mountpoint) {
                None => return Some(None),
                Some(entry) if entry.mounted.has_ended() => {
                    return Some(table.mounted.remove(mountpoint));
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

    /// Waits for a session that has ended, and lets its connection go.
    fn bury(&self, entry: TableEntry) {
        let mountpoint = entry.mounted.mountpoint().to_owned();
        if let Err(e) = entry.mounted.join() {
            tracing::warn!(error = %e, "a mount ended with an error");
        }
        self.link.ended(entry.connection);
        tracing::info!(mountpoint = %mountpoint.display(), "unmounted");
    }

    /// Serves a connection and enters it in the table, which has room for it.
    fn enter(
        &self,
        table: &mut Table,
        volume: Arc<Volume>,
        request: &MountRequest,
        connection: Connection,
    ) -> Result<(), ControlError> {
        table.count += 1;
        let (events, number, id) = (self.events.clone(), table.count, connection.id);
        let failed = |e: std::io::Error| {
            ControlError::failed(format!("mounting at {}: {e}", request.mountpoint.display()))
        };
        let kept = connection.device.try_clone().map_err(failed)?;
        let ended = move || {
            // The main thread outlives every mount.
            let _ = events.send(Event::Ended(number));
        };
        let settings = settings(&self.volumes, self.owner, &self.socket, request);
        let (mounted, negotiated) =
            Mounted::start(self.volumes.clone(), volume, &request.mountpoint, settings, connection, ended)
                .map_err(failed)?;
        self.link.serving(request, &Connection { device: kept, id, negotiated: None }, &negotiated);
        let (read_only, snapdir_name) = (request.options.ro, request.options.snapdir_name.clone());
        let entry = TableEntry { mounted, read_only, snapdir_name, number, connection: id };
        table.mounted.insert(request.mountpoint.clone(), entry);
        Ok(())
    }

    /// Takes over a mount of the server before.
    fn resume(&self, kept: Kept, device: OwnedFd) -> Result<(), ControlError> {
        let connection = Connection { device, id: kept.connection, negotiated: kept.negotiated() };
        let volume = self.volume(&kept.request)?;
        self.enter(&mut self.mounts.lock(), volume, &kept.request, connection)
    }

    fn volume(&self, request: &MountRequest) -> Result<Arc<Volume>, ControlError> {
        let failed = |e| control_error(&format!("volume {}", request.volume), e);
        self.volumes.open(&request.volume).map_err(failed)
    }

    /// Tells the registry what is mounted.
    fn publish(&self) {
        let list = self.list();
        if let Some(registration) = self.registration.lock().as_mut()
            && let Err(e) = registration.set_mounts(list, self.link.holder())
        {
            tracing::warn!(error = %e, "the registry of mounts could not be written");
        }
    }
}

impl Mounts for Server {
    fn mount(&self, request: &MountRequest) -> Result<(), ControlError> {
        let volume = self.volume(request)?;
        let mut table = self.free_table(&volume, &request.mountpoint)?;
        let connection = self.link.mount(request)?;
        if let Err(error) = self.enter(&mut table, volume, request, connection) {
            let _ = self.link.unmount(&request.mountpoint, true);
            return Err(error);
        }
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
        make_durable(&self.volumes)?;
        self.unmount_patiently(mountpoint).map_err(|e| match e.busy {
            true => ControlError::in_use(format!(
                "{} is in use: files are open in it, or somebody's working directory is there",
                mountpoint.display()
            )),
            false => ControlError::failed(format!("unmounting {}: {}", mountpoint.display(), e.text)),
        })?;
        let ended = self.take_ended(mountpoint).ok_or_else(|| {
            ControlError::in_use(format!(
                "{} is unmounted here, but lives on in a bind mount or another mount namespace",
                mountpoint.display()
            ))
        })?;
        if let Some(entry) = ended {
            self.bury(entry);
        }
        self.publish();
        // What programs wrote through shared mappings came during the unmount.
        make_durable(&self.volumes)?;
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

    fn tell(&self, volume: VolumeId, touched: &Touched) -> Result<(), ControlError> {
        tell(&self.mounts, &self.link, volume, touched)
    }

    fn tell_past(&self, volume: VolumeId, past: &Past) -> Result<(), ControlError> {
        tell_past(&self.mounts, &self.link, volume, past)
    }

    fn holds(&self, volume: VolumeId, inodes: &[Ino]) -> Vec<Ino> {
        self.mounts.lock().of(volume).map_or_else(Vec::new, |entry| entry.mounted.holds(inodes))
    }

    fn snapshots_of(&self, volume: VolumeId) -> Option<PathBuf> {
        let mounts = self.mounts.lock();
        mounts.of(volume).map(|entry| entry.mounted.mountpoint().join(&entry.snapdir_name))
    }

    fn is_read_only(&self, mountpoint: &Path) -> bool {
        self.mounts.lock().mounted.get(mountpoint).is_some_and(|entry| entry.read_only)
    }

    fn stop(&self) {
        let _ = self.events.send(Event::Stop);
    }

    fn holder(&self) -> Option<u32> {
        self.link.holder()
    }

    fn replace(&self, program: OwnedFd) -> Result<(), ControlError> {
        if self.link.holder().is_none() {
            let text =
                "the holder of the mounts is gone, so nobody would start the next server; unmount and mount";
            return Err(ControlError::failed(text));
        }
        self.volumes.retire().map_err(|e| control_error("making everything durable", e))?;
        let _ = self.events.send(Event::Replace(program));
        Ok(())
    }
}

impl Server {
    /// Unmounts, giving short uses (a program that is just ending) a moment to pass.
    fn unmount_patiently(&self, mountpoint: &Path) -> Result<(), UnmountError> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            match self.link.unmount(mountpoint, false) {
                Err(e) if e.busy && Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
                result => return result,
            }
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

/// The server process: hears from its holder, at the other end of standard input, what to do; serves the store
/// until its last mount is gone or somebody asks for the end. `log` is told where to log.
///
/// # Errors
/// What kept the server from starting, or the store from being closed in order.
pub fn main(log: impl FnOnce(&ServeOptions, bool)) -> Result<(), ControlError> {
    let (events, happened) = unbounded();
    catch_signals(events.clone())?;
    let failed = |e: std::io::Error| ControlError::failed(format!("standard input: {e}"));
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let stop = events.clone();
    let (link, start) = Link::connect(stdin, move || drop(stop.send(Event::Stop)))?;
    log(&start.options, start.foreground);
    let resumed = !start.resumed.is_empty();
    let result = run(&link, start, events, &happened);
    match &result {
        // Perhaps it is only for now (a disk, a lock): the holder tries again.
        Err(Ended::BeforeServing(error)) if resumed => link.troubled(error),
        Err(Ended::BeforeServing(error) | Ended::Afterwards(error)) => link.done(Some(error.clone())),
        Ok(()) => link.done(None),
    }
    result.map_err(|(Ended::BeforeServing(error) | Ended::Afterwards(error))| error)
}

/// A server's failure, by when it came.
enum Ended {
    BeforeServing(ControlError),
    Afterwards(ControlError),
}

impl<E: Into<ControlError>> From<E> for Ended {
    fn from(error: E) -> Ended {
        Ended::BeforeServing(error.into())
    }
}

/// Opens the store, and takes up what an earlier server had not committed.
fn open(link: &Arc<Link>, start: &Start) -> Result<Arc<Volumes>, ControlError> {
    let open = OpenOptions { key_file: start.options.key_file.clone(), ..OpenOptions::default() };
    let store = Store::open(&start.options.store, open, &mut |what, done| {
        link.progress(Progress { what: what.to_owned(), done, total: 100, unit: "%".to_owned() });
    })?;
    let volumes = open_volumes(store)?;
    for problem in volumes.store().problems() {
        tracing::warn!("{problem}");
    }
    Ok(volumes)
}

fn run(
    link: &Arc<Link>,
    start: Start,
    events: Sender<Event>,
    happened: &Receiver<Event>,
) -> Result<(), Ended> {
    let volumes = open(link, &start)?;
    let node = volumes.store().node();
    let failed = |what: &str, e: std::io::Error| ControlError::failed(format!("{what}: {e}"));
    let dir = RuntimeDir::own().map_err(|e| failed("the runtime directory", e))?;
    let socket = dir.socket_path(node);
    let handler = Handler::new(volumes.clone(), None, start.options.key_file.clone())?;
    let server = Arc::new(Server {
        volumes: volumes.clone(),
        owner: handler.owner(),
        socket: socket.clone(),
        link: link.clone(),
        events,
        mounts: Mutex::default(),
        registration: Mutex::default(),
    });
    let handler = Handler { mounts: Some(server.clone()), ..handler };
    handler.scrubber.watch(volumes.store())?;
    volumes.start_keeper().map_err(|e| control_error("schedule and retention", e))?;
    let store_name = volumes.store().path().display().to_string();
    let (courier, alerts) =
        Courier::start(store_name, handler.troubles.clone()).map_err(|e| failed("alerts", e))?;
    volumes.listen(alerts);
    let handler = Arc::new(handler);
    let control =
        ControlServer::start(&socket, handler.clone()).map_err(|e| failed("the control socket", e))?;
    let troubles = handler.troubles.clone();
    let metrics = start.options.metrics.map(|address| MetricsServer::start(address, handler, troubles));
    let metrics = metrics.transpose().map_err(|e| failed("metrics", e))?;
    let store_path = volumes.store().path().to_owned();
    let registration = Registration::publish(dir, node, store_path, Vec::new(), link.holder())
        .map_err(|e| failed("the registry of mounts", e))?;
    *server.registration.lock() = Some(registration);
    let result = server.begin(&start.options, start.resumed);
    let mounts: Arc<dyn Mounts> = server.clone();
    let purger = Purger::start(&volumes, Arc::downgrade(&mounts));
    drop(mounts);
    let next = match &result {
        Ok(()) => serve(&server, happened),
        Err(_) => None,
    };
    control.stop(GRACE);
    metrics.into_iter().for_each(MetricsServer::stop);
    drop(courier);
    drop(purger);
    if let Some(program) = next {
        server.make_room(&program);
    }
    detach_all(&server, happened);
    let closed = volumes.close().map_err(|e| Ended::Afterwards(control_error("closing the store", e)));
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
    result.map_err(Ended::BeforeServing).and(closed)
}

impl Server {
    /// Serves what the server before left, or, where there was none, makes the first mount.
    fn begin(&self, options: &ServeOptions, resumed: Vec<(Kept, OwnedFd)>) -> Result<(), ControlError> {
        if resumed.is_empty() {
            self.mount(&options.mount)?;
        }
        for (kept, device) in resumed {
            self.resume(kept, device)?;
        }
        self.publish();
        self.link.usable(&options.mount.mountpoint);
        Ok(())
    }

    /// Ends at once, everything being durable and all changes held back: what was not answered the kernel
    /// sends again.
    fn make_room(&self, program: &OwnedFd) {
        match self.link.replace(program) {
            Ok(()) => {
                tracing::info!("this server makes room for the next one");
                // SAFETY: ends the process. Nothing that runs at exit may run while threads still serve.
                unsafe { libc::_exit(0) }
            }
            Err(e) => tracing::error!(error = %e, "the holder died; this server has to end"),
        }
    }
}

/// Waits for the end; the program of the next server, if there is to be one.
fn serve(server: &Server, happened: &Receiver<Event>) -> Option<OwnedFd> {
    for event in happened {
        match event {
            Event::Stop => {
                server.mounts.lock().ending = true;
                return None;
            }
            Event::Replace(program) => return Some(program),
            Event::Ended(number) => {
                let ended = server.mounts.lock().take(number);
                if let Some(entry) = ended {
                    server.bury(entry);
                    server.publish();
                }
                if server.ends_unused() {
                    return None;
                }
            }
        }
    }
    None
}

/// Detaches what is still mounted and waits a little for those who use it.
fn detach_all(server: &Server, happened: &Receiver<Event>) {
    let left: Vec<PathBuf> = server.mounts.lock().mounted.keys().cloned().collect();
    for mountpoint in &left {
        if let Err(e) = server.link.unmount(mountpoint, true) {
            tracing::warn!(error = %e.text, mountpoint = %mountpoint.display(), "cannot unmount");
        }
    }
    let deadline = Instant::now() + DETACH_PATIENCE;
    while !server.mounts.lock().mounted.is_empty() {
        match happened.recv_deadline(deadline) {
            Ok(Event::Ended(number)) => {
                let ended = server.mounts.lock().take(number);
                if let Some(entry) = ended {
                    server.bury(entry);
                }
            }
            Ok(Event::Stop | Event::Replace(_)) => {}
            Err(_) => {
                tracing::warn!("files are still open in a mount; they end with this server");
                return;
            }
        }
    }
}
