//! What a worker passes on with each call, and how the server that executes the call verifies it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use fleet_job::{approval, envelope::Work, meta, record::RawRecord};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    HEADER,
    calls::{CallContent, calls_of},
    claims::{JobClaims, TYPE},
    fault::SignatureFault,
    keys::SigningKeys,
    merkle::{self, Hash, MAX_PATH, Tree},
};

/// What the worker knows of a job's signatures, which it does not verify; nothing, if the job has
/// none.
#[derive(Debug)]
pub struct JobProof(Option<SignedRecord>);

#[derive(Debug)]
struct SignedRecord {
    /// The text of the header.
    signature: Option<String>,
    /// The decision of somebody who has approved the job.
    approval: Option<String>,
    value: Hash,
    /// The tree over the calls, if there are several.
    tree: Option<Tree>,
}

/// The member [`meta::SIGNED_JOB`] of a call's `_meta`. It is there in every call that a worker
/// makes for a job, signed or not, so that no call for a job is taken for one of the worker's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PassedJob {
    /// The text of the record's header; missing if the job is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    /// The signed decision of somebody who has approved the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    approval: Option<String>,
    /// The SHA-256 of the record's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The number of the call in its job, counted from 0.
    #[serde(default)]
    call: usize,
    /// The hashes that lead from the call to the root of the tree.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    path: String,
}

/// A call that somebody makes for a job.
#[derive(Debug)]
pub struct PresentedCall<'a> {
    /// The jobs topic of the server that executes the call.
    pub topic: &'a str,
    /// The id of the job that the call says it belongs to.
    pub job_id: &'a str,
    /// What the call asks for.
    pub content: CallContent<'a>,
}

impl JobProof {
    /// What to pass on of a record with this work.
    pub fn new(record: &RawRecord, work: &Work) -> Self {
        let [signature, approval] =
            [HEADER, approval::HEADER].map(|name| record.header(name).map(str::to_owned));
        if signature.is_none() && approval.is_none() {
            return Self(None);
        }

        // A tree of one leaf has no paths.
        let has_paths = work.calls().nth(1).is_some();
        let tree = has_paths.then(|| Tree::new(calls_of(work).map(|call| call.leaf()).collect()));
        let value = digest_of(record.value.as_deref().unwrap_or_default());
        Self(Some(SignedRecord { signature, approval, value, tree }))
    }

    /// The member of the `_meta` of the call with this number.
    pub fn of_call(&self, call: usize) -> Value {
        let Some(SignedRecord { signature, approval, value, tree }) = &self.0 else {
            return json!({});
        };
        let path = tree.as_ref().map_or_else(Vec::new, |tree| tree.path(call));
        let passed = PassedJob {
            signature: signature.clone(),
            approval: approval.clone(),
            value: Some(encode(value)),
            call,
            path: BASE64_URL_SAFE_NO_PAD.encode(path.concat()),
        };
        // A struct of plain fields always serializes.
        serde_json::to_value(passed).unwrap_or_default()
    }
}

impl PassedJob {
    /// Reads the member of a call's `_meta`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error if the member is not of this form.
    pub fn of_meta(meta: &serde_json::Map<String, Value>) -> Option<Result<Self, SignatureFault>> {
        let member = meta.get(meta::SIGNED_JOB)?;
        Some(Self::deserialize(member).map_err(|_| SignatureFault::Malformed))
    }

    /// Whether the job has a signature.
    pub fn is_signed(&self) -> bool {
        self.signature.is_some()
    }
}

impl SigningKeys {
    /// Verifies that a record of `topic` is a job that was signed with one of these keys.
    ///
    /// # Errors
    ///
    /// Returns what is wrong.
    pub fn verify_record(
        &self,
        topic: &str,
        record: &RawRecord,
    ) -> Result<JobClaims, SignatureFault> {
        let signature = record.header(HEADER).ok_or(SignatureFault::Missing)?;
        let claims: JobClaims = self.verify(TYPE, signature)?;
        if claims.topic != topic {
            return Err(SignatureFault::OtherTopic);
        }
        if claims.value != digest_of(record.value.as_deref().unwrap_or_default()) {
            return Err(SignatureFault::OtherRecord);
        }
        Ok(claims)
    }

    /// Verifies that a call belongs to a job that was signed with one of these keys. Returns who
    /// submitted the job, and what else was signed.
    ///
    /// # Errors
    ///
    /// Returns what is wrong.
    pub fn verify_call(
        &self,
        passed: &PassedJob,
        call: &PresentedCall<'_>,
    ) -> Result<JobClaims, SignatureFault> {
        let signature = passed.signature.as_deref().ok_or(SignatureFault::Missing)?;
        let claims: JobClaims = self.verify(TYPE, signature)?;
        let JobClaims { topic, job_id, value, calls, root, .. } = &claims;
        passed.check(call, Signed { topic, job_id, value, calls: *calls, root })?;
        Ok(claims)
    }
}

/// What was signed of a job, by its submitter or by whoever has approved it.
pub(crate) struct Signed<'a> {
    pub(crate) topic: &'a str,
    pub(crate) job_id: &'a str,
    pub(crate) value: &'a Hash,
    pub(crate) calls: usize,
    pub(crate) root: &'a Hash,
}

impl PassedJob {
    /// The signed decision of somebody who has approved the job.
    pub(crate) fn approval(&self) -> Option<&str> {
        self.approval.as_deref()
    }

    /// Checks that a call is one of those that were signed.
    pub(crate) fn check(
        &self,
        call: &PresentedCall<'_>,
        signed: Signed<'_>,
    ) -> Result<(), SignatureFault> {
        if signed.topic != call.topic {
            return Err(SignatureFault::OtherTopic);
        }
        if signed.job_id != call.job_id {
            return Err(SignatureFault::OtherJob);
        }
        if self.value.as_deref().and_then(decode).as_ref() != Some(signed.value) {
            return Err(SignatureFault::OtherRecord);
        }

        let path = decode_path(&self.path).ok_or(SignatureFault::Malformed)?;
        let leaf = call.content.leaf();
        match merkle::verify(leaf, self.call, signed.calls, &path, signed.root) {
            true => Ok(()),
            false => Err(SignatureFault::OtherCall),
        }
    }
}

/// The SHA-256 of a record's value.
pub(crate) fn digest_of(value: &[u8]) -> Hash {
    Sha256::digest(value).into()
}

fn encode(hash: &Hash) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

fn decode(text: &str) -> Option<Hash> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn decode_path(text: &str) -> Option<Vec<Hash>> {
    // Four characters for three bytes.
    let longest = (MAX_PATH * size_of::<Hash>()).div_ceil(3) * 4;
    if text.len() > longest {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let (hashes, []) = bytes.as_chunks::<32>() else { return None };
    Some(hashes.to_vec())
}

/// Hashes as text in claims.
pub(crate) mod hash_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{Hash, decode, encode};

    pub(crate) fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(hash))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(&text).ok_or_else(|| D::Error::custom("expected a SHA-256 in base64url"))
    }
}

#[cfg(test)]
mod tests;
