//! Which jobs start, in which order, under which limits.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use fleet_group::Partition;
use fleet_retry::Random;
use proptest::prelude::*;

use super::*;
use crate::types::{Limit, Tenant};

fn token(offset: i64) -> Token {
    Token { partition: Partition { topic: 0, number: 0 }, offset, generation: 0 }
}

fn limit(group: u64, max: u32) -> Option<Limit> {
    Some(Limit { group, max })
}

fn spec(priority: u8, limits: Limits) -> JobSpec {
    JobSpec { priority, limits, ..JobSpec::new(1) }
}

fn of(number: u64, weight: u32) -> JobSpec {
    JobSpec { tenant: Tenant { number, weight }, ..JobSpec::new(1) }
}

fn offsets(ready: &mut Ready) -> Vec<i64> {
    std::iter::from_fn(|| ready.pop()).map(|token| token.offset).collect()
}

/// Starts so many jobs, or all that there are; their offsets, in order.
fn start(ready: &mut Ready, jobs: usize, limits: &Limits) -> Vec<i64> {
    let mut starts = Vec::new();

    while starts.len() < jobs
        && let Some(token) = ready.pop()
    {
        ready.started(limits);
        starts.push(token.offset);
    }
    starts
}

#[test]
fn the_most_urgent_and_then_the_oldest_goes_first() {
    let mut ready = Ready::default();
    for (offset, priority) in [(1, 5), (2, 9), (3, 5), (4, 0)] {
        ready.push(&spec(priority, [None; 2]), token(offset));
    }
    ready.push_front(&spec(5, [None; 2]), token(9));
    assert_eq!(offsets(&mut ready), [2, 9, 1, 3, 4]);
    assert!(ready.is_empty());
}

#[test]
fn a_full_limit_lets_others_pass() {
    let mut ready = Ready::default();
    let slow = [limit(1, 1), None];
    for offset in [1, 2, 3] {
        ready.push(&spec(5, slow), token(offset));
    }
    ready.push(&spec(5, [None; 2]), token(4));
    assert_eq!(ready.pop(), Some(token(1)));
    ready.started(&slow);
    assert_eq!(offsets(&mut ready), [4]);
    ready.ended(&slow);
    assert_eq!(ready.pop(), Some(token(2)));
}

#[test]
fn a_stale_entry_does_not_swallow_the_turn_of_another_queue() {
    let mut ready = Ready::default();
    let (one, two) = ([limit(1, 1), limit(10, 9)], [limit(1, 1), limit(20, 9)]);
    ready.push(&spec(5, one), token(0));
    assert_eq!(ready.pop(), Some(token(0)));
    ready.started(&one);
    ready.push(&spec(5, one), token(1));
    ready.push(&spec(5, two), token(2));
    assert_eq!(ready.pop(), None);
    ready.ended(&one);
    // The first is stale: its owner does not start it. The second must come up all the same.
    assert_eq!(offsets(&mut ready), [1, 2]);
    assert!(ready.groups.is_empty() && ready.queues.is_empty(), "{ready:?}");
}

#[test]
fn tenants_take_turns_and_start_as_many_jobs_as_they_weigh() {
    let mut ready = Ready::default();
    (0..100).for_each(|offset| ready.push(&of(1, 1), token(offset)));
    (100..200).for_each(|offset| ready.push(&of(2, 3), token(offset)));
    assert_eq!(start(&mut ready, 9, &[None; 2]), [0, 100, 101, 102, 1, 103, 104, 105, 2]);

    // One that comes late waits for one turn of each other.
    ready.push(&of(3, 1), token(300));
    assert_eq!(start(&mut ready, 5, &[None; 2]), [106, 107, 108, 3, 300]);
}

#[test]
fn what_is_left_of_a_turn_is_forgotten() {
    let mut ready = Ready::default();
    (0..10).for_each(|offset| ready.push(&of(1, 1), token(offset)));
    ready.push(&of(2, 5), token(100));
    assert_eq!(start(&mut ready, 3, &[None; 2]), [0, 100, 1]);

    // It had four starts left, and comes back at the end all the same.
    (0..10).for_each(|offset| ready.push(&of(3, 1), token(200 + offset)));
    (0..9).for_each(|offset| ready.push(&of(2, 5), token(101 + offset)));
    let starts = start(&mut ready, 8, &[None; 2]);
    assert_eq!(starts, [2, 200, 101, 102, 103, 104, 105, 3]);
}

#[test]
fn priority_counts_inside_a_tenant_only() {
    let mut ready = Ready::default();
    for offset in 0..4 {
        ready.push(&JobSpec { priority: 9, ..of(1, 1) }, token(offset));
    }
    ready.push(&JobSpec { priority: 0, ..of(2, 1) }, token(10));
    ready.push(&JobSpec { priority: 1, ..of(2, 1) }, token(11));
    assert_eq!(start(&mut ready, 6, &[None; 2]), [0, 11, 1, 10, 2, 3]);
}

