//! Replaying dead letters: the original records go back to the jobs topic.
//!
//! Two passes over the topic, as in `mcp-fleet dlq replay`: the first plans, the second carries the
//! plan out. Each letter is written, acknowledged and marked before the next, so that a request that
//! is repeated after an interruption repeats at most one job.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Instant};

use fleet_access::{Action, Arguments, Resource};
use fleet_dead_letters::{
    Filter, Letter, Marker, Plan, Planner, Verdict, decide_verdict, marker_topic,
    text::format_position,
};
use fleet_job::{dead_letter, record::RawRecord, topics::Topics};
use fleet_kafka::{
    admin::{self, TopicSpec},
    producer::{Outgoing, Producer},
    settings::Settings,
};
use fleet_ops::clock;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit};

use super::{SCAN_LIMIT, TIMEOUT, for_each_record, read_replayed};
use crate::{Caller, Jobs, JobsError, outcome_of};

/// The most letters that a plan considers, since it keeps something of each.
const MAX_LETTERS: usize = 200_000;
/// The most letters that a report names.
const MAX_NAMED: usize = 500;

/// Which letters to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRequest {
    /// Which letters.
    pub filter: Filter,
    /// Replay at most this many, oldest first.
    pub max: usize,
    /// Leave letters alone that have already been replayed this many times.
    pub max_replays: u32,
    /// Replay all letters of a job, not only the newest.
    pub every_letter: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a replay has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Replay of dead letters")]
pub struct ReplayReport {
    /// Whether nothing was replayed, since this was only asked.
    pub dry_run: bool,
    /// How often a letter's job may have been replayed before; letters beyond that are `parked`.
    pub max_replays: u32,
    /// The number of letters that the filter selects, by what is done with them.
    pub verdicts: BTreeMap<Verdict, usize>,
    /// The number of letters that this request replays, or would.
    pub to_replay: usize,
    /// The number of letters that were replayed.
    pub replayed: usize,
    /// The number of letters that could not be replayed.
    pub failed: usize,
    /// The number of letters that are left for another request, because of `max`.
    pub left: usize,
    /// The letters that were replayed or would be, and then others, 500 at most.
    pub letters: Vec<ReplayedLetter>,
}

/// What was done with a letter.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayedLetter {
    /// The position of the letter: `topic/partition/offset`.
    pub letter: String,
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The kind of error.
    pub kind: String,
    /// What is done with the letter.
    pub verdict: Verdict,
    /// How often the job had been replayed before it died.
    pub replay_count: u32,
    /// The position of the record that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_to: Option<String>,
    /// Why it could not be replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl ReplayedLetter {
    fn new(letter: &Letter, verdict: Verdict) -> Self {
        Self {
            letter: format_position(&letter.place),
            job_id: letter.job_id.clone(),
            kind: letter.kind.clone(),
            verdict,
            replay_count: letter.replays,
            replayed_to: None,
            error: None,
        }
    }
}

/// A replay on its thread.
struct Run {
    settings: Settings,
    topics: Topics,
    producer: Arc<Producer>,
    request: ReplayRequest,
    caller: Caller,
    handle: Handle,
    _permit: OwnedSemaphorePermit,
}

impl Jobs {
    /// Replays the dead letters that match a filter, as far as `caller` may: writes their records
    /// back to the jobs topic. A second request continues where the first one ended.
    ///
    /// # Errors
    ///
    /// Returns an error if another replay is running here, or a topic can't be read or written.
    pub async fn replay_dead_letters(
        &self,
        request: ReplayRequest,
        caller: &Caller,
    ) -> Result<ReplayReport, JobsError> {
        let permit = self.inner.replaying.clone().try_acquire_owned().map_err(|_| {
            JobsError::NotReady("another replay is running; try again when it is done".to_owned())
        })?;
        let (producer, handle) = (self.inner.link.producer.clone(), Handle::current());
        let caller = caller.clone();

        self.read_letters(move |settings, topics| {
            let (settings, topics) = (settings.clone(), topics.clone());
            Run { settings, topics, producer, request, caller, handle, _permit: permit }.run()
        })
        .await
    }
}

impl Run {
    fn run(&self) -> Result<ReplayReport, JobsError> {
        let mut report = ReplayReport {
            dry_run: self.request.dry_run,
            max_replays: self.request.max_replays,
            ..ReplayReport::default()
        };
        let (plan, others) = self.plan()?;
        report.verdicts.clone_from(&plan.counts);
        (report.to_replay, report.left) = (plan.replay.len(), plan.left);

        if !plan.replay.is_empty() {
            self.carry_out(&plan, &mut report)?;
        }
        let room = MAX_NAMED.saturating_sub(report.letters.len());
        report.letters.extend(others.into_iter().take(room));
        Ok(report)
    }

