//! Signed decisions about jobs that awaited approval.

use fleet_access::{Principal, PrincipalId};
use fleet_job::{envelope::Envelope, time::Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    calls::calls_of,
    fault::SignatureFault,
    keys::SigningKeys,
    merkle::{Hash, Tree},
    proof::{PassedJob, PresentedCall, Signed, digest_of, hash_text},
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
    /// The job's id.
    #[serde(rename = "jobID")]
    job_id: String,
    /// The SHA-256 of the record's value.
    #[serde(with = "hash_text")]
    value: Hash,
    /// The number of calls.
    calls: usize,
    /// The root of the tree over the calls.
    #[serde(with = "hash_text")]
    root: Hash,
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
        envelope: &Envelope,
        value: &[u8],
        by: &Principal,
        reason: Option<String>,
        now: Timestamp,
    ) -> Option<String> {
        let leaves: Vec<_> = calls_of(&envelope.work).map(|call| call.leaf()).collect();
        let claims = ApprovalClaims {
            topic: topic.to_owned(),
            job_id: envelope.job_id.clone(),
            value: digest_of(value),
            calls: leaves.len(),
            root: Tree::new(leaves).root(),
            by: by.id().to_string(),
            name: by.display_name().to_owned(),
            reason,
            time: now,
        };
        self.sign(TYPE, &claims)
    }

    /// Who has approved the job that a call is made for; `None` if nobody has.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the decision, or that it is not about this call.
    pub fn approval_of(
        &self,
        passed: &PassedJob,
        call: &PresentedCall<'_>,
    ) -> Result<Option<ApprovalClaims>, SignatureFault> {
        let Some(text) = passed.approval() else { return Ok(None) };
        let claims: ApprovalClaims = self.verify(TYPE, text)?;
        let ApprovalClaims { topic, job_id, value, calls, root, .. } = &claims;
        passed.check(call, Signed { topic, job_id, value, calls: *calls, root })?;
        Ok(Some(claims))
    }
}
