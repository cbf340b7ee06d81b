//! The names under which hosted servers' tools are offered: `<server>__<tool>`, 64 characters at most.
//!
//! Many clients refuse longer tool names. A longer one is cut and ends in a hash of the whole, so that it is the same
//! in every replica and after every restart.

use sha2::{Digest, Sha256};

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
    #[error("a server's name must have 1 to {MAX_SERVER} characters, and {0:?} has not")]
    Length(String),
    /// It has other characters than may be.
    #[error("a server's name may have letters A-Z and a-z, digits, `_` and `-`, and {0:?} has others")]
    Characters(String),
    /// It has `__`, which separates server and tool.
    #[error("a server's name must not contain `__`, as {0:?} does: that separates server and tool")]
    Separator(String),
}

/// Whether a server may have this name.
///
/// # Errors
///
/// Where it may not.
pub fn check_server(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.chars().count() > MAX_SERVER {
        return Err(NameError::Length(name.to_owned()));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
        return Err(NameError::Characters(name.to_owned()));
    }
    if name.contains(SEPARATOR) {
        return Err(NameError::Separator(name.to_owned()));
    }
    Ok(())
}

/// Whether a tool's own name is one that can be offered: printable ASCII without blanks and quotes. Anything else
/// could pose as something that it is not in a list.
pub fn is_presentable(tool: &str) -> bool {
    !tool.is_empty()
        && tool.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':'))
}

/// The name under which a server's tool is offered. `server` has passed [`check_server`] and `tool`
/// [`is_presentable`].
pub fn exposed(server: &str, tool: &str) -> String {
    let full = format!("{server}{SEPARATOR}{tool}");
    if full.len() <= MAX_EXPOSED {
        return full;
    }
    let digest = Sha256::digest(full.as_bytes());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let kept: String = full.chars().take(MAX_EXPOSED - 1 - HASH_DIGITS).collect();
    format!("{kept}_{}", &hash[..HASH_DIGITS])
}

/// The server that an offered name belongs to, where it has the form of one.
pub fn server_of(exposed: &str) -> Option<&str> {
    exposed.split_once(SEPARATOR).map(|(server, _)| server)
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
        for bad in ["", "a b", "a.b", "ä", "a\nb", "a__b", "../x", &"a".repeat(MAX_SERVER + 1)] {
            assert!(check_server(bad).is_err(), "{bad}");
        }
        assert!(!is_presentable("evil\nname"));
        assert!(!is_presentable("a b"));
        assert!(is_presentable("tools.read-file"));
    }

    #[test]
    fn names_are_stable() {
        assert_eq!(exposed("files", "file_read"), "files__file_read");
        assert_eq!(
            exposed("server", &"t".repeat(80)),
            "server__ttttttttttttttttttttttttttttttttttttttttttttt_31c2a6f4f2"
        );
    }

    proptest! {
        #[test]
        fn names_are_short_and_lead_back(server in "[A-Za-z0-9-]{1,40}", tool in "[a-z_./-]{1,120}") {
            let name = exposed(&server, &tool);
            prop_assert!(name.len() <= MAX_EXPOSED);
            prop_assert_eq!(server_of(&name), Some(server.as_str()));
        }

        #[test]
        fn different_tools_have_different_names(a in "[a-z]{1,80}", b in "[a-z]{1,80}") {
            prop_assert_eq!(exposed("s", &a) == exposed("s", &b), a == b);
        }
    }
}
