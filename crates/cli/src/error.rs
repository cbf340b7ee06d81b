//! The errors of commands, for people.

use std::path::PathBuf;

use fleet_kafka::KafkaError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("could not use the keys file")]
    Keys(#[from] fleet_access::KeysFileError),
    #[error(transparent)]
    Cluster(#[from] crate::keys::ClusterError),
    #[error(transparent)]
    Secret(#[from] fleet_ops::config::SecretFileError),
    #[error("invalid configuration")]
    Config(#[from] fleet_ops::config::ConfigError),
    #[cfg(feature = "fleet")]
    #[error(
        "cannot find the embedded broker, the program mcp-fleet-broker, in {} or on PATH; build it \
         with `cargo build -p mcp-fleet-broker`, or copy it to that directory [{code}]",
        directory.display(),
        code = fleet_codes::BROKER_MISSING
    )]
    NoBroker { directory: PathBuf },
    #[cfg(feature = "fleet")]
    #[error(
        "another `mcp-fleet dev` uses {}; stop it, or choose another --data-dir",
        directory.display()
    )]
    FleetRuns { directory: PathBuf },
    #[cfg(feature = "fleet")]
    #[error("the embedded broker {how}; the end of its log:\n{log}")]
    BrokerDied { how: String, log: String },
    #[cfg(feature = "fleet")]
    #[error(transparent)]
    Worker(#[from] kafka_worker::WorkerError),
    #[cfg(feature = "fleet")]
    #[error(transparent)]
    Server(#[from] mcp_server::ServerError),
    #[error("{what} `{path}`")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Io(&'static str, #[source] std::io::Error),
    #[error(transparent)]
    Lines(#[from] crate::bad_lines::BadLines),
    #[error("invalid server")]
    Client(#[from] fleet_mcp_client::ConfigError),
    #[error("invalid server ({hint})")]
    ServerUrl {
        hint: &'static str,
        #[source]
        source: fleet_mcp_client::ConfigError,
    },
    #[error(transparent)]
    Call(#[from] crate::mcp::CallError),
    #[error(transparent)]
    UnknownTool(#[from] crate::tools::UnknownTool),
    #[cfg(feature = "fleet")]
    #[error("no policy can allow the servers")]
    LocalPolicy(#[from] crate::stack_policy::LocalPolicyError),
    #[error(transparent)]
    Source(#[from] crate::servers::SourceError),
    #[error(transparent)]
    UnknownTools(#[from] crate::submit::UnknownTools),
    #[error(transparent)]
    Arguments(#[from] crate::tools::ArgumentError),
    #[error(transparent)]
    Api(#[from] crate::api_error::ApiError),
    #[error(transparent)]
    Lost(#[from] fleet_ops::blocking::WorkLost),
    #[error("{0}")]
    Usage(String),
    #[cfg(feature = "fleet")]
    #[error("{name} exited before it was ready; the end of its log:\n{log}")]
    EarlyEnd { name: String, log: String },
    #[cfg(feature = "fleet")]
    #[error("{name} was not ready within {seconds} s; the end of its log:\n{log}")]
    Slow { name: String, seconds: u64, log: String },
}
