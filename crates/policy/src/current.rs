//! The current policy.
//!
//! The policy file may change while the server runs. Code that makes a decision takes the current
//! policy once and uses it for that whole decision. A change therefore takes effect everywhere at
//! once, and no decision mixes two policies.

use std::sync::Arc;

use tokio::sync::watch;

use super::Policy;

/// The current policy. Clones share it.
#[derive(Debug, Clone)]
pub struct CurrentPolicy {
    sender: Arc<watch::Sender<Arc<Policy>>>,
}

impl CurrentPolicy {
    /// Creates a holder of `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { sender: Arc::new(watch::Sender::new(Arc::new(policy))) }
    }

    /// Returns the current policy.
    pub fn get(&self) -> Arc<Policy> {
        self.sender.borrow().clone()
    }

    /// Replaces the policy with immediate effect.
    pub fn replace(&self, policy: Policy) {
        self.sender.send_replace(Arc::new(policy));
    }

    /// Returns a receiver that is notified of every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Policy>> {
        self.sender.subscribe()
    }
}
