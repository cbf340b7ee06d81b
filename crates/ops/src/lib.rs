//! The parts that all binaries of the fleet share: configuration, logs, metrics, health endpoints,
//! TLS and graceful shutdown.
//!
//! Nothing here knows jobs, Kafka or MCP. A binary's `main` reads its settings with [`config`],
//! calls [`telemetry::init`] and [`metrics::install`], serves [`http::router`], and runs until
//! [`shutdown::signal_token`] is cancelled.

pub mod blocking;
pub mod clock;
pub mod config;
pub mod errors;
pub mod hex;
pub mod http;
pub mod inspection;
pub mod invariant;
pub mod metrics;
pub mod parent;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod watched;
