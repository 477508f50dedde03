//! Rounds of scrubbing: one at a time, in the background of the server, asked for or by themselves.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::protocol::{ControlError, FsckReport, Progress, ScrubAction, ScrubState};
use super::watched::watched;
use crate::store::Store;
use crate::store::control::Control;
use crate::types::PackId;

/// Seconds between two rounds by themselves.
const ROUND_SECS: i64 = 30 * 24 * 3600;
/// How often is looked whether a round is due.
const LOOK_PERIOD: Duration = Duration::from_secs(600);

/// What the thread and those who ask share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Somebody wants a round, or the end.
    wake: Condvar,
}

#[derive(Default)]
struct State {
    running: Option<Arc<Control>>,
    wanted: bool,
    ending: bool,
    report: Option<FsckReport>,
    failed: Option<String>,
}

impl State {
    /// Begins a round that nobody asked for, unless somebody asked for one just now, or for the end.
    fn by_itself(&mut self, store: &Store) -> Option<Arc<Control>> {
        if self.wanted || self.ending {
            return None;
        }
        let control = Arc::new(Control::new(store.config().scrub_rate()));
        self.running = Some(control.clone());
        Some(control)
    }
}

/// Scrubs a store in the background until it is dropped.
pub(super) struct Scrubber {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scrubber {
    /// Nothing runs before [`Scrubber::watch`] or the first request.
    pub(super) fn new() -> Scrubber {
        Scrubber { shared: Arc::default(), thread: Mutex::new(None) }
    }

    /// Does rounds by itself from now on, when they are due.
    pub(super) fn watch(&self, store: &Arc<Store>) -> Result<(), ControlError> {
        let mut thread = self.thread.lock();
        if thread.is_some() {
            return Ok(());
        }
        let (shared, store) = (self.shared.clone(), Arc::downgrade(store));
        let spawned =
            std::thread::Builder::new().name("rewindfs-scrub".into()).spawn(move || run(&shared, &store));
        *thread = Some(spawned.map_err(|e| ControlError::failed(format!("starting a scrub: {e}")))?);
        Ok(())
    }

    /// Does what is asked, in the background.
    pub(super) fn act(&self, store: &Arc<Store>, action: ScrubAction) -> Result<ScrubState, ControlError> {
        let mut state = self.shared.state.lock();
        match action {
            ScrubAction::Look => {}
            ScrubAction::Cancel => state.running.iter().for_each(|control| control.cancel()),
            ScrubAction::Start if state.running.is_some() => {}
            ScrubAction::Start => {
                // From here on it counts as running, so that whoever asked can wait for its end.
                state.running = Some(Arc::new(Control::new(store.config().scrub_rate())));
                state.wanted = true;
                (state.report, state.failed) = (None, None);
                drop(state);
                self.watch(store)?;
                self.shared.wake.notify_all();
                state = self.shared.state.lock();
            }
        }
        Ok(said(&state))
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ending = true;
        state.running.iter().for_each(|control| control.cancel());
        drop(state);
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// One round in this process, for a store without a server.
pub(super) fn here(store: &Store, progress: &mut dyn FnMut(Progress)) -> Result<ScrubState, ControlError> {
    let control = Control::new(store.config().scrub_rate());
    let findings = watched(&control, progress, || store.scrub(&control, PackId(0)))??;
    let report = Some(FsckReport::of(store.path().display().to_string(), &findings));
    Ok(ScrubState { report, ..ScrubState::default() })
}

fn said(state: &State) -> ScrubState {
    let position = state.running.as_ref().map(|control| control.position()).unwrap_or_default();
    let left = position.total.saturating_sub(position.done);
    ScrubState {
        running: state.running.is_some(),
        what: position.what.to_owned(),
        done_bytes: position.done,
        total_bytes: position.total,
        bytes_per_second: position.rate,
        eta_seconds: left.checked_div(position.rate).filter(|_| state.running.is_some()),
        report: state.report.clone(),
        failed: state.failed.clone(),
    }
}

fn run(shared: &Shared, store: &Weak<Store>) {
    loop {
        let control = {
            let mut state = shared.state.lock();
            if !state.wanted && !state.ending {
                shared.wake.wait_for(&mut state, LOOK_PERIOD);
            }
            if state.ending {
                return;
            }
            std::mem::take(&mut state.wanted).then(|| state.running.clone()).flatten()
        };
        let Some(store) = store.upgrade() else { return };
        let (control, from_pack) = match control {
            Some(control) => (control, PackId(0)),
            None => match due(&store) {
                Some(from) => match shared.state.lock().by_itself(&store) {
                    Some(control) => (control, from),
                    None => continue,
                },
                None => continue,
            },
        };
        let done = store.scrub(&control, from_pack);
        let path = store.path().display().to_string();
        drop(store);
        let mut state = shared.state.lock();
        state.running = None;
        match done {
            Ok(findings) => {
                // Names of files do not belong in a log.
                tracing::info!(clean = findings.clean(), damaged = findings.damaged.len(), "scrubbed");
                (state.report, state.failed) = (Some(FsckReport::of(path, &findings)), None);
            }
            Err(e) => state.failed = Some(e.to_string()),
        }
    }
}

/// At which pack a round by itself is to begin, if one is due.
fn due(store: &Store) -> Option<PackId> {
    if store.config().scrub_bytes_per_second == 0 || store.read_only().is_some() {
        return None;
    }
    let (last, now) = (store.last_scrub(), store.clock().now());
    if last.ended.secs == 0 {
        // The first look at this store: its first round is due a period from now.
        store.remember_scrub(|last| last.ended = now);
        return None;
    }
    (now.secs.saturating_sub(last.ended.secs) >= ROUND_SECS).then_some(last.next_pack)
}
