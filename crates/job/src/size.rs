//! Sizes of JSON values and of texts that errors repeat.

use std::{borrow::Cow, io};

use serde::Serialize;

/// Returns the size of `value` as JSON in bytes, without storing the JSON. A value that cannot be
/// written as JSON counts as larger than any limit.
pub fn json_bytes(value: &impl Serialize) -> u64 {
    struct Count(u64);

    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).map_or(u64::MAX, |()| count.0)
}

/// Returns the first `limit` bytes of a text from outside, followed by `…` if there is more, so
/// that an error may repeat it.
pub fn clipped(text: &str, limit: usize) -> Cow<'_, str> {
    match text.len() {
        length if length <= limit => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(limit)])),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(clipped("abc", 3), "abc");
        assert_eq!(clipped("abcd", 3), "abc…");
        assert_eq!(clipped("aäö", 2), "a…");
    }

    #[test]
    fn the_size_is_the_length_of_the_json() {
        let value = json!({"a": [1, "ä\n", null]});
        assert_eq!(json_bytes(&value), value.to_string().len() as u64);

        let not_json = HashMap::from([(vec![1], 1)]);
        assert_eq!(json_bytes(&not_json), u64::MAX);
    }
}
