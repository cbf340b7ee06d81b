//! The public keys with which requests to cancel are verified.

use std::{path::PathBuf, sync::Arc};

use fleet_job::{control::Control, record::RawRecord};
use fleet_ops::errors::chain;
use fleet_signing::{HEADER, SigningKeys, SigningKeysError};
use metrics::counter;

use crate::metrics as names;

/// The file of public keys, and what was last read from it.
#[derive(Debug)]
pub(crate) struct PublicKeys {
    path: PathBuf,
    /// The jobs topic, which every signature names.
    topic: String,
    keys: Arc<SigningKeys>,
    /// What was wrong with the file when it was last read.
    problem: Option<String>,
}

/// Why the public keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeysError {
    /// The file can't be read.
    #[error("could not read {} [{code}]", path.display(), code = fleet_codes::SIGNING_KEYS)]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("could not use {}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: SigningKeysError,
    },
}

impl PublicKeys {
    /// Reads a file of keys.
    pub(crate) fn open(path: PathBuf, topic: String) -> Result<Self, PublicKeysError> {
        let keys = Arc::new(read(&path)?);
        Ok(Self { path, topic, keys, problem: None })
    }

    /// Reads the file again. Requests are rare and the file is small, so it is read whenever there
    /// are some. If it can't be used, the keys before stay in force.
    pub(crate) fn refresh(&mut self) {
        match read(&self.path) {
            Ok(keys) => {
                self.keys = Arc::new(keys);
                self.problem = None;
            }
            Err(error) => {
                let error = chain(&error);
                if self.problem.as_ref() != Some(&error) {
                    tracing::warn!(
                        error,
                        "could not read the public keys; those before stay in use"
                    );
                    self.problem = Some(error);
                }
            }
        }
    }

    /// Reads a request that a server of this fleet has signed; `None` if nobody has, or if this
    /// version does not understand it.
    pub(crate) fn read_control(&self, record: &RawRecord) -> Option<Control> {
        let value = record.value.as_deref()?;
        let control = self.keys.verify_control(&self.topic, value, record.header(HEADER));
        control.unwrap_or_else(|fault| {
            counter!(names::REFUSED_CONTROLS.name, "fault" => fault.as_str()).increment(1);
            let offset = record.position.offset;
            tracing::warn!(
                offset,
                fault = fault.as_str(),
                "ignored a request to cancel that no server of this fleet has signed"
            );
            None
        })
    }
}

fn read(path: &PathBuf) -> Result<SigningKeys, PublicKeysError> {
    let text =
        std::fs::read(path).map_err(|error| PublicKeysError::Read { path: path.clone(), error })?;
    SigningKeys::parse(&text)
        .map_err(|error| PublicKeysError::Invalid { path: path.clone(), error })
}

#[cfg(test)]
mod tests {
    use fleet_job::{record::Position, time::Timestamp};

    use super::*;

    #[test]
    fn only_signed_requests_are_obeyed_and_new_keys_count_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public.pem");
        let [old, new] = [(); 2].map(|()| {
            SigningKeys::parse(fleet_signing::generate_key().unwrap().as_bytes()).unwrap()
        });
        let write = |keys: &SigningKeys| std::fs::write(&path, keys.public_pem()).unwrap();
        write(&old);
        let mut keys = PublicKeys::open(path.clone(), "jobs".to_owned()).unwrap();

        let control = Control::cancel("j", None, Timestamp::MIN, None);
        let record = |by: Option<&SigningKeys>| {
            let value = control.to_bytes();
            let signature = by.and_then(|keys| keys.sign_control("jobs", &value, None));
            RawRecord {
                position: Position { topic: "c".to_owned(), partition: 0, offset: 0 },
                timestamp: None,
                key: None,
                value: Some(value),
                headers: vec![(HEADER.to_owned(), signature.map(String::into_bytes))],
            }
        };
        assert_eq!(keys.read_control(&record(Some(&old))), Some(control.clone()));
        assert_eq!(keys.read_control(&record(None)), None);
        assert_eq!(keys.read_control(&record(Some(&new))), None);

        write(&new);
        keys.refresh();
        assert_eq!(keys.read_control(&record(Some(&new))), Some(control.clone()));
        std::fs::write(&path, "").unwrap();
        keys.refresh();
        assert_eq!(keys.read_control(&record(Some(&new))), Some(control.clone()), "as before");
        assert!(keys.problem.is_some());
        assert!(PublicKeys::open(path, "jobs".to_owned()).is_err());
    }
}
