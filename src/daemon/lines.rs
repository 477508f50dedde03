//! Reading lines with a limit on their length and on the time they take.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Reads lines from a descriptor that may be slow, silent or hostile.
#[derive(Debug)]
pub struct LineReader<R> {
    from: R,
    buffer: Vec<u8>,
    line_bytes_max: usize,
}

impl<R: Read + AsFd> LineReader<R> {
    /// Lines of at most `line_bytes_max` bytes, line end included.
    pub fn new(from: R, line_bytes_max: usize) -> LineReader<R> {
        LineReader { from, buffer: Vec::new(), line_bytes_max }
    }

    /// What is read from.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// The next line without its end; None at the end of the input, where an unfinished line is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when no whole line came within `patience`, [`io::ErrorKind::InvalidData`]
    /// when it grows over the limit.
    pub fn next_line(&mut self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer.iter().skip(searched).position(|&b| b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched >= self.line_bytes_max {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.wait(deadline)?;
            let mut chunk = [0; 8192];
            match self.from.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(n) => self.buffer.extend(chunk.iter().take(n)),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last fraction of a millisecond is not spent spinning.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn lines_limits_and_time() {
        let (mut to, from) = UnixStream::pair().unwrap();
        let mut lines = LineReader::new(from, 16);
        to.write_all(b"one\ntwo\nth").unwrap();
        let soon = Duration::from_millis(30);
        assert_eq!(lines.next_line(soon).unwrap(), Some(b"one".to_vec()));
        assert_eq!(lines.next_line(soon).unwrap(), Some(b"two".to_vec()));
        assert_eq!(lines.next_line(soon).unwrap_err().kind(), io::ErrorKind::TimedOut);
        to.write_all(b"ree\n0123456789abcdefg").unwrap();
        assert_eq!(lines.next_line(soon).unwrap(), Some(b"three".to_vec()));
        assert_eq!(lines.next_line(soon).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(to);
        let (to, from) = UnixStream::pair().unwrap();
        drop(to);
        assert_eq!(LineReader::new(from, 16).next_line(soon).unwrap(), None);
    }
}
