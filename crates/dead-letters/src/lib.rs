//! Dead letters as people see them: read, selected, counted, and planned for replay.
//!
//! Pure: no IO, no clock. `mcp-fleet dlq` and the server's REST interface read the topics and carry
//! the plans out.

pub mod bytes;
mod details;
mod filter;
mod histogram;
mod letter;
mod marker;
mod plan;
pub mod shown;
pub mod text;

pub use details::{Details, Origin};
pub use filter::Filter;
pub use histogram::{Bucket, Histogram, MAX_BUCKETS, OTHERS, Slot};
pub use letter::{FOREIGN, Letter, Summary};
pub use marker::{Marker, Replayed, marker_topic};
pub use plan::{Plan, Planner, Verdict, decide_verdict};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
