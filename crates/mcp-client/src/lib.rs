//! Calls the tools of MCP servers over HTTP, and says of every call what it came to.
//!
//! The worker needs more than an answer or an error: it must know whether the server may have seen
//! the request, whose fault a failure is, and what follows from it. So [`McpClient::call_tool`]
//! returns no `Result` but an [`Outcome`](fleet_job::outcome::Outcome), read by the table in the
//! design. Both eras of the protocol are spoken: 2026-07-28 (stateless, one POST per request) and
//! the ones before it (handshake and sessions).
//!
//! | module | what |
//! |---|---|
//! | `client` | endpoints in turn, deadlines, what may be sent again |
//! | `endpoint` | which era an endpoint speaks, its session |
//! | `transport` | one POST and its answer, with every limit |
//! | `classify` | the outcome table, pure |
//! | `balance`, `wire`, `sse`, `params` | balancing, message shapes, event streams, argument headers; pure |

mod balance;
mod body;
mod classify;
mod client;
mod config;
mod endpoint;
mod params;
mod transport;
mod wire;

pub use client::{McpClient, ToolCall};
pub use config::{ClientConfig, ConfigError, Era, Secret};
pub use wire::{Input, News, Progress};
