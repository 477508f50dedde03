//! Key slots: listing, exporting, adding, removing, rotating.

use std::path::Path;

use super::handler::Handler;
use super::protocol::{ControlError, KeyKind, KeySlotInfo, Request, Response, Secret};
use crate::store::keys::{KeyMaterial, Keyring, Secrets, SlotInfo, SlotKind, keyfile};
use crate::types::OsDisk;

type Outcome = Result<Response, ControlError>;

struct Open {
    keyring: Keyring,
    secrets: Secrets,
}

fn slot_info(slot: &SlotInfo) -> KeySlotInfo {
    let kind = match slot.kind {
        SlotKind::KeyFile => KeyKind::KeyFile,
        SlotKind::Recovery => KeyKind::Recovery,
    };
    KeySlotInfo { slot: slot.id, kind, created: slot.created }
}

fn load(path: &Path) -> Result<Keyring, ControlError> {
    let keyring = Keyring::load(&OsDisk, path)?;
    if keyring.is_encrypted() {
        Ok(keyring)
    } else {
        Err(ControlError::failed("the store is not encrypted, so it has no keys"))
    }
}

fn unlock(handler: &Handler) -> Result<Open, ControlError> {
    let store = handler.volumes.store();
    let keyring = load(&store.layout().keyring)?;
    let path = match &handler.key_file {
        Some(path) => path.clone(),
        None => keyfile::default_path(store.id())?,
    };
    let key = keyfile::read(&path)?.key;
    let secrets = keyring.unlock(store.path(), Some(&key))?;
    Ok(Open { keyring, secrets })
}

fn save(handler: &Handler, keyring: &Keyring) -> Result<(), ControlError> {
    Ok(keyring.save(&OsDisk, &handler.volumes.store().layout().keyring)?)
}

/// Carries out a request about keys.
pub(super) fn handle(handler: &Handler, request: Request) -> Outcome {
    let store = handler.volumes.store();
    let now = store.clock().now();
    match request {
        Request::KeyList {} => {
            let keyring = load(&store.layout().keyring)?;
            Ok(Response::Keys(keyring.slots().iter().map(slot_info).collect()))
        }
        Request::KeyExport {} => {
            let mut open = unlock(handler)?;
            let key = open.keyring.export_recovery(&mut open.secrets, now)?;
            // On disk before it is shown: a key that was printed must open the store.
            save(handler, &open.keyring)?;
            store.set_recovery_exported();
            Ok(Response::RecoveryKey { key: Secret(key.to_text().to_string()) })
        }
        Request::KeyAdd { key } => {
            let mut open = unlock(handler)?;
            let key = KeyMaterial::parse(&key.0)?;
            let slot = open.keyring.add_slot(&mut open.secrets, SlotKind::KeyFile, &key, now)?;
            save(handler, &open.keyring)?;
            Ok(Response::KeyAdded { slot })
        }
        Request::KeyRemove { slot, dry_run } => {
            let mut open = unlock(handler)?;
            let found = open.keyring.slots().into_iter().find(|s| s.id == slot);
            let found = found.ok_or_else(|| ControlError::failed(format!("there is no key slot {slot}")))?;
            if !dry_run {
                open.keyring.remove_slot(&mut open.secrets, slot)?;
                save(handler, &open.keyring)?;
            }
            Ok(Response::KeyRemoved(slot_info(&found)))
        }
        Request::KeyRotate {} => {
            if handler.mounts.is_some() {
                let text = "the running server holds the present keys; unmount the store, then rotate";
                return Err(ControlError::in_use(text));
            }
            let mut open = unlock(handler)?;
            let epoch = open.keyring.rotate(&mut open.secrets)?;
            save(handler, &open.keyring)?;
            Ok(Response::KeyRotated { epoch })
        }
        _ => Err(ControlError::usage("no such request")),
    }
}
