//! What holder and server say to each other: one JSON message a packet, descriptors beside them. The holder is
//! older than the server after an upgrade, so messages are versioned like those of the control socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::daemon::protocol::{ControlError, MountRequest, Progress, decode, encode, wire_path};
use crate::daemon::spawn::ServeOptions;
use crate::mount::Negotiated;

/// Bytes of one message: paths of `PATH_MAX` in hex, and a handshake.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// A connection that the holder keeps, as one server leaves it to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What was asked to be mounted.
    pub request: MountRequest,
    /// The connection's number.
    pub connection: u64,
    /// The kernel's INIT request.
    pub init: Vec<u8>,
    /// The answer to it; empty while there is none.
    pub answer: Vec<u8>,
}

impl Kept {
    /// What was agreed on, if the first server came so far.
    pub fn negotiated(&self) -> Option<Negotiated> {
        let Kept { init, answer, .. } = self;
        (!answer.is_empty()).then(|| Negotiated { init: init.clone(), answer: answer.clone() })
    }
}

/// What the holder knows that a server shows in `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The holder's process.
    pub holder: u32,
    /// How often a server died.
    pub deaths: u64,
    /// How the last one ended.
    pub last_death: Option<String>,
    /// Whether the holder understands [`ToHolder::Forget`]; one from before an upgrade may not.
    #[serde(default)]
    pub forgets: bool,
    /// Whether it also understands what [`Forgotten`] says of the past.
    #[serde(default)]
    pub forgets_past: bool,
}

/// Names and inodes that the kernel is to forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Names with the numbers of their directories.
    pub entries: Vec<(u64, Vec<u8>)>,
    /// Numbers of inodes whose attributes changed.
    pub inodes: Vec<u64>,
    /// Names with the nodes of directories as views show them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_names: Vec<(u64, Vec<u8>)>,
    /// Nodes as views show them, to be forgotten with their pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_nodes: Vec<u64>,
}

/// To the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToServer {
    /// Serve this connection, whose descriptor comes along, as well.
    Resume(Kept),
    /// That were all: begin.
    Start {
        /// What the first server was started with.
        options: ServeOptions,
        /// Whether to log to standard error.
        foreground: bool,
        /// What came before.
        history: History,
    },
    /// The answer to [`ToHolder::Mount`]; the connection's number, its descriptor comes along.
    Mounted(Result<u64, ControlError>),
    /// The answer to [`ToHolder::Unmount`].
    Unmounted(Result<(), UnmountError>),
    /// The answer to [`ToHolder::Forget`].
    Forgotten,
    /// End in order.
    Stop,
}

/// Why something is still mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountError {
    /// It is in use.
    pub busy: bool,
    /// What the kernel said.
    pub text: String,
}

/// To the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToHolder {
    /// To a new holder, in place of one that was killed: the server that it is to watch. Connections follow
    /// as [`ToHolder::Keep`].
    Adopt {
        /// The server's process.
        server: u32,
        /// What it was started with.
        options: ServeOptions,
        /// Whether it logs to standard error.
        foreground: bool,
        /// What is known.
        history: History,
    },
    /// A connection, with its descriptor, to be kept.
    Keep(Kept),
    /// How far the server's start has come.
    Progress(Progress),
    /// The first mount can be used; or, after a death, all of them again.
    Usable {
        /// Where.
        #[serde(with = "wire_path")]
        mountpoint: PathBuf,
    },
    /// Mount.
    Mount(MountRequest),
    /// A connection is being served, after this handshake.
    Serving {
        /// Which.
        connection: u64,
        /// The kernel's INIT request.
        init: Vec<u8>,
        /// The answer to it.
        answer: Vec<u8>,
    },
    /// Unmount.
    Unmount {
        /// What.
        #[serde(with = "wire_path")]
        mountpoint: PathBuf,
        /// Also while it is in use.
        lazily: bool,
    },
    /// Have the kernel forget what it knows of these. A server must not do that itself: it waits for locks that
    /// programs hold while they wait for the server.
    Forget {
        /// On which connection.
        connection: u64,
        /// What.
        what: Forgotten,
    },
    /// The kernel has let go of a connection.
    Ended {
        /// Which.
        connection: u64,
    },
    /// The server ends on purpose, everything is durable; the program whose descriptor comes along is to
    /// take over.
    Replace,
    /// The server cannot serve what it was to take over, and ends. Perhaps the next one can.
    Troubled(ControlError),
    /// The server ends on purpose and nothing is left to serve.
    Done {
        /// What went wrong.
        error: Option<ControlError>,
    },
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Both ends; closed on exec.
    ///
    /// # Errors
    /// From the operating system.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(one), other))
    }

    /// The end that a process was started with.
    pub fn new(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send<T: Serialize>(&self, message: &T, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = encode(message).map_err(io::Error::other)?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        loop {
            let sent = sendmsg::<UnixAddr>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// The next message and the descriptor that came with it; None when the other side is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none and `wait` is not set; garbage.
    pub fn receive<T: DeserializeOwned>(&self, wait: bool) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = nix::cmsg_space!(i32);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
        if !wait {
            flags |= MsgFlags::MSG_DONTWAIT;
        }
        let (len, fd) = loop {
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(e) => return Err(e.into()),
                Ok(message) => {
                    let rights = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                        _ => None,
                    });
                    // SAFETY: the kernel has just installed this descriptor for us; nobody else knows of it.
                    break (message.bytes, rights.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
        };
        if len == 0 {
            return Ok(None);
        }
        let message = bytes.get(..len).unwrap_or_default();
        Ok(Some((decode(message.trim_ascii_end()).map_err(io::Error::other)?, fd)))
    }
}
