//! The audit log, as those who act see it: what is recorded of an action, and when.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use fleet_codes::{self as codes, Code};
use fleet_job::time::Timestamp;

use super::{AuditOutcome, AuditRecord};

/// Where audit records are kept.
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Takes a record without waiting. If it can't be kept, the sink counts that as a gap.
    fn record(&self, record: AuditRecord);

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
}

impl AuditLog {
    /// A log that keeps its records in `sink`, with times from `clock`. If it is required, nothing
    /// that has a record is done before its beginning is kept.
    pub fn new(sink: Box<dyn AuditSink>, is_required: bool, clock: fn() -> Timestamp) -> Self {
        Self(Some(Arc::new(Inner { sink, is_required, clock })))
    }

    /// Returns whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Records something that has happened. `make` gets the time, and is called only if anything is
    /// recorded.
    pub fn record(&self, make: impl FnOnce(Timestamp) -> AuditRecord) {
        if let Some(inner) = &self.0 {
            inner.sink.record(make((inner.clock)()));
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
        if inner.is_required {
            inner.sink.keep(record.clone()).await?;
        }
        Ok(OpenRecord(Some(Pending { log: Arc::clone(inner), record })))
    }
}

/// The record of something that is being done. If it is dropped without an end, the record says that
/// nobody knows the end.
#[derive(Debug, Default)]
#[must_use = "the record of what is done needs its end"]
pub struct OpenRecord(Option<Pending>);

#[derive(Debug)]
struct Pending {
    log: Arc<Inner>,
    record: AuditRecord,
}

impl OpenRecord {
    /// Names the job that was made of what is done.
    pub fn set_job(&mut self, job_id: &str) {
        if let Some(pending) = &mut self.0 {
            pending.record.job_id = Some(job_id.to_owned());
        }
    }

    /// Records the end, with the code of the error if there was one.
    pub fn end(mut self, outcome: AuditOutcome, code: Option<&str>) {
        self.write(outcome, code);
    }

    fn write(&mut self, outcome: AuditOutcome, code: Option<&str>) {
        if let Some(Pending { log, mut record }) = self.0.take() {
            record.time = (log.clock)();
            record.outcome = outcome;
            record.code = code.map(str::to_owned);
            log.sink.record(record);
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
        sync::Mutex,
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
        assert_eq!(outcomes(&kept), []);
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
