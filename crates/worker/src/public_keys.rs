//! The public keys with which requests to cancel and pauses are verified.

use std::{collections::VecDeque, io, mem, path::PathBuf, sync::Arc, time::Duration};

use fleet_job::record::RawRecord;
use fleet_ops::errors::chain;
use fleet_signing::{HEADER, SigningKeys, SigningKeysError};
use metrics::counter;

use crate::{metrics as names, record_feed::FollowedRecord};

/// How often to look for a file that does not exist yet.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The most records that wait for a key to become known.
const MAX_UNKNOWN: usize = 1_000;

/// The file of public keys, and what was last read from it.
#[derive(Debug)]
pub(crate) struct PublicKeys {
    path: PathBuf,
    /// The jobs topic, which every signature names.
    topic: String,
    /// Missing as long as there is no file.
    keys: Option<Arc<SigningKeys>>,
    /// What was wrong with the file when it was last read.
    problem: Option<String>,
    /// Records that were signed with a key that is not in the file yet.
    unknown: VecDeque<RawRecord>,
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
        error: io::Error,
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
    /// Reads a file of keys, which may not exist yet: in Kubernetes, a worker can start before the
    /// keys of the fleet are made.
    pub(crate) fn open(path: PathBuf, topic: String) -> Result<Self, PublicKeysError> {
        let keys = match read(&path) {
            Ok(keys) => Some(Arc::new(keys)),
            Err(PublicKeysError::Read { path, error })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                tracing::warn!(
                    file = %path.display(),
                    "there is no file of public keys yet; jobs can't be cancelled or paused until there is one"
                );
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { path, topic, keys, problem: None, unknown: VecDeque::new() })
    }

    /// Waits until there are keys. Returns `false` if they are not needed any more.
    pub(crate) fn wait_until_there(&mut self, is_needed: impl Fn() -> bool) -> bool {
        while self.keys.is_none() {
            if !is_needed() {
                return false;
            }
            std::thread::sleep(LOOK_AGAIN);
            self.refresh();
        }
        true
    }

    /// Reads the file again. Such records are rare and the file is small, so it is read whenever there
    /// are some. If it can't be used, the keys before stay in force.
    pub(crate) fn refresh(&mut self) {
        match read(&self.path) {
            Ok(keys) => {
                self.keys = Some(Arc::new(keys));
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

    /// The records that were signed with a key that was not known when they came. They are to be
    /// read again, once the file was.
    pub(crate) fn take_unknown(&mut self) -> VecDeque<RawRecord> {
        mem::take(&mut self.unknown)
    }

    /// Reads a record that a server of this fleet has signed; `None` if nobody has, or if this
    /// version does not understand it.
    pub(crate) fn read_signed<T: FollowedRecord>(&mut self, record: &RawRecord) -> Option<T> {
        let value = record.value.as_deref()?;
        let keys = self.keys.as_ref()?;
        let read = T::verify(keys, &self.topic, value, record.header(HEADER));
        read.unwrap_or_else(|fault| {
            if fault.is_retryable() {
                // Keys are being replaced, and the file may be behind.
                if self.unknown.len() == MAX_UNKNOWN {
                    self.unknown.pop_front();
                }
                self.unknown.push_back(record.clone());
            }
            counter!(names::REFUSED_CONTROLS.name, "fault" => fault.as_str()).increment(1);
            let (topic, offset) = (&record.position.topic, record.position.offset);
            tracing::warn!(
                topic,
                offset,
                fault = fault.as_str(),
                "ignored a record that no server of this fleet has signed"
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
    use fleet_job::{control::Control, record::Position, time::Timestamp};

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
        assert_eq!(keys.read_signed(&record(Some(&old))), Some(control.clone()));
        assert_eq!(keys.read_signed::<Control>(&record(None)), None);
        assert_eq!(keys.read_signed::<Control>(&record(Some(&new))), None);

        write(&new);
        keys.refresh();
        let waiting = keys.take_unknown();
        assert_eq!(waiting.len(), 1, "the one that no key of this fleet had signed before");
        assert_eq!(keys.read_signed(&waiting[0]), Some(control.clone()));
        std::fs::write(&path, "").unwrap();
        keys.refresh();
        assert_eq!(keys.read_signed(&record(Some(&new))), Some(control.clone()), "as before");
        assert!(keys.problem.is_some());
        assert!(PublicKeys::open(path.clone(), "jobs".to_owned()).is_err());

        std::fs::remove_file(&path).unwrap();
        let mut later = PublicKeys::open(path.clone(), "jobs".to_owned()).unwrap();
        assert!(!later.wait_until_there(|| false));
        write(&old);
        assert!(later.wait_until_there(|| true));
        assert_eq!(later.read_signed(&record(Some(&old))), Some(control.clone()));
    }
}
