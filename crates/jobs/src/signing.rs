//! Signs what is written to the jobs topic and to the control topic, if there is a key.

use std::sync::Arc;

use fleet_access::{JobRights, Principal};
use fleet_job::{
    approval,
    control::{Control, Scope},
    envelope::Envelope,
    record::{Header, RawRecord},
};
use fleet_signing::{CurrentKeys, HEADER, OnBehalfOf, SigningKeys};

use super::{Caller, Inner, Jobs, submit::Submission};

/// As whom a job is to run.
#[derive(Debug, Clone)]
pub(crate) struct Submitter {
    pub(crate) principal: Arc<Principal>,
    /// The job that this one runs again.
    pub(crate) on_behalf_of: Option<OnBehalfOf>,
}

impl Submitter {
    /// Somebody who submits a job of their own.
    pub(crate) fn new(principal: Arc<Principal>) -> Self {
        Self { principal, on_behalf_of: None }
    }
}

impl Jobs {
    /// Signs jobs, and requests to cancel them, with the keys that are in force then. A second call
    /// changes nothing.
    pub fn sign_with(&self, keys: CurrentKeys) {
        self.inner.signing.get_or_init(|| keys);
    }

    /// Returns whether jobs are signed.
    pub(crate) fn signs(&self) -> bool {
        self.keys().is_some_and(|keys| keys.can_sign())
    }

    /// With whose rights jobs run.
    pub(crate) fn job_rights(&self) -> JobRights {
        if self.keys().is_some() { JobRights::OfSubmitters } else { JobRights::OfWorkers }
    }

    fn keys(&self) -> Option<Arc<SigningKeys>> {
        self.inner.signing_keys()
    }

    /// The header with the signature of a job whose record has this value; `None` if jobs are not
    /// signed, or if nobody may be made responsible for this one.
    pub(crate) fn sign_job(&self, job: &Submission, value: &[u8]) -> Option<Header> {
        let Submitter { principal, on_behalf_of } = job.submitter.as_ref()?;
        let (topic, now) = (&self.inner.topics.jobs, fleet_ops::clock::now());
        let (keys, on_behalf_of) = (self.keys()?, on_behalf_of.clone());
        let signature = keys.sign_job(topic, &job.envelope, value, principal, on_behalf_of, now)?;
        Some((HEADER.to_owned(), Some(signature.into_bytes())))
    }

    /// Who has submitted the job of a record, if it says so with a signature.
    pub(crate) fn signed_submitter(&self, record: &RawRecord) -> Option<Submitter> {
        let claims = self.keys()?.verify_record(&self.inner.topics.jobs, record).ok()?;
        let principal = Arc::new(claims.principal.into_principal());
        Some(Submitter { principal, on_behalf_of: claims.on_behalf_of })
    }

    /// Signs that a caller has approved the job whose record has this value; `None` if there is no
    /// private key.
    pub(crate) fn sign_approval(
        &self,
        envelope: &Envelope,
        value: &[u8],
        caller: &Caller,
        reason: Option<String>,
    ) -> Option<String> {
        let (topic, now) = (&self.inner.topics.jobs, fleet_ops::clock::now());
        self.keys()?.sign_approval(topic, envelope, value, caller.principal(), reason, now)
    }

    /// The headers of the record of a request.
    pub(crate) fn sign_control(&self, control: &Control, caller: &Caller) -> Vec<Header> {
        let by = caller.is_verified().then(|| caller.principal().id().to_string());
        let sign = |keys: Arc<SigningKeys>| {
            keys.sign_control(&self.inner.topics.jobs, &control.to_bytes(), by)
        };
        let signature = self.keys().and_then(sign);
        signature.map(|text| (HEADER.to_owned(), Some(text.into_bytes()))).into_iter().collect()
    }

    /// Whose jobs a request of this caller about a job that nobody knows is about; `None` if jobs
    /// are not signed, and requests are about anybody's.
    pub(crate) fn scope_of(&self, caller: &Caller) -> Option<Scope> {
        self.signs().then(|| caller.cancel_scope())
    }
}

impl Inner {
    pub(crate) fn signing_keys(&self) -> Option<Arc<SigningKeys>> {
        self.signing.get()?.get()
    }

    /// Reads a record of the control topic; `None` if it is not obeyed.
    pub(crate) fn read_control(&self, record: &RawRecord) -> Option<Control> {
        let value = record.value.as_deref()?;
        match self.signing_keys() {
            Some(keys) => {
                let topic = &self.topics.jobs;
                keys.verify_control(topic, value, record.header(HEADER)).ok().flatten()
            }
            None => Control::from_bytes(value),
        }
    }
}

/// The headers of a record without its signature and the decision about it, which are not those of
/// another record.
pub(crate) fn without_signature(headers: Vec<Header>) -> Vec<Header> {
    let is_ours =
        |name: &str| [HEADER, approval::HEADER].iter().any(|own| name.eq_ignore_ascii_case(own));
    headers.into_iter().filter(|(name, _)| !is_ours(name)).collect()
}
