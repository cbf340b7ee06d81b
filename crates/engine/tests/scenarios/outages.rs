//! What is unavailable, and what a worker that was out of contact may still do.

use std::time::Duration;

use fleet_engine::{
    Admission, Attempt, BreakerState, Command, Config, Input, JobSpec, Need, Terminal,
};
use fleet_group::Progress;

use crate::story::{NONE, P, SPEC, Story, UNAVAILABLE, at, started, token};

/// A call that was turned away, since its hosted server is away.
const HELD: Attempt = Attempt::Held(Need::Hosted(7), None);

#[test]
fn starts_from_before_contact_was_lost_are_decided_again() {
    let mut story = Story::from_start(Config { max_in_flight: 1, ..Config::default() });
    let record = |offset, spec| Input::Record {
        partition: P,
        offset,
        bytes: 1,
        admission: Admission::Job(spec),
    };
    // Nobody asks the engine what to do meanwhile.
    story.engine.handle(at(0), record(0, JobSpec { deadline: Some(at(100)), ..SPEC }));
    story.engine.handle(at(0), record(1, SPEC));
    story.now = 200;

    let commands = story.feed(Input::ContactRegained);
    assert_eq!(
        commands,
        [Command::Settle(token(0), Terminal::Expired, 0), Command::Start(token(1), 1)]
    );
    assert_eq!(story.engine.status().in_flight, 1);
}

#[test]
fn calls_that_were_not_made_spend_nothing_and_keep_their_order() {
    let mut story = Story::from_start(Config { max_in_flight: 2, ..Config::default() });
    (0..3).for_each(|offset| drop(story.record(offset, SPEC)));
    assert_eq!(story.ends(0, Attempt::NotMade), [Command::Start(token(0), 1)]);
    story.feed(Input::Cancel(token(1)));
    let commands = story.ends(1, Attempt::NotMade);
    assert!(commands.contains(&Command::Settle(token(1), Terminal::Cancelled, 0)), "{commands:?}");
}

/// The flags of the commits among these commands.
fn stalled(commands: &[Command]) -> Vec<bool> {
    let flag = |command: &Command| match command {
        Command::Commit(commit) => {
            Some(Progress::decode(commit.offset, &commit.metadata).unwrap().is_stalled)
        }
        _ => None,
    };
    commands.iter().filter_map(flag).collect()
}

/// Lets time pass while the hosted server is away.
fn wait_in_vain(story: &mut Story, until: i64) -> Vec<Command> {
    let mut all = Vec::new();
    while story.now < until {
        let commands = story.wait((story.now + 50).min(until));
        for scout in started(&commands) {
            all.extend(story.ends(scout, HELD));
        }
        all.extend(commands);
    }
    all
}

#[test]
fn a_partition_that_is_full_of_waiting_jobs_says_so_in_its_commit() {
    let mut story = Story::from_start(Config { max_buffered: 6, ..Config::default() });
    let keyed = JobSpec { key: Some(1), hosted: Some(7), ..SPEC };
    story.record(0, keyed);
    story.ends(0, HELD);
    (1..6).for_each(|offset| drop(story.record(offset, keyed)));
    assert!(story.engine.status().partitions[0].paused);
    let told = stalled(&wait_in_vain(&mut story, 1_500));
    assert_eq!(told, [true], "one job waits, and the others stand behind it");
    assert!(story.engine.status().partitions[0].is_stalled);
    assert!(stalled(&wait_in_vain(&mut story, 5_000)).is_empty(), "once is enough");

    // It is back: the scout is answered, and the others follow.
    let until = story.now + 20_000;
    let mut commands = story.wait(until);
    assert_eq!(started(&commands), [0]);
    (0..4).for_each(|offset| commands.extend(story.succeeds(offset)));
    let until = story.now + 3_000;
    commands.extend(story.wait(until));
    let status = story.engine.status();
    assert!(!status.partitions[0].is_stalled && !status.partitions[0].paused, "{status:?}");
}

#[test]
fn a_partition_that_is_full_of_other_jobs_is_not_stalled() {
    let mut story =
        Story::from_start(Config { max_buffered: 8, max_in_flight: 2, ..Config::default() });
    let held = JobSpec { hosted: Some(7), ..SPEC };
    (0..2).for_each(|offset| drop(story.record(offset, held)));
    (0..2).for_each(|offset| drop(story.ends(offset, HELD)));
    (2..8).for_each(|offset| drop(story.record(offset, SPEC)));
    let commands = story.wait(5_000);
    let status = story.engine.status();
    assert!(status.partitions[0].paused && status.partitions[0].held > 0, "{status:?}");
    assert!(!status.partitions[0].is_stalled && stalled(&commands).is_empty());
}

#[test]
fn a_partition_that_is_given_back_is_not_stalled_any_more() {
    let mut story = Story::from_start(Config { max_buffered: 4, ..Config::default() });
    (0..4).for_each(|offset| drop(story.record(offset, SPEC)));
    story.ends(0, UNAVAILABLE);
    (1..4).for_each(|offset| drop(story.ends(offset, UNAVAILABLE)));
    assert_eq!(stalled(&story.wait(1_100)), [true], "the server itself is away");
    let last = story.engine.release(&[P]);
    assert!(!Progress::decode(last[0].offset, &last[0].metadata).unwrap().is_stalled);
}

