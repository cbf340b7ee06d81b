//! Access tokens: JSON Web Tokens of configured issuers, as OAuth 2.1 resource servers verify them.
//!
//! [`Tokens`] does no IO. When it needs the keys of an issuer it says so, and the caller fetches
//! them and reports back:
//!
//! 1. [`Tokens::check`] may answer [`Authentication::NeedsKeys`]. Callers share one fetch per issuer, and
//!    check the token again when it has ended. Whoever can't wait refuses with what the answer has.
//! 2. A fetch ends with exactly one call of [`Tokens::install_keys`] or [`Tokens::fetch_failed`].
//! 3. [`Tokens::refreshes_due`] says which keys are old; ask every minute or so.
//!
//! A token can make the server ask an issuer for keys at most once in [`FETCH_INTERVAL`]. Keys that
//! are there are used however old they are, so an issuer that is away stops nobody.

mod cache;
mod claims;
mod config;
mod issuer;
mod jwks;
mod jwt;

use std::{collections::HashMap, sync::Arc, time::Duration};

use fleet_job::time::Timestamp;
use sha2::{Digest, Sha256};

use crate::{
    principal::Principal,
    principals::PrincipalRules,
    refusal::{AuthRefusal, Fault},
};
use cache::{CachedToken, TokenCache};
pub(crate) use config::IssuerConfig;
pub(crate) use config::IssuerTable;
pub use config::IssuerTableError;

use issuer::{Fetching, Issuer};
pub use jwks::JwksError;
use jwt::Jwt;

/// How long a token can't cause another fetch of its issuer's keys.
pub const FETCH_INTERVAL: Duration = Duration::from_secs(10);
/// How old keys become before they are read again without being asked for.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// How many verified tokens are remembered.
const CACHED_TOKENS: usize = 8192;

/// Verifies access tokens.
#[derive(Debug)]
pub struct Tokens {
    issuers: Vec<Issuer>,
    by_url: HashMap<String, usize>,
    principals: Arc<PrincipalRules>,
    cache: TokenCache,
}

/// What became of the credentials of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Authentication {
    /// They are valid, and stand for this principal.
    Verified(Arc<Principal>),
    /// They are refused.
    Refused(AuthRefusal),
    /// They are a token that can't be checked before its issuer's keys are fetched.
    NeedsKeys {
        /// What to fetch.
        fetch: FetchKeys,
        /// The refusal if that is not possible.
        otherwise: AuthRefusal,
    },
}

/// The keys of an issuer, to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FetchKeys {
    /// The issuer.
    pub issuer: String,
    /// Where its keys are.
    pub source: KeySource,
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// At `jwks_uri` of the issuer's metadata (OpenID Connect Discovery or RFC 8414).
    Discovery,
    /// At this URL.
    Url(String),
    /// In this file.
    File(String),
}

impl Tokens {
    pub(crate) fn new(issuers: Vec<IssuerConfig>, principals: Arc<PrincipalRules>) -> Self {
        let by_url = issuers.iter().enumerate();
        Self {
            by_url: by_url.map(|(index, issuer)| (issuer.url.clone(), index)).collect(),
            issuers: issuers.into_iter().map(Issuer::new).collect(),
            principals,
            cache: TokenCache::new(CACHED_TOKENS),
        }
    }

