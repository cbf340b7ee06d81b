//! The keys that seal and open values.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use fleet_codes as codes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::slot::Slot;

/// The length of a key, in bytes.
const KEY_LEN: usize = 32;
/// The most keys at a time: the one that seals, and the one before.
const MAX_KEYS: usize = 2;
/// How many bytes of a key's digest are its id.
const ID_BYTES: usize = 8;
/// The largest sealed value that is written or read, in bytes.
const MAX_SEALED: usize = 256 * 1024;

/// The keys of a vault. The first one seals, and all of them open. There is no `Debug`, which could
/// reveal them.
pub struct KeyRing {
    keys: Vec<Key>,
}

struct Key {
    id: String,
    key: LessSafeKey,
}

/// Why a file of keys can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// A line is no key.
    #[error(
        "line {0} of the vault's keys is not 32 bytes in Base64, as `openssl rand -base64 32` makes them [{code}]",
        code = codes::VAULT_KEYS
    )]
    NoKey(usize),
    /// A key is there twice.
    #[error("line {0} of the vault's keys repeats a key [{code}]", code = codes::VAULT_KEYS)]
    Repeated(usize),
    /// There are none, or too many.
    #[error(
        "expected one or two keys of the vault (the first one seals), found {0} [{code}]",
        code = codes::VAULT_KEYS
    )]
    Count(usize),
}

/// Why a value can't be sealed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The value can't be written or encrypted.
    #[error("the value can't be encrypted")]
    Unwritable,
    /// It would be sealed, but could never be opened.
    #[error("the value is too large: sealed, it would have {0} bytes, more than {MAX_SEALED}")]
    TooLarge(usize),
}

/// Why a sealed value can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes are not a sealed value.
    #[error("it is not a sealed value")]
    Malformed,
    /// The key is not on the ring.
    #[error("it was sealed with the key {0}, which is not among the vault's keys")]
    UnknownKey(String),
    /// The value was altered, or belongs to another slot.
    #[error("it was altered, or sealed for another principal or server")]
    Refused,
}

/// A value that was opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<T> {
    /// The value.
    pub value: T,
    /// Whether the first key has sealed it. If not, seal it again and write it back, so that the
    /// earlier key can be removed.
    pub is_current: bool,
}

/// A sealed value as it is written.
#[derive(Serialize, Deserialize)]
struct Sealed {
    key: String,
    nonce: String,
    text: String,
}

impl KeyRing {
    /// Reads keys from the text of a file: one per line, in Base64. Lines that begin with `#` and
    /// blank ones are passed over.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no keys, more than two, or something else.
    pub fn parse(text: &str) -> Result<Self, KeyRingError> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = Key::parse(line).ok_or(KeyRingError::NoKey(index + 1))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(KeyRingError::Repeated(index + 1));
            }
            keys.push(key);
        }

        match keys.len() {
            1..=MAX_KEYS => Ok(Self { keys }),
            count => Err(KeyRingError::Count(count)),
        }
    }

    /// Returns the ids of the keys. They reveal nothing about the keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.id.as_str())
    }

    /// Seals a value for a slot. The nonce must be random and used once.
    ///
    /// # Errors
    ///
    /// Returns an error if the value can't be written as JSON or encrypted, or is too large to be
    /// opened again.
    pub fn seal<T: Serialize>(
        &self,
        slot: &Slot,
        value: &T,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>, SealError> {
        let key = self.keys.first().ok_or(SealError::Unwritable)?;
        let mut text = serde_json::to_vec(value).map_err(|_| SealError::Unwritable)?;
        let bound = Aad::from(slot.bound_data(&key.id));
        let unique = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(unique, bound, &mut text)
            .map_err(|_| SealError::Unwritable)?;

        let encode = |bytes: &[u8]| BASE64_STANDARD_NO_PAD.encode(bytes);
        let sealed = Sealed { key: key.id.clone(), nonce: encode(&nonce), text: encode(&text) };
        let sealed = serde_json::to_vec(&sealed).map_err(|_| SealError::Unwritable)?;
        if sealed.len() > MAX_SEALED { Err(SealError::TooLarge(sealed.len())) } else { Ok(sealed) }
    }

    /// Opens a value in its slot.
    ///
    /// # Errors
    ///
    /// Returns an error if the value was altered, was sealed for another slot, or needs a key that
    /// is not on the ring.
    pub fn open<T: DeserializeOwned>(
        &self,
        slot: &Slot,
        sealed: &[u8],
    ) -> Result<Opened<T>, OpenError> {
        if sealed.len() > MAX_SEALED {
            return Err(OpenError::Malformed);
        }
        let sealed: Sealed = serde_json::from_slice(sealed).map_err(|_| OpenError::Malformed)?;
        let decode = |text: &str| BASE64_STANDARD_NO_PAD.decode(text);
        let nonce = decode(&sealed.nonce).ok().and_then(|nonce| nonce.try_into().ok());
        let (Some(nonce), Ok(mut text)) = (nonce, decode(&sealed.text)) else {
            return Err(OpenError::Malformed);
        };

        let position = self.keys.iter().position(|key| key.id == sealed.key);
        let Some(position) = position else { return Err(OpenError::UnknownKey(sealed.key)) };
        let Key { id, key } = &self.keys[position];
        let bound = Aad::from(slot.bound_data(id));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = key.open_in_place(nonce, bound, &mut text).map_err(|_| OpenError::Refused)?;
        let value = serde_json::from_slice(plain).map_err(|_| OpenError::Malformed)?;
        Ok(Opened { value, is_current: position == 0 })
    }
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text).ok().filter(|bytes| bytes.len() == KEY_LEN)?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?);
        let digest =
            Sha256::new().chain_update("fleet-vault key\n").chain_update(&bytes).finalize();
        let id = digest[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { id, key })
    }
}

