//! TLS: certificates of this process's listeners and connections, and whom they trust.
//!
//! All of it comes from files in PEM, which are read again when they change. Files that can't be
//! used are reported, and what was read before stays in force. [`Tls`] secures a listener and
//! verifies client certificates, [`FollowedClient`] is an HTTP client for servers with private
//! authorities, and [`StreamTls`] secures connections that another protocol has opened. Neither
//! keys nor certificates are ever logged, only the names of their files.
//!
//! The cryptography is always named: a process may link more than one implementation, and then
//! rustls has no default.

mod args;
mod blind;
mod client;
mod error;
mod listener;
mod peer;
mod pem;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use args::{ClientAuth, ServerTlsArgs, TlsArgs};
pub(crate) use blind::{blind_stream, wants_certificate};
pub use client::{ClientTls, ClientTlsFiles, FollowedClient};
pub use error::TlsError;
pub(crate) use listener::Secured;
pub use listener::{Tls, TlsFiles};
pub use peer::PeerCertificate;
pub use stream::{SecuredStream, ServerProof, StreamTls, StreamTlsFiles};

use std::path::PathBuf;

/// The files of a certificate and its private key, both in PEM. The certificates of intermediate
/// authorities follow their leaf in the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, which is not encrypted.
    pub key: PathBuf,
}

/// The files that say which client certificates a listener accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities of client certificates.
    pub authorities: PathBuf,
    /// Lists of revoked certificates: one of each authority, if there is such a file.
    pub revoked: Option<PathBuf>,
    /// Whether clients must have a certificate.
    pub is_required: bool,
}

#[cfg(test)]
mod tests;
