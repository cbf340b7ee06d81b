//! Sessions of several replicas: eviction, restoration and deletion.

use fleet_access::{CurrentRights, Principal, PrincipalKind, Via};
use fleet_hosting::Fleet;
use fleet_policy::{Policy, current::CurrentPolicy};
use futures::future::join_all;

use super::*;

fn sessions(limit: usize) -> Sessions {
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let gateway = Gateway::new(Vec::new(), fleet, Duration::ZERO, 0, None);
    let gateway = gateway.for_client(Asker::local());
    Sessions::new(gateway, limit, Duration::from_secs(3600), CancellationToken::new())
}

fn open_for(sessions: &Sessions, id: &SessionId) -> Result<OpenRequest, SessionsError> {
    let found = sessions.inner.find_or_make(id, || ProtocolVersion::LATEST_WITH_INITIALIZE);
    found.map(|found| found.open)
}

/// The answer to a `ping` through a session.
async fn ping(sessions: &Sessions, id: &SessionId, request: u32) -> ServerJsonRpcMessage {
    let ping = serde_json::json!({"jsonrpc": "2.0", "id": request, "method": "ping"});
    let stream = sessions.create_stream(id, serde_json::from_value(ping).unwrap()).await.unwrap();
    let answers = stream.filter_map(async |event| event.message).collect::<Vec<_>>();
    let answers = tokio::time::timeout(Duration::from_secs(30), answers).await.unwrap();
    (*answers[0]).clone()
}

#[tokio::test]
async fn the_session_that_has_been_idle_longest_makes_room() {
    let sessions = sessions(2);
    assert_eq!(sessions.inner.config.keep_alive, Some(Duration::from_secs(3900)));
    let is_here = |id: &SessionId| sessions.inner.touch(id).is_some();
    // The sessions would end if their transports were dropped.
    let (first, _first) = sessions.create_session().await.unwrap();
    let (second, _second) = sessions.create_session().await.unwrap();
    assert!(is_here(&second) && is_here(&first), "the first is used last");
    let (third, _third) = sessions.create_session().await.unwrap();
    assert!(is_here(&first) && !is_here(&second) && is_here(&third));

    let busy = open_for(&sessions, &first).unwrap();
    assert!(is_here(&third));
    let (fourth, _fourth) = sessions.create_session().await.unwrap();
    assert!(is_here(&first) && !is_here(&third), "an open request keeps a session");
    let also_busy = open_for(&sessions, &fourth).unwrap();
    let refused = sessions.create_session().await.err().unwrap();
    assert!(matches!(refused, SessionsError::TooMany(2)), "{refused}");
    assert!(matches!(open_for(&sessions, &third), Err(SessionsError::TooMany(2))));
    assert_eq!(sessions.inner.known().len(), 2, "a refused session leaves nothing behind");
    drop((busy, also_busy));
    sessions.close_session(&fourth).await.unwrap();
    sessions.create_session().await.unwrap();
    assert!(is_here(&first), "there was room without an eviction");
}

#[tokio::test]
async fn a_session_of_another_replica_is_served() {
    let (one, other) = (sessions(10), sessions(10));
    let (id, _transport) = one.create_session().await.unwrap();
    assert!(other.has_session(&id).await.unwrap());
    // Concurrent requests restore one session.
    let answers = join_all((0..20).map(|n| ping(&other, &id, n))).await;
    assert!(answers.iter().all(|answer| matches!(answer, ServerJsonRpcMessage::Response(_))));
    assert_eq!(other.inner.known().len(), 1);
    // Any replica accepts a notification.
    let third = sessions(10);
    let initialized = serde_json::json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    third.accept_message(&id, serde_json::from_value(initialized).unwrap()).await.unwrap();
    assert!(third.inner.known().is_empty(), "a notification restores no session");
    drop(third.create_standalone_stream(&id).await.unwrap());
    drop(sessions(10).resume(&id, "0".to_owned()).await.unwrap());
    assert!(sessions(10).resume(&id, "0/1".to_owned()).await.is_err());
}