#[cfg(test)]
mod tests {
    use fleet_access::PrincipalId;
    use proptest::prelude::*;

    use super::*;
    use crate::slot::Purpose;

    const FIRST: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const SECOND: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::parse(&keys.join("\n")).ok().unwrap()
    }

    fn slot(principal: u8, server: &str) -> Slot {
        let principal = format!("{principal:032x}").parse().unwrap();
        Slot { purpose: Purpose::Credential, principal, server: server.to_owned() }
    }

    #[test]
    fn a_value_opens_in_its_own_slot_alone() {
        let ring = ring(&[FIRST]);
        let own = slot(1, "crm");
        let sealed = ring.seal(&own, &"hunter2", [7; NONCE_LEN]).unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("hunter2"));
        let opened = Opened { value: "hunter2".to_owned(), is_current: true };
        assert_eq!(ring.open(&own, &sealed), Ok(opened));

        // Somebody has moved it to another principal, server or purpose in the store.
        let other_purpose = Slot { purpose: Purpose::Authorization, ..own.clone() };
        for other in [slot(2, "crm"), slot(1, "crn"), slot(1, ""), other_purpose] {
            assert_eq!(ring.open::<String>(&other, &sealed), Err(OpenError::Refused), "{other:?}");
        }
    }

    #[test]
    fn what_is_sealed_can_be_opened() {
        let (ring, own) = (ring(&[FIRST]), slot(1, "crm"));
        let mut sealed_sizes = 0;
        for size in (MAX_SEALED / 2..MAX_SEALED + 10).step_by(1_001) {
            let value = "x".repeat(size);
            match ring.seal(&own, &value, [7; NONCE_LEN]) {
                Ok(sealed) => {
                    assert_eq!(ring.open(&own, &sealed), Ok(Opened { value, is_current: true }));
                    sealed_sizes += 1;
                }
                Err(error) => assert!(matches!(error, SealError::TooLarge(_)), "{size}: {error}"),
            }
        }
        assert!(sealed_sizes > 0);
        let too_large = ring.seal(&own, &"x".repeat(MAX_SEALED), [7; NONCE_LEN]);
        assert!(matches!(too_large, Err(SealError::TooLarge(_))), "{too_large:?}");
    }

    #[test]
    fn keys_are_replaced_in_two_steps() {
        let (old, both, new) =
            (ring(&[FIRST]), ring(&[SECOND, "# before", FIRST]), ring(&[SECOND]));
        let own = slot(1, "crm");
        let sealed = old.seal(&own, &1, [7; NONCE_LEN]).unwrap();
        assert_eq!(both.open(&own, &sealed), Ok(Opened { value: 1, is_current: false }));
        let id = old.ids().next().unwrap().to_owned();
        assert_eq!(new.open::<i32>(&own, &sealed), Err(OpenError::UnknownKey(id)));

        let again = both.seal(&own, &1, [8; NONCE_LEN]).unwrap();
        assert_eq!(new.open(&own, &again), Ok(Opened { value: 1, is_current: true }));
        assert!(matches!(old.open::<i32>(&own, &again), Err(OpenError::UnknownKey(_))));
    }

    #[test]
    fn a_file_has_one_or_two_keys() {
        let check = |text: &str, expected| {
            assert_eq!(KeyRing::parse(text).err(), expected, "{text}");
        };
        check(&format!("# keys\n\n{FIRST}\r\n{SECOND}"), None);
        check("", Some(KeyRingError::Count(0)));
        check(
            &format!("{FIRST}\n{SECOND}\n{}", FIRST.replace('A', "B")),
            Some(KeyRingError::Count(3)),
        );
        check(&format!("{FIRST}\n{FIRST}"), Some(KeyRingError::Repeated(2)));
        check("hunter2", Some(KeyRingError::NoKey(1)));
        check("AQEBAQ==", Some(KeyRingError::NoKey(1)));
    }

    proptest! {
        #[test]
        fn an_altered_value_does_not_open(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let (ring, own) = (ring(&[FIRST]), slot(1, "crm"));
            let sealed = ring.seal(&own, &"a secret", [7; NONCE_LEN]).unwrap();
            let mut altered = sealed.clone();
            altered[at.index(sealed.len())] = to;
            let opened = ring.open::<String>(&own, &altered);
            prop_assert!(altered == sealed || opened.is_err());
        }

        #[test]
        fn slots_are_bound_to_different_data(
            principals in any::<[u8; 2]>(),
            servers in ["[a-z\\n]{0,4}", "[a-z\\n]{0,4}"],
        ) {
            let [one, two] = [0, 1].map(|n| slot(principals[n], &servers[n]));
            prop_assert_eq!(one == two, one.bound_data("k") == two.bound_data("k"));
        }

        #[test]
        fn reading_never_panics(sealed in any::<Vec<u8>>(), text in any::<String>()) {
            prop_assert!(ring(&[FIRST]).open::<String>(&slot(1, "crm"), &sealed).is_err());
            _ = KeyRing::parse(&text);
        }
    }

    #[test]
    fn an_id_is_read_back() {
        let id: PrincipalId = format!("{:032x}", 5).parse().unwrap();
        assert_eq!(slot(5, "x").principal, id);
    }
}
