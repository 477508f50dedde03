//! What a mount is told when it starts.

use std::sync::Arc;

use fuser::SessionACL;

use super::nodeid::Node;
use crate::volume::AccessTimes;

/// Answers extended attributes that exist on every node and are in no volume.
pub type Attribute = Arc<dyn Fn(&[u8], Node) -> Option<Vec<u8>> + Send + Sync>;

/// How a volume is mounted.
#[derive(Clone)]
pub struct Settings {
    /// Whose requests are answered.
    pub acl: SessionACL,
    /// Threads that read requests.
    pub threads: usize,
    /// Whether the snapshot directory shows in the root's listing.
    pub snapdir_visible: bool,
    /// The snapshot directory's name.
    pub snapdir_name: String,
    /// The store's owner, who may delete snapshots.
    pub owner_uid: u32,
    /// Bytes that the kernel reads ahead.
    pub readahead_bytes: u64,
    /// Whether the kernel, if it can, sends requests again that a killed server had read.
    pub resend: bool,
    /// When reading moves an access time.
    pub access_times: AccessTimes,
    /// The same of directories.
    pub dir_access_times: AccessTimes,
    /// Attributes that every node has.
    pub attribute: Attribute,
}
