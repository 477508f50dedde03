//! The server's side of the control socket. Everyone may connect, so every byte is hostile until decoded:
//! lines, connections, connections of one user and the time a peer may take are all bounded.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, sleep, timeout};

use super::client::Backend;
use super::news::Listener;
use super::protocol::{
    ALIVE_SECS, ControlError, Part, Progress, REPLY_BYTES_MAX, Reply, Request, Response, decode, encode,
};
use super::sys::peer_groups;
use crate::types::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_BYTES_MAX};

/// How long a peer may take to send a whole request, and to take a line.
const PEER_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Connections that one user other than root may have.
const USER_CONNECTIONS_MAX: usize = CONTROL_CONNECTIONS_MAX / 4;
/// Connections that are kept for root.
const ROOT_CONNECTIONS: usize = 8;
/// How long idle threads may take to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);
/// Lines that wait for a slow peer. More progress is left out; more parts make the work wait.
const NEWS_QUEUE: usize = 16;

/// Who asks, as the kernel knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user when the connection was made.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Process, for the log only: it may have ended since.
    pub pid: u32,
}

impl Caller {
    /// This process.
    pub fn current() -> Caller {
        let groups = nix::unistd::getgroups().unwrap_or_default();
        Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
            pid: std::process::id(),
        }
    }

    /// Root, or that user.
    pub fn is_root_or(&self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }

    /// In that group, by its group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Carries out requests, on threads that may block. [`Request::check`] has passed; rights have not been
/// checked.
pub trait ControlHandler: Send + Sync {
    /// Carries out one request for `caller`.
    fn handle(
        &self,
        caller: &Caller,
        request: Request,
        listener: &mut dyn Listener,
    ) -> Result<Response, ControlError>;
}

/// A handler in this process: what `offline` gives the command line when no server runs.
#[derive(Debug)]
pub struct Local<H>(pub H);

impl<H: ControlHandler> Backend for Local<H> {
    fn call(&self, request: Request, listener: &mut dyn Listener) -> Result<Response, ControlError> {
        request.check()?;
        self.0.handle(&Caller::current(), request, listener)
    }
}

/// A listening control socket with its threads.
#[derive(Debug)]
pub struct ControlServer {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    slots: Arc<Slots>,
    socket: PathBuf,
}

impl ControlServer {
    /// Listens at `socket` (mode 0666), in place of what a dead server left there: the caller holds the
    /// store's lock.
    pub fn start(socket: &Path, handler: Arc<dyn ControlHandler>) -> io::Result<ControlServer> {
        match fs::remove_file(socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = StdListener::bind(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(CONTROL_CONNECTIONS_MAX)
            .thread_name("control")
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let slots = Arc::new(Slots::default());
        let listener = {
            let _context = runtime.enter();
            UnixListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, handler, slots.clone(), stopped));
        Ok(ControlServer { runtime, stop, slots, socket: socket.to_owned() })
    }

    /// Takes no more requests, gives those under way `grace` to finish, and removes the socket. Not to be
    /// called from a handler, which it would wait for: a handler of `Stop` tells the main thread.
    pub fn stop(self, grace: Duration) {
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!("removing {}: {error}", self.socket.display());
        }
        self.stop.send_replace(true);
        let slots = self.slots.clone();
        self.runtime.block_on(async {
            let idle = async {
                while slots.in_use() > 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            if timeout(grace, idle).await.is_err() {
                tracing::warn!("control requests were still running after {} s", grace.as_secs());
            }
        });
        // Waits for what holds the handler, and through it the store.
        self.runtime.shutdown_timeout(SHUTDOWN_PATIENCE);
    }
}

/// Counts connections, in all and by user.
#[derive(Debug, Default)]
struct Slots(Mutex<HashMap<u32, usize>>);

impl Slots {
    fn in_use(&self) -> usize {
        self.0.lock().values().sum()
    }

    /// A place for one more connection of `uid`, if there is one.
    fn take(self: &Arc<Slots>, uid: u32) -> Option<Slot> {
        let mut users = self.0.lock();
        let all: usize = users.values().sum();
        let own = users.get(&uid).copied().unwrap_or(0);
        let free = if uid == 0 {
            all < CONTROL_CONNECTIONS_MAX
        } else {
            all < CONTROL_CONNECTIONS_MAX - ROOT_CONNECTIONS && own < USER_CONNECTIONS_MAX
        };
        if !free {
            return None;
        }
        users.insert(uid, own + 1);
        Some(Slot { slots: self.clone(), uid })
    }
}

struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut users = self.slots.0.lock();
        match users.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                users.remove(&self.uid);
            }
        }
    }
}

