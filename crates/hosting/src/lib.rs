//! Hosting other MCP servers: child processes and remote ones, with what they offer under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration
//! into something that may be started, `child`, `remote` and `sse` make the connections, and
//! [`upstream`] speaks MCP over them. What a server offers is its `catalog`; [`routes`] puts the
//! catalogs together.

pub mod apps;
mod attempt;
mod breaker;
mod calls;
mod catalog;
pub mod changes;
mod child;
mod content_results;
mod enforce;
mod errors;
pub mod extensions;
pub mod fleet;
pub mod follow;
mod forgiven;
pub mod forward;
mod handshake;
mod handshake_error;
mod hosted;
mod inbound;
pub mod kept_items;
pub mod launch;
mod listed;
pub mod metrics;
mod multiline;
pub mod notices;
pub mod outage;
mod progress;
pub mod registry;
mod remote;
pub mod routes;
mod secrets;
mod slots;
mod sse_transport;
pub mod status;
mod stderr;
mod stdio;
mod stdout;
mod supervise;
mod tool_results;
mod unreadable;
pub mod upstream;

pub use fleet::Fleet;
