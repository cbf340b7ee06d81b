//! Small parts of pages. Each is a template of its own, which escapes what it prints, so it can
//! stand in another template as it is.

use askama::{Template, filters::HtmlSafe};
use fleet_job::{event::JobState, time::Timestamp};

use crate::{format, links};

/// A moment: UTC in the page, which the script replaces by local time.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<time datetime="{{ machine }}" title="{{ utc }}">{{ utc }}</time>"#
)]
pub(crate) struct TimeTag {
    machine: String,
    utc: String,
}

impl TimeTag {
    pub(crate) fn new(time: Timestamp) -> Self {
        Self { machine: time.to_string(), utc: format::utc(time) }
    }
}

/// A state of a job, with its colour and its name.
#[derive(Template)]
#[template(ext = "html", source = r#"<span class="state {{ class }}">{{ label }}</span>"#)]
pub(crate) struct StateTag {
    class: &'static str,
    label: &'static str,
}

impl StateTag {
    pub(crate) fn new(state: JobState) -> Self {
        let (class, label) = match state {
            JobState::Queued => ("is-idle", "queued"),
            JobState::Running => ("is-busy", "running"),
            JobState::Retrying => ("is-warning", "retrying"),
            JobState::Succeeded => ("is-good", "succeeded"),
            JobState::Failed => ("is-bad", "failed"),
            JobState::Cancelled => ("is-muted", "cancelled"),
            JobState::Expired => ("is-bad", "expired"),
            JobState::AwaitingApproval => ("is-warning", "awaiting approval"),
        };
        Self { class, label }
    }

    /// The state of a hosted server. Names that are not known look like trouble.
    pub(crate) fn of_server(state: &str) -> Self {
        let (class, label) = match state {
            "running" => ("is-good", "running"),
            "starting" => ("is-busy", "starting"),
            "idle" => ("is-idle", "idle"),
            "refused" => ("is-bad", "refused"),
            "failed" => ("is-bad", "failed"),
            _ => ("is-warning", "unknown"),
        };
        Self { class, label }
    }
}

/// An error's code, with a link to what it means.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<a class="code" href="{{ href }}" title="What this means, and what to do">{{ code }}</a>"#
)]
pub(crate) struct CodeLink {
    href: String,
    code: String,
}

impl CodeLink {
    /// A link to the page of an error code; `None` if the fleet has no such code.
    pub(crate) fn new(code: &str) -> Option<Self> {
        fleet_codes::find(code)?;
        Some(Self { href: links::code(code), code: code.to_owned() })
    }
}

/// JSON, which the script makes a tree that folds.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<json-tree hx-morph-skip><pre class="json" tabindex="0" aria-label="{{ label }}">{{ text }}</pre></json-tree>{% if is_cut %}<p class="hint">Only the first {{ shown }} of {{ total }} are shown.</p>{% endif %}"#
)]
pub(crate) struct JsonBlock {
    label: &'static str,
    text: String,
    is_cut: bool,
    shown: String,
    total: String,
}

impl JsonBlock {
    /// The most bytes of JSON in one block.
    const MAX_BYTES: usize = 16 * 1024;

    pub(crate) fn new(label: &'static str, value: &serde_json::Value) -> Self {
        Self::up_to(Self::MAX_BYTES, label, value)
    }

    /// The same with another bound.
    pub(crate) fn up_to(max: usize, label: &'static str, value: &serde_json::Value) -> Self {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        let (total, kept) = (text.len(), format::cut(&text, max).len());
        Self {
            label,
            is_cut: kept < total,
            shown: format::bytes(kept as u64),
            total: format::bytes(total as u64),
            text: text[..kept].to_owned(),
        }
    }
}

impl JsonBlock {
    /// How many bytes the text takes in the page.
    pub(crate) fn size(&self) -> usize {
        format::escaped_size(&self.text)
    }
}

impl HtmlSafe for TimeTag {}
impl HtmlSafe for StateTag {}
impl HtmlSafe for CodeLink {}
impl HtmlSafe for JsonBlock {}
