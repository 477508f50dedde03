//! Whether what a power cut left is what was promised.

use std::collections::BTreeSet;

use super::life::{Life, State};
use super::*;
use crate::volume::tests::model::{Model, compare_all};

/// What a store came back with.
pub struct Found {
    /// The last record that it had.
    pub lsn: Lsn,
    /// Its state there; none before the workload's first.
    pub state: Option<State>,
}

/// Opens the store and looks at everything: it opens by itself and can be written, it has every record that
/// had been promised before operation `n`, the tree and the snapshots are those of its last record, and fsck
/// finds nothing. Leaves it open.
pub fn judge(bench: &mut Bench, life: &Life, n: u64) -> Result<Found, String> {
    bench.try_open().map_err(|e| format!("it does not open: {e}"))?;
    drop(bench.volumes().care.lock().take());
    if let Some(reason) = bench.store().read_only() {
        return Err(format!("it opens read-only: {reason}"));
    }
    let lsn = last_before_opening(bench);
    let promised = life.promised(n);
    if lsn < promised {
        return Err(format!("record {lsn} is the last, up to {promised} all were promised to be durable"));
    }
    let state = look(bench, life, lsn)?;
    look_back(bench, life, lsn, n)?;
    match bench.problems() {
        problems if problems.is_empty() => Ok(Found { lsn, state }),
        problems => Err(format!("fsck: {problems:?}")),
    }
}

/// Opening commits a term, and the volume where there was none.
fn last_before_opening(bench: &Bench) -> Lsn {
    let last = bench.store().last();
    let state = bench.store().index().state();
    let made_now = state.volumes.values().any(|v| v.created == last);
    Lsn(last.0 - 1 - u64::from(made_now))
}

/// Finds the state that the tree is in, among those possible at that record.
fn look(bench: &Bench, life: &Life, lsn: Lsn) -> Result<Option<State>, String> {
    let behind = life.states.partition_point(|s| s.lsn <= lsn);
    let Some(state) = behind.checked_sub(1).and_then(|i| life.states.get(i)) else {
        let names = bench.main().readdir(None, Ino::ROOT, 2, |_| Err(FsError::Exists));
        return names.map(|()| None).map_err(|_| "there are names before the first was made".to_owned());
    };
    let mut possible = vec![committed(state, &BTreeSet::new())];
    if state.lsn < lsn {
        // In the middle of a step that takes several records: each commits a file, the last is the step.
        possible.extend(partly_committed(state));
        possible.extend(life.states.get(behind).into_iter().flat_map(partly_committed));
    }
    let mut why = Vec::new();
    for (candidate, open_times) in possible {
        match same(bench, &candidate, &open_times, &life.known) {
            Ok(model) => return Ok(Some(State { model, ..candidate })),
            Err(e) => why.push(e),
        }
    }
    let (behind, why) = (&state.behind, why.join("; or "));
    Err(format!("the tree at record {lsn}, behind {behind}, is not what it was: {why}"))
}

/// The state with the bytes of the files in `done` committed, and those whose times are then open.
fn committed(state: &State, done: &BTreeSet<Ino>) -> (State, BTreeSet<Ino>) {
    let mut state = state.clone();
    for ino in done {
        if let Some(node) = state.dirty.remove(ino) {
            state.model.nodes.insert(*ino, node);
        }
    }
    let open_times = state.dirty.keys().copied().collect();
    (state, open_times)
}

fn partly_committed(state: &State) -> Vec<(State, BTreeSet<Ino>)> {
    let dirty: Vec<Ino> = state.dirty.keys().copied().collect();
    let chosen = |bits: u32| dirty.iter().enumerate().filter(move |(i, _)| bits & (1 << i) != 0);
    (0..1 << dirty.len()).map(|bits| committed(state, &chosen(bits).map(|(_, ino)| *ino).collect())).collect()
}

/// Compares tree and snapshots with a state. Returns the tree with the times that were open.
fn same(
    bench: &Bench,
    state: &State,
    open_times: &BTreeSet<Ino>,
    known: &BTreeSet<Ino>,
) -> Result<Model, String> {
    let volume = bench.main();
    let mut model: Model = state.model.clone();
    for ino in open_times {
        let attrs = volume.getattr(None, *ino).map_err(|e| format!("inode {ino}: {e}"))?.attrs;
        let node = model.node(*ino);
        (node.mtime, node.ctime) = (attrs.mtime, attrs.ctime);
    }
    compare_all(volume, None, &model, known, false)?;
    let rows = volume.snapshots(Lsn::ZERO, usize::MAX).map_err(|e| e.to_string())?;
    let found: Vec<_> = rows.iter().map(|r| (r.spec.name.clone(), r.lsn, r.spec.hold)).collect();
    let expected: Vec<_> = state.snaps.iter().map(|s| (s.name.clone(), s.lsn, s.hold)).collect();
    if found != expected {
        return Err(format!("snapshots {found:?}, expected {expected:?}"));
    }
    for snap in &state.snaps {
        compare_all(volume, Some(snap.lsn), &snap.model, known, false)
            .map_err(|e| format!("snapshot {}: {e}", snap.name))?;
    }
    Ok(model)
}

/// Looks at one earlier moment, if the window still reaches it.
fn look_back(bench: &Bench, life: &Life, lsn: Lsn, n: u64) -> Result<(), String> {
    let earlier: Vec<&State> = life.states.iter().filter(|s| s.lsn < lsn && s.dirty.is_empty()).collect();
    if earlier.is_empty() {
        return Ok(());
    }
    let state = earlier[n as usize % earlier.len()];
    if !bench.main().is_readable(state.lsn) {
        return Ok(());
    }
    compare_all(bench.main(), Some(state.lsn), &state.model, &life.known, false)
        .map_err(|e| format!("looking back to record {}: {e}", state.lsn))
}
