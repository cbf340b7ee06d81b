//! Tokens that were verified, so that their signature need not be checked on every request.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use fleet_job::time::Timestamp;

use crate::principal::Principal;

/// How many bytes of tokens are remembered at most. A principal takes a few times the memory of its
/// token.
const MAX_BYTES: usize = 16 << 20;

/// A bounded memory of verified tokens. Only tokens that were verified get in, so nobody without
/// one can push others out.
///
/// There are two halves. New entries go to the young half; when it is full it becomes the old half,
/// and what was in the old one is forgotten. An entry that is used moves back to the young half.
#[derive(Debug)]
pub(super) struct TokenCache {
    half: usize,
    entries: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<[u8; 32], CachedToken>,
    /// The bytes of the young half's tokens.
    young_bytes: usize,
    old: HashMap<[u8; 32], CachedToken>,
}

/// A verified token.
#[derive(Debug, Clone)]
pub(super) struct CachedToken {
    pub(super) principal: Arc<Principal>,
    /// When the token stops being valid.
    pub(super) until: Timestamp,
    /// The index of its issuer.
    pub(super) issuer: usize,
    /// The generation of the issuer's keys that it was verified with.
    pub(super) generation: u64,
    /// How long the token is.
    pub(super) bytes: usize,
}

impl TokenCache {
    /// A memory of at most `capacity` tokens.
    pub(super) fn new(capacity: usize) -> Self {
        Self { half: (capacity / 2).max(1), entries: Mutex::default() }
    }

    /// Returns the principal of a token that was verified, and that `is_current` still accepts.
    pub(super) fn find(
        &self,
        digest: &[u8; 32],
        is_current: impl Fn(&CachedToken) -> bool,
    ) -> Option<Arc<Principal>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);

        if let Some(cached) = entries.young.get(digest) {
            if is_current(cached) {
                return Some(Arc::clone(&cached.principal));
            }
            entries.young.remove(digest);
            return None;
        }

        let cached = entries.old.remove(digest).filter(is_current)?;
        let principal = Arc::clone(&cached.principal);
        entries.insert(*digest, cached, self.half);
        Some(principal)
    }

    /// Remembers a token.
    pub(super) fn insert(&self, digest: [u8; 32], token: CachedToken) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(digest, token, self.half);
    }

    /// How many tokens are remembered.
    pub(super) fn len(&self) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.young.len() + entries.old.len()
    }
}

impl Halves {
    fn insert(&mut self, digest: [u8; 32], token: CachedToken, half: usize) {
        if self.young.len() >= half || self.young_bytes >= MAX_BYTES / 2 {
            self.old = mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += token.bytes;
        self.young.insert(digest, token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(until: i64) -> CachedToken {
        CachedToken {
            principal: Arc::new(Principal::local()),
            until: Timestamp::from_millis_clamped(until),
            issuer: 0,
            generation: 0,
            bytes: 1000,
        }
    }

    fn digest(number: u32) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        digest
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let cache = TokenCache::new(100);
        for number in 0..10_000 {
            cache.insert(digest(number), token(1));
            assert!(cache.find(&digest(0), |_| true).is_some(), "forgot a token in use");
            assert!(cache.len() <= 100);
        }
        assert!(cache.find(&digest(9_999), |_| true).is_some());
        assert!(cache.find(&digest(1), |_| true).is_none());
    }

    #[test]
    fn large_tokens_are_fewer() {
        let cache = TokenCache::new(100_000);
        for number in 0..10_000 {
            cache.insert(digest(number), CachedToken { bytes: 16_000, ..token(1) });
        }
        assert!(cache.len() <= MAX_BYTES / 16_000 + 2, "{}", cache.len());
    }

    #[test]
    fn what_is_not_current_is_forgotten() {
        let cache = TokenCache::new(4);
        cache.insert(digest(0), token(1));
        assert!(cache.find(&digest(0), |_| false).is_none());
        assert_eq!(cache.len(), 0);
    }
}
