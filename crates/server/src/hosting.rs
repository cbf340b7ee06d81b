//! Hosting other MCP servers: child processes and remote ones, with what they offer under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration into something
//! that may be started, [`child`], [`remote`] and [`sse`] make the connections, and [`upstream`] speaks MCP over them. What
//! a server offers is its [`catalog`]; [`routes`] puts the catalogs together.

pub mod catalog;
pub mod changes;
pub mod child;
pub mod fleet;
pub(crate) mod follow;
mod hosted;
pub mod launch;
pub mod progress;
pub mod remote;
pub mod routes;
pub mod sse;
pub mod status;
pub mod stderr;
pub mod stdout;
pub mod upstream;

pub use fleet::Fleet;
