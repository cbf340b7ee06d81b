//! Partitions share memory: those whose jobs can't go on leave the others their part of it (I7).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fleet_engine::{Admission, Attempt, Command, Config, Input, JobSpec, Need, Token};
use fleet_group::Partition;

use super::story::{LOG, P, SPEC, Story};

/// The number of the partition whose jobs need nothing that is away.
const HEALTHY: i32 = 0;
/// A hosted server that is away.
const AWAY: u64 = 1;

/// A worker that reads its partitions, and each has more records than it can hold.
struct Reading {
    story: Story,
    next: BTreeMap<i32, i64>,
    paused: BTreeSet<i32>,
    /// Jobs of the healthy partition that run.
    running: VecDeque<Token>,
    /// How often the healthy partition was paused.
    pauses: usize,
}

impl Reading {
    fn new(config: Config, partitions: i32) -> Self {
        let mut story = Story::from_start(config);
        for number in 1..partitions {
            let partition = Partition { number, ..P };
            story.feed(Input::Assigned { partition, generation: 1, log: LOG, progress: None });
        }
        let (next, paused) = (BTreeMap::new(), BTreeSet::new());
        Self { story, next, paused, running: VecDeque::new(), pauses: 0 }
    }

    fn feed(&mut self, input: Input<'_>) {
        for command in self.story.feed(input) {
            match command {
                Command::Pause(partition, _) => {
                    self.pauses += usize::from(partition.number == HEALTHY);
                    self.paused.insert(partition.number);
                }
                Command::Resume(partition, _) => _ = self.paused.remove(&partition.number),
                Command::Start(token, _) if token.partition.number == HEALTHY => {
                    self.running.push_back(token);
                }
                Command::Start(token, _) => {
                    let away = Attempt::Held(Need::Hosted(AWAY), None);
                    self.feed(Input::Finished(token, away));
                }
                _ => {}
            }
        }
    }

    /// Reads a partition until it is paused, or at most so many records.
    fn read(&mut self, number: i32, records: usize, bytes: usize, spec: JobSpec) {
        for _ in 0..records {
            if self.paused.contains(&number) {
                return;
            }
            let next = self.next.entry(number).or_default();
            let offset = *next;
            *next += 1;
            let admission = Admission::Job(spec);
            let partition = Partition { number, ..P };
            self.feed(Input::Record { partition, offset, bytes, admission });
        }
    }

    /// Reads a partition whose jobs have one key and need the server that is away.
    fn read_stuck(&mut self, number: i32, records: usize, bytes: usize) {
        let key = Some(number as u64);
        self.read(number, records, bytes, JobSpec { key, hosted: Some(AWAY), ..SPEC });
    }

    /// Lets jobs of the healthy partition end one after the other while it is read on.
    fn work(&mut self, jobs: usize) {
        for _ in 0..jobs {
            self.read(HEALTHY, usize::MAX, 10, SPEC);
            let token = self.running.pop_front().unwrap();
            self.feed(Input::Finished(token, Attempt::Succeeded));
            self.feed(Input::Written(token));
        }
    }
}

#[test]
fn stuck_partitions_leave_a_healthy_one_its_share_of_records() {
    for (partitions, stuck) in [(3, 2), (4, 3), (12, 5), (12, 11)] {
        let config = Config { max_buffered: 1_200, max_in_flight: 4, ..Config::default() };
        let mut reading = Reading::new(config, partitions);
        (1..=stuck).for_each(|number| reading.read_stuck(number, usize::MAX, 10));
        (stuck + 1..partitions).for_each(|number| reading.read(number, usize::MAX, 10, SPEC));

        reading.work(1_000);
        let pauses = reading.pauses;
        assert!(pauses <= 1_000 / 20, "{stuck} of {partitions} are stuck: {pauses} pauses");
        let status = reading.story.engine.status();
        assert!(status.buffered <= 1_200, "{} records", status.buffered);
    }
}

#[test]
fn a_stuck_partition_with_large_jobs_leaves_the_others_their_share_of_bytes() {
    let mut reading = Reading::new(Config::default(), 12);
    reading.read_stuck(1, usize::MAX, 100 << 10);

    reading.work(5_000);
    let pauses = reading.pauses;
    assert!(pauses <= 5_000 / 20, "{pauses} pauses");
    let status = reading.story.engine.status();
    assert!(status.buffered_bytes <= 64 << 20, "{} bytes", status.buffered_bytes);
}
