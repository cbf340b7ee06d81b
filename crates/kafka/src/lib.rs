//! The thin shell on librdkafka, and the only crate that uses it directly besides `fleet-topic-id`.
//!
//! - [`consumer`]: reads as a member of a consumer group, for the workers.
//! - [`reader`]: reads a topic without a group, up to its end.
//! - [`follow`]: follows topics without a group for as long as a process lives.
//! - [`producer`]: writes records and reports their acknowledgement.
//! - [`admin`]: creates, describes and trims topics.
//! - [`settings`]: what all of these clients are configured from.

pub mod admin;
pub mod compression;
pub mod consumer;
mod convert;
pub mod error;
pub mod follow;
pub mod link;
pub mod producer;
mod quiet_context;
pub mod reader;
mod retry_while_moving;
pub mod settings;

pub use error::KafkaError;
