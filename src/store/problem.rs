//! Something about a store that does not hold.

/// Which part of a store a problem is in, and so what mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The journal.
    Journal,
    /// Rows of the index that cannot be read or are not what was written.
    Index,
    /// Counters and lists of the index that follow from its other rows.
    Derived,
    /// Bytes of an index file, while all rows can be read.
    Table,
    /// Bytes of a pack.
    Pack,
    /// A checkpoint.
    Checkpoint,
    /// Keyring, settings, identity.
    Small,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub part: Part,
    /// One sentence.
    pub text: String,
}

impl Problem {
    /// A problem in that part.
    pub fn new(part: Part, text: impl ToString) -> Problem {
        Problem { part, text: text.to_string() }
    }
}
