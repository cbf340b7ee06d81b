//! Hosting other MCP servers: child processes and remote ones, with their tools under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration into something
//! that may be started, [`child`] and [`remote`] make the connections, and [`upstream`] speaks MCP over them.

mod breaker;
pub(crate) mod calls;
pub mod child;
mod enforce;
pub mod fleet;
mod hosted;
pub mod launch;
pub mod progress;
pub mod remote;
pub mod routes;
mod slots;
pub mod status;
pub mod stderr;
pub mod stdout;
mod tend;
pub mod upstream;

pub use fleet::Fleet;
