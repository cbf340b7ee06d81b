//! An MCP server that hosts other MCP servers.
//!
//! It speaks MCP over Streamable HTTP (`/mcp`), over plain JSON-RPC (`/message`) and on standard
//! input and output. It has a few tools of its own and also offers the tools of the servers it
//! hosts, which are child processes or remote servers. [`fleet_policy`] decides what may be hosted;
//! by default, nothing may.

pub mod access;
pub mod args;
pub mod audit;
pub mod check;
pub mod config;
mod conformance;
pub mod console;

pub mod error;
pub mod gateway;
pub mod http;
pub mod long_running;
pub mod metrics;
mod policy_source;
pub mod provider;
mod reload;
mod repeat;
mod rest;
mod run;
mod static_servers;
mod stdio;
pub mod toolkit;
pub mod tools;

pub use args::Args;
pub use config::ServerConfig;
pub use error::ServerError;
pub use run::{run, run_until, run_with};
