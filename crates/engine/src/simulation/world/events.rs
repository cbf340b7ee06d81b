//! The events topic, a reader of it, and the server that writes overtaken ends again. The reader
//! follows the rule in `fleet_job::state`. The oracle is that the first end of a job stays its end,
//! whatever is written after it: by a worker that has run the job again, perhaps after it was
//! cancelled, or by the network, which has delayed a record.

use fleet_job::{
    event::{JobEvent, JobState, Source},
    state::{Entry, Restated, Standing, Verdict},
};

use super::*;

/// One record of the topic.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    job: u64,
    state: JobState,
    value: Vec<u8>,
}

/// What the reader knows about a job.
#[derive(Debug)]
struct Known {
    standing: Standing,
    /// The event that the reader takes for the job's state.
    state: Word,
    /// The end that was written first.
    first_end: Option<Vec<u8>>,
    /// The last record, which is all that compaction leaves.
    last: Word,
}

/// The topic, as far as it matters.
#[derive(Debug, Default)]
pub(crate) struct Events {
    next: i64,
    jobs: BTreeMap<u64, Known>,
    /// The records that the network delays.
    late: Vec<Word>,
    fault: Option<Fault>,
}

impl Word {
    /// The event that a job has entered a state. No two events have the same bytes, because real
    /// ones say when they were made.
    pub(crate) fn new(job: u64, state: JobState, number: u64) -> Self {
        Self { job, state, value: format!("{job} {} {number}", state.as_str()).into_bytes() }
    }

    fn event(&self) -> JobEvent {
        let offset = i64::try_from(self.job).unwrap();
        let source = Source { topic: "jobs".to_owned(), topic_id: None, partition: 0, offset };
        let mut event = JobEvent::new(self.job.to_string(), self.state, Timestamp::default());
        event.source = Some(source);
        event
    }

    fn entry(&self, offset: i64, restated: Option<Restated>) -> Entry {
        Entry::new(offset, &self.event(), &self.value, restated)
    }
}

impl Events {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, ..Self::default() }
    }

    /// The network delays a record.
    pub(crate) fn hold_back(&mut self, word: Word) {
        self.late.push(word);
    }

    /// One of the delayed records arrives.
    pub(crate) fn arrive(&mut self) {
        if let Some(word) = self.late.pop() {
            self.write(word, None);
        }
    }

    /// Writes a record, which the reader takes at once.
    pub(crate) fn write(&mut self, word: Word, restated: Option<Restated>) {
        let (id, offset) = (word.job, self.next);
        self.next += 1;
        let entry = word.entry(offset, restated);
        let is_end = word.state.is_terminal();
        let known = self.jobs.entry(id);
        let known = known.or_insert_with(|| Known {
            standing: Standing::new(&entry),
            state: word.clone(),
            first_end: None,
            last: word.clone(),
        });
        let is_state = match (known.standing.take(&entry), self.fault) {
            (_, Some(Fault::NewestWordStands)) => true,
            (_, Some(Fault::NewestEndStands)) if is_end => true,
            (verdict, _) => verdict == Verdict::State,
        };
        if is_state {
            known.state = word.clone();
        }
        if is_end {
            known.first_end.get_or_insert_with(|| word.value.clone());
        }
        known.last = word;
        known.check();
    }

    /// The server writes the ends again that other events follow.
    pub(crate) fn restate(&mut self) {
        if self.fault == Some(Fault::EndsNotRestated) {
            return;
        }
        let known = self.next - 1;
        let overtaken = self.jobs.values().filter(|job| job.standing.is_overtaken());
        let ends: Vec<_> =
            overtaken.map(|job| (job.state.clone(), job.standing.restated(known))).collect();
        for (end, restated) in ends {
            self.write(end, Some(restated));
        }
    }

    /// Checks that, when everything has arrived and the server has had time, a reader of what
    /// compaction leaves knows every end, too.
    pub(crate) fn check_what_compaction_leaves(&mut self) {
        while !self.late.is_empty() {
            self.arrive();
        }
        self.restate();
        for (id, job) in &self.jobs {
            let left = &job.last;
            ensure!(
                job.first_end.as_ref().is_none_or(|end| *end == left.value),
                "I3: {left:?} is what is left of job {id}, and not its first end"
            );
        }
    }
}

impl Known {
    fn check(&self) {
        let (state, first) = (&self.state, &self.first_end);
        ensure!(
            first.as_ref().is_none_or(|first| *first == state.value),
            "I3: the reader takes {state:?} for the state of a job whose first end is {first:?}"
        );
    }
}
