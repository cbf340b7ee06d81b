//! The rules that hold without a policy file.

use super::{facts::Facts, table::DefaultAccess};
use crate::{
    action::Action,
    fleet_role::{FleetRole, JobRights},
    principal::{Principal, Via},
    resource::Resource,
};

/// What holds without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Defaults {
    pub(super) access: DefaultAccess,
    pub(super) jobs: JobRights,
}

/// A rule that always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    /// Nobody may do what is not known.
    UnknownOperation,
    /// The local principal may do everything, except with others' jobs.
    Local,
    /// On an open server, everybody may do the same.
    Open,
    /// The holders of the fleet's own keys may do what their role is for.
    Role(FleetRole),
    /// Everybody may take part in the protocol and read what is there.
    Read,
    /// Everybody may call tools that change nothing.
    ReadOnlyTool,
    /// Everybody may see, answer and cancel their own jobs.
    OwnJob,
    /// A rule would allow it if the token had more scopes.
    MissingScope,
    /// Everything else is denied.
    NoRule,
}

impl Builtin {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownOperation => "default:unknown-operation",
            Self::Local => "default:local",
            Self::Open => "default:open",
            Self::Role(role) => role.rule_name(),
            Self::Read => "default:read",
            Self::ReadOnlyTool => "default:read-only-tool",
            Self::OwnJob => "default:own-job",
            Self::MissingScope => "default:missing-scope",
            Self::NoRule => "default:no-rule",
        }
    }
}

/// The built-in rule that allows an action; `None` if none does.
pub(super) fn allow(
    principal: &Principal,
    action: Action,
    resource: &Resource<'_>,
    default: Defaults,
    facts: &Facts<'_>,
) -> Option<Builtin> {
    // A proxy may tell callers apart by credentials that this server does not verify.
    let is_anybodys = resource.job.is_none_or(|job| job.owner.is_none());
    match principal.via {
        Via::Loopback if is_anybodys => return Some(Builtin::Local),
        Via::Open if is_anybodys => return Some(Builtin::Open),
        _ => {}
    }

    if let Some(role) = FleetRole::that_allows(principal, action, default.jobs) {
        return Some(Builtin::Role(role));
    }

    let reads = default.access == DefaultAccess::ReadOnly
        && !FleetRole::is_for_its_role_only(principal, default.jobs);
    match Reach::of(action) {
        Reach::Always => Some(Builtin::Read),
        Reach::OwnJobs => facts.is_own_job().then_some(Builtin::OwnJob),
        Reach::Reading => reads.then_some(Builtin::Read),
        Reach::ReadOnlyTools => {
            let is_read_only = resource.annotations.read_only == Some(true);
            (reads && is_read_only && facts.trusts_annotations).then_some(Builtin::ReadOnlyTool)
        }
        Reach::Nothing => None,
    }
}

/// Whether a built-in rule allows an action with some resource.
pub(super) fn allow_ever(principal: &Principal, action: Action, default: Defaults) -> bool {
    if matches!(principal.via, Via::Loopback | Via::Open) {
        return action != Action::Unknown;
    }
    if FleetRole::that_allows(principal, action, default.jobs).is_some() {
        return true;
    }
    match Reach::of(action) {
        Reach::Always | Reach::OwnJobs => true,
        Reach::Reading | Reach::ReadOnlyTools => {
            default.access == DefaultAccess::ReadOnly
                && !FleetRole::is_for_its_role_only(principal, default.jobs)
        }
        Reach::Nothing => false,
    }
}

/// What the built-in rules allow an identified principal to do with an action.
enum Reach {
    /// Everything: a list has only what the principal may use, so it shows nothing by itself.
    Always,
    /// What concerns its own jobs.
    OwnJobs,
    /// Everything, unless the policy file says that nothing is allowed without a rule.
    Reading,
    /// The same with tools that change nothing.
    ReadOnlyTools,
    /// Nothing.
    Nothing,
}

impl Reach {
    fn of(action: Action) -> Self {
        match action {
            Action::UseSession
            | Action::ListTools
            | Action::ListPrompts
            | Action::ListResources => Self::Always,
            Action::ReadJob | Action::CancelJob | Action::AnswerJob => Self::OwnJobs,
            Action::GetPrompt
            | Action::ReadResource
            | Action::SubscribeResource
            | Action::Complete => Self::Reading,
            Action::CallTool => Self::ReadOnlyTools,
            Action::CallExtension
            | Action::SubmitJob
            | Action::ApproveJob
            | Action::PauseJobs
            | Action::AdministerServers
            | Action::DecidePins
            | Action::ReadDeadLetters
            | Action::ReplayDeadLetters
            | Action::DeleteDeadLetters
            | Action::ReadFleet
            | Action::ReadMetrics
            | Action::ReadAudit
            | Action::ActAs
            | Action::Unknown => Self::Nothing,
        }
    }
}
