//! The holder: the small parent process that keeps a store's mounts alive while servers come and go. It mounts,
//! keeps the connections to the kernel, starts a server, and when that dies or is replaced starts the next one,
//! which goes on with the same connections: programs see a pause.
//!
//! It is boring on purpose. It never opens the store, never looks at a path inside a mount (its own server would
//! have to answer), and whatever may block happens on a thread of its own or in the server.

mod channel;
mod link;
mod refuse;
mod watch;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use parking_lot::Mutex;

pub use channel::{Forgotten, History, Kept, UnmountError};
pub use link::{Link, Start};

use super::mount_options::kernel_options;
use super::protocol::{ControlError, MountRequest};
use super::registry::{self, MountEntry};
use super::spawn::{Ready, ServeOptions};
use crate::mount::{forget_entry, forget_inode, forget_name, forget_pages, resend, unmount};
use crate::types::{Ino, NodeUuid};
use channel::{Channel, ToHolder, ToServer};
use watch::Watched;

/// A server that served for less than this before it died by itself was of no use.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// Useless servers in a row after which there is a pause before the next one, doubling from [`PAUSE_MIN`].
const FREE_TRIES: u32 = 3;
/// Useless servers in a row after which requests are refused instead of kept waiting.
const TRIES_MAX: u32 = 12;
/// The shortest pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long requests are refused before another server is tried.
const REFUSE: Duration = Duration::from_secs(30);
/// Useless servers in a row after which the program before an upgrade is used again.
const UPGRADE_TRIES: u32 = 3;

/// A connection to the kernel.
#[derive(Debug)]
struct Held {
    kept: Kept,
    device: OwnedFd,
}

/// How a server ended.
enum End {
    /// In order, with nothing left to serve.
    Done(Option<ControlError>),
    /// In order, for the next one.
    Replaced,
    /// Otherwise.
    Died(String),
}

/// The holder of a store's mounts.
#[derive(Debug)]
pub struct Holder {
    options: ServeOptions,
    foreground: bool,
    ready: Ready,
    signals: SignalFd,
    held: Arc<Mutex<Vec<Held>>>,
    /// What upgrades brought, the newest last; none means this program.
    programs: Vec<OwnedFd>,
    /// Whether a mount was usable once: from then on the holder does not give up.
    used: bool,
    stopping: bool,
    useless: u32,
    history: History,
    node: NodeUuid,
}

