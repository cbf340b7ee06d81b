//! Consumer groups for clients: finds the group, passes the request to its state machine
//! ([`super::group`]), and waits if necessary.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tansu_sans_io::{
    Body, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, DescribeGroupsResponse,
    ErrorCode, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
    consumer_group_describe_response::DescribedGroup as NextGenerationGroup,
    describe_groups_response::{DescribedGroup, DescribedGroupMember},
    join_group_response::JoinGroupResponseMember,
    leave_group_request::MemberIdentity,
    leave_group_response::MemberResponse,
    list_groups_response::ListedGroup,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::group::{Answer, Group, Join, Joined};

/// All groups of the broker. Membership does not survive restarts: clients notice with their next
/// heartbeat and rejoin.
#[derive(Debug)]
pub(super) struct Groups {
    all: Mutex<HashMap<String, Group>>,
    changed: watch::Sender<()>,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { all: Mutex::default(), changed: watch::Sender::new(()) }
    }

    pub(super) async fn join(
        &self,
        request: JoinGroupRequest,
        client_id: &str,
        peer: SocketAddr,
        version: i16,
    ) -> Body {
        let mut member = request.member_id.clone();
        let group = request.group_id.clone();
        if member.is_empty() {
            member = format!("{client_id}-{}", Uuid::new_v4());
            self.lock().entry(group.clone()).or_default().invite(member.clone());
            // Version 4 added a second round trip, which ensures that the client knows its id.
            if version >= 4 && request.group_instance_id.is_none() {
                return refuse_join(ErrorCode::MemberIdRequired, member);
            }
        }

        let join = Join {
            member: member.clone(),
            instance: request.group_instance_id,
            client_id: client_id.to_owned(),
            client_host: format!("/{}", peer.ip()),
            session: millis(request.session_timeout_ms),
            rebalance: millis(request.rebalance_timeout_ms.unwrap_or(request.session_timeout_ms)),
            protocol_type: request.protocol_type,
            protocols: request
                .protocols
                .unwrap_or_default()
                .into_iter()
                .map(|protocol| (protocol.name, protocol.metadata))
                .collect(),
        };

        let joined = self
            .wait(
                &group,
                |group| group.join(Instant::now(), &join),
                |group| group.await_join(&member),
            )
            .await;

        match joined {
            Ok(joined) => accept_join(joined, member),
            Err(error) => refuse_join(error, member),
        }
    }

    pub(super) async fn sync(&self, request: SyncGroupRequest) -> Body {
        let (id, generation) = (request.member_id, request.generation_id);
        let assignments = request.assignments.unwrap_or_default();
        let mut assignments =
            Some(assignments.into_iter().map(|to| (to.member_id, to.assignment)).collect());

        let synced = self
            .wait(
                &request.group_id,
                |group| {
                    group.sync(
                        Instant::now(),
                        &id,
                        generation,
                        assignments.take().unwrap_or_default(),
                    )
                },
                |group| group.await_sync(&id, generation),
            )
            .await;

        let (protocol_type, protocol) = {
            let all = self.lock();
            let group = all.get(&request.group_id);
            group
                .map(|group| (group.protocol_type.clone(), group.protocol.clone()))
                .unwrap_or_default()
        };

        let (error, assignment) = match synced {
            Ok(assignment) => (ErrorCode::None, assignment),
            Err(error) => (error, Bytes::new()),
        };

        SyncGroupResponse::default()
            .throttle_time_ms(Some(0))
            .error_code(error.into())
            .protocol_type(Some(protocol_type))
            .protocol_name(Some(protocol))
            .assignment(assignment)
            .into()
    }

    pub(super) fn heartbeat(&self, request: &HeartbeatRequest) -> Body {
        let beat = self.with(&request.group_id, |group| {
            group.heartbeat(Instant::now(), &request.member_id, request.generation_id)
        });
        HeartbeatResponse::default().throttle_time_ms(Some(0)).error_code(code(beat)).into()
    }

    pub(super) fn leave(&self, request: LeaveGroupRequest) -> Body {
        let single = request.member_id.map(|id| MemberIdentity::default().member_id(id));
        let leaving = request.members.into_iter().flatten().chain(single);
        let members: Vec<_> = leaving
            .map(|member| {
                let instance = member.group_instance_id.as_deref();
                let left = self.with(&request.group_id, |group| {
                    let left = group.leave(Instant::now(), &member.member_id, instance);
                    if left { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
                });
                MemberResponse::default()
                    .error_code(code(left))
                    .member_id(member.member_id)
                    .group_instance_id(member.group_instance_id)
            })
            .collect();

        self.changed.send_replace(());
        let only = if let [member] = members.as_slice() { member.error_code } else { 0 };

        LeaveGroupResponse::default()
            .throttle_time_ms(Some(0))
            .error_code(only)
            .members(Some(members))
            .into()
    }

    /// Checks whether this client may commit offsets now.
    pub(super) fn may_commit(
        &self,
        group: &str,
        member: &str,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        self.with(group, |group| group.may_commit(Instant::now(), member, generation))
    }

    /// Describes groups. `has_offsets` distinguishes a group that is only idle from one that never
    /// existed.
    pub(super) fn describe(&self, ids: Vec<(String, bool)>) -> Body {
        let all = self.lock();
        let groups = ids
            .into_iter()
            .map(|(id, has_offsets)| match all.get(&id) {
                Some(group) if has_offsets || !group.members.is_empty() => describe(id, group),
                _ => DescribedGroup::default()
                    .group_id(id)
                    .group_state(if has_offsets { "Empty" } else { "Dead" }.into())
                    .protocol_type(if has_offsets { "consumer" } else { "" }.into())
                    .members(Some(Vec::new())),
            })
            .map(|group| group.authorized_operations(Some(i32::MIN)))
            .collect();
        DescribeGroupsResponse::default().throttle_time_ms(Some(0)).groups(Some(groups)).into()
    }

    /// Adds the groups that only have members to those that have stored something.
    pub(super) fn list(&self, stored: Body) -> Body {
        let Body::ListGroupsResponse(mut stored) = stored else { return stored };
        let listed = stored.groups.get_or_insert_default();
        let all = self.lock();
        for (id, group) in all.iter().filter(|(_, group)| !group.members.is_empty()) {
            let active = ListedGroup::default()
                .group_id(id.clone())
                .protocol_type(group.protocol_type.clone())
                .group_state(Some(group.phase.name().into()))
                .group_type(Some("classic".into()));
            match listed.iter_mut().find(|listed| listed.group_id == *id) {
                Some(listed) => *listed = active,
                None => listed.push(active),
            }
        }
        stored.into()
    }

    /// Responds that a group is not of the KIP-848 kind: all groups here are classic.
    pub(super) fn not_next_generation(request: ConsumerGroupDescribeRequest) -> Body {
        let groups = request.group_ids.unwrap_or_default().into_iter().map(|id| {
            NextGenerationGroup::default()
                .error_code(ErrorCode::GroupIdNotFound.into())
                .error_message(Some(format!("group {id} is not a KIP-848 consumer group")))
                .group_id(id)
                .group_epoch(-1)
                .assignment_epoch(-1)
                .members(Some(Vec::new()))
                .authorized_operations(i32::MIN)
        });
        ConsumerGroupDescribeResponse::default()
            .throttle_time_ms(0)
            .groups(Some(groups.collect()))
            .into()
    }

    /// Removes silent members. Called several times a second, since nothing else detects silence.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let changed =
            self.lock().values_mut().fold(false, |changed, group| group.expire(now) | changed);
        if changed {
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Group>> {
        self.all.lock()
    }

    fn with<T>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Group) -> Result<T, ErrorCode>,
    ) -> Result<T, ErrorCode> {
        act(self.lock().entry(id.to_owned()).or_default())
    }

    /// Tries `first`, and then `again` after every change until there is a response.
    async fn wait<T>(
        &self,
        id: &str,
        first: impl FnOnce(&mut Group) -> Result<Answer<T>, ErrorCode>,
        again: impl Fn(&mut Group) -> Result<Answer<T>, ErrorCode>,
    ) -> Result<T, ErrorCode> {
        let mut changes = self.changed.subscribe();
        let mut answer = self.with(id, first);
        self.changed.send_replace(());
        loop {
            match answer {
                Ok(Answer::Now(answer)) => return Ok(answer),
                Ok(Answer::Later) => {}
                Err(error) => return Err(error),
            }
            if changes.changed().await.is_err() {
                return Err(ErrorCode::CoordinatorNotAvailable);
            }
            answer = self.with(id, &again);
        }
    }
}

