//! Sends alerts to web hooks: a JSON object by POST, tried again for some minutes.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde::Serialize;
use ureq::tls::{RootCerts, TlsConfig};

use super::times::rfc3339;
use super::troubles::Troubles;
use crate::types::Timestamp;
use crate::volume::policy::alarm::Alert;

/// Alerts that may wait.
const QUEUE: usize = 64;
/// For one try, with connecting and the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before each further try.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
const PART: &str = "alerts";

/// The body of the request. A stable format: fields are added, never renamed. `text` is what chat programs show.
#[derive(Debug, Serialize)]
struct Message<'a> {
    text: String,
    event: &'static str,
    host: &'a str,
    store: &'a str,
    volume: &'a str,
    #[serde(with = "rfc3339")]
    time: Timestamp,
    kind: &'static str,
    count: u64,
    limit: u64,
}

/// The thread that sends. It ends when what was made with [`Courier::start`] is dropped.
pub(super) struct Courier {
    /// Dropped: nothing waits any more, and no further try is made.
    _stop: Sender<()>,
}

impl Courier {
    /// Starts it, and gives what alerts are handed over by.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(store: String, troubles: Arc<Troubles>) -> std::io::Result<(Courier, Sender<Alert>)> {
        let (alerts, queue) = bounded(QUEUE);
        let (stop, stopped) = bounded(0);
        std::thread::Builder::new()
            .name("rewindfs-alerts".into())
            .spawn(move || run(&store, &queue, &stopped, &troubles))?;
        Ok((Courier { _stop: stop }, alerts))
    }
}

fn run(store: &str, queue: &Receiver<Alert>, stopped: &Receiver<()>, troubles: &Troubles) {
    let name = nix::sys::utsname::uname();
    let host = name.map_or_else(|_| String::new(), |name| name.nodename().to_string_lossy().into_owned());
    loop {
        let alert = crossbeam_channel::select! {
            recv(queue) -> alert => match alert {
                Ok(alert) => alert,
                Err(_) => return,
            },
            recv(stopped) -> _ => return,
        };
        if alert.webhook.is_empty() {
            continue;
        }
        if deliver(&alert, store, &host, stopped, troubles).is_none() {
            return;
        }
    }
}

/// Tries until it is delivered or given up. None when the server ends.
fn deliver(
    alert: &Alert,
    store: &str,
    host: &str,
    stopped: &Receiver<()>,
    troubles: &Troubles,
) -> Option<()> {
    let message = Message {
        text: format!("rewindfs on {host}: {}", alert.text),
        event: "burst",
        host,
        store,
        volume: &alert.volume,
        time: alert.time,
        kind: alert.burst.kind.name(),
        count: alert.burst.peak,
        limit: alert.burst.limit,
    };
    let mut pauses = PAUSES.iter();
    loop {
        match post(&alert.webhook, &message) {
            Ok(()) => {
                troubles.set(PART, None);
                tracing::info!(volume = alert.volume, "an alert was sent");
                return Some(());
            }
            Err(why) => {
                // The address may hold a password: only whom it names is told.
                let text = format!("an alert cannot be sent to {}: {why}", host_of(&alert.webhook));
                troubles.set(PART, Some(text));
            }
        }
        let Some(pause) = pauses.next() else { return Some(()) };
        match stopped.recv_timeout(*pause) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return None,
        }
    }
}

fn post(address: &str, message: &Message<'_>) -> Result<(), String> {
    // What this machine trusts, a company's own authority included.
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_redirects(2).tls_config(tls);
    let agent: ureq::Agent = config.build().into();
    let sent = agent.post(address).header("user-agent", "rewindfs").send_json(message);
    sent.map(drop).map_err(|e| match e {
        ureq::Error::StatusCode(code) => format!("it answers {code}"),
        other => other.to_string().lines().next().unwrap_or_default().replace(address, "its address"),
    })
}

/// The host that an address names.
pub(super) fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_of_an_address_is_told() {
        assert_eq!(
            host_of("https://user:secret@hooks.example:8443/services/T0/KEY?x=y"),
            "hooks.example:8443"
        );
        assert_eq!(host_of("http://h?key=1"), "h");
    }
}
