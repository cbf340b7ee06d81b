//! Durations and sizes in human-readable form.

use std::time::Duration;

/// The text is not a duration or a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is not a duration.
    #[error("expected a duration with a unit, such as 250ms, 30s, 5m, 2h or 1d")]
    Duration,
    /// The text is not a size.
    #[error("expected a size such as 1024, 64KiB, 4MiB, 1GiB (or KB, MB, GB for powers of 1000)")]
    Size,
    /// The number does not fit.
    #[error("the number is too large; use a smaller one or a larger unit")]
    TooLarge,
}

/// Parses `250ms`, `30s`, `5m`, `2h`, `1d` or `0`. Only whole numbers are accepted. A unit is
/// required except for `0`, since `30` could mean seconds or milliseconds.
///
/// # Errors
///
/// Returns an error if the text is anything else or the number is too large.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split_unit(text).ok_or(UnitError::Duration)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == Some(0) => 0,
        _ => return Err(UnitError::Duration),
    };

    let total = number.and_then(|number| number.checked_mul(millis)).ok_or(UnitError::TooLarge)?;
    Ok(Duration::from_millis(total))
}

/// Parses a number of bytes: `1024`, `64KiB`, `4MiB`, `1GiB`, `10KB`, `10MB`, `1GB`; case is
/// ignored.
///
/// # Errors
///
/// Returns an error if the text is anything else or the number is too large.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_unit(text).ok_or(UnitError::Size)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(UnitError::Size),
    };

    number.and_then(|number| number.checked_mul(factor)).ok_or(UnitError::TooLarge)
}

/// Splits a text into its leading whole number (`None` inside if it does not fit) and the unit.
fn split_unit(text: &str) -> Option<(Option<u64>, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (!digits.is_empty()).then(|| (digits.parse().ok(), unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Result<u64, UnitError>| {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        };
        check("250ms", Ok(250));
        check("30s", Ok(30_000));
        check(" 5 m ", Ok(300_000));
        check("2h", Ok(7_200_000));
        check("1d", Ok(86_400_000));
        check("0", Ok(0));
        check("30", Err(UnitError::Duration));
        check("", Err(UnitError::Duration));
        check("-1s", Err(UnitError::Duration));
        check("1.5s", Err(UnitError::Duration));
        check("1y", Err(UnitError::Duration));
        check("99999999999999999999s", Err(UnitError::TooLarge));
        check("9999999999999999999d", Err(UnitError::TooLarge));
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected: Result<u64, UnitError>| {
            assert_eq!(parse_bytes(text), expected, "{text}");
        };
        check("0", Ok(0));
        check("1024", Ok(1024));
        check("4MiB", Ok(4 << 20));
        check("4 mib", Ok(4 << 20));
        check("10KB", Ok(10_000));
        check("1GiB", Ok(1 << 30));
        check("MiB", Err(UnitError::Size));
        check("1TiB", Err(UnitError::Size));
        check("18446744073709551615GiB", Err(UnitError::TooLarge));
    }
}
