//! What an authorization server has issued to a principal.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

/// How long an access token is used whose response does not say when it ends.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(300);
/// The longest time before its end at which an access token is refreshed; a short one is refreshed
/// after nine tenths.
const MARGIN: Duration = Duration::from_secs(30);
/// The shortest time that an access token is used, whatever its response says, so that not every
/// call refreshes it.
const SHORTEST: Duration = Duration::from_secs(5);

/// Who has issued a credential, to which client. A credential is used with the same registration
/// only: a refresh token must not go to another authorization server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The token endpoint.
    pub token_endpoint: Url,
    /// The client's id there.
    pub client_id: String,
    /// What the tokens are for (RFC 8707).
    pub resource: Url,
}

/// The tokens of a principal for a hosted server. Times are in seconds since 1970.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    registration: Registration,
    access_token: String,
    /// When to get another access token.
    fresh_until: u64,
    ends: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    scopes: Vec<String>,
    /// When the principal gave its consent.
    granted: u64,
}

/// What to do for a call.
#[derive(PartialEq, Eq)]
pub enum Next<'a> {
    /// Send this access token.
    Use(&'a str),
    /// Get another access token with this refresh token. There may be an access token that is still
    /// good if that fails.
    Refresh {
        /// The refresh token.
        with: &'a str,
        /// The access token that has not ended.
        meanwhile: Option<&'a str>,
    },
    /// Ask the principal again.
    Authorize,
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Use(_) => "Use",
            Self::Refresh { .. } => "Refresh",
            Self::Authorize => "Authorize",
        })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("registration", &self.registration)
            .field("ends", &self.ends)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// The response of a token endpoint is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// There is no access token.
    #[error("the response of the authorization server has no access token")]
    NoToken,
    /// The token is of a kind that can't be sent.
    #[error("the authorization server issued a token that is not a bearer token")]
    OtherType,
}

impl Credential {
    /// Reads the response to a request for tokens (RFC 6749, section 5.1) that was sent at `now`.
    ///
    /// # Errors
    ///
    /// Returns an error if the response has no bearer token.
    pub fn issued(
        registration: Registration,
        requested: &[String],
        response: &Value,
        now: u64,
    ) -> Result<Self, BadResponse> {
        let read = Response::read(response, now)?;
        Ok(Self {
            registration,
            access_token: read.access_token,
            fresh_until: read.fresh_until,
            ends: read.ends,
            refresh_token: read.refresh_token,
            scopes: read.scopes.unwrap_or_else(|| requested.to_vec()),
            granted: now,
        })
    }

    /// Reads the response to a refresh that was sent at `now`. If the authorization server rotates
    /// refresh tokens, the response has the next one; otherwise the present one stays.
    ///
    /// # Errors
    ///
    /// Returns an error if the response has no bearer token.
    pub fn refreshed(&self, response: &Value, now: u64) -> Result<Self, BadResponse> {
        let read = Response::read(response, now)?;
        Ok(Self {
            registration: self.registration.clone(),
            access_token: read.access_token,
            fresh_until: read.fresh_until,
            ends: read.ends,
            refresh_token: read.refresh_token.or_else(|| self.refresh_token.clone()),
            scopes: read.scopes.unwrap_or_else(|| self.scopes.clone()),
            granted: self.granted,
        })
    }

    /// What to do for a call at `now`, if the policy has this registration and the server has
    /// refused a token (if it has).
    pub fn next(&self, registration: &Registration, refused: Option<&str>, now: u64) -> Next<'_> {
        if self.registration != *registration {
            return Next::Authorize;
        }

        let is_refused = refused == Some(self.access_token.as_str());
        let usable = Some(self.access_token.as_str()).filter(|_| !is_refused && now < self.ends);
        match (usable, &self.refresh_token) {
            (Some(token), _) if now < self.fresh_until => Next::Use(token),
            (meanwhile, Some(with)) => Next::Refresh { with, meanwhile },
            (Some(token), None) => Next::Use(token),
            (None, None) => Next::Authorize,
        }
    }

    /// Returns the token to revoke (RFC 7009), and its hint: the refresh token if there is one,
    /// since that ends the access tokens, too.
    pub fn revocable(&self) -> (&str, &'static str) {
        match &self.refresh_token {
            Some(token) => (token, "refresh_token"),
            None => (&self.access_token, "access_token"),
        }
    }

    /// Returns every value that must not be shown.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        [self.access_token.as_str()].into_iter().chain(self.refresh_token.as_deref())
    }

    /// Who has issued it.
    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// The scopes that were granted.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// When the principal gave its consent.
    pub fn granted(&self) -> u64 {
        self.granted
    }
}

/// What is read from a response.
struct Response {
    access_token: String,
    fresh_until: u64,
    ends: u64,
    refresh_token: Option<String>,
    scopes: Option<Vec<String>>,
}

impl Response {
    fn read(response: &Value, now: u64) -> Result<Self, BadResponse> {
        let text = |name: &str| response[name].as_str().filter(|text| !text.is_empty());
        let access_token = text("access_token").ok_or(BadResponse::NoToken)?.to_owned();
        if text("token_type").is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(BadResponse::OtherType);
        }

