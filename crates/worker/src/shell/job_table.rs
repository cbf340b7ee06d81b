//! The jobs in this worker's hands, by token and by id.

use std::collections::HashMap;

use fleet_engine::Token;
use fleet_job::time::Timestamp;
use foldhash::fast::RandomState;

use super::{held_job::HeldJob, held_record::HeldRecord};

/// All jobs in this worker's hands, by token and by id. Several records can have one job id.
#[derive(Default)]
pub(super) struct JobTable {
    /// In boxes: a table of large entries is moved whole when it grows, and is half empty most of
    /// the time.
    held: HashMap<Token, Box<HeldRecord>, RandomState>,
    by_id: HashMap<String, Vec<Token>, RandomState>,
}

impl JobTable {
    pub(super) fn insert(&mut self, token: Token, held: Box<HeldRecord>) {
        self.by_id.entry(held.job_id.clone()).or_default().push(token);
        self.held.insert(token, held);
    }

    pub(super) fn remove(&mut self, token: &Token) -> Option<Box<HeldRecord>> {
        let held = self.held.remove(token)?;
        if let Some(tokens) = self.by_id.get_mut(&held.job_id) {
            tokens.retain(|other| other != token);
            if tokens.is_empty() {
                self.by_id.remove(&held.job_id);
            }
        }
        Some(held)
    }

    pub(super) fn get(&self, token: &Token) -> Option<&HeldRecord> {
        self.held.get(token).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, token: &Token) -> Option<&mut HeldRecord> {
        self.held.get_mut(token).map(Box::as_mut)
    }

    /// The job of this token; `None` also for records that are not run.
    pub(super) fn job_mut(&mut self, token: &Token) -> Option<&mut HeldJob> {
        self.get_mut(token)?.job_mut()
    }

    pub(super) fn contains(&self, token: &Token) -> bool {
        self.held.contains_key(token)
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Since when the oldest record of a topic in hand could have been done.
    pub(super) fn oldest_ready(&self, topic: u16) -> Option<Timestamp> {
        let of_topic = self.held.iter().filter(|(token, _)| token.partition.topic == topic);
        of_topic.filter_map(|(_, held)| held.ready_since).min()
    }

    /// Whether a copy of this record that is before it in its partition is in hand. As long as that
    /// one is open, nothing is committed past it, so whoever takes the partition over reads it
    /// again. A record of an earlier assignment proves nothing: it is about to be dropped.
    pub(super) fn has_earlier_copy(&self, token: Token, held: &HeldRecord) -> bool {
        let is_earlier = |other: &Token| {
            (other.partition, other.generation) == (token.partition, token.generation)
                && other.offset < token.offset
        };
        let of_job = self.by_id.get(&held.job_id).into_iter().flatten();
        let mut others = of_job.filter(|other| is_earlier(other)).filter_map(|at| self.get(at));
        others.any(|other| other.identity == held.identity)
    }

    /// The jobs of this id.
    pub(super) fn tokens_of(&self, job_id: &str) -> Vec<Token> {
        self.by_id.get(job_id).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use fleet_group::{Partition, log::LogName};
    use fleet_job::record::{Position, RawRecord};

    use super::{
        super::{
            held_record::{Content, NotRun},
            recently_settled::RecordIdentity,
            write_state::WriteState,
        },
        *,
    };

    const P: Partition = Partition { topic: 0, number: 0 };

    /// The record of job `id` whose copies stand for the one at `continues`.
    fn held(id: &str, continues: i64) -> HeldRecord {
        let position = Position { topic: "t".to_owned(), partition: 0, offset: continues };
        let record =
            RawRecord { position, timestamp: None, key: None, value: None, headers: Vec::new() };
        HeldRecord::new(
            record,
            RecordIdentity::new(LogName::UNKNOWN, P, continues, id, None),
            id.to_owned(),
            Content::NotRun(NotRun::Stray, WriteState::Due),
        )
    }

    #[test]
    fn jobs_are_found_by_id_for_as_long_as_they_are_held() {
        let token = |offset| Token { partition: P, offset, generation: 1 };

        let mut jobs = JobTable::default();
        for (offset, id) in [(0, "a"), (1, "b"), (2, "a")] {
            jobs.insert(token(offset), Box::new(held(id, offset)));
        }

        assert_eq!(jobs.tokens_of("a"), [token(0), token(2)]);
        assert!(jobs.remove(&token(0)).is_some() && jobs.remove(&token(0)).is_none());
        assert_eq!(jobs.tokens_of("a"), [token(2)]);

        jobs.remove(&token(2));
        assert!(jobs.tokens_of("a").is_empty() && !jobs.by_id.contains_key("a"));
        assert_eq!((jobs.len(), jobs.contains(&token(1))), (1, true));
    }

    #[test]
    fn only_an_earlier_copy_of_the_same_assignment_counts() {
        let token = |offset, generation| Token { partition: P, offset, generation };
        let mut jobs = JobTable::default();
        jobs.insert(token(20, 2), Box::new(held("a", 7)));

        assert!(jobs.has_earlier_copy(token(21, 2), &held("a", 7)));
        assert!(!jobs.has_earlier_copy(token(21, 2), &held("a", 8)), "the job's next return");
        assert!(!jobs.has_earlier_copy(token(20, 3), &held("a", 7)), "the record, read again");
        assert!(!jobs.has_earlier_copy(token(21, 3), &held("a", 7)), "assigned anew since");
        assert!(!jobs.has_earlier_copy(token(19, 2), &held("a", 7)), "before the one in hand");
    }
}
