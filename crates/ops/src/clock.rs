//! The only place outside the pure crates that reads the system clock.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use fleet_job::time::Timestamp;

/// Returns the time since the first call of this function, which never goes back.
pub fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Returns the current time.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis_clamped(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
