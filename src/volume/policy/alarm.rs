//! The watch over what happens in volumes: [`burst`](super::burst) on real counts, and word of it.

use std::collections::{BTreeMap, HashMap};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::burst::{Burst, Kind, SPAN_SECS, Size, Tally, Watch};
use crate::store::Store;
use crate::types::limits::BLOCK_BYTES;
use crate::types::point::rfc3339;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Ino, Timestamp, VolumeId};
use crate::volume::cell::Live;
use crate::volume::{FsError, FsResult, Shared, Volume};

const VERSION: u8 = 1;
/// Seconds between two times that what is usual is written down.
const WRITE_SECS: i64 = 600;

/// Word of a burst that began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The volume's name.
    pub volume: String,
    /// The address that its policy names; empty for none.
    pub webhook: String,
    /// When.
    pub time: Timestamp,
    /// What.
    pub burst: Burst,
    /// The same as a sentence.
    pub text: String,
}

/// What happened in volumes, and who hears of bursts.
#[derive(Default)]
pub(in crate::volume) struct Alarms {
    /// Since the store was opened.
    tallies: Mutex<HashMap<VolumeId, Tally>>,
    watches: Mutex<Watches>,
    listener: Mutex<Option<Sender<Alert>>>,
}

#[derive(Default)]
struct Watches {
    /// Read from the disk.
    loaded: bool,
    written: i64,
    of: BTreeMap<VolumeId, (Tally, Watch)>,
    /// The bursts of the last day, as sentences.
    told: Vec<String>,
}

impl Alarms {
    pub fn add(&self, vol: VolumeId, kind: Kind, count: u64) {
        if count > 0 {
            self.tallies.lock().entry(vol).or_default().add(kind, count);
        }
    }

    /// A file lost its last name.
    pub fn removed(&self, vol: VolumeId, bytes: u64) {
        let mut tallies = self.tallies.lock();
        let tally = tallies.entry(vol).or_default();
        tally.add(Kind::RemovedFiles, 1);
        tally.add(Kind::RemovedBytes, bytes);
    }

    pub(in crate::volume) fn listen(&self, listener: Sender<Alert>) {
        *self.listener.lock() = Some(listener);
    }

    /// The bursts of the last day, as sentences.
    pub fn problems(&self) -> Vec<String> {
        self.watches.lock().told.clone()
    }

    fn tally(&self, vol: VolumeId) -> Tally {
        self.tallies.lock().get(&vol).copied().unwrap_or_default()
    }
}

impl Volume {
    /// What happened in it since the store was opened, and the bursts of the last day.
    pub fn alarms(&self) -> (Tally, Vec<Burst>) {
        let alarms = &self.shared.keeping.alarms;
        let watches = alarms.watches.lock();
        let bursts = watches.of.get(&self.vol).map(|(_, watch)| watch.bursts().collect());
        (alarms.tally(self.vol), bursts.unwrap_or_default())
    }
}

impl Volume {
    /// Bytes that go with a file that loses its last name: holes hold none. Small files are taken as they are.
    pub(in crate::volume) fn held_bytes(&self, ino: Ino, live: &Live) -> FsResult<u64> {
        if live.attrs.size <= BLOCK_BYTES {
            return Ok(live.attrs.size);
        }
        let committed = self.inode(None, ino)?.item.data_bytes;
        Ok(committed.saturating_add(live.dirty_bytes()).min(live.attrs.size))
    }
}

/// `oldest` is the first second that can be read.
fn sentence(volume: &str, oldest: i64, burst: &Burst) -> String {
    let second = |secs| rfc3339(Timestamp { secs, nanos: 0 });
    format!(
        "volume {volume}: {} within {} minutes, at {}; here up to {} would be nothing unusual; what it was: \
         rewindfs diff PATH @{}",
        burst.kind.happened(burst.peak),
        SPAN_SECS / 60,
        second(burst.since),
        burst.kind.amount(burst.limit),
        second(burst.since.saturating_sub(SPAN_SECS).max(oldest)),
    )
}

