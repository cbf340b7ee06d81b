//! The embedded Kafka-compatible broker, for people and tests that have no Kafka at hand.
//!
//! Storage, produce, fetch and topic administration are `tansu-broker`'s, on a SQLite file. What
//! the evaluation (`docs/broker-evaluation.md`) found wanting is answered here, in front of it:
//! consumer groups ([`groups`]), commit metadata ([`offsets`]), producers that raise their own
//! epoch ([`producers`]), codecs that it can't serve ([`batches`]) and waiting for records instead
//! of polling for them ([`router`]).
//!
//! This module and its children are the only code of the project that knows which broker is
//! embedded, and nothing of it is linked into the production binaries. It is a broker for one
//! machine: no replication, no authentication, no retention (nothing is ever deleted or compacted),
//! and a file that survives `kill -9` but not necessarily a power cut.

mod apart;
mod batches;
mod group;
mod groups;
mod offsets;
mod producers;
mod quiet;
mod router;
mod storage;

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

use quiet::LastFetch;
use router::{Reply, Router};
use storage::Storage;

/// How long a broker may take from [`Broker::start`] to its first answer. Opening the file is the
/// slow part.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long [`Broker::stop`] waits for requests that are being written.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// Larger requests are refused by closing the connection. A record that the storage could not hand
/// out again (its responses are capped at 5 MiB) must not be accepted.
const MAX_REQUEST: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Where the broker listens and keeps its data.
#[derive(Clone, Debug)]
pub(crate) struct BrokerConfig {
    /// The address to bind. Port 0 takes any free port.
    pub(crate) listen: SocketAddr,
    /// The directory that outlives the broker. Without one, the data goes to a temporary directory
    /// and away with it.
    pub(crate) data_dir: Option<PathBuf>,
}

/// Why the broker could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    /// The address is taken or not ours.
    #[error("the embedded broker cannot listen on {address}; choose another port with --listen")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be made, written or locked.
    #[error("the embedded broker cannot use the directory {}", path.display())]
    DataDir {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another broker holds the directory.
    #[error("another embedded broker is using the directory {}", path.display())]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// The storage engine refused.
    #[error("the embedded broker's storage did not open")]
    Storage(#[source] Box<tansu_broker::Error>),
    /// Its threads could not be started.
    #[error("the embedded broker's runtime did not start")]
    Runtime(#[source] io::Error),
    /// It listens but does not answer.
    #[error("the embedded broker did not answer within {} s", START_DEADLINE.as_secs())]
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
    /// The broker has threads of its own, so that neither its load nor its log lines are its
    /// host's.
    runtime: Option<Runtime>,
    bootstrap: String,
    /// Why the broker died, once it has.
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
        let advertised = advertised(bound);

        let runtime = runtime().map_err(BrokerError::Runtime)?;
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
            bootstrap: advertised.to_string(),
            _storage: Arc::clone(&storage),
            runtime: Some(runtime),
        };
        let Some(runtime) = &broker.runtime else { return Ok(broker) };
        let router = Router::new(Arc::clone(&storage), host_log)?;
        let listener =
            listener.into_std().map_err(|source| BrokerError::Listen { address, source })?;
        runtime.spawn(watch_over(storage, serve(listener, router), report));
        timeout(START_DEADLINE, first_answers(advertised))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(BrokerError::NotReady)?;
        Ok(broker)
    }

    /// What clients put into `bootstrap.servers`.
    pub(crate) fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// Returns when the broker has died by itself, with the reason. Its address refuses connections
    /// by then, and stays so: whoever runs a broker should end with it.
    pub(crate) fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.failure.clone();
        async move {
            let reason =
                failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            reason.unwrap_or_else(|| "its threads ended".into())
        }
    }

    /// Stops the broker and waits, up to a bound, for what it is writing.
    pub(crate) async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let stopped =
                tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP_DEADLINE)).await;
            if let Err(error) = stopped {
                tracing::warn!(%error, "the embedded broker did not stop in order");
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

/// Threads on which nothing logs: the storage reports every refused request at error level, and
/// traces each one.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("broker")
        .on_thread_start(|| std::mem::forget(tracing::subscriber::set_default(NoSubscriber::new())))
        .enable_all()
        .build()
}

/// Clients can't connect to "every address", so they are told the loopback one.
fn advertised(bound: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), bound.port())
    } else {
        bound
    }
}

/// Serves until something breaks, and then closes everything: clients cope better with no broker
/// than with a dead one.
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

async fn serve(listener: std::net::TcpListener, router: Router) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let router = router.clone();
                    connections.spawn(async move { connection(stream, peer, router).await });
                }
                // Out of descriptors, or a client that left in between: neither is a reason to stop
                // for good.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            _ = tick.tick() => router.groups().expire(),
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// One client: requests are answered in the order in which they came, as the protocol wants it.
async fn connection(mut stream: TcpStream, peer: SocketAddr, router: Router) -> io::Result<()> {
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

/// Reads a frame with its length in front, which is how the codec wants it.
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

/// Asks what every client asks first: which versions, and which brokers.
pub(crate) async fn first_answers(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // The oldest versions have the fewest fields to get wrong.
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
