//! Tests the group protocol step by step; each test is a conversation with one group.

use super::*;

const SESSION: Duration = Duration::from_secs(6);
const REBALANCE: Duration = Duration::from_secs(60);

fn ask(member: &str, subscription: &str) -> Join {
    Join {
        member: member.into(),
        instance: None,
        client_id: "test".into(),
        client_host: "/127.0.0.1".into(),
        session: SESSION,
        rebalance: REBALANCE,
        protocol_type: "consumer".into(),
        protocols: vec![("cooperative-sticky".into(), subscription.to_owned().into())],
    }
}

fn join(group: &mut Group, now: Instant, member: &str) -> Result<Answer<Joined>, ErrorCode> {
    group.invite(member.into());
    group.join(now, &ask(member, "t"))
}

/// A group of two that has begun its second generation; `a` is the leader.
fn pair(now: Instant) -> Group {
    let mut group = Group::default();
    assert!(matches!(join(&mut group, now, "a"), Ok(Answer::Now(_))));
    assert_eq!(
        group.sync(now, "a", 1, vec![("a".into(), "all".into())]),
        Ok(Answer::Now("all".into()))
    );

    assert_eq!(join(&mut group, now, "b"), Ok(Answer::Later));
    assert_eq!(group.heartbeat(now, "a", 1), Err(ErrorCode::RebalanceInProgress));
    assert!(matches!(
        group.join(now, &ask("a", "t")),
        Ok(Answer::Now(Joined { generation: 2, .. }))
    ));
    group
}

fn stable_pair(now: Instant) -> Group {
    let mut group = pair(now);
    let halves = vec![("a".into(), "left".into()), ("b".into(), "right".into())];
    assert_eq!(group.sync(now, "b", 2, Vec::new()), Ok(Answer::Later));
    assert_eq!(group.sync(now, "a", 2, halves), Ok(Answer::Now("left".into())));
    assert_eq!(group.await_sync("b", 2), Ok(Answer::Now("right".into())));
    group
}

#[test]
fn the_leader_and_only_the_leader_sees_everybody() {
    let now = Instant::now();
    let group = pair(now);
    let (leader, follower) = (group.joined("a"), group.joined("b"));
    assert_eq!((leader.leader.as_str(), leader.members.len()), ("a", 2));
    assert_eq!((follower.leader.as_str(), follower.members.len()), ("a", 0));
}

#[test]
fn silence_ends_membership_and_starts_a_generation() {
    let now = Instant::now();
    let mut group = stable_pair(now);

    let later = now + SESSION / 2;
    group.heartbeat(later, "a", 2).unwrap();
    assert!(!group.expire(later));

    let too_late = now + SESSION + Duration::from_millis(1);
    assert!(group.expire(too_late));
    assert_eq!(group.heartbeat(too_late, "b", 2), Err(ErrorCode::UnknownMemberId));
    assert_eq!(group.heartbeat(too_late, "a", 2), Err(ErrorCode::RebalanceInProgress));
    assert!(matches!(
        group.join(too_late, &ask("a", "t")),
        Ok(Answer::Now(Joined { generation: 3, .. }))
    ));
}

/// All members are killed while one of them waits for the leader's assignments.
#[test]
fn the_group_does_not_wait_for_a_dead_member() {
    let now = Instant::now();
    let mut group = pair(now);
    assert_eq!(group.sync(now, "b", 2, Vec::new()), Ok(Answer::Later));
    assert_eq!(join(&mut group, now, "c"), Ok(Answer::Later));

    let mut when = now;
    while matches!(group.await_join("c"), Ok(Answer::Later)) {
        when += SESSION / 2;
        group.expire(when);
        assert!(
            when <= now + 3 * SESSION,
            "the group waits for dead members: {:?}",
            group.members.keys()
        );
    }

    assert!(group.members.keys().eq(["c"]));
}

#[test]
fn the_others_learn_at_once_that_a_member_left() {
    let now = Instant::now();
    let mut group = stable_pair(now);
    assert!(group.leave(now, "a", None));
    assert!(!group.leave(now, "a", None));
    assert_eq!(group.heartbeat(now, "b", 2), Err(ErrorCode::RebalanceInProgress));

    let joined = group.join(now, &ask("b", "t"));
    assert!(
        matches!(joined, Ok(Answer::Now(Joined { generation: 3, leader, .. })) if leader == "b")
    );

    assert!(group.leave(now, "b", None));
    assert_eq!(group.phase, Phase::Empty);
}

#[test]
fn a_member_that_does_not_join_again_is_left_behind() {
    let now = Instant::now();
    let mut group = stable_pair(now);
    assert_eq!(join(&mut group, now, "c"), Ok(Answer::Later));

    let mut when = now;
    while when < now + REBALANCE {
        when += SESSION / 2;
        // The member is alive, and busy giving up partitions.
        group.heartbeat(when, "a", 2).ok();
        group.expire(when);
    }

    assert!(group.members.keys().eq(["c"]), "{:?}", group.members.keys());
    assert!(matches!(group.await_join("c"), Ok(Answer::Now(Joined { generation: 3, .. }))));
}

#[test]
fn commits_are_fenced_by_generation_and_membership() {
    let now = Instant::now();
    let mut group = Group::default();
    assert_eq!(group.may_commit(now, "", -1), Ok(()), "tools may commit to an empty group");

    group = stable_pair(now);
    assert_eq!(group.may_commit(now, "a", 2), Ok(()));
    assert_eq!(group.may_commit(now, "a", 1), Err(ErrorCode::IllegalGeneration));
    assert_eq!(group.may_commit(now, "gone", 2), Err(ErrorCode::UnknownMemberId));
    assert_eq!(group.may_commit(now, "", -1), Err(ErrorCode::UnknownMemberId));

    // While the next generation is prepared, results of this one may still be committed.
    assert_eq!(join(&mut group, now, "c"), Ok(Answer::Later));
    assert_eq!(group.may_commit(now, "a", 2), Ok(()));
}

#[test]
fn a_repeated_join_gets_the_same_response() {
    let now = Instant::now();
    let mut group = stable_pair(now);
    assert!(matches!(
        group.join(now, &ask("b", "t")),
        Ok(Answer::Now(Joined { generation: 2, .. }))
    ));
    assert_eq!(group.phase, Phase::Stable);

    // A changed subscription starts a new generation.
    assert_eq!(group.join(now, &ask("b", "t, and gave up 1")), Ok(Answer::Later));
}

#[test]
fn strangers_are_refused() {
    let now = Instant::now();
    let mut group = stable_pair(now);
    assert_eq!(group.join(now, &ask("never invited", "t")), Err(ErrorCode::UnknownMemberId));

    let mut other = ask("c", "t");
    other.protocols = vec![("range".into(), Bytes::new())];
    group.invite("c".into());
    assert_eq!(group.join(now, &other), Err(ErrorCode::InconsistentGroupProtocol));
}

#[test]
fn a_static_member_replaces_its_former_self() {
    let now = Instant::now();
    let mut group = Group::default();
    let named = |member| Join { instance: Some("worker-1".into()), ..ask(member, "t") };
    assert!(matches!(group.join(now, &named("first")), Ok(Answer::Now(_))));
    assert!(matches!(group.join(now, &named("second")), Ok(Answer::Now(_))));
    assert!(group.members.keys().eq(["second"]));
    assert_eq!(group.heartbeat(now, "first", 1), Err(ErrorCode::UnknownMemberId));
}
