//! The client against servers that behave, and against servers and networks that do not.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod endpoints;
mod legacy;
mod network;
mod odd;
mod outcomes;
mod rmcp_server;
mod sessions;
mod support;
