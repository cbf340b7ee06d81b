//! Who waits behind whom: one queue per ordering key.

use std::collections::{BTreeSet, hash_map::Entry};

use fleet_group::Partition;

use crate::{
    hash::{FastMap, Seed},
    types::Ordering,
};

/// What jobs are ordered by: a key within its partition. Kafka keeps a key in one partition, so
/// that is the whole order.
pub(crate) type Lane = (Partition, u64);

/// The queues behind busy keys. A key without jobs takes no memory.
#[derive(Debug)]
pub(crate) struct Keys {
    lanes: FastMap<Lane, Queue>,
}

/// The jobs of one key. Most keys have one, which needs no set.
#[derive(Debug)]
struct Queue {
    /// This one may run. Offsets come in ascending order, so the first is the one that came first.
    head: i64,
    behind: BTreeSet<i64>,
}

/// The lane of a record with this key under `ordering`; `None` when nothing orders it.
pub(crate) fn lane(ordering: Ordering, partition: Partition, key: Option<u64>) -> Option<Lane> {
    match ordering {
        Ordering::Key => key.map(|key| (partition, key)),
        Ordering::Partition => Some((partition, 0)),
        Ordering::Unordered => None,
    }
}

impl Keys {
    pub(crate) fn new(seed: u64) -> Self {
        Self { lanes: FastMap::with_hasher(Seed::new(seed)) }
    }

    /// Puts `offset` at the end of its lane; `true` when it is at the head and need not wait.
    pub(crate) fn join(&mut self, lane: Lane, offset: i64) -> bool {
        match self.lanes.entry(lane) {
            Entry::Occupied(mut queue) => {
                queue.get_mut().behind.insert(offset);
                false
            }
            Entry::Vacant(place) => {
                place.insert(Queue { head: offset, behind: BTreeSet::new() });
                true
            }
        }
    }

    /// Whether `offset` is at the head of its lane.
    pub(crate) fn is_head(&self, lane: Lane, offset: i64) -> bool {
        self.lanes.get(&lane).is_some_and(|queue| queue.head == offset)
    }

    /// The job at the head of a lane.
    pub(crate) fn head(&self, lane: Lane) -> Option<i64> {
        self.lanes.get(&lane).map(|queue| queue.head)
    }

    /// Takes a settled `offset` out of its lane; the new head, when that changed.
    pub(crate) fn leave(&mut self, lane: Lane, offset: i64) -> Option<i64> {
        let Entry::Occupied(mut entry) = self.lanes.entry(lane) else { return None };
        let queue = entry.get_mut();
        // Jobs that are cancelled or deferred while they wait leave from the middle.
        if queue.head != offset {
            queue.behind.remove(&offset);
            return None;
        }
        match queue.behind.pop_first() {
            Some(head) => {
                queue.head = head;
                Some(head)
            }
            None => {
                entry.remove();
                None
            }
        }
    }

    /// Forgets a lane, whoever waits in it.
    pub(crate) fn forget(&mut self, lane: Lane) {
        self.lanes.remove(&lane);
    }
}
