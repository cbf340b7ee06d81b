//! Tests which rejections cost a session, and that requests share a renewed session. Examples come
//! first, then properties.

use proptest::prelude::*;

use super::*;

const fn plain(status: u16) -> Rejection {
    Rejection { status, code: None, addressed: false }
}

const fn unaddressed(status: u16, code: i64) -> Rejection {
    Rejection { status, code: Some(code), addressed: false }
}

const fn addressed(status: u16, code: i64) -> Rejection {
    Rejection { status, code: Some(code), addressed: true }
}

#[test]
fn rejections_are_classified() {
    let check = |rejection: Rejection, expected: Suspicion| {
        assert_eq!(rejection.suspicion(), expected, "{rejection:?}");
    };
    // Answers of real servers for a session that they have forgotten.
    check(plain(404), Suspicion::TurnedAway);
    check(unaddressed(404, -32001), Suspicion::TurnedAway);
    check(unaddressed(400, -32000), Suspicion::TurnedAway);
    check(plain(400), Suspicion::TurnedAway);
    check(plain(401), Suspicion::TurnedAway);
    check(plain(403), Suspicion::TurnedAway);
    check(plain(410), Suspicion::TurnedAway);
    check(plain(422), Suspicion::TurnedAway);
    check(unaddressed(503, -32001), Suspicion::TurnedAway);
    check(unaddressed(200, -32001), Suspicion::TurnedAway);
    check(addressed(400, -32602), Suspicion::Unclear);
    check(addressed(200, -32602), Suspicion::Unclear);
    check(addressed(200, -32000), Suspicion::Unclear);
    check(addressed(200, -32603), Suspicion::Unclear);
    check(unaddressed(500, -32603), Suspicion::Unclear);
    check(plain(500), Suspicion::Unclear);
    check(plain(503), Suspicion::Unclear);

    // Rejections with another cause.
    check(addressed(404, -32601), Suspicion::No);
    check(unaddressed(400, -32700), Suspicion::No);
    check(addressed(400, -32020), Suspicion::No);
    for status in [302, 405, 408, 413, 415, 429] {
        check(plain(status), Suspicion::No);
    }
    check(unaddressed(429, -32000), Suspicion::No);
    check(addressed(429, -32603), Suspicion::No);
}

/// Creates a keeper with a session, and the doubt about a rejected request of it.
fn rejected(rejection: Rejection) -> (Keeper, Doubt) {
    let mut keeper = Keeper::default();
    let lease = keeper.issue();
    let doubt = keeper.doubt(lease, rejection, false).expect("a doubt");
    (keeper, doubt)
}

#[test]
fn a_request_that_was_turned_away_is_sent_again_once() {
    let (mut keeper, doubt) = rejected(plain(400));
    assert_eq!(keeper.next(&doubt), Step::Renew);
    let lease = keeper.issue();
    assert_eq!(keeper.renewed(&doubt), Step::Resend);
    assert!(keeper.doubt(lease, plain(400), true).is_none());

    // The session was not the cause, so the next such rejection is checked before the session is
    // given up.
    let mut doubt = keeper.doubt(lease, plain(400), false).unwrap();
    assert_eq!(keeper.next(&doubt), Step::Ping);
    assert_eq!(keeper.pinged(&mut doubt, Pinged::Answered), Step::Stand);

    // A session that is really lost is still detected.
    let mut doubt = keeper.doubt(lease, plain(400), false).unwrap();
    assert_eq!(keeper.next(&doubt), Step::Ping);
    assert_eq!(keeper.pinged(&mut doubt, Pinged::Rejected(plain(400))), Step::Renew);
    keeper.issue();
    assert_eq!(keeper.renewed(&doubt), Step::Resend);
}

#[test]
fn errors_in_a_live_session_cost_no_session() {
    let answers = [Pinged::Answered, Pinged::Rejected(addressed(200, -32601)), Pinged::Unanswered];
    for code in [-32602, -32603] {
        for answer in answers {
            let (mut keeper, mut doubt) = rejected(addressed(200, code));
            let lease = keeper.current();
            assert_eq!(keeper.next(&doubt), Step::Ping);
            assert_eq!(keeper.pinged(&mut doubt, answer), Step::Stand);
            assert_eq!(keeper.current(), lease);
        }
    }
}

#[test]
fn an_error_that_a_ping_also_meets_concerns_the_session() {
    let check = |rejection: Rejection, ping: Rejection, expected: Step| {
        let (mut keeper, mut doubt) = rejected(rejection);
        assert_eq!(keeper.next(&doubt), Step::Ping);
        assert_eq!(keeper.pinged(&mut doubt, Pinged::Rejected(ping)), Step::Renew);
        keeper.issue();
        assert_eq!(keeper.renewed(&doubt), expected, "{rejection:?} and {ping:?}");
    };

    check(addressed(400, -32602), addressed(400, -32602), Step::Resend);
    check(addressed(200, -32000), addressed(200, -32000), Step::Resend);
    check(addressed(200, -32603), addressed(200, -32603), Step::Resend);
    // These requests may have run, so only the next request uses the new session.
    check(addressed(200, -32000), plain(404), Step::Stand);
    check(addressed(200, -32603), plain(404), Step::Stand);
    check(plain(500), plain(500), Step::Stand);
    check(plain(503), plain(503), Step::Stand);
}

