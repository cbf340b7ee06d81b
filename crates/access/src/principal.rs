//! Principals: who asks.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The issuer of principals that are named by API keys.
pub const KEYS_ISSUER: &str = "keys";
/// The issuer of principals that are named by client certificates.
pub const CERTIFICATES_ISSUER: &str = "certificates";
/// The issuer of the one principal of a server that only this machine can reach.
pub const LOCAL_ISSUER: &str = "local";
/// The issuer of the principal of a server that serves everybody.
pub const OPEN_ISSUER: &str = "open";
/// The issuer of the principals as which jobs act that nobody has signed.
pub const KAFKA_ISSUER: &str = "kafka";

/// Somebody whose credentials were verified, and everything that a decision may depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Principal {
    /// Who vouches for the subject: the URL of a token's issuer, or one of the constants of this
    /// module.
    pub issuer: String,
    /// Whom the issuer means. Unique for the issuer and stable; seldom fit for people to read.
    pub subject: String,
    /// What sort of subject it is.
    pub kind: PrincipalKind,
    /// A name for people, such as the one in an audit record.
    pub name: Option<String>,
    /// The tenant that the principal belongs to.
    pub tenant: Option<String>,
    /// The roles that rules refer to, sorted.
    pub roles: Vec<String>,
    /// The OAuth scopes of the credentials, sorted.
    pub scopes: Vec<String>,
    /// The other claims of the credentials, for conditions of rules.
    pub attributes: Map<String, Value>,
    /// How the principal proved who it is.
    pub via: Via,
    id: PrincipalId,
}

/// What sort of subject a principal is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalKind {
    /// A human being.
    Person,
    /// A program that acts for itself.
    Service,
    /// A part of the fleet, such as a worker.
    Node,
    /// Anybody at all.
    Anonymous,
}

/// How a principal proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Via {
    /// By an API key.
    Key {
        /// The id of the key, which is not secret.
        id: String,
    },
    /// By an access token.
    Token,
    /// By a client certificate.
    Certificate,
    /// Not at all: only this machine can reach the server.
    Loopback,
    /// Not at all: the server was told to serve everybody.
    Open,
    /// By a record of a jobs topic, into which Kafka lets those write who may.
    Topic,
}

/// The stable name of a principal: a digest of issuer and subject.
///
/// It has the form of the digests of header bytes that named the owners of jobs before there were
/// principals, 32 hexadecimal digits, so both can stand in the same field; neither is ever equal to
/// the other. A new token or key of the same subject is the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrincipalId([u8; 16]);

impl Principal {
    /// A principal without name, tenant, roles, scopes or attributes.
    pub fn new(
        issuer: impl Into<String>,
        subject: impl Into<String>,
        kind: PrincipalKind,
        via: Via,
    ) -> Self {
        let (issuer, subject) = (issuer.into(), subject.into());
        Self {
            id: PrincipalId::of(&issuer, &subject),
            issuer,
            subject,
            kind,
            name: None,
            tenant: None,
            roles: Vec::new(),
            scopes: Vec::new(),
            attributes: Map::new(),
            via,
        }
    }

    /// The principal of a server that only this machine can reach. It has every right.
    pub fn local() -> Self {
        Self::new(LOCAL_ISSUER, "local", PrincipalKind::Person, Via::Loopback)
    }

    /// The principal of a server that serves everybody.
    pub fn anonymous() -> Self {
        Self::new(OPEN_ISSUER, "anonymous", PrincipalKind::Anonymous, Via::Open)
    }

    /// The principal of a topic's unsigned jobs: it stands for everyone who may write to the topic.
    pub fn of_topic(topic: &str) -> Self {
        let mut principal = Self::new(KAFKA_ISSUER, topic, PrincipalKind::Service, Via::Topic);
        principal.name = Some(format!("kafka:{topic}"));
        principal
    }

    /// The digest of issuer and subject.
    pub fn id(&self) -> PrincipalId {
        self.id
    }

