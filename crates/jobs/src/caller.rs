//! Callers and the owners of jobs.
//!
//! The owner of a job is the id of the principal that submitted it, so a caller with a new key or
//! token of the same subject still sees the job. If the server does not verify callers, because it
//! serves this machine only or everybody, the owner is a digest of the credentials that a proxy or
//! a client sends.

use std::{borrow::Cow, sync::Arc};

use fleet_access::Principal;
use fleet_job::event::JobEvent;
use fleet_ops::{
    hex::hex,
    http::{CREDENTIALS, credential_bytes},
};
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use sha2::{Digest, Sha256};

/// The sender of a request. All senders without credentials are the same caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The caller's name in envelopes and events.
    pub owner: Option<String>,
    /// The name that the same credentials had before servers knew principals: a digest of their
    /// bytes. Its jobs stay visible until they are forgotten.
    pub former: Option<String>,
}

impl Caller {
    /// Returns whether the caller may see the job of an event.
    pub(crate) fn may_see(&self, event: &JobEvent) -> bool {
        event.owner.is_none() || event.owner == self.owner || event.owner == self.former
    }

    /// The same caller under its former name alone; `None` if it has no other one.
    pub(crate) fn as_former(&self) -> Option<Self> {
        let former = self.former.clone()?;
        Some(Self { owner: Some(former), former: None })
    }
}

/// Derives owners from credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Owners {
    key: Vec<u8>,
}

impl std::fmt::Debug for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owners").finish_non_exhaustive()
    }
}

impl Owners {
    /// Derives owners with this key, which all replicas must share. Without a key, anybody who can
    /// read the events topic could guess weak passwords and check them against the owners.
    pub fn new(key: Option<&str>) -> Self {
        Self { key: key.unwrap_or_default().as_bytes().to_vec() }
    }

    /// Returns the caller that sends a request with these parts. The principal among their
    /// extensions is who was authenticated.
    pub fn identify(&self, parts: Option<&Parts>) -> Caller {
        let headers = parts.map(|parts| &parts.headers);
        let former = self.digest(headers, |_, value| Cow::Borrowed(value.as_bytes()));

        let principal = parts.and_then(|parts| parts.extensions.get::<Arc<Principal>>());
        let owner = match principal.filter(|principal| principal.is_verified()) {
            Some(principal) => Some(principal.id().to_string()),
            None => self.digest(headers, credential_bytes),
        };

        let former = former.filter(|former| owner.as_ref() != Some(former));
        Caller { owner, former }
    }

    /// A digest of the credentials in these headers; `None` without credentials.
    fn digest(
        &self,
        headers: Option<&HeaderMap>,
        bytes_of: for<'a> fn(&HeaderName, &'a HeaderValue) -> Cow<'a, [u8]>,
    ) -> Option<String> {
        let mut hasher = Sha256::new();
        let mut has_credentials = false;

        for part in [b"mcp-fleet owner".as_slice(), &self.key] {
            hash_part(&mut hasher, part);
        }
        for name in &CREDENTIALS {
            for value in headers.into_iter().flat_map(|headers| headers.get_all(name)) {
                has_credentials = true;
                hash_part(&mut hasher, name.as_str().as_bytes());
                hash_part(&mut hasher, &bytes_of(name, value));
            }
        }
        // Hash the key last, too, so that nobody can extend a known digest.
        hash_part(&mut hasher, &self.key);

        has_credentials.then(|| hex(&hasher.finalize()[..16]))
    }
}

fn hash_part(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// Derives an id from `parts`. The parts can't be recovered from the id.
pub(crate) fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    hash_part(&mut hasher, prefix.as_bytes());
    for part in parts {
        hash_part(&mut hasher, part.as_bytes());
    }
    format!("{prefix}-{}", hex(&hasher.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use fleet_access::{PrincipalKind, Via};
    use http::Request;

    use super::*;

    fn parts(pairs: &[(&'static str, &'static str)], principal: Option<Principal>) -> Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.headers.extend(
            pairs.iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            }),
        );
        if let Some(principal) = principal {
            parts.extensions.insert(Arc::new(principal));
        }
        parts
    }

    fn alice() -> Principal {
        let via = Via::Key { id: "a".to_owned() };
        Principal::new("keys", "alice", PrincipalKind::Person, via)
    }

    #[test]
    fn the_same_credentials_are_the_same_owner() {
        let owners = Owners::new(None);
        let of = |pairs: &[_]| owners.identify(Some(&parts(pairs, None))).owner;
        let mine = of(&[("authorization", "Bearer a")]);
        assert!(mine.as_deref().is_some_and(|name| name.len() == 32 && !name.contains("Bearer")));
        assert_eq!(mine, of(&[("authorization", "Bearer a"), ("accept", "*/*")]));
        for other in [&[("authorization", "Bearer b")][..], &[("x-api-key", "Bearer a")], &[]] {
            assert_ne!(mine, of(other), "{other:?}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(owners.identify(None), Caller::default());
        let keyed =
            Owners::new(Some("k")).identify(Some(&parts(&[("authorization", "Bearer a")], None)));
        assert_ne!(keyed.owner, mine);
    }

    #[test]
    fn a_verified_principal_is_one_owner_whatever_it_sends() {
        let owners = Owners::new(None);
        let of = |value, principal| {
            owners.identify(Some(&parts(&[("authorization", value)], principal)))
        };
        let id = Some(alice().id().to_string());
        let (before, after) = (of("Bearer a", None), of("Bearer a", Some(alice())));
        assert_eq!(after.owner, id);
        assert_eq!(of("Bearer b", Some(alice())).owner, id);
        assert_eq!(after.former, before.owner, "it still sees what it submitted before");

        // Nobody was verified, so only the credentials tell callers apart.
        for principal in [Principal::local(), Principal::anonymous()] {
            assert_eq!(of("Bearer a", Some(principal)), before);
        }
    }

    #[test]
    fn the_case_of_the_scheme_does_not_matter() {
        let owners = Owners::new(None);
        let of = |value| owners.identify(Some(&parts(&[("authorization", value)], None)));
        let (usual, other) = (of("Bearer a"), of("bearer a"));
        assert_eq!(usual.owner, other.owner);
        assert_eq!(usual.former, None);

        let before = JobEvent {
            owner: other.former.clone(),
            ..JobEvent::new(
                "j".to_owned(),
                fleet_job::event::JobState::Queued,
                fleet_job::time::Timestamp::MIN,
            )
        };
        assert!(before.owner.is_some() && other.may_see(&before) && !usual.may_see(&before));
    }

    #[test]
    fn ids_depend_on_their_parts_only() {
        assert_eq!(derived_id("key", &["a", "b"]), derived_id("key", &["a", "b"]));
        assert_ne!(derived_id("key", &["a", "b"]), derived_id("key", &["ab", ""]));
        assert_ne!(derived_id("key", &["a"]), derived_id("task", &["a"]));
    }
}
