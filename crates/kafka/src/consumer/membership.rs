//! The partitions that one member owns, and whether it can still count on owning them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_group::{Contact, FinalCommit, Partition, Patience, Progress, Sample, log::LogName};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::{Statistics, error::RDKafkaErrorCode};

/// The longest that the poll thread sleeps in one turn.
const LONGEST_PARK: Duration = Duration::from_secs(3);
/// How often to check whether contact has been regained.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many times per allowed gap a member tries to prove its membership while a proof is due, so
/// that it succeeds before the gap is over.
const LOOKS_PER_GAP: u32 = 8;

/// A generation that no assignment has.
const NO_GENERATION: u64 = 0;

/// The membership of one member, shared by its threads and the engine.
#[derive(Debug)]
pub(super) struct Membership {
    /// The origin of this member's clock, shortly before its client was created.
    begin: Instant,
    gap: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    contact: Contact,
    owned: HashMap<Partition, Owned>,
    /// Whether the group has assigned partitions to this member at least once, possibly none.
    has_joined: bool,
    /// The number of proofs so far, which selects the partition for the next one.
    proofs: usize,
}

impl State {
    /// Returns whether losing a partition could do harm, and a commit could prove the membership.
    fn has_standing(&self) -> bool {
        self.owned.values().any(|owned| owned.standing.is_some())
    }
}

/// A partition that this member owns.
#[derive(Debug)]
struct Owned {
    /// The generation of its assignment.
    generation: u64,
    /// The log that its commits name.
    log: LogName,
    /// The offset and metadata that the group has as committed. Before the first commit, the first
    /// record read, since committing its offset changes nothing. `None` before that, when losing
    /// the partition would do no harm.
    standing: Option<(i64, String)>,
}

impl Membership {
    /// Creates the membership. Call this before creating the client.
    pub(super) fn new(patience: Patience) -> Self {
        let state = State {
            contact: Contact::new(patience),
            owned: HashMap::new(),
            has_joined: false,
            proofs: 0,
        };
        Self { begin: Instant::now(), gap: patience.gap, state: Mutex::new(state) }
    }