    /// Returns whether credentials were verified. The principal of a server that only this machine
    /// can reach, and that of a server that serves everybody, stand for anybody at all.
    pub fn is_verified(&self) -> bool {
        !matches!(self.via, Via::Loopback | Via::Open)
    }

    /// Adds roles, and keeps them sorted and without repeats.
    pub fn add_roles(&mut self, roles: impl IntoIterator<Item = String>) {
        add_sorted(&mut self.roles, roles);
    }

    /// Adds scopes, and keeps them sorted and without repeats.
    pub fn add_scopes(&mut self, scopes: impl IntoIterator<Item = String>) {
        add_sorted(&mut self.scopes, scopes);
    }

    /// Returns whether the principal has a role.
    pub fn has_role(&self, role: &str) -> bool {
        has_sorted(&self.roles, role)
    }

    /// Returns whether the principal has a scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        has_sorted(&self.scopes, scope)
    }

    /// What to call the principal when a person reads it: its name, or else its subject.
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.subject)
    }
}

fn add_sorted(list: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    list.extend(more);
    list.sort_unstable();
    list.dedup();
}

fn has_sorted(list: &[String], text: &str) -> bool {
    list.binary_search_by(|own| own.as_str().cmp(text)).is_ok()
}

impl PrincipalKind {
    /// The kind as it is written in files and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Service => "service",
            Self::Node => "node",
            Self::Anonymous => "anonymous",
        }
    }

    /// Reads a kind as it is written in files and claims.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Person, Self::Service, Self::Node, Self::Anonymous]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

impl Via {
    /// The way in a word, for records and metrics. It never holds the id of a key.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Key { .. } => "key",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Loopback => "loopback",
            Self::Open => "open",
            Self::Topic => "topic",
        }
    }
}

impl PrincipalId {
    /// The id of a subject.
    pub fn of(issuer: &str, subject: &str) -> Self {
        let mut hasher = Sha256::new();
        for part in ["mcp-fleet principal", issuer, subject] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }

        let digest: [u8; 32] = hasher.finalize().into();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// The bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns whether a job's `owner` is this principal. Owners of jobs that were submitted before
    /// there were principals are never equal to one; whoever can still make such a name compares it
    /// itself.
    pub fn is_owner(&self, owner: &str) -> bool {
        owner.parse() == Ok(*self)
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrincipalId({self})")
    }
}

/// A text is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a principal's id has 32 lower-case hexadecimal digits")]
pub struct NoPrincipalId;

impl FromStr for PrincipalId {
    type Err = NoPrincipalId;

    fn from_str(text: &str) -> Result<Self, NoPrincipalId> {
        let bytes = crate::hex::decode(text).ok_or(NoPrincipalId)?;
        bytes.try_into().map(Self).map_err(|_| NoPrincipalId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_issuer_and_subject_alone() {
        let id = PrincipalId::of("https://idp", "alice");
        assert_eq!(id, PrincipalId::of("https://idp", "alice"));
        assert_ne!(id, PrincipalId::of("https://idpa", "lice"));
        assert_ne!(id, PrincipalId::of("https://idp", "bob"));

        let by_key = Principal::new(
            "https://idp",
            "alice",
            PrincipalKind::Person,
            Via::Key { id: "k".to_owned() },
        );
        assert_eq!(by_key.id(), id);
    }

    #[test]
    fn an_id_has_the_form_of_an_owner() {
        let id = PrincipalId::of("https://idp", "alice");
        let text = id.to_string();
        assert_eq!(text.len(), 32);
        assert_eq!(text.parse(), Ok(id));
        assert!(id.is_owner(&text));

        for other in ["", "0", &text[1..], &text.to_uppercase(), &"0".repeat(32)] {
            assert!(!id.is_owner(other), "{other}");
        }
    }

    #[test]
    fn roles_are_sorted_and_unique() {
        let mut principal = Principal::local();
        principal.add_roles(["b", "a", "b"].map(str::to_owned));
        assert_eq!(principal.roles, ["a", "b"]);
        assert!(principal.has_role("b") && !principal.has_role("c"));
    }
}
