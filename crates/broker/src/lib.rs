//! The embedded Kafka-compatible broker, for people and tests without a Kafka.
//!
//! `tansu-broker` provides storage, produce, fetch and topic administration on an SQLite file. This
//! crate fills the gaps that the evaluation (`docs/broker-evaluation.md`) found: consumer groups
//! (`groups`), commit metadata (`offsets`), producers that raise their own epoch
//! (`producers`), batches that the storage cannot serve (`batches`, `screen`), and waiting for
//! records instead of polling (`router`).
//!
//! This crate is the only code in the project that knows which broker is embedded, and no other
//! program links it: `mcp-fleet demo` and `mcp-fleet dev` start the binary `mcp-fleet-broker`. The
//! broker is meant for one machine: it has no replication, no authentication and no retention
//! (nothing is ever deleted or compacted), and its file survives `kill -9` but not necessarily a
//! power failure.

mod apart;
mod batches;
mod format;
mod group;
mod groups;
mod line_file;
mod offsets;
mod producers;
mod quiet;
mod router;
mod run;
mod screen;
mod storage;
mod topic_names;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tansu_sans_io::{ApiVersionsRequest, Body, Frame, Header, MetadataRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tracing::{Dispatch, subscriber::NoSubscriber};

pub use run::{Args, EXAMPLES, RunError, run};

use quiet::LastFetch;
use router::{Reply, Router};
use storage::Storage;

/// How long a broker may take from [`Broker::start`] to its first response. Opening the file is the
/// slow part.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long [`Broker::stop`] waits for pending writes.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// A larger request closes the connection. A record that the storage could not serve later (its
/// responses are limited to 5 MiB) must not be accepted.
const MAX_REQUEST: usize = 4 * 1024 * 1024 + 64 * 1024;

/// The broker's address and data directory.
#[derive(Clone, Debug)]
pub(crate) struct BrokerConfig {
    /// The address to bind. Port 0 takes any free port.
    pub(crate) listen: SocketAddr,
    /// The directory that outlives the broker; `None` uses a temporary directory, which is deleted
    /// at the end.
    pub(crate) data_dir: Option<PathBuf>,
}

/// Why the broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address is in use or not local.
    #[error(
        "the embedded broker cannot listen on {address}; choose another port with --listen [{code}]",
        code = fleet_codes::LISTEN
    )]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The error from the operating system.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be created, written or locked.
    #[error("the embedded broker cannot use the directory {}", path.display())]
    DataDir {
        /// The requested directory.
        path: PathBuf,
        /// The error from the operating system.
        #[source]
        source: io::Error,
    },
    /// Another broker has locked the directory.
    #[error("another embedded broker is using the directory {}", path.display())]
    InUse {
        /// The requested directory.
        path: PathBuf,
    },
    /// The directory was written by a newer broker.
    #[error(
        "the data in {} has the format \"{found}\", which this version does not know; start the version that wrote it, or choose another --data-dir [{code}]",
        path.display(),
        code = fleet_codes::BROKER_VERSION
    )]
    Version {
        /// The requested directory.
        path: PathBuf,
        /// The content of the file that names the format.
        found: String,
    },
    /// The engine's file could not be read or brought up to date.
    #[error(
        "the embedded broker cannot read the data in {}; restore it, or choose another --data-dir [{code}]",
        path.display(),
        code = fleet_codes::BROKER_DATA
    )]
    Unreadable {
        /// The requested directory.
        path: PathBuf,
        /// The error from the database.
        #[source]
        source: Box<libsql::Error>,
    },
    /// The storage engine failed to open.
    #[error("could not open the storage of the embedded broker")]
    Storage(#[source] Box<tansu_broker::Error>),
    /// The broker's threads could not be started.
    #[error("could not start the runtime of the embedded broker")]
    Runtime(#[source] io::Error),
    /// The broker listens but does not respond.
    #[error("the embedded broker did not respond within {} s", START_DEADLINE.as_secs())]
    NotReady(#[source] io::Error),
}

impl From<tansu_broker::Error> for BrokerError {
    fn from(error: tansu_broker::Error) -> Self {
        Self::Storage(Box::new(error))
    }
}

impl From<tansu_storage::Error> for BrokerError {
    fn from(error: tansu_storage::Error) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

/// A running broker. Dropping it stops it without waiting; [`Broker::stop`] waits.
#[derive(Debug)]
pub(crate) struct Broker {
    /// The broker's own threads, which keep its load and log lines apart from the rest of the
    /// process.
    runtime: Option<Runtime>,
    address: SocketAddr,
    /// Why the broker failed, once it has.
    failure: watch::Receiver<Option<String>>,
    /// Declared last: a temporary directory must outlive the threads that write to it.
    _storage: Arc<Storage>,
}

impl Broker {
    /// Starts a broker and returns once it has answered a client's first two requests.
    pub(crate) async fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| BrokerError::Listen { address, source })?;
        let bound =
            listener.local_addr().map_err(|source| BrokerError::Listen { address, source })?;
        let advertised = advertised_address(bound);

        let runtime = build_runtime().map_err(BrokerError::Runtime)?;
        let opened = runtime
            .spawn(Storage::open(config.data_dir, advertised))
            .await
            .map_err(|join| BrokerError::Runtime(io::Error::other(join)));
        let storage = match opened.and_then(|opened| opened) {
            Ok(storage) => Arc::new(storage),
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };

        let host_log = tracing::dispatcher::get_default(Dispatch::clone);
        let (report, failure) = watch::channel(None);

        let broker = Self {
            failure,
            address: advertised,
            _storage: Arc::clone(&storage),
            runtime: Some(runtime),
        };
        let Some(runtime) = &broker.runtime else { return Ok(broker) };

        let router = Router::new(Arc::clone(&storage), host_log)?;
        let listener =
            listener.into_std().map_err(|source| BrokerError::Listen { address, source })?;
        runtime.spawn(watch_over(storage, serve(listener, router), report));

        timeout(START_DEADLINE, send_first_requests(advertised))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(BrokerError::NotReady)?;
        Ok(broker)
    }

    /// Returns the address that clients are told.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when the broker has failed on its own, with the reason. Its address then refuses
    /// connections for good, so the process that runs it should exit.
    pub(crate) fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.failure.clone();
        async move {
            let reason =
                failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            reason.unwrap_or_else(|| "its threads have ended".into())
        }
    }

    /// Stops the broker and waits, within a limit, for pending writes.
    pub(crate) async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let stopped =
                tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP_DEADLINE)).await;
            if let Err(error) = stopped {
                tracing::warn!(%error, "the embedded broker did not shut down cleanly");
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Creates a runtime whose threads do not log: the storage traces every request and reports each
/// rejected one as an error.
fn build_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("broker")
        .on_thread_start(|| std::mem::forget(tracing::subscriber::set_default(NoSubscriber::new())))
        .enable_all()
        .build()
}

