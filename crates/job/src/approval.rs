//! Jobs that wait for the approval of a person.
//!
//! Such a job has no record that a worker could run. Its event holds the record instead, which a
//! server writes once somebody has approved it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    event::JobEvent,
    record::{Header, RawRecord},
    time::Timestamp,
};

/// The header of a record that was written because somebody has approved its job: the signed
/// decision.
pub const HEADER: &str = "mcp-fleet-approval";

/// The most bytes that a record may have whose job waits for approval: it has to fit into an event,
/// as text in JSON.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// What waits for approval, in an `awaiting_approval` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingApproval {
    /// The rule that asks for it.
    pub rule: String,
    /// Who has submitted the job, for people, if a server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Who has approved it, and why; once that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approved>,
    /// When the job expires if nobody has decided.
    pub expires_at: Timestamp,
    /// The envelope as it will be written.
    pub envelope: String,
    /// The record's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The record's headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// The word of whoever has approved a job, for people. The signed decision is in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approved {
    /// Who.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub time: Timestamp,
}

impl PendingApproval {
    /// What waits of a record; `None` if the record is too large or not text.
    pub fn of_record(
        value: &[u8],
        key: Option<&[u8]>,
        headers: &[Header],
        rule: String,
        expires_at: Timestamp,
    ) -> Option<Self> {
        let size: usize = headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        if value.len() + key.map_or(0, <[u8]>::len) + size > MAX_RECORD_BYTES {
            return None;
        }

        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let headers = headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case(HEADER));
        let headers = headers
            .map(|(name, value)| Some((name.clone(), text(value.as_deref().unwrap_or_default())?)));
        Some(Self {
            rule,
            requested_by: None,
            approved: None,
            expires_at,
            envelope: text(value)?,
            key: match key {
                Some(key) => Some(text(key)?),
                None => None,
            },
            headers: headers.collect::<Option<_>>()?,
        })
    }

    /// The headers of the record.
    pub fn record_headers(&self) -> Vec<Header> {
        let headers = self.headers.iter();
        headers.map(|(name, value)| (name.clone(), Some(value.clone().into_bytes()))).collect()
    }

    /// The record as it would be read, for those who verify it.
    pub fn record(&self, topic: &str) -> RawRecord {
        RawRecord {
            position: crate::record::Position { topic: topic.to_owned(), partition: 0, offset: 0 },
            timestamp: None,
            key: self.key.clone().map(String::into_bytes),
            value: Some(self.envelope.clone().into_bytes()),
            headers: self.record_headers(),
        }
    }
}

/// What the answer of a server that asks for approval says about it (`data` of the JSON-RPC error).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedApproval {
    /// The rule that asks for it.
    pub rule: String,
    /// How long somebody may take to decide, in milliseconds; missing if nobody can decide.
    pub approval_ttl_ms: Option<u64>,
}

impl AskedApproval {
    /// Reads the `data` of an error; `None` if it is not of this form.
    pub fn of_data(data: &serde_json::Value) -> Option<Self> {
        Self::deserialize(data).ok()
    }
}

impl JobEvent {
    /// Removes the headers of a record that waits for approval: signatures are for servers.
    pub fn hide_signatures(&mut self) {
        if let Some(approval) = &mut self.approval {
            approval.headers.clear();
        }
    }

    /// Returns what waits for approval, if the job does.
    pub fn awaits_approval(&self) -> Option<&PendingApproval> {
        let waits = self.state == crate::event::JobState::AwaitingApproval;
        self.approval.as_deref().filter(|_| waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_without_an_earlier_decision() {
        let headers = vec![
            ("traceparent".to_owned(), Some(b"t".to_vec())),
            (HEADER.to_owned(), Some(b"old".to_vec())),
        ];
        let of = |value: &[u8], key: Option<&[u8]>| {
            PendingApproval::of_record(value, key, &headers, "r".to_owned(), Timestamp::MIN)
        };
        let pending = of(b"{}", Some(b"k")).unwrap();
        let record = pending.record("jobs");
        assert_eq!((record.value, record.key), (Some(b"{}".to_vec()), Some(b"k".to_vec())));
        assert_eq!(record.headers, headers[..1]);

        assert_eq!(of(b"\xff", None), None);
        assert_eq!(of(b"{}", Some(b"\xff")), None);
        assert_eq!(of(&vec![b' '; MAX_RECORD_BYTES], None), None);
    }
}
