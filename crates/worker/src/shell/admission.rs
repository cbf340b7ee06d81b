//! From a record to what the engine has to know of it.

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
};
use fleet_kafka::consumer::LogIdentity;
use metrics::counter;

use super::{
    DELAYED, Shell,
    held_job::HeldJob,
    held_record::{Content, HeldRecord, NotRun},
    recently_settled::RecordIdentity,
    write_state::WriteState,
};
use crate::{metrics as names, outages};

impl Shell {
    pub(super) fn admit_record(&mut self, partition: Partition, mut record: RawRecord) {
        counter!(names::CONSUMED.name).increment(1);
        let offset = record.position.offset;
        let Some(token) =
            self.engine.token(partition, offset).filter(|token| !self.jobs.contains(token))
        else {
            return;
        };
        let bytes = record.size();
        let delayed = Delayed::take(&mut record);
        let (held, admission, unpacked) = match partition.topic {
            DELAYED => self.read_relay(token, record, delayed),
            _ => self.read_job(token, record, delayed),
        };
        let mut held = Box::new(held);
        held.record_bytes = bytes + unpacked;
        let admission = match self.settled.recall(Instant::now(), &held.identity) {
            Some(end) => {
                counter!(names::PASSED_OVER.name).increment(1);
                tracing::info!(
                    job_id = held.job_id,
                    "came again after it was settled here; it is not run again"
                );
                match end {
                    Some(end) => {
                        let job_type = held.job_type();
                        held.content =
                            Content::NotRun(NotRun::Repeat { end, job_type }, WriteState::Due);
                        Admission::Ended
                    }
                    None => Admission::Settled,
                }
            }
            None => self.check_cancelled(&mut held, admission),
        };
        self.jobs.insert(token, held);
        self.feed_engine(Input::Record { partition, offset, bytes: bytes + unpacked, admission });
    }

    /// A record of the delayed topic, which is only passed on. One that says nothing of itself goes
    /// on at once.
    fn read_relay(
        &self,
        token: Token,
        record: RawRecord,
        delayed: Option<Delayed>,
    ) -> (HeldRecord, Admission, usize) {
        let now = self.clock.now();
        let wait = self
            .reporter
            .tiers
            .map_or(Duration::ZERO, |tiers| tiers.wait_in(token.partition.number));
        let recalled = delayed.as_ref().is_some_and(|delayed| self.is_recalled(&record, delayed));
        let admission = match &delayed {
            Some(_) if recalled => Admission::Relay(now),
            // Nobody waits longer than the others of its partition, whatever the header says.
            Some(delayed) => Admission::Relay(delayed.look_at.min(now.plus(wait))),
            None => Admission::Relay(now),
        };
        let name = position_name(&record);
        let identity = RecordIdentity::new(
            self.log_name_of(token.partition),
            token.partition,
            token.offset,
            &name,
            record.timestamp,
        );
        let not_run = match delayed {
            Some(header) => NotRun::Relay { header, is_recalled: recalled },
            None => NotRun::Stray,
        };
        let content = Content::NotRun(not_run, WriteState::Due);
        (HeldRecord::new(record, identity, name, content), admission, 0)
    }

    /// Reads the record, and says what the engine has to know of it, and how many bytes it was
    /// unpacked to.
    fn read_job(
        &self,
        token: Token,
        mut record: RawRecord,
        delayed: Option<Delayed>,
    ) -> (HeldRecord, Admission, usize) {
        let written = record.timestamp;
        // A job that comes back from the delayed topic goes by the place where it first stood.
        let delayed = delayed.filter(|delayed| delayed.topic == record.position.topic);
        if let Some(delayed) = &delayed {
            record.position = delayed.origin();
            record.timestamp = delayed.timestamp;
        }
        let limit = usize::try_from(self.args.max_job_bytes).unwrap_or(usize::MAX);
        let decoded =
            decode::decode_counted(&record, limit).map_err(|error| (error.error, error.job_id));
        let unpacked = decoded.as_ref().map_or(0, |(_, unpacked)| *unpacked);
        let decoded = decoded.and_then(|(envelope, _)| match self.check_reply_topic(&envelope) {
            Some(error) => Err((error, Some(envelope.job_id))),
            None => Ok(envelope),
        });
        let job_id = match &decoded {
            Ok(envelope) => envelope.job_id.clone(),
            Err((_, job_id)) => job_id.clone().unwrap_or_else(|| position_name(&record)),
        };
        let identity = RecordIdentity::new(
            self.log_name_of(token.partition),
            token.partition,
            token.offset,
            &job_id,
            written,
        );
        let key = record.key.as_deref().map(hash_key);
        let topic_id = match &delayed {
            Some(delayed) => delayed.topic_id.as_deref().map(Arc::from),
            None => self.logs.get(&token.partition).and_then(|log| log.topic.clone()),
        };
        let until = delayed.as_ref().map(|delayed| delayed.until);
        let mut ready_since = record.timestamp.max(until);
        let (content, admission) = match decoded {
            Ok(envelope) => {
                ready_since = ready_since.max(envelope.not_before);
                let spec = self.spec_of(&envelope, key, delayed.as_ref());
                let (first_error, waiting) =
                    delayed.map_or((None, None), |delayed| (delayed.first_error, delayed.waiting));
                let job = HeldJob::new(envelope, first_error, waiting);
                (Content::Job(job), Admission::Job(spec))
            }
            Err((error, _)) => {
                let first_error = delayed.and_then(|delayed| delayed.first_error);
                let rejected = NotRun::Rejected { error, first_error };
                (Content::NotRun(rejected, WriteState::Due), Admission::Reject { key })
            }
        };
        let mut held = HeldRecord::new(record, identity, job_id, content);
        held.topic_id = topic_id;
        held.ready_since = ready_since;
        (held, admission, unpacked)
    }

    /// What the engine has to know of a job.
    fn spec_of(&self, envelope: &Envelope, key: Option<u64>, delayed: Option<&Delayed>) -> JobSpec {
        let waiting = delayed.and_then(|delayed| delayed.waiting.as_ref());
        JobSpec {
            key,
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

    fn log_name_of(&self, partition: Partition) -> LogName {
        self.logs.get(&partition).map_or(LogName::UNKNOWN, LogIdentity::name)
    }

    fn check_reply_topic(&self, envelope: &Envelope) -> Option<JobError> {
        let topic = envelope.reply_to.as_deref().filter(|topic| !self.args.may_reply_to(topic))?;
        let message = format!(
            "`replyTo`: topic `{topic}` is not allowed: it must be listed in MCP_REPLY_TOPICS and not be a topic of the fleet"
        );
        Some(JobError::new(ErrorKind::InvalidEnvelope, message))
    }
}

/// Keys and seed are the same in every process; nothing is stored by this hash.
fn hash_key(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// What a record goes by that names no job.
fn position_name(record: &RawRecord) -> String {
    let position = &record.position;
    format!("{}/{}/{}", position.topic, position.partition, position.offset)
}
