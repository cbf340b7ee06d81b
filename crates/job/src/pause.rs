//! Pauses: people keep jobs from starting, all of them or those of a server, a tool, a tenant or a
//! filter, until they resume them or until a time.
//!
//! Pauses are records in a compacted topic, keyed by their ids. Every worker reads the whole topic
//! before it starts a job. Jobs are resumed by writing their pause once more, with the time; that is
//! final, so that an old record which somebody writes again pauses nothing.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{envelope::MAX_ID_BYTES, time::Timestamp};

mod active;
mod scope;

pub use active::{PauseChange, Pauses};
pub use scope::{MAX_METADATA, PauseScope};

/// The most pauses that may be in force at once.
pub const MAX_PAUSES: usize = 1_000;
/// The longest reason of a pause, in bytes.
pub const MAX_REASON_BYTES: usize = 1_024;

/// A pause: the value of a record in the topic of pauses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet pause record")]
pub struct Pause {
    /// The id of the pause, which is also the record's key.
    #[schemars(length(min = 1, max = 256))]
    pub id: String,
    /// Which jobs are paused. An empty object means all jobs.
    pub scope: PauseScope,
    /// Who has ordered the pause, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The reason, for people.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// When the pause was ordered.
    pub since: Timestamp,
    /// When the pause ends; absent if it lasts until somebody resumes the jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When somebody has ended the pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<Timestamp>,
    /// Who has ended the pause, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_by: Option<String>,
}

impl Pause {
    /// Returns whether the pause is in force at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.resumed_at.is_none() && self.until.is_none_or(|until| now < until)
    }

    /// Returns the number by which engines know the pause: 0 if it covers every job. If two pauses
    /// have one number, their jobs are looked at again when either ends, which does no harm.
    pub fn number(&self) -> u64 {
        if self.scope.is_everything() {
            return 0;
        }

        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        hasher.finish().max(1)
    }

    /// Returns the pause as the value of a record.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A struct of plain fields always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the value of a record. Returns `None` if this version does not understand it: a
    /// condition that is not known must not be left out, or too many jobs would be paused.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let pause: Self = serde_json::from_slice(bytes).ok()?;
        pause.check().is_ok().then_some(pause)
    }

    /// Checks the bounds of a pause.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with which field.
    pub fn check(&self) -> Result<(), String> {
        check_text("id", &self.id, MAX_ID_BYTES)?;
        check_text("reason", &self.reason, MAX_REASON_BYTES)?;
        self.scope.check()
    }
}

/// The pauses in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Pauses")]
pub struct PauseList {
    /// The pauses that the caller may end, the oldest first.
    pub pauses: Vec<Pause>,
}

/// What to pause, why and for how long.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "New pause")]
pub struct PauseRequest {
    /// Which jobs to pause. An empty object means all jobs.
    #[serde(deserialize_with = "scope::from_object")]
    pub scope: PauseScope,
    /// The reason, for people.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// When the pause ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The same as a number of milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_622_400_000_u64))]
    pub for_ms: Option<u64>,
}

