//! Hosting other MCP servers: child processes and remote ones, with what they offer under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration into something
//! that may be started, [`child`], [`remote`] and [`sse`] make the connections, and [`upstream`] speaks MCP over them. What
//! a server offers is its [`catalog`]; [`routes`] puts the catalogs together.

pub mod apps;
pub mod attempt;
pub mod away;
mod breaker;
pub mod calls;
pub mod catalog;
pub mod changes;
pub mod child;
pub mod content_results;
mod enforce;
pub mod errors;
pub mod extensions;
pub mod fleet;
pub mod follow;
pub mod forward;
mod handshake;
pub mod handshake_error;
mod hosted;
pub mod inbound;
pub mod kept_items;
pub mod launch;
pub mod listed;
pub mod metrics;
pub mod notices;
pub mod progress;
pub mod registry;
pub mod remote;
pub mod routes;
pub mod secrets;
mod slots;
pub mod sse;
pub mod status;
pub mod stderr;
mod stdio;
pub mod stdout;
mod tend;
pub mod tool_results;
pub mod unreadable;
pub mod upstream;

pub use fleet::Fleet;
