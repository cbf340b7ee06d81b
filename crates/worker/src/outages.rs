//! What this worker knows to be unavailable: the MCP server, or something behind it, or what people
//! have paused. Maps names to the engine's numbers, and says what a waiting job reports. Pure.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
};

use fleet_engine::Need;
use fleet_job::{
    envelope::Work,
    event::Waiting,
    outcome::{ErrorKind, Failure, FailureClass, WaitReason},
    pause::Pause,
    time::Timestamp,
    tool_name,
};

/// Separates server and tool in the name of a hosted tool.
const SEPARATOR: &str = "__";

/// One thing that is unavailable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    pub(crate) reason: WaitReason,
    /// The hosted server, if it is one.
    pub(crate) server: Option<String>,
    pub(crate) since: Timestamp,
    /// The pause, if people keep the jobs from starting.
    pub(crate) pause: Option<Pause>,
}

/// Everything that is known to be unavailable; the MCP server itself is under `None`.
#[derive(Debug, Default)]
pub(crate) struct Outages(BTreeMap<Option<Need>, Outage>);

impl Outage {
    /// What a failure says to be unavailable, and what the job needs; `None` for failures that
    /// spend an attempt.
    pub(crate) fn from_failure(failure: &Failure, now: Timestamp) -> Option<(Option<Need>, Self)> {
        let (need, reason) = match failure.class {
            FailureClass::Unavailable if failure.error.kind == ErrorKind::Unauthorized => {
                (None, WaitReason::Unauthorized)
            }
            FailureClass::Unavailable => (None, WaitReason::Unavailable),
            FailureClass::Held(reason) => {
                let hosted =
                    failure.server.as_deref().map(|server| Need::Hosted(server_number(server)));
                (Some(hosted.unwrap_or(Need::Room)), reason)
            }
            FailureClass::Retry | FailureClass::Permanent => return None,
        };
        Some((need, Self { reason, server: failure.server.clone(), since: now, pause: None }))
    }

    /// What keeps jobs from starting that are covered by a pause.
    pub(crate) fn of_pause(pause: &Pause) -> Self {
        let (reason, since) = (WaitReason::Paused, pause.since);
        Self { reason, server: None, since, pause: Some(pause.clone()) }
    }

    /// What the event of a job that waits for this says.
    pub(crate) fn as_waiting(&self, since: Timestamp) -> Waiting {
        let pause = self.pause.as_ref();
        Waiting {
            reason: self.reason.as_str().to_owned(),
            server: self.server.clone(),
            since,
            pause: pause.map(|pause| pause.id.clone()),
            by: pause.and_then(|pause| pause.by.clone()),
            why: pause.map(|pause| pause.reason.clone()),
            until: pause.and_then(|pause| pause.until),
        }
    }

    /// Whether a job that has published this waits for the same thing.
    pub(crate) fn is_cause_of(&self, published: &Waiting) -> bool {
        let pause = self.pause.as_ref().map(|pause| &pause.id);
        published.server == self.server && published.pause.as_ref() == pause
    }
}

impl Outages {
    /// Takes note of an outage. Returns `true` if it is new. An outage that goes on keeps its
    /// beginning, even if its reason changes.
    pub(crate) fn note_outage(&mut self, need: Option<Need>, outage: Outage) -> bool {
        match self.0.get_mut(&need) {
            Some(known) => {
                known.reason = outage.reason;
                false
            }
            None => {
                self.0.insert(need, outage);
                true
            }
        }
    }

    /// Takes note of a pause. It replaces another one with the same number.
    pub(crate) fn note_pause(&mut self, need: Option<Need>, outage: Outage) {
        if self.0.get(&need) != Some(&outage) {
            self.0.insert(need, outage);
        }
    }

    pub(crate) fn get(&self, need: Option<Need>) -> Option<&Outage> {
        self.0.get(&need)
    }

    /// Removes and returns the outages that are over.
    pub(crate) fn remove_unless(&mut self, lasts: impl Fn(Option<Need>) -> bool) -> Vec<Outage> {
        let over: Vec<_> = self.0.keys().copied().filter(|need| !lasts(*need)).collect();
        over.into_iter().filter_map(|need| self.0.remove(&need)).collect()
    }
}

/// The hosted server whose tool a job calls, if the record says so. A job with several calls finds
/// out when it makes them, and a job that starts a server does not need it.
pub(crate) fn hosted_server(work: &Work) -> Option<&str> {
    let Work::ToolCall(call) = work else { return None };
    let server = call.server.as_deref().or_else(|| Some(call.tool.split_once(SEPARATOR)?.0));
    server.filter(|server| tool_name::check_server(server).is_ok())
}

