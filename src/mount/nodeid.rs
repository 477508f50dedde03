//! Node ids: `2 bits kind ‖ 22 bits view ‖ 40 bits inode`. They survive the server: nothing has to be
//! remembered to understand one.

use crate::types::Ino;
use crate::types::limits::{INO_MAX, SNAPSHOT_VIEW_MAX};

const INO_BITS: u32 = 40;
const VIEW_BITS: u32 = 22;
/// View numbers, in all.
pub const VIEWS: u32 = 1 << VIEW_BITS;

/// What a node id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// An inode of the live tree.
    Live(Ino),
    /// The same inode under its second node id (kept for files that change while they are read from
    /// somewhere else).
    Second(Ino),
    /// An inode as a view shows it.
    Past {
        /// The view's number: a snapshot's, or above [`SNAPSHOT_VIEW_MAX`] that of another moment.
        view: u32,
        /// The inode.
        ino: Ino,
    },
    /// The snapshot directory within a live directory.
    Snapshots(Ino),
}

impl Node {
    /// The node that an id stands for.
    pub fn from_id(id: u64) -> Node {
        let ino = Ino(id & INO_MAX);
        let view = (id >> INO_BITS) as u32 & (VIEWS - 1);
        match id >> (INO_BITS + VIEW_BITS) {
            0 => Node::Live(ino),
            1 => Node::Second(ino),
            2 => Node::Past { view, ino },
            _ => Node::Snapshots(ino),
        }
    }

    /// The id of the node.
    pub fn id(self) -> u64 {
        let (kind, view, ino) = match self {
            Node::Live(ino) => (0, 0, ino),
            Node::Second(ino) => (1, 0, ino),
            Node::Past { view, ino } => (2, view, ino),
            Node::Snapshots(ino) => (3, 0, ino),
        };
        (kind << (INO_BITS + VIEW_BITS)) | (u64::from(view & (VIEWS - 1)) << INO_BITS) | (ino.0 & INO_MAX)
    }

    /// The `st_ino` that programs see: of a live inode its number, whichever node id it has.
    pub fn st_ino(self) -> u64 {
        match self {
            Node::Live(ino) | Node::Second(ino) => ino.0,
            other => other.id(),
        }
    }

    /// Whether the view is a snapshot's.
    pub fn is_snapshot_view(view: u32) -> bool {
        view <= SNAPSHOT_VIEW_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_means_one_node_and_back(id: u64) {
            let node = Node::from_id(id);
            prop_assert_eq!(Node::from_id(node.id()), node);
        }

        #[test]
        fn past_inodes_differ_from_live_ones(view in 1u32..VIEWS, ino in 1u64..=INO_MAX) {
            let node = Node::Past { view, ino: Ino(ino) };
            prop_assert_eq!(Node::from_id(node.id()), node);
            prop_assert!(node.st_ino() > INO_MAX);
        }
    }

    #[test]
    fn the_root_of_the_live_tree_has_the_id_that_fuse_demands() {
        assert_eq!(Node::Live(Ino::ROOT).id(), 1);
    }
}
