//! Why TLS can't be set up.

use std::{io, path::PathBuf};

use fleet_codes as codes;
use rustls::server::VerifierBuilderError;

use crate::watched::Outcome;

/// Why the files or settings of TLS can't be used. Names files, and never shows what is in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("could not read {} [{code}]", path.display(), code = codes::TLS_FILES)]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        error: io::Error,
    },
    /// A file has nothing of the expected kind.
    #[error(
        "{} has no {what} in PEM, or one that is damaged; expected {expected} [{code}]",
        path.display(),
        code = codes::TLS_FILES
    )]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
        /// How it begins in a file that has it.
        expected: &'static str,
    },
    /// A certificate and a key don't belong together, or can't be used.
    #[error(
        "the private key {} can't be used with the certificate {} [{code}]",
        key.display(),
        certificate.display(),
        code = codes::TLS_FILES
    )]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        #[source]
        error: rustls::Error,
    },
    /// A certificate can't be that of an authority.
    #[error(
        "a certificate in {} can't be that of an authority [{code}]",
        path.display(),
        code = codes::TLS_FILES
    )]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: rustls::Error,
    },
    /// The authorities and revocation lists of client certificates can't be used.
    #[error(
        "could not use the client authorities in {} with their revocation lists [{code}]",
        path.display(),
        code = codes::TLS_FILES
    )]
    Clients {
        /// The file of the authorities.
        path: PathBuf,
        /// What is wrong with them.
        #[source]
        error: VerifierBuilderError,
    },
    /// No revocation list is of one of the authorities, so every client would be refused.
    #[error(
        "none of the revocation lists in {} was issued by an authority in {}; add the list of each \
         authority [{code}]",
        lists.display(),
        authorities.display(),
        code = codes::TLS_FILES
    )]
    ForeignLists {
        /// The file of the lists.
        lists: PathBuf,
        /// The file of the authorities.
        authorities: PathBuf,
    },
    /// A setting has no effect without another.
    #[error(
        "{setting} has no effect without {needed}; set both or neither [{code}]",
        code = codes::SETTING
    )]
    Incomplete {
        /// The setting that is there.
        setting: &'static str,
        /// The setting that is missing.
        needed: &'static str,
    },
    /// rustls refuses the configuration.
    #[error("could not set up TLS [{code}]", code = codes::TLS_FILES)]
    Setup(#[source] rustls::Error),
    /// The HTTP client can't be created.
    #[error("could not create the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl TlsError {
    /// What following the files makes of this error.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Read { .. } => Outcome::Unread,
            _ => Outcome::Invalid,
        }
    }
}
