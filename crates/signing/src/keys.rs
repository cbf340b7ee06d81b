//! The keys that sign and verify.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use fleet_codes as codes;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{fault::SignatureFault, jws};

/// How many bytes of a public key's digest are its id: enough to tell the keys of a fleet apart.
/// Whoever finds a second key of the same id has to be given to a server by its operator, too.
const ID_BYTES: usize = 8;
/// The most keys of one fleet.
const MAX_KEYS: usize = 32;

/// The keys of a fleet: at most one that signs, and those whose signatures are accepted.
pub struct SigningKeys {
    signer: Option<Signer>,
    verifiers: BTreeMap<String, Verifier>,
}

struct Verifier {
    /// The key as `SubjectPublicKeyInfo` (RFC 8410).
    der: Vec<u8>,
    key: ParsedPublicKey,
}

struct Signer {
    id: String,
    pair: Ed25519KeyPair,
}

/// Why a file of keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeysError {
    /// The text is not PEM.
    #[error("the signing keys are not in PEM format: {0} [{code}]", code = codes::SIGNING_KEYS)]
    Pem(String),
    /// A section is not an Ed25519 key.
    #[error(
        "section {number} of the signing keys is not an Ed25519 key; expected `PRIVATE KEY` \
         (PKCS#8, not encrypted) or `PUBLIC KEY`, as `mcp-fleet keys init` makes them [{code}]",
        code = codes::SIGNING_KEYS
    )]
    OtherKey {
        /// Which one, counted from 1.
        number: usize,
    },
    /// There is no key at all.
    #[error("there is no signing key in the file [{code}]", code = codes::SIGNING_KEYS)]
    Empty,
    /// There are very many keys.
    #[error("there are more than {MAX_KEYS} signing keys [{code}]", code = codes::SIGNING_KEYS)]
    TooMany,
}

/// Makes a private key, in PEM.
///
/// # Errors
///
/// Returns an error if the system has no randomness.
pub fn generate_key() -> Result<String, aws_lc_rs::error::Unspecified> {
    let pair = Ed25519KeyPair::generate()?;
    Ok(to_pem("PRIVATE KEY", pair.to_pkcs8v1()?.as_ref()))
}

impl SigningKeys {
    /// Reads keys in PEM. The first private key signs; the signatures of all keys are accepted.
    ///
    /// # Errors
    ///
    /// Returns an error if the text holds anything but Ed25519 keys, or none.
    pub fn parse(pem: &[u8]) -> Result<Self, SigningKeysError> {
        let mut keys = Self { signer: None, verifiers: BTreeMap::new() };
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem);
        for (index, section) in sections.enumerate() {
            let (kind, der) = section.map_err(|error| SigningKeysError::Pem(error.to_string()))?;
            if index >= MAX_KEYS {
                return Err(SigningKeysError::TooMany);
            }
            let other = || SigningKeysError::OtherKey { number: index + 1 };
            match kind {
                SectionKind::PrivateKey => keys.add_private(&der).ok_or_else(other)?,
                SectionKind::PublicKey => keys.add_public(&der).ok_or_else(other)?,
                _ => return Err(other()),
            }
        }
        if keys.verifiers.is_empty() { Err(SigningKeysError::Empty) } else { Ok(keys) }
    }

    fn add_private(&mut self, der: &[u8]) -> Option<()> {
        let pair = Ed25519KeyPair::from_pkcs8(der).ok()?;
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
        let id = self.add_verifier(public.as_ref())?;
        self.signer.get_or_insert(Signer { id, pair });
        Some(())
    }

    fn add_public(&mut self, der: &[u8]) -> Option<()> {
        self.add_verifier(der).map(drop)
    }

    fn add_verifier(&mut self, der: &[u8]) -> Option<String> {
        let key = ParsedPublicKey::new(&ED25519, der).ok()?;
        let digest = Sha256::digest(der);
        let id: String = digest[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        self.verifiers.insert(id.clone(), Verifier { der: der.to_vec(), key });
        Some(id)
    }

    /// The same keys, and the verifying ones of `others`.
    #[must_use]
    pub fn and_verifiers_of(mut self, others: Self) -> Self {
        self.verifiers.extend(others.verifiers);
        self
    }

    /// Whether there is a private key.
    pub fn can_sign(&self) -> bool {
        self.signer.is_some()
    }

    /// The ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.verifiers.keys().map(String::as_str)
    }

    /// The public halves of all keys, in PEM.
    pub fn public_pem(&self) -> String {
        self.verifiers.values().map(|verifier| to_pem("PUBLIC KEY", &verifier.der)).collect()
    }

    /// Signs claims of a type; `None` if there is no private key.
    pub(crate) fn sign(&self, typ: &str, claims: &impl Serialize) -> Option<String> {
        let signer = self.signer.as_ref()?;
        let message = jws::message(typ, &signer.id, claims);
        let signature = signer.pair.try_sign(message.as_bytes()).ok()?;
        Some(jws::seal(message, signature.as_ref()))
    }

    /// Reads the claims of a signature of a type.
    pub(crate) fn verify<T: DeserializeOwned>(
        &self,
        typ: &str,
        text: &str,
    ) -> Result<T, SignatureFault> {
        let signed = jws::Jws::parse(text, typ)?;
        let verifier = self.verifiers.get(&signed.key_id).ok_or(SignatureFault::UnknownKey)?;
        let verified = verifier.key.verify_sig(signed.message, &signed.signature);
        verified.map_err(|_| SignatureFault::Forged)?;
        signed.claims()
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signer = self.signer.as_ref().map(|signer| &signer.id);
        let ids: Vec<_> = self.ids().collect();
        f.debug_struct("SigningKeys").field("signer", &signer).field("verifiers", &ids).finish()
    }
}

