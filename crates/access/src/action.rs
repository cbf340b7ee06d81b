//! Actions: what a principal may want to do.

use crate::pattern::Pattern;

/// Declares the actions with their names.
macro_rules! actions {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// What a principal wants to do. Every method and route is one of these; one that is not
        /// known is [`Action::Unknown`], which nobody may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Action {
            $($(#[doc = $doc])* $name,)*
            /// An operation that this version does not know.
            Unknown,
        }

        impl Action {
            /// Every known action.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The action as it is written in rules and records.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown => "unknown",
                }
            }
        }
    };
}

actions! {
    /// To take part in the protocol at all: handshake, ping, log level.
    UseSession = "session.use",
    /// To list tools. The list has only those that may be called.
    ListTools = "tools.list",
    /// To call a tool.
    CallTool = "tools.call",
    /// To list prompts.
    ListPrompts = "prompts.list",
    /// To get a prompt.
    GetPrompt = "prompts.get",
    /// To list resources and their templates.
    ListResources = "resources.list",
    /// To read a resource.
    ReadResource = "resources.read",
    /// To be told when a resource changes.
    SubscribeResource = "resources.subscribe",
    /// To have an argument completed.
    Complete = "completions",
    /// To call a method of an extension that a hosted server declares.
    CallExtension = "extensions.call",
    /// To submit a job.
    SubmitJob = "jobs.submit",
    /// To see a job: by id, in a list, in the stream of events, as a task.
    ReadJob = "jobs.read",
    /// To cancel a job.
    CancelJob = "jobs.cancel",
    /// To answer what a job asks for, as a task of the protocol may.
    AnswerJob = "jobs.answer",
    /// To decide on a job that awaits approval.
    ApproveJob = "jobs.approve",
    /// To pause jobs and resume them: those of a tenant, or everybody's.
    PauseJobs = "jobs.pause",
    /// To host, change and remove MCP servers.
    AdministerServers = "servers.administer",
    /// To see the pins of hosted servers' tools, and to decide on tools that have changed.
    DecidePins = "servers.pins",
    /// To see dead letters.
    ReadDeadLetters = "dead-letters.read",
    /// To submit dead letters again.
    ReplayDeadLetters = "dead-letters.replay",
    /// To delete dead letters.
    DeleteDeadLetters = "dead-letters.delete",
    /// To see the workers of the fleet, and how far they have come.
    ReadFleet = "fleet.read",
    /// To read the metrics.
    ReadMetrics = "metrics.read",
    /// To read audit records.
    ReadAudit = "audit.read",
    /// To present another principal's signed job, as workers do.
    ActAs = "act-as",
}

impl Action {
    /// The action that is written like this; [`Action::Unknown`] if none is.
    pub fn parse(text: &str) -> Self {
        let known = Self::ALL.iter().find(|action| action.as_str() == text);
        known.copied().unwrap_or(Self::Unknown)
    }
}

impl Action {
    /// Returns whether the audit log has a record each time that this is done. Lists, lookups and
    /// the protocol itself have none; whatever is refused has one in any case.
    pub fn is_recorded(self) -> bool {
        match self {
            Self::CallTool
            | Self::GetPrompt
            | Self::ReadResource
            | Self::CallExtension
            | Self::SubmitJob
            | Self::CancelJob
            | Self::AnswerJob
            | Self::ApproveJob
            | Self::PauseJobs
            | Self::AdministerServers
            | Self::DecidePins
            | Self::ReplayDeadLetters
            | Self::DeleteDeadLetters
            | Self::ReadAudit
            | Self::ActAs
            | Self::Unknown => true,
            Self::UseSession
            | Self::ListTools
            | Self::ListPrompts
            | Self::ListResources
            | Self::SubscribeResource
            | Self::Complete
            | Self::ReadJob
            | Self::ReadDeadLetters
            | Self::ReadFleet
            | Self::ReadMetrics => false,
        }
    }
}

/// A set of actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ActionSet(u32);

impl ActionSet {
    /// The known actions that a pattern matches.
    pub(crate) fn matching(pattern: &str) -> Self {
        let pattern = Pattern::new(pattern);
        let matching = Action::ALL.iter().filter(|action| pattern.matches(action.as_str()));
        Self(matching.fold(0, |bits, action| bits | 1 << *action as u8))
    }

    /// Everything that is in either set.
    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, action: Action) -> bool {
        self.0 & 1 << action as u8 != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.iter().copied().filter(move |action| self.contains(*action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), *action);
        }
        for unknown in ["", "tools", "tools.*", "unknown", "Tools.call"] {
            assert_eq!(Action::parse(unknown), Action::Unknown);
        }
    }

    #[test]
    fn patterns_never_match_the_unknown_action() {
        assert!(!ActionSet::matching("*").contains(Action::Unknown));
        assert!(ActionSet::matching("unknown").is_empty());
        assert_eq!(ActionSet::matching("*").iter().count(), Action::ALL.len());
        let jobs: Vec<_> = ActionSet::matching("jobs.*").iter().map(Action::as_str).collect();
        assert_eq!(
            jobs,
            [
                "jobs.submit",
                "jobs.read",
                "jobs.cancel",
                "jobs.answer",
                "jobs.approve",
                "jobs.pause"
            ]
        );
    }
}
