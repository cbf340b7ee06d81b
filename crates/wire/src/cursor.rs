//! The cursors of lists that come in pages.

use serde_json::Value;

/// Reads the `nextCursor` of a page. Returns `None` if there is no next page.
///
/// # Errors
///
/// Returns a cursor that is neither text nor a number. There is no way to ask for that page.
pub fn read_cursor(cursor: Option<Value>) -> Result<Option<String>, Value> {
    match cursor {
        None | Some(Value::Null) => Ok(None),
        // Many servers send an empty cursor with the last page.
        Some(Value::String(cursor)) => Ok(Some(cursor).filter(|cursor| !cursor.is_empty())),
        Some(Value::Number(cursor)) => Ok(Some(cursor.to_string())),
        Some(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cursors_are_read_in_every_form() {
        let check = |cursor: Value, expected: Result<Option<&str>, Value>| {
            let found = read_cursor(Some(cursor.clone()));
            assert_eq!(found, expected.map(|cursor| cursor.map(str::to_owned)), "{cursor}");
        };
        check(json!("2"), Ok(Some("2")));
        check(json!(2), Ok(Some("2")));
        check(json!(""), Ok(None));
        check(Value::Null, Ok(None));
        check(json!({"page": 2}), Err(json!({"page": 2})));
        check(json!(true), Err(json!(true)));
        assert_eq!(read_cursor(None), Ok(None));
    }
}
