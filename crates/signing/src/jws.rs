//! The compact form of a signature: header, claims and signature, in base64url.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{MAX_SIGNATURE_BYTES, fault::SignatureFault};

const ALGORITHM: &str = "EdDSA";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: &'a str,
}

/// Makes the text that is to be signed.
pub(crate) fn message(typ: &str, key_id: &str, claims: &impl Serialize) -> String {
    let header = Header { alg: ALGORITHM, typ, kid: key_id };
    // Structs of plain fields always serialize.
    let [header, claims] = [serde_json::to_vec(&header), serde_json::to_vec(claims)]
        .map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.unwrap_or_default()));
    format!("{header}.{claims}")
}

/// Adds a signature to the text that it is of.
pub(crate) fn seal(mut message: String, signature: &[u8]) -> String {
    message.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut message);
    message
}

/// A signature, before any of it is believed.
#[derive(Debug)]
pub(crate) struct Jws<'a> {
    /// The id of the key that it claims to be made with.
    pub(crate) key_id: String,
    /// What the signature covers.
    pub(crate) message: &'a [u8],
    pub(crate) signature: Vec<u8>,
    claims: &'a str,
}

impl<'a> Jws<'a> {
    /// Takes a text of the type `typ` apart.
    pub(crate) fn parse(text: &'a str, typ: &str) -> Result<Self, SignatureFault> {
        if text.len() > MAX_SIGNATURE_BYTES {
            return Err(SignatureFault::Malformed);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(SignatureFault::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(SignatureFault::Malformed)?;

        let json = decode(header)?;
        let header: Header<'_> =
            serde_json::from_slice(&json).map_err(|_| SignatureFault::Malformed)?;
        if header.alg != ALGORITHM || header.typ != typ {
            return Err(SignatureFault::Malformed);
        }

        Ok(Self {
            key_id: header.kid.to_owned(),
            message: message.as_bytes(),
            signature: decode(signature)?,
            claims,
        })
    }

    /// Reads the claims. To be called once the signature is known to be right.
    pub(crate) fn claims<T: DeserializeOwned>(&self) -> Result<T, SignatureFault> {
        let json = decode(self.claims)?;
        serde_json::from_slice(&json).map_err(|_| SignatureFault::Malformed)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, SignatureFault> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| SignatureFault::Malformed)
}
