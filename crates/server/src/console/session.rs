//! Sessions without a store: the cookie holds the credentials themselves, sealed.
//!
//! Every request opens the cookie and authenticates what is in it, as if the visitor had sent it. So
//! a key that is revoked ends its sessions, a change of its roles counts at once, and any replica
//! with the same secret serves the session. Whoever gets hold of a cookie has a session until it
//! expires, and never the key.

use std::{path::Path, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    constant_time, hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use fleet_access::PrincipalId;
use fleet_job::time::Timestamp;
use fleet_ops::config::read_secret_file;

use crate::error::ServerError;

/// How long a session lasts.
pub(super) const SESSION_TIME: Duration = Duration::from_secs(12 * 3600);
/// The shortest secret in a file, in bytes.
const MIN_SECRET: usize = 32;
/// The longest cookie that is opened. Browsers keep none that is longer.
const MAX_COOKIE: usize = 4096;
/// What is sealed has this beside it, so that nothing else that the secret seals is a session.
const PURPOSE: &[u8] = b"mcp-fleet console session 1";
/// The bytes of a time.
const TIME_LEN: usize = 8;

/// Seals and opens sessions.
pub(super) struct Sessions {
    sealing: RandomizedNonceKey,
    tokens: hmac::Key,
}

impl Sessions {
    /// Reads the secret, or makes one for this process.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be read, or what is in it could be guessed.
    pub(super) fn start(file: Option<&Path>) -> Result<Self, ServerError> {
        let secret = match file {
            Some(path) => read_secret_file(path).map_err(ServerError::ConsoleKey)?.into_bytes(),
            None => {
                let mut secret = vec![0; MIN_SECRET];
                SystemRandom::new().fill(&mut secret).map_err(|_| ServerError::ConsoleRandom)?;
                secret
            }
        };
        if secret.len() < MIN_SECRET {
            return Err(ServerError::ConsoleKeyShort { min: MIN_SECRET });
        }

        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let derive = |purpose: &[u8]| hmac::sign(&secret, purpose);
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, derive(b"sessions").as_ref())
            .map_err(|_| ServerError::ConsoleRandom)?;
        let tokens = hmac::Key::new(hmac::HMAC_SHA256, derive(b"tokens").as_ref());
        Ok(Self { sealing, tokens })
    }

    /// Seals credentials for [`SESSION_TIME`]; `None` if they are too long for a cookie.
    pub(super) fn seal(&self, authorization: &str, now: Timestamp) -> Option<String> {
        let expires = now.plus(SESSION_TIME).as_millis().to_be_bytes();
        let mut content = [&expires[..], authorization.as_bytes()].concat();
        let sealed = self.sealing.seal_in_place_append_tag(Aad::from(PURPOSE), &mut content);
        let nonce = sealed.ok()?;

        let bytes = [&nonce.as_ref()[..], &content].concat();
        let cookie = BASE64_URL_SAFE_NO_PAD.encode(bytes);
        (cookie.len() <= MAX_COOKIE).then_some(cookie)
    }

    /// Opens a cookie; `None` if it is none of ours or has expired.
    pub(super) fn open(&self, cookie: &str, now: Timestamp) -> Option<String> {
        if cookie.len() > MAX_COOKIE {
            return None;
        }
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(cookie).ok()?;
        let (nonce, content) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let content = self.sealing.open_in_place(nonce, Aad::from(PURPOSE), content).ok()?;

        let (expires, authorization) = content.split_at_checked(TIME_LEN)?;
        let expires = i64::from_be_bytes(expires.try_into().ok()?);
        if now.as_millis() >= expires {
            return None;
        }
        String::from_utf8(authorization.to_vec()).ok()
    }

    /// The token that forms of a visitor have. It belongs to the principal and to the session.
    pub(super) fn form_token(&self, principal: PrincipalId, cookie: &str) -> String {
        let mut message = principal.as_bytes().to_vec();
        message.extend_from_slice(cookie.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&self.tokens, &message))
    }

    /// Returns whether a token is the one of a visitor.
    pub(super) fn is_form_token(expected: &str, found: &str) -> bool {
        constant_time::verify_slices_are_equal(expected.as_bytes(), found.as_bytes()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis_clamped(ms)
    }

    #[test]
    fn a_session_is_opened_until_it_expires() {
        let sessions = Sessions::start(None).unwrap();
        let cookie = sessions.seal("Bearer mf_a_b", at(0)).unwrap();
        assert!(!cookie.contains("mf_a"));
        assert_eq!(sessions.open(&cookie, at(1)).as_deref(), Some("Bearer mf_a_b"));

        let end = i64::try_from(SESSION_TIME.as_millis()).unwrap();
        assert!(sessions.open(&cookie, at(end - 1)).is_some());
        assert_eq!(sessions.open(&cookie, at(end)), None);
    }

    #[test]
    fn nothing_but_a_cookie_of_this_secret_is_opened() {
        let (sessions, others) = (Sessions::start(None).unwrap(), Sessions::start(None).unwrap());
        let cookie = sessions.seal("Bearer a", at(0)).unwrap();
        assert_eq!(others.open(&cookie, at(1)), None);
        for index in 0..cookie.len() {
            let mut forged = cookie.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last digit may have bits that mean nothing, which the decoder refuses.
            assert_eq!(sessions.open(&forged, at(1)), None, "{index}");
        }
        for forged in ["", "A", "AAAA", &"A".repeat(100), &"A".repeat(5000), "é"] {
            assert_eq!(sessions.open(forged, at(1)), None);
        }
        assert_eq!(sessions.seal(&"x".repeat(4000), at(0)), None);
    }

    #[test]
    fn replicas_with_the_same_secret_share_sessions_and_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        let [one, two] = [0, 1].map(|_| Sessions::start(Some(&file)).unwrap());
        let cookie = one.seal("Bearer a", at(0)).unwrap();
        assert_eq!(two.open(&cookie, at(1)).as_deref(), Some("Bearer a"));

        let id = PrincipalId::of("keys", "a");
        assert_eq!(one.form_token(id, &cookie), two.form_token(id, &cookie));
        let others = [
            one.form_token(PrincipalId::of("keys", "b"), &cookie),
            one.form_token(id, "another session"),
            String::new(),
        ];
        let token = one.form_token(id, &cookie);
        assert!(others.iter().all(|other| !Sessions::is_form_token(&token, other)));

        std::fs::write(&file, "short\n").unwrap();
        assert!(Sessions::start(Some(&file)).is_err());
    }
}