#[tokio::test]
async fn a_session_is_restored_after_its_end_but_not_after_its_deletion() {
    let sessions = sessions(1);
    let (id, _transport) = sessions.create_session().await.unwrap();
    let (_other, _transport) = sessions.create_session().await.unwrap();
    assert!(sessions.inner.touch(&id).is_none(), "the second session evicted the first");
    ping(&sessions, &id, 7).await;
    // The late report that rmcp's session has ended must not end the restored one.
    sessions.close_session(&id).await.unwrap();
    assert!(sessions.inner.touch(&id).is_some());

    SessionStore::delete(&sessions, &id).await.unwrap();
    assert!(!sessions.has_session(&id).await.unwrap());
    assert!(sessions.inner.touch(&id).is_none());
    for foreign in ["", "5f0f4d5c-9c6e-4c7f-8a43-0a0a8d5f6a11"] {
        assert!(!sessions.has_session(&foreign.into()).await.unwrap());
    }
}

#[tokio::test]
async fn a_notification_does_not_disturb_a_session_that_is_being_restored() {
    let sessions = sessions(100);
    let initialized = serde_json::json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let initialized: ClientJsonRpcMessage = serde_json::from_value(initialized).unwrap();
    for _ in 0..50 {
        let id = id::new_id(&SessionScope::default());
        let (stream, accepted) = futures::join!(
            sessions.create_standalone_stream(&id),
            sessions.accept_message(&id, initialized.clone())
        );
        accepted.unwrap();
        drop(stream.unwrap_or_else(|error| panic!("{error}")));
    }
}

#[tokio::test]
async fn a_deletion_during_a_restoration_is_not_an_error() {
    let sessions = sessions(10);
    for _ in 0..20 {
        let id = id::new_id(&SessionScope::default());
        let (stream, deleted) = futures::join!(
            sessions.create_standalone_stream(&id),
            SessionStore::delete(&sessions, &id)
        );
        deleted.unwrap();
        let stream = stream.unwrap_or_else(|error| panic!("{error}"));
        let events =
            tokio::time::timeout(Duration::from_secs(30), stream.collect::<Vec<_>>()).await;
        assert_eq!(events.expect("the end of the stream").len(), 0);
    }

    assert!(sessions.inner.known().is_empty());
}

#[tokio::test]
async fn a_session_that_has_ended_unnoticed_is_restored() {
    let sessions = sessions(10);
    let id = id::new_id(&SessionScope::default());
    ping(&sessions, &id, 7).await;
    let handle = sessions.inner.touch(&id).unwrap().handle.clone();
    handle.close().await.unwrap();
    ping(&sessions, &id, 7).await;
}

#[tokio::test]
async fn a_session_belongs_to_the_principal_that_created_it() {
    let (one, other) = (sessions(10), sessions(10));
    let asker = |subject: &str| {
        let via = Via::Key { id: subject.to_owned() };
        let principal = Principal::new("keys", subject, PrincipalKind::Person, via);
        Some(Asker::new(Arc::new(principal), CurrentRights::default()))
    };
    let alice = || asker("alice");
    let (id, _transport) = ASKER.scope(alice(), one.create_session()).await.unwrap();

    for replica in [&one, &other] {
        assert!(ASKER.scope(alice(), replica.has_session(&id)).await.unwrap());
        for foreign in [asker("bob"), None] {
            assert!(!ASKER.scope(foreign, replica.has_session(&id)).await.unwrap());
        }
    }

    for foreign in [asker("bob"), None] {
        ASKER.scope(foreign.clone(), one.close_session(&id)).await.unwrap();
        ASKER.scope(foreign, SessionStore::delete(&one, &id)).await.unwrap();
    }
    assert!(one.inner.touch(&id).is_some() && !one.inner.deleted.contains(&id));

    ASKER.scope(alice(), SessionStore::delete(&one, &id)).await.unwrap();
    assert!(!ASKER.scope(alice(), one.has_session(&id)).await.unwrap());
}
