//! Reading request bodies, within bounds of size and time.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::StreamExt;

use super::MAX_BODY;

/// How long a body may take from its request's header to its end. The largest one arrives in this
/// time at 140 KB/s; who is slower than that holds a connection, and memory for what has come, for
/// no longer.
pub(super) const BODY_TIME: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read to be polite.
const MAX_DRAINED: usize = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Reads a request's whole body, and turns the request away where that is too large or takes too
/// long. What comes after this finds the body in memory.
pub(super) async fn read_body(
    State(within): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    if length.is_some_and(|length: usize| length > MAX_BODY) {
        drain_body(body).await;
        return too_large();
    }
    match tokio::time::timeout(within, read_bounded(&mut body)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(BodyError::TooLarge)) => {
            drain_body(body).await;
            too_large()
        }
        Ok(Err(BodyError::Broken)) => {
            (StatusCode::BAD_REQUEST, "the body broke off\n").into_response()
        }
        Err(_) => {
            // What is left of the body would be read as the next request.
            let problem = format!("the body was not there within {} ms\n", within.as_millis());
            (StatusCode::REQUEST_TIMEOUT, [(header::CONNECTION, "close")], problem).into_response()
        }
    }
}

/// Why there is no body.
enum BodyError {
    TooLarge,
    Broken,
}

async fn read_bounded(body: &mut BodyDataStream) -> Result<Vec<u8>, BodyError> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| BodyError::Broken)?;
        if whole.len() + chunk.len() > MAX_BODY {
            return Err(BodyError::TooLarge);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

/// Reads a body that is too large and throws it away, up to a bound: a caller that is still sending
/// when the connection closes sees a lost connection, which it may retry, and not the answer, which
/// says that it need not.
async fn drain_body(mut body: BodyDataStream) {
    let drain = async {
        let mut drained = 0;
        while let Some(Ok(chunk)) = body.next().await {
            drained += chunk.len();
            if drained > MAX_DRAINED {
                break;
            }
        }
    };
    // Whether it was in time or not, the answer is the same.
    _ = tokio::time::timeout(DRAIN_TIME, drain).await;
}

fn too_large() -> Response {
    (StatusCode::PAYLOAD_TOO_LARGE, format!("the body must not be above {MAX_BODY} bytes\n"))
        .into_response()
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn_with_state, routing::post};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let patience = Duration::from_secs(30);
        let within = Duration::from_millis(50);
        let router = Router::new()
            .route("/x", post(async |body: String| body))
            .layer(from_fn_with_state(within, read_body));
        let (listener, address) = fleet_ops::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        tokio::spawn(fleet_ops::http::serve(listener, router, CancellationToken::new()));
        let check = async |head: &str, body: &str, expected: &str| {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request =
                format!("POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n\r\n{body}");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = client.read_to_string(&mut answer);
            tokio::time::timeout(patience, read).await.expect("no answer and no end").unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{head} {body}: {answer}");
        };
        check("content-length: 5", "whole", "200").await;
        check("content-length: 5", "", "408").await;
        check("content-length: 5", "slow", "408").await;
        check("transfer-encoding: chunked", "4\r\nslow\r\n", "408").await;
        check("transfer-encoding: chunked", "zzz\r\n", "400").await;
    }
}
