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
    /// The topics that each member reads; `None` if the coordinator does not say, as in the middle
    /// of a rebalance.
    pub subscriptions: Vec<Option<Vec<String>>>,
}

impl GroupMembers {
    /// Returns how many members read `topic`. Members that don't say what they read count, too.
    pub fn readers_of(&self, topic: &str) -> usize {
        let reads = |topics: &&Option<Vec<String>>| {
            topics.as_ref().is_none_or(|topics| topics.iter().any(|name| name == topic))
        };
        self.subscriptions.iter().filter(reads).count()
    }
}

/// Reads the topics in a member's subscription, in the format of Kafka's consumer protocol: a
/// version, and an array of texts with their lengths.
fn read_subscription(metadata: &[u8]) -> Option<Vec<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut topics = Vec::new();
    for _ in 0..i32::from_be_bytes(*count) {
        let (length, from) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (name, after) = from.split_at_checked(length)?;
        topics.push(String::from_utf8(name.to_vec()).ok()?);
        rest = after;
    }
    Some(topics)
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
        subscriptions: found
            .members()
            .iter()
            .map(|member| read_subscription(member.metadata()?))
            .collect(),
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
    Ok(!group_members(settings, group, timeout)?.subscriptions.is_empty())
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
    Ok(found.state == "Stable" && found.subscriptions.len() == members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_apart_by_what_they_read() {
        let subscription = |topics: &[&str]| {
            let mut bytes = vec![0, 1];
            bytes.extend(i32::try_from(topics.len()).unwrap().to_be_bytes());
            for topic in topics {
                bytes.extend(i16::try_from(topic.len()).unwrap().to_be_bytes());
                bytes.extend(topic.bytes());
            }
            // User data follows.
            bytes.extend([255, 255, 255, 255]);
            bytes
        };
        assert_eq!(read_subscription(&subscription(&["a", "bc"])).unwrap(), ["a", "bc"]);
        assert_eq!(read_subscription(&subscription(&["a"])[..8]), None);
        assert_eq!(read_subscription(&[]), None);
        assert_eq!(read_subscription(&[0, 0, 127, 255, 255, 255, 0]), None);

        let members = GroupMembers {
            state: "Stable".to_owned(),
            subscriptions: vec![
                read_subscription(&subscription(&["jobs"])),
                read_subscription(&subscription(&["jobs.delayed"])),
                None,
            ],
        };
        assert_eq!(members.readers_of("jobs"), 2);
    }
}
