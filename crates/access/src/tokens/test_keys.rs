//! Keys of an issuer that exists in tests only, made anew for each run.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::Value;

/// A key of the test issuer.
pub(crate) struct TestKey {
    pub(crate) id: &'static str,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: EncodingKey,
    /// The public half, as the issuer's key set has it.
    pub(crate) jwk: Value,
    /// The public half as a file, as everybody may have it. Empty for elliptic curves.
    pub(crate) public_pem: String,
}

impl TestKey {
    /// An RSA key.
    pub(crate) fn rsa(id: &'static str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        let private = pem("PRIVATE KEY", private.as_ref());
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();

        let key = EncodingKey::from_rsa_pem(private.as_bytes()).unwrap();
        let public_pem = pem("PUBLIC KEY", public.as_ref());
        Self { public_pem, ..Self::new(id, Algorithm::RS256, key) }
    }

    /// A key on the curve P-256.
    pub(crate) fn ec(id: &'static str) -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        Self::new(id, Algorithm::ES256, EncodingKey::from_ec_der(document.as_ref()))
    }

    fn new(id: &'static str, algorithm: Algorithm, key: EncodingKey) -> Self {
        let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = id.into();
        Self { id, algorithm, key, jwk, public_pem: String::new() }
    }

    /// Signs a token.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
