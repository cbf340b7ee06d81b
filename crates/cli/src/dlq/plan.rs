//! What `dlq replay` does with each letter. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use fleet_job::{record::Position, time::Timestamp, topics::Topics};
use serde::Serialize;

use super::{letter::Letter, marker::Replayed};

/// What becomes of a letter that the filter lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Its record goes back to the jobs topic.
    Replay,
    /// That has been done, by an earlier run.
    AlreadyReplayed,
    /// Its job has been replayed as often as is allowed, and dies each time.
    Parked,
    /// It has no value to replay: the record was too large for the topic.
    ValueOmitted,
    /// It is no dead letter of this fleet's jobs topic.
    Foreign,
    /// Another letter of the same job is replayed, or was: replaying both would run the job twice.
    Superseded,
}

impl Verdict {
    /// In a sentence, for people.
    pub(super) fn explain(self) -> &'static str {
        match self {
            Self::Replay => "to be replayed",
            Self::AlreadyReplayed => "replayed before",
            Self::Parked => "parked: replayed too often (--max-replays)",
            Self::ValueOmitted => {
                "has no value: the original was too large for the dead-letter topic"
            }
            Self::Foreign => "no dead letter of this jobs topic",
            Self::Superseded => "left out: another letter of the same job counts (--every-letter)",
        }
    }
}

/// What to do with `letter`.
pub(super) fn verdict(
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

/// Collects letters, in the order of their offsets in each partition, and then says which are
/// replayed.
#[derive(Debug, Default)]
pub(super) struct Planner {
    counts: BTreeMap<Verdict, usize>,
    candidates: Vec<Candidate>,
    /// The newest time so far of each partition.
    latest: BTreeMap<i32, Option<Timestamp>>,
    /// The newest letter of each job, whether or not it is replayed.
    newest: HashMap<String, Age>,
    /// Records of which a letter was replayed. A record has two letters if its worker was killed
    /// after it wrote the first.
    replayed: HashSet<(String, Option<Position>)>,
}

/// A letter that may be replayed.
#[derive(Debug)]
struct Candidate {
    /// When it is its turn.
    turn: (Option<Timestamp>, i32, i64),
    job_id: String,
    origin: Option<Position>,
    age: Age,
}

/// Orders the letters of one job: how often its record had been replayed, when it died, and where
/// the letter is.
type Age = (u32, Option<Timestamp>, i32, i64);

/// What a run does.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Partition and offset of the letters that are replayed.
    pub(super) replay: HashSet<(i32, i64)>,
    /// Partition and offset of the letters that are left out for another one of the same job.
    pub(super) superseded: HashSet<(i32, i64)>,
    /// Letters that would be, but for `--max`.
    pub(super) left: usize,
    pub(super) counts: BTreeMap<Verdict, usize>,
}

impl Planner {
    /// Takes in a letter that the filter lets through, and what is to become of it.
    pub(super) fn add(&mut self, letter: &Letter, verdict: Verdict) {
        *self.counts.entry(verdict).or_default() += 1;
        if verdict == Verdict::Replay {
            let (partition, offset) = letter.spot();
            // Clocks of workers differ, and jobs of one key must go back in their order: within a
            // partition no letter counts as older than the one before it.
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

    /// Takes in any letter, so that older ones of the same job are left out. Letters that can't be
    /// replayed don't count.
    pub(super) fn note(&mut self, letter: &Letter, verdict: Verdict) {
        if matches!(verdict, Verdict::Replay | Verdict::AlreadyReplayed | Verdict::Parked) {
            let mut age = age(letter);
            // What is dealt with counts by its time only: the job may have been submitted anew
            // since then.
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

    /// The oldest `max` letters, or all; of each job that was noted, the newest letter only.
    pub(super) fn finish(mut self, max: Option<usize>) -> Plan {
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
    let (partition, offset) = letter.spot();
    (letter.replays, letter.time, partition, offset)
}

impl Plan {
    /// How many letters came to `verdict`.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.counts.get(&verdict).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::{
        super::{letter::tests::letter, marker::tests::marker_of},
        *,
    };

    #[test]
    fn verdicts() {
        let topics = Topics::default();
        let fresh = letter(1, "j", ErrorKind::Tool, 0);
        let mut replayed = Replayed::default();
        let check = |letter: &Letter, replayed: &Replayed, max, expected| {
            assert_eq!(verdict(letter, replayed, &topics, max), expected, "{letter:?}");
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
    fn of_a_jobs_letters_the_newest_is_replayed() {
        let check = |letters: &[(Letter, Verdict)], replay: &[i64], superseded: usize| {
            let mut planner = Planner::default();
            for (letter, verdict) in letters {
                planner.note(letter, *verdict);
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
        // Once the newest was replayed, a later run does not come back for the others.
        check(&[(first.clone(), Replay), (second.clone(), AlreadyReplayed)], &[], 1);
        check(&[(first.clone(), AlreadyReplayed), (of(3, "j", 1), Replay)], &[3], 0);
        // A letter of the replayed record is newer, whatever the clocks of the workers say.
        check(&[(of(1, "j", 1), Replay), (second.clone(), Replay)], &[1], 1);
        check(&[(first.clone(), Replay), (second, ValueOmitted)], &[1], 0);
        // Submitted anew after all that.
        let mut anew = of(4, "j", 0);
        anew.time = Timestamp::from_millis(4_000_000_000_000);
        check(&[(of(3, "j", 1), AlreadyReplayed), (anew, Replay)], &[4], 0);
        // A second letter of a record that was replayed, written late.
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
