//! The keys file: TOML that `mcp-fleet keys` writes and the server reads.

use std::collections::HashSet;

use fleet_codes as codes;
use fleet_job::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::format::{KeyIdError, KeyMac, Pepper, check_key, check_key_id, digest_key, write_key};
use crate::{hex, principal::PrincipalKind};

/// Text of this length without a break may be a secret. Peppers and the secrets of keys are longer.
const SHORTEST_SECRET: usize = 32;

/// The keys file, as it is read and written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeysFile {
    /// The pepper, unless it is kept apart from the file.
    pub pepper: Option<Pepper>,
    /// The keys, in the order of the file.
    pub keys: Vec<KeyEntry>,
}

/// A key: whom it stands for, and how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// The id in the key's text.
    pub id: String,
    /// The digest of the key's text under the pepper, in hexadecimal.
    pub mac: String,
    /// Whom the key stands for; the id if there is none. Keys of one subject are one principal, so a
    /// new key still sees the old one's jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What sort of subject it is.
    #[serde(default = "service")]
    pub kind: PrincipalKind,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tenant of the principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The roles of the principal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// The scopes of the key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// When the key was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When the key stops being accepted; never if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When the key was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

/// Why a keys file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    /// The text is not TOML of this shape.
    #[error("invalid keys file, at line {line}: {message} [{code}]", code = codes::KEYS_FILE)]
    Toml {
        /// The line of the fault.
        line: usize,
        /// What is wrong. It never quotes the file, which may hold the pepper.
        message: String,
    },
    /// The pepper is not 64 hexadecimal digits.
    #[error("`pepper` in the keys file is not 64 hexadecimal digits [{code}]", code = codes::KEYS_FILE)]
    Pepper,
    /// There is no pepper at all.
    #[error(
        "the keys file has no `pepper` and none was given apart from it, so no key can be checked; \
         add the pepper that the keys were made with [{code}]",
        code = codes::KEYS_FILE
    )]
    NoPepper,
    /// An id can't be used.
    #[error("[[key]] in the keys file: {0} [{code}]", code = codes::KEYS_FILE)]
    Id(KeyIdError),
    /// Two entries have one id.
    #[error(
        "two [[key]] in the keys file have the id {0:?}; remove one, or make a new key with another \
         id [{code}]",
        code = codes::KEYS_FILE
    )]
    SameId(String),
    /// A digest can't be one.
    #[error(
        "`mac` of the [[key]] {0:?} in the keys file is not 64 hexadecimal digits; make the key anew \
         with `mcp-fleet keys create` [{code}]",
        code = codes::KEYS_FILE
    )]
    Mac(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pepper: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key: Vec<KeyEntry>,
}

/// Says what is wrong with the text, and where. The error's own text would quote the line.
fn describe(text: &str, error: &toml::de::Error) -> KeysFileError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
    KeysFileError::Toml { line, message: hide_secrets(error.message()) }
}

/// Replaces what may be a pepper, a digest or the secret of a key: messages repeat values whose type
/// is wrong.
fn hide_secrets(message: &str) -> String {
    let is_part = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-');
    let hide = |word: &str| match word.trim_end_matches(|char| !is_part(char)) {
        secret if secret.len() >= SHORTEST_SECRET => word.replace(secret, "…"),
        _ => word.to_owned(),
    };
    message.split_inclusive(|char| !is_part(char)).map(hide).collect()
}

fn service() -> PrincipalKind {
    PrincipalKind::Service
}

impl KeysFile {
    /// Reads a keys file.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not TOML of this shape, or if an entry's id or digest is
    /// invalid or an id is used twice.
    pub fn parse(text: &str) -> Result<Self, KeysFileError> {
        let layout: Layout = toml::from_str(text).map_err(|error| describe(text, &error))?;

        let pepper = match layout.pepper {
            Some(text) => Some(Pepper::parse(&text).ok_or(KeysFileError::Pepper)?),
            None => None,
        };

        let mut ids = HashSet::new();
        for entry in &layout.key {
            check_key_id(&entry.id).map_err(|KeyIdError(id)| {
                // A whole key may have been taken for its id.
                KeysFileError::Id(KeyIdError(hide_secrets(&id)))
            })?;
            entry.parsed_mac()?;
            if !ids.insert(entry.id.as_str()) {
                return Err(KeysFileError::SameId(entry.id.clone()));
            }
        }
        drop(ids);

        Ok(Self { pepper, keys: layout.key })
    }

    /// Writes the file.
    pub fn to_toml(&self) -> String {
        let layout =
            Layout { pepper: self.pepper.as_ref().map(Pepper::reveal), key: self.keys.clone() };
        #[expect(clippy::expect_used, reason = "strings, lists of strings and tables are all TOML")]
        toml::to_string(&layout).expect("strings, lists of strings and tables are all TOML")
    }

    /// Revokes a key, if there is one of this id that was not revoked before. Returns whether there
    /// was.
    pub fn revoke(&mut self, id: &str, now: Timestamp) -> bool {
        let mut valid = self.keys.iter_mut().filter(|entry| entry.revoked.is_none());
        match valid.find(|entry| entry.id == id) {
            Some(entry) => {
                entry.revoked = Some(now);
                true
            }
            None => false,
        }
    }
}

