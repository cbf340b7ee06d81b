//! The tools of the server's own. One file per tool; one line per tool in its group's `toolkit`
//! function.

pub mod files;
pub mod jobs;
pub mod servers;
