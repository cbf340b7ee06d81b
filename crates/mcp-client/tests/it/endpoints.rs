//! Several endpoints: which one gets a request, and what may be sent to another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{Retry, Unavailable};
use tokio::io::AsyncReadExt as _;

use crate::support::{
    Server, call, client, expect, modern, nobody, raw, result, succeeds, text, until, write_json,
};

async fn good(name: &'static str) -> Server {
    modern(move |seen| Json(result(seen.id(), text(name))).into_response()).await
}

#[tokio::test]
async fn calls_are_spread_over_the_endpoints() {
    let servers = [good("a").await, good("b").await, good("c").await];
    let client = client(servers.each_ref().map(|server| server.url.clone()), |_| {});
    for _ in 0..30 {
        succeeds(&client).await;
    }
    assert_eq!(servers.each_ref().map(|server| server.count("tools/call")), [10, 10, 10]);
}

#[tokio::test]
async fn a_call_that_could_not_be_sent_goes_to_the_next_endpoint() {
    let server = good("a").await;
    let client = client(&[nobody().await, nobody().await, server.url.clone()], |_| {});
    for _ in 0..10 {
        succeeds(&client).await;
    }
    assert_eq!(server.count("tools/call"), 10);
}

#[tokio::test]
async fn the_server_is_unavailable_only_if_all_endpoints_are() {
    let urls = [nobody().await, nobody().await];
    let failure = expect(&client(&urls, |_| {}), Unavailable, ErrorKind::Connect).await;
    assert!(urls.iter().all(|url| failure.error.message.contains(url)), "{failure:?}");
    let busy = crate::support::server(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    expect(&client(&[nobody().await, busy.url], |_| {}), Retry, ErrorKind::Http).await;
}

#[tokio::test]
async fn refused_credentials_are_tried_at_another_endpoint() {
    for code in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let (locked, open) = (modern(move |_| code.into_response()).await, good("open").await);
        let client = client(&[locked.url.clone(), open.url.clone()], |_| {});
        for _ in 0..10 {
            succeeds(&client).await;
        }
        assert_eq!(locked.count("tools/call"), 1, "it was not put aside");
    }
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_sent_elsewhere() {
    let lossy = raw(|stream, _| Box::pin(async { drop(stream) })).await;
    let other = good("other").await;
    let client = client(&[lossy, other.url.clone()], |_| {});
    expect(&client, Retry, ErrorKind::ConnectionLost).await;
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn a_busy_endpoint_is_avoided() {
    let busy = modern(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    let other = good("other").await;
    let client = client(&[busy.url.clone(), other.url.clone()], |_| {});
    expect(&client, Retry, ErrorKind::Http).await;
    for _ in 0..5 {
        succeeds(&client).await;
    }
    assert_eq!((busy.count("tools/call"), other.count("tools/call")), (1, 5));
}

#[tokio::test]
async fn the_endpoint_with_the_fewest_calls_in_flight_is_chosen() {
    let held = Arc::new(AtomicUsize::new(0));
    let count = held.clone();
    let slow = raw(move |mut stream, request| {
        count.fetch_add(1, Ordering::SeqCst);
        let count = count.clone();
        Box::pin(async move {
            // Until the client closes the connection.
            drop(stream.read(&mut [0]).await);
            count.fetch_sub(1, Ordering::SeqCst);
            drop(request);
        })
    })
    .await;
    let quick = raw(|mut stream, request| {
        Box::pin(
            async move { write_json(&mut stream, &result(&request["id"], text("quick"))).await },
        )
    })
    .await;
    let client = client(&[slow, quick], |_| {});
    let first = client.clone();
    let running = tokio::spawn(async move { call(&first).await });
    until("the slow call", || held.load(Ordering::SeqCst) == 1).await;
    for _ in 0..10 {
        succeeds(&client).await;
    }
    assert_eq!(held.load(Ordering::SeqCst), 1);
    running.abort();
    until("the end of the slow call", || held.load(Ordering::SeqCst) == 0).await;
}
