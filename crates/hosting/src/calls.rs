//! The calls of one hosted server: limits on their number, the breaker, and the count of running
//! calls.
//!
//! A call is admitted here before it asks for the connection. It is turned away at once while the
//! breaker is open, waits for a slot if policy limits concurrent calls, and reports at its end what
//! it found out about the server.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_policy::limits::{BreakerLimits, CallLimits};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    breaker::{Breaker, BreakerChange, BreakerStanding, Finding, Pass},
    outage::{OutageReason, SOON},
    slots::{NoSlot, Slots},
};
use crate::metrics::{BREAKER_CHANGES, CALLS_IN_FLIGHT, CALLS_TURNED_AWAY};

/// The calls of one hosted server, over all its restarts.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    in_flight: watch::Sender<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    breaker: Breaker,
    /// The error of the last call that was lost or not taken.
    last_failure: String,
    /// The outage that this error meant.
    last_outage: OutageReason,
    /// Whether a call was not taken and none has been answered since.
    in_trouble: bool,
    /// When the last answer came.
    last_answer: Option<Instant>,
    /// When the server was last needed.
    last_used: Option<Instant>,
    /// The slots of the whole server.
    server_slots: Option<Arc<Slots>>,
    /// The slots of tools that have limits of their own.
    tool_slots: BTreeMap<String, Arc<Slots>>,
}

/// A running call, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    calls: Arc<Calls>,
    pass: Pass,
    breaker: BreakerLimits,
    begun: Instant,
    finding: Finding,
    _slots: [Option<OwnedSemaphorePermit>; 2],
}

/// Why a call can't begin now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TurnedAway {
    /// The breaker is open.
    #[error("several calls in a row had no answer, so calls are suspended; the last one: {last}")]
    Breaker {
        /// The error of the last call.
        last: String,
        /// The outage that the error meant.
        outage: OutageReason,
        /// When a call may be tried again.
        retry_after: Duration,
    },
    /// There are too many running and waiting calls.
    #[error("the limit of {limit} concurrent calls of {what} is reached, and the queue is full")]
    QueueFull {
        /// The limit.
        limit: usize,
        /// The tool or server that has the limit.
        what: &'static str,
    },
    /// No slot became free in time.
    #[error("the limit of {limit} concurrent calls of {what} is reached, and none ended within {} ms", waited.as_millis())]
    TimedOut {
        /// The limit.
        limit: usize,
        /// The tool or server that has the limit.
        what: &'static str,
        /// How long the call has waited.
        waited: Duration,
    },
}

impl TurnedAway {
    /// Returns the kind of outage.
    pub(crate) fn reason(&self) -> OutageReason {
        match self {
            Self::Breaker { outage, .. } => *outage,
            Self::QueueFull { .. } | Self::TimedOut { .. } => OutageReason::Busy,
        }
    }

    /// Returns when the call may be tried again.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Breaker { retry_after, .. } => *retry_after,
            Self::QueueFull { .. } | Self::TimedOut { .. } => SOON,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Breaker { .. } => "breaker-open",
            Self::QueueFull { .. } => "queue-full",
            Self::TimedOut { .. } => "queue-timeout",
        }
    }
}

