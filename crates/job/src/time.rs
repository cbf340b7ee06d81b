//! Points in time in the contract: RFC 3339 in UTC with milliseconds.
//!
//! The resolution is that of Kafka's timestamps. This crate never reads the clock.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Number;

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Written as an RFC 3339 string; read
/// from such a string or from an integer number of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest point in time: the start of year 1.
    pub const MIN: Self = Self(-62_135_596_800_000);
    /// The latest point in time: the end of year 9999, where RFC 3339 ends.
    pub const MAX: Self = Self(253_402_207_200_000);

    /// The start of the year 2000, before which there was no Kafka and no job.
    const EARLIEST_PLAUSIBLE: Self = Self(946_684_800_000);

    /// Creates a point in time from milliseconds since the epoch. Returns `None` outside the years
    /// 1 to 9999.
    pub fn from_millis(ms: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&ms).then_some(Self(ms))
    }

    /// Creates a point in time from milliseconds since the epoch, limited to the years 1 to 9999.
    pub fn from_millis_clamped(ms: i64) -> Self {
        Self(ms.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Returns the milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Refuses points in time before the year 2000, which no job can mean. A producer that writes
    /// seconds instead of milliseconds gets a day in January 1970.
    ///
    /// # Errors
    ///
    /// Returns what was probably meant and what to write instead.
    pub fn check_plausible(self) -> Result<Self, String> {
        if self >= Self::EARLIEST_PLAUSIBLE {
            return Ok(self);
        }

        let seconds = Self::from_millis(self.0.saturating_mul(1000));
        match seconds.filter(|time| *time >= Self::EARLIEST_PLAUSIBLE) {
            Some(meant) => Err(format!(
                "{} means {self}; if these are seconds, write milliseconds ({}000) or RFC 3339 ({meant})",
                self.0, self.0
            )),
            None => Err(format!(
                "{} means {self}, which is before the year 2000; write milliseconds since 1970 (not seconds) or \
                 RFC 3339, or leave the field out",
                self.0
            )),
        }
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns the point in time `by` later, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis_clamped(self.0.saturating_add(ms))
    }

    /// Returns the point in time `by` earlier, at least [`Timestamp::MIN`].
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis_clamped(self.0.saturating_sub(ms))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed: jiff::Timestamp = text.parse().map_err(|_| {
            format!("`{text}` is not a time; expected RFC 3339, such as 2026-11-21T08:00:00Z")
        })?;
        Self::from_millis(parsed.as_millisecond())
            .ok_or_else(|| format!("`{text}` is outside the years 1 to 9999"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an RFC 3339 time or milliseconds since the epoch")
            }

            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Timestamp, E> {
                Timestamp::from_millis(ms).ok_or_else(|| out_of_range(ms))
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Timestamp, E> {
                self.visit_i64(i64::try_from(ms).unwrap_or(i64::MAX))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Timestamp, E> {
                Err(not_whole(number))
            }

            /// Reads serde_json's form of a number that 64 bits cannot represent exactly.
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Timestamp, A::Error> {
                let number = Number::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map_err(|_| de::Error::invalid_type(de::Unexpected::Map, &self))?;
                Err(match number.as_str().contains(['.', 'e']) {
                    true => not_whole(number),
                    false => out_of_range(number),
                })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn out_of_range<E: de::Error>(ms: impl std::fmt::Display) -> E {
    E::custom(format_args!(
        "{ms} ms is outside the years 1 to 9999; write milliseconds, not microseconds or nanoseconds"
    ))
}

fn not_whole<E: de::Error>(number: impl std::fmt::Display) -> E {
    E::custom(format_args!(
        "{number} is not a whole number; write milliseconds, not seconds with a fraction, or RFC 3339"
    ))
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "RFC 3339 in UTC with milliseconds. Milliseconds since the epoch are also accepted.",
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}]
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_with_an_offset_and_integers_are_read() {
        let expected = Timestamp::from_millis(1_795_248_000_000).unwrap();
        for text in
            ["\"2026-11-21T08:00:00Z\"", "\"2026-11-21T09:00:00.000+01:00\"", "1795248000000"]
        {
            assert_eq!(serde_json::from_str::<Timestamp>(text).unwrap(), expected, "{text}");
        }
        assert_eq!(expected.to_string(), "2026-11-21T08:00:00.000Z");
    }

    #[test]
    fn an_error_suggests_the_right_unit() {
        let check = |ms: i64, expected: &str| {
            let refusal = Timestamp::from_millis(ms).unwrap().check_plausible().unwrap_err();
            assert!(refusal.contains("write milliseconds"), "{refusal}");
            assert!(refusal.contains(expected), "{refusal}");
        };

        check(1_795_248_000, "milliseconds (1795248000000) or RFC 3339 (2026-11-21T08:00:00.000Z)");
        check(0, "1970-01-01T00:00:00.000Z");
        check(-1, "before the year 2000");
        check(253_402_300_799, "1978-01-11");

        let now = Timestamp::from_millis(1_795_248_000_000).unwrap();
        assert_eq!(now.check_plausible(), Ok(now));

        for (text, unit) in [
            ("1795248000000000", "microseconds"),
            ("1795248000000000000000", "nanoseconds"),
            ("-1795248000000000000000000000000000000000000", "nanoseconds"),
            ("1795248000.5", "seconds with a fraction"),
            ("1795248000.50", "1795248000.50 is not a whole number"),
            ("1e400", "1e+400 is not a whole number"),
        ] {
            let error = serde_json::from_str::<Timestamp>(text).unwrap_err().to_string();
            assert!(error.contains(unit), "{error}");
        }
    }

    #[test]
    fn an_invalid_time_is_refused_with_advice() {
        let error = serde_json::from_str::<Timestamp>("\"tomorrow\"").unwrap_err().to_string();
        assert!(error.contains("RFC 3339"), "{error}");
    }

    proptest! {
        #[test]
        fn a_written_time_is_read_back(ms in Timestamp::MIN.0..=Timestamp::MAX.0) {
            let time = Timestamp::from_millis(ms).unwrap();
            let text = serde_json::to_string(&time).unwrap();
            prop_assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), time);
        }
    }
}
