//! Tests of the client with well-behaved servers, and with servers and networks that misbehave.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod endpoints;
mod legacy;
mod network;
mod odd;
mod outcomes;
mod rmcp_server;
mod sessions;
mod support;
