//! The thin shell on librdkafka: the only crate of the fleet that knows it.
//!
//! [`consumer`] runs the poll thread and turns its callbacks into events; [`producer`] writes and
//! waits for the acknowledgement; [`admin`] makes topics; [`reader`] reads topics without a group,
//! up to their end, and [`follow`] for as long as a process lives; [`settings`] holds what all of
//! them are configured from.

pub mod admin;
pub mod compression;
pub mod consumer;
mod convert;
pub mod error;
pub mod follow;
pub mod link;
mod moved;
pub mod producer;
pub mod reader;
pub mod settings;

pub use error::KafkaError;