fn code(outcome: Result<(), ErrorCode>) -> i16 {
    outcome.err().unwrap_or(ErrorCode::None).into()
}

fn millis(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or_default())
}

fn accept_join(joined: Joined, member: String) -> Body {
    let members = joined
        .members
        .into_iter()
        .map(|(id, instance, metadata)| {
            JoinGroupResponseMember::default()
                .member_id(id)
                .group_instance_id(instance)
                .metadata(metadata)
        })
        .collect();
    JoinGroupResponse::default()
        .throttle_time_ms(Some(0))
        .error_code(ErrorCode::None.into())
        .generation_id(joined.generation)
        .protocol_type(Some(joined.protocol_type))
        .protocol_name(Some(joined.protocol))
        .leader(joined.leader)
        .skip_assignment(Some(false))
        .member_id(member)
        .members(Some(members))
        .into()
}

fn refuse_join(error: ErrorCode, member: String) -> Body {
    JoinGroupResponse::default()
        .throttle_time_ms(Some(0))
        .error_code(error.into())
        .generation_id(-1)
        .protocol_type(None)
        .protocol_name(Some(String::new()))
        .leader(String::new())
        .skip_assignment(Some(false))
        .member_id(member)
        .members(Some(Vec::new()))
        .into()
}

fn describe(id: String, group: &Group) -> DescribedGroup {
    let members = group
        .members
        .iter()
        .map(|(id, member)| {
            DescribedGroupMember::default()
                .member_id(id.clone())
                .group_instance_id(member.instance.clone())
                .client_id(member.client_id.clone())
                .client_host(member.client_host.clone())
                .member_metadata(member.metadata(&group.protocol))
                .member_assignment(member.assignment.clone())
        })
        .collect();
    DescribedGroup::default()
        .group_id(id)
        .group_state(group.phase.name().into())
        .protocol_type(group.protocol_type.clone())
        .protocol_data(group.protocol.clone())
        .members(Some(members))
}
