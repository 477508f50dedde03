//! Which kernel request a record answers.

/// Which kernel request a record answers, so that a request sent again is not applied again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The FUSE connection (0: not from a mount).
    pub connection: u64,
    /// The kernel's request number, without the resend bit.
    pub unique: u64,
}
