//! The records of jobs in the jobs topic: what a job was asked to do.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_access::Action;
use fleet_job::{
    decode,
    envelope::{Envelope, Work},
    event::Source,
    mcp_servers::secrets,
    record::{Position, RawRecord},
    view::JobRecord,
};
use fleet_kafka::{
    KafkaError,
    admin::{self, Span},
    reader::{self, From, Reader},
    settings::Settings,
};
use fleet_ledger::Known;
use fleet_ops::blocking::run_blocking;
use serde_json::Value;

use super::{Caller, Jobs, JobsError, not_found, request::BadRequest};

/// How long to wait for a record whose position is known.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// The longest time that a search of the jobs topic may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(10);
/// How long opening a topic may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);
/// The tool that hosts servers.
const HOSTING_TOOL: &str = "server_initialize";

impl Jobs {
    /// Returns what a job that `caller` may see was asked to do, without the secrets of servers to
    /// host.
    ///
    /// # Errors
    ///
    /// Returns [`JobsError::RecordGone`] if the jobs topic no longer has the record, and an error
    /// if the record is no job, as well as those of [`Jobs::get`].
    pub async fn record(&self, job_id: &str, caller: &Caller) -> Result<JobRecord, JobsError> {
        let (record, envelope) = self.find_record(job_id, caller).await?;
        let is_hosting = hosts_servers(&envelope.work);
        // Only those who may see the job get it, so it need not name its owner.
        let mut shown = Envelope { owner: None, ..envelope }.to_json();
        if is_hosting {
            secrets::hide(&mut shown["payload"]);
        }
        Ok(JobRecord {
            job_id: job_id.to_owned(),
            source: Source::from(&record.position),
            time: record.timestamp,
            key: record.key.and_then(|key| String::from_utf8(key).ok()),
            envelope: shown,
        })
    }

    /// Finds the record of a job that `caller` may see.
    pub(crate) async fn find_record(
        &self,
        job_id: &str,
        caller: &Caller,
    ) -> Result<(RawRecord, Envelope), JobsError> {
        let known = match self.find_known(job_id, caller).await {
            Err(JobsError::NotFound(_)) => self.find_in_backlog(job_id, caller).await?,
            known => known?,
        };

        let gone = || JobsError::RecordGone { job_id: job_id.to_owned() };
        let record = match self.position_of(&known) {
            Some(position) => self.fetch_record(position).await?,
            None if known.event.source.is_some() => None,
            None => self.search_record(&known).await?,
        };
        let record = record.ok_or_else(gone)?;

        let decoded = decode::decode(&record, self.inner.max_job_bytes);
        let envelope = decoded.map_err(|error| {
            let at = Source::from(&record.position);
            BadRequest(format!("the record {at} of job `{job_id}` is not a job: {error}"))
        })?;
        // Anybody who may write to the events topic can point to any record, and the topic may have
        // been created again.
        if envelope.job_id != job_id {
            return Err(gone());
        }
        let (owner, tenant) = (envelope.owner.as_deref(), envelope.tenant.as_deref());
        if !caller.decide(Action::ReadJob, owner, tenant).is_allowed() {
            return Err(not_found(job_id));
        }
        Ok((record, envelope))
    }

    /// Returns the position of a job's record, if it is known and in a topic of jobs.
    fn position_of(&self, known: &Known) -> Option<Position> {
        let topics = &self.inner.topics;
        if known.partition < 0 {
            // It was found in the backlog.
            let partition = -1 - known.partition;
            return Some(Position { topic: topics.jobs.clone(), partition, offset: known.offset });
        }

        let source = known.event.source.clone()?;
        let is_ours = [&topics.jobs, &topics.delayed].contains(&&source.topic);
        is_ours.then_some(Position {
            topic: source.topic,
            partition: source.partition,
            offset: source.offset,
        })
    }

