//! The server's end of the channel. A server whose holder was killed starts a new one, so that its own death
//! still does no harm.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::channel::{Channel, Forgotten, History, Kept, ToHolder, ToServer, UnmountError};
use crate::daemon::protocol::{ControlError, MountRequest, Progress};
use crate::daemon::spawn::ServeOptions;
use crate::mount::{Connection, Negotiated};

/// New holders that are started within [`HOLDERS_TIME`]; when these die too, somebody wants them dead.
const HOLDERS_MAX: usize = 100;
/// See [`HOLDERS_MAX`].
const HOLDERS_TIME: Duration = Duration::from_secs(60);

/// How often a holder is asked to have the kernel forget something; each time but the first another one.
const FORGET_TRIES: usize = 5;
/// Before it is asked again.
const FORGET_PAUSE: Duration = Duration::from_millis(100);

/// With what a server starts.
#[derive(Debug)]
pub struct Start {
    /// What for.
    pub options: ServeOptions,
    /// Whether to log to standard error.
    pub foreground: bool,
    /// Connections to be taken over from the server before, none for the first.
    pub resumed: Vec<(Kept, OwnedFd)>,
    /// What came before.
    pub history: History,
}

/// The way to the holder.
#[derive(Debug)]
pub struct Link {
    channel: Mutex<Arc<Channel>>,
    start: (ServeOptions, bool),
    history: Mutex<History>,
    /// What a new holder has to keep.
    kept: Mutex<Vec<(Kept, OwnedFd)>>,
    /// One call at a time, and the answers to them.
    answers: Mutex<Receiver<Answer>>,
    /// 0 when there is none.
    holder: AtomicU32,
    ending: AtomicBool,
}

#[derive(Debug)]
enum Answer {
    Mounted(Result<(u64, OwnedFd), ControlError>),
    Unmounted(Result<(), UnmountError>),
    Forgotten,
    /// The holder died.
    Lost,
}

fn lost() -> ControlError {
    ControlError::failed("the holder of the mounts died meanwhile; try again")
}

impl Link {
    /// Hears from the holder at the other end of `stdin` what to do. `stop` is called when it wants the
    /// server to end.
    ///
    /// # Errors
    /// Nobody is there.
    pub fn connect(
        stdin: OwnedFd,
        stop: impl Fn() + Send + 'static,
    ) -> Result<(Arc<Link>, Start), ControlError> {
        let internal =
            || ControlError::usage("serve is internal; use rewindfs mount, with --foreground if wanted");
        let channel = Channel::new(stdin);
        let mut resumed = Vec::new();
        let (options, foreground, history) = loop {
            match channel.receive(true).map_err(|_| internal())?.ok_or_else(internal)? {
                (ToServer::Resume(kept), Some(device)) => resumed.push((kept, device)),
                (ToServer::Start { options, foreground, history }, _) => {
                    break (options, foreground, history);
                }
                _ => return Err(internal()),
            }
        };
        let copies = resumed.iter().map(|(kept, fd)| Ok((kept.clone(), fd.try_clone()?)));
        let copies = copies.collect::<io::Result<Vec<_>>>();
        let (sender, answers) = unbounded();
        let link = Arc::new(Link {
            channel: Mutex::new(Arc::new(channel)),
            start: (options.clone(), foreground),
            holder: AtomicU32::new(history.holder),
            history: Mutex::new(history.clone()),
            kept: Mutex::new(copies.map_err(|e| ControlError::failed(format!("copying descriptors: {e}")))?),
            answers: Mutex::new(answers),
            ending: AtomicBool::new(false),
        });
        let own = link.clone();
        std::thread::Builder::new()
            .name("rewindfs-holder".into())
            .spawn(move || own.listen(&sender, stop))
            .map_err(|e| ControlError::failed(format!("starting a thread: {e}")))?;
        Ok((link, Start { options, foreground, resumed, history }))
    }

    /// The holder's process; None when it is gone for good.
    pub fn holder(&self) -> Option<u32> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    fn listen(&self, answers: &Sender<Answer>, stop: impl Fn()) {
        let mut started: Vec<Instant> = Vec::new();
        let mut child: Option<Child> = None;
        loop {
            let channel = self.channel.lock().clone();
            let answer = match channel.receive(true) {
                Ok(Some((ToServer::Stop, _))) => {
                    stop();
                    continue;
                }
                Ok(Some((ToServer::Mounted(result), fd))) => Answer::Mounted(match (result, fd) {
                    (Ok(connection), Some(fd)) => Ok((connection, fd)),
                    (Ok(_), None) => Err(lost()),
                    (Err(e), _) => Err(e),
                }),
                Ok(Some((ToServer::Unmounted(result), _))) => Answer::Unmounted(result),
                Ok(Some((ToServer::Forgotten, _))) => Answer::Forgotten,
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => {
                    let _ = answers.send(Answer::Lost);
                    if let Some(mut dead) = child.take() {
                        let _ = dead.wait();
                    }
                    started.retain(|at| at.elapsed() < HOLDERS_TIME);
                    if self.ending.load(Ordering::Acquire) || started.len() >= HOLDERS_MAX {
                        self.holder.store(0, Ordering::Relaxed);
                        return;
                    }
                    started.push(Instant::now());
                    match self.start_holder() {
                        Ok(new) => child = Some(new),
                        Err(error) => {
                            tracing::error!(%error, "the holder was killed, and no new one can be started");
                            self.holder.store(0, Ordering::Relaxed);
                            return;
                        }
                    }
                    continue;
                }
            };
            if answers.send(answer).is_err() {
                return;
            }
        }
    }

