//! TLS of a listener: its certificate, and the client certificates that it accepts.

use std::{fmt, io, path::PathBuf, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use webpki::{BorrowedCertRevocationList, CertRevocationList};

use super::{
    ClientFiles, PairFiles, PeerCertificate, TlsError,
    pem::{provider, read_authorities, read_pair, read_revocation_lists},
};
use crate::{
    errors::chain,
    metrics::{TLS_HANDSHAKE_FAILURES, TLS_RELOADS},
    watched::{Outcome, Watched, follow, versions},
};

/// The protocols that a listener offers; it serves HTTP/1.1.
const PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

/// The files of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate and key.
    pub pair: PairFiles,
    /// Which client certificates it accepts; none by default.
    pub clients: Option<ClientFiles>,
}

/// A listener's TLS, which follows its files. Clones share one state.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    state: RwLock<Arc<State>>,
}

/// What the files say, replaced as a whole when one of them changes.
pub(super) struct State {
    config: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Counts the states of this listener.
    pub(super) generation: u64,
}

/// A connection whose handshake has succeeded.
pub(crate) struct Secured {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) certificate: Option<PeerCertificate>,
}

impl Tls {
    /// Reads the files, and follows them until `stop` is cancelled. Must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file if one can't be used.
    pub fn start(files: TlsFiles, stop: CancellationToken) -> Result<Self, TlsError> {
        let paths = files.paths();
        let watched = Watched::applied(versions(&paths));
        let state = State::read(&files, 0)?;
        let tls = Self(Arc::new(Shared { files, state: RwLock::new(Arc::new(state)) }));

        let following = tls.clone();
        tokio::spawn(async move {
            let outcome = |result: &Result<(), TlsError>| match result {
                Ok(()) => Outcome::Applied,
                Err(error) => error.outcome(),
            };
            let report = |result: &Result<(), TlsError>| following.report(result);
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&paths, watched, outcome, || following.reload(), report) => {}
            }
        });
        Ok(tls)
    }

    /// Performs the handshake of a connection.
    ///
    /// # Errors
    ///
    /// Returns an error if the client speaks no TLS, or one of the two sides refuses the other's
    /// certificate.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Secured> {
        // Small records would wait for the acknowledgement of the one before. A stream without this
        // option is only slower.
        _ = stream.set_nodelay(true);

        let acceptor = TlsAcceptor::from(self.state().config.clone());
        let stream = acceptor.accept(stream).await.inspect_err(|error| {
            ::metrics::counter!(TLS_HANDSHAKE_FAILURES.name, "reason" => failure_reason(error))
                .increment(1);
        })?;

        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain.and_then(|chain| PeerCertificate::new(self.clone(), chain));
        Ok(Secured { stream, certificate })
    }

    /// Whether every client must show a certificate.
    pub(super) fn requires_certificate(&self) -> bool {
        self.0.files.clients.as_ref().is_some_and(|clients| clients.is_required)
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.0.state.read().clone()
    }

    /// Reads the files again. If one can't be used, the state stays as it is.
    fn reload(&self) -> Result<(), TlsError> {
        let generation = self.state().generation + 1;
        let state = State::read(&self.0.files, generation)?;
        *self.0.state.write() = Arc::new(state);
        Ok(())
    }

    fn report(&self, result: &Result<(), TlsError>) {
        let certificate = self.0.files.pair.certificate.display();
        match result {
            Ok(()) => {
                count_reload("listener", "applied");
                tracing::info!(%certificate, "applied the changed TLS files of the listener");
            }
            Err(error) => {
                count_reload("listener", "invalid");
                tracing::error!(
                    %certificate,
                    error = chain(error),
                    "could not use the TLS files of the listener; the previous certificate, \
                     authorities and revocation lists stay in force"
                );
            }
        }
    }
}

/// Counts a change of TLS files.
pub(super) fn count_reload(files: &'static str, outcome: &'static str) {
    ::metrics::counter!(TLS_RELOADS.name, "files" => files, "outcome" => outcome).increment(1);
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

impl TlsFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let PairFiles { certificate, key } = &self.pair;
        let clients = self
            .clients
            .iter()
            .flat_map(|clients| std::iter::once(&clients.authorities).chain(&clients.revoked));
        [certificate, key].into_iter().chain(clients).cloned().collect()
    }
}

impl State {
    fn read(files: &TlsFiles, generation: u64) -> Result<Self, TlsError> {
        let provider = provider();
        let pair = read_pair(&files.pair, &provider)?;
        let clients = files.clients.as_ref().map(read_clients).transpose()?;

        // TLS 1.2 and 1.3.
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?;
        let builder = match &clients {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        if clients.is_some() {
            // A resumed session is not verified again, so it could outlive its client's certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = Vec::from(PROTOCOLS.map(<[u8]>::to_vec));
        Ok(Self { config: Arc::new(config), clients, generation })
    }

    /// Returns whether the authorities and revocation lists accept a client certificate now.
    pub(super) fn accepts(&self, chain: &[CertificateDer<'static>]) -> bool {
        match (&self.clients, chain) {
            (Some(verifier), [leaf, intermediates @ ..]) => {
                verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
            }
            _ => false,
        }
    }
}

fn read_clients(files: &ClientFiles) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(read_authorities(&files.authorities)?);
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
    if let Some(revoked) = &files.revoked {
        let lists = read_revocation_lists(revoked)?;
        if !has_list_of_an_authority(&lists, &roots) {
            let (lists, authorities) = (revoked.clone(), files.authorities.clone());
            return Err(TlsError::ForeignLists { lists, authorities });
        }

        // A certificate whose authority has no list here is refused: nobody knows whether it is
        // revoked.
        builder = builder.with_crls(lists);
    }
    if !files.is_required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| TlsError::Clients { path: files.authorities.clone(), error })
}

/// Returns whether at least one list was issued by one of the authorities. Without one, every
/// certificate would be refused. Other lists may be those of intermediate authorities, which are in
/// the clients' chains and unknown here. A list that can't be read is left to the verifier's error.
fn has_list_of_an_authority(
    lists: &[CertificateRevocationListDer<'static>],
    roots: &RootCertStore,
) -> bool {
    lists.iter().any(|list| match BorrowedCertRevocationList::from_der(list) {
        Ok(list) => {
            let list = CertRevocationList::from(list);
            roots.roots.iter().any(|root| root.subject.as_ref() == list.issuer())
        }
        Err(_) => true,
    })
}

/// Why a handshake has failed, as a metric's label.
fn failure_reason(error: &io::Error) -> &'static str {
    use rustls::Error::{
        AlertReceived, InvalidCertRevocationList, InvalidCertificate, NoCertificatesPresented,
    };

    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match error {
        Some(InvalidCertificate(_) | InvalidCertRevocationList(_) | NoCertificatesPresented) => {
            "client-certificate"
        }
        Some(AlertReceived(_)) => "refused-by-client",
        Some(_) => "protocol",
        None => "connection",
    }
}