    /// Returns the record at a position; `None` if it no longer exists.
    async fn fetch_record(&self, position: Position) -> Result<Option<RawRecord>, JobsError> {
        let permit = self.inner.searches.clone().acquire_owned().await;
        let settings = self.inner.link.follower.settings().clone();

        let fetch = move || {
            let _permit = permit;
            Ok::<_, JobsError>(record_at(&settings, &position)?)
        };
        run_blocking(fetch).await
    }

    /// Searches the jobs topic for the record of a job that no worker has reported yet.
    async fn search_record(&self, known: &Known) -> Result<Option<RawRecord>, JobsError> {
        let permit = self.inner.searches.clone().acquire_owned().await;
        let (settings, topic) =
            (self.inner.link.follower.settings().clone(), self.inner.topics.jobs.clone());
        let (wanted, since) = (known.event.job_id.clone(), known.submitted_at());
        let max_bytes = self.inner.max_job_bytes;

        let search = move || {
            let _permit = permit;
            let mut job = None;
            let is_done = reader::search(&settings, &topic, since, SEARCH_LIMIT, |record| {
                let envelope = decode::decode(record, max_bytes);
                if envelope.is_ok_and(|envelope| envelope.job_id == wanted) {
                    job = Some(record.clone());
                }
                job.is_some()
            })?;
            if !is_done {
                let why = "the jobs topic is too long to find the job's record in time";
                return Err(JobsError::NotReady(why.to_owned()));
            }
            Ok(job)
        };
        run_blocking(search).await
    }
}

/// Whether a job has the configuration of servers to host.
fn hosts_servers(work: &Work) -> bool {
    match work {
        Work::ServerInit(_) => true,
        Work::ToolCall(call) => call.tool.contains(HOSTING_TOOL),
        Work::ToolBatch(batch) => batch.calls.iter().any(|call| call.tool.contains(HOSTING_TOOL)),
    }
}

/// Returns the record at a position; `None` if it does not exist. Blocks the thread.
pub(crate) fn record_at(
    settings: &Settings,
    position: &Position,
) -> Result<Option<RawRecord>, KafkaError> {
    let Position { topic, partition, offset } = position;
    let spans = match admin::spans(settings, topic, None, FETCH_LIMIT) {
        Err(KafkaError::NoTopic(_)) => return Ok(None),
        spans => spans?,
    };
    // Reading would wait for a record that may still come.
    let exists =
        |span: &Span| span.partition == *partition && (span.start..span.end).contains(offset);
    if !spans.iter().any(exists) {
        return Ok(None);
    }

    let from = [(*partition, *offset)];
    let mut found = reader::first_records(settings, topic, &from, FETCH_LIMIT)?;
    Ok(found.remove(partition).filter(|record| record.position == *position))
}

/// Returns the text of a record's key; `None` if the record has none.
///
/// # Errors
///
/// Returns an error if the key is not text that a request can repeat.
pub(crate) fn key_text(record: &RawRecord) -> Result<Option<String>, BadRequest> {
    let Some(key) = &record.key else { return Ok(None) };
    String::from_utf8(key.clone()).map(Some).map_err(|_| {
        BadRequest(
            "the key of the job's record is not UTF-8 text; give a `key`, or `null` for none"
                .to_owned(),
        )
    })
}

/// Returns the fields of an envelope that another run of the job begins with: all but those that
/// belong to the first run alone.
pub(crate) fn repeatable_fields(envelope: &Envelope) -> serde_json::Map<String, Value> {
    let Value::Object(mut fields) = envelope.to_json() else { return serde_json::Map::new() };
    for field in ["jobID", "jobType", "payload", "owner", "idempotencyKey", "notBefore", "deadline"]
    {
        fields.shift_remove(field);
    }
    fields
}
/// Passes every record of `topic` to `with` until it breaks off. Records of a partition come in
/// order. Returns `false` if the deadline came first. A topic that does not exist has no records.
pub(crate) fn for_each_record(
    settings: &Settings,
    topic: &str,
    deadline: Instant,
    mut with: impl FnMut(RawRecord) -> Result<ControlFlow<()>, JobsError>,
) -> Result<bool, JobsError> {
    let mut reader = match Reader::open(settings, topic, From::Start, OPEN_LIMIT) {
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
