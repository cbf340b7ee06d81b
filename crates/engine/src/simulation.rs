//! Deterministic simulation: random schedules of a whole fleet, and deliberate faults that it must find.
//!
//! `FLEET_SIM_SEEDS=100000 cargo test --release -p fleet-engine simulation` plays more schedules; `FLEET_SIM_FIRST=n
//! FLEET_SIM_SEEDS=1 FLEET_SIM_TRACE=1` plays one and prints what happens in it.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::types::Fault;
use world::World;

/// How many schedules the normal test run plays.
const SEEDS: u64 = 2_000;
/// Moves of a schedule, before everything is let come to its end.
const STEPS: u32 = 600;
/// So many schedules are enough to find every fault.
const MUTANT_SEEDS: u64 = 400;

/// Plays one schedule; what it breaks, if anything.
fn play(seed: u64, steps: u32, fault: Option<Fault>) -> Result<(), String> {
    let schedule = AssertUnwindSafe(|| {
        let mut world = World::new(seed, fault);
        (0..steps).for_each(|_| world.step());
        world.settle_down();
        world.check_end();
    });
    catch_unwind(schedule).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// The fewest steps with which `seed` still fails. A schedule is a prefix of every longer one of its seed.
fn shrink(seed: u64) -> u32 {
    (0..=STEPS).find(|steps| play(seed, *steps, None).is_err()).unwrap_or(STEPS)
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_schedule_keeps_the_promises() {
    let first = from_environment("FLEET_SIM_FIRST", 1);
    for seed in first..first + from_environment("FLEET_SIM_SEEDS", SEEDS) {
        if let Err(broken) = play(seed, STEPS, None) {
            panic!("seed {seed} fails ({} steps are enough): {broken}", shrink(seed));
        }
    }
}

#[test]
fn every_deliberate_fault_is_found() {
    for fault in Fault::ALL {
        let found = (1..=MUTANT_SEEDS).find_map(|seed| Some((seed, play(seed, STEPS, Some(fault)).err()?)));
        assert!(found.is_some(), "{fault:?} is not found by {MUTANT_SEEDS} schedules");
    }
}
