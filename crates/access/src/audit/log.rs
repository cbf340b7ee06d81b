//! The audit log, as those who act see it: what is recorded of an action, and when.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use fleet_codes::{self as codes, Code};
use fleet_job::time::Timestamp;

use super::{AuditOutcome, AuditRecord, cut, pace::RefusalPace};

/// Where audit records are kept.
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Takes a record without waiting. If it can't be kept, the sink counts that as a gap.
    fn record(&self, record: AuditRecord);

    /// Counts the record of a refusal that is left out, since there were very many like it.
    fn leave_out(&self);

    /// Takes a record, and waits until it is kept.
    ///
    /// # Errors
    ///
    /// The future fails if the record can't be kept, which the sink has then counted as a gap.
    fn keep(&self, record: AuditRecord) -> Keeping<'_>;
}

/// Becomes ready when a record is kept.
pub type Keeping<'a> = Pin<Box<dyn Future<Output = Result<(), AuditGap>> + Send + 'a>>;

/// A record could not be kept, so what it is about must not be done. The text is for callers, who
/// need not know where the log is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this can't be recorded in the audit log now, so it is not done; try again later [{code}]",
    code = codes::AUDIT_UNAVAILABLE
)]
pub struct AuditGap {
    /// Why it could not be kept, for the operator.
    pub reason: String,
}

impl AuditGap {
    /// The stable code of the error.
    pub fn code(&self) -> Code {
        codes::AUDIT_UNAVAILABLE
    }
}

/// The audit log of a process. Without a sink, nothing is recorded. Clones share the sink.
#[derive(Debug, Clone, Default)]
pub struct AuditLog(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sink: Box<dyn AuditSink>,
    is_required: bool,
    clock: fn() -> Timestamp,
    /// The records of what is being done, by a number of their own.
    open: Mutex<HashMap<u64, AuditRecord>>,
    next: AtomicU64,
    refusals: Mutex<RefusalPace>,
}

impl AuditLog {
    /// A log that keeps its records in `sink`, with times from `clock`. If it is required, nothing
    /// that has a record is done before its beginning is kept.
    pub fn new(sink: Box<dyn AuditSink>, is_required: bool, clock: fn() -> Timestamp) -> Self {
        Self(Some(Arc::new(Inner {
            sink,
            is_required,
            clock,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            refusals: Mutex::default(),
        })))
    }

    /// Returns whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Records that something was refused, unless the same was refused to the same caller very often
    /// lately. `make` gets the time, and is called only if anything is recorded.
    pub fn record_refusal(&self, make: impl FnOnce(Timestamp) -> AuditRecord) {
        let Some(inner) = &self.0 else { return };
        let mut record = make((inner.clock)());
        match lock(&inner.refusals).admit(&record) {
            Some(left_out) => {
                record.left_out = (left_out > 0).then_some(left_out);
                inner.sink.record(record);
            }
            None => inner.sink.leave_out(),
        }
    }

    /// Begins the record of something that is about to be done. If the log is required, this waits
    /// until its beginning is kept.
    ///
    /// # Errors
    ///
    /// Returns an error if the log is required and the beginning can't be kept.
    pub async fn begin(
        &self,
        make: impl FnOnce(Timestamp) -> AuditRecord,
    ) -> Result<OpenRecord, AuditGap> {
        let Some(inner) = &self.0 else { return Ok(OpenRecord::default()) };
        let record = make((inner.clock)());
        let beginning = inner.is_required.then(|| record.clone());
        // The record gets an end from now on, even if the caller stops waiting.
        let open = OpenRecord(Some(inner.open(record)));

        let Some(beginning) = beginning else { return Ok(open) };
        match inner.sink.keep(beginning).await {
            Ok(()) => Ok(open),
            Err(gap) => {
                // Some of several places may have kept the beginning.
                open.end(AuditOutcome::Refused, Some(gap.code().as_str()));
                Err(gap)
            }
        }
    }

    /// Ends the records of everything that is still being done, because the process ends.
    pub fn abandon_all(&self) {
        let Some(inner) = &self.0 else { return };
        let open = std::mem::take(&mut *lock(&inner.open));
        for record in open.into_values() {
            inner.end(record, AuditOutcome::Abandoned, None);
        }
    }
}

