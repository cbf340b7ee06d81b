//! Taking records in: what each one is, and what the engine has to know about it.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_engine::{Admission, Input, JobSpec, Token};
use fleet_group::{Partition, log::LogName};
use fleet_job::{
    decode,
    delayed::Delayed,
    envelope::{DEFAULT_PRIORITY, Envelope, JobType, MAX_ATTEMPTS},
    outcome::{ErrorKind, JobError},
    record::RawRecord,
    time::Timestamp,
};
use fleet_kafka::{consumer::LogIdentity, producer::Outgoing};
use metrics::counter;

use super::{
    DELAYED, Shell,
    held_job::HeldJob,
    held_record::{Content, HeldRecord, NotRun},
    recently_settled::RecordIdentity,
    write_state::WriteState,
};
use crate::{metrics as names, outages};

/// A record that was read, with what the engine has to know about it.
struct Reading {
    held: HeldRecord,
    admission: Admission,
    /// How many bytes the record takes beyond its size, because it was unpacked.
    unpacked_bytes: usize,
    /// Whether the record came back from the delayed topic and can be known from its copies.
    is_returned: bool,
}

impl Shell {
    /// Takes in a record, unless it is no longer ours or has come twice.
    pub(super) fn admit_record(&mut self, partition: Partition, mut record: RawRecord) {
        counter!(names::CONSUMED.name).increment(1);
        let offset = record.position.offset;
        let Some(token) = self.engine.token(partition, offset) else { return };
        if self.jobs.contains(&token) {
            return;
        }

        let record_bytes = record.size();
        let header = Delayed::take(&mut record);
        let reading = match partition.topic {
            DELAYED => self.read_relay(token, record, header),
            _ => self.read_job(token, record, header),
        };

        let bytes = record_bytes + reading.unpacked_bytes;
        let mut held = Box::new(reading.held);
        held.record_bytes = bytes;
        let admission = if reading.is_returned && self.jobs.has_earlier_copy(token, &held) {
            pass_over_copy(&held)
        } else if let Some(end) = self.settled.recall(Instant::now(), &held.identity) {
            admit_repeat(&mut held, end)
        } else {
            self.check_cancelled(&mut held, reading.admission)
        };
        self.jobs.insert(token, held);
        self.feed_engine(Input::Record { partition, offset, bytes, admission });
    }

    /// Reads a record of the delayed topic, which is only passed on. If it has no header of ours,
    /// it is passed on at once.
    fn read_relay(&self, token: Token, record: RawRecord, header: Option<Delayed>) -> Reading {
        let now = self.clock.now();
        let tiers = self.reporter.tiers;
        let longest = tiers.map_or(Duration::ZERO, |tiers| tiers.wait_in(token.partition.number));

        let (not_run, at) = match header {
            None => (NotRun::Stray, now),
            Some(header) => {
                let is_recalled = self.is_recalled(&record, &header);
                // No record waits longer than the others of its partition, whatever its header
                // says.
                let at = if is_recalled { now } else { header.look_at.min(now.plus(longest)) };
                (NotRun::Relay { header, is_recalled }, at)
            }
        };

        let name = position_name(&record);
        let identity = self.identify(token, &name, record.timestamp);
        let content = Content::NotRun(not_run, WriteState::Due);
        let held = HeldRecord::new(record, identity, name, content);
        Reading { held, admission: Admission::Relay(at), unpacked_bytes: 0, is_returned: false }
    }

