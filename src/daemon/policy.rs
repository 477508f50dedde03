//! Policies over the control socket.

use super::courier::host_of;
use super::policy_report::{PolicyInfo, WindowReport};
use super::protocol::{ControlError, Response};
use super::rights::control_error;
use crate::types::{Ino, Timestamp};
use crate::volume::policy::{Kept, Setting};
use crate::volume::{FsError, Volume};

/// What is really kept of a volume's history.
pub(super) fn window(volume: &Volume) -> Result<WindowReport, FsError> {
    let Kept { records_since, marks_since, marks, history_since } = volume.kept()?;
    let created = volume.getattr(None, Ino::ROOT)?.attrs.btime;
    // Until the window moves for the first time, every change since the volume was made can be read.
    let continuous = records_since.unwrap_or(created);
    let since = |other: Option<Timestamp>| other.map_or(continuous, |other| other.min(continuous));
    Ok(WindowReport { oldest: since(history_since), continuous, minutes: since(marks_since), marks })
}

/// `policy show` and, with settings, `policy set`, for a caller who may. An address is as good as a password: whom it
/// names is all that is told without `secrets`.
pub(super) fn policy(
    volume: &Volume,
    settings: &[String],
    dry_run: bool,
    secrets: bool,
) -> Result<Response, ControlError> {
    let settings = Setting::all(settings).map_err(|e| ControlError::usage(e.to_string()))?;
    let failed = |e| control_error(&format!("policy of volume {}", volume.name()), e);
    let policy = volume.set_policy(&settings, dry_run || settings.is_empty()).map_err(failed)?;
    let shown = |name: &str, value: String| match name {
        "webhook" if !secrets => without_secrets(&value),
        _ => value,
    };
    let texts = Setting::of(&policy).into_iter().map(|(name, value)| (name.to_owned(), shown(name, value)));
    let texts = texts.collect();
    let kept = window(volume).map_err(failed)?;
    Ok(Response::Policy(PolicyInfo { volume: volume.name().to_owned(), dry_run, settings: texts, kept }))
}

/// An address without what lies behind its host, or before it.
fn without_secrets(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://{}/…", host_of(address)),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_only_the_host_is_left() {
        assert_eq!(
            without_secrets("https://me:pw@hooks.example:8443/T0/KEY?x=y"),
            "https://hooks.example:8443/…"
        );
        assert_eq!(without_secrets("http://h?key=1"), "http://h/…");
        assert_eq!(without_secrets("off"), "off");
    }
}
