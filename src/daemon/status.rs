//! `status`: what an operator wants to see of a volume and its store.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::policy;
use super::protocol::{BytesReport, ControlError, CounterReport, Health, LastSnapshot, StatusReport};
use super::rights::control_error;
use crate::store::Store;
use crate::types::Lsn;
use crate::types::ids::hex;
use crate::volume::Volume;

/// The report of one volume; `server` says whether this process serves the store.
pub(super) fn report(
    volume: &Volume,
    mountpoint: Option<PathBuf>,
    server: bool,
    holder: Option<u32>,
) -> Result<StatusReport, ControlError> {
    let store = volume.store();
    let snapshots = volume.snapshots(Lsn::ZERO, usize::MAX).map_err(|e| control_error("snapshots", e))?;
    let packs = store.packs_bytes()?;
    let free = nix::sys::statvfs::statvfs(store.path())
        .map(|s| s.blocks_available() * s.fragment_size())
        .unwrap_or(0);
    let (lsn, term, chain, digest, live, history, forgetting, packed) = {
        let state = store.index().state();
        let of = state.volumes.get(&volume.id());
        (
            state.applied,
            state.term,
            state.chain,
            state.digest,
            of.map_or(0, |v| v.live_bytes),
            of.map_or(0, |v| v.history_bytes),
            of.map_or(0, |v| v.points.values().filter(|point| point.deleting).count()),
            state.packs.values().map(|p| p.live_bytes).sum::<u64>(),
        )
    };
    let mut problems = store.problems();
    if server && holder.is_none() {
        problems.push(
            "the holder of the mounts was killed and cannot be started again: should this server die now, its \
             mounts die with it; unmount and mount again"
                .to_owned(),
        );
    }
    // Where the index is damaged, that is what status is asked for.
    let window = policy::window(volume);
    problems
        .extend(window.as_ref().err().map(|e| format!("what is kept of the history cannot be read: {e}")));
    let read_only = store.trouble();
    let health = match (&read_only, problems.is_empty()) {
        (Some(_), _) => Health::Failed,
        (None, false) => Health::Attention,
        (None, true) => Health::Ok,
    };
    Ok(StatusReport {
        store: store.path().display().to_string(),
        store_id: store.id().to_string(),
        node: store.node().to_string(),
        mountpoint: mountpoint.map(|p| p.display().to_string()),
        volume: volume.name().to_owned(),
        term: term.0,
        lsn: lsn.0,
        durable_lsn: store.durable().0,
        chain: hex(&chain),
        digest: hex(&digest.to_be_bytes()),
        server_pid: server.then(std::process::id),
        holder_pid: holder,
        read_only: read_only.is_some(),
        health,
        problems,
        snapshots: snapshots.len() as u64,
        forgetting: forgetting as u64,
        last_snapshot: snapshots
            .last()
            .map(|row| LastSnapshot { name: row.spec.name.clone(), time: row.time }),
        window: window.ok(),
        bytes: BytesReport { live, history, packs, dead: packs.saturating_sub(packed), free },
        counters: counters(store),
        ..StatusReport::default()
    })
}

fn counters(store: &Store) -> CounterReport {
    let (index, chunks) = (&store.index().counters, store.chunks().counters());
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    CounterReport {
        index_gets: read(&index.gets),
        index_seeks: read(&index.seeks),
        index_bytes: read(&index.bytes),
        chunk_reads: read(&chunks.reads),
        chunk_hits: read(&chunks.cache_hits),
        stored_bytes: read(&chunks.stored_bytes),
        duplicate_bytes: read(&chunks.duplicate_bytes),
        packed_bytes: read(&chunks.packed_bytes),
        dirty_bytes: 0,
    }
}
