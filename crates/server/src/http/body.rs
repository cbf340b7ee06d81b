//! Reads request bodies, within limits of size and time.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fleet_ops::http::content_length;
use futures::StreamExt;

use super::MAX_BODY;

/// The time in which a body must arrive after its request's headers. The largest body needs
/// 140 KB/s; a slower client can hold a connection and memory for no longer than this.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(30);
/// The most that is read and discarded of a body that is too large, in bytes.
const MAX_DRAINED: usize = 64 * 1024 * 1024;
/// How long draining may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Reads a request's whole body into memory for the layers and handlers below, and rejects the
/// request if the body is too large or too slow.
pub(crate) async fn read_body(
    State(within): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    let length = content_length(request.headers());
    let (mut parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        drain_body(body, MAX_DRAINED).await;
        return too_large();
    }

    match tokio::time::timeout(within, read_bounded(&mut body)).await {
        Ok(Ok(body)) => {
            // A body in chunks declares no length, and limits count it all the same.
            parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
            next.run(Request::from_parts(parts, Body::from(body))).await
        }
        Ok(Err(BodyError::TooLarge)) => {
            drain_body(body, MAX_DRAINED).await;
            too_large()
        }
        Ok(Err(BodyError::Broken)) => {
            (StatusCode::BAD_REQUEST, "the request body is incomplete or malformed\n")
                .into_response()
        }
        Err(_) => {
            // Close the connection, or the rest of the body would be read as the next request.
            let problem =
                format!("the request body did not arrive within {} ms\n", within.as_millis());
            (StatusCode::REQUEST_TIMEOUT, [(header::CONNECTION, "close")], problem).into_response()
        }
    }
}

/// Why a body could not be read.
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

/// Reads and discards the body of a request that is refused, up to `limit` bytes. If the connection
/// closed while a caller is still sending, the caller would see a lost connection, which it may
/// retry, instead of the response that tells it not to.
pub(crate) async fn drain_body(mut body: BodyDataStream, limit: usize) {
    let drain = async {
        let mut drained = 0;
        while let Some(Ok(chunk)) = body.next().await {
            drained += chunk.len();
            if drained > limit {
                break;
            }
        }
    };
    // The response is the same whether the whole body was drained or not.
    _ = tokio::time::timeout(DRAIN_TIME, drain).await;
}

fn too_large() -> Response {
    (StatusCode::PAYLOAD_TOO_LARGE, format!("the request body must not exceed {MAX_BODY} bytes\n"))
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
    async fn a_slow_body_is_rejected_in_time() {
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
            tokio::time::timeout(patience, read)
                .await
                .expect("neither an answer nor an end")
                .unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{head} {body}: {answer}");
        };

        check("content-length: 5", "whole", "200").await;
        check("content-length: 5", "", "408").await;
        check("content-length: 5", "slow", "408").await;
        check("transfer-encoding: chunked", "4\r\nslow\r\n", "408").await;
        check("transfer-encoding: chunked", "zzz\r\n", "400").await;
    }
}