    /// Reads a record of the jobs topic.
    fn read_job(&self, token: Token, mut record: RawRecord, header: Option<Delayed>) -> Reading {
        let written_at = record.timestamp;
        // A job that returns from the delayed topic is known by the position of its first record.
        let header = header.filter(|header| header.topic == record.position.topic);
        if let Some(header) = &header {
            record.position = header.origin();
            record.timestamp = header.timestamp;
        }

        let limit = usize::try_from(self.args.max_job_bytes).unwrap_or(usize::MAX);
        let decoded =
            decode::decode_counted(&record, limit).map_err(|error| (error.error, error.job_id));
        let unpacked_bytes = decoded.as_ref().map_or(0, |(_, unpacked)| *unpacked);
        let decoded = decoded.and_then(|(envelope, _)| match self.check_reply_topic(&envelope) {
            Some(error) => Err((error, Some(envelope.job_id))),
            None => Ok(envelope),
        });
        let job_id = match &decoded {
            Ok(envelope) => envelope.job_id.clone(),
            Err((_, job_id)) => job_id.clone().unwrap_or_else(|| position_name(&record)),
        };

        let returned = header.as_ref().and_then(|header| {
            let log = self.log_name(token.partition);
            RecordIdentity::of_returned(log, token.partition, &record, header)
        });
        let identity = returned.unwrap_or_else(|| self.identify(token, &job_id, written_at));
        let topic_id = match &header {
            Some(header) => header.topic_id.as_deref().map(Arc::from),
            None => self.logs.get(&token.partition).and_then(|log| log.topic.clone()),
        };
        let key = record.key.as_deref().map(hash_key);
        let mut ready_since = record.timestamp.max(header.as_ref().map(|header| header.until));

        let (content, admission) = match decoded {
            Ok(envelope) => {
                ready_since = ready_since.max(envelope.not_before);
                let spec = self.spec_of(&envelope, key, header.as_ref());
                let (first_error, waiting) =
                    header.map_or((None, None), |header| (header.first_error, header.waiting));
                let job = HeldJob::new(envelope, first_error, waiting);
                (Content::Job(job), Admission::Job(spec))
            }
            Err((error, _)) => {
                let first_error = header.and_then(|header| header.first_error);
                let rejected = NotRun::Rejected { error, first_error };
                (Content::NotRun(rejected, WriteState::Due), Admission::Reject { key })
            }
        };

        let mut held = HeldRecord::new(record, identity, job_id, content);
        held.topic_id = topic_id;
        held.ready_since = ready_since;
        Reading { held, admission, unpacked_bytes, is_returned: returned.is_some() }
    }

    /// What the engine has to know about a job.
    fn spec_of(&self, envelope: &Envelope, key: Option<u64>, delayed: Option<&Delayed>) -> JobSpec {
        let waiting = delayed.and_then(|delayed| delayed.waiting.as_ref());
        JobSpec {
            key,
            tenant: self.limits.tenant_of(envelope),
            priority: envelope.priority.unwrap_or(DEFAULT_PRIORITY),
            not_before: envelope.not_before.max(delayed.map(|delayed| delayed.until)),
            deadline: envelope.deadline,
            max_attempts: envelope.max_attempts.map_or(self.args.max_attempts, |n| n.get()),
            spent: delayed.map_or(0, |delayed| delayed.attempts.min(MAX_ATTEMPTS)),
            limits: self.limits.limits_of(envelope),
            returned: delayed.is_some(),
            keeps_progress: envelope.work.job_type() != JobType::ToolCall,
            hosted: outages::hosted_server(&envelope.work).map(outages::server_number),
            held_since: waiting.map(|waiting| waiting.since),
        }
    }

    fn identify(&self, token: Token, name: &str, written_at: Option<Timestamp>) -> RecordIdentity {
        let log = self.log_name(token.partition);
        RecordIdentity::new(log, token.partition, token.offset, name, written_at)
    }

    fn log_name(&self, partition: Partition) -> LogName {
        self.logs.get(&partition).map_or(LogName::UNKNOWN, LogIdentity::name)
    }

    /// Why the envelope's `replyTo` is not allowed, if it is not.
    fn check_reply_topic(&self, envelope: &Envelope) -> Option<JobError> {
        let topic = envelope.reply_to.as_deref().filter(|topic| !self.args.may_reply_to(topic))?;
        let message = format!(
            "`replyTo`: topic `{topic}` is not allowed: it must be listed in MCP_REPLY_TOPICS and \
             must not be a topic of the fleet"
        );
        Some(JobError::new(ErrorKind::InvalidEnvelope, message))
    }
}

/// Admits a record that this worker has settled before, or the copy of one. `end` is its terminal
/// event, if it had one.
fn admit_repeat(held: &mut HeldRecord, end: Option<Arc<Outgoing>>) -> Admission {
    counter!(names::PASSED_OVER.name).increment(1);
    tracing::info!(job_id = held.job_id, "read again after it was settled here; not run again");

    let Some(end) = end else { return Admission::Settled };
    let job_type = held.job_type();
    held.content = Content::NotRun(NotRun::Repeat { end, job_type }, WriteState::Due);
    Admission::Ended
}

/// Admits the copy of a record that is in hand.
fn pass_over_copy(held: &HeldRecord) -> Admission {
    counter!(names::PASSED_OVER.name).increment(1);
    tracing::info!(job_id = held.job_id, "a second copy of a job that came back; not run");
    Admission::Settled
}

/// Stays within this process: keys and seed are the same in every process, and nothing is stored
/// by this hash.
fn hash_key(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The name of a record that names no job.
fn position_name(record: &RawRecord) -> String {
    let position = &record.position;
    format!("{}/{}/{}", position.topic, position.partition, position.offset)
}
