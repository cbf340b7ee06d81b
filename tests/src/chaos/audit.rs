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
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_job::{
    event::{JobEvent, JobState},
    outcome::{ErrorKind, JobError, WaitReason},
    time::Timestamp,
};

use super::{
    jobs::{HOPELESS_ATTEMPTS, MAX_ATTEMPTS, Plan, is_for_remote},
    ledger::Ledger,
};
use crate::{
    oracle::{self, Account},
    topics::Record,
};

/// A settled job is committed within `MCP_COMMIT_INTERVAL` (1 s) and the time that a commit takes
/// on a busy machine.
pub const COMMIT_MS: i64 = 4_000;
/// How long before and after a worker's log line about lost partitions that loss explains repeats:
/// one session timeout before, when the worker didn't know yet, and the time to write its events.
const NOTICED_MS: i64 = 10_000;
/// How long after a server is back calls can still meet what the cut has left: connections and
/// sessions that it no longer knows.
const CUT_MS: i64 = 10_000;

/// How long after an unexplained repeat its worker's log is shown: three times
/// `delivery.timeout.ms`, after which librdkafka gives up on a record.
const LOG_SHOWN_MS: i64 = 30_000;
/// How many unexplained repeats are shown with the log lines of their workers.
const SHOWN_WITH_LOG: usize = 5;

/// A worker has stopped, or may have been replaced, without giving its partitions back.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The worker's name in events.
    pub worker: String,
    /// The first time, in milliseconds, at which an end that the worker wrote may be repeated.
    pub from: i64,
    /// The last such time.
    pub until: i64,
}

impl Loss {
    fn explains(&self, end: &JobEvent) -> bool {
        end.worker.as_deref() == Some(&self.worker)
            && (self.from..=self.until).contains(&end.time.as_millis())
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, until] = [self.from, self.until].map(Timestamp::from_millis_clamped);
        write!(f, "{from} to {until}")
    }
}

/// A server was killed or cut off while it had calls.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The time it began, in milliseconds.
    pub from: i64,
    /// The time from which calls were answered again, in milliseconds.
    pub until: i64,
    /// The number of calls that one job can have lost.
    pub lost_calls: u32,
    /// Whether only calls of the hosted remote server were lost.
    pub only_remote: bool,
}

/// A worker that has run, and its log.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The worker's name in events.
    pub worker: String,
    /// The path of its log.
    pub log: PathBuf,
}

/// What workers log when they have lost partitions without a last commit.
const ADMISSIONS: [&str; 3] =
    ["lost: their jobs will run elsewhere", "jobs may repeat", "will run again elsewhere"];

/// What a worker logs when the end of a job was not acknowledged in time.
const UNWRITTEN: &str = "the end of a job could not be written";

/// The evidence in a worker's log.
#[derive(Debug, Default)]
struct Testimony {
    losses: Vec<Loss>,
    /// The times at which it stopped waiting for the acknowledgement of an end.
    unwritten: Vec<i64>,
}

