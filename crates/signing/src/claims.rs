//! What a signature says about a job.

use fleet_access::{Principal, PrincipalKind, Via};
use fleet_job::{envelope::Envelope, time::Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    calls::calls_of,
    keys::SigningKeys,
    merkle::{Hash, Tree},
    proof::{digest_of, hash_text},
};

/// The `typ` of a job's signature.
pub(crate) const TYPE: &str = "mcp-fleet-job";

/// Who submitted a job, and what exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobClaims {
    /// The jobs topic. Another fleet that has the same keys does not take the job for one of its
    /// own.
    #[serde(rename = "aud")]
    pub topic: String,
    /// The job's id.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The SHA-256 of the record's value.
    #[serde(with = "hash_text")]
    pub(crate) value: Hash,
    /// The number of calls.
    pub(crate) calls: usize,
    /// The root of the tree over the calls.
    #[serde(with = "hash_text")]
    pub(crate) root: Hash,
    /// The tenant of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who submitted it.
    pub principal: SignedPrincipal,
    /// Who submitted the job that this one runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
    /// When it was signed.
    pub time: Timestamp,
}

/// A principal with everything that decisions depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedPrincipal {
    issuer: String,
    subject: String,
    kind: PrincipalKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    attributes: Map<String, Value>,
    via: SignedVia,
}

/// How a principal proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum SignedVia {
    Key(String),
    Token,
    Certificate,
    Loopback,
    Open,
    Topic,
}

/// The submitter of an earlier job, in the signature of one that was made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OnBehalfOf {
    /// The id of the earlier job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// Its owner; missing if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl SigningKeys {
    /// Signs that `principal` submits a job to `topic`, whose record has this value. Returns the
    /// text of the header [`HEADER`](crate::HEADER); `None` if there is no private key.
    pub fn sign_job(
        &self,
        topic: &str,
        envelope: &Envelope,
        value: &[u8],
        principal: &Principal,
        on_behalf_of: Option<OnBehalfOf>,
        now: Timestamp,
    ) -> Option<String> {
        if !self.can_sign() {
            return None;
        }
        let leaves: Vec<_> = calls_of(&envelope.work).map(|call| call.leaf()).collect();
        let claims = JobClaims {
            topic: topic.to_owned(),
            job_id: envelope.job_id.clone(),
            value: digest_of(value),
            calls: leaves.len(),
            root: Tree::new(leaves).root(),
            tenant: envelope.tenant.clone(),
            principal: principal.into(),
            on_behalf_of,
            time: now,
        };
        self.sign(TYPE, &claims)
    }
}

impl From<&Principal> for SignedPrincipal {
    fn from(principal: &Principal) -> Self {
        Self {
            issuer: principal.issuer.clone(),
            subject: principal.subject.clone(),
            kind: principal.kind,
            name: principal.name.clone(),
            tenant: principal.tenant.clone(),
            roles: principal.roles.clone(),
            scopes: principal.scopes.clone(),
            attributes: principal.attributes.clone(),
            via: match &principal.via {
                Via::Key { id } => SignedVia::Key(id.clone()),
                Via::Token => SignedVia::Token,
                Via::Certificate => SignedVia::Certificate,
                Via::Loopback => SignedVia::Loopback,
                Via::Open => SignedVia::Open,
                Via::Topic => SignedVia::Topic,
            },
        }
    }
}

impl SignedPrincipal {
    /// The principal.
    pub fn into_principal(self) -> Principal {
        let via = match self.via {
            SignedVia::Key(id) => Via::Key { id },
            SignedVia::Token => Via::Token,
            SignedVia::Certificate => Via::Certificate,
            SignedVia::Loopback => Via::Loopback,
            SignedVia::Open => Via::Open,
            SignedVia::Topic => Via::Topic,
        };
        let mut principal = Principal::new(self.issuer, self.subject, self.kind, via);
        principal.name = self.name;
        principal.tenant = self.tenant;
        principal.add_roles(self.roles);
        principal.add_scopes(self.scopes);
        principal.attributes = self.attributes;
        principal
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_principal_comes_back_as_it_was() {
        let mut alice = Principal::new(
            "https://idp",
            "alice",
            PrincipalKind::Person,
            Via::Key { id: "k".to_owned() },
        );
        alice.name = Some("Alice".to_owned());
        alice.tenant = Some("red".to_owned());
        alice.add_roles(["b", "a"].map(str::to_owned));
        alice.add_scopes(["s".to_owned()]);
        alice.attributes.insert("team".to_owned(), json!(["x", 1.50]));

        let all = [alice, Principal::local(), Principal::anonymous(), Principal::of_topic("t")];
        for principal in all {
            let text = serde_json::to_string(&SignedPrincipal::from(&principal)).unwrap();
            let read: SignedPrincipal = serde_json::from_str(&text).unwrap();
            assert_eq!(read.into_principal(), principal, "{text}");
        }
    }
}