/// Returns the address that clients are told: loopback if the broker listens on all addresses,
/// since clients cannot connect to an unspecified one.
fn advertised_address(bound: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), bound.port())
    } else {
        bound
    }
}

/// Serves until something fails, then closes everything: clients cope better with no broker than
/// with one that does not respond.
async fn watch_over(
    storage: Arc<Storage>,
    serving: impl Future<Output = io::Result<()>> + Send + 'static,
    report: watch::Sender<Option<String>>,
) {
    let mut serving = JoinSet::from_iter([serving]);
    let reason = tokio::select! {
        () = storage.ended() => "its storage engine panicked".to_owned(),
        ended = serving.join_next() => match ended {
            Some(Ok(Err(error))) => format!("it stopped listening: {error}"),
            Some(Err(error)) => format!("it stopped serving: {error}"),
            Some(Ok(Ok(()))) | None => "it stopped serving".to_owned(),
        },
    };
    serving.shutdown().await;
    report.send_replace(Some(reason));
}

/// Accepts connections and expires silent group members. Never returns without an error.
async fn serve(listener: std::net::TcpListener, router: Router) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let router = router.clone();
                    connections.spawn(async move { serve_connection(stream, peer, router).await });
                }
                // Out of file descriptors, or a client that has already left: neither is a reason
                // to stop for good.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            _ = tick.tick() => router.groups().expire(),
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Serves one client. The protocol requires responses in the order of the requests.
async fn serve_connection(
    mut stream: TcpStream,
    peer: SocketAddr,
    router: Router,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut last = LastFetch::default();
    loop {
        let request = read_frame(&mut stream, MAX_REQUEST).await?;
        match router.answer(request, peer, &mut last).await {
            Reply::Bytes(response) => stream.write_all(&response).await?,
            Reply::Nothing => {}
            Reply::Close => return Ok(()),
        }
    }
}

/// Reads a frame including its length prefix, which the codec expects.
async fn read_frame(stream: &mut TcpStream, limit: usize) -> io::Result<bytes::Bytes> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).await?;
    let length = usize::try_from(i32::from_be_bytes(size)).map_err(io::Error::other)?;

    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }

    let mut frame = vec![0; length + size.len()];
    frame[..size.len()].copy_from_slice(&size);
    stream.read_exact(&mut frame[size.len()..]).await?;

    Ok(frame.into())
}

/// Sends the first two requests of every client: the supported versions, and the brokers.
async fn send_first_requests(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // The oldest versions have the fewest fields.
    let asked: [(i16, i16, Body); 2] = [
        (18, 0, ApiVersionsRequest::default().into()),
        (3, 1, MetadataRequest::default().topics(Some(Vec::new())).into()),
    ];
    for (correlation_id, (api_key, api_version, body)) in (1..).zip(asked) {
        let header = Header::Request {
            api_key,
            api_version,
            correlation_id,
            client_id: Some("mcp-fleet".into()),
        };
        let request = Frame::request(header, body).map_err(io::Error::other)?;
        stream.write_all(&request).await?;
        let response = read_frame(&mut stream, usize::MAX).await?;
        Frame::response_from_bytes(response, api_key, api_version).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod produce_tests;
