//! What whoever asked hears of a request before its result.

use super::history_report::Part;
use super::protocol::{ControlError, Progress};

/// Hears of a request while it is worked on.
pub trait Listener {
    /// How far it is. May be left out.
    fn progress(&mut self, news: Progress);

    /// The next part of an answer that is too long for one line. None is left out, and they keep their order.
    ///
    /// # Errors
    /// Nobody listens any more; the work may as well end.
    fn part(&mut self, part: Part) -> Result<(), ControlError>;
}

/// For answers of one line.
impl<F: FnMut(Progress)> Listener for F {
    fn progress(&mut self, news: Progress) {
        self(news);
    }

    fn part(&mut self, _: Part) -> Result<(), ControlError> {
        Err(ControlError::failed(
            "an answer came in parts that was not expected so; use the server's version",
        ))
    }
}
