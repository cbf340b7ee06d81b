//! Opens the storage engine on a directory.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tansu_storage::{BrokerRegistrationRequest, Storage as _, StorageContainer};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

use super::{BrokerError, format};

/// The id of the cluster's only node.
pub(super) const NODE: i32 = 1;
/// The name of the cluster. Data is stored under it, so it must never change.
const CLUSTER: &str = "mcp-fleet";
const FILE: &str = "broker.db";
/// How long the end of an engine can go unnoticed.
const PROBE: Duration = Duration::from_millis(500);

/// The open engine, and everything that must live as long as it does.
#[derive(Debug)]
pub(super) struct Storage {
    /// The storage engine.
    pub(super) engine: StorageContainer,
    /// The directory of the engine's file and of commit metadata.
    pub(super) directory: PathBuf,
    _lock: File,
    /// Open as long as the engine, whose path may lead through it.
    _opened: File,
    _temporary: Option<TempDir>,
}

impl Storage {
    /// Opens or creates the engine's file in `directory`, or in a temporary one.
    pub(super) async fn open(
        directory: Option<PathBuf>,
        advertised: SocketAddr,
    ) -> Result<Self, BrokerError> {
        let (directory, temporary) = match directory {
            Some(directory) => (directory, None),
            None => {
                let made = temporary_directory()?;
                (made.path().to_path_buf(), Some(made))
            }
        };
        let failed = |source| BrokerError::DataDir { path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        let lock = lock(&directory)?;

        // The engine takes its path from a URL without decoding it, so a directory that needs
        // encoding is reached by the number under which it is open.
        let opened = File::open(&directory).map_err(failed)?;
        let numbered = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let reachable = if file_url(&directory).is_some() { &directory } else { &numbered };
        format::prepare(&directory, &reachable.join(FILE)).await?;
        let url = file_url(reachable);
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
        Ok(Self { engine, directory, _lock: lock, _opened: opened, _temporary: temporary })
    }

    /// Returns when the engine has ended, which happens if one of its requests panics. The engine
    /// does not report its end, so it has to be polled. The poll is never cancelled half-way: an
    /// engine whose response is not received ends, too.
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

/// Locks the directory, since two brokers on one file would each assume that they are alone. The
/// operating system releases the lock when the process ends.
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

/// Returns the engine's URL for the file in `directory`, or `None` if a URL would change the path.
/// The four slashes make the path absolute; with three, it would be relative to the working
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
    fn plain_paths_are_kept() {
        let url = file_url(Path::new("/var/lib/fleet")).map(|url| url.to_string());
        assert_eq!(url.as_deref(), Some("sqlite:////var/lib/fleet/broker.db"));
    }

    #[test]
    fn paths_that_a_url_would_change_are_rejected() {
        for path in ["/with space", "/question?mark", "/ha#sh", "/ümlaut"] {
            assert_eq!(file_url(Path::new(path)), None, "{path}");
        }
    }
}
