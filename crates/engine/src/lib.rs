//! Delivery as a sans-IO state machine.
//!
//! The engine decides what may run now, what is done, what to commit, when to try again and when to
//! wait. It does no IO, reads no clock and spawns nothing: a shell feeds it [`Input`]s with the
//! time at which they happened, carries out the [`Command`]s that [`Engine::poll`] returns, and
//! calls again at [`Engine::next_wakeup`]. So a test can write down any schedule, even the rare
//! ones around rebalances and crashes. [`Engine`] documents the contract.
//!
//! A record is a slot (`slot.rs`) whose state holds what matters in that state. All changes of
//! states go through one transition, from which all sums over states (`sums.rs`) follow.
//!
//! The promises I1 to I8 are those of `docs/guarantees.md`. The engine checks some of them while it
//! works ([`Invariant`]); a deterministic simulation (`src/simulation`) checks all of them over
//! thousands of random schedules, and shows that it finds deliberate faults. To see how a schedule
//! goes, step through it:
//!
//! ```text
//! cargo run -p fleet-engine --example step -- SEED
//! ```

mod breaker;
mod engine;
mod hash;
mod holds;
mod invariant;
mod keys;
mod open;
mod partition;
mod partitions;
mod ready;
mod schedule;
#[cfg(test)]
mod simulation;
mod slot;
mod sums;
mod types;

pub use breaker::BreakerState;
pub use engine::{Engine, HoldStatus, PartitionStatus, Status};
pub use invariant::Invariant;
pub use types::{
    Admission, Attempt, Command, Config, Input, JobSpec, Limit, Limits, Need, Ordering, Tenant,
    Terminal, Token,
};
