//! Callers and the owners of jobs, as identified by credentials.

use fleet_job::event::JobEvent;
use fleet_ops::{hex::hex, http::CREDENTIALS};
use http::HeaderMap;
use sha2::{Digest, Sha256};

/// The sender of a request. All senders without credentials are the same caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// A digest of the credentials, which envelopes and events contain.
    pub owner: Option<String>,
}

impl Caller {
    /// Returns whether the caller may see the job of an event.
    pub(crate) fn may_see(&self, event: &JobEvent) -> bool {
        event.owner.is_none() || event.owner == self.owner
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

    /// Returns the caller that sends requests with these headers.
    pub fn identify(&self, headers: Option<&HeaderMap>) -> Caller {
        let mut hasher = Sha256::new();
        let mut has_credentials = false;

        for part in [b"mcp-fleet owner".as_slice(), &self.key] {
            hash_part(&mut hasher, part);
        }
        for name in &CREDENTIALS {
            for value in headers.into_iter().flat_map(|headers| headers.get_all(name)) {
                has_credentials = true;
                hash_part(&mut hasher, name.as_str().as_bytes());
                hash_part(&mut hasher, value.as_bytes());
            }
        }
        // Hash the key last, too, so that nobody can extend a known digest.
        hash_part(&mut hasher, &self.key);

        Caller { owner: has_credentials.then(|| hex(&hasher.finalize()[..16])) }
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
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn the_same_credentials_are_the_same_owner() {
        let owners = Owners::new(None);
        let of = |pairs: &[_]| owners.identify(Some(&headers(pairs))).owner;
        let mine = of(&[("authorization", "Bearer a")]);
        assert!(mine.as_deref().is_some_and(|name| name.len() == 32 && !name.contains("Bearer")));
        assert_eq!(mine, of(&[("authorization", "Bearer a"), ("accept", "*/*")]));
        for other in [&[("authorization", "Bearer b")][..], &[("x-api-key", "Bearer a")], &[]] {
            assert_ne!(mine, of(other), "{other:?}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(owners.identify(None).owner, None);
        let keyed =
            Owners::new(Some("k")).identify(Some(&headers(&[("authorization", "Bearer a")])));
        assert_ne!(keyed.owner, mine);
    }

    #[test]
    fn ids_depend_on_their_parts_only() {
        assert_eq!(derived_id("key", &["a", "b"]), derived_id("key", &["a", "b"]));
        assert_ne!(derived_id("key", &["a", "b"]), derived_id("key", &["ab", ""]));
        assert_ne!(derived_id("key", &["a"]), derived_id("task", &["a"]));
    }
}
