//! `key …`. Key files are read and written by this process, with the caller's rights; a server sees only
//! their text.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::resolve::Resolved;
use super::{Outcome, output, resolve, shown, unexpected};
use crate::daemon::protocol::{ControlError, KeyKind, KeySlotInfo, Request, Response, Secret, Target};
use crate::daemon::{KeyMaterial, keyfile};
use crate::types::point::rfc3339;

/// Look after the keys of a store.
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Print the recovery key, or put it into a file: whoever has it can open the store.
    Export(Export),
    /// Let one more key open the store.
    Add(Add),
    /// Take a key's right to open the store.
    Remove(Remove),
    /// Give new data a new key, and wrap all keys anew.
    Rotate(Store),
    /// List the key slots.
    List(Store),
}

#[derive(Debug, Args)]
pub(super) struct Store {
    /// The store's directory.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The key file that opens it, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    store: Store,
    /// A new file for the key [default: print it].
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    store: Store,
    /// A key file; a missing one is made with a new key [default: print a new key].
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    store: Store,
    /// The slot's number, as `key list` shows it.
    slot: u8,
    /// Only say which slot would go.
    #[arg(long)]
    dry_run: bool,
}

/// `key export --json` and `key add --json`; the key itself only where it is not in a file.
#[derive(Serialize)]
struct KeyReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u8>,
    file: Option<String>,
    key: Option<Secret>,
}

impl Store {
    fn resolve(&self) -> Result<Resolved, ControlError> {
        resolve::store(&self.store, Target::Store, self.key_file.as_deref())
    }
}

impl Key {
    pub(super) fn run(self) -> Outcome {
        match self {
            Key::Export(command) => command.run(),
            Key::Add(command) => command.run(),
            Key::Remove(command) => command.run(),
            Key::Rotate(store) => rotate(&store),
            Key::List(store) => list(&store),
        }
    }
}

impl Export {
    fn run(self) -> Outcome {
        // Asking for the key counts as having it, so what can be refused is refused before.
        if let Some(file) = self.file.as_deref().filter(|file| file.symlink_metadata().is_ok()) {
            return Err(ControlError::failed(format!("{} exists; name a new file", shown(file))));
        }
        let answer = self.store.resolve()?.ask(Request::KeyExport {})?;
        let Response::RecoveryKey { key } = answer else { return Err(unexpected()) };
        let Some(file) = self.file else {
            return report(&KeyReport { slot: None, file: None, key: Some(key) }, self.store.json);
        };
        keyfile::write(&file, &KeyMaterial::parse(&key.0)?)?;
        report(&KeyReport { slot: None, file: Some(shown(file)), key: None }, self.store.json)
    }
}

impl Add {
    /// A new key is stored before the store knows it: a slot whose key nobody has must not come to be.
    fn run(self) -> Outcome {
        let resolved = self.store.resolve()?;
        let (key, made) = match &self.file {
            Some(file) if file.exists() => (read(file)?, None),
            Some(file) => {
                let key = KeyMaterial::generate()?;
                keyfile::write(file, &key)?;
                (key, Some(file))
            }
            None => (KeyMaterial::generate()?, None),
        };
        let text = Secret(key.to_text().to_string());
        let answer = resolved.ask(Request::KeyAdd { key: text.clone() });
        if let (Err(_), Some(file)) = (&answer, made) {
            let _ = fs::remove_file(file);
        }
        let Response::KeyAdded { slot } = answer? else { return Err(unexpected()) };
        let key = self.file.is_none().then_some(text);
        report(&KeyReport { slot: Some(slot), file: self.file.map(shown), key }, self.store.json)
    }
}

fn read(file: &Path) -> Result<KeyMaterial, ControlError> {
    let loaded = keyfile::read(file)?;
    if loaded.exposed {
        output::warn(&format!("others than its owner may use {}; chmod 600 it", shown(file)));
    }
    Ok(loaded.key)
}

fn report(report: &KeyReport, json: bool) -> Outcome {
    if json {
        output::json(report)?;
        return output::done();
    }
    let slot = report.slot.map(|slot| format!(" (slot {slot})")).unwrap_or_default();
    match (&report.key, &report.file) {
        (Some(Secret(key)), _) => output::line(key)?,
        (None, Some(file)) => output::line(&format!("{file} opens the store{slot}"))?,
        (None, None) => {}
    }
    output::done()
}

impl Remove {
    fn run(self) -> Outcome {
        let (slot, dry_run) = (self.slot, self.dry_run);
        let answer = self.store.resolve()?.ask(Request::KeyRemove { slot, dry_run })?;
        let Response::KeyRemoved(info) = answer else { return Err(unexpected()) };
        if self.store.json {
            output::json(&info)?;
        } else if dry_run {
            output::line(&format!("would remove slot {} ({})", info.slot, kind(info.kind)))?;
        }
        output::done()
    }
}

fn rotate(store: &Store) -> Outcome {
    let Response::KeyRotated { epoch } = store.resolve()?.ask(Request::KeyRotate {})? else {
        return Err(unexpected());
    };
    if store.json {
        output::json(&serde_json::json!({ "epoch": epoch }))?;
    } else {
        output::line(&format!("new data is sealed with key {epoch}"))?;
    }
    output::done()
}

fn list(store: &Store) -> Outcome {
    let Response::Keys(slots) = store.resolve()?.ask(Request::KeyList {})? else { return Err(unexpected()) };
    if store.json {
        slots.iter().try_for_each(output::json)?;
        return output::done();
    }
    let row = |slot: &KeySlotInfo| [slot.slot.to_string(), kind(slot.kind).to_owned(), rfc3339(slot.created)];
    let rows: Vec<[String; 3]> = slots.iter().map(row).collect();
    output::table(["SLOT", "KIND", "CREATED"], &["SLOT"], &rows)?;
    output::done()
}

fn kind(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::KeyFile => "key file",
        KeyKind::Recovery => "recovery key",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        assert!(!format!("{:?}", Request::KeyAdd { key: Secret("abc".into()) }).contains("abc"));
    }
}
