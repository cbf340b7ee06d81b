//! Opening the storage engine on a directory: who may, under which name, and for how long.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tansu_storage::{BrokerRegistrationRequest, Storage as _, StorageContainer};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

use super::BrokerError;

/// The only node of the cluster.
pub(super) const NODE: i32 = 1;
/// The cluster's name. Data is filed under it, so it never changes.
const CLUSTER: &str = "mcp-fleet";
const FILE: &str = "broker.db";
/// How long an engine that has ended can go unnoticed.
const PROBE: Duration = Duration::from_millis(500);

/// The open engine and what has to live as long as it does.
#[derive(Debug)]
pub(super) struct Storage {
    /// The engine.
    pub(super) engine: StorageContainer,
    /// Where commit metadata is kept, beside the engine's file.
    pub(super) directory: PathBuf,
    _lock: File,
    _temporary: Vec<TempDir>,
}

impl Storage {
    /// Opens or creates the engine's file in `directory`, or in a temporary one.
    pub(super) async fn open(
        directory: Option<PathBuf>,
        advertised: SocketAddr,
    ) -> Result<Self, BrokerError> {
        let mut temporary = Vec::new();
        let directory = match directory {
            Some(directory) => directory,
            None => {
                let made = temporary_directory()?;
                let path = made.path().to_path_buf();
                temporary.push(made);
                path
            }
        };
        let failed = |source| BrokerError::DataDir { path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        let lock = lock(&directory)?;

        let mut url = file_url(&directory);
        if url.is_none() {
            // The engine takes its path from a URL and does not decode it: such a directory gets a
            // plain name.
            let made = temporary_directory()?;
            let link = made.path().join("data");
            std::os::unix::fs::symlink(&directory, &link).map_err(failed)?;
            url = file_url(&link);
            temporary.push(made);
        }
        let url = url.ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        let listener = Url::parse(&format!("tcp://{advertised}"))
            .map_err(|error| failed(io::Error::other(error)))?;

        let engine = StorageContainer::builder()
            .cluster_id(CLUSTER)
            .node_id(NODE)
            .advertised_listener(listener)
            .storage(url)
            .silent(true)
            .build()
            .await?;
        engine
            .register_broker(BrokerRegistrationRequest {
                broker_id: NODE,
                cluster_id: CLUSTER.into(),
                incarnation_id: Uuid::new_v4(),
                rack: None,
            })
            .await?;
        Ok(Self { engine, directory, _lock: lock, _temporary: temporary })
    }

    /// Returns when the engine has ended, which it does for good when one of its requests panics.
    /// It says so to nobody and has to be asked. The question is never given up half-way: an engine
    /// whose answer nobody takes ends, too.
    pub(super) async fn ended(&self) {
        while self.engine.brokers().await.is_ok() {
            tokio::time::sleep(PROBE).await;
        }
    }
}

fn temporary_directory() -> Result<TempDir, BrokerError> {
    tempfile::Builder::new()
        .prefix("mcp-fleet-broker-")
        .tempdir()
        .map_err(|source| BrokerError::DataDir { path: std::env::temp_dir(), source })
}

/// Two brokers on one file would both believe to be alone. The lock goes with the process, however
/// it ends.
fn lock(directory: &Path) -> Result<File, BrokerError> {
    let path = directory.to_path_buf();
    let file = File::create(directory.join("lock"))
        .map_err(|source| BrokerError::DataDir { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BrokerError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(BrokerError::DataDir { path, source }),
    }
}

/// The engine's URL for the file in `directory`, or nothing if the URL would spell the path another
/// way. The four slashes make the path absolute: with three it would be taken from the working
/// directory.
fn file_url(directory: &Path) -> Option<Url> {
    let path = directory.join(FILE);
    let path = path.to_str()?;
    let url = Url::parse(&format!("sqlite:///{path}")).ok()?;
    (url.path().strip_prefix('/') == Some(path)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_are_spelled_as_they_are() {
        let url = file_url(Path::new("/var/lib/fleet")).map(|url| url.to_string());
        assert_eq!(url.as_deref(), Some("sqlite:////var/lib/fleet/broker.db"));
    }

    #[test]
    fn paths_that_a_url_would_change_are_not() {
        for path in ["/with space", "/question?mark", "/ha#sh", "/ümlaut"] {
            assert_eq!(file_url(Path::new(path)), None, "{path}");
        }
    }
}
