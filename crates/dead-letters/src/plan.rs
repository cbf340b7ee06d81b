//! Decides what a replay does with each letter.

use std::collections::{BTreeMap, HashMap, HashSet};

use fleet_job::{record::Position, time::Timestamp, topics::Topics};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{letter::Letter, marker::Replayed};

/// What a replay does with a letter that the filter selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The letter's record goes back to the jobs topic.
    Replay,
    /// An earlier run has replayed the letter.
    AlreadyReplayed,
    /// The job has been replayed as often as allowed, and died each time.
    Parked,
    /// The letter has no value to replay: the record was too large for the topic.
    ValueOmitted,
    /// The letter is not a dead letter of this fleet's jobs topic.
    Foreign,
    /// Another letter of the same job is or was replayed; replaying both would run the job twice.
    Superseded,
}

impl Verdict {
    /// Explains the verdict to people.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Replay => "to be replayed",
            Self::AlreadyReplayed => "replayed before",
            Self::Parked => "parked: replayed too often (--max-replays)",
            Self::ValueOmitted => {
                "has no value: the original was too large for the dead-letter topic"
            }
            Self::Foreign => "not a dead letter of this jobs topic",
            Self::Superseded => {
                "skipped in favour of another letter of the same job (--every-letter)"
            }
        }
    }
}

/// Decides what to do with `letter`.
pub fn decide_verdict(
    letter: &Letter,
    replayed: &Replayed,
    topics: &Topics,
    max_replays: u32,
) -> Verdict {
    if letter.origin.as_ref().is_none_or(|origin| origin.topic != topics.jobs) {
        Verdict::Foreign
    } else if replayed.contains(letter) {
        Verdict::AlreadyReplayed
    } else if letter.value_omitted.is_some() {
        Verdict::ValueOmitted
    } else if letter.replays >= max_replays {
        Verdict::Parked
    } else {
        Verdict::Replay
    }
}

/// Collects letters, in offset order within each partition, and then decides which to replay.
#[derive(Debug, Default)]
pub struct Planner {
    counts: BTreeMap<Verdict, usize>,
    candidates: Vec<Candidate>,
    /// The newest time so far in each partition.
    latest: BTreeMap<i32, Option<Timestamp>>,
    /// The newest letter of each job, whether or not it is replayed.
    newest: HashMap<String, Age>,
    /// Records with a replayed letter. A record has two letters if its worker was killed after
    /// writing the first.
    replayed: HashSet<(String, Option<Position>)>,
}

/// A letter that may be replayed.
#[derive(Debug)]
struct Candidate {
    /// The sort key for the order of replaying.
    turn: (Option<Timestamp>, i32, i64),
    job_id: String,
    origin: Option<Position>,
    age: Age,
}

/// Orders the letters of one job: by how often its record had been replayed, by time of death, and
/// by position.
type Age = (u32, Option<Timestamp>, i32, i64);

/// The plan of a run.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The letters to replay, by partition and offset.
    pub replay: HashSet<(i32, i64)>,
    /// The letters skipped in favour of another one of the same job, by partition and offset.
    pub superseded: HashSet<(i32, i64)>,
    /// The number of letters excluded only by the maximum.
    pub left: usize,
    /// The number of letters with each verdict.
    pub counts: BTreeMap<Verdict, usize>,
}

impl Planner {
    /// Adds a letter that the filter selects, with its verdict.
    pub fn add(&mut self, letter: &Letter, verdict: Verdict) {
        *self.counts.entry(verdict).or_default() += 1;
        if verdict == Verdict::Replay {
            let (partition, offset) = letter.partition_offset();
            // Workers' clocks differ, and jobs of one key must keep their order: within a
            // partition, no letter counts as older than its predecessor.
            let latest = self.latest.entry(partition).or_default();
            *latest = (*latest).max(letter.time);
            self.candidates.push(Candidate {
                turn: (*latest, partition, offset),
                job_id: letter.job_id.clone(),
                origin: letter.origin.clone(),
                age: age(letter),
            });
        }
    }

    /// Records any letter, so that older ones of the same job are skipped. Letters that cannot be
    /// replayed don't count.
    pub fn record_letter(&mut self, letter: &Letter, verdict: Verdict) {
        if matches!(verdict, Verdict::Replay | Verdict::AlreadyReplayed | Verdict::Parked) {
            let mut age = age(letter);
            // A replayed letter counts only by its time, since the job may have been submitted
            // again afterwards.
            if verdict == Verdict::AlreadyReplayed {
                age.0 = 0;
            }
            let newest = self.newest.entry(letter.job_id.clone()).or_insert(age);
            *newest = (*newest).max(age);
        }
        if verdict == Verdict::AlreadyReplayed {
            self.replayed.insert((letter.job_id.clone(), letter.origin.clone()));
        }
    }

    /// Plans the oldest `max` letters, or all. Of each recorded job, only the newest letter is
    /// replayed.
    pub fn finish(mut self, max: Option<usize>) -> Plan {
        let counts_for_its_job = |candidate: &Candidate| {
            let is_newest =
                self.newest.get(&candidate.job_id).is_none_or(|age| *age == candidate.age);
            is_newest
                && !self.replayed.contains(&(candidate.job_id.clone(), candidate.origin.clone()))
        };
        let (mut candidates, superseded): (Vec<_>, Vec<_>) =
            self.candidates.into_iter().partition(counts_for_its_job);

        if !superseded.is_empty() {
            self.counts.insert(Verdict::Replay, candidates.len());
            self.counts.insert(Verdict::Superseded, superseded.len());
        }

        candidates.sort_unstable_by_key(|candidate| candidate.turn);
        let take = max.unwrap_or(usize::MAX).min(candidates.len());
        let left = candidates.len() - take;
        candidates.truncate(take);

        let spot = |candidate: &Candidate| (candidate.turn.1, candidate.turn.2);
        Plan {
            replay: candidates.iter().map(spot).collect(),
            superseded: superseded.iter().map(spot).collect(),
            left,
            counts: self.counts,
        }
    }
}

