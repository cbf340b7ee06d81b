//! The two members that each worker has if there is a delayed topic: jobs and delayed jobs are
//! balanced separately, whichever workers come and go, and nothing repeats when partitions move.
//!
//! `FLEET_MEMBERS_WORKERS` sets the most workers; `scripts/storm members` goes up to twelve.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{collections::BTreeMap, process::Command};

use fleet_job::{event::JobState, topics::Topics};
use fleet_tests::{Env, Fleet, on_every_broker, process::Process, topics, wait};

on_every_broker!(
    every_worker_has_its_share_of_both_topics,
    workers_that_follow_both_topics_with_one_member_can_be_replaced
);

const JOBS: i32 = 12;
const DELAYED: i32 = 6;
/// As many as the delayed topic has partitions: with each additional worker, a share of both topics
/// moves.
const WORKERS: usize = 6;

/// From one worker to [`WORKERS`] and back, while jobs run: of each topic, no worker has two
/// partitions more than another, and no ended job runs again.
fn every_worker_has_its_share_of_both_topics(env: &Env) {
    let mut fleet = fleet(env, "shares");
    let most = std::env::var("FLEET_MEMBERS_WORKERS")
        .map_or(WORKERS, |text| text.parse().expect("FLEET_MEMBERS_WORKERS is a number"));
    for workers in 1..=most {
        fleet.submit_digests(20 + workers);
        fleet.start_worker();
        wait_for_shares(&fleet, workers);
    }
    for workers in (2..most).rev().step_by(3) {
        fleet.submit_digests(50 + workers);
        for mut worker in fleet.workers.split_off(workers) {
            assert!(worker.process.stop(wait::LONG).success(), "{}", worker.process.log());
        }
        wait_for_shares(&fleet, workers);
    }
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), account.states.len());
}

/// A rollout: a member of the old kind, which follows both topics, shares the group with a worker
/// and leaves. It assigns the partitions and may crash of that (docs/upgrading.md); either way,
/// nothing is lost or repeated.
fn workers_that_follow_both_topics_with_one_member_can_be_replaced(env: &Env) {
    let mut fleet = fleet(env, "rollout");
    let delayed = Topics::of(&*fleet.topic).delayed;
    let mut command = Command::new(env!("CARGO_BIN_EXE_fixture_member"));
    command.args([&env.brokers, &fleet.group, &fleet.topic, &delayed]);
    let mut old = Process::start("old-member", &fleet.directory, command);
    old.wait_until("the old member's partitions", wait::LONG, || {
        let assigned: usize =
            topics::assignments(&env.brokers, &fleet.group).iter().map(Vec::len).sum();
        (assigned == (JOBS + DELAYED) as usize).then_some(())
    });

    // The member becomes ready once the group has answered it.
    let worker = fleet.launch_worker();
    fleet.submit_digests(40);
    wait::poll_until(
        "a group of old and new members, or the end of the old one",
        wait::LONG,
        || {
            (topics::assignments(&env.brokers, &fleet.group).len() > 1 || !old.is_running())
                .then_some(())
        },
    );
    if old.is_running() {
        old.kill();
    }
    fleet.workers.push(worker.ready());

    fleet.start_worker();
    fleet.submit_digests(41);
    wait_for_shares(&fleet, 2);
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), account.states.len());
}

fn fleet<'e>(env: &'e Env, name: &str) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, JOBS);
    topics::create(&env.brokers, &[(&Topics::of(&*fleet.topic).delayed, DELAYED)]);
    fleet.start_file_server();
    fleet
}

/// Waits until this many workers share both topics evenly.
fn wait_for_shares(fleet: &Fleet<'_>, workers: usize) {
    let topics = [(fleet.topic.clone(), JOBS), (Topics::of(&*fleet.topic).delayed, DELAYED)];
    wait::poll_until_ok(&format!("even shares for {workers} workers"), wait::LONG, || {
        let members = topics::assignments(&fleet.env.brokers, &fleet.group);
        let shares: BTreeMap<_, _> = topics
            .iter()
            .map(|(topic, _)| {
                let of_topic = members
                    .iter()
                    .map(|member| member.iter().filter(|(name, _)| name == topic).count());
                let mut shares: Vec<_> = of_topic.filter(|share| *share > 0).collect();
                shares.sort_unstable();
                (topic, shares)
            })
            .collect();
        let even = topics
            .iter()
            .all(|(topic, partitions)| shares[topic] == even_shares(*partitions as usize, workers));
        if even { Ok(()) } else { Err(shares) }
    });
}

/// The number of partitions of each worker that has any, in ascending order.
fn even_shares(partitions: usize, workers: usize) -> Vec<usize> {
    let shares = (0..workers)
        .rev()
        .map(|worker| partitions / workers + usize::from(worker < partitions % workers));
    shares.filter(|share| *share > 0).collect()
}
