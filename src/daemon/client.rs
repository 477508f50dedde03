//! The other end of the control socket: a blocking client for the command line.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::lines::LineReader;
use super::news::Listener;
use super::protocol::{ControlError, REPLY_BYTES_MAX, Reply, Request, Response, decode, encode_request};
use super::sys::Process;

/// How long a server may be silent. It sends a line every [`super::protocol::ALIVE_SECS`], whatever the
/// request takes.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Something that carries out requests: a running server, or the store opened in this process.
pub trait Backend {
    /// Carries out one request. The listener hears of it any number of times before this returns.
    fn call(&self, request: Request, listener: &mut dyn Listener) -> Result<Response, ControlError>;
}

/// A running server.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// Who may run it besides root and the caller; None where that is not known.
    owner: Option<u32>,
}

impl Client {
    /// The server at `socket`, for a store that `owner` owns. Without an owner any server is talked to, but
    /// no key is sent to it or taken from it.
    pub fn new(socket: PathBuf, owner: Option<u32>) -> Client {
        Client { socket, owner }
    }

    /// The server's process, to wait for its end.
    pub fn process(&self) -> Option<Process> {
        let stream = UnixStream::connect(&self.socket).ok()?;
        let peer = getsockopt(&stream, PeerCredentials).ok()?;
        Process::find(u32::try_from(peer.pid()).ok()?)
    }

    fn connect(&self, request: &Request) -> Result<UnixStream, ControlError> {
        let stream = UnixStream::connect(&self.socket).map_err(|e| self.broken("connecting to", &e))?;
        stream.set_write_timeout(Some(SILENCE_MAX)).map_err(|e| self.broken("connecting to", &e))?;
        let peer =
            getsockopt(&stream, PeerCredentials).map_err(|e| self.broken("connecting to", &e.into()))?;
        let known = peer.uid() == 0 || peer.uid() == geteuid().as_raw() || self.owner == Some(peer.uid());
        if !known && (self.owner.is_some() || carries_key(request)) {
            return Err(ControlError::failed(format!(
                "the server at {} runs as user {}, who is not the store's owner; not talking to it",
                self.socket.display(),
                peer.uid()
            )));
        }
        Ok(stream)
    }

    fn broken(&self, doing: &str, error: &io::Error) -> ControlError {
        let why = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                format!("no answer for {} s; see its log", SILENCE_MAX.as_secs())
            }
            io::ErrorKind::InvalidData => "its answer is too long".to_owned(),
            _ => error.to_string(),
        };
        ControlError::failed(format!("{doing} the server at {}: {why}", self.socket.display()))
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn carries_key(request: &Request) -> bool {
    matches!(request, Request::KeyAdd { .. } | Request::KeyExport {})
}

impl Backend for Client {
    fn call(&self, request: Request, listener: &mut dyn Listener) -> Result<Response, ControlError> {
        let line = encode_request(&request)?;
        let mut stream = self.connect(&request)?;
        // A server that is full answers and closes without reading, so a failed write may still have left
        // an answer that says why.
        let written = stream.write_all(&line);
        let mut lines = LineReader::new(stream, REPLY_BYTES_MAX);
        loop {
            let line = match lines.next_line(SILENCE_MAX) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(self.broken("talking to", &written.err().unwrap_or(ended)));
                }
                Err(e) => return Err(self.broken("talking to", &e)),
            };
            match decode(&line)? {
                Reply::Alive {} => {}
                Reply::Progress(news) => listener.progress(news),
                Reply::Part(part) => listener.part(part)?,
                Reply::Ok(response) => return Ok(response),
                Reply::Error(error) => return Err(error),
            }
        }
    }
}
