//! How large a value is on the wire, and how much of a text an error repeats.

use std::{borrow::Cow, io};

use serde::Serialize;

/// How many bytes `value` takes as JSON, without writing it anywhere. What can't be written as JSON
/// is larger than any limit.
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

/// The start of a text that somebody has sent, as far as an error repeats it: `limit` bytes at
/// most, and `…` if there is more.
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
    fn it_is_the_length_of_the_text() {
        let value = json!({"a": [1, "ä\n", null]});
        assert_eq!(json_bytes(&value), value.to_string().len() as u64);
        let no_json = HashMap::from([(vec![1], 1)]);
        assert_eq!(json_bytes(&no_json), u64::MAX);
    }
}
