//! Dead letters: counted, shown, replayed and deleted by those who may.
//!
//! Every request reads the topic anew, within bounds: letters are few, and nobody has to keep a
//! picture of them up to date. What is decided is in `fleet-dead-letters`, which `mcp-fleet dlq`
//! shares.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_access::{Action, Arguments, Context, Decision, Resource};
use fleet_dead_letters::{
    Bucket, Details, Filter, Histogram, Letter, Replayed, Summary, marker_topic,
};
use fleet_job::{record::Position, time::Timestamp, topics::Topics};
use fleet_kafka::{admin, settings::Settings};
use fleet_ops::{blocking::run_blocking, clock};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Caller, Jobs, JobsError, outcome_of,
    records::{for_each_record, record_at},
};

mod replay;

pub use replay::{ReplayReport, ReplayRequest};

/// How long a request to the brokers may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the letters may take.
const SCAN_LIMIT: Duration = Duration::from_secs(20);
/// The longest message in a list, in characters.
const LISTED_TEXT: usize = 512;
/// The cluster id of the embedded broker, which cannot delete records.
const EMBEDDED: &str = "mcp-fleet";

/// The dead letters that match a filter.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Dead letters")]
pub struct LetterList {
    /// The topic of the letters.
    pub topic: String,
    /// The number of letters.
    pub letters: usize,
    /// How many of them have been replayed.
    pub replayed: usize,
    /// The letters by reason, most frequent first. Of more than 500 reasons, the rest of each kind
    /// is one.
    pub reasons: Vec<Bucket>,
    /// The newest letters, newest first.
    pub newest_letters: Vec<Summary>,
    /// Whether the whole topic was read in time.
    pub complete: bool,
}

/// What a deletion of dead letters has done, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeReport {
    /// The topic of the letters.
    pub topic: String,
    /// Whether nothing was deleted, since this was only asked.
    pub dry_run: bool,
    /// The number of letters that were deleted, or would be.
    pub letters: u64,
}

