//! As whom a call is decided on that a worker makes for a job: as the job's submitter.
//!
//! The worker passes on what the job's record says (`fleet_signing`), and everything behind this
//! module sees the submitter in the place of the worker: decisions, limits, the audit log, the
//! memory of repeats, and our own tools.

use std::{borrow::Cow, sync::Arc, time::Duration};

use fleet_access::{Action, Asker, Context, FleetRole, Principal, Resource};
use fleet_codes::{self as codes, Code};
use fleet_job::meta;
use fleet_signing::{
    CallContent, CurrentKeys, PassedJob, PresentedCall, SignatureFault, SigningKeys,
};
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{CallToolRequestParams, ErrorCode, ErrorData},
    service::RequestContext,
};
use serde_json::{Map, json};

use super::{Gateway, asking::Asking, traces};
use crate::metrics::PRESENTED_CALLS;

/// When a worker that was refused may try again.
const WORKER_AGAIN: Duration = Duration::from_secs(15);

/// What a server needs to know about signed jobs.
#[derive(Debug, Clone)]
pub struct SignedJobs {
    /// The keys whose signatures are accepted.
    pub keys: CurrentKeys,
    /// The topic that jobs were signed for.
    pub topic: String,
    /// As whom jobs act that nobody has signed.
    pub unsigned: Arc<Principal>,
    /// Whether callers are served here that were not verified, so that their jobs are, too.
    pub serves_unverified: bool,
    /// How long somebody may take to approve a job.
    pub approval_ttl: Duration,
}

/// As whom a call is decided on.
struct Submitter {
    principal: Arc<Principal>,
    /// Whether somebody else has approved the job.
    is_approved: bool,
    /// What metrics say of the job's signature.
    signature: &'static str,
}

/// Why a call that a worker makes for a job is refused.
enum Refused {
    /// The worker may not act for others, so its jobs wait.
    Worker,
    /// The call and the job's signature don't belong together.
    Job(SignatureFault),
}

impl Gateway {
    /// Puts the submitter of the job that a call is made for in the place of the worker that makes
    /// it.
    ///
    /// # Errors
    ///
    /// Returns an error that has the job wait if the worker may not act for others, and one that
    /// fails the job if its signature is wrong.
    pub(super) fn act_for_submitter(
        &self,
        params: &CallToolRequestParams,
        context: &mut RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        // Nobody behind this gateway is to see it.
        let passed = PassedJob::of_meta(&context.meta);
        context.meta.shift_remove(meta::SIGNED_JOB);

        let Some(signed_jobs) = self.inner.signed_jobs.get() else { return Ok(()) };
        let Some(keys) = signed_jobs.keys.get() else { return Ok(()) };
        let asking = self.asked_by(context)?;

        let (found, label) =
            match signed_jobs.find_submitter(&keys, passed, &asking, (params, context)) {
                Ok(None) => return Ok(()),
                Ok(Some(submitter)) => {
                    let label = submitter.signature;
                    (Ok(submitter), label)
                }
                Err(refused) => (Err(refused.answer(&asking, params)), refused.label()),
            };
        metrics::counter!(PRESENTED_CALLS.name, "signature" => label).increment(1);

        let Submitter { principal, is_approved, .. } = found?;
        let acting = asking.asker().on_behalf_of(principal);
        let acting = if is_approved { acting.approved() } else { acting };
        match context.extensions.get_mut::<Parts>() {
            Some(parts) => parts.extensions.insert(acting),
            None => context.extensions.insert(acting),
        };
        Ok(())
    }
}

impl SignedJobs {
    /// As whom to decide on a call; `None` if its sender makes it for itself.
    fn find_submitter(
        &self,
        keys: &SigningKeys,
        passed: Option<Result<PassedJob, SignatureFault>>,
        asking: &Asking,
        (params, context): (&CallToolRequestParams, &RequestContext<RoleServer>),
    ) -> Result<Option<Submitter>, Refused> {
        let worker = asking.asker();
        let passed = match passed {
            // A worker calls for jobs alone. One that does not say so is of an older version, or
            // somebody else has its key.
            None if FleetRole::Worker.is_held_by(worker.principal()) => {
                return Err(Refused::Worker);
            }
            None => return Ok(None),
            Some(passed) => passed,
        };
        if !may_act(worker) {
            return Err(Refused::Worker);
        }

        let passed = passed.map_err(Refused::Job)?;
        let call = PresentedCall {
            topic: &self.topic,
            job_id: traces::job_id(context).unwrap_or_default(),
            content: content_of(params),
        };
        let approval = keys.approval_of(&passed, &call).map_err(Refused::Job)?;
        let (principal, signature) = if passed.is_signed() {
            let claims = keys.verify_call(&passed, &call).map_err(Refused::Job)?;
            (Arc::new(claims.principal.into_principal()), "valid")
        } else {
            (Arc::clone(&self.unsigned), "none")
        };

        // Nobody approves what they have submitted themselves.
        let is_approved =
            approval.is_some_and(|approval| approval.is_by_another_than(principal.id()));
        // If this server requires credentials, a principal that was never verified acts as the topic.
        let is_served = principal.is_verified() || self.serves_unverified;
        let principal = if is_served { principal } else { Arc::clone(&self.unsigned) };
        Ok(Some(Submitter { principal, is_approved, signature }))
    }
}

impl Refused {
    fn label(&self) -> &'static str {
        match self {
            Self::Worker => "worker-refused",
            Self::Job(fault) => fault.as_str(),
        }
    }

    /// Records the refusal, and makes the error for it.
    fn answer(&self, asking: &Asking, params: &CallToolRequestParams) -> ErrorData {
        let resource = Resource { tool: Some(&params.name), ..Resource::default() };
        let record =
            |code: Code, fault: &str| asking.asker().record_bad_job(&resource, code, fault);
        match self {
            Self::Worker => {
                record(codes::WORKER_REFUSED, self.label());
                asking.refuse_worker(WORKER_AGAIN)
            }
            Self::Job(fault) => {
                record(fault.code(), fault.as_str());
                let (kind, mut data) = (ErrorCode::INVALID_REQUEST, json!({}));
                data["code"] = fault.code().as_str().into();
                if fault.is_retryable() {
                    return ErrorData::new(
                        ErrorCode::INTERNAL_ERROR,
                        fault.to_string(),
                        Some(data),
                    );
                }
                data["reason"] = "denied".into();
                ErrorData::new(kind, fault.to_string(), Some(data))
            }
        }
    }
}

/// Whether somebody may make calls for the jobs of others.
fn may_act(worker: &Asker) -> bool {
    worker.decide(Action::ActAs, &Resource::default(), &Context::default()).is_allowed()
}

/// What a call asks for.
fn content_of(params: &CallToolRequestParams) -> CallContent<'_> {
    let responses = params.input_responses.as_ref();
    CallContent {
        tool: Cow::Borrowed(&params.name),
        arguments: params.arguments.as_ref().map_or_else(Cow::default, Cow::Borrowed),
        input_responses: responses.map_or_else(Cow::default, |responses| {
            let copied = responses.iter().map(|(name, value)| (name.clone(), value.clone()));
            Cow::Owned(Map::from_iter(copied))
        }),
        request_state: params.request_state.as_deref().map(Cow::Borrowed),
    }
}
