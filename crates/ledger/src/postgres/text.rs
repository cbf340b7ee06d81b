//! Texts in columns. PostgreSQL refuses U+0000, which JSON and Kafka's keys may hold.

use std::borrow::Cow;

/// Precedes what a column can't hold, and itself.
const ESCAPE: char = '\u{1}';

/// Returns a text as a column holds it. Different texts stay different, and sort as before; what
/// begins a text begins it here, too.
pub(super) fn to_column(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }

    let mut column = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => column.extend([ESCAPE, '0']),
            ESCAPE => column.extend([ESCAPE, '1']),
            other => column.push(other),
        }
    }
    Cow::Owned(column)
}

/// Returns the text that a column holds.
pub(super) fn from_column(column: String) -> String {
    if !column.contains(ESCAPE) {
        return column;
    }

    let mut text = String::with_capacity(column.len());
    let mut characters = column.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            ESCAPE if characters.next() == Some('0') => '\0',
            other => other,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!['\0', '\u{1}', '\u{2}', '0', '1']), 0..6)
            .prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn columns_keep_texts_and_their_order((a, b) in (text(), text())) {
            let (column_a, column_b) = (to_column(&a), to_column(&b));
            prop_assert!(!column_a.contains('\0'));
            prop_assert_eq!(column_a.cmp(&column_b), a.cmp(&b));
            prop_assert_eq!(column_b.starts_with(&*column_a), b.starts_with(&a));
            prop_assert_eq!(from_column(column_a.into_owned()), a);
        }
    }
}
