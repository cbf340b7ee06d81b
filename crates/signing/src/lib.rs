//! Signed jobs: who submitted a job, bound to what the job asks for.
//!
//! A queue is a confused deputy: a worker calls tools with rights of its own, whatever a job asks.
//! So the server that accepts a job signs who submitted it, the worker passes the signature on
//! without reading it, and the server that executes a call verifies it and decides again, with the
//! rules of that moment, as the submitter.
//!
//! Pure: no IO, no clock. The data's way:
//!
//! 1. Submission: [`SigningKeys::sign_job`] makes the text of the header [`HEADER`] from
//!    [`JobClaims`], which hold the digest of the record's value and the root of a Merkle tree over
//!    its calls ([`calls_of`]).
//! 2. The worker: [`JobProof`] of the record; [`JobProof::of_call`] goes into the `_meta` of each
//!    call, as [`fleet_job::meta::SIGNED_JOB`].
//! 3. Execution: [`SigningKeys::verify_call`] says as whom to decide.
//!
//! Requests to cancel and pauses are signed likewise, by [`SigningKeys::sign_control`] and
//! [`SigningKeys::sign_pause`], and verified by workers.
//!
//! A job that a rule wants to be approved first has the decision in a header of its own
//! ([`SigningKeys::sign_approval`], [`SigningKeys::approval_of`]), bound to the record, too.
//!
//! The form is a JSON Web Signature (RFC 7515, compact) with Ed25519 (`EdDSA`, RFC 8037). Each kind
//! has a `typ` of its own, so that none can be taken for another one or for an access token. A
//! signature does not expire, since a job may wait for days: rights are decided again instead.

mod approval;
mod calls;
mod claims;
mod control;
mod current;
mod fault;
mod jws;
mod keys;
mod merkle;
mod proof;

pub use approval::ApprovalClaims;
pub use calls::{CallContent, calls_of};
pub use claims::{JobClaims, OnBehalfOf, SignedPrincipal};
pub use current::CurrentKeys;
pub use fault::SignatureFault;
pub use keys::{SigningKeys, SigningKeysError, generate_key};
pub use proof::{JobProof, PassedJob, PresentedCall};

pub use fleet_job::record::SIGNATURE_HEADER as HEADER;

/// The most bytes that a signature may have. A principal's attributes are the claims of a token,
/// which a request header bounds to less.
pub const MAX_SIGNATURE_BYTES: usize = 64 * 1024;
