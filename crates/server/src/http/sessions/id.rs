//! The format of session ids, which every replica recognises, and the ids of deleted sessions.
//!
//! A session holds no state and no authority: its requests are checked one by one, like requests
//! without a session. So an id need not be remembered to be served; it only has to be one of ours:
//! 32 random hexadecimal digits and 8 check digits. The check digits are not a signature and need
//! no secret. They distinguish our ids from those of another server, whose client must learn that
//! its session doesn't exist.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use rmcp::transport::common::server_side_http::SessionId;
use sha2::{Digest, Sha256};

const RANDOM: usize = 32;
const CHECK: usize = 8;

/// Creates a new, globally unique id.
pub(super) fn new_id() -> SessionId {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let check = check_of(&random);
    (random + &check).into()
}

/// Whether a replica of this fleet created the id.
pub(super) fn is_ours(id: &str) -> bool {
    id.len() == RANDOM + CHECK
        && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && check_of(&id[..RANDOM]) == id[RANDOM..]
}

fn check_of(random: &str) -> String {
    let digest = Sha256::new_with_prefix("mcp-fleet session").chain_update(random).finalize();
    digest.iter().take(CHECK / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// The ids of the sessions that this replica deleted last, bounded in number. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Deleted {
    limit: usize,
    ids: Arc<Mutex<(VecDeque<SessionId>, HashSet<SessionId>)>>,
}

impl Deleted {
    /// Remembers up to `limit` ids.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ids: Arc::default() }
    }

    /// Records the deletion of a session.
    pub(super) fn insert(&self, id: SessionId) {
        let mut ids = self.ids.lock();
        let (order, set) = &mut *ids;

        if set.insert(id.clone()) {
            order.push_back(id);
        }
        if order.len() > self.limit
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }

    /// Whether the session was deleted recently.
    pub(super) fn contains(&self, id: &SessionId) -> bool {
        self.ids.lock().1.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_ours_are_recognised() {
        let id = new_id();
        assert!(is_ours(&id) && id != new_id());
        // Don't change this: replicas of different versions recognise each other's ids.
        assert!(
            is_ours("0000000000000000000000000000000054dd84e9"),
            "{}",
            check_of(&"0".repeat(32))
        );
        let other = if id.starts_with('0') { "1" } else { "0" };
        let upper = id.to_uppercase();
        let uuid = uuid::Uuid::new_v4().to_string();
        for foreign in
            ["", "x", &uuid, &id[..39], &format!("{other}{}", &id[1..]), &format!("{id}0"), &upper]
        {
            assert!(!is_ours(foreign) || foreign == &*id, "{foreign}");
        }
        assert!(!is_ours(&"ü".repeat(20)));
    }

    #[test]
    fn the_oldest_deletions_are_forgotten() {
        let deleted = Deleted::new(2);
        let ids = [new_id(), new_id(), new_id()];
        for id in [&ids[0], &ids[1], &ids[1], &ids[2]] {
            deleted.insert(id.clone());
        }
        assert_eq!(ids.map(|id| deleted.contains(&id)), [false, true, true]);
    }
}
