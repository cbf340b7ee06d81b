//! The key that signs jobs, and its public half, which workers get.

use std::path::{Path, PathBuf};

use fleet_signing::{SigningKeys, generate_key};

use super::{CliError, PRIVATE, Step, store};

/// The name of the private key's file, and of its field in a Secret of Kubernetes.
pub(super) const PRIVATE_KEY: &str = "signing.key";
/// The name of the file of public keys, and of its field in a Secret of Kubernetes.
pub(super) const PUBLIC_KEYS: &str = "signing.pub";
/// The mode of what is no secret.
const PUBLIC: u32 = 0o644;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SigningFiles {
    pub(super) key: PathBuf,
    pub(super) public: PathBuf,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Completed {
    pub(super) step: Step,
    pub(super) key: Option<String>,
    pub(super) public: Option<String>,
}

impl SigningFiles {
    /// The files in a directory.
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { key: directory.join(PRIVATE_KEY), public: directory.join(PUBLIC_KEYS) }
    }

    /// Makes what is missing.
    pub(super) fn complete(&self) -> Result<Step, CliError> {
        let (key, public) = (read_if_there(&self.key)?, read_if_there(&self.public)?);
        let done = complete(key.as_deref(), public.as_deref())
            .map_err(|why| CliError::Usage(format!("{}: {why}", self.key.display())))?;
        let write = |path: &Path, text: Option<&String>, mode| match text {
            Some(text) => store::write_atomically(path, text.as_bytes(), mode)
                .map_err(|error| store::failed("could not write the key", path, error)),
            None => Ok(()),
        };
        // Nothing is signed that nobody could verify.
        write(&self.public, done.public.as_ref(), PUBLIC)?;
        write(&self.key, done.key.as_ref(), PRIVATE)?;
        Ok(done.step)
    }
}

/// What is missing of these texts. The public keys are those that are there, and those of all private
/// keys.
pub(super) fn complete(key: Option<&str>, public: Option<&str>) -> Result<Completed, String> {
    let parse = |text: &str| SigningKeys::parse(text.as_bytes()).map_err(|error| error.to_string());
    let new = match key {
        Some(_) => None,
        None => Some(generate_key().map_err(|_| "the system has no randomness".to_owned())?),
    };
    let keys = parse(new.as_deref().or(key).unwrap_or_default())?;

    let before = public.map(parse).transpose()?;
    let is_complete = before.as_ref().is_some_and(|known| {
        let known: Vec<_> = known.ids().collect();
        keys.ids().all(|id| known.contains(&id))
    });
    let step = match (&new, is_complete) {
        (Some(_), _) => Step::Made,
        (None, true) => Step::Kept,
        (None, false) => Step::Finished,
    };
    let all = match before {
        Some(before) => keys.and_verifiers_of(before),
        None => keys,
    };
    Ok(Completed { step, key: new, public: (!is_complete).then(|| all.public_pem()) })
}

fn read_if_there(path: &Path) -> Result<Option<String>, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(store::failed("could not read the key", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        let keys = SigningKeys::parse(text.as_bytes()).unwrap();
        keys.ids().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_there_stays_and_new_keys_become_public() {
        let made = complete(None, None).unwrap();
        let (key, public) = (made.key.unwrap(), made.public.unwrap());
        assert_eq!(made.step, Step::Made);
        assert_eq!(ids(&key), ids(&public));
        assert!(!public.contains("PRIVATE"));

        let kept = complete(Some(&key), Some(&public)).unwrap();
        assert_eq!(kept, Completed { step: Step::Kept, key: None, public: None });
        let finished = complete(Some(&key), None).unwrap();
        assert_eq!((finished.step, finished.public.as_ref()), (Step::Finished, Some(&public)));

        // Somebody has put a new key before the old one.
        let next = generate_key().unwrap();
        let rotated = complete(Some(&format!("{next}{key}")), Some(&public)).unwrap();
        let both = rotated.public.unwrap();
        assert_eq!(ids(&both).len(), 2);
        // The old one is gone, and its signatures are still accepted.
        let later = complete(Some(&next), Some(&both)).unwrap();
        assert_eq!(later.step, Step::Kept);

        assert!(complete(Some("x"), None).is_err());
    }
}
