//! Delivery as a sans-IO state machine.
//!
//! The engine decides what may run now, what is done, what to commit, when to try again and when to
//! wait. It does no IO, reads no clock and spawns nothing: the shell feeds [`Input`]s with the time
//! they happened at, carries out the [`Command`]s that [`Engine::poll`] hands back, and calls again
//! at [`Engine::next_wakeup`]. That makes every schedule, also the rare ones around rebalance and
//! crash, something a test can write down.
//!
//! The promises I1 to I7 are those of `docs/guarantees.md`.

mod breaker;
mod engine;
mod hash;
mod holds;
mod keys;
mod open;
mod partition;
mod ready;
mod schedule;
#[cfg(test)]
mod simulation;
mod slot;
mod types;

pub use breaker::BreakerState;
pub use engine::{Engine, HoldStatus, PartitionStatus, Status};
pub use types::{
    Admission, Attempt, Command, Config, Input, JobSpec, Limit, Limits, Need, Ordering, Terminal,
    Token,
};
