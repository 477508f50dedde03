//! How a mount behaves: the store's settings and the options it was asked for with.

use std::path::Path;
use std::sync::Arc;

use fuser::SessionACL;

use super::protocol::MountRequest;
use super::registry::{MOUNT_ATTRIBUTE, MountAttribute};
use crate::mount::{Settings, nodeid::Node};
use crate::volume::{AccessTimes, Volumes};

/// The settings of the mount that was asked for.
pub(super) fn settings(volumes: &Volumes, owner: u32, socket: &Path, request: &MountRequest) -> Settings {
    let store = volumes.store();
    let config = store.config();
    let options = &request.options;
    let attribute = MountAttribute {
        store: store.path().to_owned(),
        node: store.node().to_string(),
        volume: request.volume.clone(),
        mountpoint: request.mountpoint.clone(),
        socket: socket.to_owned(),
        ino: 0,
    };
    let access_times = options.access_times();
    Settings {
        acl: match (options.allow_other, options.allow_root) {
            (true, _) => SessionACL::All,
            (_, true) => SessionACL::RootAndOwner,
            _ => SessionACL::Owner,
        },
        threads: config.fuse_workers(),
        snapdir_visible: options.snapdir_visible,
        snapdir_name: options.snapdir_name.clone(),
        owner_uid: owner,
        readahead_bytes: config.readahead_bytes,
        resend: options.resend,
        access_times,
        dir_access_times: if options.nodiratime { AccessTimes::Never } else { access_times },
        attribute: Arc::new(move |name, node| {
            if name != MOUNT_ATTRIBUTE.as_bytes() {
                return None;
            }
            let ino = match node {
                Node::Live(ino) | Node::Second(ino) | Node::Snapshots(ino) => ino.0,
                Node::Past { ino, .. } => ino.0,
            };
            serde_json::to_vec(&MountAttribute { ino, ..attribute.clone() }).ok()
        }),
    }
}
