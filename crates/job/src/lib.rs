//! The contract of mcp-fleet: what producers write, what jobs leave behind, and how the outcome of
//! a job is read.
//!
//! This crate is pure data and parsing: no IO, no async and no clock. Callers pass in the time.

pub mod approval;
pub mod bulk;
pub mod canonical;
pub mod control;
pub mod dead_letter;
pub mod decode;
pub mod delayed;
pub mod envelope;
pub mod event;
pub mod export;
pub mod filter;
pub mod glob;
pub mod mcp_servers;
pub mod meta;
pub mod number;
pub mod outcome;
pub mod pause;
pub mod record;
pub mod schema;
pub mod size;
pub mod state;
pub mod time;
pub mod tool_name;
pub mod topics;
pub mod trace;
pub mod view;
pub mod wire;
mod wrapping;
