//! Which hosted servers have their tools pinned, and what the policy file itself pins.

use std::collections::BTreeMap;

use fleet_job::glob::Glob;
use fleet_pins::{Digest, PinMode};

/// The pins of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PinPolicy {
    /// What to do with changed tools of a server that no rule covers.
    pub(super) mode: PinMode,
    /// The same for some servers; the first that matches counts.
    pub(super) servers: Vec<(Glob, PinMode)>,
    /// The digests that the file names, by server and tool.
    pub(super) digests: BTreeMap<(String, String), Vec<Digest>>,
}

impl PinPolicy {
    /// Returns whether the tools of any server are pinned.
    pub fn is_on(&self) -> bool {
        let modes = self.servers.iter().map(|(_, mode)| *mode);
        modes.chain([self.mode]).any(|mode| mode != PinMode::Off)
    }

    /// What to do with changed tools of a server.
    pub fn mode_of(&self, server: &str) -> PinMode {
        let own = self.servers.iter().find(|(name, _)| name.matches(server));
        own.map_or(self.mode, |(_, mode)| *mode)
    }

    /// The servers and tools that the file names digests for.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.digests.keys().map(|(server, tool)| (server.as_str(), tool.as_str()))
    }

    /// Returns a tool whose digests the file names in vain, because its server's pins are off.
    pub(super) fn without_effect(&self) -> Option<(&str, &str)> {
        self.named().find(|(server, _)| self.mode_of(server) == PinMode::Off)
    }

    /// The digests that the file names for a tool. If there are any, only they are accepted.
    pub fn digests_of(&self, server: &str, tool: &str) -> &[Digest] {
        if self.digests.is_empty() {
            return &[];
        }
        let key = (server.to_owned(), tool.to_owned());
        self.digests.get(&key).map_or(&[], Vec::as_slice)
    }
}
