//! Somebody who asks, together with the rules and limits in force.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use fleet_codes::Code;
use fleet_job::time::Timestamp;

use crate::{
    action::Action,
    audit::{self, AuditGap, AuditLog, AuditRecord, AuditedValues, OpenRecord},
    limits::{AdmittedCall, LimitReached, LimitedCall, Limits},
    principal::{Principal, PrincipalId},
    resource::{Arguments, Context, Resource},
    rules::{Decision, RuleEffect, RuleName, Rules},
    views::{View, Views},
};

/// What principals may do, and how much.
#[derive(Debug, Default)]
pub struct Rights {
    /// What they may do.
    pub rules: Rules,
    /// How much.
    pub limits: Limits,
    /// Which arguments have their values in the audit log.
    pub audited: AuditedValues,
    /// The views in which they may ask.
    pub views: Views,
}

/// The rights in force. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct CurrentRights(Arc<RwLock<Arc<Rights>>>);

impl CurrentRights {
    /// Rights that are in force until they are replaced.
    pub fn new(rights: Rights) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(rights))))
    }

    /// The rights that are in force now.
    pub fn get(&self) -> Arc<Rights> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other rights in force from the next decision on, with what was used of the limits
    /// before.
    pub fn replace(&self, mut rights: Rights) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        rights.limits.adopt(&current.limits);
        *current = Arc::new(rights);
    }
}

/// Somebody who asks, and the rights that decide about it: those in force at each decision, however
/// long a request lasts.
#[derive(Debug, Clone)]
pub struct Asker {
    principal: Arc<Principal>,
    /// Who presents what the principal has asked for, if that is another one.
    presenter: Option<PrincipalId>,
    /// Whether somebody who may has approved what is asked for.
    is_approved: bool,
    /// The name of the view in which it is asked for.
    view: Option<Arc<str>>,
    rights: CurrentRights,
    log: AuditLog,
    origin: Origin,
}

/// Where a request comes from, as audit records say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The address at the other end of the connection, which may be a proxy's.
    pub peer: Option<IpAddr>,
    /// The job that the request belongs to, according to its sender.
    pub job_id: Option<String>,
    /// The trace that the request belongs to.
    pub trace_id: Option<String>,
}

impl Asker {
    /// A principal that these rights decide about.
    pub fn new(principal: Arc<Principal>, rights: CurrentRights) -> Self {
        let (log, origin) = (AuditLog::default(), Origin::default());
        Self { principal, presenter: None, is_approved: false, view: None, rights, log, origin }
    }

    /// Has what is done and refused recorded, with this origin.
    #[must_use]
    pub fn audited(self, log: AuditLog, origin: Origin) -> Self {
        Self { log, origin, ..self }
    }

    /// The same, with an origin that is known better.
    #[must_use]
    pub fn from_origin(&self, refine: impl FnOnce(&mut Origin)) -> Self {
        let mut asker = self.clone();
        if asker.log.is_on() {
            refine(&mut asker.origin);
        }
        asker
    }

    /// The same request as one of `principal`, which this asker presents. Whether it may is for the
    /// caller to decide.
    #[must_use]
    pub fn on_behalf_of(&self, principal: Arc<Principal>) -> Self {
        Self { principal, presenter: Some(self.principal.id()), ..self.clone() }
    }

    /// The same request, which somebody who may has approved: what needs approval is allowed.
    #[must_use]
    pub fn approved(self) -> Self {
        Self { is_approved: true, ..self }
    }

    /// The same request in a view; `None` if there is no such view, or the principal may not use it,
    /// which is recorded.
    pub fn enter_view(&self, name: &str) -> Option<Self> {
        let rights = self.rights.get();
        let view = rights.views.get(name)?;
        let entered = Self { view: Some(Arc::clone(view.name())), ..self.clone() };
        if view.serves(&self.principal) {
            return Some(entered);
        }
        let (action, resource) = (Action::UseSession, Resource::default());
        entered.record_refusal(action, &resource, &view.refusal(), Arguments::None);
        None
    }

    /// The name of the view in which it is asked.
    pub fn view_name(&self) -> Option<&str> {
        self.view.as_deref()
    }