    /// Returns the time on this member's clock.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic during one of the changes below does not leave the state inconsistent.
        self.state.lock()
    }

    // --- Partitions -----------------------------------------------------------------------------

    /// Records that the group has assigned partitions to this member, possibly none.
    pub(super) fn note_joined(&self) {
        self.state().has_joined = true;
    }

    /// Records a new assignment of a partition.
    pub(super) fn take_ownership(
        &self,
        partition: Partition,
        generation: u64,
        log: LogName,
        committed: Option<(i64, String)>,
    ) {
        let mut state = self.state();
        state.owned.insert(partition, Owned { generation, log, standing: committed });
        state.contact.assigned();
    }

    /// Returns whether a partition still has this assignment.
    pub(super) fn owns(&self, partition: Partition, generation: u64) -> bool {
        self.state().owned.get(&partition).is_some_and(|owned| owned.generation == generation)
    }

    /// Drops commits whose partitions no longer have the same assignment.
    pub(super) fn retain_owned(&self, commits: Vec<FinalCommit>) -> Vec<FinalCommit> {
        commits
            .into_iter()
            .filter(|commit| self.owns(commit.partition, commit.generation))
            .collect()
    }

    /// Keeps the partitions but drops their pending commits, which refer to a log that has been
    /// replaced.
    pub(super) fn fence(&self, partitions: &[Partition]) {
        let mut state = self.state();
        for partition in partitions {
            if let Some(owned) = state.owned.get_mut(partition) {
                owned.generation = NO_GENERATION;
                owned.standing = None;
            }
        }
    }

    /// Records that the partitions are no longer this member's.
    pub(super) fn disown(&self, partitions: &[Partition]) {
        let mut state = self.state();
        state.owned.retain(|partition, _| !partitions.contains(partition));
        if state.owned.is_empty() {
            state.contact.vacated();
        }
    }

    /// Returns the partitions that this member owns, in order.
    pub(super) fn all_owned(&self) -> Vec<Partition> {
        let mut owned: Vec<_> = self.state().owned.keys().copied().collect();
        owned.sort_unstable();
        owned
    }

    /// Records that a record was read.
    pub(super) fn note_delivered(&self, partition: Partition, offset: i64) {
        if let Some(owned) = self.state().owned.get_mut(&partition) {
            let bare = || Progress::none(offset).encode(owned.log).unwrap_or_default();
            owned.standing.get_or_insert_with(|| (offset, bare()));
        }
    }

    // --- Contact --------------------------------------------------------------------------------

    /// Returns how long the poll thread may sleep if nothing wakes it. A poll thread that stays
    /// silent for longer counts as a gap in contact.
    pub(super) fn longest_park(&self) -> Duration {
        LONGEST_PARK.min(self.gap / 2)
    }

    /// Records a turn of the poll thread's loop.
    pub(super) fn note_turn(&self) {
        self.state().contact.turned(self.now());
    }

    /// Runs `wait`, while which the poll thread waits for the engine and its silence is no gap.
    pub(super) fn excuse_during<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.state().contact.excuse(true, self.now());
        let result = wait();
        self.state().contact.excuse(false, self.now());
        result
    }

    /// Takes the state of the connection to the coordinator from the statistics.
    pub(super) fn note_statistics(&self, statistics: &Statistics) {
        if let Some(sample) = coordinator_sample(statistics) {
            self.state().contact.sampled(sample);
        }
    }

    /// Records that the coordinator accepted these commits, which were sent at `sent`.
    pub(super) fn note_accepted(&self, sent: Duration, commits: &[FinalCommit]) {
        let mut state = self.state();
        state.contact.accepted(sent);
        for commit in commits {
            let owned = state.owned.get_mut(&commit.partition);
            if let Some(owned) = owned.filter(|owned| owned.generation == commit.generation) {
                owned.standing = Some((commit.offset, commit.metadata.clone()));
            }
        }
    }

    /// Records that the coordinator refused a commit.
    pub(super) fn note_refused(&self, code: Option<RDKafkaErrorCode>) {
        let is_stranger = matches!(
            code,
            Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::FencedInstanceId)
        );
        if is_stranger {
            self.suspect();
        }
    }

    /// Makes the membership doubtful until it is proven.
    fn suspect(&self) {
        self.state().contact.suspect(self.now());
    }

    /// Returns whether another member may own our partitions, if we have read any of their records.
    pub(super) fn is_out_of_contact(&self) -> bool {
        self.judge_contact(|contact, now| contact.is_broken(now))
    }

    /// Returns whether a proof of the membership is due.
    pub(super) fn wants_proof(&self) -> bool {
        self.judge_contact(|contact, now| contact.wants_proof(now))
    }

    fn judge_contact(&self, judge: impl FnOnce(&Contact, Duration) -> bool) -> bool {
        let state = self.state();
        judge(&state.contact, self.now()) && state.has_standing()
    }

    /// Returns a commit of one partition that changes nothing, for use as a proof.
    pub(super) fn next_proof(&self) -> Option<FinalCommit> {
        let mut state = self.state();
        state.proofs = state.proofs.wrapping_add(1);
        let turn = state.proofs;

        let mut standing: Vec<_> = state
            .owned
            .iter()
            .filter_map(|(partition, owned)| {
                let (offset, metadata) = owned.standing.clone()?;
                Some(FinalCommit {
                    partition: *partition,
                    generation: owned.generation,
                    offset,
                    metadata,
                })
            })
            .collect();

        standing.sort_unstable_by_key(|commit| commit.partition);
        let index = turn.checked_rem(standing.len())?;
        Some(standing.swap_remove(index))
    }

    /// Returns how long to wait before checking again whether a proof is due.
    pub(super) fn check_interval(&self) -> Duration {
        if self.is_out_of_contact() {
            return LOOK_AGAIN;
        }
        let state = self.state();
        let longest = self.gap / 3;
        if !state.has_standing() {
            return longest;
        }

        match state.contact.until_proof(self.now()) {
            // A proof that is due and was not accepted is tried again a little later.
            Duration::ZERO => self.gap / LOOKS_PER_GAP,
            until_proof => until_proof.min(longest),
        }
    }
}

/// Returns what the statistics say about the coordinator. Times are on the statistics' own clock,
/// since they may be read late.
fn coordinator_sample(statistics: &Statistics) -> Option<Sample> {
    let micros = |micros: i64| u64::try_from(micros).ok().map(Duration::from_micros);
    let at = micros(statistics.age)?;
    // A consumer's only broker that stands for a role instead of a node.
    let coordinator = statistics.brokers.values().find(|broker| broker.source == "logical")?;
    let received = micros(coordinator.rxidle).map(|idle| at.saturating_sub(idle));
    let join_state = statistics.cgrp.as_ref().map_or("", |group| group.join_state.as_str());
    let is_joining = matches!(join_state, "wait-join" | "wait-sync")
        && coordinator.state == "UP"
        && coordinator.waitresp_cnt > 0;

    Some(Sample { at, received, is_joining })
}

/// Whether this process can still count on being in the group, across all its members.
#[derive(Debug, Clone, Default)]
pub struct GroupContact {
    pub(super) members: Arc<[Arc<Membership>]>,
}

impl GroupContact {
    /// Returns whether another process may own partitions of ours. While this is true, no events
    /// may be written for their jobs, and no calls made.
    pub fn is_lost(&self) -> bool {
        self.members.iter().any(|member| member.is_out_of_contact())
    }

