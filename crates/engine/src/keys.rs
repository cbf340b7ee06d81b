//! Who waits behind whom: one queue per ordering key.

use std::collections::{BTreeSet, HashMap};

use crate::types::{JobSpec, Ordering, Partition};

/// What jobs are ordered by: a key within its partition. Kafka keeps a key in one partition, so that is the whole order.
type Lane = (Partition, u64);

/// The queues behind busy keys. A key without jobs takes no memory.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The first one may run. Offsets come in ascending order, so that is the order in which they came.
    lanes: HashMap<Lane, BTreeSet<i64>>,
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
        queue.insert(offset);
        queue.first() == Some(&offset)
    }

    /// Whether `offset` is at the head of its lane.
    pub(crate) fn is_head(&self, lane: Lane, offset: i64) -> bool {
        self.lanes.get(&lane).and_then(BTreeSet::first) == Some(&offset)
    }

    /// Takes a settled `offset` out of its lane; the new head, when that changed.
    pub(crate) fn leave(&mut self, lane: Lane, offset: i64) -> Option<i64> {
        let queue = self.lanes.get_mut(&lane)?;
        let was_head = queue.first() == Some(&offset);
        queue.remove(&offset);
        // Jobs that expire, are cancelled or deferred while they wait leave from the middle.
        if !was_head {
            return None;
        }
        let head = queue.first().copied();
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