/// The engine's number for a hosted server. If two names have one number, their jobs wait for each
/// other, which does no harm.
pub(crate) fn server_number(server: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    server.hash(&mut hasher);
    hasher.finish()
}

/// Whether a job's newest event says already what `now` says.
pub(crate) fn is_published(before: Option<&Waiting>, now: &Waiting) -> bool {
    before.is_some_and(|before| {
        before.reason == now.reason && before.server == now.server && before.pause == now.pause
    })
}

#[cfg(test)]
mod tests {
    use fleet_job::{decode, outcome::JobError};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_says_which_hosted_server_it_needs_if_it_needs_one() {
        let check = |job_type: &str, payload: serde_json::Value, expected: Option<&str>| {
            let text = json!({"jobID": "j", "jobType": job_type, "payload": payload}).to_string();
            assert_eq!(
                hosted_server(&decode::from_json(text.as_bytes()).unwrap().work),
                expected,
                "{text}"
            );
        };

        check("tool-call", json!({"server": "db", "tool": "q"}), Some("db"));
        check("tool-call", json!({"tool": "db__q__x"}), Some("db"));
        check("tool-call", json!({"tool": "file_read"}), None);
        check("tool-call", json!({"tool": "__q"}), None);
        check("tool-batch", json!({"calls": [{"server": "db", "tool": "q"}]}), None);
        check("server-init", json!({"mcpServers": {"db": {"url": "http://db"}}}), None);
    }

    #[test]
    fn failures_are_outages_of_what_they_name() {
        let error = |kind| JobError::new(kind, "x");
        let of = |failure: Failure| {
            Outage::from_failure(&failure, Timestamp::default())
                .map(|(need, outage)| (need, outage.reason))
        };
        assert_eq!(
            of(Failure::unavailable(error(ErrorKind::Connect))),
            Some((None, WaitReason::Unavailable))
        );
        assert_eq!(
            of(Failure::unavailable(error(ErrorKind::Unauthorized))),
            Some((None, WaitReason::Unauthorized))
        );

        let held = |server: Option<&str>| {
            Failure::held(
                WaitReason::ServerBusy,
                server.map(str::to_owned),
                error(ErrorKind::JsonRpc),
            )
        };

        assert_eq!(of(held(None)), Some((Some(Need::Room), WaitReason::ServerBusy)));
        let hosted = Need::Hosted(server_number("db"));
        assert_eq!(of(held(Some("db"))), Some((Some(hosted), WaitReason::ServerBusy)));
        assert_eq!(of(Failure::retry(error(ErrorKind::Timeout))), None);
    }

    #[test]
    fn a_paused_job_says_who_paused_it_and_another_pause_is_news() {
        let text = r#"{"id": "a", "scope": {}, "reason": "migration", "by": "ada", "since": 5, "until": 9}"#;
        let pause: Pause = serde_json::from_str(text).unwrap();
        let other = Outage::of_pause(&Pause { id: "b".to_owned(), ..pause.clone() });
        let at = |ms| Timestamp::from_millis(ms).unwrap();

        let said = Outage::of_pause(&pause).as_waiting(at(7));
        assert_eq!((&*said.reason, said.pause.as_deref()), ("paused", Some("a")));
        assert_eq!((said.by.as_deref(), said.why.as_deref()), (Some("ada"), Some("migration")));
        assert_eq!((said.since, said.until), (at(7), Some(at(9))));
        assert!(other.is_cause_of(&other.as_waiting(at(7))) && !other.is_cause_of(&said));
        assert!(!is_published(Some(&said), &other.as_waiting(at(7))));

        let mut outages = Outages::default();
        let need = Some(Need::Paused(0));
        outages.note_pause(need, Outage::of_pause(&pause));
        outages.note_pause(need, other.clone());
        assert_eq!(outages.get(need), Some(&other));
    }

    #[test]
    fn an_outage_keeps_its_beginning_and_is_said_anew_when_its_reason_changes() {
        let mut outages = Outages::default();
        let at = |ms| Timestamp::from_millis(ms).unwrap();
        let outage = |reason, ms| Outage {
            reason,
            server: Some("db".to_owned()),
            since: at(ms),
            pause: None,
        };

        assert!(outages.note_outage(None, outage(WaitReason::ServerUnavailable, 1)));
        let said = outages.get(None).unwrap().as_waiting(at(1));
        assert!(is_published(Some(&said), &said) && !is_published(None, &said));

        assert!(!outages.note_outage(None, outage(WaitReason::UpstreamUnauthorized, 2)));
        let known = outages.get(None).unwrap();
        assert_eq!(known.since, at(1));
        assert!(!is_published(Some(&said), &known.as_waiting(at(1))));

        assert_eq!(outages.remove_unless(|_| false).len(), 1);
        assert!(outages.get(None).is_none());
    }
}
