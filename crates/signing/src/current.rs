//! The keys in force.

use std::sync::{Arc, PoisonError, RwLock};

use crate::keys::SigningKeys;

/// The keys that are in force now; none if jobs are not signed. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct CurrentKeys(Arc<RwLock<Option<Arc<SigningKeys>>>>);

impl CurrentKeys {
    /// Keys that are in force until they are replaced.
    pub fn new(keys: Option<SigningKeys>) -> Self {
        Self(Arc::new(RwLock::new(keys.map(Arc::new))))
    }

    /// The keys that are in force.
    pub fn get(&self) -> Option<Arc<SigningKeys>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other keys in force.
    pub fn replace(&self, keys: Option<SigningKeys>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys.map(Arc::new);
    }
}
