//! What all pages have: navigation, who is signed in, and what they may do.

use fleet_access::{Action, Asker};

use crate::assets::{self, AssetUrls};

/// A part of the console, as in its navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The overview.
    Overview,
    /// Jobs.
    Jobs,
    /// Dead letters.
    DeadLetters,
    /// Jobs that await approval.
    Approvals,
    /// Tools.
    Tools,
    /// Hosted servers.
    Servers,
    /// A page that is in no part, such as an error.
    Other,
}

impl Section {
    const LISTED: [Self; 6] = [
        Self::Overview,
        Self::Jobs,
        Self::DeadLetters,
        Self::Approvals,
        Self::Tools,
        Self::Servers,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Jobs => "Jobs",
            Self::DeadLetters => "Dead letters",
            Self::Approvals => "Approvals",
            Self::Tools => "Tools",
            Self::Servers => "Servers",
            Self::Other => "",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Overview | Self::Other => "/console",
            Self::Jobs => "/console/jobs",
            Self::DeadLetters => "/console/dead-letters",
            Self::Approvals => "/console/approvals",
            Self::Tools => "/console/tools",
            Self::Servers => "/console/servers",
        }
    }
}

/// What the visitor may do, as far as that is known without knowing with what. A page offers
/// nothing else; what is asked for is decided on again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rights {
    /// Run jobs.
    pub submit: bool,
    /// Cancel jobs.
    pub cancel: bool,
    /// Decide on jobs that await approval.
    pub approve: bool,
    /// Call tools.
    pub call: bool,
    /// Host and remove servers.
    pub administer: bool,
    /// Replay dead letters.
    pub replay: bool,
    /// Delete dead letters.
    pub purge: bool,
}

impl Rights {
    /// What somebody may do; nothing if the console only shows.
    pub fn of(asker: &Asker, is_read_only: bool) -> Self {
        if is_read_only {
            return Self::default();
        }
        Self {
            submit: asker.may_ever(Action::SubmitJob),
            cancel: asker.may_ever(Action::CancelJob),
            approve: asker.may_ever(Action::ApproveJob),
            call: asker.may_ever(Action::CallTool),
            administer: asker.may_ever(Action::AdministerServers),
            replay: asker.may_ever(Action::ReplayDeadLetters),
            purge: asker.may_ever(Action::DeleteDeadLetters),
        }
    }
}

/// Who looks at a page.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The name for people.
    pub name: String,
    /// Whether the visitor has a session, which can be ended.
    pub has_session: bool,
    /// What the visitor may do.
    pub rights: Rights,
    /// The token that proves that a form is from a page of this visitor.
    pub csrf: String,
    /// Whether nothing can be changed here.
    pub is_read_only: bool,
}

/// What a change has done, as the next page says it. The texts are fixed, since the name of one is
/// in the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A cancellation was requested.
    CancelRequested,
    /// A job was cancelled.
    Cancelled,
    /// A job was submitted.
    Submitted,
    /// The job existed before.
    Existing,
    /// A job was approved.
    Approved,
    /// A job was not approved.
    Denied,
    /// A server is hosted.
    Hosted,
    /// A server was removed.
    Removed,
    /// A server was restarted.
    Restarted,
}

impl Notice {
    const ALL: [(Self, &'static str, &'static str); 9] = [
        (
            Self::CancelRequested,
            "cancel-requested",
            "The workers were told to cancel this job. It ends as soon as its call lets it.",
        ),
        (Self::Cancelled, "cancelled", "The job is cancelled."),
        (Self::Submitted, "submitted", "The job is on the queue. This page follows it."),
        (Self::Existing, "existing", "This job had been submitted before and was not run again."),
        (Self::Approved, "approved", "The job is approved and goes to the queue."),
        (Self::Denied, "denied", "The job was denied and will not run."),
        (Self::Hosted, "hosted", "The server is hosted. Its tools can be called now."),
        (Self::Removed, "removed", "The server and its tools are removed."),
        (Self::Restarted, "restarted", "The server was started again."),
    ];

    /// The notice that a URL names.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(notice, ..)| *notice)
    }

    /// The name in a URL.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(notice, ..)| *notice == self).map_or("", |(_, name, _)| name)
    }

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(notice, ..)| *notice == self).map_or("", |(.., text)| text)
    }
}

/// An entry of the navigation.
pub(crate) struct NavigationEntry {
    pub(crate) label: &'static str,
    pub(crate) path: &'static str,
    pub(crate) is_current: bool,
}

/// What all pages have.
#[derive(Debug, Clone)]
pub struct Page {
    pub(crate) title: String,
    pub(crate) section: Section,
    /// `None` for those who are not signed in.
    pub(crate) visitor: Option<Visitor>,
    pub(crate) notice: Option<Notice>,
    /// The URL of the events after which the page's live part is fetched again.
    pub(crate) live: Option<String>,
    pub(crate) assets: AssetUrls,
    pub(crate) has_htmx: bool,
    pub(crate) version: &'static str,
}

impl Page {
    /// A page for a visitor.
    pub fn new(title: impl Into<String>, section: Section, visitor: Visitor) -> Self {
        Self { visitor: Some(visitor), ..Self::public(title, section) }
    }

    /// A page for those who are not signed in.
    pub fn public(title: impl Into<String>, section: Section) -> Self {
        Self {
            title: title.into(),
            section,
            visitor: None,
            notice: None,
            live: None,
            assets: AssetUrls::new(),
            has_htmx: assets::has_htmx(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The same with a notice.
    #[must_use]
    pub fn with_notice(self, notice: Option<Notice>) -> Self {
        Self { notice, ..self }
    }

    /// The same, brought up to date after each event at this URL.
    #[must_use]
    pub fn live_from(self, url: String) -> Self {
        Self { live: Some(url), ..self }
    }

    pub(crate) fn navigation(&self) -> Vec<NavigationEntry> {
        let entry = |section: Section| NavigationEntry {
            label: section.label(),
            path: section.path(),
            is_current: section == self.section,
        };
        Section::LISTED.into_iter().map(entry).collect()
    }

    pub(crate) fn notice_text(&self) -> Option<&'static str> {
        self.notice.map(Notice::text)
    }

    pub(crate) fn rights(&self) -> Rights {
        self.visitor.as_ref().map(|visitor| visitor.rights).unwrap_or_default()
    }

    pub(crate) fn csrf(&self) -> &str {
        self.visitor.as_ref().map_or("", |visitor| visitor.csrf.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_back_by_their_names_and_nothing_else_does() {
        for (notice, name, text) in Notice::ALL {
            assert_eq!(Notice::parse(name), Some(notice));
            assert_eq!((notice.name(), notice.text()), (name, text));
        }
        assert_eq!(Notice::parse("<script>"), None);
    }

    #[test]
    fn a_console_that_only_shows_offers_nothing() {
        let asker = Asker::local();
        assert!(Rights::of(&asker, false).cancel);
        assert!(!Rights::of(&asker, true).cancel);
    }
}
