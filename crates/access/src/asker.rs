//! Somebody who asks, together with the rules and limits in force.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use crate::{
    action::Action,
    limits::{AdmittedCall, LimitReached, LimitedCall, Limits},
    principal::Principal,
    resource::{Context, Resource},
    rules::{Decision, Rules},
};

/// What principals may do, and how much.
#[derive(Debug, Default)]
pub struct Rights {
    /// What they may do.
    pub rules: Rules,
    /// How much.
    pub limits: Limits,
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
    rights: CurrentRights,
}

impl Asker {
    /// A principal that these rights decide about.
    pub fn new(principal: Arc<Principal>, rights: CurrentRights) -> Self {
        Self { principal, rights }
    }

    /// The local principal without any rules, which may do everything.
    pub fn local() -> Self {
        Self::new(Arc::new(Principal::local()), CurrentRights::default())
    }

    /// Who asks.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Decides as [`Rules::decide`] does.
    pub fn decide(
        &self,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Decision {
        self.rights.get().rules.decide(&self.principal, action, resource, context)
    }

    /// Decides as [`Rules::may_ever`] does.
    pub fn may_ever(&self, action: Action) -> bool {
        self.rights.get().rules.may_ever(&self.principal, action)
    }

    /// Decides as [`Rules::could_call`] does.
    pub fn could_call(&self, server: Option<&str>, tool: Option<&str>) -> bool {
        self.rights.get().rules.could_call(&self.principal, server, tool)
    }

    /// Lets an action in as [`Limits::admit`] does, about a resource and with a request of so many
    /// bytes. `now` is the time since any fixed moment.
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
        self.rights.get().limits.admit(&call, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file::AccessPolicy, resource::Annotations};

    fn parse(text: &str) -> Rights {
        let policy = AccessPolicy::parse(text, None).unwrap();
        Rights { rules: policy.rules, limits: policy.limits }
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
}
