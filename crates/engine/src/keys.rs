//! Who waits behind whom: one queue per ordering key.

use std::collections::{HashMap, VecDeque};

use crate::types::{JobSpec, Ordering, Partition};

/// What jobs are ordered by: a key within its partition. Kafka keeps a key in one partition, so that is the whole order.
type Lane = (Partition, u64);

/// The queues behind busy keys. A key without jobs takes no memory.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// Head first; the head is the one that may run.
    lanes: HashMap<Lane, VecDeque<i64>>,
}

/// The lane of a job under `ordering`; `None` when nothing orders it.
pub(crate) fn lane(ordering: Ordering, partition: Partition, spec: &JobSpec) -> Option<Lane> {
    match ordering {
        Ordering::Key => spec.key.map(|key| (partition, key)),
        Ordering::Partition => Some((partition, 0)),
        Ordering::Unordered => None,
    }
}

impl Keys {
    /// Puts `offset` at the end of its lane; `true` when it is at the head and need not wait.
    pub(crate) fn join(&mut self, lane: Lane, offset: i64) -> bool {
        let queue = self.lanes.entry(lane).or_default();
        queue.push_back(offset);
        queue.len() == 1
    }

    /// Whether `offset` is at the head of its lane.
    pub(crate) fn is_head(&self, lane: Lane, offset: i64) -> bool {
        self.lanes.get(&lane).and_then(VecDeque::front) == Some(&offset)
    }

    /// Takes a settled `offset` out of its lane; the new head, when that changed.
    pub(crate) fn leave(&mut self, lane: Lane, offset: i64) -> Option<i64> {
        let queue = self.lanes.get_mut(&lane)?;
        if queue.front() != Some(&offset) {
            // Only a job that expires while it waits leaves from the middle.
            queue.retain(|at| *at != offset);
            return None;
        }
        queue.pop_front();
        let head = queue.front().copied();
        if head.is_none() {
            self.lanes.remove(&lane);
        }
        head
    }

    /// Forgets all lanes of `partition`.
    pub(crate) fn drop_partition(&mut self, partition: Partition) {
        self.lanes.retain(|(at, _), _| *at != partition);
    }
}
