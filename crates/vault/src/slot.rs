//! The place of a value in a store.

use fleet_access::PrincipalId;

/// What a value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// A credential.
    Credential,
    /// A flow that has begun.
    Authorization,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Authorization => "authorization",
        }
    }
}

/// The place of a value: there is one for each purpose, principal and server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// What the value is for.
    pub purpose: Purpose,
    /// Whose it is.
    pub principal: PrincipalId,
    /// The hosted server that it is for.
    pub server: String,
}

impl Slot {
    /// Returns what a sealed value is bound to. Different slots differ in it, since only the last
    /// part has no fixed alphabet.
    pub(crate) fn bound_data(&self, key: &str) -> Vec<u8> {
        let Self { purpose, principal, server } = self;
        format!("fleet-vault 1\n{key}\n{}\n{principal}\n{server}", purpose.name()).into_bytes()
    }
}