#[test]
fn requests_of_one_session_share_its_renewal() {
    let (mut keeper, first) = rejected(plain(401));
    let old = keeper.current();
    let second = keeper.doubt(old, plain(401), false).unwrap();
    let unclear = keeper.doubt(old, addressed(200, -32000), false).unwrap();

    assert_eq!(keeper.next(&first), Step::Renew);
    keeper.issue();
    assert_eq!(keeper.renewed(&first), Step::Resend);
    assert_eq!(keeper.next(&second), Step::Resend);
    assert_eq!(keeper.next(&unclear), Step::Stand);

    // A request that was on its way is rejected by the old session.
    let late = keeper.doubt(old, plain(401), false).unwrap();
    assert_eq!(keeper.next(&late), Step::Resend);
}

#[test]
fn waiting_requests_share_a_failure_but_later_ones_do_not() {
    let (mut keeper, first) = rejected(plain(401));
    let lease = keeper.current();
    let second = keeper.doubt(lease, plain(401), false).unwrap();
    let unclear = keeper.doubt(lease, plain(502), false).unwrap();

    assert_eq!(keeper.next(&first), Step::Renew);

    // Rejected during the handshake.
    let third = keeper.doubt(lease, plain(401), false).unwrap();
    assert_eq!(keeper.not_renewed(&first), Step::Failed);
    assert_eq!(keeper.next(&second), Step::Failed);
    assert_eq!(keeper.next(&third), Step::Failed);
    assert_eq!(keeper.next(&unclear), Step::Stand);

    let later = keeper.doubt(lease, plain(401), false).unwrap();
    assert_eq!(keeper.next(&later), Step::Renew);
}

#[test]
fn a_dropped_inquiry_starts_over() {
    let (mut keeper, first) = rejected(plain(400));
    let second = keeper.doubt(keeper.current(), plain(400), false).unwrap();

    assert_eq!(keeper.next(&first), Step::Renew);
    // The first caller was dropped together with its turn.
    assert_eq!(keeper.next(&second), Step::Renew);
}

/// A server that forgets sessions and has one way of saying so.
#[derive(Debug, Clone, Copy)]
struct Server {
    /// The session that the server knows.
    knows: Option<u64>,
    says: Rejection,
}

fn way() -> impl Strategy<Value = Rejection> {
    prop_oneof![
        Just(plain(404)),
        Just(plain(401)),
        Just(unaddressed(400, -32000)),
        Just(unaddressed(503, -32001)),
        Just(addressed(400, -32602)),
        Just(addressed(200, -32000)),
        Just(addressed(200, -32603)),
    ]
}

proptest! {
    /// All requests in flight at a restart succeed, with one handshake per restart; a request with
    /// bad arguments costs no session; and no request runs twice.
    #[test]
    fn there_is_one_handshake_per_restart(
        says in way(),
        rounds in prop::collection::vec((1_usize..5, any::<bool>(), any::<bool>()), 1..20),
    ) {
        let mut keeper = Keeper::default();
        let mut sessions = 1_u64;
        let mut handshakes = 0_u64;
        let mut restarts = 0_u64;
        keeper.issue();
        let mut server = Server { knows: Some(1), says };

        for (requests, restart, bad) in rounds {
            if restart {
                server.knows = None;
                restarts += 1;
            }

            let lease = keeper.current();
            let answer = |server: &Server, session: u64| match server.knows {
                Some(known) if known == session => bad.then_some(addressed(200, -32602)),
                _ => Some(server.says),
            };

            let sent = sessions;
            let doubts: Vec<Option<Doubt>> = (0..requests)
                .map(|_| answer(&server, sent).and_then(|found| keeper.doubt(lease, found, false)))
                .collect();

            for mut doubt in doubts.into_iter().flatten() {
                let mut step = keeper.next(&doubt);
                if step == Step::Ping {
                    let lost = server.knows != Some(sent);
                    let pinged = if lost { Pinged::Rejected(server.says) } else { Pinged::Answered };
                    step = keeper.pinged(&mut doubt, pinged);
                }
                if step == Step::Renew {
                    sessions += 1;
                    handshakes += 1;
                    server.knows = Some(sessions);
                    keeper.issue();
                    step = keeper.renewed(&doubt);
                }

                match step {
                    Step::Resend => {
                        prop_assert_eq!(answer(&server, sessions), bad.then_some(addressed(200, -32602)));
                    }
                    Step::Stand => prop_assert!(bad && doubt.rejection == addressed(200, -32602)),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert!(handshakes <= restarts);
        }
    }
}
