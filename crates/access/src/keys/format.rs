//! The text of a key, and its digest.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::hex;

/// What every key begins with; scanners for leaked secrets look for it.
const PREFIX: &str = "mf_";
const MAX_ID_BYTES: usize = 40;

/// The key under which keys are digested: 32 random bytes, in the keys file or apart from it.
#[derive(Clone, PartialEq, Eq)]
pub struct Pepper([u8; 32]);

/// The digest of a key.
pub(super) type KeyMac = [u8; 32];

/// A key's id can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "key id {0:?} must have 1 to {MAX_ID_BYTES} characters, all of them lower-case letters, \
     digits or `-`"
)]
pub struct KeyIdError(pub String);

/// Checks the id of a key.
///
/// # Errors
///
/// Returns an error if the id is empty, too long, or has a character that a key's text can't hold.
pub fn check_key_id(id: &str) -> Result<(), KeyIdError> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(is_allowed) {
        true => Ok(()),
        false => Err(KeyIdError(id.to_owned())),
    }
}

/// Writes a key: the only time that anybody sees its secret.
pub(super) fn write_key(id: &str, secret: &[u8; 32]) -> String {
    format!("{PREFIX}{id}_{}", BASE64_URL_SAFE_NO_PAD.encode(secret))
}

/// Returns the id in a token that has the form of a key; `None` if it has another form.
pub(super) fn key_id(token: &str) -> Option<&str> {
    token.strip_prefix(PREFIX)?.split_once('_').map(|(id, _)| id)
}

/// Returns the id of a key if the text is one: an id and 32 bytes in base64url.
pub(super) fn check_key(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let is_secret = BASE64_URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == 32);
    (is_secret && check_key_id(id).is_ok()).then_some(id)
}

impl Pepper {
    /// A pepper of these random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// Reads a pepper from 64 hexadecimal digits; `None` if the text is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text.trim())?.try_into().ok().map(Self)
    }

    /// The pepper as text. Whoever has it and the keys file can check guesses of keys, and nothing
    /// more.
    pub fn reveal(&self) -> String {
        hex::encode(&self.0)
    }

    /// An HMAC that has taken the pepper in.
    pub(super) fn start_mac(&self) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length")
    }
}

/// The digest of a key's whole text, so that it holds for its id alone.
pub(super) fn digest_key(mut mac: Hmac<Sha256>, key: &str) -> KeyMac {
    mac.update(key.as_bytes());
    mac.finalize().into_bytes().into()
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_an_id_that_can_be_found() {
        let key = write_key("ci-1", &[0xff; 32]);
        assert_eq!(key.len(), 3 + 4 + 1 + 43);
        // All bits set is `_` in base64url, which the id must not be cut at.
        assert!(key.ends_with("____________________________________8"), "{key}");
        assert_eq!(key_id(&key), Some("ci-1"));
        assert_eq!(key_id("mf_x"), None);
        assert_eq!(key_id("eyJhbGciOi"), None);

        assert_eq!(check_key(&key), Some("ci-1"));
        for other in [&key[1..], &key[..key.len() - 1], &key.to_uppercase(), "mf_ci-1_", ""] {
            assert_eq!(check_key(other), None, "{other}");
        }
    }

    #[test]
    fn ids_are_checked() {
        assert_eq!(check_key_id("ci-1"), Ok(()));
        for bad in ["", "a_b", "A", "é", &"a".repeat(41)] {
            assert_eq!(check_key_id(bad), Err(KeyIdError(bad.to_owned())));
        }
    }

    #[test]
    fn a_pepper_shows_only_when_asked() {
        let pepper = Pepper::new([7; 32]);
        assert_eq!(Pepper::parse(&pepper.reveal()), Some(pepper.clone()));
        assert!(!format!("{pepper:?}").contains('7'));
        assert_eq!(Pepper::parse("07"), None);
    }
}
