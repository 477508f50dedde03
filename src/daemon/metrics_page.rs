//! What the metrics say. Names and labels are a stable format: some are added, none renamed.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::handler::Handler;
use super::protocol::{ControlError, Health, StatusReport};
use super::rights::control_error;
use crate::types::Timestamp;
use crate::volume::policy::burst::KINDS;

/// Where the answers come from.
pub(super) trait Source: Send + Sync {
    /// The page.
    fn metrics(&self) -> Result<String, ControlError>;
    /// Why the store does not work; None if it does.
    fn trouble(&self) -> Option<String>;
    /// Why nothing can be used yet or any more.
    fn not_ready(&self) -> Option<String>;
}

impl Source for Handler {
    fn metrics(&self) -> Result<String, ControlError> {
        let mut page = Page::default();
        for (n, name) in self.volumes.names().iter().enumerate() {
            let report = self.report_of(name)?;
            if n == 0 {
                store(&mut page, &report);
            }
            volume(&mut page, &report);
            let of = self.volumes.open(name).map_err(|e| control_error(&format!("volume {name}"), e))?;
            let now = of.store().clock().now().secs;
            let (tally, bursts) = of.alarms();
            for kind in KINDS {
                let labels = [("volume", name.as_str()), ("kind", kind.name())];
                let counted = format!("rewindfs_{}_total", kind.name());
                page.counter(&counted, kind.help(), &labels[..1], tally.of(kind));
                let burst = bursts.iter().find(|burst| burst.kind == kind);
                let goes_on = u64::from(burst.is_some_and(|burst| burst.goes_on(now)));
                page.gauge("rewindfs_burst", "1 while more happens than is usual.", &labels, goes_on);
                let last = burst.map_or(0, |burst| burst.last.max(0).unsigned_abs());
                let help = "When more happened than is usual, in the last day; else 0.";
                page.gauge("rewindfs_burst_last_timestamp_seconds", help, &labels, last);
            }
        }
        page.text()
    }

    fn trouble(&self) -> Option<String> {
        self.volumes.store().trouble()
    }

    fn not_ready(&self) -> Option<String> {
        let mounted = self.mounts.as_ref().is_some_and(|mounts| !mounts.list().is_empty());
        self.trouble().or_else(|| (!mounted).then(|| "nothing is mounted".to_owned()))
    }
}

fn seconds(time: Timestamp) -> u64 {
    time.secs.max(0).unsigned_abs()
}

fn store(page: &mut Page, r: &StatusReport) {
    let ids = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("store", r.store.as_str()),
        ("store_id", r.store_id.as_str()),
        ("node", r.node.as_str()),
    ];
    page.gauge("rewindfs_info", "What answers.", &ids, 1);
    page.gauge("rewindfs_lsn", "The last record.", &[], r.lsn);
    page.gauge("rewindfs_durable_lsn", "The last record that a crash cannot take.", &[], r.durable_lsn);
    page.gauge("rewindfs_term", "The number of the current reign.", &[], r.term);
    for (kind, bytes) in [("all", r.bytes.packs), ("dead", r.bytes.dead)] {
        let help = "Bytes of the pack files, and of them what nothing names any more.";
        page.gauge("rewindfs_pack_bytes", help, &[("kind", kind)], bytes);
    }
    page.gauge("rewindfs_free_bytes", "Bytes free on the filesystem below.", &[], r.bytes.free);
    page.gauge("rewindfs_dirty_bytes", "Bytes written and not yet committed.", &[], r.counters.dirty_bytes);
    let c = &r.counters;
    page.counter("rewindfs_index_gets_total", "Point look-ups in the index.", &[], c.index_gets);
    page.counter("rewindfs_index_seeks_total", "Range reads of the index.", &[], c.index_seeks);
    page.counter("rewindfs_index_bytes_total", "Bytes that the index returned.", &[], c.index_bytes);
    page.counter("rewindfs_chunk_reads_total", "Chunks read from packs.", &[], c.chunk_reads);
    page.counter("rewindfs_chunk_hits_total", "Chunks served from memory.", &[], c.chunk_hits);
    page.counter("rewindfs_stored_bytes_total", "Plain bytes stored as chunks.", &[], c.stored_bytes);
    page.counter("rewindfs_duplicate_bytes_total", "Of them, those there already.", &[], c.duplicate_bytes);
    page.counter("rewindfs_packed_bytes_total", "Bytes appended to packs.", &[], c.packed_bytes);
}

fn volume(page: &mut Page, r: &StatusReport) {
    let name = [("volume", r.volume.as_str())];
    let health = match r.health {
        Health::Ok => 0,
        Health::Attention => 1,
        Health::Failed => 2,
    };
    page.gauge("rewindfs_health", "0: ok, 1: needs attention, 2: failed.", &name, health);
    page.gauge("rewindfs_problems", "What status has to complain of.", &name, r.problems.len() as u64);
    page.gauge("rewindfs_mounted", "1 where it is mounted.", &name, u64::from(r.mountpoint.is_some()));
    page.gauge("rewindfs_read_only", "1 where nothing can be written.", &name, u64::from(r.read_only));
    page.gauge("rewindfs_snapshots", "Snapshots.", &name, r.snapshots);
    let help = "Deleted snapshots and marks whose space is not all freed yet.";
    page.gauge("rewindfs_forgetting", help, &name, r.forgetting);
    for (kind, bytes) in [("live", r.bytes.live), ("history", r.bytes.history)] {
        let labels = [("volume", r.volume.as_str()), ("kind", kind)];
        page.gauge("rewindfs_volume_bytes", "Plain bytes of files, live and past.", &labels, bytes);
    }
    if let Some(last) = &r.last_snapshot {
        let help = "When the newest snapshot was taken.";
        page.gauge("rewindfs_last_snapshot_timestamp_seconds", help, &name, seconds(last.time));
    }
    if let Some(window) = &r.window {
        let help = "The oldest moment that can be read.";
        page.gauge("rewindfs_oldest_timestamp_seconds", help, &name, seconds(window.oldest));
        let help = "Since when every record can be read.";
        page.gauge("rewindfs_continuous_since_timestamp_seconds", help, &name, seconds(window.continuous));
    }
}

/// Values, gathered by their names.
#[derive(Default)]
struct Page(BTreeMap<String, MetricFamily>);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value as f64);
        let mut metric = Metric::default();
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, labels, metric);
    }

    fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, labels, metric);
    }

    fn add(&mut self, name: &str, help: &str, kind: MetricType, labels: &[(&str, &str)], mut metric: Metric) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        metric.set_label(labels.iter().map(pair).collect());
        let family = self.0.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        let mut metrics = family.take_metric();
        metrics.push(metric);
        family.set_metric(metrics);
    }

    fn text(self) -> Result<String, ControlError> {
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        let failed = |e: prometheus::Error| ControlError::failed(format!("metrics: {e}"));
        TextEncoder::new().encode_to_string(&families).map_err(failed)
    }
}
