//! Which calls become tasks: those of tools that take long, made by clients that know tasks.

use fleet_job::meta;
use rmcp::model::{CallToolRequestParams, ClientCapabilities, ErrorData, MetaObject};
use serde_json::Value;

/// How to call a tool that takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongRunning {
    /// As a task where the client knows tasks.
    Optional,
    /// As a task only.
    Required,
    /// As a task once it has been given what it asks for.
    AfterInput,
}

impl LongRunning {
    /// What a tool says of itself in its `_meta`.
    pub fn of(tool: Option<&MetaObject>) -> Option<Self> {
        match tool?.get(meta::LONG_RUNNING)? {
            Value::Bool(true) => Some(Self::Optional),
            Value::String(text) => match text.as_str() {
                "optional" => Some(Self::Optional),
                "required" => Some(Self::Required),
                "after-input" => Some(Self::AfterInput),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a call becomes a task, made by a client that knows tasks or not.
    ///
    /// # Errors
    /// If the tool can be called as a task only, and the client does not know tasks.
    pub fn becomes_task(
        self,
        params: &CallToolRequestParams,
        knows_tasks: bool,
    ) -> Result<bool, ErrorData> {
        match self {
            Self::Required if !knows_tasks => Err(ErrorData::missing_required_client_capability(
                ClientCapabilities::builder().enable_tasks().build(),
            )),
            Self::AfterInput => Ok(knows_tasks && params.input_responses.is_some()),
            Self::Required | Self::Optional => Ok(knows_tasks),
        }
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::InputResponses;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_tool_says_of_itself_decides_with_what_the_client_knows() {
        let said = |value: Value| {
            let mut tool = MetaObject::new();
            tool.insert(meta::LONG_RUNNING.to_owned(), value);
            LongRunning::of(Some(&tool))
        };
        assert_eq!(said(json!(true)), Some(LongRunning::Optional));
        assert_eq!(said(json!("required")), Some(LongRunning::Required));
        for not in [json!(false), json!("no"), json!(1)] {
            assert_eq!(said(not), None);
        }
        let plain = CallToolRequestParams::new("t");
        let mut with_input = CallToolRequestParams::new("t");
        with_input.input_responses = Some(InputResponses::new());
        let becomes = |kind: LongRunning, params, knows| kind.becomes_task(params, knows).ok();
        assert_eq!(becomes(LongRunning::Optional, &plain, false), Some(false));
        assert_eq!(becomes(LongRunning::Optional, &plain, true), Some(true));
        assert_eq!(becomes(LongRunning::Required, &plain, false), None);
        assert_eq!(becomes(LongRunning::AfterInput, &plain, true), Some(false));
        assert_eq!(becomes(LongRunning::AfterInput, &with_input, true), Some(true));
    }
}
