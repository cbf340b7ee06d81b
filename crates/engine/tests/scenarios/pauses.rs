//! Jobs that people have paused.

use std::time::Duration;

use fleet_engine::{Attempt, BreakerState, Command, Config, Input, JobSpec, Limit, Need, Terminal};
use fleet_group::Progress;

use crate::story::{NONE, P, RETRY, SPEC, Story, UNAVAILABLE, at, started, token};

const PAUSED: Attempt = Attempt::Paused(7);

#[test]
fn a_paused_job_takes_no_slot_and_no_attempt_and_holds_up_its_key_alone() {
    let mut story = Story::from_start(Config { max_in_flight: 1, ..Config::default() });
    let keyed = |key| JobSpec { key: Some(key), ..SPEC };
    assert_eq!(started(&story.record(0, keyed(1))), [0]);
    assert_eq!(started(&story.ends(0, PAUSED)), NONE);
    assert_eq!(story.engine.status().in_flight, 0);

    assert_eq!(started(&story.record(1, keyed(1))), NONE, "its key waits with it");
    assert_eq!(started(&story.record(2, keyed(2))), [2]);
    story.succeeds(2);

    assert_eq!(story.feed(Input::Resumed(8)), [], "that is another pause");
    assert_eq!(story.feed(Input::Resumed(7)), [Command::Start(token(0), 1)]);
    assert_eq!(started(&story.succeeds(0)), [1]);
}

#[test]
fn a_retry_of_a_paused_job_waits_with_its_attempts() {
    let mut story = Story::from_start(Config::default());
    story.record(0, SPEC);
    story.ends(0, RETRY);
    let until = story.now + 5_000;
    story.wait(until);
    let commands = story.feed(Input::Committed { partition: P, generation: 1, ok: true });
    assert_eq!(commands, [Command::Start(token(0), 2)]);

    story.ends(0, PAUSED);
    assert_eq!(story.feed(Input::Resumed(7)), [Command::Start(token(0), 2)]);
}

#[test]
fn the_deadline_ends_the_wait_of_a_paused_job_and_a_cancel_does_too() {
    let mut story = Story::from_start(Config::default());
    story.record(0, JobSpec { deadline: Some(at(1_000)), ..SPEC });
    story.record(1, SPEC);
    (0..2).for_each(|offset| drop(story.ends(offset, PAUSED)));

    let commands = story.wait(1_500);
    assert!(commands.contains(&Command::Settle(token(0), Terminal::Expired, 0)), "{commands:?}");
    let commands = story.feed(Input::Cancel(token(1)));
    assert!(commands.contains(&Command::Settle(token(1), Terminal::Cancelled, 0)), "{commands:?}");
}

#[test]
fn a_pause_says_nothing_about_the_server() {
    let mut story = Story::from_start(Config { max_in_flight: 2, ..Config::default() });
    (0..3).for_each(|offset| drop(story.record(offset, SPEC)));
    (0..2).for_each(|offset| drop(story.ends(offset, UNAVAILABLE)));
    while !story.wait(story.now + 100).contains(&Command::Probe) {}

    // The trial turns out to be paused, and so the next job is the trial.
    assert_eq!(started(&story.feed(Input::Probed(true))), [0]);
    assert_eq!(started(&story.ends(0, PAUSED)), [1]);
    assert!(matches!(story.engine.breaker(), BreakerState::Trial(Some(_))));
    assert_eq!(started(&story.succeeds(1)), [2]);
    assert_eq!(story.engine.breaker(), BreakerState::Closed);
}

#[test]
fn a_scout_that_is_paused_lets_the_next_one_go_at_once() {
    let mut story = Story::from_start(Config::default());
    let hosted = JobSpec { hosted: Some(3), ..SPEC };
    (0..3).for_each(|offset| drop(story.record(offset, hosted)));
    let away = Attempt::Held(Need::Hosted(3), None);
    (0..3).for_each(|offset| drop(story.ends(offset, away)));

    let mut scouts = Vec::new();
    while scouts.is_empty() {
        scouts = started(&story.wait(story.now + 10));
    }
    assert_eq!(scouts, [0]);
    assert_eq!(started(&story.ends(0, PAUSED)), [1]);
    assert_eq!(started(&story.succeeds(1)), [2], "the server is back");
    assert_eq!(story.feed(Input::Resumed(7)), [Command::Start(token(0), 1)]);
}

#[test]
fn a_paused_job_gives_its_place_under_a_limit_to_others() {
    let mut story = Story::from_start(Config::default());
    let limited = JobSpec { limits: [Some(Limit { group: 1, max: 1 }), None], ..SPEC };
    (0..2).for_each(|offset| drop(story.record(offset, limited)));
    assert_eq!(started(&story.ends(0, PAUSED)), [1]);
}

#[test]
fn paused_jobs_ask_rarely_whether_they_are_still_paused() {
    let mut story = Story::from_start(Config::default());
    (0..10).for_each(|offset| {
        story.record(offset, SPEC);
        story.ends(offset, PAUSED);
    });

    let mut starts = 0;
    while story.now < 3_600_000 {
        let until = (story.now + 10_000).min(3_600_000);
        for scout in started(&story.wait(until)) {
            starts += 1;
            story.ends(scout, PAUSED);
        }
    }
    assert!(starts <= 6, "{starts} starts in an hour");
}

/// The job that goes to the delayed topic after a long pause, if one does. Two are paused.
fn deferred(pause: u64, key: Option<u64>) -> Option<i64> {
    let config = Config { max_park: Some(Duration::from_secs(60)), ..Config::default() };
    let mut story = Story::from_start(config);
    for offset in 0..2 {
        story.record(offset, JobSpec { key: key.map(|key| key + offset.unsigned_abs()), ..SPEC });
        story.ends(offset, Attempt::Paused(pause));
    }

    story.wait(20_000).iter().find_map(|command| match command {
        Command::Settle(of, Terminal::Deferred(_), _) => Some(of.offset),
        _ => None,
    })
}

#[test]
fn jobs_of_a_long_pause_make_room_for_others_if_there_are_any() {
    assert_eq!(deferred(7, None), Some(1), "the first one stays as the next scout");
    assert_eq!(deferred(7, Some(1)), None, "they would lose their order");
    assert_eq!(deferred(0, None), None, "nothing could go on in their place");
}

#[test]
fn a_pause_of_everything_stops_reading_and_says_so() {
    let mut story = Story::from_start(Config { max_buffered: 6, ..Config::default() });
    for offset in 0..6 {
        story.record(offset, SPEC);
        story.ends(offset, Attempt::Paused(0));
    }
    let commands = story.wait(1_500);
    assert!(story.engine.status().partitions[0].is_stalled);
    let is_stalled = |command: &Command| match command {
        Command::Commit(commit) => {
            Progress::decode(commit.offset, &commit.metadata).unwrap().is_stalled
        }
        _ => false,
    };
    assert!(commands.iter().any(is_stalled), "{commands:?}");

    assert_eq!(started(&story.feed(Input::Resumed(0))), [0, 1, 2, 3, 4, 5]);
}
