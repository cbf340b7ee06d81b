//! The order of jobs with the same key: one queue per key.

use std::collections::{BTreeSet, hash_map::Entry};

use fleet_group::Partition;

use crate::{
    hash::{FastMap, Seed},
    types::Ordering,
};

/// What records are ordered by: a key within its partition. Kafka keeps a key in one partition, so
/// no more is needed.
pub(crate) type Lane = (Partition, u64);

/// The queues of all keys with open records. Other keys take no memory.
#[derive(Debug)]
pub(crate) struct Keys {
    lanes: FastMap<Lane, Queue>,
}

/// The records of one key. Most keys have one, which needs no set.
#[derive(Debug)]
struct Queue {
    /// The record whose turn it is.
    head: i64,
    behind: BTreeSet<i64>,
}

/// The lane of a record with this key under `ordering`; `None` if nothing orders it.
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

    /// Puts `offset` at the end of its lane.
    pub(crate) fn join(&mut self, lane: Lane, offset: i64) {
        match self.lanes.entry(lane) {
            Entry::Occupied(mut queue) => {
                queue.get_mut().behind.insert(offset);
            }
            Entry::Vacant(place) => {
                place.insert(Queue { head: offset, behind: BTreeSet::new() });
            }
        }
    }

    /// Whether `offset` is at the head of its lane.
    pub(crate) fn is_head(&self, lane: Lane, offset: i64) -> bool {
        self.lanes.get(&lane).is_some_and(|queue| queue.head == offset)
    }

    /// The record at the head of a lane.
    pub(crate) fn head(&self, lane: Lane) -> Option<i64> {
        self.lanes.get(&lane).map(|queue| queue.head)
    }

    /// Takes a settled `offset` out of its lane. Returns the new head if that has changed.
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

    /// Forgets a lane with all records in it.
    pub(crate) fn forget(&mut self, lane: Lane) {
        self.lanes.remove(&lane);
    }
}