/// A limit has room, and the queue that was woken for it waits behind something more urgent of its
/// tenant: the next tenant's queue does not wait for that.
#[test]
fn room_under_a_limit_is_not_kept_for_a_tenant_that_has_something_else_to_do() {
    let tool = [limit(1, 1), None];
    let mut ready = Ready::default();
    for tenant in [1, 2] {
        ready.push(&JobSpec { limits: tool, ..of(tenant, 1) }, token(10 * tenant as i64));
        ready.push(&JobSpec { limits: tool, ..of(tenant, 1) }, token(10 * tenant as i64 + 1));
    }
    assert_eq!(start(&mut ready, 1, &tool), [10]);
    assert_eq!(ready.pop(), None, "both queues are set aside");
    (0..9).for_each(|at| ready.push(&JobSpec { priority: 9, ..of(1, 1) }, token(100 + at)));
    ready.ended(&tool);
    assert_eq!(start(&mut ready, 1, &tool), [20]);
    assert_eq!(start(&mut ready, 1, &[None; 2]), [100]);
}

/// While nothing starts, nothing is popped, and only `retain` takes jobs out.
#[test]
fn queues_whose_jobs_are_all_dropped_leave_nothing_behind() {
    let tool = [limit(1, 1), None];
    let mut ready = Ready::default();
    ready.push(&JobSpec { limits: tool, ..of(1, 1) }, token(0));
    assert_eq!(start(&mut ready, 1, &tool), [0]);
    for tenant in 0..1_000 {
        ready.push(&JobSpec { limits: tool, ..of(tenant, 1) }, token(2 * tenant as i64));
        ready.push(&of(tenant, 1), token(2 * tenant as i64 + 1));
        if tenant == 500 {
            assert_eq!(offsets(&mut ready).len(), 501, "the jobs of the tool are set aside");
        }
    }

    ready.retain(|token| token.offset == 6);
    assert_eq!(ready.len(), 1);
    assert!(ready.queues.len() <= 2, "{} queues", ready.queues.len());
    assert!(ready.race.len() <= 1, "{} in the race", ready.race.len());
    assert!(ready.turns.all().count() <= 1, "{} in the ring", ready.turns.all().count());

    ready.ended(&tool);
    assert_eq!(offsets(&mut ready), [6]);
}

/// 50 tenants have jobs without end for 16 slots, and each job of a tool that may run once at a
/// time is of yet another tenant. Each takes one second, and about 4 come in 5 seconds, at random.
#[test]
fn who_waits_for_a_limit_is_served_before_those_who_come_later() {
    const TOOL: i64 = 1_000_000;
    let tool = [limit(1, 1), None];
    let mut ready = Ready::default();
    let mut ends: BTreeSet<(i64, i64)> = BTreeSet::new();
    let mut arrivals: Vec<i64> = Vec::new();
    let mut started: Vec<i64> = Vec::new();
    let mut waits = Vec::new();
    let mut random = Random::new(7);
    (0..50).for_each(|tenant| ready.push(&of(tenant, 1), token(tenant as i64)));

    for now in (0..1_500_000).step_by(50) {
        if random.up_to(Duration::from_millis(2_500)) < Duration::from_millis(100) {
            let number = arrivals.len() as i64;
            arrivals.push(now);
            let spec = JobSpec { limits: tool, ..of(1_000 + number as u64, 1) };
            ready.push(&spec, token(TOOL + number));
        }
        while ends.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, job)) = ends.pop_first() else { break };
            ready.ended(if job >= TOOL { &tool } else { &[None; 2] });
        }
        while ends.len() < 16
            && let Some(token) = ready.pop()
        {
            let job = token.offset;
            if job >= TOOL {
                ready.started(&tool);
                started.push(job - TOOL);
                waits.push(now - arrivals[(job - TOOL) as usize]);
                ends.insert((now + 1_000, job));
            } else {
                ready.started(&[None; 2]);
                ends.insert((now + 700 + job * 7 % 13 * 50, job));
                ready.push(&of(job as u64, 1), token);
            }
        }
    }

    let overtakes =
        |(at, job): (usize, &i64)| started[..at].iter().filter(|earlier| *earlier > job).count();
    let most = started.iter().enumerate().map(overtakes).max();
    let (most, longest) = (most.unwrap_or_default(), waits.iter().max().copied());
    assert!(most <= 1, "{most} later ones have started before one; the longest wait: {longest:?}");
    assert!(longest < Some(30_000), "{longest:?} ms");
}

