//! TLS of connections that another protocol opens: a database that is asked for TLS on a plain
//! connection, for example.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::SingleCertAndKey,
};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    PairFiles, TlsError,
    pem::{provider, read_authorities, read_pair},
};

/// What a server's certificate has to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProof {
    /// Nothing: the connection is encrypted, but whoever answers may have the key.
    Nothing,
    /// That a trusted authority has issued it, for whatever name.
    Authority,
    /// That a trusted authority has issued it for the name that is connected to.
    Name,
}

/// Whom connections trust, and the certificate that they present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTlsFiles {
    /// What the server's certificate has to prove.
    pub proof: ServerProof,
    /// The authorities of the server's certificate, in place of the system's.
    pub authorities: Option<PathBuf>,
    /// The client's own certificate and key.
    pub pair: Option<PairFiles>,
}

/// Performs the handshake on connections that are open already.
#[derive(Clone)]
pub struct StreamTls(TlsConnector);

/// A connection whose handshake has succeeded.
pub type SecuredStream<S> = tokio_rustls::client::TlsStream<S>;

impl std::fmt::Debug for StreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StreamTls").finish_non_exhaustive()
    }
}

impl StreamTlsFiles {
    /// Reads the files. Blocks the thread for as long as that takes.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file if one can't be used.
    pub fn read(&self) -> Result<StreamTls, TlsError> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(&provider)?);

        let config = match &self.pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let certified = SingleCertAndKey::from(read_pair(pair, &provider)?);
                builder.with_client_cert_resolver(Arc::new(certified))
            }
        };
        Ok(StreamTls(TlsConnector::from(Arc::new(config))))
    }

    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        if self.proof == ServerProof::Nothing {
            return Ok(Arc::new(Lenient { inner: None, provider: provider.clone() }));
        }

        let full: Arc<dyn ServerCertVerifier> = match &self.authorities {
            Some(path) => by_authorities(read_authorities(path)?, provider)?,
            None => Arc::new(Verifier::new(provider.clone()).map_err(TlsError::Setup)?),
        };
        Ok(match self.proof {
            ServerProof::Name => full,
            _ => Arc::new(Lenient { inner: Some(full), provider: provider.clone() }),
        })
    }
}

fn by_authorities(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    built.build().map_err(|error| TlsError::Setup(Error::General(error.to_string())))
}

impl StreamTls {
    /// Performs the handshake with the server of this name or address.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is none, or one of the two sides refuses the other's
    /// certificate.
    pub async fn connect<S>(&self, name: &str, stream: S) -> io::Result<SecuredStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}

/// Accepts certificates for any name, and without an inner verifier those of anybody.
#[derive(Debug)]
struct Lenient {
    inner: Option<Arc<dyn ServerCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };

        // The name is compared last, so this error says that everything else is in order.
        match inner.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::tls::testing::Authority;

    /// Connects to a server with a certificate of `issuer` for `localhost`, under `name`.
    async fn connects(issuer: &Authority, name: &str, files: StreamTlsFiles) -> bool {
        let pair = issuer.issue("server", "DNS:localhost");
        let certified = read_pair(&pair, &provider()).unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));

        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move { acceptor.accept(theirs).await.map(drop) });
        files.read().unwrap().connect(name, ours).await.is_ok()
    }

    #[tokio::test]
    async fn a_certificate_proves_what_is_asked_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let ours = Authority::new(directory.path(), "ours");
        let foreign = Authority::new(directory.path(), "foreign");

        for (proof, by_name, by_other_name, by_foreign) in [
            (ServerProof::Nothing, true, true, true),
            (ServerProof::Authority, true, true, false),
            (ServerProof::Name, true, false, false),
        ] {
            let files =
                || StreamTlsFiles { proof, authorities: Some(ours.certificate()), pair: None };
            assert_eq!(connects(&ours, "localhost", files()).await, by_name, "{proof:?}");
            assert_eq!(connects(&ours, "db.example", files()).await, by_other_name, "{proof:?}");
            assert_eq!(connects(&foreign, "localhost", files()).await, by_foreign, "{proof:?}");
        }
    }
}
