//! The audit of a chaos run: compares topics, plans, ledgers and disturbances.
//!
//! A job may be repeated only after a loss that explains the repeat: one of its two ends was
//! written by a worker that was killed, stopped or cut off, at most the time of a commit earlier. A
//! worker that leaves in order causes no repeats. While a broker is down, or answers too late, an
//! acknowledgement can be lost, and then a worker writes the end of a job again (I2). This is
//! counted separately, because the job itself has run only once.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use fleet_job::{
    event::{JobEvent, JobState},
    outcome::{ErrorKind, JobError, WaitReason},
    time::Timestamp,
};

use super::{
    evidence::{COMMIT_MS, Cut, Loss, NOTICED_MS, Witness, read},
    jobs::{HOPELESS_ATTEMPTS, MAX_ATTEMPTS, Plan, is_for_remote},
    ledger::Ledger,
};
use crate::{
    oracle::{self, Account},
    topics::Record,
};

/// How long after a server is back calls can still meet what the cut has left: connections and
/// sessions that it no longer knows.
const CUT_MS: i64 = 10_000;

/// How long after an unexplained repeat its worker's log is shown: three times
/// `delivery.timeout.ms`, after which librdkafka gives up on a record.
const LOG_SHOWN_MS: i64 = 30_000;
/// How many unexplained repeats are shown with the log lines of their workers.
const SHOWN_WITH_LOG: usize = 5;
/// How many jobs with unplanned attempts are shown with their events, and the cuts near them.
const SHOWN_WITH_EVENTS: usize = 10;

/// All evidence of a run.
#[derive(Debug)]
pub struct Audit<'a> {
    /// The account of the topics.
    pub account: &'a Account,
    /// The submitted records and their plans.
    pub plans: &'a [(Record, Plan)],
    /// The calls that the tool saw.
    pub ledger: &'a Ledger,
    /// The losses of workers.
    pub losses: Vec<Loss>,
    /// The periods in which a broker was down or not in sync: start and end in milliseconds.
    pub outages: Vec<(i64, i64)>,
    /// All workers that have run.
    pub witnesses: &'a [Witness],
    /// When a server was killed or cut off, with the calls that it had.
    pub cuts: Vec<Cut>,
    /// Jobs with a cancel request after their end.
    pub cancelled_late: &'a HashSet<String>,
    /// `MCP_MAX_IN_FLIGHT` of the workers.
    pub in_flight: usize,
}

/// The result of an audit.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All violations.
    pub wrong: Vec<String>,
    ends: BTreeMap<&'static str, usize>,
    losses: usize,
    noticed: usize,
    repeated_ends: usize,
    rewritten_ends: usize,
    repeated_calls: usize,
    bound: usize,
    zombie_overlaps: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ends {:?}; {} workers lost their partitions and {} losses were noticed by workers; {} ends and {} calls \
             were repeated (bound {}), {} ends written again; {} calls overlapped while a worker did not know that it \
             had lost its partitions",
            self.ends,
            self.losses,
            self.noticed,
            self.repeated_ends,
            self.repeated_calls,
            self.bound,
            self.rewritten_ends,
            self.zombie_overlaps
        )
    }
}