fn check_text(name: &str, text: &str, max: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > max {
        return Err(format!("`{name}` must have 1 to {max} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("`{name}` must not have control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{decode, envelope::Envelope};

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis_clamped(ms)
    }

    fn pause(id: &str, scope: Value, until: Option<i64>) -> Pause {
        Pause {
            id: id.to_owned(),
            scope: serde_json::from_value(scope).unwrap(),
            by: None,
            reason: "maintenance".to_owned(),
            since: at(1),
            until: until.map(at),
            resumed_at: None,
            resumed_by: None,
        }
    }

    fn job(job_type: &str, payload: &Value) -> Envelope {
        let text = json!({"jobID": "order-17", "jobType": job_type, "payload": payload,
            "tenant": "acme", "metadata": {"team": "search", "n": 3}});
        decode::from_json(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_scope_covers_the_jobs_for_which_all_that_it_gives_holds() {
        let call = job("tool-call", &json!({"server": "db", "tool": "query"}));
        let own = job("tool-call", &json!({"tool": "db__query"}));
        let batch = job(
            "tool-batch",
            &json!({"calls": [{"tool": "echo"}, {"server": "db", "tool": "drop"}]}),
        );
        let init = job("server-init", &json!({"mcpServers": {"db": {"url": "http://db/mcp"}}}));

        for (scope, expected) in [
            (json!({}), [true, true, true, true]),
            (json!({"server": "db"}), [true, true, true, true]),
            (json!({"server": "web"}), [false; 4]),
            (json!({"tool": "db__*"}), [true, true, true, false]),
            (json!({"tool": "query"}), [false; 4]),
            (json!({"server": "db", "tool": "query"}), [true, true, false, false]),
            // Server and tool must be those of one call.
            (json!({"server": "db", "tool": "echo"}), [false; 4]),
            (json!({"tool": "server_init*"}), [false, false, false, true]),
            (json!({"tenant": "acme"}), [true; 4]),
            (json!({"tenant": "other"}), [false; 4]),
            (json!({"jobType": "tool-batch"}), [false, false, true, false]),
            (json!({"idPrefix": "order-"}), [true; 4]),
            (json!({"idPrefix": "order-18"}), [false; 4]),
            (json!({"metadata": {"team": "search", "n": "3"}}), [true; 4]),
            (json!({"metadata": {"team": "search", "n": "4"}}), [false; 4]),
            (json!({"tenant": "acme", "jobType": "server-init"}), [false, false, false, true]),
        ] {
            let mut pauses = Pauses::default();
            pauses.take(pause("p", scope.clone(), None), at(1));
            let found = [&call, &own, &batch, &init].map(|job| pauses.find(job, at(1)).is_some());
            assert_eq!(found, expected, "{scope}");
        }
    }

    #[test]
    fn a_pause_ends_when_its_time_comes_or_when_it_is_written_again() {
        let job = job("tool-call", &json!({"tool": "echo"}));
        let mut pauses = Pauses::default();
        assert_eq!(pauses.take(pause("a", json!({}), Some(10)), at(1)), PauseChange::Begun);
        assert_eq!(pauses.take(pause("a", json!({}), Some(10)), at(1)), PauseChange::None);
        assert_eq!(pauses.next_end(), Some(at(10)));
        assert!(pauses.find(&job, at(9)).is_some() && pauses.find(&job, at(10)).is_none());
        assert!(pauses.take_ended(at(9)).is_empty());
        assert_eq!(pauses.take_ended(at(10)).len(), 1);

        let open = pause("b", json!({"tool": "echo"}), None);
        pauses.take(open.clone(), at(1));
        let narrower = pause("b", json!({"tool": "other"}), None);
        assert_eq!(pauses.take(narrower.clone(), at(2)), PauseChange::Ended(Box::new(open)));
        assert!(pauses.find(&job, at(2)).is_none());

        // The clock of the one who resumes may be ahead.
        let resumed = Pause { resumed_at: Some(at(99)), ..narrower.clone() };
        assert_eq!(
            pauses.take(resumed.clone(), at(3)),
            PauseChange::Ended(Box::new(narrower.clone()))
        );
        assert_eq!(pauses.take(resumed, at(3)), PauseChange::None, "it has ended before");
        assert_eq!(pauses.take(narrower, at(4)), PauseChange::None, "it is written once more");
        assert!(pauses.is_empty());
    }

    #[test]
    fn the_number_of_pauses_is_bounded_and_those_in_force_stay() {
        let mut pauses = Pauses::default();
        for number in 0..=MAX_PAUSES {
            pauses.take(pause(&format!("p{number}"), json!({"tool": "x"}), None), at(1));
        }
        assert_eq!(pauses.len(), MAX_PAUSES);

        let longer = pause("p0", json!({"tool": "x"}), Some(100));
        assert_eq!(pauses.take(longer, at(1)), PauseChange::Begun);
        let ended = pause("p1", json!({"tool": "x"}), Some(1));
        assert!(matches!(pauses.take(ended, at(1)), PauseChange::Ended(_)));
        assert_eq!(pauses.len(), MAX_PAUSES - 1);
    }

    #[test]
    fn a_pause_of_everything_has_the_number_zero() {
        assert_eq!(pause("a", json!({}), None).number(), 0);
        let scoped = |id| pause(id, json!({"tenant": "a"}), None).number();
        assert!(scoped("a") != 0 && scoped("a") == scoped("a") && scoped("a") != scoped("b"));
    }

    #[test]
    fn unknown_or_invalid_records_are_not_obeyed() {
        let whole = pause("p", json!({"server": "db"}), Some(5));
        assert_eq!(Pause::from_bytes(&whole.to_bytes()), Some(whole));

        let long = "x".repeat(MAX_ID_BYTES + 1);
        for scope in [
            json!({"colour": "red"}),
            json!({"jobType": "dance"}),
            json!({"server": ""}),
            json!({"tenant": long}),
            json!({"idPrefix": "a\nb"}),
            json!({"metadata": {"a": long}}),
        ] {
            let text = json!({"id": "p", "scope": scope, "reason": "r", "since": 1}).to_string();
            assert_eq!(Pause::from_bytes(text.as_bytes()), None, "{text}");
        }
        for bad in ["", "{}", r#"{"id":"","reason":"r","since":1}"#, r#"{"id":"p","since":1}"#] {
            assert_eq!(Pause::from_bytes(bad.as_bytes()), None, "{bad}");
        }
    }
}
