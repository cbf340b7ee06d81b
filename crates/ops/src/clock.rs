//! Reading the system's clock: the one place outside the pure crates that does.

use std::time::SystemTime;

use fleet_job::time::Timestamp;

/// The time by the system's clock.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis_clamped(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