/// Blocks the signals that end a store's processes and makes them readable. Before any other thread starts.
fn catch_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Holder {
    /// A holder for the server that `options` describe.
    ///
    /// # Errors
    /// From the operating system.
    pub fn new(options: ServeOptions, foreground: bool) -> Result<Holder, ControlError> {
        let signals = catch_signals().map_err(|e| ControlError::failed(format!("handling signals: {e}")))?;
        let node = registry::node_of(&options.store)?;
        // Every program on the mounts hangs with these processes. Only root may.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
        Ok(Holder {
            options,
            foreground,
            ready: Ready::foreground(),
            signals,
            held: Arc::default(),
            programs: Vec::new(),
            used: false,
            stopping: false,
            useless: 0,
            history: History {
                holder: std::process::id(),
                forgets: true,
                forgets_past: true,
                ..History::default()
            },
            node,
        })
    }

    /// Holds until the last mount is gone. `ready` hears when the first one can be used.
    ///
    /// # Errors
    /// What kept the first server from serving, or the last one from ending in order.
    pub fn run(mut self, ready: Ready) -> Result<(), ControlError> {
        self.ready = ready;
        let result = self.serve();
        if let Err(error) = &result {
            self.ready.failed(error);
        }
        result
    }

    fn serve(&mut self) -> Result<(), ControlError> {
        loop {
            let server = self.spawn()?;
            if self.watch_to_the_end(server)? {
                return Ok(());
            }
        }
    }

    /// A holder in place of one that was killed, for a server that lives.
    ///
    /// # Errors
    /// The server says nothing sensible, or is gone.
    pub fn adopt(stdin: OwnedFd, log: impl FnOnce(&ServeOptions, bool)) -> Result<(), ControlError> {
        let failed = |e: &dyn std::fmt::Display| ControlError::failed(format!("taking over a server: {e}"));
        let channel = Channel::new(stdin);
        let Some((ToHolder::Adopt { server, options, foreground, mut history }, _)) =
            channel.receive(true).map_err(|e| failed(&e))?
        else {
            return Err(ControlError::usage("hold is internal; use rewindfs mount"));
        };
        log(&options, foreground);
        (history.holder, history.forgets, history.forgets_past) = (std::process::id(), true, true);
        let mut holder = Holder::new(options, foreground)?;
        (holder.history, holder.used) = (history, true);
        let server = Watched::adopted(channel, server).map_err(|e| failed(&e))?;
        tracing::warn!(server = server.pid, "this holder took the place of one that was killed");
        if holder.watch_to_the_end(server)? {
            return Ok(());
        }
        holder.serve()
    }

    /// Watches one server until it has ended, and sees to what follows. Whether that is the end of all.
    fn watch_to_the_end(&mut self, server: Watched) -> Result<bool, ControlError> {
        match self.watch(server)? {
            End::Done(None) => return Ok(true),
            End::Done(Some(error)) => return Err(error),
            End::Replaced => {
                tracing::info!("the server made room for the next one");
                self.useless = 0;
            }
            End::Died(how) => self.mourn(how)?,
        }
        if self.held.lock().is_empty() {
            return Err(ControlError::failed("the server died, and nothing was mounted"));
        }
        Ok(false)
    }

    /// What a server's death means: at once the next one, a pause, or that requests are refused for a while.
    fn mourn(&mut self, how: String) -> Result<(), ControlError> {
        tracing::error!(%how, in_a_row = self.useless, "the server died");
        if !self.used {
            self.detach();
            return Err(ControlError::failed(format!(
                "the server ended before its mount was usable ({how})"
            )));
        }
        if self.stopping {
            self.detach();
            return Err(ControlError::failed(format!("the server died while it ended ({how})")));
        }
        self.history.deaths += 1;
        self.history.last_death = Some(how.clone());
        if self.useless >= UPGRADE_TRIES && self.programs.pop().is_some() {
            tracing::error!("going back to the program before the upgrade");
            self.useless = 0;
        }
        if self.useless >= TRIES_MAX {
            return self.refuse(&how);
        }
        if self.useless > FREE_TRIES {
            let pause = PAUSE_MIN.saturating_mul(1 << (self.useless - FREE_TRIES).min(8)).min(PAUSE_MAX);
            self.wait_for_signal(pause);
        }
        Ok(())
    }

    /// Whether a signal to end came within `patience`.
    fn wait_for_signal(&mut self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let came = matches!(poll(&mut fds, timeout), Ok(n) if n > 0);
        self.stopping |= came;
        came
    }

    /// Answers every request with EIO for a while.
    fn refuse(&mut self, how: &str) -> Result<(), ControlError> {
        let text = format!(
            "servers keep dying ({how}); what was acknowledged is safe, requests fail with EIO, the next try is \
             in {} s",
            REFUSE.as_secs()
        );
        tracing::error!("{text}");
        let entry = |h: &Held| {
            let MountRequest { volume, mountpoint, .. } = h.kept.request.clone();
            MountEntry { volume, mountpoint }
        };
        let mounts: Vec<MountEntry> = self.held.lock().iter().map(entry).collect();
        registry::publish_failure(self.node, &self.options.store, mounts, &text);
        for held in self.held.lock().iter() {
            if let Err(e) = resend(&held.device) {
                tracing::warn!(error = %e, "requests that were read before hang");
            }
        }
        let deadline = Instant::now() + REFUSE;
        let mut buffer = Vec::new();
        while Instant::now() < deadline && !self.held.lock().is_empty() {
            let mut held = self.held.lock();
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(held.iter().map(|h| PollFd::new(h.device.as_fd(), PollFlags::POLLIN)));
            if poll(&mut fds, left.unwrap_or(PollTimeout::MAX)).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready.first() == Some(&true) {
                self.stopping = true;
                drop(held);
                self.detach();
                return Err(ControlError::failed("stopped while servers kept dying"));
            }
            let mut ready = ready.into_iter().skip(1);
            held.retain(|h| !ready.next().unwrap_or(false) || refuse::refuse_one(&h.device, &mut buffer));
        }
        // One more server, then the next round of this.
        self.useless = TRIES_MAX - 1;
        Ok(())
    }

    /// Takes all mounts away, also while they are used.
    fn detach(&self) {
        for held in self.held.lock().drain(..) {
            if let Err(error) = unmount(&held.kept.request.mountpoint, true) {
                tracing::warn!(%error, "cannot unmount {}", held.kept.request.mountpoint.display());
            }
        }
    }

    /// Starts a server on what is held.
    fn spawn(&mut self) -> Result<Watched, ControlError> {
        let failed = |e: &dyn std::fmt::Display| ControlError::failed(format!("starting a server: {e}"));
        // A mount whose first server died before it had shaken hands never was one.
        let (whole, broken) = {
            let mut held = self.held.lock();
            held.drain(..).partition::<Vec<Held>, _>(|h| !h.kept.answer.is_empty())
        };
        for Held { kept, .. } in broken {
            let _ = unmount(&kept.request.mountpoint, true);
        }
        *self.held.lock() = whole;
        let server = Watched::spawn(self.programs.last(), &self.options.store, self.foreground)
            .map_err(|e| failed(&e))?;
        let held = self.held.lock();
        for Held { kept, device } in held.iter() {
            // A server that is dead already is noticed by whoever watches it.
            let _ = server.channel.send(&ToServer::Resume(kept.clone()), Some(device.as_fd()));
        }
        let start = ToServer::Start {
            options: self.options.clone(),
            foreground: self.foreground,
            history: self.history.clone(),
        };
        let _ = server.channel.send(&start, None);
        Ok(server)
    }

    /// Does what the server asks for until it ends.
    fn watch(&mut self, mut server: Watched) -> Result<End, ControlError> {
        let mut last_word = None;
        let mut serving: Option<Instant> = None;
        loop {
            let mut fds = [
                PollFd::new(server.process.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(server.channel.as_fd(), PollFlags::POLLIN),
            ];
            // A closed channel stays readable, and is of no interest any more.
            let count = if server.silent { 2 } else { 3 };
            match poll(fds.get_mut(..count).unwrap_or_default(), PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.map_err(|e| ControlError::failed(format!("watching the server: {e}")))?,
            };
            let [ended, signalled, _] = fds.map(|fd| fd.any().unwrap_or(false));
            if signalled {
                while let Ok(Some(signal)) = self.signals.read_signal() {
                    tracing::info!(signal = signal.ssi_signo, "ending");
                }
                self.stopping = true;
                let _ = server.channel.send(&ToServer::Stop, None);
            }
            // All that it said before it ended, too.
            while let Some((message, fd)) = server.next_message() {
                if matches!(message, ToHolder::Usable { .. }) {
                    serving = Some(Instant::now());
                }
                last_word = self.answer(&server, message, fd).or(last_word);
            }
            if ended {
                let (how, killed) = server.how();
                let end = last_word.unwrap_or(End::Died(how));
                if matches!(end, End::Died(_)) {
                    let useless = serving.is_none_or(|since| !killed && since.elapsed() < SHORT_LIFE);
                    self.useless = if useless { self.useless + 1 } else { 0 };
                }
                return Ok(end);
            }
        }
    }

    /// Does what one message asks for; its last one says how the server ends.
    fn answer(&mut self, server: &Watched, message: ToHolder, fd: Option<OwnedFd>) -> Option<End> {
        let channel = &server.channel;
        match message {
            ToHolder::Adopt { .. } => {}
            ToHolder::Keep(kept) => {
                if let Some(device) = fd {
                    self.held.lock().push(Held { kept, device });
                }
            }
            ToHolder::Progress(news) => self.ready.progress(news),
            ToHolder::Usable { mountpoint } => {
                self.used = true;
                self.ready.usable(&mountpoint);
            }
            ToHolder::Mount(request) => self.mount(channel.clone(), request),
            ToHolder::Serving { connection, init, answer } => {
                let mut held = self.held.lock();
                if let Some(held) = held.iter_mut().find(|h| h.kept.connection == connection) {
                    (held.kept.init, held.kept.answer) = (init, answer);
                }
            }
            ToHolder::Unmount { mountpoint, lazily } => unmount_beside(channel.clone(), mountpoint, lazily),
            ToHolder::Forget { connection, what } => {
                let held = self.held.lock();
                let device = held.iter().find(|h| h.kept.connection == connection);
                forget_beside(channel.clone(), device.and_then(|h| h.device.try_clone().ok()), what);
            }
            ToHolder::Ended { connection } => {
                self.held.lock().retain(|h| h.kept.connection != connection);
            }
            ToHolder::Replace => {
                self.programs.extend(fd);
                return Some(End::Replaced);
            }
            ToHolder::Troubled(error) => return Some(End::Died(error.message)),
            ToHolder::Done { error } => return Some(End::Done(error)),
        }
        None
    }

    /// Mounts on a thread of its own: it may wait for a helper or a dead network path.
    fn mount(&self, channel: Arc<Channel>, request: MountRequest) {
        let (held, store) = (self.held.clone(), self.options.store.clone());
        beside("rewindfs-mounter", move || {
            let result = mount(&store, request).map(|new| {
                let connection = new.kept.connection;
                let device = new.device.try_clone();
                held.lock().push(new);
                (connection, device)
            });
            let (message, device) = match result {
                Ok((connection, Ok(device))) => (Ok(connection), Some(device)),
                Ok((_, Err(e))) => (Err(ControlError::failed(format!("mounting: {e}"))), None),
                Err(e) => (Err(e), None),
            };
            let _ = channel.send(&ToServer::Mounted(message), device.as_ref().map(AsFd::as_fd));
        });
    }
}

fn mount(store: &Path, request: MountRequest) -> Result<Held, ControlError> {
    let failed = |e: &dyn std::fmt::Display| {
        ControlError::failed(format!("mounting at {}: {e}", request.mountpoint.display()))
    };
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(|e| failed(&e))?;
    let device =
        kernel_options(&request.options, store).mount(&request.mountpoint).map_err(|e| failed(&e))?;
    let connection = u64::from_ne_bytes(number) | 1;
    let kept = Kept { request, connection, init: Vec::new(), answer: Vec::new() };
    Ok(Held { kept, device })
}

/// Unmounting waits for the server to write out what programs changed through shared mappings, so it must
/// happen neither in the server, which could then not be killed, nor on the thread that would start the next.
fn unmount_beside(channel: Arc<Channel>, mountpoint: std::path::PathBuf, lazily: bool) {
    beside("rewindfs-unmounter", move || {
        let result = unmount(&mountpoint, lazily)
            .map_err(|e| UnmountError { busy: e.raw_os_error() == Some(libc::EBUSY), text: e.to_string() });
        let _ = channel.send(&ToServer::Unmounted(result), None);
    });
}

/// Has the kernel forget names and attributes. It waits for the locks of directories, each of which a program may
/// hold until a server has answered it: perhaps the next server, which the holder's own thread must be free to
/// start. What the kernel does not know needs no forgetting.
fn forget_beside(channel: Arc<Channel>, device: Option<OwnedFd>, what: Forgotten) {
    beside("rewindfs-forgetter", move || {
        if let Some(device) = device {
            for (dir, name) in &what.entries {
                let _ = forget_entry(&device, Ino(*dir), name);
            }
            for ino in &what.inodes {
                let _ = forget_inode(&device, Ino(*ino));
            }
            for (dir, name) in &what.past_names {
                let _ = forget_name(&device, *dir, name);
            }
            for node in &what.past_nodes {
                let _ = forget_pages(&device, *node);
            }
        }
        let _ = channel.send(&ToServer::Forgotten, None);
    });
}

fn beside(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, "no thread for {name}");
    }
}
