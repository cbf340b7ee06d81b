//! The handler that all contestants call: an MCP server with one tool that takes a set time.
//!
//! It does as little as possible, because it shares the machine's cores with the contestants. A
//! POST to `/w/<n>/mcp` is JSON-RPC; one to `/w/<n>/job` is a job's envelope. `<n>` is the number
//! of the calling worker.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    calls::{self, Call},
    workload,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write the port to this file once it listens.
    #[arg(long)]
    ready_file: PathBuf,
}

/// The stub's settings for a run. Setting them clears the log of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    /// The duration of a call, in µs.
    pub(crate) service_us: u64,
    /// The number of slow jobs in a thousand.
    pub(crate) slow_per_1000: u64,
    /// The duration of a slow job, in µs.
    pub(crate) slow_us: u64,
}

impl Service {
    fn of(self, job: u32) -> Duration {
        let is_slow = workload::hash(u64::from(job) ^ 0x510_0000_0000) % 1000 < self.slow_per_1000;
        Duration::from_micros(if is_slow { self.slow_us } else { self.service_us })
    }
}

/// The statistics, which are available at any time.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// The number of answered calls.
    pub(crate) calls: usize,
    /// When the first of them arrived, in µs since 1970; 0 if there is none.
    pub(crate) first: u64,
    /// The most concurrent calls.
    pub(crate) most_at_once: usize,
}

#[derive(Debug, Default)]
struct State {
    service: Mutex<Service>,
    calls: Mutex<Vec<Call>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// An open call, until it is answered or its client has left.
struct Present<'a>(&'a State);

impl<'a> Present<'a> {
    fn enter(state: &'a State) -> Self {
        let now = state.now.fetch_add(1, Ordering::Relaxed) + 1;
        state.most.fetch_max(now, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Locks a mutex, even if it is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run(args: &Args) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address: SocketAddr = listener.local_addr().expect("the port's number");
        let partial = args.ready_file.with_extension("partial");
        std::fs::write(&partial, address.port().to_string()).expect("the ready file");
        std::fs::rename(&partial, &args.ready_file).expect("the ready file");
        let state = Arc::new(State::default());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            // Nagle's algorithm would delay calls.
            drop(stream.set_nodelay(true));
            let state = state.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(state.clone(), request));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                // Errors are expected, because contestants are killed in the middle of calls.
                drop(connection.await);
            });
        }
    });
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = match (request.method(), path.as_str()) {
        (&Method::GET, "/stats") => serde_json::to_vec(&stats(&state)).unwrap_or_default(),
        (&Method::GET, "/calls") => calls::encode(&lock(&state.calls)),
        (&Method::POST, "/service") => {
            let body = read(request).await;
            *lock(&state.service) = serde_json::from_slice(&body).expect("a service");
            lock(&state.calls).clear();
            state.most.store(0, Ordering::Relaxed);
            Vec::new()
        }
        (&Method::POST, _) => call(&state, &path, &read(request).await).await,
        _ => Vec::new(),
    };

    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::new(body.into())).expect("a response of constant parts"))
}

async fn read(request: Request<Incoming>) -> Bytes {
    request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

fn stats(state: &State) -> Stats {
    let calls = lock(&state.calls);
    Stats {
        calls: calls.len(),
        first: calls.iter().take(1000).map(|call| call.begin).min().unwrap_or_default(),
        most_at_once: state.most.load(Ordering::Relaxed),
    }
}

async fn call(state: &State, path: &str, body: &[u8]) -> Vec<u8> {
    let begin = calls::now();
    let id = id_of(body);
    let Some(job) = workload::number_in(body) else { return handshake(id, body) };
    let worker = path
        .strip_prefix("/w/")
        .and_then(|rest| rest.split('/').next()?.parse().ok())
        .unwrap_or_default();
    let _present = Present::enter(state);
    let service = lock(&state.service).of(job);
    if !service.is_zero() {
        tokio::time::sleep(service).await;
    }

    lock(&state.calls).push(Call { job, worker, begin, end: calls::now() });
    workload::response(id).into_bytes()
}

/// The id of a JSON-RPC request, verbatim; our own client and the bare one write it as the second
/// member.
fn id_of(body: &[u8]) -> &str {
    const MARK: &[u8] = br#"{"jsonrpc":"2.0","id":"#;
    let rest = body.strip_prefix(MARK).unwrap_or_default();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok().filter(|digits| !digits.is_empty()).unwrap_or("0")
}

/// The answer to a request other than a call: the protocol revision, or an empty result.
fn handshake(id: &str, body: &[u8]) -> Vec<u8> {
    let discover = body.windows(15).any(|window| window == b"server/discover");
    let result = if discover {
        json!({
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "stub", "version": "1"},
        })
    } else {
        json!({})
    };
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_one_in_a_hundred_jobs_is_always_slow() {
        let service = Service { service_us: 1, slow_per_1000: 10, slow_us: 9 };
        let slow = (0..100_000).filter(|job| service.of(*job) == Duration::from_micros(9)).count();
        assert!((900..1100).contains(&slow), "{slow}");
        assert_eq!(Service { slow_per_1000: 0, ..service }.of(3), Duration::from_micros(1));
    }

    #[test]
    fn the_id_of_a_request_is_returned() {
        assert_eq!(id_of(br#"{"jsonrpc":"2.0","id":17,"method":"x"}"#), "17");
        assert_eq!(id_of(br#"{"jobID":"b-1"}"#), "0");
    }
}