impl Inner {
    fn open(self: &Arc<Self>, record: AuditRecord) -> Pending {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(number, record);
        Pending { log: Arc::clone(self), number }
    }

    fn end(&self, record: AuditRecord, outcome: AuditOutcome, code: Option<&str>) {
        self.sink.record(AuditRecord {
            time: (self.clock)(),
            outcome,
            code: code.map(str::to_owned),
            ..record
        });
    }
}

/// What is locked is replaced as a whole, so nothing is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The record of something that is being done. If it is dropped without an end, the record says that
/// nobody knows the end.
#[derive(Debug, Default)]
#[must_use = "the record of what is done needs its end"]
pub struct OpenRecord(Option<Pending>);

#[derive(Debug)]
struct Pending {
    log: Arc<Inner>,
    number: u64,
}

impl OpenRecord {
    /// Names the job that was made of what is done.
    pub fn set_job(&mut self, job_id: &str) {
        if let Some(Pending { log, number }) = &self.0
            && let Some(record) = lock(&log.open).get_mut(number)
        {
            record.job_id = Some(cut(job_id));
        }
    }

    /// Records the end, with the code of the error if there was one.
    pub fn end(mut self, outcome: AuditOutcome, code: Option<&str>) {
        self.write(outcome, code);
    }

    fn write(&mut self, outcome: AuditOutcome, code: Option<&str>) {
        let Some(Pending { log, number }) = self.0.take() else { return };
        // If it is missing, the process ends, and its end has been recorded.
        let record = lock(&log.open).remove(&number);
        if let Some(record) = record {
            log.end(record, outcome, code);
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.write(AuditOutcome::Abandoned, None);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context as TaskContext, Poll, Waker},
    };

    use serde_json::json;

    use crate::{
        AccessPolicy, Action, Annotations, Arguments, Asker, Context, CurrentRights, Origin,
        Principal, Resource,
    };

    use super::*;

    /// What a sink was given, as outcome, code, rule and job.
    type Kept = Arc<Mutex<Vec<AuditRecord>>>;

    #[derive(Debug)]
    struct Memory {
        kept: Kept,
        is_full: bool,
    }

    impl AuditSink for Memory {
        fn record(&self, record: AuditRecord) {
            self.kept.lock().unwrap().push(record);
        }

        fn leave_out(&self) {}

