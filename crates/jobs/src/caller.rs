//! Callers and the owners of jobs.
//!
//! The owner of a job is the id of the principal that submitted it, so a caller with a new key or
//! token of the same subject still sees the job. If the server does not verify callers, because it
//! serves this machine only or everybody, the owner is a digest of the credentials that a proxy or
//! a client sends.

use std::{borrow::Cow, sync::Arc, time::Duration};

use fleet_access::{
    Action, AdmittedCall, Arguments, Asker, Context, Decision, OpenRecord, Principal, Resource,
    RuleName, View,
};
use fleet_job::{control::Scope, event::JobEvent};
use fleet_ledger::query::Visibility;
use fleet_ops::{
    hex::hex,
    http::{CREDENTIALS, credential_bytes},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::JobsError;

/// The sender of a request. All senders without credentials are the same caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The caller's name in envelopes and events.
    pub owner: Option<String>,
    /// The name that the same credentials had before servers knew principals: a digest of their
    /// bytes. Its jobs stay visible until they are forgotten.
    pub former: Option<String>,
    /// Who was authenticated, and the rules about it.
    asker: Asker,
}

impl Caller {
    /// The caller of this name, or without a name, that `asker` stands for.
    pub fn new(owner: Option<String>, former: Option<String>, asker: Asker) -> Self {
        Self { owner, former, asker }
    }

    /// Decides whether the caller may do something with a job of this owner and this tenant.
    pub(crate) fn decide(
        &self,
        action: Action,
        owner: Option<&str>,
        tenant: Option<&str>,
    ) -> Decision {
        let names = self.names();
        let context = Context { owner_names: &names, ..Context::default() };
        self.asker.decide(action, &Resource::job(owner, tenant), &context)
    }

    /// Decides whether the caller may do something with the job of an event.
    pub(crate) fn decide_about(&self, action: Action, event: &JobEvent) -> Decision {
        self.decide(action, event.owner.as_deref(), event.tenant.as_deref())
    }

    /// Returns whether the caller may see the job of an event.
    pub(crate) fn may_see(&self, event: &JobEvent) -> bool {
        self.decide_about(Action::ReadJob, event).is_allowed()
    }

    /// The jobs that the caller may see, for lists.
    pub(crate) fn visibility(&self) -> Visibility {
        let caller = self.clone();
        Visibility::new(move |owner, tenant| {
            caller.decide(Action::ReadJob, owner, tenant).is_allowed()
        })
    }

    /// Decides whether the caller may do something.
    pub(crate) fn decide_with(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Decision {
        self.asker.decide(action, resource, context)
    }

    /// Decides whether the caller may call a tool.
    pub(crate) fn decide_call(
        &self,
        resource: &Resource<'_>,
        arguments: Arguments<'_>,
    ) -> Decision {
        let context = Context { arguments, ..Context::default() };
        self.asker.decide(Action::CallTool, resource, &context)
    }

    /// Checks that the caller may do something.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(crate) fn check(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Result<Decision, JobsError> {
        let decision = self.asker.check(action, resource, context);
        decision.map_err(|decision| JobsError::Denied { action, decision: Box::new(decision) })
    }

    /// Checks that the caller may do something with the job of an event, and begins its record in
    /// the audit log.
    ///
    /// # Errors
    ///
    /// Returns the refusal, or an error if it can't be recorded and must be.
    pub(crate) async fn begin_with(
        &self,
        action: Action,
        event: &JobEvent,
    ) -> Result<OpenRecord, JobsError> {
        self.begin_saying(action, event, Arguments::None).await
    }

    /// Checks that the caller may decide on a job that awaits approval, and begins its record in the
    /// audit log, with what it says.
    ///
    /// # Errors
    ///
    /// As [`begin_with`](Self::begin_with).
    pub(crate) async fn begin_deciding(
        &self,
        event: &JobEvent,
        said: &Map<String, Value>,
    ) -> Result<OpenRecord, JobsError> {
        self.begin_saying(Action::ApproveJob, event, Arguments::Known(said)).await
    }

