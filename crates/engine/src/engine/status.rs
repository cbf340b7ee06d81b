//! What the engine holds, for metrics and people.

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{breaker::BreakerState, partition::PartitionState, slot::Slot, types::Need};

/// What the engine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Attempts under way.
    pub in_flight: usize,
    /// Records in memory that are not settled.
    pub buffered: usize,
    /// Jobs among them that wait for their time: `notBefore`, or the next attempt.
    pub parked: usize,
    /// The bytes that the records in memory hold.
    pub buffered_bytes: usize,
    /// Whether the server is available.
    pub breaker: BreakerState,
    /// What is away while the server answers.
    pub holds: Vec<HoldStatus>,
    /// Assigned partitions, in order.
    pub partitions: Vec<PartitionStatus>,
}

/// Something that is away while the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldStatus {
    /// What is away.
    pub need: Need,
    /// Since when.
    pub since: Timestamp,
    /// The number of jobs that wait for it and for nothing else.
    pub waiting: usize,
}

/// An assigned partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: Partition,
    /// The last offset whose commit the broker has accepted.
    pub committed: Option<i64>,
    /// The offset that may be committed.
    pub frontier: Option<i64>,
    /// The number of records that are not settled.
    pub open: usize,
    /// The number of jobs that wait for something that is away; jobs behind them in their keys do
    /// not count.
    pub held: usize,
    /// Whether fetching is paused.
    pub paused: bool,
    /// Whether it stays paused until something that is away comes back: the jobs that wait for it,
    /// and those behind them in their keys, fill the partition's share of memory.
    pub is_stalled: bool,
}

impl Engine {
    /// What the engine holds. Looks through all jobs in memory.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut partitions: Vec<_> = self
            .partitions
            .iter()
            .map(|(partition, state)| status_of_partition(partition, state))
            .collect();
        partitions.sort_unstable_by_key(|status| status.partition);

        let slots = self.partitions.iter().flat_map(|(_, state)| state.open().slots());
        let parked = slots.filter(|slot| slot.is_parked()).count();

        let holds = self.holds.all();
        let holds = holds.map(|(need, since, waiting)| HoldStatus { need, since, waiting });

        let sums = self.partitions.sums();
        Status {
            in_flight: sums.running,
            buffered: sums.open,
            parked,
            buffered_bytes: sums.bytes,
            breaker: self.breaker.state(),
            holds: holds.collect(),
            partitions,
        }
    }
}

fn status_of_partition(partition: Partition, state: &PartitionState) -> PartitionStatus {
    PartitionStatus {
        partition,
        committed: state.committed,
        frontier: state.frontier(),
        open: state.sums().open,
        held: state.open().slots().filter(|slot: &&Slot| slot.is_held()).count(),
        paused: state.paused,
        is_stalled: state.is_stalled,
    }
}
