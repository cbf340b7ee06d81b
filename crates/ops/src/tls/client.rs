//! TLS of connections that this process opens: private authorities, and a certificate of its own.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::{
    PairFiles, TlsError,
    listener::count_reload,
    pem::{provider, read_authorities, read_certificates, read_file, read_pair},
};
use crate::{
    errors::chain,
    watched::{INTERVAL, Outcome, Watched, versions},
};

/// After this many intervals without a request, a changed file is read at the first look: the next
/// look may be hours away, and what was read before may have expired.
const IDLE_INTERVALS: u32 = 4;

/// The files of connections to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTlsFiles {
    /// The authorities of the server's certificate, in place of the system's.
    pub authorities: Option<PathBuf>,
    /// The client's own certificate and key.
    pub pair: Option<PairFiles>,
}

/// What the files of connections say.
#[derive(Clone, Default)]
pub struct ClientTls {
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl ClientTlsFiles {
    /// Returns whether connections use the system's authorities and have no certificate.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_none() && self.pair.is_none()
    }

    fn paths(&self) -> Vec<PathBuf> {
        let pair = self.pair.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        self.authorities.iter().chain(pair).cloned().collect()
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file if one can't be used.
    pub fn read(&self) -> Result<ClientTls, TlsError> {
        let authorities = self.authorities.as_deref().map(read_trusted).transpose()?;
        let identity = self.pair.as_ref().map(read_identity).transpose()?;
        Ok(ClientTls { authorities, identity })
    }
}

fn read_trusted(path: &Path) -> Result<Vec<Certificate>, TlsError> {
    // Reports what the HTTP client would refuse without the file's name.
    read_authorities(path)?;

    let certificates = read_certificates(path)?.into_iter();
    certificates
        .map(|certificate| Certificate::from_der(&certificate).map_err(TlsError::Client))
        .collect()
}

fn read_identity(pair: &PairFiles) -> Result<Identity, TlsError> {
    // Reports what the HTTP client would refuse without the files' names.
    read_pair(pair, &provider())?;

    let mut text = read_file(&pair.certificate)?;
    if pair.key != pair.certificate {
        text.push(b'\n');
        text.extend(read_file(&pair.key)?);
    }
    Identity::from_pem(&text).map_err(TlsError::Client)
}

impl ClientTls {
    /// Makes a client trust the authorities and present the certificate.
    pub fn apply(&self, builder: ClientBuilder) -> ClientBuilder {
        let builder = match &self.authorities {
            Some(authorities) => builder.tls_certs_only(authorities.iter().cloned()),
            None => builder,
        };
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("authorities", &self.authorities.as_ref().map(Vec::len))
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}

/// An HTTP client that is built again when its files change, or other files are named. Requests
/// that have begun keep the connection of the client that they began with. Clones share one state.
#[derive(Clone)]
pub struct FollowedClient(Arc<Inner>);

type NameFiles = dyn Fn() -> ClientTlsFiles + Send + Sync;
type Build = dyn Fn(&ClientTls) -> reqwest::Result<Client> + Send + Sync;

struct Inner {
    files: Box<NameFiles>,
    build: Box<Build>,
    state: Mutex<State>,
}

struct State {
    client: Client,
    /// The files that were looked at last.
    files: ClientTlsFiles,
    watched: Watched,
    looked: Instant,
}

impl FollowedClient {
    /// Builds a client with the files that `files` names. Both functions are called again later.
    ///
    /// # Errors
    ///
    /// Returns an error if a file can't be used, or the client can't be built.
    pub fn new(
        files: impl Fn() -> ClientTlsFiles + Send + Sync + 'static,
        build: impl Fn(&ClientTls) -> reqwest::Result<Client> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let named = files();
        let watched = Watched::applied(versions(&named.paths()));
        let client = build(&named.read()?).map_err(TlsError::Client)?;
        let state = State { client, files: named, watched, looked: Instant::now() };
        let (files, build) = (Box::new(files), Box::new(build));
        Ok(Self(Arc::new(Inner { files, build, state: Mutex::new(state) })))
    }

    /// The client for the next request. Looks at the files if that was not done lately.
    pub fn current(&self) -> Client {
        let mut state = self.0.state.lock();
        let pause = state.looked.elapsed();
        if pause >= INTERVAL {
            state.looked = Instant::now();
            self.0.look(&mut state, pause >= INTERVAL * IDLE_INTERVALS);
        }
        state.client.clone()
    }
}

impl Inner {
    fn look(&self, state: &mut State, was_idle: bool) {
        let files = (self.files)();
        let is_other = files != state.files;
        if files.is_empty() && !is_other {
            return;
        }

        let seen = versions(&files.paths());
        let forced = is_other || (was_idle && state.watched.has_changed(&seen));
        state.files = files;
        if state.watched.is_due(&seen, forced) {
            let built = state.files.read();
            let built = built.and_then(|tls| (self.build)(&tls).map_err(TlsError::Client));
            let outcome = built.as_ref().map_or_else(|error| error.outcome(), |_| Outcome::Applied);
            let is_news = state.watched.record(seen, outcome, forced);
            match built {
                Ok(client) => {
                    state.client = client;
                    count_reload("client", "applied");
                    tracing::info!(files = ?state.files, "applied changed TLS files");
                }
                Err(error) if is_news => {
                    count_reload("client", "invalid");
                    tracing::error!(
                        error = chain(&error),
                        "could not use the TLS files of connections; what was read before stays in \
                         force"
                    );
                }
                Err(_) => {}
            }
        }
    }
}

impl fmt::Debug for FollowedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FollowedClient").field(&self.0.state.lock().files).finish()
    }
}
