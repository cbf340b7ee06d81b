//! Single stories of the engine, each written down step by step. What random schedules have found
//! once stands here too, since a seed means another schedule as soon as the simulation learns a new
//! move.
#![expect(clippy::unwrap_used, reason = "test code: a panic is the report")]

mod fair_share;
mod memory;
mod outages;
mod pauses;
mod story;

use std::{collections::BTreeSet, time::Duration};

use fleet_engine::{
    Admission, Attempt, BreakerState, Command, Config, Input, JobSpec, Limit, Ordering, Terminal,
};
use fleet_group::{MAX_ENCODED_BYTES, Progress};
use fleet_job::outcome::FailureClass;
use proptest::prelude::*;
use story::{LOG, NONE, P, RETRY, SPEC, Story, UNAVAILABLE, at, started, token};

#[test]
fn a_job_without_attempts_left_holds_its_place_until_its_end_is_written() {
    let committed =
        Progress { end: 1, open: vec![(0, 1)], attempts: vec![(0, 3)], ..Progress::none(0) }
            .encode(LOG)
            .unwrap();
    let mut story = Story::new(Config::default(), Some((0, &committed)));
    let keyed = JobSpec { key: Some(1), ..SPEC };
    assert_eq!(story.record(0, keyed), [Command::Settle(token(0), Terminal::Failed, 3)]);
    assert_eq!(started(&story.record(1, keyed)), NONE, "its key is not free yet");
    assert_eq!(started(&story.feed(Input::Written(token(0)))), [1]);
}

#[test]
fn the_next_attempt_waits_until_the_last_one_is_committed() {
    let mut story = Story::new(Config::default(), None);
    story.record(0, SPEC);
    let commands = [story.ends(0, RETRY), story.wait(10_000)].concat();
    assert_eq!(started(&commands), NONE, "the commit has no answer yet");
    let commit =
        commands.into_iter().find_map(|c| if let Command::Commit(c) = c { Some(c) } else { None });
    let commit = commit.unwrap();
    assert_eq!(Progress::decode(commit.offset, &commit.metadata).unwrap().attempts(0), 1);
    let commands = story.feed(Input::Committed { partition: P, generation: 1, ok: true });
    assert_eq!(commands, [Command::Start(token(0), 2)]);
}

#[test]
fn a_poison_job_fails_after_exactly_its_attempts_over_any_number_of_workers() {
    let mut metadata = String::new();
    for attempt in 1..=3 {
        let mut story = Story::new(Config::default(), Some((0, &metadata)));
        assert_eq!(story.record(0, SPEC), [Command::Start(token(0), attempt)]);
        let commands = story.ends(0, RETRY);
        if attempt == 3 {
            assert_eq!(commands, [Command::Settle(token(0), Terminal::Failed, 3)]);
            return;
        }
        // The worker dies as soon as its commit is through.
        let commands = [commands, story.wait(1_000)].concat();
        let commit = commands
            .into_iter()
            .find_map(|c| if let Command::Commit(c) = c { Some(c) } else { None });
        metadata = commit.unwrap().metadata;
    }
}