        fn keep(&self, record: AuditRecord) -> Keeping<'_> {
            if self.is_full {
                let gap = AuditGap { reason: "no space".to_owned() };
                return Box::pin(std::future::ready(Err(gap)));
            }
            self.record(record);
            Box::pin(std::future::ready(Ok(())))
        }
    }

    const RULES: &str = "
        [[rule]]
        name = 'no writing'
        effect = 'deny'
        principals = ['anyone']
        actions = ['tools.call']
        tools = ['write']

        [[limit]]
        name = 'few'
        per = 'principal'
        tools = ['rare']
        rate = '1/h'

        [[audit.values]]
        tools = ['read']
    ";

    fn start(is_required: bool, is_full: bool) -> (Asker, Kept) {
        let kept = Kept::default();
        let sink = Memory { kept: Arc::clone(&kept), is_full };
        let log = AuditLog::new(Box::new(sink), is_required, || Timestamp::MIN);
        let rights = CurrentRights::new(AccessPolicy::parse(RULES, None).unwrap().into_rights());
        let origin = Origin {
            peer: Some("::ffff:192.0.2.1".parse().unwrap()),
            job_id: Some("j".to_owned()),
            trace_id: Some("t".to_owned()),
        };
        (Asker::new(Arc::new(Principal::local()), rights).audited(log, origin), kept)
    }

    fn ready<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the sink of this test never waits"),
        }
    }

    fn begin(asker: &Asker, tool: &str) -> Result<OpenRecord, AuditGap> {
        let resource = Resource::tool(None, tool, Annotations::default());
        let arguments = json!({"path": "x"});
        let arguments = Arguments::Known(arguments.as_object().unwrap());
        let context = Context { arguments, ..Context::default() };
        let decision = asker.check(Action::CallTool, &resource, &context).unwrap();
        ready(asker.begin_record(Action::CallTool, &resource, &decision, arguments))
    }

    fn outcomes(kept: &Kept) -> Vec<(AuditOutcome, Option<String>)> {
        let kept = kept.lock().unwrap();
        kept.iter().map(|record| (record.outcome, record.code.clone())).collect()
    }

    #[test]
    fn a_call_has_one_record_with_its_end_and_origin() {
        let (asker, kept) = start(false, false);
        begin(&asker, "read").unwrap().end(AuditOutcome::Succeeded, None);
        begin(&asker, "other").unwrap().end(AuditOutcome::Failed, Some("FLEET-X"));
        drop(begin(&asker, "other").unwrap());

        let failed = (AuditOutcome::Failed, Some("FLEET-X".to_owned()));
        let expected = [(AuditOutcome::Succeeded, None), failed, (AuditOutcome::Abandoned, None)];
        assert_eq!(outcomes(&kept), expected);

        let kept = kept.lock().unwrap();
        assert_eq!(kept[0].peer.as_deref(), Some("192.0.2.1"));
        assert_eq!(
            (kept[0].job_id.as_deref(), kept[0].trace_id.as_deref()),
            (Some("j"), Some("t"))
        );
        assert!(kept[0].arguments.is_some() && kept[1].arguments.is_none());
        assert!(kept.iter().all(|record| record.arguments_digest.is_some()));
    }

    #[test]
    fn what_is_refused_has_a_record_with_what_decided() {
        let (asker, kept) = start(true, false);
        let check = |tool: &str| {
            let resource = Resource::tool(None, tool, Annotations::default());
            asker.check(Action::CallTool, &resource, &Context::default())
        };
        check("write").unwrap_err();
        let rare = Resource::tool(None, "rare", Annotations::default());
        let admit = || asker.admit(Action::CallTool, &rare, 0, std::time::Duration::from_secs(9));
        assert!(admit().is_ok() && admit().is_err());

        let kept = kept.lock().unwrap();
        let found: Vec<_> = kept
            .iter()
            .map(|record| {
                (record.outcome, record.rule.as_deref().unwrap(), record.code.as_deref().unwrap())
            })
            .collect();
        let refused = AuditOutcome::Refused;
        let expected =
            [(refused, "no writing", "FLEET-DENIED"), (refused, "few", "FLEET-RATE-LIMITED")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_required_log_keeps_the_beginning_first() {
        let (asker, kept) = start(true, false);
        let record = begin(&asker, "read").unwrap();
        assert_eq!(outcomes(&kept), [(AuditOutcome::Started, None)]);
        record.end(AuditOutcome::Succeeded, None);
        assert_eq!(outcomes(&kept).len(), 2);

        let (asker, kept) = start(true, true);
        let gap = begin(&asker, "read").unwrap_err();
        assert_eq!(gap.reason, "no space");
        assert!(gap.to_string().contains("FLEET-AUDIT-UNAVAILABLE"), "{gap}");
        // Another place may have kept the beginning, so its record has an end.
        let unavailable = Some("FLEET-AUDIT-UNAVAILABLE".to_owned());
        assert_eq!(outcomes(&kept), [(AuditOutcome::Refused, unavailable)]);
    }

    #[test]
    fn what_is_being_done_when_the_process_ends_has_an_end() {
        let (asker, kept) = start(false, false);
        let running = begin(&asker, "read").unwrap();
        asker.log().abandon_all();
        assert_eq!(outcomes(&kept), [(AuditOutcome::Abandoned, None)]);
        running.end(AuditOutcome::Succeeded, None);
        assert_eq!(outcomes(&kept).len(), 1, "one end");
    }

    #[test]
    fn lists_and_lookups_have_no_record() {
        let (asker, kept) = start(true, false);
        let whole = Resource::default();
        let decision = asker.check(Action::ListTools, &whole, &Context::default()).unwrap();
        let begun = asker.begin_record(Action::ListTools, &whole, &decision, Arguments::None);
        ready(begun).unwrap().end(AuditOutcome::Succeeded, None);
        assert_eq!(outcomes(&kept), []);
    }
}
