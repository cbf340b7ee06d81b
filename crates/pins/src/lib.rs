//! Pins of hosted servers' tools: what a tool said of itself when somebody last looked, so that a
//! server can't change it unnoticed.
//!
//! A language model obeys the descriptions of its tools, so a server that changes one after it was
//! looked at can make agents do what nobody has agreed to. A pin is the digest of a tool's
//! definition ([`Definition`]). The first definitions that a server is seen with are pinned as they
//! are; what differs later is judged by [`judge`], shown by [`diff`](diff::find_changes), and
//! decided on by [`ServerPins::decide`], for the digest that was seen.
//!
//! Pure: the caller reads and writes the records, and says what time it is.

mod definition;
pub mod diff;
mod judgement;
mod record;

pub use definition::{COVERED, Definition, Digest, NoDigest};
pub use judgement::{Judgement, PinMode, Sight, Standing, judge};
pub use record::{
    DecideError, MAX_BYTES, PinDecision, PinRecordError, ServerPins, ToolPin, schema,
};