    /// The view in which it is asked, as the rights in force have it. One that was removed has
    /// nothing.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.as_ref().map(|name| find_view(&self.rights.get(), name))
    }

    /// Whether the view in which it is asked still exists and serves the principal; true if it is
    /// asked in none.
    pub fn is_served(&self) -> bool {
        self.view().is_none_or(|view| view.serves(&self.principal))
    }

    /// Whether somebody presents what another principal has asked for.
    pub fn is_presented(&self) -> bool {
        self.presenter.is_some()
    }

    /// The local principal without any rules, which may do everything.
    pub fn local() -> Self {
        Self::new(Arc::new(Principal::local()), CurrentRights::default())
    }

    /// Where what is done and refused is recorded.
    #[cfg(test)]
    pub(crate) fn log(&self) -> &AuditLog {
        &self.log
    }

    /// Returns whether what is done and refused is recorded.
    pub fn is_audited(&self) -> bool {
        self.log.is_on()
    }

    /// Who asks.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Decides as [`Rules::decide`] does; in a view, about what the view has.
    pub fn decide(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Decision {
        let rights = self.rights.get();
        let mut decision = rights.rules.decide(&self.principal, action, resource, context);
        if let Some(name) = &self.view {
            let view = find_view(&rights, name);
            decision = view.narrow(decision, &self.principal, action, resource, context);
        }
        match decision.verdict {
            RuleEffect::Approve if self.is_approved => {
                Decision { verdict: RuleEffect::Allow, ..decision }
            }
            _ => decision,
        }
    }

    /// What the view in which it is asked forbids, or wants to be approved, whatever the rules of the
    /// file say; `None` if that is nothing.
    pub fn restriction(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        let found = self.view()?.restriction(&self.principal, action, resource, context)?;
        (found.verdict != RuleEffect::Approve || !self.is_approved).then_some(found)
    }

    /// Decides as [`Rules::decide`] does about something that is to be done now, and records a
    /// refusal.
    ///
    /// # Errors
    ///
    /// Returns the decision if it does not allow the action.
    pub fn check(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Result<Decision, Decision> {
        let decision = self.decide(action, resource, context);
        if decision.is_allowed() {
            return Ok(decision);
        }
        self.record_refusal(action, resource, &decision, context.arguments);
        Err(decision)
    }

    /// Records a decision that does not allow something, if it was made by [`decide`](Self::decide).
    pub fn record_refusal(
        &self,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
        arguments: Arguments<'_>,
    ) {
        self.log.record_refusal(|time| self.describe(time, action, resource, decision, arguments));
    }

    /// Records that something is refused because the view in which it is asked for does not have it.
    /// The answer to it does not tell that it exists elsewhere; the record does.
    pub fn record_hidden(&self, action: Action, resource: &Resource<'_>, arguments: Arguments<'_>) {
        if let Some(view) = self.view() {
            self.record_refusal(action, resource, &view.refusal(), arguments);
        }
    }

    /// Records that a job which this asker presents is not accepted.
    pub fn record_bad_job(&self, resource: &Resource<'_>, code: Code, fault: &str) {
        self.log.record_refusal(|time| {
            // What decided is that the job and its signature don't belong together.
            let rule = RuleName::Builtin("default:signed-jobs");
            let decision = Decision { verdict: RuleEffect::Deny, rule, scopes: Vec::new() };
            AuditRecord {
                code: Some(code.to_string()),
                fault: Some(fault.to_owned()),
                ..self.describe(time, Action::ActAs, resource, &decision, Arguments::None)
            }
        });
    }

    /// Decides as [`Rules::may_ever`] does.
    pub fn may_ever(&self, action: Action) -> bool {
        self.rights.get().rules.may_ever(&self.principal, action)
            && self.view().is_none_or(|view| view.may_ever(&self.principal, action))
    }

    /// Decides as [`Rules::could_call`] does.
    pub fn could_call(&self, server: Option<&str>, tool: Option<&str>) -> bool {
        self.rights.get().rules.could_call(&self.principal, server, tool)
            && self.view().is_none_or(|view| view.could_have(&self.principal, server, tool))
    }

    /// Lets an action in as [`Limits::admit`] does, about a resource and with a request of so many
    /// bytes, and records it if a limit is met. `now` is the time since any fixed moment.
    ///
    /// # Errors
    ///
    /// Returns the limit that takes longest to let it in.
    pub fn admit(
        &self,
        action: Action,
        resource: &Resource<'_>,
        bytes: u64,
        now: Duration,
    ) -> Result<AdmittedCall, LimitReached> {
        let call = LimitedCall {
            principal: &self.principal,
            action,
            server: resource.server,
            tool: resource.tool,
            bytes,
        };
        self.rights.get().limits.admit(&call, now).inspect_err(|reached| {
            self.log.record_refusal(|time| {
                // The limit is what decided.
                let rule = RuleName::File(Arc::clone(&reached.limit));
                let decision = Decision { verdict: RuleEffect::Deny, rule, scopes: Vec::new() };
                AuditRecord {
                    code: Some(reached.code().to_string()),
                    ..self.describe(time, action, resource, &decision, Arguments::None)
                }
            });
        })
    }

    /// Begins the record of something that is allowed and about to be done, if things of that kind
    /// are recorded. If the audit log is required, this waits until the beginning is kept.
    ///
    /// # Errors
    ///
    /// Returns an error if the log is required and can't keep the beginning. The action must not be
    /// done then.
    pub async fn begin_record(
        &self,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
        arguments: Arguments<'_>,
    ) -> Result<OpenRecord, AuditGap> {
        if !action.is_recorded() {
            return Ok(OpenRecord::default());
        }
        let make = |time| self.describe(time, action, resource, decision, arguments);
        self.log.begin(make).await
    }

    fn describe(
        &self,
        time: Timestamp,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
        arguments: Arguments<'_>,
    ) -> AuditRecord {
        let mut record =
            AuditRecord::of_decision(time, &self.principal, action, resource, decision);
        if let Arguments::Known(arguments) = arguments {
            let rights = self.rights.get();
            record.add_arguments(arguments, rights.audited.redaction(action, resource));
        }

        if let Some(principal) = &mut record.principal {
            principal.presented_by = self.presenter.map(|presenter| presenter.to_string());
        }
        record.view = self.view.as_deref().map(str::to_owned);
        let Origin { peer, job_id, trace_id } = &self.origin;
        record.peer = peer.map(|peer| peer.to_canonical().to_string());
        record.job_id = job_id.as_deref().map(audit::cut);
        record.trace_id.clone_from(trace_id);
        record
    }
}

/// The view of this name; an empty one if it was removed.
fn find_view(rights: &Rights, name: &Arc<str>) -> Arc<View> {
    rights.views.get(name).cloned().unwrap_or_else(|| Arc::new(View::removed(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file::AccessPolicy, fleet_role::FleetRole, resource::Annotations};

    fn parse(text: &str) -> Rights {
        AccessPolicy::parse(text, None).unwrap().into_rights()
    }

    #[test]
    fn decisions_follow_the_rules_in_force() {
        let denied = r#"
            [[rule]]
            name = "no metrics"
            effect = "deny"
            principals = ["anyone"]
            actions = ["metrics.read"]
        "#;
        let rights = CurrentRights::default();
        let asker = Asker::new(Arc::new(Principal::local()), rights.clone());
        let decide = || {
            asker
                .decide(Action::ReadMetrics, &Resource::default(), &Context::default())
                .is_allowed()
        };

        assert!(decide());
        rights.replace(parse(denied));
        assert!(!decide());
        rights.replace(Rights::default());
        assert!(decide());
    }

    #[test]
    fn what_was_used_of_a_limit_counts_after_a_reload() {
        let limited = "[[limit]]\nname = 'one'\nper = 'principal'\nrate = '1/h'\n";
        let rights = CurrentRights::new(parse(limited));
        let asker = Asker::new(Arc::new(Principal::local()), rights.clone());
        let call = Resource::tool(None, "t", Annotations::default());
        let admit = || asker.admit(Action::CallTool, &call, 0, Duration::from_secs(7200)).is_ok();

        assert!(admit() && !admit());
        rights.replace(parse(limited));
        assert!(!admit());
    }

    #[test]
    fn what_is_presented_is_decided_on_as_its_author_and_recorded_with_both() {
        let of = |subject: &str, role: FleetRole| {
            let via = crate::Via::Key { id: subject.to_owned() };
            let mut principal = Principal::new("keys", subject, crate::PrincipalKind::Node, via);
            principal.add_roles([role.as_str().to_owned()]);
            Arc::new(principal)
        };
        let (worker, operator) =
            (of("worker", FleetRole::Worker), of("operator", FleetRole::Operator));
        let worker = Asker::new(worker, CurrentRights::default());
        let read = |asker: &Asker| {
            asker.decide(Action::ReadMetrics, &Resource::default(), &Context::default())
        };
        assert!(!read(&worker).is_allowed());

        let acting = worker.on_behalf_of(operator);
        let decision = read(&acting);
        assert!(decision.is_allowed());
        let (resource, time) = (Resource::default(), Timestamp::MIN);
        let record =
            acting.describe(time, Action::ReadMetrics, &resource, &decision, Arguments::None);
        let principal = record.principal.unwrap();
        assert_eq!(principal.subject, "operator");
        assert_eq!(principal.presented_by, Some(worker.principal().id().to_string()));
    }
}
