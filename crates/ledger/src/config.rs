//! Where the ledger is kept.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    DatabaseUrl, MemoryStore, PostgresStore, Retention, SqliteStore, Store, StoreError,
    postgres::DatabaseUrlError,
};

/// Where the ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// In memory. It is read from the topic again after a restart.
    Memory,
    /// In an SQLite file in this directory.
    Sqlite(PathBuf),
    /// In a PostgreSQL database that servers share.
    Postgres(Box<DatabaseUrl>),
}

/// Why a setting does not say where the ledger is. Never repeats the setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreConfigError {
    /// It is none of the possible values.
    #[error("expected memory, sqlite, or a URL that begins with postgres://")]
    Unknown,
    /// The file has no directory.
    #[error("sqlite needs a directory for the file; set MCP_DATA_DIR")]
    NoDirectory,
    /// The URL of the database can't be used.
    #[error(transparent)]
    Url(#[from] DatabaseUrlError),
}

impl StoreConfig {
    /// Reads the setting: `memory`, `sqlite`, or the URL of a database. Without one, a directory
    /// means a file in it.
    ///
    /// # Errors
    ///
    /// Returns an error if the setting is none of these, or lacks something.
    pub fn parse(
        setting: Option<&str>,
        directory: Option<&Path>,
    ) -> Result<Self, StoreConfigError> {
        match (setting, directory) {
            (None, None) | (Some("memory"), _) => Ok(Self::Memory),
            (None | Some("sqlite"), Some(directory)) => Ok(Self::Sqlite(directory.to_owned())),
            (Some("sqlite"), None) => Err(StoreConfigError::NoDirectory),
            (Some(url), _)
                if url.starts_with("postgres://") || url.starts_with("postgresql://") =>
            {
                Ok(Self::Postgres(Box::new(DatabaseUrl::parse(url)?)))
            }
            (Some(_), _) => Err(StoreConfigError::Unknown),
        }
    }

    /// Opens the ledger. `log` identifies the events topic for a file; a database is told later
    /// ([`Store::resume`]) and not connected to before.
    ///
    /// # Errors
    ///
    /// Returns an error if the directory or the file can't be used.
    pub async fn open(
        &self,
        log: &str,
        retention: Retention,
    ) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryStore::new(retention)),
            Self::Sqlite(directory) => {
                Arc::new(SqliteStore::open(directory, log, retention).await?)
            }
            Self::Postgres(url) => Arc::new(PostgresStore::new(url, retention)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_says_where_the_ledger_is() {
        let directory = Path::new("/data");
        let check = |setting, directory, expected: Result<StoreConfig, StoreConfigError>| {
            assert_eq!(StoreConfig::parse(setting, directory), expected, "{setting:?}");
        };
        let sqlite = || Ok(StoreConfig::Sqlite(directory.to_owned()));
        check(None, None, Ok(StoreConfig::Memory));
        check(None, Some(directory), sqlite());
        check(Some("memory"), Some(directory), Ok(StoreConfig::Memory));
        check(Some("sqlite"), Some(directory), sqlite());
        check(Some("sqlite"), None, Err(StoreConfigError::NoDirectory));
        check(Some("redis://h"), Some(directory), Err(StoreConfigError::Unknown));
        check(Some("postgres:///x"), None, Err(DatabaseUrlError::NoHost.into()));

        let url = "postgres://u:p@db/fleet";
        let parsed = DatabaseUrl::parse(url).unwrap();
        check(Some(url), Some(directory), Ok(StoreConfig::Postgres(Box::new(parsed))));
    }
}