impl Calls {
    /// Admits a call of a tool, perhaps after a wait for a slot.
    ///
    /// Must be called before asking for the connection, so that the server is not ended as idle in
    /// between.
    ///
    /// # Errors
    ///
    /// Returns an error if the call can't begin now.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        tool: &str,
        limits: &CallLimits,
    ) -> Result<Ticket, TurnedAway> {
        let begun = self.try_begin(tool, limits).await;
        if let Err(turned_away) = &begun {
            metrics::counter!(CALLS_TURNED_AWAY.name, "reason" => turned_away.label()).increment(1);
        }
        begun
    }

    async fn try_begin(
        self: &Arc<Self>,
        tool: &str,
        limits: &CallLimits,
    ) -> Result<Ticket, TurnedAway> {
        // Don't queue while the breaker is open.
        {
            let state = self.lock();
            if let Some(retry_after) = state.breaker.wait(Instant::now()) {
                return Err(state.refuse_for_breaker(retry_after));
            }
        }

        // Take the tool's slot first, so that a call that waits for it holds none of the server.
        let tool_slots = limits.tool_concurrency.map(|size| self.lock().slots_of_tool(tool, size));
        let tool_slot = take_slot(tool_slots, "this tool", limits).await?;
        let server_slots =
            limits.server.max_concurrency.map(|size| self.lock().slots_of_server(size));
        let server_slot = take_slot(server_slots, "this server", limits).await?;

        let begun = Instant::now();
        let mut state = self.lock();
        let admitted = state.breaker.admit(begun);
        let pass = admitted.map_err(|retry_after| state.refuse_for_breaker(retry_after))?;
        drop(state);

        self.in_flight.send_modify(|calls| *calls += 1);
        metrics::gauge!(CALLS_IN_FLIGHT.name).increment(1);
        Ok(Ticket {
            calls: self.clone(),
            pass,
            breaker: limits.server.breaker,
            begun,
            finding: Finding::Nothing,
            _slots: [tool_slot, server_slot],
        })
    }

    /// Returns the number of running calls.
    pub(super) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Returns the number of calls that wait for a slot.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        let slots = state.server_slots.iter().chain(state.tool_slots.values());
        slots.map(|slots| slots.waiting()).sum()
    }

    /// Returns the state of the breaker, and the error of the last call that was lost or not taken.
    pub(super) fn standing(&self, now: Instant) -> (BreakerStanding, String) {
        let state = self.lock();
        (state.breaker.standing(now), state.last_failure.clone())
    }

    /// Returns the error of the last call if it was not taken and no call has been answered since.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.lock();
        state.in_trouble.then(|| state.last_failure.clone())
    }

    /// Returns when to try again after a call that the server did not take.
    pub(crate) fn retry_after(&self) -> Duration {
        self.lock().breaker.wait(Instant::now()).unwrap_or(SOON)
    }

    /// Notes that the server is needed now.
    pub(super) fn mark_used(&self) {
        self.lock().last_used = Some(Instant::now());
    }

    /// Returns when the server was last needed; now if it never was.
    pub(super) fn last_used(&self) -> Instant {
        *self.lock().last_used.get_or_insert_with(Instant::now)
    }

    /// Waits until no call is running.
    pub(super) async fn wait_until_idle(&self) {
        // The sender lives as long as `self`.
        _ = self.in_flight.subscribe().wait_for(|calls| *calls == 0).await;
    }

    /// Forgets past failures, because the server has been replaced.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.breaker.reset();
        state.in_trouble = false;
        state.last_used = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Takes a slot if there is a limit.
async fn take_slot(
    slots: Option<Arc<Slots>>,
    what: &'static str,
    limits: &CallLimits,
) -> Result<Option<OwnedSemaphorePermit>, TurnedAway> {
    let Some(slots) = slots else { return Ok(None) };
    let waited = limits.server.queue_timeout;
    let taken = slots.acquire(limits.server.max_queued, waited).await;
    taken.map(Some).map_err(|error| match error {
        NoSlot::QueueFull => TurnedAway::QueueFull { limit: slots.size(), what },
        NoSlot::TimedOut => TurnedAway::TimedOut { limit: slots.size(), what, waited },
    })
}

impl State {
    fn refuse_for_breaker(&self, retry_after: Duration) -> TurnedAway {
        TurnedAway::Breaker {
            last: self.last_failure.clone(),
            outage: self.last_outage,
            retry_after,
        }
    }

    fn slots_of_server(&mut self, size: NonZeroUsize) -> Arc<Slots> {
        let slots = self.server_slots.get_or_insert_with(|| Arc::new(Slots::new(size.get())));
        resize_slots(slots, size)
    }

    fn slots_of_tool(&mut self, tool: &str, size: NonZeroUsize) -> Arc<Slots> {
        if let Some(slots) = self.tool_slots.get_mut(tool) {
            return resize_slots(slots, size);
        }
        let slots = Arc::new(Slots::new(size.get()));
        self.tool_slots.insert(tool.to_owned(), slots.clone());
        slots
    }
}

/// Returns the slots. Replaces them if a new policy has another limit. Running calls keep their old
/// slots, so there may be more calls for a while than the new policy allows.
fn resize_slots(slots: &mut Arc<Slots>, size: NonZeroUsize) -> Arc<Slots> {
    if slots.size() != size.get() {
        *slots = Arc::new(Slots::new(size.get()));
    }
    slots.clone()
}

impl Ticket {
    /// Records that the server answered, with a result or an error.
    pub(crate) fn record_answer(mut self) {
        self.finding = Finding::Alive;
        let mut state = self.calls.lock();
        state.last_answer = Some(Instant::now());
        state.in_trouble = false;
    }

    /// Records that the server did not take the call, because it can't be reached or refuses all
    /// calls.
    pub(crate) fn record_outage(self, outage: OutageReason, what: &str) {
        self.calls.lock().in_trouble = true;
        self.note_outage(outage, what);
    }

