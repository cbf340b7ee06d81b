//! The format of session ids, which every replica recognises, and the ids of deleted sessions.
//!
//! A session gives no rights: its requests are authenticated one by one, like requests without a
//! session. But it has streams that can be read and calls that can be cancelled, so only the
//! principal that created it may use it, in the view in which it was created. An id need not be
//! remembered for that: it has 32 random hexadecimal digits and 8 check digits, which depend on the
//! random ones, on the principal and on the view. To every other principal, and at the address of
//! every other view, the session doesn't exist, on any replica.
//!
//! The check digits are not a signature and need no secret, because a request's principal is
//! verified, whatever id it names. They also distinguish our ids from those of another server,
//! whose client must learn that its session doesn't exist.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use fleet_access::{Asker, PrincipalId};
use parking_lot::Mutex;
use rmcp::transport::common::server_side_http::SessionId;
use sha2::{Digest, Sha256};

use crate::access;

const RANDOM: usize = 32;
const CHECK: usize = 8;

/// Whose a session is, and where it can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SessionScope {
    /// The principal; `None` if nobody was identified.
    owner: Option<PrincipalId>,
    view: Option<String>,
}

impl SessionScope {
    /// The scope of the sessions of somebody who asks.
    pub(super) fn of(asker: &Asker) -> Self {
        Self { owner: access::owner(asker), view: asker.view_name().map(str::to_owned) }
    }
}

/// Creates a new, globally unique id of a session.
pub(super) fn new_id(scope: &SessionScope) -> SessionId {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let check = check_of(&random, scope);
    (random + &check).into()
}

/// Whether a replica of this fleet created the id for this scope.
pub(super) fn is_ours(id: &str, scope: &SessionScope) -> bool {
    id.len() == RANDOM + CHECK
        && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && check_of(&id[..RANDOM], scope) == id[RANDOM..]
}

fn check_of(random: &str, scope: &SessionScope) -> String {
    let mut hasher = Sha256::new_with_prefix("mcp-fleet session").chain_update(random);
    if let Some(owner) = scope.owner {
        hasher.update(owner.as_bytes());
    }
    if let Some(view) = &scope.view {
        // No id of a principal ends so.
        hasher.update(format!("/{view}"));
    }
    hasher.finalize().iter().take(CHECK / 2).map(|byte| format!("{byte:02x}")).collect()
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
        let nobody = &SessionScope::default();
        let id = new_id(nobody);
        assert!(is_ours(&id, nobody) && id != new_id(nobody));
        // Don't change this: replicas of different versions recognise each other's ids.
        assert!(
            is_ours("0000000000000000000000000000000054dd84e9", nobody),
            "{}",
            check_of(&"0".repeat(32), nobody)
        );
        let other = if id.starts_with('0') { "1" } else { "0" };
        let upper = id.to_uppercase();
        let uuid = uuid::Uuid::new_v4().to_string();
        for foreign in
            ["", "x", &uuid, &id[..39], &format!("{other}{}", &id[1..]), &format!("{id}0"), &upper]
        {
            assert!(!is_ours(foreign, nobody) || foreign == &*id, "{foreign}");
        }
        assert!(!is_ours(&"ü".repeat(20), nobody));
    }

    #[test]
    fn an_id_belongs_to_one_principal_in_one_view() {
        let [alice, bob] =
            ["alice", "bob"].map(|subject| Some(PrincipalId::of("https://idp", subject)));
        let scopes: Vec<_> = [None, alice, bob]
            .into_iter()
            .flat_map(|owner| [None, Some("a"), Some("b")].map(|view| (owner, view)))
            .map(|(owner, view)| SessionScope { owner, view: view.map(str::to_owned) })
            .collect();
        for scope in &scopes {
            let id = new_id(scope);
            for other in &scopes {
                assert_eq!(is_ours(&id, other), other == scope, "{scope:?} {other:?}");
            }
        }
    }

    #[test]
    fn the_oldest_deletions_are_forgotten() {
        let deleted = Deleted::new(2);
        let ids = [(); 3].map(|()| new_id(&SessionScope::default()));
        for id in [&ids[0], &ids[1], &ids[1], &ids[2]] {
            deleted.insert(id.clone());
        }
        assert_eq!(ids.map(|id| deleted.contains(&id)), [false, true, true]);
    }
}
