//! The flow with a code (RFC 6749, section 4.1) and PKCE (RFC 7636).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::credential::Registration;

/// How long a principal has for its consent, in seconds.
pub const LIFETIME: u64 = 600;

/// A flow that has begun. It is kept in the slot of the principal that began it and of the server,
/// so there is one at a time, and is removed when it is [finished](Self::finish), whatever comes of
/// it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// The digest of the state, so that the store holds nothing with which a flow could be finished.
    state: [u8; 32],
    verifier: String,
    registration: Registration,
    scopes: Vec<String>,
    redirect_uri: String,
    ends: u64,
}

/// What goes into the URL that the principal opens.
#[derive(Clone, PartialEq, Eq)]
pub struct Begun {
    /// The state, which comes back with the code.
    pub state: String,
    /// The challenge (method S256).
    pub challenge: String,
}

/// Why a flow can't be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// The state is not that of the flow.
    #[error("the state does not belong to the flow that this principal has begun for this server")]
    ForeignState,
    /// The principal took too long.
    #[error("the flow was begun too long ago; begin another one")]
    Expired,
    /// The authorization server is another one than the principal was sent to (RFC 9207).
    #[error("the answer comes from another authorization server than the one that was asked")]
    ForeignIssuer,
}

/// What is exchanged for tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What proves that the code was issued to us.
    pub verifier: String,
    /// Who issues the tokens.
    pub registration: Registration,
    /// The scopes that were asked for.
    pub scopes: Vec<String>,
    /// The redirect URI that was asked with.
    pub redirect_uri: String,
}

impl Authorization {
    /// Begins a flow at `now`. Both arrays must be random.
    pub fn begin(
        registration: Registration,
        scopes: Vec<String>,
        redirect_uri: String,
        (state, verifier): ([u8; 32], [u8; 32]),
        now: u64,
    ) -> (Self, Begun) {
        let [state, verifier] =
            [state, verifier].map(|random| BASE64_URL_SAFE_NO_PAD.encode(random));
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
        let flow = Self {
            state: Sha256::digest(&state).into(),
            verifier,
            registration,
            scopes,
            redirect_uri,
            ends: now.saturating_add(LIFETIME),
        };
        (flow, Begun { state, challenge })
    }

    /// Ends the flow with what came back at `now`: the state, and the issuer if the authorization
    /// server names itself, which must be `expected` then.
    ///
    /// # Errors
    ///
    /// Returns an error if the answer does not belong to this flow.
    pub fn finish(
        self,
        state: &str,
        (named, expected): (Option<&str>, Option<&str>),
        now: u64,
    ) -> Result<Exchange, AuthorizationError> {
        let digest: [u8; 32] = Sha256::digest(state).into();
        if verify_slices_are_equal(&digest, &self.state).is_err() {
            return Err(AuthorizationError::ForeignState);
        }
        if now >= self.ends {
            return Err(AuthorizationError::Expired);
        }
        if let (Some(named), Some(expected)) = (named, expected)
            && named != expected
        {
            return Err(AuthorizationError::ForeignIssuer);
        }

        let Self { verifier, registration, scopes, redirect_uri, .. } = self;
        Ok(Exchange { verifier, registration, scopes, redirect_uri })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(random: u8) -> (Authorization, Begun) {
        let registration = Registration {
            token_endpoint: "https://idp.example/token".parse().unwrap(),
            client_id: "fleet".to_owned(),
            resource: "https://crm.example/mcp".parse().unwrap(),
        };
        let redirect_uri = "http://127.0.0.1:4000/callback".to_owned();
        let random = ([random; 32], [random + 1; 32]);
        Authorization::begin(registration, Vec::new(), redirect_uri, random, 1_000)
    }

    fn check(
        flow: &Authorization,
        state: &str,
        issuers: (Option<&str>, Option<&str>),
        now: u64,
        expected: Option<AuthorizationError>,
    ) {
        assert_eq!(flow.clone().finish(state, issuers, now).err(), expected, "{state} {now}");
    }

    #[test]
    fn only_the_answer_to_a_flow_ends_it() {
        let (flow, begun) = begin(1);
        let (_, foreign) = begin(3);
        check(&flow, &begun.state, (None, None), 1_599, None);
        check(&flow, &begun.state, (None, None), 1_600, Some(AuthorizationError::Expired));
        for state in [&*foreign.state, "", &begun.state[1..], &begun.challenge] {
            check(&flow, state, (None, None), 1_001, Some(AuthorizationError::ForeignState));
        }

        let (own, evil) = (Some("https://idp.example"), Some("https://evil.example"));
        check(&flow, &begun.state, (own, own), 1_001, None);
        check(&flow, &begun.state, (None, own), 1_001, None);
        check(&flow, &begun.state, (evil, own), 1_001, Some(AuthorizationError::ForeignIssuer));
    }

    #[test]
    fn the_verifier_belongs_to_the_challenge() {
        let (flow, begun) = begin(1);
        let exchange = flow.finish(&begun.state, (None, None), 1_001).ok().unwrap();
        assert!((43..=128).contains(&exchange.verifier.len()), "RFC 7636, section 4.1");
        let digest = Sha256::digest(&exchange.verifier);
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(digest), begun.challenge);
        assert!(begin(1).1.state != begin(2).1.state);
    }

    #[test]
    fn what_is_kept_does_not_have_the_state() {
        let (flow, begun) = begin(1);
        let kept = serde_json::to_string(&flow).unwrap();
        assert!(!kept.contains(&begun.state), "{kept}");
        let read: Authorization = serde_json::from_str(&kept).unwrap();
        check(&read, &begun.state, (None, None), 1_001, None);
    }
}
