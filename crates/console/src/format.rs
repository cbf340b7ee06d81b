//! How values are written for people.

use fleet_job::time::Timestamp;

/// A moment in UTC, to the second.
pub(crate) fn utc(time: Timestamp) -> String {
    let text = time.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// A duration in one or two units.
pub(crate) fn duration(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// A number with its thousands apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the unit that fits.
pub(crate) fn bytes(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", tenths(1_024)),
        _ => format!("{} MiB", tenths(1_048_576)),
    }
}

/// The beginning of a text, of at most `max` bytes in the page.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut size = 0;
    let end = text.char_indices().find(|(_, c)| {
        size += escaped_len(*c);
        size > max
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// How many bytes a text takes in the page.
pub(crate) fn escaped_size(text: &str) -> usize {
    text.chars().map(escaped_len).sum()
}

/// How many bytes a character takes, which may have to be escaped.
fn escaped_len(c: char) -> usize {
    match c {
        '<' | '>' | '&' | '"' | '\'' => 5,
        c => c.len_utf8(),
    }
}

/// A text of one line, of at most `max` characters; what is left out is marked.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut characters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = characters.by_ref().take(max).collect();
    if characters.next().is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_for_people() {
        assert_eq!(utc(Timestamp::from_millis_clamped(1_000)), "1970-01-01 00:00:01 UTC");
        let durations = [(0, "0 ms"), (1_250, "1.2 s"), (61_000, "1 min 1 s")];
        durations.iter().for_each(|(ms, text)| assert_eq!(duration(*ms), *text));
        assert_eq!(duration(90_000_000), "1 d 1 h");
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        for (size, text) in [(12, "12 B"), (1_536, "1.5 KiB"), (3 << 20, "3.0 MiB")] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!((cut("<<<", 10), escaped_size("<<")), ("<<", 10));
        assert_eq!(one_line("a\nb\u{1b}c", 9), "a b c");
        assert_eq!(one_line("abc", 2), "ab…");
    }
}