    /// Starts a holder in place of one that was killed.
    fn start_holder(&self) -> io::Result<Child> {
        let (ours, theirs) = Channel::pair()?;
        let foreground = self.start.1;
        let child = Command::new("/proc/self/exe")
            .arg0("rewindfs")
            .args([Path::new("hold"), &self.start.0.store, Path::new("--adopt")])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(if foreground { Stdio::inherit() } else { Stdio::null() })
            .spawn()?;
        // Under its lock nobody adds or removes a connection, nor talks to the holder before it knows them.
        let mut channel = self.channel.lock();
        let kept = self.kept.lock();
        let mut history = self.history.lock();
        (history.holder, history.forgets, history.forgets_past) = (child.id(), true, true);
        let adopt = ToHolder::Adopt {
            server: std::process::id(),
            options: self.start.0.clone(),
            foreground,
            history: history.clone(),
        };
        ours.send(&adopt, None)?;
        for (kept, device) in kept.iter() {
            ours.send(&ToHolder::Keep(kept.clone()), Some(device.as_fd()))?;
        }
        *channel = Arc::new(ours);
        self.holder.store(child.id(), Ordering::Relaxed);
        tracing::warn!(holder = child.id(), "the holder was killed; another one took its place");
        Ok(child)
    }

    /// Says something that needs no answer. A holder that is just being replaced hears the same from
    /// `start_holder`.
    fn say(&self, message: &ToHolder) {
        let _ = self.channel.lock().clone().send(message, None);
    }

    fn call(&self, message: &ToHolder) -> Result<Answer, ControlError> {
        let answers = self.answers.lock();
        while answers.try_recv().is_ok() {}
        let sent = self.channel.lock().clone().send(message, None);
        sent.map_err(|_| lost())?;
        answers.recv().map_err(|_| lost())
    }

    /// How far the start has come.
    pub fn progress(&self, news: Progress) {
        self.say(&ToHolder::Progress(news));
    }

    /// The mounts can be used.
    pub fn usable(&self, mountpoint: &Path) {
        self.say(&ToHolder::Usable { mountpoint: mountpoint.to_owned() });
    }

    /// Mounts.
    ///
    /// # Errors
    /// From the kernel or `fusermount3`.
    pub fn mount(&self, request: &MountRequest) -> Result<Connection, ControlError> {
        match self.call(&ToHolder::Mount(request.clone()))? {
            Answer::Mounted(result) => {
                let (id, device) = result?;
                Ok(Connection { device, id, negotiated: None })
            }
            _ => Err(lost()),
        }
    }

    /// A connection is served now: from here on it outlives this server.
    pub fn serving(&self, request: &MountRequest, connection: &Connection, negotiated: &Negotiated) {
        let Negotiated { init, answer } = negotiated.clone();
        let id = connection.id;
        if let Ok(copy) = connection.device.try_clone() {
            let mut kept = self.kept.lock();
            kept.retain(|(k, _)| k.connection != id);
            let new =
                Kept { request: request.clone(), connection: id, init: init.clone(), answer: answer.clone() };
            kept.push((new, copy));
        }
        self.say(&ToHolder::Serving { connection: id, init, answer });
    }

    /// Unmounts.
    ///
    /// # Errors
    /// It is in use, or the kernel refuses otherwise.
    pub fn unmount(&self, mountpoint: &Path, lazily: bool) -> Result<(), UnmountError> {
        let message = ToHolder::Unmount { mountpoint: mountpoint.to_owned(), lazily };
        let other = |e: ControlError| UnmountError { busy: false, text: e.to_string() };
        match self.call(&message).map_err(other)? {
            Answer::Unmounted(result) => result,
            _ => Err(other(lost())),
        }
    }

    /// Has the kernel forget names and attributes; they are when this returns. The caller must hold nothing that
    /// an answer to a program could wait for.
    ///
    /// # Errors
    /// The holder is from before an upgrade and cannot, or is gone for good.
    pub fn forget(&self, connection: u64, what: Forgotten) -> Result<(), ControlError> {
        let past = !what.past_names.is_empty() || !what.past_nodes.is_empty();
        let History { forgets, forgets_past, .. } = *self.history.lock();
        if !forgets || past && !forgets_past {
            return Err(ControlError::failed("the mount's holder is older than this server"));
        }
        let message = ToHolder::Forget { connection, what };
        // A holder that was killed is followed by another one, which can be told the same.
        for _ in 0..FORGET_TRIES {
            if let Ok(Answer::Forgotten) = self.call(&message) {
                return Ok(());
            }
            std::thread::sleep(FORGET_PAUSE);
        }
        Err(lost())
    }

    /// The kernel has let go of a connection.
    pub fn ended(&self, connection: u64) {
        self.kept.lock().retain(|(kept, _)| kept.connection != connection);
        self.say(&ToHolder::Ended { connection });
    }

    /// Everything is durable and this server ends: `program` is to take over.
    ///
    /// # Errors
    /// There is no holder.
    pub fn replace(&self, program: &OwnedFd) -> io::Result<()> {
        self.ending.store(true, Ordering::Release);
        self.channel.lock().clone().send(&ToHolder::Replace, Some(program.as_fd()))
    }

    /// This server cannot serve what it was to take over, and ends.
    pub fn troubled(&self, error: &ControlError) {
        self.ending.store(true, Ordering::Release);
        self.say(&ToHolder::Troubled(error.clone()));
    }

    /// This server ends, and nothing is left to be served.
    pub fn done(&self, error: Option<ControlError>) {
        self.ending.store(true, Ordering::Release);
        self.say(&ToHolder::Done { error });
    }
}