    async fn begin_saying(
        &self,
        action: Action,
        event: &JobEvent,
        said: Arguments<'_>,
    ) -> Result<OpenRecord, JobsError> {
        let named = self.about_job(&event.job_id);
        let names = named.names();
        let context = Context { owner_names: &names, ..Context::default() };
        let resource = Resource::job(event.owner.as_deref(), event.tenant.as_deref());
        let decision = named.check(action, &resource, &context)?;
        named.begin_record(action, &resource, &decision, said).await
    }

    /// Begins the record of something that is allowed in the audit log.
    ///
    /// # Errors
    ///
    /// Returns an error if it can't be recorded and must be.
    pub(crate) async fn begin_record(
        &self,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
        arguments: Arguments<'_>,
    ) -> Result<OpenRecord, JobsError> {
        Ok(self.asker.begin_record(action, resource, decision, arguments).await?)
    }

    /// The same caller, whose actions are recorded as being about this job.
    pub(crate) fn about_job(&self, job_id: &str) -> Self {
        let asker = self.asker.from_origin(|origin| origin.job_id = Some(job_id.to_owned()));
        Self { asker, ..self.clone() }
    }

    /// Whose jobs the caller may cancel while nobody knows whose job an id is.
    pub(crate) fn cancel_scope(&self) -> Scope {
        Scope {
            owners: self.names().into_iter().map(str::to_owned).collect(),
            unowned: self.decide(Action::CancelJob, None, None).is_allowed(),
        }
    }

    /// Who was authenticated.
    pub(crate) fn principal(&self) -> &Arc<Principal> {
        self.asker.principal()
    }

    /// The view in which the caller asks, if it is in one.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.asker.view()
    }

    /// What the caller's view alone forbids, as [`Asker::restriction`] says.
    pub(crate) fn restriction(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        self.asker.restriction(action, resource, context)
    }

    /// Records a refusal, and makes the error for it.
    pub(crate) fn refuse(
        &self,
        action: Action,
        resource: &Resource<'_>,
        decision: Decision,
        arguments: Arguments<'_>,
    ) -> JobsError {
        self.asker.record_refusal(action, resource, &decision, arguments);
        JobsError::Denied { action, decision: Box::new(decision) }
    }

    /// Records a refusal of what the caller's view does not have.
    pub(crate) fn record_hidden(
        &self,
        action: Action,
        resource: &Resource<'_>,
        arguments: Arguments<'_>,
    ) {
        self.asker.record_hidden(action, resource, arguments);
    }

    /// Decides whether the caller may do something with the dead letter of a job of this owner and
    /// this tenant: by the rules of the policy, or if none of them decides, because the job is the
    /// caller's own. Whether the caller may have to do with dead letters at all was decided before.
    pub(crate) fn decide_about_letter(
        &self,
        action: Action,
        owner: Option<&str>,
        tenant: Option<&str>,
    ) -> Decision {
        let decision = self.decide(action, owner, tenant);
        let is_own = owner.is_some_and(|owner| self.names().contains(&owner));
        // A rule of the policy holds for one's own letters, too.
        let is_open = matches!(decision.rule, RuleName::Builtin(_)) && !decision.is_allowed();
        match is_own && is_open {
            true => self.decide(Action::ReadJob, owner, tenant),
            false => decision,
        }
    }

    /// The owners of jobs that are this caller.
    pub(crate) fn names(&self) -> Vec<&str> {
        [&self.owner, &self.former].into_iter().filter_map(Option::as_deref).collect()
    }

    /// Lets an action in as [`Asker::admit`] does.
    ///
    /// # Errors
    ///
    /// Returns the limit that is met.
    pub(crate) fn admit(
        &self,
        action: Action,
        resource: &Resource<'_>,
        bytes: u64,
        now: Duration,
    ) -> Result<AdmittedCall, JobsError> {
        self.asker.admit(action, resource, bytes, now).map_err(JobsError::Limited)
    }

    /// Returns whether what the caller does is recorded.
    pub(crate) fn is_audited(&self) -> bool {
        self.asker.is_audited()
    }

    /// Returns whether the caller's credentials were verified.
    pub(crate) fn is_verified(&self) -> bool {
        self.asker.principal().is_verified()
    }

    /// The tenant of jobs that the caller submits without naming one.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.asker.principal().tenant.as_deref()
    }

    /// The same caller under its former name alone; `None` if it has no other one.
    pub(crate) fn as_former(&self) -> Option<Self> {
        let former = self.former.clone()?;
        Some(Self { owner: Some(former), former: None, asker: self.asker.clone() })
    }
}

