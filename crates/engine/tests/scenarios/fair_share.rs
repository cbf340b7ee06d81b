//! One tenant has thousands of jobs, and another has one behind them (I8).

use std::collections::BTreeMap;

use fleet_engine::{Command, Config, Input, JobSpec, Tenant};
use fleet_group::{MAX_ENCODED_BYTES, Partition, Progress};

use super::story::{LOG, NONE, P, SPEC, Story, started};

const BUSY: Tenant = Tenant { number: 1, weight: 1 };
const OTHER: Tenant = Tenant { number: 2, weight: 1 };
const MANY: i64 = 10_000;

/// A worker with twelve partitions and the default settings.
fn worker_with_twelve_partitions() -> Story {
    let mut story = Story::from_start(Config::default());
    for number in 1..12 {
        let partition = Partition { number, ..P };
        story.feed(Input::Assigned { partition, generation: 1, log: LOG, progress: None });
    }
    story
}

fn pauses(commands: &[Command]) -> bool {
    commands.iter().any(|command| matches!(command, Command::Pause(..)))
}

/// Reads the jobs of the busy tenant, as `spec` makes them, and then one of the other in the same
/// partition. Returns which jobs have started, and how many of them after that one was read, until
/// it starts.
fn passed_over(story: &mut Story, spec: impl Fn(i64) -> JobSpec) -> (Vec<i64>, usize) {
    let mut running = Vec::new();
    for offset in 0..MANY {
        let commands = story.record(offset, JobSpec { tenant: BUSY, ..spec(offset) });
        assert!(!pauses(&commands), "the partition is not read on after {offset}");
        running.extend(started(&commands));
    }
    let other = story.record(MANY, JobSpec { tenant: OTHER, priority: 0, ..SPEC });
    running.extend(started(&other));

    let mut later = 0;
    for index in 0.. {
        if running.contains(&MANY) {
            break;
        }
        let ended = running[index];
        let next = started(&story.succeeds(ended));
        later += next.iter().filter(|offset| **offset != MANY).count();
        running.extend(next);
    }
    (running, later)
}

#[test]
fn ten_thousand_jobs_of_a_tenant_delay_the_one_of_another_by_at_most_two_rounds() {
    let mut story = worker_with_twelve_partitions();
    let (_, later) = passed_over(&mut story, |_| JobSpec { priority: 9, ..SPEC });
    assert!(later <= 2, "{later} jobs of the busy tenant have started before it");

    // A commit says that it is done, far beyond the frontier.
    story.succeeds(MANY);
    story.feed(Input::Committed { partition: P, generation: 1, ok: true });
    let commands = story.wait(story.now + 2_000);
    let mut commits = commands.iter().filter_map(|command| match command {
        Command::Commit(commit) if commit.partition == P => Some(commit),
        _ => None,
    });
    let commit = commits.next_back().unwrap();
    assert!(commit.metadata.len() <= MAX_ENCODED_BYTES && commit.offset < 5);
    let progress = Progress::decode(commit.offset, &commit.metadata).unwrap();
    assert!(progress.is_done(MANY) && !progress.is_done(MANY - 1));
}

#[test]
fn jobs_with_one_key_delay_the_one_of_another_tenant_no_more() {
    let mut story = worker_with_twelve_partitions();
    let (running, later) = passed_over(&mut story, |_| JobSpec { key: Some(1), ..SPEC });
    assert_eq!((running, later), (vec![0, MANY], 0), "there are free slots");
}

/// A tenant that weighs more starts more jobs, and the other's wait is as long.
#[test]
fn tenants_share_slots_by_their_weights() {
    let gold = Tenant { number: 3, weight: 4 };
    let mut story = Story::from_start(Config { max_in_flight: 1, ..Config::default() });
    let tenant_of = |offset: i64| if offset % 2 == 0 { gold } else { BUSY };
    for offset in 0..100 {
        story.record(offset, JobSpec { tenant: tenant_of(offset), ..SPEC });
    }

    let mut running = vec![0];
    let mut starts: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..40 {
        let next = started(&story.succeeds(running.pop().unwrap()));
        next.iter().for_each(|offset| *starts.entry(tenant_of(*offset).number).or_default() += 1);
        running = next;
    }
    assert_eq!(starts, BTreeMap::from([(BUSY.number, 8), (gold.number, 32)]));
}

#[test]
fn a_partition_keeps_to_its_share_once_the_common_half_of_memory_is_taken() {
    let config = Config { max_buffered: 40, max_in_flight: 1, ..Config::default() };
    let mut story = Story::from_start(config);
    for number in 1..4 {
        let partition = Partition { number, ..P };
        story.feed(Input::Assigned { partition, generation: 1, log: LOG, progress: None });
    }
    for offset in 0..24 {
        assert!(!pauses(&story.record(offset, SPEC)), "{offset} is beyond its share of 5");
    }
    assert!(pauses(&story.record(24, SPEC)), "it has its share and the common half");

    // Down to half of everything, it reads on.
    for offset in 0..4 {
        assert!(!story.succeeds(offset).contains(&Command::Resume(P, 1)), "{offset}");
    }
    assert!(story.succeeds(4).contains(&Command::Resume(P, 1)));
    assert_eq!(started(&story.wait(story.now + 1)), NONE);
}
