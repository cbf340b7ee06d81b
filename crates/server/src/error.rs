//! What can go wrong with the server as a whole.

use std::path::PathBuf;

use fleet_codes as codes;
use fleet_hosting::registry::RegistryError;
use fleet_jobs::JobsError;
use fleet_kafka::KafkaError;
use fleet_ops::config::ConfigError;
use fleet_policy::PolicyError;

use crate::tools::files::RootError;

/// Why the server can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The policy can't be read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A files root can't be one.
    #[error(transparent)]
    Root(#[from] RootError),
    /// An entry of a list of origins is none.
    #[error(
        "--allowed-origins: {0:?} is no origin such as https://app.example.com [{code}]",
        code = codes::SETTING
    )]
    Origin(String),
    /// The public URL is not one that documents could name.
    #[error(
        "--public-url (MCP_PUBLIC_URL) must be an http or https URL without credentials, query and fragment, such as \
         https://mcp.example.com [{code}]",
        code = codes::SETTING
    )]
    PublicUrl,
    /// A directory of `--allow-dir` can't be used.
    #[error("--allow-dir {} [{code}]", path.display(), code = codes::SETTING)]
    Dir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
    /// A task would outlive what is known of it.
    #[error(
        "MCP_TASK_TTL must not be longer than MCP_LEDGER_MAX_AGE: the ledger forgets a task after that [{code}]",
        code = codes::SETTING
    )]
    TaskTtl,
    /// The jobs topic can't be one.
    #[error(
        "KAFKA_TOPIC: `{0}` is not a topic name that Kafka allows [{code}]",
        code = codes::SETTING
    )]
    JobsTopic(String),
    /// The jobs can't be followed.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// The registry can't be followed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A setting of Kafka is not acceptable.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A variable of the environment is not acceptable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address can't be listened on.
    #[error("{0}; choose another port with --port or PORT [{code}]", code = codes::LISTEN)]
    Listen(std::io::Error),
    /// The ready file can't be written.
    #[error("ready file {}", path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
    /// The operating system refuses signal handlers.
    #[error("signal handlers")]
    Signals(#[source] std::io::Error),
    /// The HTTP listener failed.
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    /// The MCP session on standard input and output could not be set up.
    #[error("MCP on standard input and output: {0}")]
    Stdio(String),
}
