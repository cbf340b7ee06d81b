//! Reads certificates, keys and revocation lists from files in PEM.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::{PairFiles, TlsError};

/// The cryptography of everything that this process secures itself.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
}

/// Reads a certificate with its private key, and checks that they belong together.
pub(super) fn read_pair(
    files: &PairFiles,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(&files.certificate)?;

    // The parser's error could repeat a line of the key.
    let key =
        PrivateKeyDer::from_pem_slice(&read_file(&files.key)?).map_err(|_| TlsError::Pem {
            path: files.key.clone(),
            what: "unencrypted private key",
            expected: "`-----BEGIN PRIVATE KEY-----`",
        })?;

    CertifiedKey::from_der(chain, key, provider).map_err(|error| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        error,
    })
}

/// Reads one or more certificates.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read_file(path)?;
    let found: Option<Vec<_>> =
        CertificateDer::pem_slice_iter(&text).map(|certificate| certificate.ok()).collect();
    found.filter(|found| !found.is_empty()).ok_or_else(|| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        expected: "`-----BEGIN CERTIFICATE-----`",
    })
}

/// Reads the certificates of authorities.
pub(super) fn read_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Authority { path: path.to_owned(), error })?;
    }
    Ok(roots)
}

/// Reads one or more revocation lists. A file without any is an error: it would accept everything.
pub(super) fn read_revocation_lists(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let text = read_file(path)?;
    let found: Option<Vec<_>> =
        CertificateRevocationListDer::pem_slice_iter(&text).map(|list| list.ok()).collect();
    found.filter(|found| !found.is_empty()).ok_or_else(|| TlsError::Pem {
        path: path.to_owned(),
        what: "revocation list",
        expected: "`-----BEGIN X509 CRL-----`",
    })
}