/// The characters of a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

fn to_pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        // Base64 is ASCII.
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYP: &str = "test";

    fn keys(pem: &str) -> SigningKeys {
        SigningKeys::parse(pem.as_bytes()).unwrap()
    }

    fn verify(keys: &SigningKeys, text: &str) -> Result<u8, SignatureFault> {
        keys.verify(TYP, text)
    }

    #[test]
    fn whoever_has_the_public_key_can_verify_and_not_sign() {
        let private = keys(&generate_key().unwrap());
        let public = keys(&private.public_pem());
        assert!(private.can_sign() && !public.can_sign());
        assert_eq!(public.sign(TYP, &7), None);
        assert_eq!(private.ids().collect::<Vec<_>>(), public.ids().collect::<Vec<_>>());

        let signed = private.sign(TYP, &7).unwrap();
        assert_eq!(verify(&public, &signed), Ok(7));
        assert_eq!(public.verify::<u8>("other", &signed), Err(SignatureFault::Malformed));
    }

    #[test]
    fn two_keys_are_accepted_and_the_first_one_signs() {
        let [old, new] = [generate_key().unwrap(), generate_key().unwrap()];
        let (before, after) = (keys(&old), keys(&format!("{new}{old}")));
        let both = keys(&format!("{old}{}", keys(&new).public_pem()));

        let (by_old, by_new) = (before.sign(TYP, &1).unwrap(), after.sign(TYP, &2).unwrap());
        assert_eq!((verify(&both, &by_old), verify(&both, &by_new)), (Ok(1), Ok(2)));
        assert_eq!(verify(&after, &by_old), Ok(1));
        assert_eq!(verify(&before, &by_new), Err(SignatureFault::UnknownKey));
        assert_eq!(verify(&before.and_verifiers_of(after), &by_new), Ok(2));
    }

    #[test]
    fn no_changed_signature_is_accepted() {
        let keys = keys(&generate_key().unwrap());
        let signed = keys.sign(TYP, &7).unwrap();
        let (message, signature) = signed.rsplit_once('.').unwrap();
        let (header, claims) = message.split_once('.').unwrap();

        let eight = BASE64_URL.encode("8");
        assert_eq!(
            verify(&keys, &format!("{header}.{eight}.{signature}")),
            Err(SignatureFault::Forged)
        );
        for changed in [
            String::new(),
            "a.b.c".to_owned(),
            format!("{header}.{claims}."),
            signed.replace('.', ""),
        ] {
            assert!(verify(&keys, &changed).is_err(), "{changed}");
        }

        let none = BASE64_URL.encode(r#"{"alg":"none","typ":"test","kid":"x"}"#);
        assert_eq!(verify(&keys, &format!("{none}.{claims}.")), Err(SignatureFault::Malformed));
    }

    use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64_URL;

    #[test]
    fn errors_say_what_is_wrong_with_the_file() {
        let check = |pem: &str, expected: &str| {
            let error = SigningKeys::parse(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("FLEET-SIGNING-KEYS"), "{error}");
        };
        check("", "no signing key");
        check("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "section 1");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "section 1");
        check("-----BEGIN PRIVATE KEY-----\n", "PEM");
        check(&generate_key().unwrap().repeat(MAX_KEYS + 1), "more than 32");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let pem = generate_key().unwrap();
        let shown = format!("{:?}", keys(&pem));
        let secret: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(!shown.contains(&secret[20..]) && shown.contains("verifiers"), "{shown}");
    }
}
