//! What one member has of its group: the partitions, and whether it can still count on having them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_group::{Contact, FinalCommit, Partition, Patience, Progress, Sample, log::LogName};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::{Statistics, error::RDKafkaErrorCode};

/// The poll thread turns at least this often.
const LONGEST_PARK: Duration = Duration::from_secs(3);
/// How often to look again whether contact is back.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A member proves its membership in good time before a gap if it looks so many times within one.
const LOOKS_PER_GAP: u32 = 8;

/// No assignment has this number.
const NO_GENERATION: u64 = 0;

/// The membership of one member, which its threads and the engine share.
#[derive(Debug)]
pub(super) struct Membership {
    /// Times are counted from here, a little before the client was made.
    begin: Instant,
    gap: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    contact: Contact,
    owned: HashMap<Partition, Owned>,
    /// Whether the group has decided once what this member gets, be it nothing.
    has_joined: bool,
    /// Counts the proofs, so that they go through the partitions in turn.
    proofs: usize,
}

/// A partition of ours.
#[derive(Debug)]
struct Owned {
    /// The number of its assignment.
    generation: u64,
    /// The log that a commit is to name.
    log: LogName,
    /// What stands in the group as committed: offset and metadata. Before the first commit, the
    /// first record that was read, since committing it changes nothing. `None` before that: the
    /// partition has nothing for which it could matter.
    standing: Option<(i64, String)>,
}

impl Membership {
    /// To be made before the client.
    pub(super) fn new(patience: Patience) -> Self {
        let state = State {
            contact: Contact::new(patience),
            owned: HashMap::new(),
            has_joined: false,
            proofs: 0,
        };
        Self { begin: Instant::now(), gap: patience.gap, state: Mutex::new(state) }
    }

    /// The time on this member's clock.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No change below leaves the state torn if it panics.
        self.state.lock()
    }

    // --- Partitions -----------------------------------------------------------------------------

    /// The group has decided what this member gets.
    pub(super) fn joined(&self) {
        self.state().has_joined = true;
    }

    /// The group gave us a partition.
    pub(super) fn own(
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

    /// Whether a partition is still under this assignment.
    pub(super) fn owns(&self, partition: Partition, generation: u64) -> bool {
        self.state().owned.get(&partition).is_some_and(|owned| owned.generation == generation)
    }

    /// The commits of partitions that are still under the same assignment.
    pub(super) fn still_owned(&self, commits: Vec<FinalCommit>) -> Vec<FinalCommit> {
        commits
            .into_iter()
            .filter(|commit| self.owns(commit.partition, commit.generation))
            .collect()
    }

    /// The partitions stay ours, but what is still to be committed for them must not be: their log
    /// is another one.
    pub(super) fn fence(&self, partitions: &[Partition]) {
        let mut state = self.state();
        for partition in partitions {
            if let Some(owned) = state.owned.get_mut(partition) {
                owned.generation = NO_GENERATION;
                owned.standing = None;
            }
        }
    }

    /// The partitions are not ours any more.
    pub(super) fn disown(&self, partitions: &[Partition]) {
        let mut state = self.state();
        state.owned.retain(|partition, _| !partitions.contains(partition));
        if state.owned.is_empty() {
            state.contact.vacated();
        }
    }

    /// The partitions that are ours, in order.
    pub(super) fn all_owned(&self) -> Vec<Partition> {
        let mut owned: Vec<_> = self.state().owned.keys().copied().collect();
        owned.sort_unstable();
        owned
    }

    /// A record was read.
    pub(super) fn delivered(&self, partition: Partition, offset: i64) {
        if let Some(owned) = self.state().owned.get_mut(&partition) {
            let bare = || Progress::none(offset).encode(owned.log).unwrap_or_default();
            owned.standing.get_or_insert_with(|| (offset, bare()));
        }
    }

    // --- Contact --------------------------------------------------------------------------------

    /// How long the poll thread may wait when nothing wakes it. A silent thread counts as a gap in
    /// contact.
    pub(super) fn longest_park(&self) -> Duration {
        LONGEST_PARK.min(self.gap / 2)
    }

    /// The poll thread turns.
    pub(super) fn turned(&self) {
        self.state().contact.turned(self.now());
    }

    /// Runs `wait`, during which the poll thread waits for the engine.
    pub(super) fn excused<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.state().contact.excuse(true, self.now());
        let result = wait();
        self.state().contact.excuse(false, self.now());
        result
    }

    /// What the client says of its connection to the coordinator.
    pub(super) fn sampled(&self, statistics: &Statistics) {
        if let Some(sample) = sample(statistics) {
            self.state().contact.sampled(sample);
        }
    }

    /// The coordinator has accepted these commits, which were handed over at `sent`.
    pub(super) fn accepted(&self, sent: Duration, commits: &[FinalCommit]) {
        let mut state = self.state();
        state.contact.accepted(sent);
        for commit in commits {
            let owned = state.owned.get_mut(&commit.partition);
            if let Some(owned) = owned.filter(|owned| owned.generation == commit.generation) {
                owned.standing = Some((commit.offset, commit.metadata.clone()));
            }
        }
    }

    /// The coordinator has refused a commit.
    pub(super) fn refused(&self, code: Option<RDKafkaErrorCode>) {
        let is_stranger = matches!(
            code,
            Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::FencedInstanceId)
        );
        if is_stranger {
            self.suspect();
        }
    }

    /// Something makes the membership doubtful.
    fn suspect(&self) {
        self.state().contact.suspect(self.now());
    }

    /// Whether another member may have our partitions, as far as we have read anything of them.
    pub(super) fn is_out_of_contact(&self) -> bool {
        self.holds(|contact, now| contact.is_broken(now))
    }

    /// Whether it is time to prove the membership.
    pub(super) fn wants_proof(&self) -> bool {
        self.holds(|contact, now| contact.wants_proof(now))
    }

    fn holds(&self, judge: impl FnOnce(&Contact, Duration) -> bool) -> bool {
        let state = self.state();
        judge(&state.contact, self.now())
            && state.owned.values().any(|owned| owned.standing.is_some())
    }

    /// A commit that changes nothing, to prove by: what stands, of one partition.
    pub(super) fn standing(&self) -> Option<FinalCommit> {
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

    /// How long to wait before looking again whether the membership has to be proven.
    pub(super) fn pace(&self) -> Duration {
        if self.is_out_of_contact() { LOOK_AGAIN } else { self.gap / LOOKS_PER_GAP }
    }
}