/// Old and new workers in one group: what a newer one has written beyond the frontier can't be
/// read, so it is done again from the frontier on. Nothing is passed over, and the commit never
/// goes back.
#[test]
fn commit_metadata_of_a_newer_version_costs_repeats_and_never_a_job() {
    // The newer worker has settled 6 and 8 and has 5 and 7 open, and says so in a way that nobody
    // here knows.
    let mut known = Progress {
        end: 9,
        open: vec![(5, 6), (7, 8)],
        attempts: vec![(7, 2)],
        ..Progress::none(5)
    };
    let readable = known.encode(LOG).unwrap();
    let started_with = |metadata: &str| {
        let mut story = Story::new(Config::default(), Some((5, metadata)));
        let (mut all, mut offsets) = (BTreeSet::new(), Vec::new());
        // Every commit is taken.
        let mut look = |story: &mut Story, commands: Vec<Command>| {
            for command in commands {
                match command {
                    Command::Start(token, _) => _ = all.insert(token.offset),
                    Command::Commit(commit) => {
                        offsets.push(commit.offset);
                        story.feed(Input::Committed { partition: P, generation: 1, ok: true });
                    }
                    _ => {}
                }
            }
        };
        for offset in 5..10 {
            let commands = story.record(offset, SPEC);
            look(&mut story, commands);
        }
        for offset in 5..10 {
            let commands = [story.succeeds(offset), story.wait(story.now + 2_000)].concat();
            look(&mut story, commands);
        }
        assert!(offsets.is_sorted() && offsets.iter().all(|offset| *offset >= 5), "{offsets:?}");
        assert_eq!(offsets.last(), Some(&10), "everything is settled in the end");
        all.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(started_with(&readable), [5, 7, 9], "what this version has written is known");
    // "Aw" begins with the byte 3, as "Ag" does with 2.
    assert_eq!(&readable[..2], "Ag");
    let newer = format!("Aw{}", &readable[2..]);
    assert_eq!(
        started_with(&newer),
        [5, 6, 7, 8, 9],
        "all that is not committed runs, 6 and 8 once more"
    );
    known.base = 4;
    assert_eq!(
        started_with(&known.encode(LOG).unwrap()),
        [5, 6, 7, 8, 9],
        "so does what belongs elsewhere"
    );
}

#[test]
fn more_urgent_jobs_go_first_and_equals_in_their_order() {
    let mut story = Story::new(Config { max_in_flight: 1, ..Config::default() }, None);
    for (offset, priority) in [(0, 4), (1, 4), (2, 9), (3, 0), (4, 9)] {
        story.record(offset, JobSpec { priority, ..SPEC });
    }
    let mut order = vec![0];
    for _ in 0..4 {
        order.extend(started(&story.succeeds(*order.last().unwrap())));
    }
    assert_eq!(order, [0, 2, 4, 1, 3]);
}

#[test]
fn fetching_pauses_at_the_limit_and_resumes_at_half_of_it() {
    let mut story =
        Story::new(Config { max_buffered: 10, max_in_flight: 1, ..Config::default() }, None);
    for offset in 0..9 {
        assert!(!story.record(offset, SPEC).contains(&Command::Pause(P, 1)));
    }
    assert!(story.record(9, SPEC).contains(&Command::Pause(P, 1)));
    for offset in 0..4 {
        assert!(!story.succeeds(offset).contains(&Command::Resume(P, 1)));
    }
    assert!(story.succeeds(4).contains(&Command::Resume(P, 1)));
}

#[test]
fn memory_of_a_job_beyond_its_record_counts() {
    let mut story = Story::new(Config { max_buffered_bytes: 1000, ..Config::default() }, None);
    story.record(0, SPEC);
    assert!(!story.feed(Input::Holds(token(0), 900)).contains(&Command::Pause(P, 1)));
    assert!(story.feed(Input::Holds(token(0), 1000)).contains(&Command::Pause(P, 1)));
    assert!(story.feed(Input::Holds(token(0), 500)).contains(&Command::Resume(P, 1)));
    story.feed(Input::Holds(token(0), 2000));
    assert!(
        story.succeeds(0).contains(&Command::Resume(P, 1)),
        "all of it is free when the job has ended"
    );
}

#[test]
fn nothing_runs_ahead_while_kafka_takes_no_records() {
    let mut story =
        Story::new(Config { max_in_flight: 4, max_buffered: 100_000, ..Config::default() }, None);
    let mut calls = 0;
    for offset in 0..1_000 {
        for started in started(&story.record(offset, SPEC)) {
            calls += 1;
            story.ends(started, Attempt::Succeeded);
        }
    }
    assert!(calls <= 4 * 4 + 64 + 4, "{calls} jobs have run and none of their ends is written");
}

#[test]
fn a_log_that_begins_anew_is_read_and_not_skipped() {
    let mut story = Story::new(Config::default(), Some((1_000, "")));
    assert_eq!(story.record(0, SPEC), [Command::LogReset(P), Command::Start(token(0), 1)]);
    assert_eq!(started(&story.record(1, SPEC)), [1]);
    let commands = [story.succeeds(0), story.succeeds(1)].concat();
    assert!(
        commands
            .iter()
            .any(|command| matches!(command, Command::Commit(commit) if commit.offset <= 2))
    );
}

#[test]
fn a_released_partition_forgets_its_jobs_and_commits_what_is_done() {
    let mut story = Story::new(Config { max_in_flight: 2, ..Config::default() }, None);
    for offset in 0..4 {
        story.record(offset, SPEC);
    }
    assert_eq!(started(&story.feed(Input::Draining(&[P]))), NONE);
    assert!(!story.engine.is_drained(&[P]));
    assert_eq!(started(&story.succeeds(1)), NONE, "nothing more is started");
    assert_eq!(
        story.record(9, SPEC),
        [Command::Forget(token(9))],
        "what still comes is the next owner's"
    );
    let commits = story.engine.release(&[P]);
    assert_eq!(commits.len(), 1);
    let progress = Progress::decode(commits[0].offset, &commits[0].metadata).unwrap();
    assert_eq!(commits[0].offset, 0);
    assert_eq!(
        (0..4).map(|offset| progress.is_done(offset)).collect::<Vec<_>>(),
        [false, true, false, false]
    );
    let forgotten: BTreeSet<i64> = std::iter::from_fn(|| story.engine.poll())
        .filter_map(
            |command| if let Command::Forget(token) = command { Some(token.offset) } else { None },
        )
        .collect();
    assert_eq!(forgotten, BTreeSet::from([0, 2, 3]));
    assert_eq!(
        story.ends(0, Attempt::Succeeded),
        [],
        "what ends after the fence is nobody's business"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6,
        max_shrink_iters: 20,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// However jobs end, and however far one slow job holds up the frontier, every commit can be
    /// said.
    #[test]
    fn commits_always_fit(seed in any::<u64>(), attempts in 1_u32..40, slow in 0_i64..50, failing in 0_u64..4) {
        let config = Config { max_in_flight: 300, max_buffered: 100_000, ..Config::default() };
        let mut story = Story::new(config, None);
        let (mut random, mut running, mut next) = (seed | 1, Vec::new(), 0_i64);
        for _ in 0..16_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut commands = match random % 8 {
                0..=3 => {
                    next += 1 + i64::from(random % 64 == 0);
                    story.record(next, JobSpec { max_attempts: attempts, ..SPEC })
                }
                _ if running.is_empty() => story.wait(story.now + 20),
                _ => {
                    let index = (random >> 8) as usize % running.len();
                    if running[index] <= slow {
                        continue;
                    }
                    let offset = running.swap_remove(index);
                    if (random >> 40) % 8 < failing {
                        let mut commands = story.ends(offset, RETRY);
                        if commands.contains(&Command::Settle(token(offset), Terminal::Failed, attempts)) {
                            commands.extend(story.feed(Input::Written(token(offset))));
                        }
                        commands
                    } else {
                        story.succeeds(offset)
                    }
                }
            };
            if random % 16 == 0 {
                commands.extend(story.wait(story.now + 10));
            }
            running.extend(started(&commands));
            for command in commands {
                match command {
                    Command::Violation(name, token) => prop_assert!(false, "{name} at {token:?}"),
                    Command::Commit(commit) => {
                        prop_assert!(commit.metadata.len() <= MAX_ENCODED_BYTES);
                        let answer = Input::Committed { partition: P, generation: 1, ok: true };
                        running.extend(started(&story.feed(answer)));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn parking(max: Duration) -> Config {
    Config { max_park: Some(max), ..Config::default() }
}

#[test]
fn a_job_for_next_week_leaves_memory_and_delays_no_other_job() {
    let mut story = Story::from_start(parking(Duration::from_secs(60)));
    let week = at(7 * 24 * 3_600_000);
    let keyed = JobSpec { key: Some(1), ..SPEC };
    let commands = story.record(0, JobSpec { not_before: Some(week), ..keyed });
    assert_eq!(commands, [Command::Settle(token(0), Terminal::Deferred(week), 0)]);
    // Its place in the key is free as soon as it stands in the delayed topic.
    assert_eq!(started(&story.record(1, keyed)), NONE);
    assert_eq!(started(&story.feed(Input::Written(token(0)))), [1]);
    // What is due within the minute waits here.
    assert_eq!(started(&story.record(2, JobSpec { not_before: Some(at(59_000)), ..SPEC })), NONE);
    assert_eq!(started(&story.wait(59_000)), [2]);
}

#[test]
fn a_job_that_can_never_start_in_time_expires_at_once() {
    let mut story = Story::from_start(parking(Duration::from_secs(60)));
    let spec = JobSpec { not_before: Some(at(90_000)), deadline: Some(at(90_000)), ..SPEC };
    assert_eq!(story.record(0, spec), [Command::Settle(token(0), Terminal::Expired, 0)]);
}

#[test]
fn a_long_backoff_leaves_memory_with_its_attempts_unless_it_holds_a_key() {
    let wish = Attempt::Failed(FailureClass::Retry, Some(Duration::from_secs(600)));
    let mut story = Story::from_start(parking(Duration::from_secs(60)));
    story.record(0, JobSpec { spent: 1, ..SPEC });
    assert_eq!(
        story.ends(0, wish),
        [Command::Settle(token(0), Terminal::Deferred(at(600_000)), 2)]
    );
    story.record(1, JobSpec { key: Some(1), ..SPEC });
    let commands = story.ends(1, wish);
    assert!(matches!(commands[..], [Command::Retrying(_, 1, _), ..]), "{commands:?}");
    let mut ordered = Story::from_start(Config {
        ordering: Ordering::Partition,
        ..parking(Duration::from_secs(60))
    });
    assert_eq!(ordered.record(0, JobSpec { not_before: Some(at(90_000)), ..SPEC }), []);
}

#[test]
fn a_returned_job_keeps_its_attempts() {
    let mut story = Story::from_start(Config::default());
    assert_eq!(story.record(0, JobSpec { spent: 2, ..SPEC }), [Command::Start(token(0), 3)]);
    assert_eq!(story.ends(0, RETRY), [Command::Settle(token(0), Terminal::Failed, 3)]);
    assert_eq!(
        story.record(1, JobSpec { spent: 9, ..SPEC }),
        [Command::Settle(token(1), Terminal::Failed, 9)]
    );
}

#[test]
fn a_record_of_the_delayed_topic_is_relayed_when_its_time_has_come() {
    let mut story = Story::from_start(Config::default());
    let relay = |offset, ms| Input::Record {
        partition: P,
        offset,
        bytes: 10,
        admission: Admission::Relay(at(ms)),
    };
    assert_eq!(story.feed(relay(0, 5_000)), []);
    assert_eq!(story.feed(relay(1, 0)), [Command::Settle(token(1), Terminal::Relayed, 0)]);
    let mut commands = story.wait(4_999);
    assert!(!commands.iter().any(|command| matches!(command, Command::Settle(..))), "{commands:?}");
    commands = story.wait(5_000);
    assert!(commands.contains(&Command::Settle(token(0), Terminal::Relayed, 0)), "{commands:?}");
    // The server has no say in it.
    story.record(2, SPEC);
    story.ends(2, UNAVAILABLE);
    assert!(story.feed(relay(3, 0)).contains(&Command::Settle(token(3), Terminal::Relayed, 0)));
}

#[test]
fn a_tool_at_its_limit_delays_only_its_own_jobs() {
    let slow = JobSpec { limits: [Some(Limit { group: 1, max: 1 }), None], ..SPEC };
    let mut story = Story::from_start(Config { max_in_flight: 8, ..Config::default() });
    assert_eq!(started(&story.record(0, slow)), [0]);
    assert_eq!(started(&story.record(1, slow)), NONE);
    assert_eq!(started(&story.record(2, SPEC)), [2]);
    assert_eq!(started(&story.ends(0, Attempt::Succeeded)), [1]);
}

#[test]
fn a_cancel_ends_a_waiting_job_and_aborts_a_running_one() {
    let mut story = Story::from_start(Config { max_in_flight: 1, ..Config::default() });
    story.record(0, SPEC);
    story.record(1, SPEC);
    story.record(2, SPEC);
    assert_eq!(
        story.feed(Input::Cancel(token(1))),
        [Command::Settle(token(1), Terminal::Cancelled, 0)],
        "it had not started"
    );
    assert_eq!(story.feed(Input::Cancel(token(0))), [Command::Abort(token(0))]);
    let commands = story.ends(0, RETRY);
    assert!(commands.contains(&Command::Settle(token(0), Terminal::Cancelled, 0)), "{commands:?}");
    assert_eq!(started(&commands), [2], "the one that was cancelled never starts");
    story.feed(Input::Cancel(token(2)));
    let commands = story.ends(2, Attempt::Succeeded);
    assert!(
        commands.contains(&Command::Settle(token(2), Terminal::Succeeded, 1)),
        "the cancel lost: {commands:?}"
    );
    assert_eq!(story.feed(Input::Cancel(token(2))), [], "its end is being written");
}

/// Whatever it would have waited for, a job that was cancelled before it came ends at once, and
/// those behind it go on.
#[test]
fn a_job_that_was_cancelled_before_it_came_never_starts() {
    let cancelled = |offset, spec| Input::Record {
        partition: P,
        offset,
        bytes: 10,
        admission: Admission::Cancelled(spec),
    };
    let slow = [Some(Limit { group: 1, max: 1 }), None];
    let keyed = JobSpec { key: Some(7), ..SPEC };
    let specs = [
        SPEC,
        keyed,
        JobSpec { not_before: Some(at(3_600_000)), ..SPEC },
        JobSpec { not_before: Some(at(100)), ..SPEC },
        JobSpec { deadline: Some(at(0)), ..SPEC },
        JobSpec { limits: slow, ..SPEC },
        JobSpec { spent: 3, ..SPEC },
    ];
    let max_park = Some(Duration::from_secs(60));
    let mut story = Story::from_start(Config { max_in_flight: 4, max_park, ..Config::default() });
    story.record(0, JobSpec { limits: slow, ..keyed });
    for (offset, spec) in (1..).zip(specs) {
        let commands = story.feed(cancelled(offset, spec));
        let end = Command::Settle(token(offset), Terminal::Cancelled, spec.spent);
        assert_eq!(commands, [end], "{spec:?}");
    }
    assert_eq!(started(&story.record(8, keyed)), NONE, "the first of its key still runs");
    story.feed(Input::Written(token(2)));
    assert_eq!(started(&story.succeeds(0)), [8]);

    let mut story = Story::from_start(Config { max_in_flight: 1, ..Config::default() });
    story.record(0, SPEC);
    story.ends(0, UNAVAILABLE);
    assert_ne!(story.engine.breaker(), BreakerState::Closed);
    let end = Command::Settle(token(1), Terminal::Cancelled, 0);
    assert_eq!(story.feed(cancelled(1, SPEC)), [end], "no server is needed for that");
}

/// A cancel ends a job in whatever it waits for.
#[test]
fn a_cancel_ends_every_wait() {
    let mut story = Story::from_start(Config { max_in_flight: 2, ..Config::default() });
    let slow = [Some(Limit { group: 1, max: 1 }), None];
    let ends = |story: &mut Story, offset, attempts, what: &str| {
        let commands = story.feed(Input::Cancel(token(offset)));
        let end = Command::Settle(token(offset), Terminal::Cancelled, attempts);
        assert!(commands.contains(&end), "{what}: {commands:?}");
        assert_eq!(started(&commands), NONE, "{what}");
    };
    story.record(0, JobSpec { key: Some(1), limits: slow, ..SPEC });
    story.record(1, JobSpec { key: Some(1), ..SPEC });
    ends(&mut story, 1, 0, "its key");
    story.record(2, JobSpec { limits: slow, ..SPEC });
    ends(&mut story, 2, 0, "a limit");
    story.record(3, JobSpec { not_before: Some(at(1_000)), ..SPEC });
    ends(&mut story, 3, 0, "its time");
    story.record(4, SPEC);
    story.ends(4, RETRY);
    ends(&mut story, 4, 1, "its next attempt");
    story.record(5, SPEC);
    story.ends(5, UNAVAILABLE);
    ends(&mut story, 5, 0, "the server");
    let commands = story.wait(100_000);
    assert_eq!(started(&commands), NONE, "{commands:?}");
}

#[test]
fn a_record_that_is_known_to_be_settled_is_skipped_and_committed() {
    let mut story = Story::from_start(Config::default());
    let settled =
        Input::Record { partition: P, offset: 0, bytes: 10, admission: Admission::Settled };
    let commands = story.feed(settled);
    assert!(started(&commands).is_empty());
    assert!(commands.contains(&Command::Forget(token(0))), "{commands:?}");
    let committed = commands.iter().find_map(|command| match command {
        Command::Commit(commit) => Some(commit.offset),
        _ => None,
    });
    assert_eq!(committed, Some(1));
}

#[test]
fn the_delayed_topic_is_not_read_far_ahead() {
    let mut story = Story::from_start(Config::default());
    let relay = |offset, ms| Input::Record {
        partition: P,
        offset,
        bytes: 1 << 20,
        admission: Admission::Relay(at(ms)),
    };
    assert_eq!(story.feed(relay(0, 5_000)), []);
    assert_eq!(story.feed(relay(1, 6_000)), [Command::Pause(P, 1)]);
    let commands = story.wait(5_500);
    assert!(!commands.contains(&Command::Resume(P, 1)), "one still waits: {commands:?}");
    assert!(story.wait(6_000).contains(&Command::Resume(P, 1)));
}

#[test]
fn the_end_of_a_job_that_is_read_again_is_written_again_and_then_committed() {
    let mut story = Story::from_start(Config::default());
    let again = Input::Record { partition: P, offset: 0, bytes: 10, admission: Admission::Ended };
    let commands = story.feed(again);
    assert_eq!(commands, [Command::Settle(token(0), Terminal::Again, 0)]);
    let commands = story.feed(Input::WriteFailed(token(0)));
    assert!(!commands.iter().any(|command| matches!(command, Command::Commit(_))), "{commands:?}");
    assert!(story.wait(60_000).contains(&Command::Settle(token(0), Terminal::Again, 0)));
    let commands = story.feed(Input::Written(token(0)));
    let commit = commands.iter().find_map(|command| match command {
        Command::Commit(commit) => Some(commit.offset),
        _ => None,
    });
    assert_eq!(commit, Some(1), "{commands:?}");
}

/// The frontier goes to the end of a log that ends in markers or in a hole, but not past an open
/// job, and never back.
#[test]
fn the_frontier_goes_to_the_end_of_the_log() {
    let committed = |commands: &[Command]| {
        commands.iter().rev().find_map(|command| match command {
            Command::Commit(commit) => Some(commit.offset),
            _ => None,
        })
    };
    let mut story = Story::from_start(Config::default());
    let accepted = Input::Committed { partition: P, generation: 1, ok: true };

    // Nothing but markers.
    assert_eq!(committed(&story.feed(Input::End(P, 2))), Some(2));
    story.feed(accepted);
    story.record(2, SPEC);
    assert_eq!(committed(&story.wait(5_000)), None, "the job is open");
    assert_eq!(committed(&story.feed(Input::End(P, 5))), Some(2), "the job is open");
    story.feed(Input::Committed { partition: P, generation: 1, ok: true });
    story.wait(10_000);
    assert_eq!(committed(&story.succeeds(2)), Some(5));
    story.feed(Input::Committed { partition: P, generation: 1, ok: true });
    story.feed(Input::End(P, 4));
    assert_eq!(committed(&story.wait(20_000)), None, "what is old is no news");

    // What comes while the partition leaves is not delivered to this engine.
    story.feed(Input::Draining(&[P]));
    story.record(5, SPEC);
    story.feed(Input::End(P, 6));
    assert_eq!(story.engine.release(&[P]), []);
}
