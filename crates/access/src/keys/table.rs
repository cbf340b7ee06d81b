//! The keys that a server accepts, ready to be compared.

use std::{collections::HashMap, sync::Arc};

use fleet_job::time::Timestamp;
use hmac::Hmac;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::{
    file::{KeyEntry, KeysFile, KeysFileError},
    format::{KeyMac, Pepper, digest_key, key_id},
};
use crate::{
    principal::{KEYS_ISSUER, Principal, Via},
    refusal::Fault,
};

/// The keys that a server accepts. Replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub(crate) struct KeyTable {
    keys: Option<Keys>,
}

#[derive(Debug)]
struct Keys {
    /// The HMAC that has taken the pepper in.
    mac: Hmac<Sha256>,
    by_id: HashMap<String, Key>,
}

#[derive(Debug)]
struct Key {
    mac: KeyMac,
    principal: Arc<Principal>,
    expires: Option<Timestamp>,
    revoked: bool,
}

impl KeyTable {
    /// The keys of a file. `pepper` is used if the file has none, and `complete` adds to each
    /// principal what the policy file says of it.
    ///
    /// # Errors
    ///
    /// Returns an error if there are keys and no pepper, or if a digest is invalid.
    pub(crate) fn new(
        file: &KeysFile,
        pepper: Option<&Pepper>,
        complete: impl Fn(&mut Principal),
    ) -> Result<Self, KeysFileError> {
        let Some(pepper) = file.pepper.as_ref().or(pepper) else {
            return match file.keys.is_empty() {
                true => Ok(Self::default()),
                false => Err(KeysFileError::NoPepper),
            };
        };

        let keys = file.keys.iter().map(|entry| {
            let mut principal = principal_of(entry);
            complete(&mut principal);
            let key = Key {
                mac: entry.parsed_mac()?,
                principal: Arc::new(principal),
                expires: entry.expires,
                revoked: entry.revoked.is_some(),
            };
            Ok((entry.id.clone(), key))
        });

        let by_id = keys.collect::<Result<_, KeysFileError>>()?;
        Ok(Self { keys: Some(Keys { mac: pepper.start_mac(), by_id }) })
    }

    /// Returns whether there are no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.by_id.is_empty())
    }

    /// Checks a token that may be a key; `None` if it has another form. An unknown id costs as much
    /// as a wrong secret, and both are the same fault.
    pub(crate) fn check(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Option<Result<Arc<Principal>, Fault>> {
        let id = key_id(token)?;
        let Some(keys) = &self.keys else {
            return Some(Err(Fault::UnknownKey));
        };

        let digest = digest_key(keys.mac.clone(), token);
        let key = keys.by_id.get(id);
        let expected = key.map_or([0; 32], |key| key.mac);
        let is_equal = bool::from(digest.ct_eq(&expected));

        Some(match key.filter(|_| is_equal) {
            None => Err(Fault::UnknownKey),
            Some(key) if key.revoked => Err(Fault::RevokedKey),
            Some(key) if key.expires.is_some_and(|end| end <= now) => Err(Fault::ExpiredKey),
            Some(key) => Ok(Arc::clone(&key.principal)),
        })
    }
}

fn principal_of(entry: &KeyEntry) -> Principal {
    let subject = entry.subject.as_ref().unwrap_or(&entry.id);
    let via = Via::Key { id: entry.id.clone() };
    let mut principal = Principal::new(KEYS_ISSUER, subject, entry.kind, via);

    principal.name.clone_from(&entry.name);
    principal.tenant.clone_from(&entry.tenant);
    principal.add_roles(entry.roles.iter().cloned());
    principal.add_scopes(entry.scopes.iter().cloned());
    principal
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_millis_clamped(1_795_000_000_000)
    }

    /// Checks a key of the file, which `change` may have changed.
    fn check(change: impl Fn(&mut KeyEntry), expected: Result<&str, Fault>) {
        let pepper = Pepper::new([9; 32]);
        let (text, mut entry) = KeyEntry::create("k", &[1; 32], &pepper, now()).unwrap();
        change(&mut entry);
        let file = KeysFile { pepper: Some(pepper), keys: vec![entry] };

        let table = KeyTable::new(&file, None, |_| ()).unwrap();
        let found = table.check(&text, now()).unwrap();
        assert_eq!(
            found.as_ref().map(|principal| principal.subject.as_str()),
            expected.as_ref().map(|text| *text)
        );
    }

    #[test]
    fn a_key_stands_for_its_subject_while_it_is_valid() {
        let later = now().plus(Duration::from_millis(1));
        check(|_| (), Ok("k"));
        check(|entry| entry.subject = Some("ci".to_owned()), Ok("ci"));
        check(|entry| entry.expires = Some(later), Ok("k"));
        check(|entry| entry.expires = Some(now()), Err(Fault::ExpiredKey));
        check(|entry| entry.revoked = Some(later), Err(Fault::RevokedKey));
        check(|entry| entry.mac = "0".repeat(64), Err(Fault::UnknownKey));
    }

    #[test]
    fn a_digest_holds_for_its_id_alone() {
        let pepper = Pepper::new([9; 32]);
        let (text, entry) = KeyEntry::create("admin", &[1; 32], &pepper, now()).unwrap();
        let moved = KeyEntry { id: "guest".to_owned(), ..entry };
        let file = KeysFile { pepper: None, keys: vec![moved] };
        let table = KeyTable::new(&file, Some(&pepper), |_| ()).unwrap();

        for token in [text.clone(), text.replace("admin", "guest")] {
            assert_eq!(table.check(&token, now()), Some(Err(Fault::UnknownKey)));
        }
    }

    #[test]
    fn keys_of_another_pepper_and_other_tokens_are_no_keys() {
        let (text, entry) = KeyEntry::create("k", &[1; 32], &Pepper::new([9; 32]), now()).unwrap();
        let file = KeysFile { pepper: None, keys: vec![entry] };
        assert!(matches!(KeyTable::new(&file, None, |_| ()), Err(KeysFileError::NoPepper)));

        let other = KeyTable::new(&file, Some(&Pepper::new([8; 32])), |_| ()).unwrap();
        assert_eq!(other.check(&text, now()), Some(Err(Fault::UnknownKey)));
        assert_eq!(other.check("eyJ.eyJ.x", now()), None);

        let none = KeyTable::default();
        assert!(none.is_empty());
        assert_eq!(none.check(&text, now()), Some(Err(Fault::UnknownKey)));
    }
}
