//! The revisions of the protocol that start with a handshake.

use serde_json::Value;

/// The JSON-RPC error code for an unsupported revision. The error's data lists the supported ones.
pub const UNSUPPORTED: i64 = -32022;

/// All revisions with a handshake, newest first.
pub const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// Returns the newest revision that a server lists in the data of an error, other than `asked`,
/// which it has refused.
#[must_use]
pub fn listed(data: Option<&Value>, asked: &str) -> Option<&'static str> {
    let listed = data?.get("supported")?.as_array()?;
    let known = LEGACY.into_iter().filter(|known| *known != asked);
    known.into_iter().find(|known| listed.iter().any(|version| version == known))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_listed_revision_is_found() {
        let check = |data: Value, expected: Option<&str>| {
            assert_eq!(listed(Some(&data), "2025-11-25"), expected, "{data}");
        };
        check(json!({"supported": ["2024-11-05", "2025-06-18", "2026-07-28"]}), Some("2025-06-18"));
        check(json!({"supported": ["2025-11-25", "2099-01-01", 7]}), None);
        check(json!({"supported": "2025-06-18"}), None);
        check(json!({}), None);
        assert_eq!(listed(None, "2025-11-25"), None);
    }
}
