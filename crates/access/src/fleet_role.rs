//! The roles of a fleet's own keys, which have rights without a rule.

use crate::{
    action::Action,
    principal::{Principal, Via},
};

/// A role that has rights without a rule: those of the keys that `mcp-fleet keys init` makes.
///
/// Rules that deny go before these rights. Only API keys have them: the roles of a token are made by
/// its issuer, who may mean something else by the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetRole {
    /// Who operates the fleet. May do everything.
    Operator,
    /// The workers. May present jobs, and act as those who have signed them. If jobs are not signed,
    /// they may do what jobs do: call tools, host servers, and submit more jobs.
    Worker,
    /// Who collects the metrics. May read them, and nothing else.
    Metrics,
}

impl FleetRole {
    /// Every role of a fleet.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Worker, Self::Metrics];

    /// The role as it is written in the keys file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "fleet-operator",
            Self::Worker => "fleet-worker",
            Self::Metrics => "fleet-metrics",
        }
    }

    /// The name of the built-in rule about this role.
    pub(crate) fn rule_name(self) -> &'static str {
        match self {
            Self::Operator => "default:fleet-operator",
            Self::Worker => "default:fleet-worker",
            Self::Metrics => "default:fleet-metrics",
        }
    }

    /// Returns whether a principal has the role by its key.
    pub fn is_held_by(self, principal: &Principal) -> bool {
        matches!(principal.via, Via::Key { .. }) && principal.has_role(self.as_str())
    }

    /// The role by which a principal may do something without a rule; `None` if it has no such role.
    pub(crate) fn that_allows(
        principal: &Principal,
        action: Action,
        jobs: JobRights,
    ) -> Option<Self> {
        let roles = Self::ALL.into_iter().filter(|role| principal.has_role(role.as_str()));
        match principal.via {
            Via::Key { .. } => roles.into_iter().find(|role| role.allows(action, jobs)),
            // What is trusted of a topic does not depend on whether other jobs are signed.
            Via::Topic => roles.into_iter().find(|role| role.allows(action, JobRights::OfWorkers)),
            _ => None,
        }
    }

    /// Whether a principal is there for what its role is for and for nothing else, not even for what
    /// everybody may read: to read metrics or, where jobs are signed, to make their calls.
    pub(crate) fn is_for_its_role_only(principal: &Principal, jobs: JobRights) -> bool {
        let is_only = |role: Self| principal.roles == [role.as_str()];
        matches!(principal.via, Via::Key { .. })
            && (is_only(Self::Metrics)
                || (jobs == JobRights::OfSubmitters && is_only(Self::Worker)))
    }

    fn allows(self, action: Action, jobs: JobRights) -> bool {
        match (self, jobs) {
            (Self::Operator, _) => action != Action::Unknown,
            (Self::Worker, JobRights::OfSubmitters) => action == Action::ActAs,
            (Self::Worker, JobRights::OfWorkers) => {
                matches!(action, Action::CallTool | Action::AdministerServers | Action::SubmitJob)
            }
            (Self::Metrics, _) => action == Action::ReadMetrics,
        }
    }
}

/// With whose rights jobs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JobRights {
    /// With those of the worker that makes their calls: jobs are not signed.
    #[default]
    OfWorkers,
    /// With those of who has submitted them: jobs are signed, and workers have no other right.
    OfSubmitters,
}
