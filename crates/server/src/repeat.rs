//! Answers a repeat of a job's call from memory.
//!
//! Delivery is at least once: after a crash or a lost connection, a worker may repeat a call that
//! has already succeeded. Within a window, the server still knows the result and returns it, so
//! that the tool doesn't run twice. Only successes are remembered, because a retry must run. While
//! a call runs, its repeats wait for it.
//!
//! This is the thin shell around [`memory`]; [`key`] defines which calls are equal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::{meta::REPEATED, size::json_bytes};
use parking_lot::Mutex;
use rmcp::model::{CallToolResponse, CallToolResult, ErrorData, MetaObject};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::{REPEAT_BYTES, REPEATS};

pub(crate) mod key;
mod memory;

pub(crate) use key::Key;
use memory::{Begin, Memory};

type Remembered = Arc<CallToolResult>;
/// Holds the result once the running call has succeeded; closed without a result if the call
/// failed.
type Waiter = watch::Receiver<Option<Remembered>>;

/// The running calls of jobs, and the results of those that succeeded lately.
pub(crate) struct Repeats {
    memory: Mutex<Memory<Remembered, Waiter>>,
}

/// Why a repeat was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAnswered {
    /// The running call didn't end in time.
    #[error("an earlier call of this job with the same arguments is still running")]
    TimedOut,
    /// The caller cancelled the repeat.
    #[error("the call was cancelled")]
    Cancelled,
}

impl NotAnswered {
    /// A word for programs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Repeats {
    /// Remembers results for `window`, up to `max_bytes` of them.
    pub(crate) fn new(window: Duration, max_bytes: u64) -> Self {
        Self { memory: Mutex::new(Memory::new(window, max_bytes)) }
    }

    /// Returns the remembered result of this call, waits up to `limit` for an equal call that is
    /// running, or runs the call with `run`.
    pub(crate) async fn answer(
        &self,
        key: Key,
        limit: Duration,
        cancelled: &CancellationToken,
        run: impl Future<Output = Result<CallToolResponse, ErrorData>>,
    ) -> Result<Result<CallToolResponse, ErrorData>, NotAnswered> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let (sender, waiter) = watch::channel(None);
            let begin = self.with_memory(|memory| memory.begin(key, Instant::now(), || waiter));
            let mut first = match begin {
                Begin::Answer(result) => return Ok(Ok(mark_repeated(&result))),
                Begin::Run => {
                    // If this future is dropped, the lead tells waiting repeats that there is no
                    // result.
                    let lead = Lead { repeats: self, key, sender };
                    let result = run.await;

                    if let Ok(CallToolResponse::Complete(result)) = &result
                        && result.is_error != Some(true)
                    {
                        lead.record_success(result);
                    }
                    return Ok(result);
                }
                Begin::Wait(first) => first,
            };

            tokio::select! {
                ended = first.wait_for(Option::is_some) => {
                    if let Some(result) = ended.ok().and_then(|ended| ended.clone()) {
                        return Ok(Ok(mark_repeated(&result)));
                    }
                    // The running call failed, so this call, or another that waited, runs next.
                }
                () = tokio::time::sleep_until(deadline) => return Err(NotAnswered::TimedOut),
                () = cancelled.cancelled() => return Err(NotAnswered::Cancelled),
            }
        }
    }

    fn with_memory<R>(&self, work: impl FnOnce(&mut Memory<Remembered, Waiter>) -> R) -> R {
        let mut memory = self.memory.lock();
        let result = work(&mut memory);
        metrics::gauge!(REPEAT_BYTES.name).set(memory.bytes() as f64);
        result
    }
}

/// Marks a remembered result as repeated, and counts it.
fn mark_repeated(result: &CallToolResult) -> CallToolResponse {
    metrics::counter!(REPEATS.name).increment(1);
    let mut result = result.clone();
    result.meta.get_or_insert_with(MetaObject::new).insert(REPEATED.to_owned(), true.into());
    CallToolResponse::Complete(result)
}

/// The right to run a call. Dropping it without a result lets a waiting repeat run.
struct Lead<'a> {
    repeats: &'a Repeats,
    key: Key,
    sender: watch::Sender<Option<Remembered>>,
}

