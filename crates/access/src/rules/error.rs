//! What can be wrong with rules.

use fleet_codes as codes;

use super::{condition::ConditionError, selector::SelectorError};

/// Why a `[[rule]]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The name can't be one.
    #[error(
        "`name` of the [[rule]] {name:?} must have 1 to 100 characters, none of them a control \
         character, and not begin with `default:` or `view:` [{code}]",
        code = codes::POLICY_FILE
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two rules have one name.
    #[error("two [[rule]] have the name {name:?}; rename one [{code}]", code = codes::POLICY_FILE)]
    SameName {
        /// The name.
        name: String,
    },
    /// A list is empty, so the rule would cover nothing.
    #[error(
        "`{field}` of the [[rule]] {name:?} is empty, so the rule would never apply; list something, \
         or remove the {what} [{code}]",
        code = codes::POLICY_FILE
    )]
    Empty {
        /// The rule.
        name: String,
        /// The field.
        field: &'static str,
        /// What to remove.
        what: &'static str,
    },
    /// A selector can't be read.
    #[error("`principals` of the [[rule]] {name:?}: {error} [{code}]", code = codes::POLICY_FILE)]
    Principal {
        /// The rule.
        name: String,
        /// What is wrong with the selector.
        error: SelectorError,
    },
    /// A pattern matches no action.
    #[error(
        "`actions` of the [[rule]] {name:?}: no action is called {pattern:?}; the actions are \
         {known} [{code}]",
        code = codes::POLICY_FILE
    )]
    Action {
        /// The rule.
        name: String,
        /// The pattern.
        pattern: String,
        /// The names of all actions.
        known: String,
    },
    /// A tool is named as clients see it.
    #[error(
        "`tools` of the [[rule]] {name:?}: {tool:?} is a tool's offered name; write the server's name \
         into `servers` and the tool's own name into `tools` (`?` stands for any character) [{code}]",
        code = codes::POLICY_FILE
    )]
    OfferedName {
        /// The rule.
        name: String,
        /// The tool.
        tool: String,
    },
    /// A field does not apply to any of the actions.
    #[error(
        "`{field}` of the [[rule]] {name:?} applies to none of its actions, so the rule would never \
         apply; remove the field or add an action that has {field} [{code}]",
        code = codes::POLICY_FILE
    )]
    FieldOfOtherActions {
        /// The rule.
        name: String,
        /// The field.
        field: &'static str,
    },
    /// The condition can't be evaluated.
    #[error("`when` of the [[rule]] {name:?}: {error} [{code}]", code = codes::POLICY_FILE)]
    Condition {
        /// The rule.
        name: String,
        /// What is wrong with the condition.
        error: ConditionError,
    },
}
