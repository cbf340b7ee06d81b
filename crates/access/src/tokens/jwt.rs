//! The parts of a signed token, before any of it is believed.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use crate::refusal::Fault;

/// What `typ` may be for an access token: RFC 9068's own value, or what most issuers write.
/// Other kinds of token, such as an ID-JAG, are never taken for one.
const TYPES: [&str; 3] = ["at+jwt", "application/at+jwt", "jwt"];

/// A token of three parts.
#[derive(Debug)]
pub(super) struct Jwt<'a> {
    /// The algorithm that the token claims.
    pub(super) algorithm: Algorithm,
    /// The id of the key that it claims to be signed with.
    pub(super) key_id: Option<String>,
    /// What the signature covers.
    pub(super) message: &'a str,
    /// The signature, in base64url.
    pub(super) signature: &'a str,
    /// The claims.
    pub(super) claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// Extensions that must be understood, of which this server understands none.
    crit: Option<IgnoredAny>,
}

impl<'a> Jwt<'a> {
    /// Takes a token apart.
    ///
    /// jsonwebtoken could do that too, but its checks of times and audiences read the clock, and
    /// take numbers for malformed where serde_json keeps their spelling.
    pub(super) fn parse(token: &'a str) -> Result<Self, Fault> {
        let (message, signature) = token.rsplit_once('.').ok_or(Fault::NotAnAccessToken)?;
        let (header, claims) = message.split_once('.').ok_or(Fault::NotAnAccessToken)?;

        let header: Header = decode(header)?;
        let is_access_token = (header.typ.as_deref())
            .is_none_or(|own| TYPES.iter().any(|typ| typ.eq_ignore_ascii_case(own)));
        if header.crit.is_some() || !is_access_token {
            return Err(Fault::NotAnAccessToken);
        }

        Ok(Self {
            // `none`, and everything else that is no algorithm, ends here.
            algorithm: header.alg.parse().map_err(|_| Fault::Algorithm)?,
            key_id: header.kid,
            message,
            signature,
            claims: decode(claims)?,
        })
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, Fault> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Fault::NotAnAccessToken)?;
    serde_json::from_slice(&json).map_err(|_| Fault::NotAnAccessToken)
}
