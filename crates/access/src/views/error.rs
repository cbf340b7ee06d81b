//! What can be wrong with views.

use fleet_codes as codes;

use crate::rules::{RuleError, SelectorError};

/// Why a `[view.…]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The name can't be part of the view's address.
    #[error(
        "{view:?} can't be the name of a view: it must have 1 to 40 lower-case letters, digits, `-` \
         and `_`, begin with a letter or digit, and not be `server-card` [{code}]",
        code = codes::POLICY_FILE
    )]
    Name {
        /// The view.
        view: String,
    },
    /// Nothing is selected.
    #[error(
        "[view.{view}] selects nothing; add a [[view.{view}.select]] with `servers`, where \"\" is for \
         our own tools and \"*\" for everything [{code}]",
        code = codes::POLICY_FILE
    )]
    NoSelection {
        /// The view.
        view: String,
    },
    /// A list or text is empty.
    #[error(
        "`{field}` of [[view.{view}.{table}]] is empty; write something, or remove the field [{code}]",
        code = codes::POLICY_FILE
    )]
    Empty {
        /// The view.
        view: String,
        /// The table below it.
        table: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A tool is named as clients see it.
    #[error(
        "`{field}` of [[view.{view}.select]]: {tool:?} is a tool's offered name; write the server's \
         name into `servers` and the tool's own name into `{field}` [{code}]",
        code = codes::POLICY_FILE
    )]
    OfferedName {
        /// The view.
        view: String,
        /// The field.
        field: &'static str,
        /// The tool.
        tool: String,
    },
    /// A selector can't be read.
    #[error("`principals` of [view.{view}]: {error} [{code}]", code = codes::POLICY_FILE)]
    Principal {
        /// The view.
        view: String,
        /// What is wrong with the selector.
        error: SelectorError,
    },
    /// A changed tool is given by a pattern.
    #[error(
        "[[view.{view}.tool]] is about one tool, but {text:?} is a pattern; write the server's name \
         into `server` and the tool's own name into `tool` [{code}]",
        code = codes::POLICY_FILE
    )]
    Pattern {
        /// The view.
        view: String,
        /// The pattern.
        text: String,
    },
    /// A changed tool is not in the view.
    #[error(
        "[[view.{view}.tool]] changes {tool:?} of server {server:?}, which the view does not have; \
         select it, or remove the table [{code}]",
        code = codes::POLICY_FILE
    )]
    NotSelected {
        /// The view.
        view: String,
        /// The tool's server.
        server: String,
        /// The tool.
        tool: String,
    },
    /// A table changes nothing.
    #[error(
        "[[view.{view}.tool]] for {tool:?} changes nothing; write `as`, `title` or `description` \
         [{code}]",
        code = codes::POLICY_FILE
    )]
    NoChange {
        /// The view.
        view: String,
        /// The tool.
        tool: String,
    },
    /// A tool has two tables.
    #[error(
        "two [[view.{view}.tool]] are about {tool:?} of server {server:?}; merge them [{code}]",
        code = codes::POLICY_FILE
    )]
    SameTool {
        /// The view.
        view: String,
        /// The tool's server.
        server: String,
        /// The tool.
        tool: String,
    },
    /// A new name can't be one.
    #[error(
        "`as` of [[view.{view}.tool]]: {name:?} can't be the name of a tool: it must have 1 to 64 \
         letters, digits, `_` and `-`, and no `__`, which separates server and tool elsewhere [{code}]",
        code = codes::POLICY_FILE
    )]
    ToolName {
        /// The view.
        view: String,
        /// The name.
        name: String,
    },
    /// A new name is that of a tool of our own.
    #[error(
        "`as` of [[view.{view}.tool]]: {name:?} is reserved for the tools of mcp-fleet itself, which \
         begin with `server_`, `job_` and `file_`; choose another name [{code}]",
        code = codes::POLICY_FILE
    )]
    ReservedName {
        /// The view.
        view: String,
        /// The name.
        name: String,
    },
    /// Two tools have one name.
    #[error(
        "two [[view.{view}.tool]] have `as` = {name:?}; rename one [{code}]",
        code = codes::POLICY_FILE
    )]
    SameName {
        /// The view.
        view: String,
        /// The name.
        name: String,
    },
    /// A rule would widen the view.
    #[error(
        "the [[view.{view}.rule]] {name:?} has `effect = \"allow\"`, but a view can only narrow what \
         [[rule]] tables allow; use `deny` or `approve` [{code}]",
        code = codes::POLICY_FILE
    )]
    Allow {
        /// The view.
        view: String,
        /// The rule.
        name: String,
    },
    /// A rule can't be used.
    #[error(transparent)]
    Rule(#[from] RuleError),
}
