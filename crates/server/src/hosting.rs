//! Hosting other MCP servers: child processes and remote ones, with their tools under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration into something
//! that may be started, [`child`], [`remote`] and [`sse`] make the connections, and [`upstream`] speaks MCP over them.

pub mod child;
pub mod fleet;
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
