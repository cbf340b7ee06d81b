//! The server's own tools: one file per tool, and one line per tool in its group's `toolkit`
//! function.

pub mod files;
pub mod jobs;
pub mod servers;
