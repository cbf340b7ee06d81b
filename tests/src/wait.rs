//! Waiting for a condition, with a deadline and a report of what was last seen.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Long enough for anything that works, on two busy cores.
pub const LONG: Duration = Duration::from_secs(90);

/// Looks until there is something, and panics with `what` after `deadline`.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    until_ok(what, deadline, || look().ok_or("not yet"))
}

/// Looks until it is `Ok`, and panics with `what` and the last error after `deadline`.
pub fn until_ok<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Ok(found) => return found,
            Err(error) if Instant::now() >= end => {
                panic!("waited {} s for {what}; last seen: {error:?}", deadline.as_secs())
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}
