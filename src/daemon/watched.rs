//! Work that takes long, while whoever asked for it is told how far it is.

use std::time::Duration;

use super::protocol::{ControlError, Progress};
use crate::store::control::Control;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Does the work, which keeps `control` up to date.
///
/// # Errors
/// The work panicked.
pub(super) fn watched<T: Send>(
    control: &Control,
    progress: &mut dyn FnMut(Progress),
    work: impl FnOnce() -> T + Send,
) -> Result<T, ControlError> {
    let done = std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while !working.is_finished() {
            std::thread::sleep(LOOK);
            let at = control.position();
            progress(Progress {
                what: at.what.to_owned(),
                done: at.done,
                total: at.total,
                unit: "bytes".into(),
            });
        }
        working.join()
    });
    done.map_err(|_| ControlError::failed("internal error: a thread panicked"))
}