impl Audit<'_> {
    /// Compares all evidence.
    pub fn report(mut self) -> Report {
        let mut report = Report { losses: self.losses.len(), ..Report::default() };
        let mut unwritten = BTreeMap::new();
        for witness in self.witnesses {
            let testimony = witness.testify(&mut report.wrong, &self.outages);
            report.noticed += testimony.losses.len();
            self.losses.extend(testimony.losses);
            unwritten.insert(witness.worker.as_str(), testimony.unwritten);
        }

        for state in [JobState::Succeeded, JobState::Failed, JobState::Expired, JobState::Running] {
            report.ends.insert(state.as_str(), self.account.count(state));
        }

        self.ends_are_as_planned(&mut report.wrong);
        self.repeats_are_explained(&unwritten, &mut report);
        self.calls_are_in_order(&mut report);
        report.wrong.sort();
        report
    }

    /// The events of a record, in the order of their topic.
    fn events(&self, record: &Record) -> &[Arc<JobEvent>] {
        let events = self.account.events.get(&(record.partition, record.offset));
        events.map_or(&[], Vec::as_slice)
    }

    fn ends(&self, record: &Record) -> impl Iterator<Item = &Arc<JobEvent>> {
        oracle::ends(self.events(record))
    }

    fn ends_are_as_planned(&self, wrong: &mut Vec<String>) {
        let mut shown = 0;
        for (record, plan) in self.plans {
            let before = wrong.len();
            wrong.extend(self.ends(record).enumerate().filter_map(|(at, end)| {
                // The record of an ended job can reach another worker, which knows only the cancel
                // request.
                let late = at > 0 && end.state == JobState::Cancelled;
                let is_planned = late && self.cancelled_late.contains(&end.job_id);
                if is_planned { None } else { plan.differs(end, self.lost_calls(record, end)) }
            }));

            wrong.extend(self.is_not_its_first_end(record));
            wrong.extend(self.attempts_spent_on_outages(record));
            wrong.extend(self.unplanned_calls(record, *plan));

            if let Some(text) = wrong.get_mut(before)
                && shown < SHOWN_WITH_EVENTS
            {
                shown += 1;
                text.push_str(&self.history(record));
            }
        }
    }

    /// The events of a record and the cuts that its job may have met, a line each.
    fn history(&self, record: &Record) -> String {
        let events = self.events(record);
        let told = |event: &Arc<JobEvent>| {
            let JobEvent { time, state, attempts, worker, error, waiting, .. } = &**event;
            let state = state.as_str();
            format!("\n    {time} {state}, attempts {attempts}, {worker:?}, {waiting:?}, {error:?}")
        };
        let times = || events.iter().map(|event| event.time.as_millis());
        let (Some(first), Some(last)) = (times().min(), times().max()) else {
            return String::new();
        };

        let is_near = |cut: &&Cut| cut.from <= last + CUT_MS && first <= cut.until + CUT_MS;
        let told_cut = |cut: &Cut| {
            let [from, until] = [cut.from, cut.until].map(Timestamp::from_millis_clamped);
            let what = if cut.only_remote { "hosted server" } else { "server" };
            format!("\n    the {what} was away from {from} to {until}, calls {}", cut.lost_calls)
        };
        let cuts = self.cuts.iter().filter(is_near).map(told_cut);
        events.iter().map(told).chain(cuts).collect()
    }

    /// The number of calls that a job can have lost with a server: by the cuts between its first
    /// event and this end, the first one or a repeated one. The first `running` event would be too
    /// late: a call that began while the job's last event was `queued` can be lost as well.
    fn lost_calls(&self, record: &Record, end: &JobEvent) -> u32 {
        let end = end.time.as_millis();
        let events = self.events(record);
        let Some(start) = events.iter().map(|event| event.time.as_millis()).min() else {
            return 0;
        };

        let is_remote = is_for_remote(&record.content);
        let met = self.cuts.iter().filter(|cut| {
            (is_remote || !cut.only_remote) && cut.from <= end && start <= cut.until + CUT_MS
        });
        met.map(|cut| cut.lost_calls).sum()
    }

    /// The violations of I7: attempts that a job has spent on something that was not its fault.
    fn attempts_spent_on_outages(&self, record: &Record) -> Vec<String> {
        let spent = self.events(record).iter().filter(|event| {
            let has_spent = matches!(event.state, JobState::Retrying | JobState::Failed);
            has_spent && event.waiting.is_none() && event.error.as_ref().is_some_and(is_of_outage)
        });
        let told = |event: &Arc<JobEvent>| {
            let (job, attempts, error) = (&event.job_id, event.attempts, &event.error);
            format!("{job}: attempt {attempts} was spent on an outage: {error:?}")
        };
        spent.map(told).collect()
    }

    /// The violation if a job was called too often, or the server did not see its calls.
    fn unplanned_calls(&self, record: &Record, plan: Plan) -> Option<String> {
        let last = self.account.last.get(&(record.partition, record.offset))?;
        let lost = self.lost_calls(record, last);
        let none = BTreeMap::new();
        let calls = self.ledger.calls.get(&last.job_id).unwrap_or(&none);
        let most = if plan == Plan::Hopeless { HOPELESS_ATTEMPTS } else { MAX_ATTEMPTS };
        let attempts = if plan == Plan::Undecodable { 0 } else { last.attempts };

        // Attempts whose calls were cut off before the server saw them.
        let unseen = (1..=attempts).filter(|attempt| !calls.contains_key(attempt)).count();
        let is_wrong = calls.keys().any(|attempt| *attempt > most) || unseen > lost as usize;
        is_wrong.then(|| {
            let (job, calls) = (&last.job_id, calls.keys());
            format!("{job}: {attempts} attempts were reported, {most} allowed; called: {calls:?}")
        })
    }

    /// The violation if the newest event of a job, which compaction keeps, is not the first end.
    fn is_not_its_first_end(&self, record: &Record) -> Option<String> {
        let first = self.ends(record).next()?;
        let last = self.account.last.get(&(record.partition, record.offset))?;
        let stands = |event: &JobEvent| format!("{} of {}", event.state.as_str(), event.time);
        (first != last).then(|| {
            format!(
                "{}: ended as {}, and its newest event is {}",
                first.job_id,
                stands(first),
                stands(last)
            )
        })
    }

    fn repeats_are_explained(&self, unwritten: &BTreeMap<&str, Vec<i64>>, report: &mut Report) {
        let mut unexplained = 0;
        for (record, _) in self.plans {
            let ends: Vec<_> = self.ends(record).collect();
            for pair in ends.windows(2) {
                if self.is_rewritten(unwritten, pair[0], pair[1]) {
                    report.rewritten_ends += 1;
                    continue;
                }
                report.repeated_ends += 1;
                if !self.losses.iter().any(|loss| pair.iter().any(|end| loss.explains(end))) {
                    let said = |end: &JobEvent| {
                        let worker = end.worker.clone().unwrap_or_default();
                        format!("{} by {worker} at {}", end.state.as_str(), end.time)
                    };
                    let (first, second) = (said(pair[0]), said(pair[1]));
                    let id = &pair[0].job_id;
                    let known = self
                        .losses
                        .iter()
                        .filter(|loss| pair[0].worker.as_ref() == Some(&loss.worker));
                    let known: Vec<_> = known.map(Loss::to_string).collect();
                    let mut text = format!(
                        "{id}: ended twice for no reason: {first}, {second}; losses: {known:?}"
                    );
                    if unexplained < SHOWN_WITH_LOG {
                        text.push_str(&self.logged_around(pair[0]));
                    }
                    unexplained += 1;
                    report.wrong.push(text);
                }
            }
        }

        report.repeated_calls = self.ledger.repeats();
        // For each loss: the jobs in flight, the events waiting to be written (at most the engine's
        // limit), and the ends not committed yet.
        let open = self.in_flight + 4 * self.in_flight + 64;
        let times = self.event_times();
        let uncommitted = |loss: &Loss| {
            let times = times.get(loss.worker.as_str()).map_or(&[][..], Vec::as_slice);
            let before = |time: i64| times.partition_point(|known| *known < time);
            before(loss.until + 1) - before(loss.from)
        };
        report.bound = self.losses.iter().map(|loss| open + uncommitted(loss)).sum();
        for (what, repeats) in [
            ("ends", report.repeated_ends),
            ("calls", report.repeated_calls),
            ("dead letters", self.account.dead_repeats.saturating_sub(report.rewritten_ends)),
        ] {
            if repeats > report.bound {
                report.wrong.push(format!(
                    "{repeats} {what} were repeated; at most {} may be",
                    report.bound
                ));
            }
        }
    }

    /// The number of calls of a job, and the log lines of the worker that wrote this end around it.
    fn logged_around(&self, end: &JobEvent) -> String {
        let at = end.time.as_millis();
        let calls = self.ledger.calls.get(&end.job_id);
        let near = |line: &&str| {
            let time = line.split(' ').next().and_then(|word| word.parse::<Timestamp>().ok());
            time.is_some_and(|time| {
                (at - COMMIT_MS..=at + LOG_SHOWN_MS).contains(&time.as_millis())
            })
        };

        let mut text = format!("; calls: {calls:?}");
        let theirs =
            self.witnesses.iter().filter(|witness| Some(&witness.worker) == end.worker.as_ref());
        for log in theirs.map(|witness| read(&witness.log)) {
            for line in log.lines().filter(near).take(20) {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }

    /// The times at which each worker wrote its events, in milliseconds and in order. A long run has
    /// hundreds of losses and millions of events, too many to scan all events for each loss.
    fn event_times(&self) -> BTreeMap<&str, Vec<i64>> {
        let mut times: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for event in self.account.events.values().flatten() {
            if let Some(worker) = &event.worker {
                times.entry(worker).or_default().push(event.time.as_millis());
            }
        }

        times.values_mut().for_each(|times| times.sort_unstable());
        times
    }

    /// Whether a worker has written one end twice: while a broker was down, or around its log line
    /// that an acknowledgement didn't arrive, if the job was called only once per attempt.
    /// librdkafka gives up on several records together, and sends others again.
    fn is_rewritten(
        &self,
        unwritten: &BTreeMap<&str, Vec<i64>>,
        first: &JobEvent,
        second: &JobEvent,
    ) -> bool {
        let at = first.time.as_millis();
        let during_outage =
            self.outages.iter().any(|(from, to)| (from - COMMIT_MS..=*to).contains(&at));
        let said = first.worker.as_deref().and_then(|worker| unwritten.get(worker));
        let in_vain = said.is_some_and(|times| {
            times.iter().any(|time| (time - NOTICED_MS..=time + COMMIT_MS).contains(&at))
        });
        let called = self.ledger.calls.get(&first.job_id);
        let called_once = called.is_none_or(|calls| calls.values().all(|count| *count == 1));
        first.worker == second.worker && (during_outage || (in_vain && called_once))
    }

    fn calls_are_in_order(&self, report: &mut Report) {
        for (key, jobs) in &self.ledger.order {
            let number =
                |job: &String| job.strip_prefix('c').and_then(|rest| rest.parse::<u64>().ok());
            if let Some(pair) = jobs.windows(2).find(|pair| number(&pair[0]) >= number(&pair[1])) {
                report.wrong.push(format!("key {key}: {} started after {}", pair[1], pair[0]));
            }
        }

        for overlap in &self.ledger.overlaps {
            if overlap.zombies {
                report.zombie_overlaps += 1;
            } else {
                report.wrong.push(format!("{overlap:?}"));
            }
        }
    }
}

/// Whether an error says that something other than the job is at fault, so that the job waits.
fn is_of_outage(error: &JobError) -> bool {
    let reason = error.data.as_ref().and_then(|data| data["reason"].as_str());
    matches!(error.kind, ErrorKind::Connect | ErrorKind::Unauthorized)
        || reason.is_some_and(|reason| WaitReason::of_answer(reason).is_some())
}

#[cfg(test)]
mod tests;
