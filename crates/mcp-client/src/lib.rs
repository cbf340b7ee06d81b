//! A client that calls the tools of MCP servers over HTTP and classifies the outcome of every call.
//!
//! The worker needs more than an answer or an error: it must know whether the server may have seen
//! the request, whose fault a failure is, and what follows from it. So [`McpClient::call_tool`]
//! returns an [`Outcome`](fleet_job::outcome::Outcome) instead of a `Result`. Both eras of the
//! protocol are supported: revision 2026-07-28 (stateless, one POST per request) and the earlier
//! ones (handshake and sessions).
//!
//! | module | content |
//! |---|---|
//! | `client` | choosing endpoints, deadlines, what may be sent again; the argument headers of tools |
//! | `endpoint` | the era and session of an endpoint, and requests in that era |
//! | `transport` | one POST and its answer, with all limits |
//! | `classify` | the table of outcomes; pure |
//! | `balance`, `wire`, `params` | load balancing, messages, argument headers; pure |

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
pub use config::{ClientConfig, ConfigError, Era, OAuthClient, Secret};
pub use fleet_oauth as oauth;
pub use wire::{Input, News, Progress};
