//! `init`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Outcome, output, resolve, shown};
use crate::daemon::{CreateOptions, create};

/// Make an empty store, with the volume `main`.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The directory to make; an empty one is fine.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Where to put the key [default: <store id>.key in the key directory].
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    key_file: Option<PathBuf>,
    /// Also make a recovery key, and put it there.
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    recovery_key_file: Option<PathBuf>,
    /// Keep everything in plain text, names and contents.
    #[arg(long)]
    no_encryption: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// `init --json`.
#[derive(Serialize)]
struct InitReport {
    store: String,
    store_id: String,
    node: String,
    volume: &'static str,
    encryption: bool,
    key_file: Option<String>,
    recovery_key_file: Option<String>,
}

impl Init {
    pub(super) fn run(self) -> Outcome {
        let options = CreateOptions {
            encryption: !self.no_encryption,
            key_file: self.key_file,
            recovery_key_file: self.recovery_key_file.clone(),
        };
        let created = create(&self.store, &options)?;
        let path = self.store.canonicalize().unwrap_or(self.store);
        let report = InitReport {
            store: shown(&path),
            store_id: created.store.to_string(),
            node: created.node.to_string(),
            volume: resolve::DEFAULT_VOLUME,
            encryption: !self.no_encryption,
            key_file: created.key_file.map(shown),
            recovery_key_file: self.recovery_key_file.map(shown),
        };
        if self.json {
            output::json(&report)?;
        } else {
            output::raw(report.text().as_bytes())?;
        }
        output::done()
    }
}

impl InitReport {
    fn text(&self) -> String {
        let InitReport { store, key_file, recovery_key_file, .. } = self;
        let keys = match (key_file, recovery_key_file) {
            (None, _) => "Not encrypted: names and contents lie in it as they are.".to_owned(),
            (Some(key), Some(recovery)) => format!(
                "Key: {key}\nRecovery key: {recovery}\nKeep the recovery key on another machine or on paper: \
                 without a key the store cannot be read."
            ),
            (Some(key), None) => format!(
                "Key: {key}\nWithout it the store cannot be read. Export a recovery key and keep it \
                 elsewhere:\n\x20 rewindfs key export {store} FILE"
            ),
        };
        format!("Made the store {store}.\n{keys}\nMount it:\n  rewindfs mount {store} DIR\n")
    }
}