        let lifetime = response["expires_in"].as_u64().unwrap_or(UNKNOWN_LIFETIME.as_secs());
        let lifetime = lifetime.max(SHORTEST.as_secs());
        let fresh = lifetime - MARGIN.as_secs().min(lifetime / 10);
        Ok(Self {
            access_token,
            fresh_until: now.saturating_add(fresh),
            ends: now.saturating_add(lifetime),
            refresh_token: text("refresh_token").map(str::to_owned),
            scopes: text("scope").map(|all| all.split(' ').map(str::to_owned).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn registration(issuer: &str) -> Registration {
        Registration {
            token_endpoint: format!("https://{issuer}/token").parse().unwrap(),
            client_id: "fleet".to_owned(),
            resource: "https://crm.example/mcp".parse().unwrap(),
        }
    }

    fn issued(response: &Value) -> Result<Credential, BadResponse> {
        Credential::issued(registration("idp.example"), &["crm".to_owned()], response, 1_000)
    }

    fn check(credential: &Credential, refused: Option<&str>, now: u64, expected: &Next<'_>) {
        let registration = registration("idp.example");
        assert!(credential.next(&registration, refused, now) == *expected, "{now}: {expected:?}");
    }

    #[test]
    fn a_token_is_refreshed_before_its_end_and_after_a_refusal() {
        let response = json!({"access_token": "a", "refresh_token": "r", "expires_in": 600});
        let credential = issued(&response).unwrap();
        assert_eq!(credential.scopes(), ["crm"]);
        check(&credential, None, 1_569, &Next::Use("a"));
        check(&credential, None, 1_570, &Next::Refresh { with: "r", meanwhile: Some("a") });
        check(&credential, None, 1_600, &Next::Refresh { with: "r", meanwhile: None });
        check(&credential, Some("a"), 1_001, &Next::Refresh { with: "r", meanwhile: None });
        // The refused one is not the present one.
        check(&credential, Some("before"), 1_001, &Next::Use("a"));

        let response = json!({"access_token": "b", "refresh_token": "s", "scope": "crm mail"});
        let rotated = credential.refreshed(&response, 1_600).unwrap();
        assert_eq!(rotated.revocable(), ("s", "refresh_token"));
        assert_eq!((rotated.granted(), rotated.scopes().len()), (1_000, 2));
        let kept = credential.refreshed(&json!({"access_token": "b"}), 1_600).unwrap();
        assert_eq!(kept.revocable(), ("r", "refresh_token"));
        check(&kept, None, 1_869, &Next::Use("b"));
    }

    #[test]
    fn a_token_without_a_lifetime_is_not_refreshed_for_every_call() {
        let response = json!({"access_token": "a", "refresh_token": "r", "expires_in": 0});
        let credential = issued(&response).unwrap();
        check(&credential, None, 1_004, &Next::Use("a"));
        check(&credential, None, 1_005, &Next::Refresh { with: "r", meanwhile: None });
    }

    #[test]
    fn without_a_refresh_token_the_principal_is_asked_again() {
        let credential = issued(&json!({"access_token": "a", "expires_in": 600})).unwrap();
        check(&credential, None, 1_599, &Next::Use("a"));
        check(&credential, None, 1_600, &Next::Authorize);
        check(&credential, Some("a"), 1_001, &Next::Authorize);
        assert_eq!(credential.revocable(), ("a", "access_token"));
    }

    #[test]
    fn no_token_goes_to_another_authorization_server() {
        let credential = issued(&json!({"access_token": "a", "refresh_token": "r"})).unwrap();
        let other = registration("evil.example");
        assert!(credential.next(&other, None, 1_001) == Next::Authorize);
        let other = Registration { client_id: "x".to_owned(), ..registration("idp.example") };
        assert!(credential.next(&other, Some("a"), 1_001) == Next::Authorize);
    }

    #[test]
    fn a_response_must_have_a_bearer_token() {
        assert_eq!(issued(&json!({"token_type": "bearer"})).err(), Some(BadResponse::NoToken));
        assert_eq!(issued(&json!([1])).err(), Some(BadResponse::NoToken));
        let bound = json!({"access_token": "a", "token_type": "DPoP"});
        assert_eq!(issued(&bound).err(), Some(BadResponse::OtherType));
        let forever = json!({"access_token": "a", "expires_in": u64::MAX, "token_type": "Bearer"});
        check(&issued(&forever).unwrap(), None, u64::MAX - 1, &Next::Use("a"));
    }

    #[test]
    fn a_credential_is_never_shown() {
        let response = json!({"access_token": "hunter2-a", "refresh_token": "hunter2-r"});
        let credential = issued(&response).unwrap();
        let next = credential.next(&registration("idp.example"), None, 1_001);
        let shown = format!("{credential:?} {next:?}");
        assert!(!shown.contains("hunter2") && shown.contains("idp.example"), "{shown}");
        assert_eq!(credential.secrets().collect::<Vec<_>>(), ["hunter2-a", "hunter2-r"]);
    }
}
