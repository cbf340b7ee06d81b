//! The keys of an issuer, from its JSON Web Key Set.

use fleet_codes as codes;
use jsonwebtoken::{
    Algorithm, DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::jwt::Jwt;
use crate::refusal::Fault;

/// More keys of one issuer than these are ignored.
const MAX_KEYS: usize = 100;
/// How many keys a token without a key id is tried with.
const MAX_TRIES: usize = 4;

/// The algorithms that an issuer's tokens may use: signatures with public keys. With a symmetric
/// algorithm, whoever can verify a token can also make one.
pub(super) const PUBLIC_KEY_ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The text is not a JSON Web Key Set.
    #[error("the key set of {issuer} is not a JSON Web Key Set [{code}]", code = codes::ISSUER_KEYS)]
    Malformed {
        /// The issuer.
        issuer: String,
        /// What is wrong with the JSON.
        #[source]
        error: serde_json::Error,
    },
    /// No key of the set can verify a token of the issuer.
    #[error(
        "none of the {keys} keys of {issuer} is a public signing key for one of the allowed \
         algorithms; see `algorithms` of the [[issuer]] [{code}]",
        code = codes::ISSUER_KEYS
    )]
    NoUsableKey {
        /// The issuer.
        issuer: String,
        /// How many keys the set has.
        keys: usize,
    },
}

/// The keys of an issuer that its tokens can be verified with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeySet(Vec<SigningKey>);

#[derive(Debug, Clone)]
struct SigningKey {
    jwk: Jwk,
    /// The algorithms that the key can be used with.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.jwk == other.jwk
    }
}

#[derive(Deserialize)]
struct Layout {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads the keys that can verify tokens with one of these algorithms. Other keys are ignored,
    /// as RFC 7517 wants it: a set may hold keys of kinds that are not known yet.
    pub(super) fn parse(
        text: &str,
        issuer: &str,
        allowed: &[Algorithm],
    ) -> Result<Self, JwksError> {
        let layout: Layout = serde_json::from_str(text)
            .map_err(|error| JwksError::Malformed { issuer: issuer.to_owned(), error })?;

        let total = layout.keys.len();
        let usable = layout.keys.into_iter().take(MAX_KEYS);
        let keys: Vec<_> = usable.filter_map(|key| SigningKey::read(key, allowed)).collect();

        match keys.is_empty() {
            true => Err(JwksError::NoUsableKey { issuer: issuer.to_owned(), keys: total }),
            false => Ok(Self(keys)),
        }
    }

    /// Verifies a token's signature. Which algorithms may be used is a property of the key; the
    /// token's own choice must be one of them.
    pub(super) fn verify(&self, jwt: &Jwt<'_>, allowed: &[Algorithm]) -> Result<(), Fault> {
        let is_meant = |key: &&SigningKey| match &jwt.key_id {
            Some(id) => key.jwk.common.key_id.as_ref() == Some(id),
            None => true,
        };

        if !allowed.contains(&jwt.algorithm) {
            return Err(Fault::Algorithm);
        }
        let mut meant = self.0.iter().filter(is_meant).peekable();
        if meant.peek().is_none() {
            return Err(Fault::UnknownSigningKey);
        }

        let mut fault = Fault::Algorithm;
        for key in meant.filter(|key| key.algorithms.contains(&jwt.algorithm)).take(MAX_TRIES) {
            if key.has_signed(jwt) {
                return Ok(());
            }
            fault = Fault::Signature;
        }
        Err(fault)
    }
}

impl SigningKey {
    fn read(jwk: Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;

        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|own| *own == PublicKeyUse::Signature);
        let may_verify = (common.key_operations.as_ref())
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !is_for_signatures || !may_verify {
            return None;
        }

        let mut algorithms = algorithms_of(&jwk.algorithm);
        if let Some(only) = common.key_algorithm {
            algorithms.retain(|algorithm| Algorithm::try_from(only).ok() == Some(*algorithm));
        }
        algorithms.retain(|algorithm| allowed.contains(algorithm));

        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (!algorithms.is_empty()).then_some(Self { jwk, algorithms, key })
    }

    fn has_signed(&self, jwt: &Jwt<'_>) -> bool {
        let message = jwt.message.as_bytes();
        crypto::verify(jwt.signature, message, &self.key, jwt.algorithm).unwrap_or(false)
    }
}

/// The algorithms that fit a key by its type and curve. None fits a symmetric key.
fn algorithms_of(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};

    match parameters {
        AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![ES256],
            EllipticCurve::P384 => vec![ES384],
            _ => Vec::new(),
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![EdDSA]
        }
        _ => Vec::new(),
    }
}
