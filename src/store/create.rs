//! `init`: an empty store.

use std::path::{Path, PathBuf};

use super::config::Config;
use super::keys::{KeyMaterial, Keyring, keyfile};
use super::layout::Layout;
use crate::types::error::IoContext;
use crate::types::{Clock, Disk, Error, NodeUuid, OsDisk, Result, StoreUuid, SystemClock};

/// How to make a store.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Whether everything in it is sealed.
    pub encryption: bool,
    /// Where its key file goes, or lies already; by default where [`keyfile::default_path`] says.
    pub key_file: Option<PathBuf>,
    /// Where a recovery key is written as well.
    pub recovery_key_file: Option<PathBuf>,
}

/// A store just made.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its id.
    pub store: StoreUuid,
    /// This copy's id.
    pub node: NodeUuid,
    /// Its key file, if it is encrypted.
    pub key_file: Option<PathBuf>,
}

fn uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::Invalid(format!("no randomness from the kernel: {e}")))?;
    Ok(bytes)
}

/// Makes an empty store in `root`, which must be missing or an empty directory. The volume `main` is made
/// when it is first opened for writing.
///
/// # Errors
/// [`Error::Invalid`] when something is there already; [`Error::Io`], [`Error::NoSpace`].
pub fn create(root: &Path, options: &CreateOptions) -> Result<Created> {
    let disk = OsDisk;
    let root = std::path::absolute(root).at("finding", root)?;
    let layout = Layout::new(&root);
    prepare_directory(&disk, &layout)?;
    let (store, node) = (StoreUuid(uuid()?), NodeUuid(uuid()?));
    let key_file = write_keys(&disk, &layout, store, options)?;
    Config::default().save(&disk, &layout.config)?;
    layout.write_node(&disk, node)?;
    for dir in [&layout.journal, &layout.packs, &layout.checkpoints] {
        disk.create_dir(dir).at("creating", dir)?;
    }
    disk.sync_dir(&root).at("syncing", &root)?;
    // Last: only now is it a store.
    layout.write_identity(&disk, store)?;
    if let Some(parent) = root.parent() {
        disk.sync_dir(parent).at("syncing", parent)?;
    }
    Ok(Created { store, node, key_file })
}

fn prepare_directory(disk: &dyn Disk, layout: &Layout) -> Result<()> {
    let root = &layout.root;
    if layout.identity.exists() {
        return Err(Error::Invalid(format!("{} is a store already", root.display())));
    }
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).at("creating", parent)?;
    }
    disk.create_dir(root).at("creating", root)?;
    let names = disk.list(root).at("listing", root)?;
    if names.iter().any(|n| n != "lost+found") {
        return Err(Error::Invalid(format!(
            "{} is not empty; give a directory that is empty or does not exist",
            root.display()
        )));
    }
    Ok(())
}

/// Writes keyring and key file; returns where the key file is.
fn write_keys(
    disk: &dyn Disk,
    layout: &Layout,
    store: StoreUuid,
    options: &CreateOptions,
) -> Result<Option<PathBuf>> {
    if !options.encryption {
        Keyring::create_plain(store)?.save(disk, &layout.keyring)?;
        return Ok(None);
    }
    let now = SystemClock.now();
    let path = match &options.key_file {
        Some(path) => std::path::absolute(path).at("finding", path)?,
        None => keyfile::default_path(store)?,
    };
    if path.starts_with(&layout.root) {
        return Err(Error::Invalid(format!(
            "the key file {} would lie inside the store it opens; put it elsewhere",
            path.display()
        )));
    }
    let (mut keyring, key) = if path.exists() {
        let key = keyfile::read(&path)?.key;
        (Keyring::create_encrypted_with(store, &key, now)?, key)
    } else {
        let (keyring, key) = Keyring::create_encrypted(store, now)?;
        keyfile::write(&path, &key)?;
        (keyring, key)
    };
    if let Some(recovery) = &options.recovery_key_file {
        let mut secrets = keyring.unlock(&layout.root, Some(&key))?;
        let recovery_key: KeyMaterial = keyring.export_recovery(&mut secrets, now)?;
        keyfile::write(recovery, &recovery_key)?;
    }
    keyring.save(disk, &layout.keyring)?;
    Ok(Some(path))
}