/// What the statistics say of the coordinator. Their own clock is used, since they can be read
/// late.
fn sample(statistics: &Statistics) -> Option<Sample> {
    let micros = |micros: i64| u64::try_from(micros).ok().map(Duration::from_micros);
    let at = micros(statistics.age)?;
    // The only broker of a consumer that is a role and not a node.
    let coordinator = statistics.brokers.values().find(|broker| broker.source == "logical")?;
    let received = micros(coordinator.rxidle).map(|idle| at.saturating_sub(idle));
    let join_state = statistics.cgrp.as_ref().map_or("", |group| group.join_state.as_str());
    let is_joining = matches!(join_state, "wait-join" | "wait-sync")
        && coordinator.state == "UP"
        && coordinator.waitresp_cnt > 0;
    Some(Sample { at, received, is_joining })
}

/// Whether this process can still count on being in the group, with all of its members.
#[derive(Debug, Clone, Default)]
pub struct GroupContact {
    pub(super) members: Arc<[Arc<Membership>]>,
}

impl GroupContact {
    /// Whether another process may have partitions of ours, so that nothing must be said of their
    /// jobs, or done for them.
    pub fn is_lost(&self) -> bool {
        self.members.iter().any(|member| member.is_out_of_contact())
    }

    /// For how long nothing is known about the membership that is most doubtful.
    pub fn silence(&self) -> Duration {
        let silence = |member: &Arc<Membership>| member.state().contact.silence(member.now());
        self.members.iter().map(silence).max().unwrap_or_default()
    }

    /// The process may have missed what became of its partitions: the memberships have to be
    /// proven.
    pub fn suspect(&self) {
        self.members.iter().for_each(|member| member.suspect());
    }

    /// Whether the group has decided what every member gets, be it nothing.
    pub fn has_joined(&self) -> bool {
        self.members.iter().all(|member| member.state().has_joined)
    }

    /// Waits until contact is not lost.
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
    fn what_stands_is_what_was_committed_last_or_read_first() {
        let membership = membership();
        membership.own(partition(0), 1, LOG, Some((7, "m".into())));
        membership.own(partition(1), 2, LOG, None);
        let standing = || {
            let all = (0..4).filter_map(|_| membership.standing());
            all.map(|commit| (commit.partition.number, commit.offset, commit.metadata))
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(standing(), [(0, 7, "m".into())].into());
        membership.delivered(partition(0), 8);
        membership.delivered(partition(1), 3);
        membership.delivered(partition(1), 4);
        assert_eq!(standing(), [(0, 7, "m".into()), (1, 3, named(3))].into());
        let commit = FinalCommit {
            partition: partition(0),
            generation: 1,
            offset: 9,
            metadata: String::new(),
        };
        membership.accepted(membership.now(), &[commit]);
        assert_eq!(standing(), [(0, 9, String::new()), (1, 3, named(3))].into());
        membership.disown(&[partition(0), partition(1)]);
        assert_eq!(membership.standing(), None);
    }

    #[test]
    fn who_has_read_nothing_need_prove_nothing() {
        let membership = membership();
        membership.own(partition(0), 1, LOG, None);
        membership.suspect();
        assert!(!membership.is_out_of_contact() && !membership.wants_proof());
        membership.delivered(partition(0), 3);
        assert!(membership.is_out_of_contact() && membership.wants_proof());
        let proof = membership.standing().unwrap();
        membership.accepted(membership.now(), &[proof]);
        assert!(!membership.is_out_of_contact());
        membership.refused(Some(RDKafkaErrorCode::RebalanceInProgress));
        assert!(!membership.is_out_of_contact());
        membership.refused(Some(RDKafkaErrorCode::UnknownMemberId));
        assert!(membership.is_out_of_contact());
    }

    #[test]
    fn the_coordinator_is_heard_by_the_clock_of_the_statistics() {
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
            assert_eq!(sample(&statistics), Some(expected));
        }
        assert_eq!(sample(&Statistics::default()), None);
    }
}
