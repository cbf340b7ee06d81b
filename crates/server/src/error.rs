//! Errors that keep the server from starting or end it.

use std::{net::IpAddr, path::PathBuf};

use fleet_access::{AccessPolicyError, KeysFileError};
use fleet_audit::AuditError;
use fleet_codes as codes;
use fleet_hosting::registry::RegistryError;
use fleet_jobs::JobsError;
use fleet_kafka::KafkaError;
use fleet_ledger::StoreConfigError;
use fleet_ops::{
    config::{ConfigError, SecretFileError},
    tls::TlsError,
};
use fleet_policy::PolicyError;
use fleet_signing::SigningKeysError;

use crate::{static_servers::ServersFileError, tools::files::RootError};

/// Why the server can't start or must stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The policy can't be read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy file's tables about access can't be used.
    #[error(transparent)]
    AccessPolicy(#[from] AccessPolicyError),
    /// A file about access can't be read.
    #[error("could not read {} [{code}]", path.display(), code = codes::KEYS_FILE)]
    AccessFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: std::io::Error,
    },
    /// The keys file can't be used.
    #[error("could not use {}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: KeysFileError,
    },
    /// The pepper file holds something else.
    #[error(
        "{} is not a pepper; expected 64 hexadecimal digits, as `mcp-fleet keys create` writes them \
         [{code}]",
        path.display(),
        code = codes::KEYS_FILE
    )]
    Pepper {
        /// The file.
        path: PathBuf,
    },
    /// A file of signing keys can't be used.
    #[error("could not use {}", path.display())]
    SigningKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: SigningKeysError,
    },
    /// The file of signing keys has public keys only.
    #[error(
        "{} has no private key, so nothing could be signed; put public keys into the file of \
         --signing-public-keys (MCP_SIGNING_PUBLIC_KEYS_FILE) [{code}]",
        path.display(),
        code = codes::SIGNING_KEYS
    )]
    NoSigningKey {
        /// The file.
        path: PathBuf,
    },
    /// Jobs are accepted, and can't be signed although signatures are verified.
    #[error(
        "--signing-public-keys (MCP_SIGNING_PUBLIC_KEYS_FILE) is set without --signing-key \
         (MCP_SIGNING_KEY_FILE), so jobs that this server accepts would not be signed; set both, or \
         neither, or --jobs=false [{code}]",
        code = codes::SIGNING_KEYS
    )]
    UnsignedSubmissions,
    /// Nothing tells callers apart.
    #[error(
        "mcp-server has neither API keys nor issuers of tokens nor certificates of clients, so it \
         can't tell apart who reaches it at {host}. Make a key with `mcp-fleet keys create` and pass \
         its file with --access-keys (MCP_ACCESS_KEYS_FILE), add an [[issuer]] to the policy file, \
         add a [[certificate]] and set --tls-client-ca (MCP_TLS_CLIENT_CA_FILE), or set \
         MCP_ACCESS=open to serve everybody; docs/access.md shows how [{code}]",
        code = codes::NO_AUTHENTICATOR
    )]
    NoAuthenticator {
        /// The address to listen on.
        host: IpAddr,
    },
    /// The mode for one machine, where others reach the server.
    #[error(
        "MCP_ACCESS=local serves every program on this machine without credentials, so it is for \
         loopback and not for {host}; listen on 127.0.0.1, or set MCP_ACCESS=required to serve \
         callers with keys or tokens only [{code}]",
        code = codes::NO_AUTHENTICATOR
    )]
    LocalBeyondLoopback {
        /// The address to listen on.
        host: IpAddr,
    },
    /// There is no place for audit records.
    #[error(
        "--audit (MCP_AUDIT) asks for an audit log, but there is no place for one; name a file with \
         --audit-file (MCP_AUDIT_FILE), or brokers with --kafka-brokers (KAFKA_BROKERS) [{code}]",
        code = codes::SETTING
    )]
    AuditNowhere,
    /// The audit log can't be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A root of the `file_*` tools is unusable.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The file of the servers to host can't be used.
    #[error(transparent)]
    Servers(#[from] ServersFileError),
    /// An entry of `--allowed-origins` is not an origin.
    #[error(
        "--allowed-origins: {0:?} is not an origin; expected something like https://app.example.com [{code}]",
        code = codes::SETTING
    )]
    Origin(String),
    /// The public URL is unsuitable for documents.
    #[error(
        "--public-url (MCP_PUBLIC_URL) must be an http or https URL without credentials, query or fragment, such as \
         https://mcp.example.com [{code}]",
        code = codes::SETTING
    )]
    PublicUrl,
    /// A directory of `--allow-dir` is unusable.
    #[error("cannot use --allow-dir {} [{code}]", path.display(), code = codes::SETTING)]
    Dir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: std::io::Error,
    },
    /// Tasks would outlive their jobs' entries in the ledger.
    #[error(
        "MCP_TASK_TTL must not exceed MCP_LEDGER_MAX_AGE, after which the ledger forgets a task [{code}]",
        code = codes::SETTING
    )]
    TaskTtl,
    /// The setting does not say where the ledger is.
    #[error("--ledger (MCP_LEDGER) can't be used [{code}]", code = codes::SETTING)]
    Ledger(#[from] StoreConfigError),
    /// The file that says where the ledger is can't be read.
    #[error("--ledger-file (MCP_LEDGER_FILE) can't be used [{code}]", code = codes::SETTING)]
    LedgerFile(#[from] SecretFileError),
    /// The name of the jobs topic is invalid.
    #[error(
        "KAFKA_TOPIC: `{0}` is not a valid Kafka topic name [{code}]",
        code = codes::SETTING
    )]
    JobsTopic(String),
    /// The job service could not start.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// The server registry can't be followed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A Kafka setting is invalid.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// An environment variable is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file of the owner key can't be used.
    #[error("MCP_OWNER_KEY_FILE (--owner-key-file) cannot be used [{code}]", code = codes::SETTING)]
    OwnerKey(#[source] SecretFileError),
    /// The file of the console's secret can't be read.
    #[error("MCP_CONSOLE_KEY_FILE (--console-key-file) cannot be used [{code}]", code = codes::SETTING)]
    ConsoleKey(#[source] SecretFileError),
    /// The console's secret could be guessed.
    #[error(
        "the secret in MCP_CONSOLE_KEY_FILE (--console-key-file) is too short; expected at least \
         {min} characters, such as those of `openssl rand -hex 32` [{code}]",
        code = codes::SETTING
    )]
    ConsoleKeyShort {
        /// The least number of characters.
        min: usize,
    },
    /// The system has no random numbers for the console's secret.
    #[error("could not make a secret for the sessions of the console")]
    ConsoleRandom,
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server can't listen on its address.
    #[error("{0}; choose another port with --port or PORT [{code}]", code = codes::LISTEN)]
    Listen(std::io::Error),
    /// The ready file can't be written.
    #[error("could not write the ready file {}", path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        error: std::io::Error,
    },
    /// The operating system refuses signal handlers.
    #[error("could not install the signal handlers")]
    Signals(#[source] std::io::Error),
    /// The HTTP listener failed.
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    /// The MCP session on standard input and output failed.
    #[error("the MCP session on standard input and output failed: {0}")]
    Stdio(String),
}
