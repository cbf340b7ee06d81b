//! Hosts other MCP servers, children and remotes, and offers what they have under one roof.
//!
//! [`Fleet`] knows the servers by name and routes calls. Below it, [`launch`] turns a configuration
//! into something that may be started, `connect` establishes the connection over one of the
//! transports (`stdio`, `remote`, `sse_transport`), and [`upstream`] is the connection. What a
//! server offers is its `catalog`; [`routes`] combines the catalogs.

pub mod apps;
mod attempt;
mod breaker;
mod calls;
mod catalog;
pub mod changes;
mod child;
mod compacted;
mod connect;
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
mod held;
mod hosted;
mod inbound;
pub mod kept_items;
pub mod launch;
mod listed;
pub mod metrics;
mod multiline;
pub mod notices;
pub mod outage;
pub mod pins;
mod progress;
pub mod registry;
mod remote;
mod remote_headers;
mod remote_tokens;
pub mod routes;
pub mod secret_store;
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
