//! Credentials of principals for hosted servers, and how they are kept: sealed with AES-256-GCM under
//! a key of the operator's, each for one principal and one server.
//!
//! This crate performs no IO, reads no clock and draws no randomness. What it makes is bytes for a
//! store that several replicas may share and that need not be trusted with secrets:
//!
//! - [`KeyRing`] seals and opens values. A value opens in the [`Slot`] for which it was sealed and in
//!   no other, so whoever can write to the store can remove a credential, or bring an earlier one
//!   back, but can't give it to somebody else.
//! - [`Credential`] is what an authorization server has issued to a principal, and decides what to do
//!   next: use the access token, refresh it, or ask the principal again.
//! - [`Authorization`] is a flow with a code and PKCE that has begun. It is sealed as well, in the
//!   slot of the principal that began it, so that any replica can finish it, once.
//! - [`requests`] has the URLs and forms that are sent.

mod authorization;
mod credential;
mod keys;
pub mod requests;
mod slot;

pub use authorization::{Authorization, AuthorizationError, Begun, Exchange, LIFETIME};
pub use credential::{BadResponse, Credential, Next, Registration};
pub use keys::{KeyRing, KeyRingError, OpenError, Opened, SealError};
pub use slot::{Purpose, Slot};