impl Witness {
    /// Reads the losses that the worker has noticed itself, for example after a broker failed, and
    /// reports violated invariants.
    fn testify(&self, wrong: &mut Vec<String>, outages: &[(i64, i64)]) -> Testimony {
        let mut testimony = Testimony::default();
        for line in read(&self.log).lines() {
            if line.contains("invariant violated") || line.contains("panicked") {
                wrong.push(format!("{}: {line}", self.worker));
            }
            let time = line.split(' ').next().and_then(|word| word.parse::<Timestamp>().ok());
            let Some(time) = time.map(Timestamp::as_millis) else { continue };
            if line.contains(UNWRITTEN) {
                testimony.unwritten.push(time);
            }
            if ADMISSIONS.iter().any(|words| line.contains(words)) {
                let (from, until) = (time - NOTICED_MS, time + NOTICED_MS);
                // While the group's coordinator is down, commits fail without any notice.
                let since = outages
                    .iter()
                    .filter(|(down, up)| *down < time && from < *up)
                    .map(|(down, _)| *down);
                let from = since.chain([from + COMMIT_MS]).min().unwrap_or(from) - COMMIT_MS;
                testimony.losses.push(Loss { worker: self.worker.clone(), from, until });
            }
        }

        testimony
    }
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

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
        for (record, plan) in self.plans {
            let lost = self.lost_calls(record);
            wrong.extend(self.ends(record).enumerate().filter_map(|(at, end)| {
                // The record of an ended job can reach another worker, which knows only the cancel
                // request.
                let late = at > 0 && end.state == JobState::Cancelled;
                let is_planned = late && self.cancelled_late.contains(&end.job_id);
                if is_planned { None } else { plan.differs(end, lost) }
            }));

            wrong.extend(self.is_not_its_first_end(record));
            wrong.extend(self.attempts_spent_on_outages(record));
            wrong.extend(self.unplanned_calls(record, *plan, lost));
        }
    }

    /// The number of calls that a job can have lost with a server: by the cuts between its first
    /// start and its end.
    fn lost_calls(&self, record: &Record) -> u32 {
        let events = self.events(record);
        let start = events.iter().find(|event| event.state == JobState::Running);
        let start = start.or(events.first()).map(|event| event.time.as_millis());
        let end = self.ends(record).next().map(|event| event.time.as_millis());
        let (Some(start), Some(end)) = (start, end) else { return 0 };

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
    fn unplanned_calls(&self, record: &Record, plan: Plan, lost: u32) -> Option<String> {
        let last = self.account.last.get(&(record.partition, record.offset))?;
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
mod tests {
    use fleet_job::event::{Source, Waiting};

    use super::*;
    use crate::{chaos::ledger::Overlap, topics::Outgoing};

    fn end(worker: &str, at: i64, attempts: u32) -> JobEvent {
        let at = Timestamp::from_millis(at).expect("a time");
        let source = Source { topic: "jobs".into(), topic_id: None, partition: 0, offset: 0 };
        let bare = JobEvent::new("c0", JobState::Succeeded, at);
        JobEvent { attempts, worker: Some(worker.into()), source: Some(source), ..bare }
    }

    /// The violations of one job with these calls and ends, if worker `a` was lost at 100,000, the
    /// server was killed at 150,000, the remote server was cut off at 170,000, and a broker was down
    /// from 200,000 to 210,000.
    fn wrong(ends: &[JobEvent], calls: &[(u32, usize)]) -> Vec<String> {
        wrong_by(&[], ends, calls)
    }

    fn wrong_by(witnesses: &[Witness], ends: &[JobEvent], calls: &[(u32, usize)]) -> Vec<String> {
        let mut account = Account::default();
        account.events.insert((0, 0), ends.iter().cloned().map(Arc::new).collect());
        // A server restates the first end if another end follows it.
        let first = ends.iter().find(|event| event.state.is_terminal()).expect("an end");
        account.last.insert((0, 0), Arc::new(first.clone()));
        audited(&account, witnesses, calls)
    }

    fn audited(account: &Account, witnesses: &[Witness], calls: &[(u32, usize)]) -> Vec<String> {
        let record = Record {
            partition: 0,
            offset: 0,
            timestamp: None,
            content: Outgoing::value("a job").key("k"),
        };

        let mut ledger = Ledger::default();
        ledger.calls.insert("c0".into(), calls.iter().copied().collect());
        let audit = Audit {
            account,
            plans: &[(record, Plan::Succeeds { failures: 1 })],
            ledger: &ledger,
            losses: vec![Loss { worker: "a".into(), from: 96_000, until: 100_000 }],
            outages: vec![(200_000, 210_000)],
            witnesses,
            cuts: vec![
                Cut { from: 150_000, until: 152_000, lost_calls: 1, only_remote: false },
                Cut { from: 170_000, until: 172_000, lost_calls: 1, only_remote: true },
            ],
            cancelled_late: &HashSet::new(),
            in_flight: 1,
        };

        audit.report().wrong
    }

    fn check(ends: &[JobEvent], calls: &[(u32, usize)], expected: &[&str]) {
        let wrong = wrong(ends, calls);
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.contains(expected), "{wrong} should be about {expected}");
        }
    }

    const CALLS: [(u32, usize); 2] = [(1, 1), (2, 1)];

    #[test]
    fn one_end_as_planned_is_no_violation() {
        check(&[end("a", 50_000, 2)], &CALLS, &[]);
    }

    fn running(at: i64) -> JobEvent {
        JobEvent { state: JobState::Running, ..end("b", at, 0) }
    }

    #[test]
    fn a_cut_explains_one_more_attempt_of_a_job_that_it_met() {
        let calls = [(1, 1), (2, 1), (3, 1)];
        check(&[running(149_000), end("b", 153_000, 3)], &calls, &[]);
        check(&[running(149_000), end("b", 153_000, 4)], &calls, &["succeeded after 4 attempts"]);
        check(&[running(163_000), end("b", 164_000, 3)], &calls, &["succeeded after 3 attempts"]);
        check(&[running(169_000), end("b", 173_000, 3)], &calls, &["succeeded after 3 attempts"]);
    }

    #[test]
    fn an_attempt_that_is_spent_on_an_outage_is_found() {
        let error = |kind, data| Some(JobError { data, ..JobError::new(kind, "no") });
        let busy = Some(serde_json::json!({"reason": "server-busy"}));
        for (error, is_wrong) in [
            (error(ErrorKind::Connect, None), true),
            (error(ErrorKind::JsonRpc, busy.clone()), true),
            (error(ErrorKind::ConnectionLost, None), false),
        ] {
            let failed = JobEvent { state: JobState::Retrying, error, ..end("b", 149_500, 1) };
            let events = [running(149_000), failed.clone(), end("b", 153_000, 2)];
            let expected = is_wrong.then_some("spent on an outage");
            check(&events, &CALLS, expected.as_slice());

            let waiting =
                Waiting { reason: "server-busy".into(), server: None, since: failed.time };
            let waits = JobEvent { waiting: Some(waiting), ..failed };
            check(&[running(149_000), waits, end("b", 153_000, 2)], &CALLS, &[]);
        }
    }

    #[test]
    fn unplanned_and_missing_attempts_are_found() {
        check(&[end("a", 50_000, 3)], &[(1, 1), (2, 1), (3, 1)], &["succeeded after 3 attempts"]);
        check(&[end("a", 50_000, 2)], &[(2, 1)], &["2 attempts were reported"]);
        let beyond = [(1, 1), (2, 1), (MAX_ATTEMPTS + 1, 1)];
        check(&[end("a", 50_000, 2)], &beyond, &["2 attempts were reported"]);
    }

    #[test]
    fn repeats_need_a_loss_that_explains_them() {
        check(&[end("a", 98_000, 2), end("b", 107_000, 2)], &CALLS, &[]);
        // The end was committed long before the worker was killed; the worker was not killed.
        check(&[end("a", 90_000, 2), end("b", 107_000, 2)], &CALLS, &["ended twice for no reason"]);
        check(&[end("c", 98_000, 2), end("b", 107_000, 2)], &CALLS, &["ended twice for no reason"]);
    }

    #[test]
    fn an_end_is_written_again_by_the_same_worker_and_in_an_outage_only() {
        check(&[end("b", 201_000, 2), end("b", 205_000, 2)], &CALLS, &[]);
        check(
            &[end("b", 301_000, 2), end("b", 305_000, 2)],
            &CALLS,
            &["ended twice for no reason"],
        );
        check(
            &[end("b", 201_000, 2), end("c", 205_000, 2)],
            &CALLS,
            &["ended twice for no reason"],
        );
    }

    /// If a broker answers too late, a worker logs that and writes an end again; the job itself has
    /// run once.
    #[test]
    fn an_end_may_be_written_again_after_a_missing_acknowledgement() {
        let directory = crate::bins::scratch("audit");
        crate::process::remove_at_exit(&directory);
        let at = Timestamp::from_millis(304_000).expect("a time");
        let log = directory.join("log");
        let line =
            format!("{at} ERROR shell: {UNWRITTEN}; its offset is held and it is written again\n");
        std::fs::write(&log, line).expect("a log");
        let said = [Witness { worker: "b".into(), log }];
        let twice = [end("b", 301_000, 2), end("b", 301_001, 2)];
        assert_eq!(wrong_by(&said, &twice, &CALLS), [] as [String; 0]);

        for (ends, calls) in [
            (&twice, &[(1, 1), (2, 2)]),
            (&[end("b", 280_000, 2), end("b", 280_001, 2)], &CALLS),
            (&[end("c", 301_000, 2), end("c", 301_001, 2)], &CALLS),
        ] {
            let wrong = wrong_by(&said, ends, calls);
            assert!(
                wrong.iter().any(|wrong| wrong.contains("ended twice for no reason")),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn a_newest_event_that_is_not_the_first_end_is_found() {
        let ends = [end("a", 98_000, 2), end("b", 107_000, 2)];
        let mut account = Account::default();
        account.last.insert((0, 0), Arc::new(ends[1].clone()));
        account.events.insert((0, 0), ends.iter().cloned().map(Arc::new).collect());

        let wrong = audited(&account, &[], &CALLS);

        assert!(wrong.len() == 1 && wrong[0].contains("its newest event is"), "{wrong:?}");
    }

    #[test]
    fn overlaps_and_a_wrong_order_are_found() {
        let account = Account::default();
        let overlap =
            |zombies| Overlap { key: "k".into(), job: "c2".into(), during: "c1".into(), zombies };
        let ledger = Ledger {
            order: BTreeMap::from([(
                "k".to_owned(),
                vec!["c9".to_owned(), "c10".to_owned(), "c3".to_owned()],
            )]),
            overlaps: vec![overlap(true), overlap(false)],
            ..Ledger::default()
        };

        let (losses, outages) = (Vec::new(), Vec::new());
        let audit = Audit {
            account: &account,
            plans: &[],
            ledger: &ledger,
            losses,
            outages,
            witnesses: &[],
            cuts: Vec::new(),
            cancelled_late: &HashSet::new(),
            in_flight: 1,
        };

        let wrong = audit.report().wrong;
        assert!(wrong.iter().any(|wrong| wrong.contains("c3 started after c10")), "{wrong:?}");
        assert_eq!(wrong.iter().filter(|wrong| wrong.contains("Overlap")).count(), 1, "{wrong:?}");
    }
}