impl Lead<'_> {
    fn record_success(self, result: &CallToolResult) {
        // Waiting repeats get the result even if it is too large to keep.
        let size = json_bytes(result);
        let result = Arc::new(result.clone());
        let kept = result.clone();
        self.repeats
            .with_memory(|memory| memory.record_success(self.key, kept, size, Instant::now()));
        self.sender.send_replace(Some(result));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // After a success, the memory has already removed this run; an entry found now would belong
        // to a later run and must stay.
        if self.sender.borrow().is_none() {
            self.repeats.with_memory(|memory| memory.record_failure(self.key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, task::Poll};

    use futures::poll;
    use rmcp::model::ContentBlock;
    use serde_json::{Value, json};
    use tokio::sync::oneshot;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);
    type Answer = Result<Result<CallToolResponse, ErrorData>, NotAnswered>;

    fn key() -> Key {
        Key::from_bytes([1; 32])
    }

    fn repeats(max_bytes: u64) -> Repeats {
        Repeats::new(Duration::from_secs(600), max_bytes)
    }

    fn result(text: &str) -> Result<CallToolResponse, ErrorData> {
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }

    async fn never() -> Result<CallToolResponse, ErrorData> {
        panic!("the tool must not run")
    }

    fn check(answer: &Answer, text: &str, repeated: bool) {
        let Ok(Ok(CallToolResponse::Complete(result))) = answer else { panic!("{answer:?}") };
        let result: Value = serde_json::to_value(result).unwrap();
        assert_eq!(result["content"][0]["text"], json!(text), "{result}");
        assert_eq!(result["_meta"][REPEATED] == json!(true), repeated, "{result}");
    }

    #[tokio::test]
    async fn successes_are_remembered_and_failures_are_not() {
        let (repeats, ct) = (repeats(1 << 20), CancellationToken::new());
        let failed = CallToolResult::error(vec![ContentBlock::text("no")]);
        let answer = repeats.answer(key(), LIMIT, &ct, ready(Ok(failed.into()))).await;
        check(&answer, "no", false);
        let error = Err(ErrorData::internal_error("no", None));
        assert!(repeats.answer(key(), LIMIT, &ct, ready(error)).await.unwrap().is_err());
        check(&repeats.answer(key(), LIMIT, &ct, ready(result("yes"))).await, "yes", false);
        check(&repeats.answer(key(), LIMIT, &ct, never()).await, "yes", true);
        check(&repeats.answer(key(), LIMIT, &ct, never()).await, "yes", true);
    }

    #[tokio::test]
    async fn a_repeat_waits_for_the_running_call() {
        // The second memory keeps nothing, but still answers a waiting repeat.
        for repeats in [repeats(1 << 20), repeats(0)] {
            let ct = CancellationToken::new();
            let (finish, finished) = oneshot::channel();
            let mut first = std::pin::pin!(
                repeats.answer(key(), LIMIT, &ct, async { finished.await.unwrap() })
            );
            assert!(matches!(poll!(&mut first), Poll::Pending));
            let mut second = std::pin::pin!(repeats.answer(key(), LIMIT, &ct, never()));
            assert!(matches!(poll!(&mut second), Poll::Pending));
            finish.send(result("once")).unwrap();
            check(&first.await, "once", false);
            check(&second.await, "once", true);
        }
    }

    #[tokio::test]
    async fn a_repeat_runs_if_the_first_call_fails_or_is_dropped() {
        let (repeats, ct) = (repeats(1 << 20), CancellationToken::new());
        let mut first = Box::pin(repeats.answer(key(), LIMIT, &ct, std::future::pending()));
        assert!(matches!(poll!(&mut first), Poll::Pending));
        let (finish, finished) = oneshot::channel();
        let mut second =
            Box::pin(repeats.answer(key(), LIMIT, &ct, async { finished.await.unwrap() }));
        assert!(matches!(poll!(&mut second), Poll::Pending));
        let mut third = Box::pin(repeats.answer(key(), LIMIT, &ct, ready(result("third"))));
        assert!(matches!(poll!(&mut third), Poll::Pending));
        drop(first);
        assert!(matches!(poll!(&mut second), Poll::Pending), "the second runs now");
        assert!(matches!(poll!(&mut third), Poll::Pending), "only one runs at a time");
        finish.send(Err(ErrorData::internal_error("no", None))).unwrap();
        assert!(second.await.unwrap().is_err());
        check(&third.await, "third", false);
    }

    #[tokio::test]
    async fn a_repeat_stops_waiting_at_its_limit_or_when_cancelled() {
        let (repeats, ct) = (repeats(1 << 20), CancellationToken::new());
        let mut first = std::pin::pin!(repeats.answer(key(), LIMIT, &ct, std::future::pending()));
        assert!(matches!(poll!(&mut first), Poll::Pending));
        let late = repeats.answer(key(), Duration::ZERO, &ct, never()).await;
        assert_eq!(late.unwrap_err(), NotAnswered::TimedOut);
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let answer = repeats.answer(key(), LIMIT, &cancelled, never()).await;
        assert_eq!(answer.unwrap_err(), NotAnswered::Cancelled);
    }
}