impl Shared {
    /// Compares what happened since the last call with what is usual.
    ///
    /// # Errors
    /// From the store.
    pub(super) fn watch_bursts(&self, volumes: &[VolumeId], now: Timestamp) -> FsResult<()> {
        let alarms = &self.keeping.alarms;
        let mut watches = alarms.watches.lock();
        if !watches.loaded {
            watches.of = load(&self.store);
            (watches.loaded, watches.written) = (true, now.secs);
        }
        watches.of.retain(|vol, _| volumes.contains(vol));
        watches.told.clear();
        let mut alarmed = false;
        for vol in volumes {
            let Some((name, webhook, size)) = self.about(*vol) else { continue };
            let oldest = self.oldest_second(*vol)?;
            let total = alarms.tally(*vol);
            let (seen, watch) = watches.of.entry(*vol).or_default();
            let happened = total.since(seen);
            *seen = total;
            for burst in watch.observe(now.secs, size, &happened) {
                alarmed = true;
                let (volume, webhook, text) =
                    (name.clone(), webhook.clone(), sentence(&name, oldest, &burst));
                alarms.tell(Alert { volume, webhook, time: now, burst, text });
            }
            let told: Vec<String> = watch.bursts().map(|burst| sentence(&name, oldest, &burst)).collect();
            watches.told.extend(told);
        }
        if alarmed || now.secs.saturating_sub(watches.written).abs() >= WRITE_SECS {
            watches.written = now.secs;
            self.write_down(&watches);
        }
        Ok(())
    }

    /// The first whole second that can be read of a volume.
    fn oldest_second(&self, vol: VolumeId) -> FsResult<i64> {
        let root = self.store.view(vol, None).inode(Ino::ROOT)?;
        let state = self.store.index().state();
        let volume = state.volumes.get(&vol).ok_or(FsError::NotFound)?;
        let records = volume.floor_time.or(root.map(|root| root.item.attrs.btime));
        let points = volume.points.values().filter(|p| !p.deleting).map(|p| p.time);
        Ok(points.chain(records).min().map_or(0, |oldest| oldest.secs.saturating_add(1)))
    }

    /// Writes down what is usual, for the next server.
    pub(super) fn remember_rates(&self) {
        let watches = self.keeping.alarms.watches.lock();
        if watches.loaded {
            self.write_down(&watches);
        }
    }

    fn write_down(&self, watches: &Watches) {
        let mut e = Encoder::new();
        e.u8(VERSION).varint(watches.of.len() as u64);
        for (vol, (_, watch)) in &watches.of {
            e.u32(vol.0);
            watch.encode(&mut e);
        }
        if let Err(error) = self.store.write_rates(&e.finish()) {
            tracing::warn!(%error, "what is usual in this store could not be written down");
        }
    }

    fn about(&self, vol: VolumeId) -> Option<(String, String, Size)> {
        let state = self.store.index().state();
        let volume = state.volumes.get(&vol)?;
        let size = Size { files: volume.inodes, bytes: volume.live_bytes };
        Some((volume.name.clone(), volume.policy.webhook.clone(), size))
    }
}

impl Alarms {
    fn tell(&self, alert: Alert) {
        tracing::warn!(
            volume = alert.volume,
            kind = alert.burst.kind.name(),
            count = alert.burst.peak,
            limit = alert.burst.limit,
            "a burst"
        );
        let listener = self.listener.lock();
        let sent = listener.as_ref().is_none_or(|listener| listener.try_send(alert).is_ok());
        if !sent {
            tracing::warn!("an alert was not sent: too many at once, or nobody sends any more");
        }
    }
}

/// What the server before wrote down; nothing where that cannot be read.
fn load(store: &Store) -> BTreeMap<VolumeId, (Tally, Watch)> {
    store.read_rates().and_then(|plain| decode(&plain).ok()).unwrap_or_default()
}

fn decode(plain: &[u8]) -> Result<BTreeMap<VolumeId, (Tally, Watch)>, WireError> {
    let mut d = Decoder::new(plain);
    if d.u8()? != VERSION {
        return Err(WireError::Bad("version"));
    }
    let count = d.count(crate::types::limits::VOLUMES_MAX, "volumes")?;
    let mut watches = BTreeMap::new();
    for _ in 0..count {
        watches.insert(VolumeId(d.u32()?), (Tally::default(), Watch::decode(&mut d)?));
    }
    d.end()?;
    Ok(watches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
