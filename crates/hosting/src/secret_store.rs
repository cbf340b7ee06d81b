//! Where the values of `${secret:name}` come from, and who is told about their use.
//!
//! A [`SecretSource`] knows one place. The sources are asked in order, and the first one that has a
//! secret gives it. Policy has decided before which secrets a configuration may use. Values are
//! never shown: [`SecretValue`] has no `Debug`, and errors have the name only.

use std::{collections::BTreeMap, fmt, io, path::PathBuf, sync::Arc};

use fleet_codes as codes;
use fleet_job::mcp_servers::expand::is_secret_name;
use fleet_policy::oauth::RemoteOauth;
use futures::future::BoxFuture;
use url::Url;

use crate::remote_tokens::{RemoteTokens, TokenCache, resource_of};

mod environment;
mod files;

pub use environment::EnvironmentSecrets;
pub use files::SecretFiles;

/// The value of a secret. Clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Arc<str>);

impl SecretValue {
    /// Takes a value if it is one that configurations can use.
    ///
    /// # Errors
    ///
    /// Returns an error if the value is empty or contains a zero byte, which neither environments
    /// nor headers can hold.
    pub fn new(value: &str) -> Result<Self, SourceError> {
        match value {
            "" => Err(SourceError::Empty),
            _ if value.contains('\0') => Err(SourceError::ZeroByte),
            _ => Ok(Self(value.into())),
        }
    }

    /// Returns the value itself, which must not be shown.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// One place that has secrets, such as a directory of files. Another one, such as the interface of
/// a secrets manager, implements this trait and is given to [`SecretStore::new`].
pub trait SecretSource: Send + Sync {
    /// Says for people where this source has the secret `name`, or would have it.
    fn place(&self, name: &str) -> String;

    /// Reads a secret as it is now; `None` if this source does not have it. The name is one by
    /// [`fleet_job::mcp_servers::expand::is_secret_name`].
    fn read<'a>(&'a self, name: &'a str)
    -> BoxFuture<'a, Result<Option<SecretValue>, SourceError>>;
}

/// Why a source can't read a secret that it has.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system says so.
    #[error("it could not be read")]
    Io(#[from] io::Error),
    /// The file is a link to somewhere else.
    #[error("it is a link to a file outside the directory of secrets")]
    Outside,
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It can't be a variable or a header.
    #[error("it contains a zero byte")]
    ZeroByte,
}

/// Why a secret can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No source has it.
    #[error("there is no secret `{name}`; expected {places} [{code}]", code = codes::SERVER_CONFIG)]
    Missing {
        /// The name of the secret.
        name: String,
        /// Where it could be.
        places: String,
    },
    /// A source has it, but it can't be read.
    #[error("cannot use the secret `{name}` from {place} [{code}]", code = codes::SERVER_CONFIG)]
    Unusable {
        /// The name of the secret.
        name: String,
        /// Where it is.
        place: String,
        /// What is wrong with it.
        #[source]
        error: SourceError,
    },
}

impl SecretError {
    /// Returns whether the same attempt may succeed later without a change of the configuration.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unusable { error: SourceError::Io(_), .. })
    }
}

/// Why a secret is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretOccasion {
    /// A server is being started with it.
    Start,
    /// Its value has changed, and a connected remote gets the new one from now on.
    Change,
}

/// One use of a secret, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretUse<'a> {
    /// The hosted server that gets it.
    pub server: &'a str,
    /// The name of the secret.
    pub secret: &'a str,
    /// Why it is used.
    pub occasion: SecretOccasion,
}

/// A use of a secret could not be recorded, so the secret is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the use of the secret `{secret}` could not be recorded: {reason}")]
pub struct UnrecordedUse {
    /// The name of the secret.
    pub secret: String,
    /// Why it could not be recorded.
    pub reason: String,
}

/// Records each use of a secret before it is used.
pub trait SecretAudit: Send + Sync {
    /// Records a use.
    fn record<'a>(&'a self, used: SecretUse<'a>) -> BoxFuture<'a, Result<(), UnrecordedUse>>;
}

/// The secrets that configurations may refer to. Clones share the sources. By default, there are
/// none.
#[derive(Clone, Default)]
pub struct SecretStore {
    sources: Arc<[Box<dyn SecretSource>]>,
    audit: Option<Arc<dyn SecretAudit>>,
    /// The access tokens that were got with them.
    tokens: Arc<TokenCache>,
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

impl SecretStore {
    /// Creates a store that asks these sources in order.
    pub fn new(sources: Vec<Box<dyn SecretSource>>) -> Self {
        Self { sources: sources.into(), audit: None, tokens: Arc::default() }
    }