    /// Records that the connection was lost before the answer came.
    pub(crate) fn record_loss(self, what: &str) {
        self.note_outage(OutageReason::Unavailable, what);
    }

    fn note_outage(mut self, outage: OutageReason, what: &str) {
        self.finding = Finding::Lost;
        let mut state = self.calls.lock();
        what.clone_into(&mut state.last_failure);
        state.last_outage = outage;
    }

    /// Records that the call took too long. That counts against the server only if it neither
    /// reported progress nor answered another call in the meantime; otherwise only the tool is
    /// slow.
    pub(crate) fn record_timeout(mut self, has_progressed: bool, what: &str) {
        let mut state = self.calls.lock();
        let has_answered_others = state.last_answer.is_some_and(|at| at >= self.begun);
        if has_progressed || has_answered_others {
            self.finding = Finding::Alive;
        } else {
            self.finding = Finding::Lost;
            what.clone_into(&mut state.last_failure);
            state.last_outage = OutageReason::Unavailable;
        }
        drop(state);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let chance = rand::random();
        let mut state = self.calls.lock();
        let now = Instant::now();
        state.last_used = Some(now);
        let change = state.breaker.settle(self.pass, self.finding, &self.breaker, now, chance);
        drop(state);

        let to = match change {
            Some(BreakerChange::Opened(_)) => Some("open"),
            Some(BreakerChange::Closed) => Some("closed"),
            None => None,
        };
        if let Some(to) = to {
            metrics::counter!(BREAKER_CHANGES.name, "to" => to).increment(1);
        }

        metrics::gauge!(CALLS_IN_FLIGHT.name).decrement(1);
        self.calls.in_flight.send_modify(|calls| *calls -= 1);
    }
}

#[cfg(test)]
mod tests {
    use fleet_policy::limits::ServerLimits;

    use super::*;

    fn limits(failures: u32) -> CallLimits {
        let mut server = ServerLimits::default();
        server.breaker.failures = failures;
        server.max_queued = 0;
        CallLimits { server, tool_concurrency: None }
    }

    #[tokio::test]
    async fn lost_calls_open_the_breaker_and_answers_do_not() {
        let calls = Arc::new(Calls::default());
        let limits = limits(2);
        for _ in 0..10 {
            calls.begin("t", &limits).await.unwrap().record_answer();
        }
        calls.begin("t", &limits).await.unwrap().record_loss("gone");
        drop(calls.begin("t", &limits).await.unwrap());
        calls.begin("t", &limits).await.unwrap().record_loss("gone away");
        let turned_away = calls.begin("t", &limits).await.unwrap_err();
        assert_eq!(turned_away.reason(), OutageReason::Unavailable);
        assert!(turned_away.to_string().contains("gone away"), "{turned_away}");
        assert!(turned_away.retry_after() <= limits.server.breaker.first_wait);
        calls.reset();
        calls.begin("t", &limits).await.unwrap().record_answer();
        assert_eq!(calls.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_slow_tool_does_not_count_against_the_server() {
        let calls = Arc::new(Calls::default());
        let limits = limits(1);
        calls.begin("t", &limits).await.unwrap().record_timeout(true, "late");
        let slow = calls.begin("t", &limits).await.unwrap();
        calls.begin("other", &limits).await.unwrap().record_answer();
        slow.record_timeout(false, "late");
        assert_eq!(calls.standing(Instant::now()).0, BreakerStanding::Closed(0));
        calls.begin("t", &limits).await.unwrap().record_timeout(false, "late");
        assert!(calls.begin("t", &limits).await.is_err());
    }

    #[tokio::test]
    async fn servers_and_tools_have_slots_of_their_own() {
        let calls = Arc::new(Calls::default());
        let mut limits = limits(0);
        limits.server.max_concurrency = NonZeroUsize::new(2);
        let one = CallLimits { tool_concurrency: NonZeroUsize::new(1), ..limits };
        let first = calls.begin("t", &one).await.unwrap();
        let busy = calls.begin("t", &one).await.unwrap_err();
        assert_eq!((busy.reason(), busy.label()), (OutageReason::Busy, "queue-full"));
        assert!(busy.to_string().contains("1 concurrent calls of this tool"), "{busy}");
        let second = calls.begin("other", &limits).await.unwrap();
        assert!(
            calls.begin("third", &limits).await.unwrap_err().to_string().contains("this server")
        );
        assert_eq!(calls.in_flight(), 2);
        drop((first, second));
        calls.begin("t", &one).await.unwrap().record_answer();
        calls.wait_until_idle().await;
    }
}