/// Derives owners from credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Owners {
    key: Vec<u8>,
}

impl std::fmt::Debug for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owners").finish_non_exhaustive()
    }
}

impl Owners {
    /// Derives owners with this key, which all replicas must share. Without a key, anybody who can
    /// read the events topic could guess weak passwords and check them against the owners.
    pub fn new(key: Option<&str>) -> Self {
        Self { key: key.unwrap_or_default().as_bytes().to_vec() }
    }

    /// Returns the caller of a request that `asker` sends with these headers; `None` if the request
    /// did not come over HTTP.
    pub fn identify(&self, headers: Option<&HeaderMap>, asker: &Asker) -> Caller {
        let former = self.digest(headers, |_, value| Cow::Borrowed(value.as_bytes()));
        let principal = asker.principal();
        let owner = if principal.is_verified() {
            Some(principal.id().to_string())
        } else {
            self.digest(headers, credential_bytes)
        };

        let former = former.filter(|former| owner.as_ref() != Some(former));
        Caller { owner, former, asker: asker.clone() }
    }

    /// A digest of the credentials in these headers; `None` without credentials.
    fn digest(
        &self,
        headers: Option<&HeaderMap>,
        bytes_of: for<'a> fn(&HeaderName, &'a HeaderValue) -> Cow<'a, [u8]>,
    ) -> Option<String> {
        let mut hasher = Sha256::new();
        let mut has_credentials = false;

        for part in [b"mcp-fleet owner".as_slice(), &self.key] {
            hash_part(&mut hasher, part);
        }
        for name in &CREDENTIALS {
            for value in headers.into_iter().flat_map(|headers| headers.get_all(name)) {
                has_credentials = true;
                hash_part(&mut hasher, name.as_str().as_bytes());
                hash_part(&mut hasher, &bytes_of(name, value));
            }
        }
        // Hash the key last, too, so that nobody can extend a known digest.
        hash_part(&mut hasher, &self.key);

        has_credentials.then(|| hex(&hasher.finalize()[..16]))
    }
}

