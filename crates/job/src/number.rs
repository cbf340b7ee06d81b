//! Numbers that keep their spelling.
//!
//! serde_json keeps the text of every number (`arbitrary_precision`), so `12345678901234567890123`,
//! `1.10` and `1e400` pass through this project unchanged; only exponents are normalized, from
//! `1E2` to `1e+2`. Two kinds of code need help with this:
//!
//! - A type that is read through one of serde's buffers (`flatten`, `untagged`, `tag`) receives
//!   some numbers as a map, which an `f64` does not accept. Read such a field with [`f64`](f64())
//!   or [`option_f64`].
//! - Reading a type from a [`Value`] converts numbers to 64 bits where they seem to fit: `-0`
//!   becomes `0`, `0.00001` becomes `1e-5`, and serde's buffers reject 128-bit integers. [`read`]
//!   converts such values by way of their text.

use serde::{Deserialize as _, Deserializer, de::DeserializeOwned, de::Error};
use serde_json::{Number, Value};

/// Reads a type from JSON as `serde_json::from_value` does, but keeps the spelling of every number.
///
/// # Errors
///
/// Returns an error if the value does not have the structure of the type.
pub fn read<T: DeserializeOwned>(value: Value) -> serde_json::Result<T> {
    if has_plain_numbers(&value) {
        return serde_json::from_value(value);
    }

    // On failure, return the error for the value: it does not name a position in a text that the
    // caller has never seen.
    serde_json::from_str(&value.to_string()).or_else(|_| serde_json::from_value(value))
}

/// Returns whether all numbers in a value keep their spelling as 64-bit numbers.
pub(crate) fn has_plain_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => is_plain(number),
        Value::Array(values) => values.iter().all(has_plain_numbers),
        Value::Object(members) => members.values().all(has_plain_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

fn is_plain(number: &Number) -> bool {
    if number.is_u64() || number.is_i64() {
        return number.as_str() != "-0";
    }

    number.as_f64().and_then(Number::from_f64).is_some_and(|same| same == *number)
}

/// Reads a number that may come from one of serde's buffers.
///
/// # Errors
///
/// Returns an error if the value is not a number or is too large.
pub fn f64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    to_f64(&Number::deserialize(deserializer)?)
}

/// Reads a number that may come from one of serde's buffers, or `null`.
///
/// # Errors
///
/// Returns an error if the value is neither a number nor `null`, or is too large.
pub fn option_f64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::<Number>::deserialize(deserializer)?.as_ref().map(to_f64).transpose()
}

/// Reads a non-negative whole number, or `null`.
///
/// # Errors
///
/// Returns an error if the value is anything else or too large for the type.
pub fn option_whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let whole = |number: Number| {
        let found = number.as_u64().and_then(|found| T::try_from(found).ok());
        found.ok_or_else(|| {
            D::Error::custom(format_args!("{number} is not a whole number in the allowed range"))
        })
    };

    Option::<Number>::deserialize(deserializer)?.map(whole).transpose()
}

fn to_f64<E: Error>(number: &Number) -> Result<f64, E> {
    number.as_f64().ok_or_else(|| {
        E::custom(format_args!("{number} is too large; at most {} is allowed", f64::MAX))
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Map;

    use super::*;

    /// A type for every way in which serde buffers.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Buffered {
        Tagged(Tagged),
        Flat {
            #[serde(flatten)]
            all: Map<String, Value>,
        },
    }

    #[derive(Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        T { all: Value },
    }

    #[test]
    fn numbers_keep_their_spelling_through_every_buffer() {
        for number in [
            "0",
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "12345678901234567890123",
            "1e+400",
            "-1e+400",
            "1e-400",
            "-0",
            "-0.0",
            "1.0",
            "1.10",
            "0.00001",
            "0.1000000000000000055",
            "0.30000000000000004",
            "1e+2",
            "1.5e+300",
            "100000000000000000000000000000000000000000",
        ] {
            let list = format!("[{number},{{\"n\":{number}}}]");
            for (text, flat) in [
                (format!("{{\"type\":\"T\",\"all\":{list}}}"), false),
                (format!("{{\"all\":{list}}}"), true),
            ] {
                let value: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value.to_string(), text);

                let found = match read(value).unwrap() {
                    Buffered::Tagged(Tagged::T { all }) if !flat => all,
                    Buffered::Flat { all } if flat => all["all"].clone(),
                    _ => panic!("{text}"),
                };
                assert_eq!(found.to_string(), list);
            }
        }
    }

    #[test]
    fn decimals_are_read_from_every_buffer() {
        #[derive(Deserialize)]
        struct Inner {
            #[serde(deserialize_with = "f64")]
            needed: f64,
            #[serde(default, deserialize_with = "option_f64")]
            possible: Option<f64>,
        }
        #[derive(Deserialize)]
        struct Outer {
            #[serde(flatten)]
            inner: Inner,
        }

        let outer = |text: &str| serde_json::from_str::<Outer>(text).map(|outer| outer.inner);
        let check = |text: &str, needed: f64, possible: Option<f64>| {
            let inner = outer(text).unwrap();
            assert_eq!((inner.needed, inner.possible), (needed, possible), "{text}");
        };

        check(r#"{"needed":0.50,"possible":1e2}"#, 0.5, Some(100.0));
        check(r#"{"needed":-0,"possible":null}"#, 0.0, None);
        check(r#"{"needed":12345678901234567890123}"#, 12_345_678_901_234_567_890_123.0, None);

        let error = outer(r#"{"needed":1e400}"#).err().unwrap().to_string();
        assert!(error.contains("1e+400 is too large"), "{error}");
    }
}
