//! Deterministic simulation: random schedules of a whole fleet, and deliberate faults that it must
//! find.
//!
//! `FLEET_SIM_SEEDS=100000 cargo test --release -p fleet-engine simulation` plays more schedules.
//! `cargo run -p fleet-engine --example step -- SEED` steps through one of them;
//! `FLEET_SIM_FIRST=SEED FLEET_SIM_SEEDS=1 FLEET_SIM_TRACE=1` plays one as a test and prints what
//! happens in it. A schedule that fails is shrunk and printed as a line for `regressions.txt`,
//! whose schedules every test run plays.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::engine::Mutant;
pub(crate) use world::{Fault, Subject};
use world::{Listener, World};

/// How many schedules the normal test run plays.
const SEEDS: u64 = 2_000;
/// So many schedules are enough to find every fault.
const MUTANT_SEEDS: u64 = 400;
/// What once failed: see [`Schedule::line`].
const REGRESSIONS: &str = include_str!("simulation/regressions.txt");

/// The seed of the world, and one for every move in it. Leaving moves out leaves the others what
/// they are.
#[derive(Debug, Clone, PartialEq)]
struct Schedule {
    world: u64,
    moves: Vec<u64>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        Self { world: seed, moves: world::moves_of(seed).collect() }
    }

    /// Plays the schedule; what it breaks, if anything.
    fn play(&self, fault: Option<Fault>) -> Result<(), String> {
        let schedule = AssertUnwindSafe(|| {
            let mut world: World<Mutant> = World::new(self.world, fault, listener());
            self.moves.iter().for_each(|seed| world.step(*seed));
            world.sit_out();
            world.settle_down();
            world.check_end();
        });
        catch_unwind(schedule).map_err(|cause| {
            let text = cause.downcast_ref::<String>().cloned();
            text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    }

    /// A schedule of fewer moves that still fails: ever smaller parts are left out, for as long as
    /// that helps.
    fn shrunk(mut self, fault: Option<Fault>) -> Self {
        let mut part = self.moves.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < self.moves.len() {
                let mut shorter = self.clone();
                shorter.moves.drain(at..(at + part).min(self.moves.len()));
                if shorter.play(fault).is_err() {
                    self = shorter;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        self
    }

    /// The schedule as a line of text: what it shows, the world's seed, and the moves, in
    /// hexadecimal.
    fn line(&self, what: &str) -> String {
        let moves: Vec<_> = self.moves.iter().map(|seed| format!("{seed:x}")).collect();
        format!("{what} {:x} {}", self.world, moves.join(","))
    }

    /// Reads such a line.
    fn parse(line: &str) -> Option<(&str, Self)> {
        let mut words = line.split_whitespace();
        let (what, world, moves) = (words.next()?, words.next()?, words.next().unwrap_or_default());
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let moves =
            moves.split(',').filter(|seed| !seed.is_empty()).map(hex).collect::<Option<_>>()?;
        Some((what, Self { world: hex(world)?, moves }))
    }
}

/// Prints what happens, if that is wanted.
fn listener() -> Option<Listener> {
    std::env::var_os("FLEET_SIM_TRACE").map(|_| (|line: &str| eprintln!("{line}")) as Listener)
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_schedule_keeps_the_promises() {
    let first = from_environment("FLEET_SIM_FIRST", 1);
    for seed in first..first + from_environment("FLEET_SIM_SEEDS", SEEDS) {
        let schedule = Schedule::new(seed);
        if let Err(broken) = schedule.play(None) {
            let shrunk = schedule.shrunk(None);
            let shows = shrunk.play(None).err().unwrap_or_default();
            panic!(
                "seed {seed}: {broken}\n{} moves are enough ({shows}); keep them in regressions.txt:\n{}",
                shrunk.moves.len(),
                shrunk.line(&format!("seed-{seed}"))
            );
        }
    }
}

#[test]
fn every_deliberate_fault_is_found() {
    for fault in Fault::ALL {
        let found = (1..=MUTANT_SEEDS).find(|seed| Schedule::new(*seed).play(Some(fault)).is_err());
        assert!(found.is_some(), "{fault:?} is not found by {MUTANT_SEEDS} schedules");
    }
}

/// Each line is a schedule that failed when it was kept: with a fault, which it must still find, or
/// for a bug that is mended. Without the fault it must pass. `FLEET_SIM_KEEP=all` searches
/// for the lines of all faults again and prints them; `FLEET_SIM_KEEP=NoFence,SlotLeak`, those of
/// two faults.
#[test]
fn what_once_failed_is_played_again() {
    if let Ok(kept) = std::env::var("FLEET_SIM_KEEP") {
        let is_kept = |fault: &Fault| {
            kept == "all" || kept.split(',').any(|name| name == format!("{fault:?}"))
        };
        for fault in Fault::ALL.into_iter().filter(is_kept) {
            let found = (1..=MUTANT_SEEDS)
                .map(Schedule::new)
                .find(|schedule| schedule.play(Some(fault)).is_err());
            println!("{}", found.unwrap().shrunk(Some(fault)).line(&format!("{fault:?}")));
        }
        return;
    }
    let (mut faults, mut missed) = (Vec::new(), Vec::new());
    for line in REGRESSIONS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (what, schedule) = Schedule::parse(line).unwrap();
        schedule.play(None).unwrap_or_else(|broken| panic!("{what}: {broken}"));
        assert_eq!(schedule.line(what), line);
        if let Some(fault) = Fault::ALL.iter().find(|fault| format!("{fault:?}") == what) {
            faults.push(*fault);
            if schedule.play(Some(*fault)).is_ok() {
                missed.push(what);
            }
        }
    }
    assert!(missed.is_empty(), "their schedules no longer find these faults: {missed:?}");
    assert_eq!(faults, Fault::ALL, "every fault has its shortest schedule");
}