fn hash_part(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// Derives an id from `parts`. The parts can't be recovered from the id.
pub(crate) fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    hash_part(&mut hasher, prefix.as_bytes());
    for part in parts {
        hash_part(&mut hasher, part.as_bytes());
    }
    format!("{prefix}-{}", hex(&hasher.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{AccessPolicy, CurrentRights, Principal, PrincipalKind, RuleEffect, Via};
    use fleet_job::{event::JobState, time::Timestamp};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(entry).collect()
    }

    fn asker(principal: Principal) -> Asker {
        Asker::new(Arc::new(principal), CurrentRights::default())
    }

    fn alice() -> Principal {
        let via = Via::Key { id: "a".to_owned() };
        Principal::new("keys", "alice", PrincipalKind::Person, via)
    }

    fn job_of(owner: Option<String>) -> JobEvent {
        JobEvent { owner, ..JobEvent::new("j", JobState::Queued, Timestamp::MIN) }
    }

    #[test]
    fn the_same_credentials_are_the_same_owner() {
        let owners = Owners::new(None);
        let of = |pairs: &[_]| owners.identify(Some(&headers(pairs)), &Asker::local()).owner;
        let mine = of(&[("authorization", "Bearer a")]);
        assert!(mine.as_deref().is_some_and(|name| name.len() == 32 && !name.contains("Bearer")));
        assert_eq!(mine, of(&[("authorization", "Bearer a"), ("accept", "*/*")]));
        for other in [&[("authorization", "Bearer b")][..], &[("x-api-key", "Bearer a")], &[]] {
            assert_ne!(mine, of(other), "{other:?}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(owners.identify(None, &Asker::local()).owner, None);
        let keyed = Owners::new(Some("k"))
            .identify(Some(&headers(&[("authorization", "Bearer a")])), &Asker::local());
        assert_ne!(keyed.owner, mine);
    }

    #[test]
    fn a_verified_principal_is_one_owner_whatever_it_sends() {
        let owners = Owners::new(None);
        let of = |value, principal| {
            let caller =
                owners.identify(Some(&headers(&[("authorization", value)])), &asker(principal));
            (caller.owner, caller.former)
        };
        let id = Some(alice().id().to_string());
        let (before, _) = of("Bearer a", Principal::local());
        assert_eq!(of("Bearer a", alice()), (id.clone(), before.clone()), "sees what it had");
        assert_eq!(of("Bearer b", alice()).0, id);

        // Nobody was verified, so only the credentials tell callers apart.
        assert_eq!(of("Bearer a", Principal::anonymous()), (before, None));
    }

    #[test]
    fn the_case_of_the_scheme_does_not_matter() {
        let owners = Owners::new(None);
        let of =
            |value| owners.identify(Some(&headers(&[("authorization", value)])), &Asker::local());
        let (usual, other) = (of("Bearer a"), of("bearer a"));
        assert_eq!(usual.owner, other.owner);
        assert_eq!(usual.former, None);

        let before = job_of(other.former.clone());
        assert!(before.owner.is_some() && other.may_see(&before) && !usual.may_see(&before));
    }

    #[test]
    fn whoever_is_not_verified_sees_jobs_of_nobody_and_of_the_same_credentials() {
        let owners = Owners::new(None);
        let of = |value| {
            let headers = headers(&[("authorization", value)]);
            owners.identify(Some(&headers), &asker(Principal::anonymous()))
        };
        let (a, b) = (of("Bearer a"), of("Bearer b"));
        assert!(a.may_see(&job_of(None)) && a.may_see(&job_of(a.owner.clone())));
        assert!(!a.may_see(&job_of(b.owner)));

        // A verified principal needs a rule for jobs that are not its own.
        let alice = Caller::new(Some(alice().id().to_string()), None, asker(alice()));
        assert!(alice.may_see(&job_of(alice.owner.clone())));
        assert!(!alice.may_see(&job_of(None)) && !alice.may_see(&job_of(a.owner)));
    }

    #[test]
    fn a_rule_about_dead_letters_holds_for_ones_own() {
        let decide = |policy: &str| {
            let rights = AccessPolicy::parse(policy, None).unwrap().into_rights();
            let asker = Asker::new(Arc::new(alice()), CurrentRights::new(rights));
            let owner = alice().id().to_string();
            let caller = Caller::new(Some(owner.clone()), None, asker);
            let decide = |owner| {
                caller.decide_about_letter(Action::ReplayDeadLetters, Some(owner), None).verdict
            };
            (decide(&owner), decide("keys:bob"))
        };
        let rule = |effect: &str| {
            format!(
                "[[rule]]\nname = 'r'\neffect = '{effect}'\nprincipals = ['anyone']\n\
                 actions = ['dead-letters.replay']\n"
            )
        };

        assert_eq!(decide(""), (RuleEffect::Allow, RuleEffect::Deny));
        assert_eq!(decide(&rule("allow")), (RuleEffect::Allow, RuleEffect::Allow));
        assert_eq!(decide(&rule("deny")), (RuleEffect::Deny, RuleEffect::Deny));
        assert_eq!(decide(&rule("approve")), (RuleEffect::Approve, RuleEffect::Approve));
    }

    #[test]
    fn ids_depend_on_their_parts_only() {
        assert_eq!(derived_id("key", &["a", "b"]), derived_id("key", &["a", "b"]));
        assert_ne!(derived_id("key", &["a", "b"]), derived_id("key", &["ab", ""]));
        assert_ne!(derived_id("key", &["a"]), derived_id("task", &["a"]));
    }
}
