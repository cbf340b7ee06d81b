//! Steps through one schedule of the engine's simulation.
//!
//! ```text
//! cargo run -p fleet-engine --example step -- SEED
//! ```
//!
//! Each step is one move of the simulated world: somebody submits a job, the broker delivers a
//! record, a call ends, time passes, a worker dies. It shows what came in at each worker's engine,
//! what went out, and what has changed in the engine's status. On a terminal, Enter goes on to the
//! next step and Ctrl-D ends; otherwise all steps are printed at once.

#![expect(clippy::print_stdout, reason = "the steps are the output of this program")]

use std::{
    io::{BufRead as _, IsTerminal as _},
    process::ExitCode,
};

// The names that the simulation uses, as it finds them in the crate.
use fleet_engine::{
    Admission, Attempt, Command, Config, Engine, Input, JobSpec, Limit, Limits, Need, Status,
    Tenant, Terminal, Token,
};

#[path = "../src/simulation/world/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
#[expect(clippy::unwrap_used, reason = "test code: a panic is the report")]
mod world;

use world::World;

fn main() -> ExitCode {
    // The simulation ends with a panic that carries the broken promise and prints nothing.
    std::panic::catch_unwind(step_through).unwrap_or_else(|cause| {
        let promise = cause.downcast_ref::<String>().map_or("see above", String::as_str);
        println!("A promise is broken: {promise}");
        ExitCode::FAILURE
    })
}

fn step_through() -> ExitCode {
    let seed = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(seed) = seed else {
        println!("usage: step SEED (a positive integer; the tests play 1 to 2000)");
        return ExitCode::from(2);
    };

    let mut world: World<Engine> = World::new(seed, None, Some(|line| println!("{line}")));
    for (number, move_seed) in (1..).zip(world::moves_of(seed)) {
        if !waits_for_enter() {
            return ExitCode::SUCCESS;
        }
        println!("\nstep {number}");
        world.step(move_seed);
    }

    println!("\nThe schedule is over. Every job now gets the time to come to its end.");
    world.listener = None;
    world.sit_out();
    world.settle_down();
    world.check_end();
    println!("All promises were kept.");
    ExitCode::SUCCESS
}

/// On a terminal, waits until somebody wants to see the next step; `false` if nobody does.
fn waits_for_enter() -> bool {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return true;
    }

    input.lock().read_line(&mut String::new()).is_ok_and(|read| read > 0)
}
