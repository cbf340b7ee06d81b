//! Hosting other MCP servers: child processes and remote ones, with what they offer under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration into something
//! that may be started, [`child`], [`remote`] and [`sse`] make the connections, and [`upstream`] speaks MCP over them. What
//! a server offers is its [`catalog`]; [`routes`] puts the catalogs together.

pub(crate) mod apps;
pub(crate) mod attempt;
pub(crate) mod away;
mod breaker;
pub(crate) mod calls;
pub mod catalog;
pub mod changes;
pub mod child;
mod enforce;
pub mod errors;
pub(crate) mod extensions;
pub mod fleet;
pub(crate) mod follow;
mod handshake;
pub(crate) mod handshake_error;
mod hosted;
pub(crate) mod inbound;
pub mod launch;
pub mod listed;
pub mod notices;
pub mod progress;
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
pub(crate) mod unreadable;
pub mod upstream;

pub use fleet::Fleet;
