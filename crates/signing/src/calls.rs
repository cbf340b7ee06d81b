//! The calls that a job makes, as they are signed.

use std::borrow::Cow;

use fleet_access::canonical_json;
use fleet_job::envelope::Work;
use serde_json::{Map, Value, json};

use crate::merkle::{self, Hash};

/// What a call asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct CallContent<'a> {
    /// The tool's full name.
    pub tool: Cow<'a, str>,
    /// The arguments.
    pub arguments: Cow<'a, Map<String, Value>>,
    /// The answers to what the tool has asked for; empty before it has asked.
    pub input_responses: Cow<'a, Map<String, Value>>,
    /// What the tool wants back with the answers.
    pub request_state: Option<Cow<'a, str>>,
}

impl CallContent<'_> {
    /// The hash of the call in the tree.
    pub(crate) fn leaf(&self) -> Hash {
        let mut content = json!({ "tool": self.tool, "arguments": *self.arguments });
        if let Some(members) = content.as_object_mut() {
            if !self.input_responses.is_empty() {
                let responses = self.input_responses.clone().into_owned();
                members.insert("inputResponses".to_owned(), responses.into());
            }
            if let Some(state) = &self.request_state {
                members.insert("requestState".to_owned(), state.as_ref().into());
            }
        }
        merkle::leaf(canonical_json(&content).as_bytes())
    }
}

/// The calls that a job makes, in the order in which workers number them.
pub fn calls_of(work: &Work) -> impl Iterator<Item = CallContent<'_>> {
    work.calls().map(|call| {
        let round = call.round;
        CallContent {
            tool: call.tool,
            arguments: call.arguments,
            input_responses: round
                .map_or_else(Cow::default, |round| Cow::Borrowed(&round.input_responses)),
            request_state: round.and_then(|round| round.request_state.as_deref().map(Cow::from)),
        }
    })
}
