//! One consumer group: the classic membership protocol as a state machine without IO. The time is
//! passed in.
//!
//! A generation begins with a barrier: all known members join ([`Phase::Preparing`]), the leader
//! distributes assignments ([`Phase::Completing`]), and then all members run ([`Phase::Stable`])
//! until a member joins, leaves, falls silent or changes its subscription. The storage crate's own
//! coordinator instead answers joins one by one, which converges only by chance: five members took
//! half a minute and more than a hundred generations.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tansu_sans_io::ErrorCode;

/// The phase of a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// The group has no members.
    Empty,
    /// Members are asked to rejoin; those that have not by the deadline are removed.
    Preparing {
        /// When the barrier opens without the missing members.
        deadline: Instant,
    },
    /// A generation has begun, and its leader has not yet distributed the assignments.
    Completing,
    /// All members have an assignment.
    Stable,
}

impl Phase {
    /// Returns the protocol's name for the phase.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Preparing { .. } => "PreparingRebalance",
            Self::Completing => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// A member, as it described itself when it last joined.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) assignment: Bytes,
    session: Duration,
    rebalance: Duration,
    protocols: Vec<(String, Bytes)>,
    expires: Instant,
    /// Whether the member has joined the generation in preparation and waits for the response.
    waiting: bool,
}

impl Member {
    /// Returns the member's metadata for `protocol`: its subscription and the partitions it owns.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let known = self.protocols.iter().find(|(name, _)| name == protocol);
        known.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    fn mark_seen(&mut self, now: Instant) {
        self.expires = now + self.session;
    }
}

/// A request to become or remain a member.
#[derive(Clone, Debug)]
pub(super) struct Join {
    pub(super) member: String,
    pub(super) instance: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session: Duration,
    pub(super) rebalance: Duration,
    pub(super) protocol_type: String,
    pub(super) protocols: Vec<(String, Bytes)>,
}

/// A member's view of its generation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Joined {
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: String,
    pub(super) leader: String,
    /// For the leader only: the id, instance and subscription of every member.
    pub(super) members: Vec<(String, Option<String>, Bytes)>,
}

/// A response, or the information that there is none yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer<T> {
    /// Send this response.
    Now(T),
    /// Try again once the group has changed.
    Later,
}

/// A consumer group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) phase: Phase,
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: String,
    pub(super) members: BTreeMap<String, Member>,
    leader: String,
    /// Ids that have been issued but not used yet.
    invited: BTreeSet<String>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            members: BTreeMap::new(),
            leader: String::new(),
            invited: BTreeSet::new(),
        }
    }
}

impl Group {
    /// Issues an id, so that a client whose connection breaks now leaves no member behind.
    pub(super) fn invite(&mut self, id: String) {
        self.invited.insert(id);
    }

    /// Handles a request to join or rejoin.
    pub(super) fn join(&mut self, now: Instant, join: &Join) -> Result<Answer<Joined>, ErrorCode> {
        if join.protocols.is_empty() || !self.shares_protocol(join) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }

        let known = self.members.get(&join.member);
        if known.is_none() && !self.invited.remove(&join.member) && join.instance.is_none() {
            return Err(ErrorCode::UnknownMemberId);
        }

        let unchanged = known.is_some_and(|member| member.protocols == join.protocols);
        let repeats = match self.phase {
            Phase::Completing => unchanged,
            Phase::Stable => unchanged && self.leader != join.member,
            Phase::Empty | Phase::Preparing { .. } => false,
        };

        if repeats {
            self.touch(now, &join.member);
            return Ok(Answer::Now(self.joined(&join.member)));
        }

        if let Some(instance) = &join.instance {
            // A static member with a new id replaces the old id, which is fenced by becoming
            // unknown.
            self.members.retain(|id, member| {
                *id == join.member || member.instance.as_ref() != Some(instance)
            });
        }

        let assignment = known_assignment(&self.members, &join.member);
        self.members.insert(
            join.member.clone(),
            Member {
                instance: join.instance.clone(),
                client_id: join.client_id.clone(),
                client_host: join.client_host.clone(),
                assignment,
                session: join.session,
                rebalance: join.rebalance,
                protocols: join.protocols.clone(),
                expires: now + join.session,
                waiting: false,
            },
        );

        self.protocol_type.clone_from(&join.protocol_type);
        if !matches!(self.phase, Phase::Preparing { .. }) {
            self.prepare_generation(now);
        }

        if let Some(member) = self.members.get_mut(&join.member) {
            member.waiting = true;
        }

