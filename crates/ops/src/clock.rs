//! The only place outside the pure crates that reads the system clock.

use std::time::SystemTime;

use fleet_job::time::Timestamp;

/// Returns the current time.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis_clamped(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
