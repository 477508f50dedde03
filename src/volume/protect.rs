//! What protects a point from being forgotten: a hold, and the immutable period of the policy.

use std::collections::BTreeMap;

use super::{FsError, FsResult};
use crate::store::index::rows::{Snapshot, Volume as VolumeRow};
use crate::types::point::rfc3339;
use crate::types::{Lsn, Timestamp};

/// Whether the policy lets nothing take the point away yet: until when.
pub(super) fn immutable_until(volume: &VolumeRow, point: &Snapshot, now: Timestamp) -> Option<Timestamp> {
    volume.policy.immutable_until(point.time).filter(|until| *until > now)
}

/// Fails when one of these points is held or immutable.
pub(super) fn check_may_go<'a>(
    volume: &VolumeRow,
    points: impl IntoIterator<Item = &'a Snapshot>,
    now: Timestamp,
) -> FsResult<()> {
    for point in points {
        let name = if point.is_mark() {
            format!("the moment {}", rfc3339(point.time))
        } else {
            format!("snapshot {}", point.spec.name)
        };
        if point.spec.hold {
            return Err(FsError::Held(format!("{name} is held (release it first)")));
        }
        if let Some(until) = immutable_until(volume, point, now) {
            return Err(FsError::Held(format!("{name} is immutable until {}", rfc3339(until))));
        }
    }
    Ok(())
}

/// The points that nothing protects, oldest first.
pub(super) fn may_go<'a>(
    volume: &'a VolumeRow,
    now: Timestamp,
    reading: &[Lsn],
) -> BTreeMap<Lsn, &'a Snapshot> {
    let points = volume.points.iter().filter(|(_, p)| !p.deleting && !p.spec.hold);
    points
        .filter(|(at, p)| reading.binary_search(at).is_err() && immutable_until(volume, p, now).is_none())
        .map(|(at, p)| (*at, p))
        .collect()
}