    /// The first pass: decides what to do with each letter. Returns those that stay as well.
    fn plan(&self) -> Result<(Plan, Vec<ReplayedLetter>), JobsError> {
        let deadline = Instant::now() + SCAN_LIMIT;
        let request = &self.request;
        let replayed = read_replayed(&self.settings, &self.topics, deadline)?;
        let (mut planner, mut others, mut letters) = (Planner::default(), Vec::new(), 0_usize);

        let is_whole = for_each_record(&self.settings, &self.topics.dlq, deadline, |record| {
            letters += 1;
            if letters > MAX_LETTERS {
                return Ok(ControlFlow::Break(()));
            }
            let letter = Letter::read(&record);
            let verdict = decide_verdict(&letter, &replayed, &self.topics, request.max_replays);
            if !request.every_letter {
                planner.record_letter(&letter, verdict);
            }
            if request.filter.matches(&letter) && self.may_replay(&letter) {
                planner.add(&letter, verdict);
                if verdict != Verdict::Replay && others.len() < MAX_NAMED {
                    others.push(ReplayedLetter::new(&letter, verdict));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;

        if !is_whole || letters > MAX_LETTERS {
            let why = "there are too many dead letters to replay them by request; use \
                       `mcp-fleet dlq replay`, or purge old letters";
            return Err(JobsError::NotReady(why.to_owned()));
        }
        Ok((planner.finish(Some(request.max)), others))
    }

    /// The second pass: replays the planned letters.
    fn carry_out(&self, plan: &Plan, report: &mut ReplayReport) -> Result<(), JobsError> {
        if !self.request.dry_run {
            self.create_marker_topic()?;
        }

        let deadline = Instant::now() + SCAN_LIMIT;
        let is_whole = for_each_record(&self.settings, &self.topics.dlq, deadline, |record| {
            if plan.replay.contains(&(record.position.partition, record.position.offset)) {
                let letter = Letter::read(&record);
                let mut named = ReplayedLetter::new(&letter, Verdict::Replay);
                if !self.request.dry_run {
                    match self.replay(&letter, record) {
                        Ok(to) => {
                            report.replayed += 1;
                            named.replayed_to = Some(to);
                        }
                        Err(error) if ends_with_letter(&error) => {
                            report.failed += 1;
                            named.error = Some(error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
                report.letters.push(named);
            }
            let is_done = report.letters.len() >= plan.replay.len();
            Ok(if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;

        if !is_whole {
            report.left += plan.replay.len().saturating_sub(report.letters.len());
        }
        Ok(())
    }

    fn may_replay(&self, letter: &Letter) -> bool {
        let (owner, tenant) = (letter.owner.as_deref(), letter.tenant.as_deref());
        let decide = |action| self.caller.decide_about_letter(action, owner, tenant).is_allowed();
        decide(Action::ReadDeadLetters) && decide(Action::ReplayDeadLetters)
    }

    fn create_marker_topic(&self) -> Result<(), JobsError> {
        let marker = TopicSpec {
            name: marker_topic(&self.topics),
            partitions: 1,
            // As many replicas as the letters themselves have.
            replication: admin::replication(&self.settings, &self.topics.dlq, TIMEOUT)?,
            properties: vec![("cleanup.policy", "compact")],
        };
        self.handle.block_on(admin::create_topics(&self.settings, &[marker]))?;
        Ok(())
    }

    /// Counts and records a replay, and does it. Returns where the record went.
    fn replay(&self, letter: &Letter, record: RawRecord) -> Result<String, JobsError> {
        let (owner, tenant) = (letter.owner.as_deref(), letter.tenant.as_deref());
        let (action, resource) = (Action::ReplayDeadLetters, Resource::job(owner, tenant));
        let decision = self.caller.decide_about_letter(action, owner, tenant);
        drop(self.caller.admit(action, &resource, 0, clock::monotonic())?);

        let named = self.caller.about_job(&letter.job_id);
        let begun = named.begin_record(action, &resource, &decision, Arguments::None);
        let audited = self.handle.block_on(begun)?;
        let written = self.write(letter, record);
        audited.end(outcome_of(&written), None);
        written
    }

    /// Writes the record and then its marker.
    fn write(&self, letter: &Letter, record: RawRecord) -> Result<String, JobsError> {
        let back = Outgoing {
            topic: self.topics.jobs.clone(),
            // Whoever replays it, the job remains that of its submitter: it is not signed anew.
            headers: dead_letter::headers_for_replay(&record.headers),
            key: record.key,
            value: record.value,
            ..Outgoing::default()
        };
        let delivered = self.handle.block_on(self.producer.send(&back))?;
        let to = format!("{}/{}/{}", self.topics.jobs, delivered.partition, delivered.offset);

        let marker = Marker::new(letter, to.clone(), clock::now());
        let marker = Outgoing {
            topic: marker_topic(&self.topics),
            // Strings and numbers can't fail to become JSON.
            value: Some(serde_json::to_vec(&marker).unwrap_or_default()),
            key: Some(marker.letter.into_bytes()),
            ..Outgoing::default()
        };
        self.handle.block_on(self.producer.send(&marker))?;
        Ok(to)
    }
}

/// Whether an error is about one letter, so that others can still be replayed.
fn ends_with_letter(error: &JobsError) -> bool {
    match error {
        JobsError::Kafka(error) => error.is_too_large(),
        _ => false,
    }
}
