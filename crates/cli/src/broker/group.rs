//! One consumer group: the classic membership protocol as a state machine without IO, time passed
//! in.
//!
//! A generation is a barrier: everybody known joins ([`Phase::Preparing`]), the leader hands out
//! assignments ([`Phase::Completing`]), and then all of them run ([`Phase::Stable`]) until somebody
//! comes, goes, falls silent or wants something else. The storage crate's own coordinator answers
//! joins one by one instead, which converges by chance: half a minute and more than a hundred
//! generations for five members.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tansu_sans_io::ErrorCode;

/// Where a group is between two generations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Nobody is a member.
    Empty,
    /// Members are asked to join again; who has not by the deadline is out.
    Preparing {
        /// When the barrier opens without the missing ones.
        deadline: Instant,
    },
    /// A generation has begun, and its leader has not said yet who gets what.
    Completing,
    /// Everybody has an assignment.
    Stable,
}

impl Phase {
    /// The protocol's word for it.
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
    /// It has joined the generation that is being prepared and waits for the answer.
    waiting: bool,
}

impl Member {
    /// What it said about itself under `protocol`: its subscription, and what it owns.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let known = self.protocols.iter().find(|(name, _)| name == protocol);
        known.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    fn seen(&mut self, now: Instant) {
        self.expires = now + self.session;
    }
}

/// A request to become or stay a member.
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

/// What a member is told about the generation it is in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Joined {
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: String,
    pub(super) leader: String,
    /// For the leader only: everybody's id, instance and subscription.
    pub(super) members: Vec<(String, Option<String>, Bytes)>,
}

/// An answer, or that there is none yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer<T> {
    /// Tell the client.
    Now(T),
    /// Ask again when the group has changed.
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
    /// Ids that were given out and not used yet.
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
    /// Gives out an id, so that a client whose connection breaks now does not leave a member
    /// behind.
    pub(super) fn invite(&mut self, id: String) {
        self.invited.insert(id);
    }

    /// A member joins, or joins again.
    pub(super) fn join(&mut self, now: Instant, join: &Join) -> Result<Answer<Joined>, ErrorCode> {
        if join.protocols.is_empty() || !self.speaks(join) {
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
            // The same static member under a new id: the old id is fenced by being unknown.
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
            self.prepare(now);
        }
        if let Some(member) = self.members.get_mut(&join.member) {
            member.waiting = true;
        }
        self.open(now);
        self.await_join(&join.member)
    }

    /// What became of a join that was told to wait.
    pub(super) fn await_join(&self, id: &str) -> Result<Answer<Joined>, ErrorCode> {
        let member = self.members.get(id).ok_or(ErrorCode::UnknownMemberId)?;
        Ok(if member.waiting { Answer::Later } else { Answer::Now(self.joined(id)) })
    }

    /// The leader brings the assignments, everybody fetches theirs.
    pub(super) fn sync(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
    ) -> Result<Answer<Bytes>, ErrorCode> {
        self.member(id, generation)?;
        if self.phase == Phase::Completing && self.leader == id {
            for (id, assignment) in assignments {
                if let Some(member) = self.members.get_mut(&id) {
                    member.assignment = assignment;
                }
            }
            self.phase = Phase::Stable;
            for member in self.members.values_mut() {
                member.seen(now);
            }
        }
        if let Some(member) = self.members.get_mut(id) {
            // While it waits for the leader it can't send heartbeats.
            let patience =
                if self.phase == Phase::Stable { Duration::ZERO } else { member.rebalance };
            member.expires = now + patience + member.session;
        }
        self.await_sync(id, generation)
    }

    /// What became of a sync that was told to wait.
    pub(super) fn await_sync(&self, id: &str, generation: i32) -> Result<Answer<Bytes>, ErrorCode> {
        let member = self.members.get(id).ok_or(ErrorCode::UnknownMemberId)?;
        match self.phase {
            _ if self.generation != generation => Err(ErrorCode::RebalanceInProgress),
            Phase::Stable => Ok(Answer::Now(member.assignment.clone())),
            Phase::Completing => Ok(Answer::Later),
            Phase::Empty | Phase::Preparing { .. } => Err(ErrorCode::RebalanceInProgress),
        }
    }

    /// A sign of life; the answer is how a member learns that it must join again.
    pub(super) fn heartbeat(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        self.member(id, generation)?;
        self.touch(now, id);
        match self.phase {
            Phase::Preparing { .. } => Err(ErrorCode::RebalanceInProgress),
            Phase::Empty | Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// A member goes. True if there was one.
    pub(super) fn leave(&mut self, now: Instant, id: &str, instance: Option<&str>) -> bool {
        let before = self.members.len();
        self.invited.remove(id);
        self.members.retain(|known, member| {
            known != id && (instance.is_none() || member.instance.as_deref() != instance)
        });
        let left = self.members.len() < before;
        if left {
            self.lost(now);
        }
        left
    }

    /// Removes who has been silent for too long, and opens a barrier that is overdue. True if
    /// anything changed.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.members.len();
        self.members.retain(|_, member| member.waiting || member.expires > now);
        let lost = self.members.len() < before;
        if lost {
            self.lost(now);
        }
        let overdue = matches!(self.phase, Phase::Preparing { deadline } if deadline <= now);
        self.open(now);
        lost || overdue
    }

    /// Whether a commit may be written: from a member of the current generation, or from outside if
    /// there are none.
    pub(super) fn may_commit(
        &mut self,
        now: Instant,
        id: &str,
        generation: i32,
    ) -> Result<(), ErrorCode> {
        if generation < 0 && id.is_empty() {
            return if self.members.is_empty() { Ok(()) } else { Err(ErrorCode::UnknownMemberId) };
        }
        self.member(id, generation)?;
        self.touch(now, id);
        if self.phase == Phase::Completing {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    fn member(&self, id: &str, generation: i32) -> Result<(), ErrorCode> {
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
            member.seen(now);
        }
    }

    /// Whether a joiner has a protocol in common with everybody else.
    fn speaks(&self, join: &Join) -> bool {
        let others = || self.members.iter().filter(|(id, _)| **id != join.member);
        let same_type = others().next().is_none() || self.protocol_type == join.protocol_type;
        same_type
            && join.protocols.iter().any(|(name, _)| {
                others().all(|(_, member)| member.protocols.iter().any(|(known, _)| known == name))
            })
    }

    fn lost(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Completing | Phase::Stable) {
            self.prepare(now);
        }
        self.open(now);
    }

    fn prepare(&mut self, now: Instant) {
        let patience = self.members.values().map(|member| member.rebalance).max();
        for member in self.members.values_mut() {
            member.waiting = false;
            // Who waited for the leader is told now that there will be another generation, and can
            // be heard of again.
            member.expires = member.expires.min(now + member.session);
        }
        self.phase = Phase::Preparing { deadline: now + patience.unwrap_or_default() };
    }

    /// Begins the next generation if everybody is here, or if it is too late for the rest.
    fn open(&mut self, now: Instant) {
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
            // From the answer to its sync the leader may take its time; it is no sign of death.
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