async fn accept(
    listener: UnixListener,
    handler: Arc<dyn ControlHandler>,
    slots: Arc<Slots>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let welcomed = accepted.and_then(|(stream, _)| Ok((caller_of(&stream)?, stream)));
        match welcomed {
            Ok((caller, stream)) => match slots.take(caller.uid) {
                Some(slot) => {
                    let connection =
                        Connection { caller, handler: handler.clone(), stopped: stopped.clone() };
                    tokio::spawn(connection.serve(stream, slot));
                }
                None => refuse(&stream),
            },
            Err(error) => {
                // Out of descriptors or memory: they come back when other connections end.
                tracing::warn!("control socket: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn caller_of(stream: &UnixStream) -> io::Result<Caller> {
    let peer = getsockopt(stream, PeerCredentials)?;
    let groups = peer_groups(stream)?;
    // A process of another pid namespace has no number here, which the kernel gives as 0.
    Ok(Caller { uid: peer.uid(), gid: peer.gid(), groups, pid: u32::try_from(peer.pid()).unwrap_or(0) })
}

/// Says that there is no room, without waiting for the peer.
fn refuse(stream: &UnixStream) {
    let busy = Reply::Error(ControlError::failed("the server has too many control connections; try again"));
    if let Ok(line) = encode(&busy) {
        // The socket's buffer is empty, so that one line fits; a peer that is gone needs none.
        let _ = stream.try_write(&line);
    }
}

/// Where a handler's news go: to the task that writes to the peer.
struct Outbox {
    sender: mpsc::Sender<Reply>,
    /// The peer takes no more.
    left: Arc<AtomicBool>,
}

impl Listener for Outbox {
    fn progress(&mut self, news: Progress) {
        // Left out when the queue is full: progress must not slow the work.
        let _ = self.sender.try_send(Reply::Progress(news));
    }

    fn part(&mut self, part: Part) -> Result<(), ControlError> {
        let sent = self.sender.blocking_send(Reply::Part(part));
        if sent.is_err() || self.left.load(Ordering::Relaxed) {
            return Err(ControlError::failed("whoever asked has left"));
        }
        Ok(())
    }
}

struct Connection {
    caller: Caller,
    handler: Arc<dyn ControlHandler>,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    /// Serves requests one after the other until the peer leaves, misbehaves, or the server stops.
    async fn serve(mut self, mut stream: UnixStream, slot: Slot) {
        let _slot = slot;
        let (mut read, mut write) = stream.split();
        let mut pending = Vec::new();
        loop {
            let line = tokio::select! {
                _ = self.stopped.wait_for(|stop| *stop) => return,
                line = timeout(PEER_PATIENCE, read_line(&mut read, &mut pending)) => line,
            };
            let complaint = match line {
                Ok(Ok(Some(line))) => match self.answer(&line, &mut write).await {
                    true => continue,
                    false => return,
                },
                Ok(Ok(None)) | Ok(Err(LineError::Gone)) => return,
                Ok(Err(LineError::Long)) => format!("the request is over {CONTROL_REQUEST_BYTES_MAX} bytes"),
                // A peer that keeps a connection without asking anything is let go quietly.
                Err(_) if pending.is_empty() => return,
                Err(_) => format!("no whole request within {} s", PEER_PATIENCE.as_secs()),
            };
            send(&mut write, &Reply::Error(ControlError::usage(complaint))).await;
            return;
        }
    }

    /// Answers one request; false when the connection is to be closed.
    async fn answer(&self, line: &[u8], write: &mut WriteHalf<'_>) -> bool {
        let request = decode::<Request>(line).and_then(|request| request.check().map(|()| request));
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                send(write, &Reply::Error(error)).await;
                return false;
            }
        };
        let (sender, mut news) = mpsc::channel(NEWS_QUEUE);
        let (caller, handler) = (self.caller.clone(), self.handler.clone());
        let left = Arc::new(AtomicBool::new(false));
        let mut outbox = Outbox { sender, left: left.clone() };
        let mut job = tokio::task::spawn_blocking(move || handler.handle(&caller, request, &mut outbox));
        let period = Duration::from_secs(ALIVE_SECS);
        let mut alive = interval_at(Instant::now() + period, period);
        let mut peer_listens = true;
        // Runs to the end also when the peer has left: its slot is taken as long as its request costs.
        let done = loop {
            let reply = tokio::select! {
                biased;
                Some(reply) = news.recv() => reply,
                done = &mut job => break done,
                _ = alive.tick() => Reply::Alive {},
            };
            peer_listens = peer_listens && send(write, &reply).await;
            left.store(!peer_listens, Ordering::Relaxed);
        };
        let last = match done {
            Ok(Ok(response)) => Reply::Ok(response),
            Ok(Err(error)) => Reply::Error(error),
            Err(error) => {
                tracing::error!("a control request panicked: {error}");
                Reply::Error(ControlError::failed("internal error in the server; see its log"))
            }
        };
        peer_listens && send(write, &last).await
    }
}

enum LineError {
    Long,
    Gone,
}

/// The next line of `read`; what follows it stays in `pending`. None at the end of the input.
async fn read_line(read: &mut ReadHalf<'_>, pending: &mut Vec<u8>) -> Result<Option<Vec<u8>>, LineError> {
    let mut searched = 0;
    loop {
        if let Some(at) = pending.iter().skip(searched).position(|&b| b == b'\n') {
            let mut line: Vec<u8> = pending.drain(..=searched + at).collect();
            line.pop();
            return Ok(Some(line));
        }
        searched = pending.len();
        if searched >= CONTROL_REQUEST_BYTES_MAX {
            return Err(LineError::Long);
        }
        match read.read_buf(pending).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(_) => return Err(LineError::Gone),
        }
    }
}

/// Sends one line; false when the peer does not take it.
async fn send(write: &mut WriteHalf<'_>, reply: &Reply) -> bool {
    let line = match encode(reply) {
        Ok(line) if line.len() <= REPLY_BYTES_MAX => line,
        Ok(_) => {
            return Box::pin(send(write, &Reply::Error(ControlError::failed("the answer is too long"))))
                .await;
        }
        Err(error) => return Box::pin(send(write, &Reply::Error(error))).await,
    };
    matches!(timeout(PEER_PATIENCE, write.write_all(&line)).await, Ok(Ok(())))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
