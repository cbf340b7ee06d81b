//! What people see of pins before they decide.

use fleet_job::time::Timestamp;
use fleet_pins::{Digest, Judgement, PinMode, Standing, ToolPin, diff::DefinitionChange};
use schemars::JsonSchema;
use serde::Serialize;

/// The pins of a hosted server's tools, and what differs from them.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PinReview {
    /// The server's name.
    pub server: String,
    /// What becomes of tools that differ.
    pub mode: PinMode,
    /// The tools that the server has now, in its order.
    pub tools: Vec<ToolReview>,
}

/// A tool and its pin.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolReview {
    /// The tool's own name.
    pub tool: String,
    /// How it stands to its pin.
    pub standing: Standing,
    /// Whether it is neither listed nor called.
    pub withheld: bool,
    /// The digest of the definition that it has now, which a decision names.
    pub digest: Digest,
    /// The digest that is pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Digest>,
    /// Whether the policy file names its digest, so that nothing else counts.
    pub by_file: bool,
    /// The principal who decided last; missing if it was pinned at first sight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// When it was pinned or decided on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
    /// What differs from the pinned definition. Everything is new if that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<DefinitionChange>,
}

impl ToolReview {
    pub(super) fn new(
        tool: String,
        judged: Judgement,
        digest: Digest,
        pin: Option<ToolPin>,
        by_file: bool,
        changes: Vec<DefinitionChange>,
    ) -> Self {
        let pin = pin.unwrap_or_default();
        Self {
            tool,
            standing: judged.standing,
            withheld: judged.is_withheld,
            digest,
            pinned: pin.digest,
            by_file,
            decided_by: pin.decided_by,
            decided_at: pin.decided_at,
            changes,
        }
    }
}