        self.open_barrier(now);
        self.await_join(&join.member)
    }

    /// Returns the response to a join that had to wait.
    pub(super) fn await_join(&self, id: &str) -> Result<Answer<Joined>, ErrorCode> {
        let member = self.members.get(id).ok_or(ErrorCode::UnknownMemberId)?;
        Ok(if member.waiting { Answer::Later } else { Answer::Now(self.joined(id)) })
    }

    /// Handles a sync: the leader sends the assignments, and every member fetches its own.
    pub(super) fn sync(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
    ) -> Result<Answer<Bytes>, ErrorCode> {
        self.check_member(id, generation)?;

        if self.phase == Phase::Completing && self.leader == id {
            for (id, assignment) in assignments {
                if let Some(member) = self.members.get_mut(&id) {
                    member.assignment = assignment;
                }
            }
            self.phase = Phase::Stable;
            for member in self.members.values_mut() {
                member.mark_seen(now);
            }
        }

        if let Some(member) = self.members.get_mut(id) {
            // A member that waits for the leader cannot send heartbeats.
            let patience =
                if self.phase == Phase::Stable { Duration::ZERO } else { member.rebalance };
            member.expires = now + patience + member.session;
        }

        self.await_sync(id, generation)
    }

    /// Returns the response to a sync that had to wait.
    pub(super) fn await_sync(&self, id: &str, generation: i32) -> Result<Answer<Bytes>, ErrorCode> {
        let member = self.members.get(id).ok_or(ErrorCode::UnknownMemberId)?;
        match self.phase {
            _ if self.generation != generation => Err(ErrorCode::RebalanceInProgress),
            Phase::Stable => Ok(Answer::Now(member.assignment.clone())),
            Phase::Completing => Ok(Answer::Later),
            Phase::Empty | Phase::Preparing { .. } => Err(ErrorCode::RebalanceInProgress),
        }
    }

    /// Handles a heartbeat, whose response tells a member to rejoin.
    pub(super) fn heartbeat(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        self.check_member(id, generation)?;
        self.touch(now, id);

        match self.phase {
            Phase::Preparing { .. } => Err(ErrorCode::RebalanceInProgress),
            Phase::Empty | Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// Removes a member. Returns whether it existed.
    pub(super) fn leave(&mut self, now: Instant, id: &str, instance: Option<&str>) -> bool {
        let before = self.members.len();
        self.invited.remove(id);
        self.members.retain(|known, member| {
            known != id && (instance.is_none() || member.instance.as_deref() != instance)
        });

        let left = self.members.len() < before;
        if left {
            self.handle_loss(now);
        }

        left
    }

    /// Removes members that have been silent for too long, and opens an overdue barrier. Returns
    /// whether anything changed.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.members.len();
        self.members.retain(|_, member| member.waiting || member.expires > now);
        let lost = self.members.len() < before;
        if lost {
            self.handle_loss(now);
        }

        let overdue = matches!(self.phase, Phase::Preparing { deadline } if deadline <= now);
        self.open_barrier(now);
        lost || overdue
    }

    /// Checks whether a commit may be written: by a member of the current generation, or by anyone
    /// if the group has no members.
    pub(super) fn may_commit(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        if generation < 0 && id.is_empty() {
            return if self.members.is_empty() { Ok(()) } else { Err(ErrorCode::UnknownMemberId) };
        }

        self.check_member(id, generation)?;
        self.touch(now, id);
        if self.phase == Phase::Completing {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    fn check_member(&self, id: &str, generation: i32) -> Result<(), ErrorCode> {
        if !self.members.contains_key(id) {
            return Err(ErrorCode::UnknownMemberId);
        }
        if self.generation != generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        Ok(())
    }

    fn touch(&mut self, now: Instant, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            member.mark_seen(now);
        }
    }

    /// Returns whether a joiner shares a protocol with all other members.
    fn shares_protocol(&self, join: &Join) -> bool {
        let others = || self.members.iter().filter(|(id, _)| **id != join.member);
        let same_type = others().next().is_none() || self.protocol_type == join.protocol_type;
        same_type
            && join.protocols.iter().any(|(name, _)| {
                others().all(|(_, member)| member.protocols.iter().any(|(known, _)| known == name))
            })
    }

    fn handle_loss(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Completing | Phase::Stable) {
            self.prepare_generation(now);
        }
        self.open_barrier(now);
    }

    fn prepare_generation(&mut self, now: Instant) {
        let patience = self.members.values().map(|member| member.rebalance).max();
        for member in self.members.values_mut() {
            member.waiting = false;
            // A member that waits for the leader is now told about the new generation, so it can
            // send heartbeats again.
            member.expires = member.expires.min(now + member.session);
        }
        self.phase = Phase::Preparing { deadline: now + patience.unwrap_or_default() };
    }

    /// Begins the next generation if all members have joined or the deadline has passed.
    fn open_barrier(&mut self, now: Instant) {
        let Phase::Preparing { deadline } = self.phase else { return };
        if deadline > now && !self.members.values().all(|member| member.waiting) {
            return;
        }

        self.members.retain(|_, member| member.waiting);
        self.generation += 1;
        if !self.members.contains_key(&self.leader) {
            self.leader = self.members.keys().next().cloned().unwrap_or_default();
        }

        let Some(leader) = self.members.get(&self.leader) else {
            self.phase = Phase::Empty;
            self.protocol.clear();
            return;
        };

        let common = leader.protocols.iter().map(|(name, _)| name).find(|name| {
            let speaks = |member: &Member| member.protocols.iter().any(|(known, _)| known == *name);
            self.members.values().all(speaks)
        });

        self.protocol = common.cloned().unwrap_or_default();
        self.phase = Phase::Completing;
        for member in self.members.values_mut() {
            member.waiting = false;
            member.assignment = Bytes::new();
            // The leader may take its time between this response and its sync; that is not a sign
            // of death.
            member.expires = now + member.session;
        }
    }

    fn joined(&self, id: &str) -> Joined {
        let members = if self.leader == id { self.members.iter() } else { Default::default() };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members
                .map(|(id, member)| {
                    (id.clone(), member.instance.clone(), member.metadata(&self.protocol))
                })
                .collect(),
        }
    }
}

fn known_assignment(members: &BTreeMap<String, Member>, id: &str) -> Bytes {
    members.get(id).map(|member| member.assignment.clone()).unwrap_or_default()
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
