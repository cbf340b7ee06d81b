//! Waits for a condition, with a deadline and a report of the last observation.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(50);

/// Long enough for anything that works, even on two busy cores.
pub const LONG: Duration = Duration::from_secs(90);

/// Polls until `look` returns a value; panics with `what` after `deadline`.
pub fn poll_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    poll_until_ok(what, deadline, || look().ok_or("not yet"))
}

/// Polls until `look` returns `Ok`; panics with `what` and the last error after `deadline`.
pub fn poll_until_ok<T, E: Debug>(
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