    /// Creates a store that asks the files of a directory, if there is one, and then variables.
    pub fn local(directory: Option<PathBuf>) -> Self {
        let files = directory.map(SecretFiles::new);
        let files = files.map(|files| Box::new(files) as Box<dyn SecretSource>);
        Self::new(files.into_iter().chain([Box::new(EnvironmentSecrets) as _]).collect())
    }

    /// Records every use in `audit`.
    #[must_use]
    pub fn audited(self, audit: Arc<dyn SecretAudit>) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// Reads a secret as it is now.
    ///
    /// # Errors
    ///
    /// Returns an error if no source has the secret, or the first one that has it can't read it.
    pub async fn read(&self, name: &str) -> Result<SecretValue, SecretError> {
        // What is no name could be a path.
        let sources = if is_secret_name(name) { &*self.sources } else { &[] };
        for source in sources {
            match source.read(name).await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => {
                    let (name, place) = (name.to_owned(), source.place(name));
                    return Err(SecretError::Unusable { name, place, error });
                }
            }
        }

        let places: Vec<_> = sources.iter().map(|source| source.place(name)).collect();
        let places = if places.is_empty() { "a source".to_owned() } else { places.join(" or ") };
        Err(SecretError::Missing { name: name.to_owned(), places })
    }

    /// Reads several secrets.
    ///
    /// # Errors
    ///
    /// As [`Self::read`], for the first that can't be read.
    pub(crate) async fn read_all(
        &self,
        names: impl IntoIterator<Item = &String>,
    ) -> Result<BTreeMap<String, SecretValue>, SecretError> {
        let mut values = BTreeMap::new();
        for name in names {
            values.insert(name.clone(), self.read(name).await?);
        }
        Ok(values)
    }

    /// Returns the access tokens of a client for a remote, which all its connections share.
    pub(crate) fn remote_tokens(&self, oauth: &RemoteOauth, remote: &Url) -> Arc<RemoteTokens> {
        let resource = resource_of(remote);
        let new = || RemoteTokens::new(oauth.clone(), resource.clone(), self.clone());
        self.tokens.get(oauth, &resource, new)
    }

    /// Records that a server is given a secret.
    ///
    /// # Errors
    ///
    /// Returns an error if the use can't be recorded and must be.
    pub(crate) async fn record_use(&self, used: SecretUse<'_>) -> Result<(), UnrecordedUse> {
        match &self.audit {
            Some(audit) => audit.record(used).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A source whose secrets tests change.

    use parking_lot::Mutex;

    use super::*;

    /// Secrets in memory. Clones share them.
    #[derive(Clone, Default)]
    pub(crate) struct MemorySecrets {
        values: Arc<Mutex<BTreeMap<String, String>>>,
        reads: Arc<Mutex<usize>>,
    }

    impl MemorySecrets {
        pub(crate) fn set(&self, name: &str, value: &str) {
            self.values.lock().insert(name.to_owned(), value.to_owned());
        }

        pub(crate) fn reads(&self) -> usize {
            *self.reads.lock()
        }

        pub(crate) fn store(&self) -> SecretStore {
            SecretStore::new(vec![Box::new(self.clone())])
        }
    }

    impl SecretSource for MemorySecrets {
        fn place(&self, _: &str) -> String {
            "memory".to_owned()
        }

        fn read<'a>(
            &'a self,
            name: &'a str,
        ) -> BoxFuture<'a, Result<Option<SecretValue>, SourceError>> {
            *self.reads.lock() += 1;
            let value = self.values.lock().get(name).map(|value| SecretValue::new(value));
            Box::pin(async move { value.transpose() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::MemorySecrets, *};

    #[tokio::test]
    async fn the_first_source_with_a_secret_gives_it() {
        let (first, second) = (MemorySecrets::default(), MemorySecrets::default());
        let store = SecretStore::new(vec![Box::new(first.clone()), Box::new(second.clone())]);
        second.set("a", "second");
        assert_eq!(store.read("a").await.unwrap().expose(), "second");
        first.set("a", "first");
        assert_eq!(store.read("a").await.unwrap().expose(), "first");

        // One that is there but unusable is not replaced by another.
        first.set("a", "");
        let error = store.read("a").await.err().unwrap();
        assert!(!error.is_temporary() && error.to_string().contains("`a` from memory"), "{error}");

        first.set("../a", "path");
        assert!(matches!(store.read("../a").await, Err(SecretError::Missing { .. })));
        let error = store.read("b").await.err().unwrap().to_string();
        assert!(error.contains("no secret `b`; expected memory or memory"), "{error}");
    }
}
