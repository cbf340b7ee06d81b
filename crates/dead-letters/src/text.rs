//! Positions and short texts.

use fleet_job::record::Position;

/// Formats a position as `topic/partition/offset`.
pub fn format_position(position: &Position) -> String {
    format!("{}/{}/{}", position.topic, position.partition, position.offset)
}

/// Parses the output of [`format_position`]. Topic names contain no `/`.
pub fn parse_position(text: &str) -> Option<Position> {
    let mut parts = text.split('/');
    let (topic, partition, offset) =
        (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then(|| Position { topic: topic.to_owned(), partition, offset })
}

/// Returns one line of at most `length` characters.
pub fn shorten(text: &str, length: usize) -> String {
    let text = text.replace(|c: char| c.is_control(), " ");

    if text.chars().count() <= length {
        return text;
    }

    let kept: String = text.chars().take(length.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let position = Position { topic: "a.dlq".into(), partition: 1, offset: 22 };
        assert_eq!(parse_position("a.dlq/1/22").as_ref(), Some(&position));
        assert_eq!(format_position(&position), "a.dlq/1/22");
        for no in ["", "job-1", "a/b/c", "a/1", "a/1/2/3", "a/1/x"] {
            assert_eq!(parse_position(no), None, "{no}");
        }
    }

    #[test]
    fn long_texts_and_control_characters() {
        assert_eq!(shorten("a\nb\u{1b}", 10), "a b ");
        assert_eq!(shorten("ääää", 3), "ää…");
    }
}
