//! An MCP server that hosts other MCP servers.
//!
//! It speaks MCP over Streamable HTTP (`/mcp`), over plain JSON-RPC (`/message`) and on standard
//! input and output. It has a few tools of its own, and offers those of the servers it hosts, child
//! processes and remote ones, under one roof. What may be hosted is decided by [`fleet_policy`],
//! which by default allows nothing.

pub mod args;
pub mod check;
pub mod config;
mod conformance;

pub mod error;
pub mod gateway;
pub mod http;
pub mod long_running;
pub mod metrics;
mod policy_source;
pub mod provider;
mod reload;
mod repeat;
mod run;
pub mod toolkit;
pub mod tools;

pub use args::Args;
pub use config::ServerConfig;
pub use error::ServerError;
pub use run::{run, run_until, run_with};