fn age(letter: &Letter) -> Age {
    let (partition, offset) = letter.partition_offset();
    (letter.replays, letter.time, partition, offset)
}

impl Plan {
    /// Returns the number of letters with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.counts.get(&verdict).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::*;
    use crate::{marker::tests::marker_of, testing::letter};

    #[test]
    fn verdicts() {
        let topics = Topics::default();
        let fresh = letter(1, "j", ErrorKind::Tool, 0);
        let mut replayed = Replayed::default();
        let check = |letter: &Letter, replayed: &Replayed, max, expected| {
            assert_eq!(decide_verdict(letter, replayed, &topics, max), expected, "{letter:?}");
        };

        check(&fresh, &replayed, 3, Verdict::Replay);
        check(&fresh, &replayed, 0, Verdict::Parked);
        check(&letter(1, "j", ErrorKind::Tool, 2), &replayed, 3, Verdict::Replay);
        check(&letter(1, "j", ErrorKind::Tool, 3), &replayed, 3, Verdict::Parked);
        check(&letter(1, "j", ErrorKind::Tool, 4), &replayed, 3, Verdict::Parked);

        check(
            &Letter { value_omitted: Some(9), ..fresh.clone() },
            &replayed,
            3,
            Verdict::ValueOmitted,
        );

        check(&Letter { origin: None, ..fresh.clone() }, &replayed, 3, Verdict::Foreign);

        let mut elsewhere = fresh.clone();
        elsewhere.origin.as_mut().unwrap().topic = "other".into();
        check(&elsewhere, &replayed, 3, Verdict::Foreign);

        replayed.add("mcp-jobs.dlq", &marker_of(&fresh));
        check(&fresh, &replayed, 3, Verdict::AlreadyReplayed);
    }

    #[test]
    fn max_takes_the_oldest_and_keeps_the_order_within_a_partition() {
        let mut planner = Planner::default();
        // Partition 0 was written by a worker whose clock went back: offset 2 must not overtake
        // offset 1.
        for (partition, offset, seconds) in [(0, 1, 50), (1, 7, 20), (0, 2, 10), (1, 8, 60)] {
            let mut letter = letter(offset, "j", ErrorKind::Tool, 0);
            letter.place.partition = partition;
            letter.time = Timestamp::from_millis(seconds * 1000);
            planner.add(&letter, Verdict::Replay);
        }
        planner.add(&letter(9, "j", ErrorKind::Tool, 3), Verdict::Parked);

        let plan = planner.finish(Some(2));
        assert_eq!(plan.replay, HashSet::from([(1, 7), (0, 1)]));
        assert_eq!(
            (plan.left, plan.count(Verdict::Replay), plan.count(Verdict::Parked)),
            (2, 4, 1)
        );
    }

    #[test]
    fn only_the_newest_letter_of_a_job_is_replayed() {
        let check = |letters: &[(Letter, Verdict)], replay: &[i64], superseded: usize| {
            let mut planner = Planner::default();
            for (letter, verdict) in letters {
                planner.record_letter(letter, *verdict);
                planner.add(letter, *verdict);
            }
            let plan = planner.finish(None);
            let expected: HashSet<_> = replay.iter().map(|offset| (0, *offset)).collect();
            assert_eq!(
                (&plan.replay, plan.superseded.len()),
                (&expected, superseded),
                "{letters:?}"
            );
            assert_eq!(plan.count(Verdict::Superseded), superseded);
        };
        let of = |offset, job: &str, replays| letter(offset, job, ErrorKind::Tool, replays);
        let (first, second) = (of(1, "j", 0), of(2, "j", 0));
        use Verdict::{AlreadyReplayed, Replay, ValueOmitted};
        check(&[(first.clone(), Replay), (second.clone(), Replay)], &[2], 1);
        check(&[(first.clone(), Replay), (of(2, "k", 0), Replay)], &[1, 2], 0);
        // Once the newest has been replayed, a later run does not return to the others.
        check(&[(first.clone(), Replay), (second.clone(), AlreadyReplayed)], &[], 1);
        check(&[(first.clone(), AlreadyReplayed), (of(3, "j", 1), Replay)], &[3], 0);
        // A letter of the replayed record is newer, whatever the workers' clocks say.
        check(&[(of(1, "j", 1), Replay), (second.clone(), Replay)], &[1], 1);
        check(&[(first.clone(), Replay), (second, ValueOmitted)], &[1], 0);
        // The job is submitted again after all that.
        let mut anew = of(4, "j", 0);
        anew.time = Timestamp::from_millis(4_000_000_000_000);
        check(&[(of(3, "j", 1), AlreadyReplayed), (anew, Replay)], &[4], 0);
        // A late second letter of a replayed record.
        let late = Letter { origin: first.origin.clone(), ..of(2, "j", 0) };
        check(&[(first, AlreadyReplayed), (late, Replay)], &[], 1);
    }

    #[test]
    fn without_max_everything_is_replayed() {
        let mut planner = Planner::default();
        planner.add(&letter(1, "j", ErrorKind::Tool, 0), Verdict::Replay);
        let plan = planner.finish(None);
        assert_eq!((plan.replay.len(), plan.left), (1, 0));
    }
}