impl Jobs {
    /// Counts the dead letters that `caller` may see and that match a filter, and returns the newest
    /// `keep` of them.
    ///
    /// # Errors
    ///
    /// Returns an error if the topic can't be read.
    pub async fn dead_letters(
        &self,
        filter: Filter,
        keep: usize,
        caller: &Caller,
    ) -> Result<LetterList, JobsError> {
        let (topic, caller) = (self.inner.topics.dlq.clone(), caller.clone());
        let read = move |settings: &Settings, topics: &Topics| {
            let deadline = Instant::now() + SCAN_LIMIT;
            let replayed = read_replayed(settings, topics, deadline)?;
            let mut histogram = Histogram::new(keep);
            let is_whole = for_each_record(settings, &topics.dlq, deadline, |record| {
                let letter = Letter::read(&record);
                if filter.matches(&letter) && may_see(&caller, &letter) {
                    let before = replayed.contains(&letter);
                    histogram.add(letter, before);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok((histogram.finish(), is_whole))
        };
        let ((reasons, newest), complete) = self.read_letters(read).await?;

        Ok(LetterList {
            topic,
            letters: reasons.iter().map(|bucket| bucket.count).sum(),
            replayed: reasons.iter().map(|bucket| bucket.replayed).sum(),
            newest_letters: newest
                .iter()
                .map(|(letter, replayed)| listed(letter, *replayed))
                .collect(),
            reasons,
            complete,
        })
    }

    /// Returns everything about the dead letter at a position, if `caller` may see it.
    ///
    /// # Errors
    ///
    /// Returns [`JobsError::NoLetter`], or an error if the topic can't be read.
    pub async fn dead_letter(
        &self,
        (partition, offset): (i32, i64),
        caller: &Caller,
    ) -> Result<Details, JobsError> {
        let caller = caller.clone();
        let read = move |settings: &Settings, topics: &Topics| {
            let position = Position { topic: topics.dlq.clone(), partition, offset };
            let Some(record) = record_at(settings, &position)? else { return Ok(None) };

            let letter = Letter::read(&record);
            if !may_see(&caller, &letter) {
                return Ok(None);
            }
            let replayed = read_replayed(settings, topics, Instant::now() + SCAN_LIMIT)?;
            Ok(Some(Details::new(&letter, &record, replayed.contains(&letter))))
        };
        let found = self.read_letters(read).await?;
        found.ok_or_else(|| JobsError::NoLetter(format!("{partition}-{offset}")))
    }

    /// Deletes the dead letters that were written before a time. Only says how many that are if
    /// `dry_run`.
    ///
    /// # Errors
    ///
    /// Returns an error if the caller may not delete the dead letters of all tenants, or the brokers
    /// don't.
    pub async fn purge_dead_letters(
        &self,
        before: Timestamp,
        dry_run: bool,
        caller: &Caller,
    ) -> Result<PurgeReport, JobsError> {
        let action = Action::DeleteDeadLetters;
        let decision = check_purge(caller)?;

        // All letters are older than a time to come, of which not every broker knows that.
        let before = (before < clock::now()).then_some(before);
        let read = move |settings: &Settings, topics: &Topics| {
            let spans = admin::spans(settings, &topics.dlq, before, TIMEOUT)?;
            Ok((spans, admin::cluster_id(settings, TIMEOUT)?))
        };
        let (spans, cluster) = self.read_letters(read).await?;
        let letters = spans.iter().map(|span| span.end.abs_diff(span.start)).sum();
        let report = PurgeReport { topic: self.inner.topics.dlq.clone(), dry_run, letters };
        if dry_run {
            return Ok(report);
        }
        if cluster.as_deref() == Some(EMBEDDED) {
            return Err(JobsError::Unsupported(
                "the embedded broker cannot delete records; delete its --data-dir, or use Apache Kafka",
            ));
        }

        let whole = Resource::default();
        let record = caller.begin_record(action, &whole, &decision, Arguments::None).await?;
        let settings = self.inner.link.follower.settings();
        let deleted = admin::delete_records(settings, &report.topic, &spans).await;
        let deleted = deleted.map_err(JobsError::from);
        record.end(outcome_of(&deleted), None);
        deleted.map(|()| report)
    }

    /// Reads topics on a thread where that may block.
    async fn read_letters<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Settings, &Topics) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, JobsError> {
        let permit = self.inner.searches.clone().acquire_owned().await;
        let settings = self.inner.link.follower.settings().clone();
        let topics = self.inner.topics.clone();
        run_blocking(move || {
            let _permit = permit;
            read(&settings, &topics)
        })
        .await
    }
}

/// Checks that the caller may delete letters, whosever they are.
///
/// A record is deleted with all before it, so the right within one tenant is not enough: it takes
/// that for letters without a tenant.
fn check_purge(caller: &Caller) -> Result<Decision, JobsError> {
    let everybodys = Resource { tenant: Some(""), ..Resource::default() };
    caller.check(Action::DeleteDeadLetters, &everybodys, &Context::default())
}

fn may_see(caller: &Caller, letter: &Letter) -> bool {
    let (owner, tenant) = (letter.owner.as_deref(), letter.tenant.as_deref());
    caller.decide_about_letter(Action::ReadDeadLetters, owner, tenant).is_allowed()
}

/// The letter in a list, where its message is short.
fn listed(letter: &Letter, replayed: bool) -> Summary {
    let mut summary = letter.summary(replayed);
    summary.message = fleet_dead_letters::text::shorten(&summary.message, LISTED_TEXT);
    summary
}

/// Returns which letters have been replayed.
fn read_replayed(
    settings: &Settings,
    topics: &Topics,
    deadline: Instant,
) -> Result<Replayed, JobsError> {
    let mut replayed = Replayed::default();
    let is_whole = for_each_record(settings, &marker_topic(topics), deadline, |record| {
        replayed.add(&topics.dlq, &record);
        Ok(ControlFlow::Continue(()))
    })?;
    match is_whole {
        true => Ok(replayed),
        false => Err(JobsError::NotReady(
            "which dead letters have been replayed could not be read in time".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal, PrincipalKind, Via};

    use super::*;

    #[test]
    fn a_purge_takes_more_than_the_right_within_a_tenant() {
        let may_purge = |tenant: Option<&str>, tenants: &str| {
            let rules = format!(
                "[[rule]]\nname = 'r'\neffect = 'allow'\nprincipals = ['anyone']\n\
                 actions = ['dead-letters.delete']\n{tenants}"
            );
            let rights = AccessPolicy::parse(&rules, None).unwrap().into_rights();
            let via = Via::Key { id: "k".to_owned() };
            let mut principal = Principal::new("keys", "ops", PrincipalKind::Person, via);
            principal.tenant = tenant.map(str::to_owned);
            let asker = Asker::new(Arc::new(principal), CurrentRights::new(rights));
            check_purge(&Caller::new(Some("ops".to_owned()), None, asker)).is_ok()
        };

        assert!(!may_purge(Some("acme"), ""));
        assert!(!may_purge(Some("acme"), "tenants = ['acme']"));
        assert!(may_purge(Some("acme"), "tenants = ['*']"));
        assert!(may_purge(None, ""));
    }
}
