//! The names under which hosted servers' tools are offered: `<server>__<tool>`, 64 characters at
//! most, of letters, digits, `_` and `-`.
//!
//! Many clients refuse a whole list of tools if one name in it is longer or has other characters.
//! Such a name is offered with `_` in place of every other character, is cut, and ends in a hash of
//! the whole, so that it is the same in every replica and after every restart.

use fleet_codes as codes;
use sha2::{Digest, Sha256};

use crate::size::clipped;

/// The longest name that is offered.
pub const MAX_EXPOSED: usize = 64;
/// The longest name a server may have.
pub const MAX_SERVER: usize = 40;
const SEPARATOR: &str = "__";
const HASH_DIGITS: usize = 10;

/// Why a server can't have a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty or too long.
    #[error(
        "server name {0:?} must be 1 to {MAX_SERVER} characters long [{code}]",
        code = codes::SERVER_NAME
    )]
    Length(String),
    /// It has other characters than may be.
    #[error(
        "server name {0:?} may contain only letters A-Z and a-z, digits, `_` and `-` [{code}]",
        code = codes::SERVER_NAME
    )]
    Characters(String),
    /// It has `__`, which separates server and tool.
    #[error(
        "server name {0:?} must not contain `__`, which separates server and tool [{code}]",
        code = codes::SERVER_NAME
    )]
    Separator(String),
    /// It belongs to mcp-fleet's own tools.
    #[error(
        "server name {0:?} is reserved for the tools of mcp-fleet itself; choose another name [{code}]",
        code = codes::SERVER_NAME
    )]
    Reserved(String),
}

/// Names that hosted servers can't have, in lower case: `server__remove` would pass for the
/// `server_remove` of mcp-fleet itself. `files` is not among them, since it is the usual name of a
/// hosted server with files.
const RESERVED: [&str; 6] = ["file", "job", "jobs", "server", "servers", "mcp-fleet"];

/// How much of a refused name is repeated.
const SHOWN: usize = 2 * MAX_SERVER;

/// Whether a server may have this name.
///
/// # Errors
///
/// Where it may not.
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

/// The name under which a server's tool is offered, whatever the tool's own name is. `server` has
/// passed [`check_server`].
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

/// Whether every client takes a tool's name with this character.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// The server that an offered name belongs to, where it has the form of one.
pub fn server_of(exposed: &str) -> Option<&str> {
    exposed.split_once(SEPARATOR).map(|(server, _)| server)
}

/// The name under which a tool is offered that somebody calls by `<server>__<tool>`, written as the
/// server does; `None` if it is not such a name, or is already the name that is offered.
pub fn exposed_of_plain(name: &str) -> Option<String> {
    let (server, tool) = name.split_once(SEPARATOR)?;
    Some(exposed(server, tool)).filter(|exposed| exposed != name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    fn names_are_stable() {
        assert_eq!(exposed("files", "file_read"), "files__file_read");
        assert_eq!(
            exposed("server", &"t".repeat(80)),
            "server__ttttttttttttttttttttttttttttttttttttttttttttt_31c2a6f4f2"
        );
    }

    #[test]
    fn names_have_no_characters_that_clients_refuse() {
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
        fn every_name_suits_strict_clients(server in "[A-Za-z0-9_-]{1,40}", tool in ".{1,80}") {
            let name = exposed(&server, &tool);
            prop_assert!((1..=MAX_EXPOSED).contains(&name.len()), "{name}");
            prop_assert!(name.chars().all(is_plain), "{name}");
            prop_assert!(name.starts_with(&server), "{name}");
        }

        #[test]
        fn names_are_short_and_lead_back(server in "[A-Za-z0-9-]{1,40}", tool in "[a-z_./-]{1,120}") {
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
