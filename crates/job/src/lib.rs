//! The contract of mcp-fleet: what producers write, what jobs leave behind, and how outcomes are
//! read.
//!
//! Pure data and parsing. No IO, no async, no clock: time is passed in by the caller.

pub mod control;
pub mod dead_letter;
pub mod decode;
pub mod delayed;
pub mod envelope;
pub mod event;
pub mod filter;
pub mod glob;
pub mod mcp_servers;
pub mod meta;
pub mod number;
pub mod outcome;
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