#[test]
fn a_job_that_was_running_at_its_deadline_does_not_start_again_after_it() {
    let mut story = Story::new(Config::default(), None);
    story.record(0, JobSpec { deadline: Some(at(100)), ..SPEC });
    story.wait(200);
    let commands = story.ends(0, UNAVAILABLE);
    assert_eq!(commands, [Command::Settle(token(0), Terminal::Expired, 0)]);
}

#[test]
fn an_outage_of_ten_minutes_spends_nothing() {
    let mut story = Story::new(Config { max_in_flight: 2, ..Config::default() }, None);
    for offset in 0..5 {
        story.record(offset, SPEC);
    }
    story.ends(0, UNAVAILABLE);
    story.ends(1, UNAVAILABLE);
    let mut probes = 0;
    while story.now < 600_000 {
        let commands = story.wait(story.now + 1_000);
        assert_eq!(started(&commands), NONE, "nothing starts while the server is away");
        for command in commands {
            assert!(matches!(command, Command::Probe | Command::Commit(_)), "{command:?}");
            if command == Command::Probe {
                probes += 1;
                assert_eq!(story.feed(Input::Probed(false)), []);
            }
        }
    }
    assert!(
        (40..=200).contains(&probes),
        "{probes} probes in ten minutes neither hammer nor sleep"
    );
    // It is back: one job goes first, and when that has reached it, the others follow.
    let wake = story.now + 20_000;
    assert!(story.wait(wake).contains(&Command::Probe));
    assert_eq!(
        story.feed(Input::Probed(true)),
        [Command::Start(token(0), 1)],
        "a first attempt, as before"
    );
    assert_eq!(started(&story.succeeds(0)), [1, 2]);
    assert_eq!(story.engine.breaker(), BreakerState::Closed);
}

#[test]
fn a_server_that_answers_probes_and_refuses_calls_is_asked_ever_more_rarely() {
    let mut story = Story::new(Config { max_in_flight: 8, ..Config::default() }, None);
    for offset in 0..8 {
        story.record(offset, SPEC);
    }
    let mut running: Vec<i64> = (0..8).collect();
    let mut calls = 0;
    while story.now < 600_000 {
        for offset in std::mem::take(&mut running) {
            calls += 1;
            running.extend(started(&story.ends(offset, UNAVAILABLE)));
        }
        let commands = story.wait(story.now + 100);
        running.extend(started(&commands));
        if commands.contains(&Command::Probe) {
            running.extend(started(&story.feed(Input::Probed(true))));
        }
    }
    assert!(calls < 8 + 200, "{calls} refused calls in ten minutes");
}

/// The time until which a job is deferred that has waited for a hosted server for `waited`
/// milliseconds, and the story at that moment; `None` if the job stays in memory.
fn deferral_after(waited: i64, deadline: Option<i64>) -> (Story, Option<i64>) {
    let config = Config { max_park: Some(Duration::from_secs(60)), ..Config::default() };
    let mut story = Story::from_start(config);
    story.now = waited;

    // The first job stays behind as the next scout, and the second one has nothing to do here.
    let spec = JobSpec { hosted: Some(7), held_since: Some(at(0)), returned: true, ..SPEC };
    story.record(0, spec);
    story.ends(0, HELD);
    let mut commands = story.record(1, JobSpec { deadline: deadline.map(at), ..spec });
    let until = story.now + 1;
    commands.extend(wait_in_vain(&mut story, until));

    let deferral = commands.iter().find_map(|command| match command {
        Command::Settle(of, Terminal::Deferred(until), _) if *of == token(1) => Some(*until),
        _ => None,
    });
    (story, deferral.map(|until| until.as_millis()))
}

#[test]
fn a_job_is_relayed_for_as_long_as_it_has_waited_but_for_ten_minutes_at_most() {
    const LEAST: i64 = 75_000;
    const MOST: i64 = 600_000;

    for waited in [15_000, 60_000, 90_000, 200_000, 400_000, 599_000, 601_000, 3_600_000] {
        let (story, until) = deferral_after(waited, None);
        let delay = until.expect("a deferral") - story.now;
        let longest = waited.clamp(LEAST, MOST);
        // An eighth is left to chance, and the clock of the story has moved by a millisecond.
        assert!(
            (longest - longest / 8 - 1..=longest + 1).contains(&delay),
            "{waited} ms: deferred for {delay} ms"
        );
    }
}

#[test]
fn a_job_is_not_relayed_past_its_deadline() {
    let (_, until) = deferral_after(400_000, Some(500_000));
    assert_eq!(until, Some(500_000));
    let (_, until) = deferral_after(400_000, Some(4_000_000));
    assert!(until.is_some_and(|until| until < 900_000), "{until:?}");

    // Memory is good enough for the rest of its time.
    let (mut story, until) = deferral_after(400_000, Some(450_000));
    assert_eq!(until, None);
    let commands = wait_in_vain(&mut story, 450_000);
    assert!(
        commands.contains(&Command::Settle(token(1), Terminal::Expired, 0)),
        "its deadline ends the wait: {commands:?}"
    );
}
