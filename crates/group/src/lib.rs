//! What a member of a consumer group knows and writes: partitions, commits and their metadata, the
//! log that a commit is about, and whether the member is still in contact with its group.
//!
//! Pure: no IO, no clock. The engine decides with these types, and the shell on librdkafka carries
//! the decisions out.

use std::hash::{Hash, Hasher};

mod contact;
pub mod log;
mod progress;

pub use contact::{Contact, Patience, Sample};
pub use progress::{
    DENSE_WINDOW, MAX_ENCODED_BYTES, MAX_ESCAPES, MAX_RAW_BYTES, Progress, ProgressError,
};

/// One partition of one topic. The shell that reads the topics keeps the table of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    /// The shell's index of the topic.
    pub topic: u16,
    /// Kafka's number of the partition.
    pub number: i32,
}

impl Hash for Partition {
    /// Hashes the partition as one number, because every event looks partitions up.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.topic) << 32 | u64::from(self.number.cast_unsigned()));
    }
}

/// An offset to commit, with what is known beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalCommit {
    /// The partition to commit.
    pub partition: Partition,
    /// The generation of the assignment that the commit belongs to.
    pub generation: u64,
    /// The next offset to read.
    pub offset: i64,
    /// The log's name and the [`Progress`] beyond that offset, encoded.
    pub metadata: String,
}