    /// The URLs of the issuers, for the server's protected resource metadata.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.issuers.iter().map(|issuer| issuer.config().url.as_str())
    }

    /// Returns whether no issuer is configured.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Checks a token. A token that was verified before costs one hash and one look-up.
    pub fn check(&self, token: &str, now: Timestamp) -> Authentication {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let is_current = |cached: &CachedToken| {
            now < cached.until && self.issuers[cached.issuer].generation() == cached.generation
        };
        if let Some(principal) = self.cache.find(&digest, is_current) {
            return Authentication::Verified(principal);
        }

        match self.verify(token, now) {
            Ok(verified) => {
                let principal = Arc::clone(&verified.principal);
                self.cache.insert(digest, verified);
                Authentication::Verified(principal)
            }
            Err(checked) => *checked,
        }
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<CachedToken, Box<Authentication>> {
        let refuse = |fault| Box::new(Authentication::Refused(AuthRefusal::rejected(fault)));

        let jwt = Jwt::parse(token).map_err(refuse)?;
        let issuer = (jwt.claims.get("iss").and_then(|issuer| issuer.as_str()))
            .and_then(|url| self.by_url.get(url).copied())
            .ok_or_else(|| refuse(Fault::UnknownIssuer))?;
        let state = &self.issuers[issuer];

        let Some((keys, generation)) = state.keys() else {
            return Err(Box::new(no_keys(state, now)));
        };
        if let Err(fault) = keys.verify(&jwt, &state.config().algorithms) {
            return Err(Box::new(match fault {
                Fault::UnknownSigningKey => unknown_key(state, now),
                fault => Authentication::Refused(AuthRefusal::rejected(fault)),
            }));
        }

        let until = claims::check_claims(&jwt.claims, state.config(), now).map_err(refuse)?;
        let mut principal = claims::read_principal(jwt.claims, state.config()).map_err(refuse)?;
        self.principals.complete(&mut principal);
        let principal = Arc::new(principal);
        Ok(CachedToken { principal, until, issuer, generation, bytes: token.len() })
    }

    /// Takes the keys that a fetch has read, as a JSON Web Key Set. Returns whether they differ from
    /// the previous keys; if they do, all remembered tokens of the issuer are verified again. Does
    /// nothing if the issuer's keys are now read from another place.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is no key set, or has no key that the issuer's tokens could be
    /// verified with. The keys stay as they were then.
    pub fn install_keys(
        &self,
        fetch: &FetchKeys,
        key_set: &str,
        now: Timestamp,
    ) -> Result<bool, JwksError> {
        match self.issuer_of(fetch) {
            Some(issuer) => issuer.install_keys(key_set, now),
            None => Ok(false),
        }
    }

    /// Notes that a fetch has failed. Keys that are there stay in use. Does nothing if the issuer's
    /// keys are no longer where the fetch has looked for them.
    pub fn fetch_failed(&self, fetch: &FetchKeys, now: Timestamp) {
        if let Some(issuer) = self.issuer_of(fetch) {
            issuer.end_fetch(now);
        }
    }

    /// The issuer whose keys a fetch is to read, unless the configuration has changed since.
    fn issuer_of(&self, fetch: &FetchKeys) -> Option<&Issuer> {
        let index = self.by_url.get(&fetch.issuer)?;
        Some(&self.issuers[*index]).filter(|issuer| issuer.fetch() == *fetch)
    }

    /// The keys that are missing or older than [`REFRESH_INTERVAL`], and that nobody fetches
    /// already. Each must be fetched.
    #[must_use = "a fetch that was handed out must be made and ended"]
    pub fn refreshes_due(&self, now: Timestamp) -> Vec<FetchKeys> {
        let due = self.issuers.iter().filter(|issuer| issuer.start_refresh(now));
        due.map(Issuer::fetch).collect()
    }

    /// Takes over the keys of the issuers that both have and that keep them in the same place, when
    /// the configuration is reloaded.
    pub fn adopt_keys(&self, previous: &Self) {
        for issuer in &self.issuers {
            let old = previous.by_url.get(&issuer.config().url);
            if let Some(old) = old.map(|index| &previous.issuers[*index]) {
                issuer.adopt_keys(old);
            }
        }
    }

    /// How many verified tokens are remembered.
    pub fn cached(&self) -> usize {
        self.cache.len()
    }
}

fn no_keys(issuer: &Issuer, now: Timestamp) -> Authentication {
    let refusal = |retry_after| AuthRefusal::unavailable(Fault::NoIssuerKeys, retry_after);
    match issuer.start_fetch(now) {
        Fetching::Allowed => {
            Authentication::NeedsKeys { fetch: issuer.fetch(), otherwise: refusal(FETCH_INTERVAL) }
        }
        Fetching::TooSoon { wait } => Authentication::Refused(refusal(wait)),
    }
}

fn unknown_key(issuer: &Issuer, now: Timestamp) -> Authentication {
    let refusal = AuthRefusal::rejected(Fault::UnknownSigningKey);
    match issuer.start_fetch(now) {
        Fetching::Allowed => {
            Authentication::NeedsKeys { fetch: issuer.fetch(), otherwise: refusal }
        }
        Fetching::TooSoon { .. } => Authentication::Refused(refusal),
    }
}

#[cfg(test)]
pub(crate) mod test_keys;
#[cfg(test)]
mod tests;