proptest! {
    /// Whatever starts, ends and is dropped: nothing runs over a limit, and nothing is left
    /// that could run.
    #[test]
    fn limits_hold_and_nobody_is_forgotten(
        moves in prop::collection::vec((0u8..5, 0u64..3, 0u64..3, 0u8..3), 1..120)
    ) {
        let mut ready = Ready::default();
        let mut running: Vec<(Limits, i64)> = Vec::new();
        let mut waiting: HashMap<i64, Limits> = HashMap::new();
        let mut next = 0;
        for (kind, tool, tenant, priority) in moves {
            match kind {
                0..=2 => {
                    let limits = [limit(tool, 1 + tool as u32), limit(100 + tenant, 2)];
                    let spec = JobSpec { priority, limits, ..of(tenant, 1) };
                    ready.push(&spec, token(next));
                    waiting.insert(next, limits);
                    next += 1;
                }
                3 if !running.is_empty() => {
                    let (limits, _) = running.swap_remove(usize::from(priority) % running.len());
                    ready.ended(&limits);
                }
                _ => {
                    let keep = i64::from(priority);
                    ready.retain(|token| token.offset % 7 != keep);
                    waiting.retain(|offset, _| offset % 7 != keep);
                }
            }
            while let Some(token) = ready.pop() {
                let limits = waiting.remove(&token.offset).unwrap();
                // Some turn out to be stale.
                if token.offset % 5 != 4 {
                    ready.started(&limits);
                    running.push((limits, token.offset));
                }
            }
            let count = |group| {
                let under = running.iter().filter(|(limits, _)| groups(limits).contains(&group));
                under.count() as u32
            };
            let room = |limits: &Limits| {
                limits.iter().flatten().all(|limit| count(limit.group) < limit.max)
            };
            for limit in running.iter().flat_map(|(limits, _)| limits.iter().flatten()) {
                prop_assert!(count(limit.group) <= limit.max);
            }
            prop_assert!(!waiting.values().any(room), "{:?} could start", waiting);
            prop_assert_eq!(ready.len(), waiting.len());
        }
    }

    /// I8: whatever arrives, starts, ends and turns out to be stale, a tenant with a job whose
    /// limits have room is passed over by at most two rounds of the others.
    #[test]
    fn nobody_waits_for_more_than_two_rounds(
        moves in prop::collection::vec((0u8..8, 0u64..4, 0u64..3, 0u8..10), 1..200)
    ) {
        const SLOTS: usize = 3;
        let weight = |tenant: u64| [1, 3, 1, 2][tenant as usize];
        let mut ready = Ready::default();
        let mut running: Vec<Limits> = Vec::new();
        let mut waiting: BTreeMap<i64, JobSpec> = BTreeMap::new();
        let mut passed: BTreeMap<u64, u32> = BTreeMap::new();
        let mut next = 0;
        for (kind, tenant, tool, priority) in moves {
            if kind < 5 {
                let tool = limit(10 + tool, 2).filter(|_| tool < 2);
                let own = limit(tenant, 2).filter(|_| tenant == 3);
                let spec = JobSpec { priority, limits: [tool, own], ..of(tenant, weight(tenant)) };
                ready.push(&spec, token(next));
                waiting.insert(next, spec);
                next += 1;
            } else if !running.is_empty() {
                let limits = running.swap_remove(usize::from(priority) % running.len());
                ready.ended(&limits);
            }

            loop {
                let room = |spec: &&JobSpec| {
                    let count = |group| {
                        running.iter().filter(|limits| groups(limits).contains(&group)).count()
                    };
                    let mut limits = spec.limits.iter().flatten();
                    limits.all(|limit| count(limit.group) < limit.max as usize)
                };
                let could = waiting.values().filter(room).map(|spec| spec.tenant.number);
                let could: BTreeSet<_> = could.collect();
                passed.retain(|tenant, _| could.contains(tenant));
                if running.len() == SLOTS {
                    break;
                }
                let Some(token) = ready.pop() else { break };
                let spec = waiting.remove(&token.offset).unwrap();
                if token.offset % 7 == 3 {
                    continue;
                }
                ready.started(&spec.limits);
                running.push(spec.limits);
                passed.remove(&spec.tenant.number);
                for tenant in could.into_iter().filter(|tenant| *tenant != spec.tenant.number) {
                    let starts = passed.entry(tenant).or_default();
                    *starts += 1;
                    prop_assert!(*starts <= 2 * (7 - weight(tenant)), "tenant {tenant}: {starts}");
                }
            }
        }
    }
}

fn groups(limits: &Limits) -> Vec<u64> {
    limits.iter().flatten().map(|limit| limit.group).collect()
}
