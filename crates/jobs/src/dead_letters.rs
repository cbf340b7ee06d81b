//! Dead letters: counted, shown, replayed and deleted by those who may.
//!
//! Every request reads the topic anew, within bounds: letters are few, and nobody has to keep a
//! picture of them up to date. What is decided is in `fleet-dead-letters`, which `mcp-fleet dlq`
//! shares.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_access::{Action, Arguments, Context, Resource};
use fleet_dead_letters::{
    Bucket, Details, Filter, Histogram, Letter, Replayed, Summary, marker_topic,
};
use fleet_job::{
    record::{Position, RawRecord},
    time::Timestamp,
    topics::Topics,
};
use fleet_kafka::{
    KafkaError, admin,
    reader::{From, Reader},
    settings::Settings,
};
use fleet_ops::{blocking::run_blocking, clock};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Caller, Jobs, JobsError, outcome_of, records::record_at};

mod replay;

pub use replay::{ReplayReport, ReplayRequest};

/// How long a request to the brokers may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the letters may take.
const SCAN_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
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
    /// Returns an error if the caller may not delete dead letters, or the brokers don't.
    pub async fn purge_dead_letters(
        &self,
        before: Timestamp,
        dry_run: bool,
        caller: &Caller,
    ) -> Result<PurgeReport, JobsError> {
        let (action, resource) = (Action::DeleteDeadLetters, Resource::default());
        let decision = caller.check(action, &resource, &Context::default())?;

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

        let record = caller.begin_record(action, &resource, &decision, Arguments::None).await?;
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

/// Passes every record of `topic` to `with` until it breaks off. Records of a partition come in
/// order. Returns `false` if the deadline came first. A topic that does not exist has no records.
fn for_each_record(
    settings: &Settings,
    topic: &str,
    deadline: Instant,
    mut with: impl FnMut(RawRecord) -> Result<ControlFlow<()>, JobsError>,
) -> Result<bool, JobsError> {
    let mut reader = match Reader::open(settings, topic, From::Start, TIMEOUT) {
        Err(KafkaError::NoTopic(_)) => return Ok(true),
        reader => reader?,
    };
    while !reader.at_end() {
        if let Some(record) = reader.next(POLL)?
            && with(record)?.is_break()
        {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
    Ok(true)
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
