//! The members of consumer groups.

use std::time::Duration;

use rdkafka::consumer::Consumer as _;

use super::metadata_client;
use crate::{error::KafkaError, settings::Settings};

/// A consumer group as its coordinator sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMembers {
    /// The state in Kafka's words, such as `Stable`; empty if there is no such group.
    pub state: String,
    /// The client id of each member.
    pub clients: Vec<String>,
}

/// Fetches the members of `group`. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::Client`] or [`KafkaError::Unreachable`].
pub fn group_members(
    settings: &Settings,
    group: &str,
    timeout: Duration,
) -> Result<GroupMembers, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    let groups = client
        .fetch_group_list(Some(group), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;

    let found = groups.groups().iter().find(|found| found.name() == group);
    Ok(found.map_or_else(GroupMembers::default, |found| GroupMembers {
        state: found.state().to_owned(),
        clients: found.members().iter().map(|member| member.client_id().to_owned()).collect(),
    }))
}

/// Returns whether `group` has members. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// As [`group_members`].
pub fn has_members(
    settings: &Settings,
    group: &str,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    Ok(!group_members(settings, group, timeout)?.clients.is_empty())
}

/// Returns whether `group` is stable with exactly `members` members. Blocks the thread for at most
/// `timeout`.
///
/// # Errors
///
/// As [`group_members`].
pub fn is_stable(
    settings: &Settings,
    group: &str,
    members: usize,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let found = group_members(settings, group, timeout)?;
    Ok(found.state == "Stable" && found.clients.len() == members)
}
