//! What a batch of records makes of the jobs that it is about. Pure: the jobs as the database holds
//! them go in, and the rows to write come out.

use std::collections::{BTreeMap, HashMap};

use fleet_job::state::{Standing, Verdict};

use crate::store::{LoggedEvent, Positions, Update};

/// What jobs that are counted together share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TallyKey {
    pub(super) partition: i32,
    /// The name of the state, which may be one of a newer version.
    pub(super) state: String,
    pub(super) owner: Option<String>,
    pub(super) tenant: Option<String>,
}

/// What the database holds of a job that a batch is about.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) tally: TallyKey,
    /// The size of the event.
    pub(super) bytes: i64,
    pub(super) standing: Standing,
    /// The standing as it is written there. A row is changed only if that is still so.
    pub(super) written: String,
}

/// A job while a batch is applied.
#[derive(Debug)]
struct Job<'a> {
    stored: Option<Stored>,
    now: Option<Present<'a>>,
}

/// A job that exists.
#[derive(Debug)]
struct Present<'a> {
    partition: i32,
    standing: Standing,
    /// The record that is the state; `None` if that is the stored one.
    record: Option<(&'a Update, &'a LoggedEvent)>,
}

/// What has to be written. Rows are sorted by the job's id.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    pub(super) inserted: Vec<NewRow<'a>>,
    /// Rows with another event, and the standing that they must still have.
    pub(super) replaced: Vec<(NewRow<'a>, String)>,
    pub(super) restood: Vec<Restood<'a>>,
    /// Ids of jobs to delete, and the standing that they must still have.
    pub(super) deleted: Vec<(&'a str, String)>,
    /// How many jobs and bytes come or go.
    pub(super) counts: BTreeMap<TallyKey, (i64, i64)>,
}

/// A job whose state is a record of the batch.
#[derive(Debug, PartialEq)]
pub(super) struct NewRow<'a> {
    pub(super) update: &'a Update,
    pub(super) logged: &'a LoggedEvent,
    pub(super) standing: Standing,
}

impl NewRow<'_> {
    /// Returns about how many bytes the row has.
    pub(super) fn size(&self) -> usize {
        self.logged.value.len()
    }
}

/// A job that keeps its event and is judged differently from now on.
#[derive(Debug, PartialEq)]
pub(super) struct Restood<'a> {
    pub(super) job_id: &'a str,
    pub(super) standing: Standing,
    /// The standing that the row must still have.
    pub(super) was: String,
}

/// Applies `updates` to the jobs in `stored`. `positions` is how far the log has been applied.
/// Returns what each record means, and what has to be written.
pub(super) fn fold_batch<'a>(
    updates: &'a [Update],
    positions: &Positions,
    mut stored: HashMap<String, Stored>,
) -> (Vec<Verdict>, Changes<'a>) {
    let mut jobs: BTreeMap<&'a str, Job<'a>> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(updates.len());

    for update in updates {
        let job_id = update.job_id.as_str();
        let job = jobs.entry(job_id).or_insert_with(|| Job::of(stored.remove(job_id)));
        verdicts.push(match update.was_applied(positions) {
            true => recall(job.stored.as_ref(), update),
            false => job.take(update),
        });
    }

    let mut changes = Changes::default();
    for (job_id, job) in jobs {
        changes.add(job_id, job);
    }
    (verdicts, changes)
}

/// Returns what a record meant that has been applied earlier, perhaps by another replica, as far as
/// the job's state tells. A record before the one that is the state now was the state in its time:
/// what followed an end without being a new job is behind that end.
fn recall(stored: Option<&Stored>, update: &Update) -> Verdict {
    let Some(stored) = stored.filter(|stored| stored.tally.partition == update.partition) else {
        return Verdict::State;
    };

    match &update.event {
        Some(logged) if update.offset >= stored.standing.offset() => {
            stored.standing.clone().take(&update.entry(logged))
        }
        _ => Verdict::State,
    }
}

impl<'a> Job<'a> {
    fn of(stored: Option<Stored>) -> Self {
        let now = stored.as_ref().map(|stored| Present {
            partition: stored.tally.partition,
            standing: stored.standing.clone(),
            record: None,
        });
        Self { stored, now }
    }

    /// Takes the next record of the job.
    fn take(&mut self, update: &'a Update) -> Verdict {
        // In another partition it is another job of the same name.
        let known = self.now.as_mut().filter(|now| now.partition == update.partition);

        let Some(logged) = &update.event else {
            return match known {
                Some(newer) if newer.standing.seen() >= update.offset => {
                    newer.standing.forget_older();
                    Verdict::Stale
                }
                _ => {
                    self.now = None;
                    Verdict::State
                }
            };
        };

        let entry = update.entry(logged);
        let partition = update.partition;
        let record = Some((update, logged));
        match known {
            Some(now) => {
                let verdict = now.standing.take(&entry);
                if verdict == Verdict::State {
                    now.record = record;
                }
                verdict
            }
            None => {
                self.now = Some(Present { partition, standing: Standing::new(&entry), record });
                Verdict::State
            }
        }
    }
}

impl<'a> Changes<'a> {
    fn add(&mut self, job_id: &'a str, job: Job<'a>) {
        match (job.stored, job.now) {
            (None, None) => {}
            (None, Some(now)) => {
                if let Some(row) = self.count_in(now) {
                    self.inserted.push(row);
                }
            }
            (Some(stored), None) => {
                self.count_out(&stored);
                self.deleted.push((job_id, stored.written));
            }
            (Some(stored), Some(now)) if now.record.is_none() => {
                if now.standing != stored.standing {
                    let (standing, was) = (now.standing, stored.written);
                    self.restood.push(Restood { job_id, standing, was });
                }
            }
            (Some(stored), Some(now)) => {
                self.count_out(&stored);
                if let Some(row) = self.count_in(now) {
                    self.replaced.push((row, stored.written));
                }
            }
        }
    }

    /// Counts a job whose event is to be written, and returns its row.
    fn count_in(&mut self, now: Present<'a>) -> Option<NewRow<'a>> {
        let (update, logged) = now.record?;

        let tally = TallyKey {
            partition: now.partition,
            state: logged.event.state.as_str().to_owned(),
            owner: logged.event.owner.clone(),
            tenant: logged.event.tenant.clone(),
        };
        let (jobs, bytes) = self.counts.entry(tally).or_default();
        *jobs += 1;
        *bytes += i64::try_from(logged.value.len()).unwrap_or(i64::MAX);
        Some(NewRow { update, logged, standing: now.standing })
    }

    fn count_out(&mut self, stored: &Stored) {
        let (jobs, bytes) = self.counts.entry(stored.tally.clone()).or_default();
        *jobs -= 1;
        *bytes -= stored.bytes;
    }
}
