//! The members of consumer groups.

use std::time::Duration;

use rdkafka::{consumer::Consumer as _, groups::GroupMemberInfo};

use super::metadata_client;
use crate::{error::KafkaError, settings::Settings};

/// A consumer group as its coordinator sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMembers {
    /// The state in Kafka's words, such as `Stable`; empty if there is no such group.
    pub state: String,
    /// The members.
    pub members: Vec<GroupMember>,
}

/// A member of a consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMember {
    /// Its `client.id`.
    pub client_id: String,
    /// The host that the coordinator sees.
    pub host: String,
    /// The topics that it reads; `None` if the coordinator does not say, as in the middle of a
    /// rebalance.
    pub subscription: Option<Vec<String>>,
    /// The partitions that it has, by topic; empty if the coordinator does not say.
    pub assignment: Vec<(String, Vec<i32>)>,
}

impl GroupMembers {
    /// Returns how many members read `topic`. Members that don't say what they read count, too.
    pub fn readers_of(&self, topic: &str) -> usize {
        let reads = |member: &&GroupMember| {
            member
                .subscription
                .as_ref()
                .is_none_or(|topics| topics.iter().any(|name| name == topic))
        };
        self.members.iter().filter(reads).count()
    }
}

/// Reads the topics in a member's subscription, in the format of Kafka's consumer protocol: a
/// version, and an array of texts with their lengths.
fn read_subscription(metadata: &[u8]) -> Option<Vec<String>> {
    let mut fields = Fields(metadata);
    fields.version()?;
    (0..fields.number()?).map(|_| fields.text()).collect()
}

/// Reads a member's assignment in the same format: for each topic, an array of partitions.
fn read_assignment(assignment: &[u8]) -> Option<Vec<(String, Vec<i32>)>> {
    let mut fields = Fields(assignment);
    fields.version()?;
    let topic = |fields: &mut Fields<'_>| {
        let name = fields.text()?;
        let partitions = (0..fields.number()?).map(|_| fields.number());
        Some((name, partitions.collect::<Option<_>>()?))
    };
    (0..fields.number()?).map(|_| topic(&mut fields)).collect()
}

/// What is left of a text in the format of Kafka's protocol. The methods take what they read; they
/// return `None` if there is not enough of it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn version(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn number(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.take().map(i16::from_be_bytes)?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
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
        members: found.members().iter().map(read_member).collect(),
    }))
}

fn read_member(member: &GroupMemberInfo) -> GroupMember {
    GroupMember {
        client_id: member.client_id().to_owned(),
        host: member.client_host().to_owned(),
        subscription: member.metadata().and_then(read_subscription),
        assignment: member.assignment().and_then(read_assignment).unwrap_or_default(),
    }
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
    Ok(!group_members(settings, group, timeout)?.members.is_empty())
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
    Ok(found.state == "Stable" && found.members.len() == members)
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
            members: [Some(subscription(&["jobs"])), Some(subscription(&["jobs.delayed"])), None]
                .map(|metadata| GroupMember {
                    subscription: metadata.as_deref().and_then(read_subscription),
                    ..GroupMember::default()
                })
                .to_vec(),
        };
        assert_eq!(members.readers_of("jobs"), 2);
    }

    #[test]
    fn assignments_are_read_by_topic() {
        let bytes = [
            &[0, 0][..],
            &2_i32.to_be_bytes(),
            &[0, 1, b'a'],
            &2_i32.to_be_bytes(),
            &3_i32.to_be_bytes(),
            &1_i32.to_be_bytes(),
            &[0, 2, b'b', b'c'],
            &0_i32.to_be_bytes(),
            &(-1_i32).to_be_bytes(),
        ]
        .concat();
        let expected = vec![("a".to_owned(), vec![3, 1]), ("bc".to_owned(), vec![])];
        assert_eq!(read_assignment(&bytes), Some(expected));
        for length in 0..bytes.len() - 4 {
            assert_eq!(read_assignment(&bytes[..length]), None, "{length}");
        }
    }
}