impl KeyEntry {
    /// Makes a key of 32 random bytes. Returns its text, which must be shown now or never, and its
    /// entry in the file, which stands for the id itself until the caller changes it.
    ///
    /// # Errors
    ///
    /// Returns an error if the id can't be used.
    pub fn create(
        id: &str,
        random: &[u8; 32],
        pepper: &Pepper,
        now: Timestamp,
    ) -> Result<(String, Self), KeyIdError> {
        check_key_id(id)?;
        let text = write_key(id, random);
        let entry = Self::new(id, &text, pepper, now);
        Ok((text, entry))
    }

    /// Makes the entry of a key that was made before, from its text; `None` if the text is not a
    /// key. The entry stands for the id itself until the caller changes it.
    pub fn of_key(text: &str, pepper: &Pepper, now: Timestamp) -> Option<Self> {
        check_key(text).map(|id| Self::new(id, text, pepper, now))
    }

    fn new(id: &str, text: &str, pepper: &Pepper, now: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            mac: hex::encode(&digest_key(pepper.start_mac(), text)),
            subject: None,
            kind: PrincipalKind::Service,
            name: None,
            tenant: None,
            roles: Vec::new(),
            scopes: Vec::new(),
            created: Some(now),
            expires: None,
            revoked: None,
        }
    }

    pub(super) fn parsed_mac(&self) -> Result<KeyMac, KeysFileError> {
        let mac = hex::decode(&self.mac).and_then(|bytes| bytes.try_into().ok());
        mac.ok_or_else(|| KeysFileError::Mac(self.id.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::MIN;

    fn entry(id: &str) -> KeyEntry {
        KeyEntry::create(id, &[1; 32], &Pepper::new([2; 32]), NOW).unwrap().1
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let now = Timestamp::from_millis_clamped(1_795_000_000_123);
        let full = KeyEntry {
            subject: Some("ci".to_owned()),
            kind: PrincipalKind::Node,
            name: Some("CI \"main\"".to_owned()),
            tenant: Some("a".to_owned()),
            roles: vec!["r".to_owned()],
            scopes: vec!["s".to_owned()],
            expires: Some(now),
            revoked: Some(now),
            ..entry("full")
        };
        let file = KeysFile { pepper: Some(Pepper::new([2; 32])), keys: vec![entry("bare"), full] };
        assert_eq!(KeysFile::parse(&file.to_toml()).unwrap(), file);
        assert_eq!(KeysFile::parse("").unwrap(), KeysFile::default());
    }

    #[test]
    fn a_bad_file_is_refused_with_what_to_do() {
        let check = |text: &str, expected: &str| {
            let text = KeysFile::parse(text).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        };

        let mac = "0".repeat(64);
        check("pepper = 'x'", "`pepper`");
        check("\n[[keys]]", "line 2: unknown field `keys`");
        check(&format!("[[key]]\nid='A'\nmac='{mac}'"), "\"A\" must have 1 to 40");
        check("[[key]]\nid='a'\nmac='00'", "`mac` of the [[key]] \"a\"");
        check(&format!("[[key]]\nid='a'\nmac='{mac}'\nrole='x'"), "unknown field `role`");
        let twice = format!("[[key]]\nid='a'\nmac='{mac}'\n").repeat(2);
        check(&twice, "two [[key]]");
    }

    #[test]
    fn errors_never_quote_a_secret() {
        let pepper = Pepper::new([0xab; 32]);
        let (key, _) = KeyEntry::create("a", &[1; 32], &pepper, NOW).unwrap();
        let (pepper, secret) = (pepper.reveal(), key.rsplit('_').next().unwrap().to_owned());

        let (number, mac) = ("1".repeat(64), "0".repeat(64));
        for (text, line) in [
            (format!("pepper = {pepper}"), 1),
            (format!("pepper = '{pepper}"), 1),
            (format!("pepper = '{pepper}'\npepper = '{pepper}'"), 2),
            (format!("pepper = {number}"), 1),
            (format!("[[key]]\nid = '{key}' mac"), 2),
            (format!("[[key]]\nid='a'\nmac='{mac}'\nroles = '{key}'"), 4),
            (format!("[[key]]\nid='a'\nmac='{mac}'\nkind = '{key}'"), 4),
            (format!("[[key]]\nid='a'\nmac='{mac}'\nexpires = '{key}'"), 4),
            (format!("[[key]]\n'{key}' = 'a'"), 2),
        ] {
            let error = KeysFile::parse(&text).unwrap_err();
            for shown in [error.to_string(), format!("{error:?}")] {
                for secret in [&pepper, &number, &secret] {
                    assert!(!shown.contains(secret), "{shown}");
                }
            }
            let expected = format!("at line {line}: ");
            assert!(error.to_string().contains(&expected), "{error}, not {expected}");
        }

        let text = format!("[[key]]\nid='{key}'\nmac='{mac}'");
        let error = KeysFile::parse(&text).unwrap_err().to_string();
        assert!(error.contains("must have 1 to 40") && !error.contains(&secret), "{error}");
    }

    #[test]
    fn the_entry_of_a_key_can_be_made_from_its_text() {
        let pepper = Pepper::new([2; 32]);
        let (key, entry) = KeyEntry::create("a", &[1; 32], &pepper, NOW).unwrap();
        assert_eq!(KeyEntry::of_key(&key, &pepper, NOW), Some(entry));
        assert_eq!(KeyEntry::of_key("mf_a_short", &pepper, NOW), None);
    }

    #[test]
    fn a_key_is_revoked_once() {
        let mut file = KeysFile { pepper: None, keys: vec![entry("a")] };
        assert!(file.revoke("a", NOW));
        assert!(!file.revoke("a", NOW));
        assert!(!file.revoke("b", NOW));
        assert_eq!(file.keys[0].revoked, Some(NOW));
    }
}