    /// Returns the longest time for which any member has had no evidence of its membership.
    pub fn silence(&self) -> Duration {
        let silence = |member: &Arc<Membership>| member.state().contact.silence(member.now());
        self.members.iter().map(silence).max().unwrap_or_default()
    }

    /// Makes all memberships doubtful until they are proven. Call this when the process may have
    /// missed a rebalance.
    pub fn suspect(&self) {
        self.members.iter().for_each(|member| member.suspect());
    }

    /// Returns whether the group has assigned partitions to every member, possibly none.
    pub fn has_joined(&self) -> bool {
        self.members.iter().all(|member| member.state().has_joined)
    }

    /// Waits until contact is not (or no longer) lost.
    pub async fn regained(&self) {
        while self.is_lost() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rdkafka::statistics::{Broker, ConsumerGroup};

    use super::*;

    const SESSION: Duration = Duration::from_secs(30);
    const LOG: LogName = LogName { cluster: 1, topic: 2 };

    fn named(offset: i64) -> String {
        Progress::none(offset).encode(LOG).unwrap()
    }

    fn partition(number: i32) -> Partition {
        Partition { topic: 0, number }
    }

    fn membership() -> Membership {
        Membership::new(Patience::new(SESSION, Duration::ZERO))
    }

    #[test]
    fn a_proof_repeats_the_last_commit_or_the_first_offset_read() {
        let membership = membership();
        membership.take_ownership(partition(0), 1, LOG, Some((7, "m".into())));
        membership.take_ownership(partition(1), 2, LOG, None);
        let proofs = || {
            let all = (0..4).filter_map(|_| membership.next_proof());
            all.map(|commit| (commit.partition.number, commit.offset, commit.metadata))
                .collect::<BTreeSet<_>>()
        };

        assert_eq!(proofs(), [(0, 7, "m".into())].into());

        membership.note_delivered(partition(0), 8);
        membership.note_delivered(partition(1), 3);
        membership.note_delivered(partition(1), 4);
        assert_eq!(proofs(), [(0, 7, "m".into()), (1, 3, named(3))].into());

        let commit = FinalCommit {
            partition: partition(0),
            generation: 1,
            offset: 9,
            metadata: String::new(),
        };

        membership.note_accepted(membership.now(), &[commit]);
        assert_eq!(proofs(), [(0, 9, String::new()), (1, 3, named(3))].into());

        membership.disown(&[partition(0), partition(1)]);
        assert_eq!(membership.next_proof(), None);
    }

    #[test]
    fn a_member_that_has_read_nothing_needs_no_proof() {
        let membership = membership();
        membership.take_ownership(partition(0), 1, LOG, None);

        membership.suspect();
        assert!(!membership.is_out_of_contact() && !membership.wants_proof());

        membership.note_delivered(partition(0), 3);
        assert!(membership.is_out_of_contact() && membership.wants_proof());

        let proof = membership.next_proof().unwrap();
        membership.note_accepted(membership.now(), &[proof]);
        assert!(!membership.is_out_of_contact());

        membership.note_refused(Some(RDKafkaErrorCode::RebalanceInProgress));
        assert!(!membership.is_out_of_contact());

        membership.note_refused(Some(RDKafkaErrorCode::UnknownMemberId));
        assert!(membership.is_out_of_contact());
    }

    #[test]
    fn contact_with_the_coordinator_is_dated_by_the_clock_of_the_statistics() {
        let seconds = |seconds: i64| seconds * 1_000_000;
        let statistics = |state: &str, rxidle, join_state: &str| {
            let coordinator = Broker {
                source: "logical".into(),
                state: state.into(),
                rxidle,
                waitresp_cnt: 1,
                ..Broker::default()
            };
            let node = Broker { source: "learned".into(), state: "UP".into(), ..Broker::default() };
            Statistics {
                age: seconds(100),
                brokers: [("GroupCoordinator".into(), coordinator), ("b:1/0".into(), node)].into(),
                cgrp: Some(ConsumerGroup {
                    join_state: join_state.into(),
                    ..ConsumerGroup::default()
                }),
                ..Statistics::default()
            }
        };

        let at = Duration::from_secs(100);
        let received = Some(Duration::from_secs(97));
        for (statistics, expected) in [
            (statistics("UP", seconds(3), "steady"), Sample { at, received, is_joining: false }),
            (statistics("UP", seconds(3), "wait-join"), Sample { at, received, is_joining: true }),
            (statistics("DOWN", -1, "wait-join"), Sample { at, received: None, is_joining: false }),
        ] {
            assert_eq!(coordinator_sample(&statistics), Some(expected));
        }
        assert_eq!(coordinator_sample(&Statistics::default()), None);
    }
}
