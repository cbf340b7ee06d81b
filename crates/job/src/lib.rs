//! The contract of mcp-fleet: what producers write, what jobs leave behind, and how outcomes are read.
//!
//! Pure data and parsing. No IO, no async, no clock: time is passed in by the caller.

pub mod outcome;
