//! The names under which the tools of hosted servers are offered: `<server>__<tool>`, at most 64
//! letters, digits, `_` and `-`.
//!
//! Many clients reject a whole list of tools if one name is longer or has other characters. For
//! such a name, every other character is replaced by `_`, and the name is cut and ends in a hash of
//! the original, so that it is the same in every replica and after every restart.

use fleet_codes as codes;
use sha2::{Digest, Sha256};

use crate::size::clipped;

/// The longest name that is offered.
pub const MAX_EXPOSED: usize = 64;
/// The longest name of a server.
pub const MAX_SERVER: usize = 40;
const SEPARATOR: &str = "__";
const HASH_DIGITS: usize = 10;

/// Why a server's name is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty or too long.
    #[error(
        "server name {0:?} must be 1 to {MAX_SERVER} characters long [{code}]",
        code = codes::SERVER_NAME
    )]
    Length(String),
    /// The name has a character that is not allowed.
    #[error(
        "server name {0:?} may contain only letters A-Z and a-z, digits, `_` and `-` [{code}]",
        code = codes::SERVER_NAME
    )]
    Characters(String),
    /// The name contains `__`, which separates server and tool.
    #[error(
        "server name {0:?} must not contain `__`, which separates server and tool [{code}]",
        code = codes::SERVER_NAME
    )]
    Separator(String),
    /// The name is reserved for mcp-fleet's own tools.
    #[error(
        "server name {0:?} is reserved for the tools of mcp-fleet itself; choose another name [{code}]",
        code = codes::SERVER_NAME
    )]
    Reserved(String),
}

/// Names that hosted servers cannot have, in lower case: `server__remove` would look like
/// mcp-fleet's own `server_remove`. `files` is not among them, since hosted servers for files
/// usually have that name.
const RESERVED: [&str; 6] = ["file", "job", "jobs", "server", "servers", "mcp-fleet"];

/// How much of an invalid name an error repeats.
const SHOWN: usize = 2 * MAX_SERVER;

/// Checks the name of a server.
///
/// # Errors
///
/// Returns what is wrong with the name.
pub fn check_server(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.chars().count() > MAX_SERVER {
        return Err(NameError::Length(clipped(name, SHOWN).into_owned()));
    }
    if !name.chars().all(is_plain) {
        return Err(NameError::Characters(name.to_owned()));
    }
    if name.contains(SEPARATOR) {
        return Err(NameError::Separator(name.to_owned()));
    }
    if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(NameError::Reserved(name.to_owned()));
    }
    Ok(())
}

/// Returns the name under which a server's tool is offered, whatever the tool's own name is.
/// `server` must have passed [`check_server`].
pub fn exposed(server: &str, tool: &str) -> String {
    let full = format!("{server}{SEPARATOR}{tool}");
    if full.len() <= MAX_EXPOSED && full.chars().all(is_plain) {
        return full;
    }

    let digest = Sha256::digest(full.as_bytes());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let plain = full.chars().map(|c| if is_plain(c) { c } else { '_' });
    let kept: String = plain.take(MAX_EXPOSED - 1 - HASH_DIGITS).collect();
    format!("{kept}_{}", &hash[..HASH_DIGITS])
}

/// Returns whether every client accepts this character in the name of a tool.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Returns the server that an offered name belongs to, if the name has that form.
pub fn server_of(exposed: &str) -> Option<&str> {
    split(exposed).map(|(server, _)| server)
}

/// Splits an offered name into the server and the rest, if the name has that form. The rest is the
/// tool's own name, unless [`exposed`] had to change that.
pub fn split(exposed: &str) -> Option<(&str, &str)> {
    exposed.split_once(SEPARATOR)
}

/// Returns whether [`split`] may be wrong about an offered name: the name may be one that
/// [`exposed`] has changed, or that of a server whose own name ends in `_`.
pub fn is_ambiguous(name: &str) -> bool {
    let is_hash = |end: &str| {
        end.len() == HASH_DIGITS
            && end.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.contains("___") || name.rsplit_once('_').is_some_and(|(_, end)| is_hash(end))
}

/// Returns the name under which a tool is offered if a caller uses `<server>__<tool>` with the
/// tool's own name. Returns `None` if `name` does not have that form or is already the offered
/// name.
pub fn exposed_of_plain(name: &str) -> Option<String> {
    let (server, tool) = name.split_once(SEPARATOR)?;
    Some(exposed(server, tool)).filter(|exposed| exposed != name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_do_not_tell_their_tool_are_known() {
        for name in [&exposed("q", "ns/drop"), &exposed("q", &"x".repeat(80)), "a___x"] {
            assert!(is_ambiguous(name), "{name}");
        }
        for name in ["q__drop", "q__drop_all", "drop", "q__drop_0123"] {
            assert!(!is_ambiguous(name), "{name}");
        }
    }

    #[test]
    fn server_names_are_checked() {
        for good in ["a", "MariaDB_Server", "x-1", &"a".repeat(MAX_SERVER)] {
            assert_eq!(check_server(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a.b",
            "ä",
            "a\nb",
            "a__b",
            "../x",
            &"a".repeat(MAX_SERVER + 1),
            "server",
            "Jobs",
        ] {
            assert!(check_server(bad).is_err(), "{bad}");
        }

        let long = check_server(&"a".repeat(1 << 20)).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn offered_names_are_stable() {
        assert_eq!(exposed("files", "file_read"), "files__file_read");
        assert_eq!(
            exposed("server", &"t".repeat(80)),
            "server__ttttttttttttttttttttttttttttttttttttttttttttt_31c2a6f4f2"
        );
    }

    #[test]
    fn offered_names_have_no_characters_that_clients_refuse() {
        let check = |tool: &str, expected: &str| {
            assert_eq!(exposed("q", tool), expected);
            let by_own_name = exposed_of_plain(&format!("q__{tool}"));
            assert_eq!(
                by_own_name.as_deref(),
                Some(expected).filter(|_| expected != format!("q__{tool}"))
            );
        };

        check("work", "q__work");
        check("a.b", "q__a_b_15983aa019");
        check("a:b", "q__a_b_34756a8c87");
        check("ns/do-it", "q__ns_do-it_791ab57d9e");
        check("with space", "q__with_space_16e314a7f8");
        check("größe", "q__gr__e_7f80e95a13");
        check("工具", "q_____1ff95d0414");
        check("evil\nname", "q__evil_name_306e35bcbd");

        assert_eq!(exposed_of_plain("work"), None);
    }

    proptest! {
        #[test]
        fn offered_names_suit_strict_clients(server in "[A-Za-z0-9_-]{1,40}", tool in ".{1,80}") {
            let name = exposed(&server, &tool);
            prop_assert!((1..=MAX_EXPOSED).contains(&name.len()), "{name}");
            prop_assert!(name.chars().all(is_plain), "{name}");
            prop_assert!(name.starts_with(&server), "{name}");
        }

        #[test]
        fn offered_names_are_short_and_reveal_their_server(server in "[A-Za-z0-9-]{1,40}", tool in "[a-z_./-]{1,120}") {
            let name = exposed(&server, &tool);
            prop_assert!(name.len() <= MAX_EXPOSED);
            prop_assert_eq!(server_of(&name), Some(server.as_str()));
        }

        #[test]
        fn different_tools_have_different_names(a in "[a-z./ ]{1,80}", b in "[a-z./ ]{1,80}") {
            prop_assert_eq!(exposed("s", &a) == exposed("s", &b), a == b);
        }
    }
}
