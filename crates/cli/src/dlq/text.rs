//! Formats values for tables.

use std::time::Duration;

use comfy_table::{Table, presets};
pub(crate) use fleet_dead_letters::text::{format_position, shorten};
use fleet_job::time::Timestamp;

/// Creates a table in our common style.
pub(crate) fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table
}

/// Formats a time, or `-` if there is none.
pub(crate) fn format_time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

/// Formats a duration in its two largest units, such as `3d 4h`, `12m 5s` or `250ms`.
pub(crate) fn format_age(age: Duration) -> String {
    let seconds = age.as_secs();
    let pair = |large: u64, unit: &str, rest: u64, small: &str| match rest {
        0 => format!("{large}{unit}"),
        rest => format!("{large}{unit} {rest}{small}"),
    };

    match seconds {
        0 => format!("{}ms", age.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => pair(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (ms, expected) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (60_000, "1m"),
            (125_000, "2m 5s"),
            (3_600_000, "1h"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(format_age(Duration::from_millis(ms)), expected);
        }
    }
}
