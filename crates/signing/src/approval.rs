//! Signed decisions about jobs that awaited approval.

use fleet_access::{Principal, PrincipalId};
use fleet_job::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    fault::SignatureFault,
    keys::SigningKeys,
    merkle::Hash,
    proof::{digest_of, hash_text},
};

/// The `typ` of a decision's signature.
const TYPE: &str = "mcp-fleet-approval";

/// That somebody who may has approved a job, bound to the record of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalClaims {
    /// The jobs topic.
    #[serde(rename = "aud")]
    topic: String,
    /// The SHA-256 of the record's value, which holds the job's id, tools and arguments.
    #[serde(with = "hash_text")]
    value: Hash,
    /// The id of the principal that has decided.
    pub by: String,
    /// Its name, for people.
    pub name: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub time: Timestamp,
}

impl ApprovalClaims {
    /// Returns whether somebody else than this principal has decided.
    pub fn is_by_another_than(&self, principal: PrincipalId) -> bool {
        self.by != principal.to_string()
    }
}

impl SigningKeys {
    /// Signs that `by` has approved the job whose record has this value. Returns the text of the
    /// header [`fleet_job::approval::HEADER`]; `None` if there is no private key.
    pub fn sign_approval(
        &self,
        topic: &str,
        value: &[u8],
        by: &Principal,
        reason: Option<String>,
        now: Timestamp,
    ) -> Option<String> {
        let claims = ApprovalClaims {
            topic: topic.to_owned(),
            value: digest_of(value),
            by: by.id().to_string(),
            name: by.display_name().to_owned(),
            reason,
            time: now,
        };
        self.sign(TYPE, &claims)
    }

    /// Verifies a decision about a record whose value has this digest.
    pub(crate) fn verify_approval(
        &self,
        topic: &str,
        value: Hash,
        text: &str,
    ) -> Result<ApprovalClaims, SignatureFault> {
        let claims: ApprovalClaims = self.verify(TYPE, text)?;
        match (claims.topic == topic, claims.value == value) {
            (true, true) => Ok(claims),
            (false, _) => Err(SignatureFault::OtherTopic),
            (true, false) => Err(SignatureFault::OtherRecord),
        }
    }
}
