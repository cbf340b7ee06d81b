//! The certificate of a connection's client.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::Tls;

/// How long a verification counts, unless the authorities or revocation lists change before.
/// Certificates expire.
const VERIFIED_FOR: Duration = Duration::from_secs(10);

/// A certificate whose key the client of a connection has proved to hold: an extension of its
/// requests. Clones share one state.
///
/// The handshake has verified it against the authorities of that time. A connection can last for
/// days, so ask [`is_accepted`](Self::is_accepted) before the names mean anything.
#[derive(Clone)]
pub struct PeerCertificate(Arc<Peer>);

struct Peer {
    tls: Tls,
    /// The client's certificate, followed by those of intermediate authorities.
    chain: Vec<CertificateDer<'static>>,
    uris: Vec<String>,
    dns_names: Vec<String>,
    verdict: Mutex<Option<Verdict>>,
}

/// The result of a verification.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    is_accepted: bool,
    at: Instant,
    generation: u64,
}

impl PeerCertificate {
    /// The certificate of a client; `None` if it can't be read.
    pub(super) fn new(tls: Tls, chain: &[CertificateDer<'static>]) -> Option<Self> {
        let leaf = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
        let uris = leaf.valid_uri_names().map(str::to_owned).collect();
        let dns_names = leaf.valid_dns_names().map(str::to_owned).collect();

        // Nobody has asked yet whether the certificate is accepted.
        let verdict = Mutex::new(None);
        Some(Self(Arc::new(Peer { tls, chain: chain.to_vec(), uris, dns_names, verdict })))
    }

    /// The URIs among its alternative names, such as a SPIFFE id.
    pub fn uris(&self) -> &[String] {
        &self.0.uris
    }

    /// The DNS names among its alternative names.
    pub fn dns_names(&self) -> &[String] {
        &self.0.dns_names
    }

    /// Returns whether the certificate has not expired, and the authorities and revocation lists
    /// that are in force now accept it. A certificate that has just expired may be accepted for ten
    /// seconds more.
    pub fn is_accepted(&self) -> bool {
        let (state, now) = (self.0.tls.state(), Instant::now());
        let mut verdict = self.0.verdict.lock();
        if let Some(verdict) = *verdict
            && verdict.generation == state.generation
            && now.duration_since(verdict.at) < VERIFIED_FOR
        {
            return verdict.is_accepted;
        }

        let is_accepted = state.accepts(&self.0.chain);
        *verdict = Some(Verdict { is_accepted, at: now, generation: state.generation });
        is_accepted
    }
}

impl PeerCertificate {
    /// Returns whether the listener requires an accepted certificate, and this one no longer is.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.tls.requires_certificate() && !self.is_accepted()
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate")
            .field("uris", &self.0.uris)
            .field("dns_names", &self.0.dns_names)
            .finish()
    }
}
