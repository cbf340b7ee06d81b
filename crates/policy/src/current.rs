//! The policy that holds now.
//!
//! The policy file may change while the server runs. Whoever decides something asks here at that
//! moment and keeps what it got for this one decision, so that a change is seen everywhere at once
//! and no decision is made by two policies.

use std::sync::Arc;

use tokio::sync::watch;

use super::Policy;

/// The policy that holds now. Clones share it.
#[derive(Debug, Clone)]
pub struct CurrentPolicy {
    sender: Arc<watch::Sender<Arc<Policy>>>,
}

impl CurrentPolicy {
    /// A holder of this policy.
    pub fn new(policy: Policy) -> Self {
        Self { sender: Arc::new(watch::Sender::new(Arc::new(policy))) }
    }

    /// The policy as it is now.
    pub fn get(&self) -> Arc<Policy> {
        self.sender.borrow().clone()
    }

    /// From now on this policy holds.
    pub fn replace(&self, policy: Policy) {
        self.sender.send_replace(Arc::new(policy));
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Policy>> {
        self.sender.subscribe()
    }
}
