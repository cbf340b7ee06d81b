//! The header annotations of tools that are known so far (see [`params`]).

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use serde_json::Value;

use super::{
    Inner,
    pages::{MAX_PAGES, Next, Pages, warn_of_circle},
};
use crate::{
    body::Sent,
    endpoint::{Dialect, Endpoint},
    params::{self, ParamHeader},
    transport::Answer,
    wire::Request,
};

/// How many tools' annotations are remembered. When there are more, all are forgotten.
const MAX_TOOLS: usize = 256;

/// The annotations of tools that have any, by the name of the tool.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    by_tool: Mutex<HashMap<String, Arc<Vec<ParamHeader>>>>,
}

impl Annotations {
    /// Adds the headers that the request's tool is known to require.
    pub(super) fn apply(&self, request: &mut Request) {
        let Some(name) = request.params.get("name").and_then(Value::as_str) else { return };
        let Some(annotations) = self.by_tool.lock().get(name).cloned() else { return };
        if let Some(arguments) = request.params.get("arguments").and_then(Value::as_object) {
            request.param_headers = params::headers(&annotations, arguments);
        }
    }

    /// Remembers which headers a tool requires. Returns whether there are any, or `None` if its
    /// annotations are invalid.
    pub(super) fn remember(&self, tool: &Value) -> Option<bool> {
        let name = tool.get("name").and_then(Value::as_str)?;
        let found = match params::annotations(tool.get("inputSchema").unwrap_or(&Value::Null)) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(tool = name, %error, "a tool cannot be called because of its annotations");
                return None;
            }
        };

        let any = !found.is_empty();

        let mut by_tool = self.by_tool.lock();
        if any {
            if by_tool.len() >= MAX_TOOLS {
                by_tool.clear();
            }
            by_tool.insert(name.to_owned(), Arc::new(found));
        } else {
            by_tool.remove(name);
        }

        Some(any)
    }
}

impl Inner {
    /// Looks up which headers the request's tool requires. Returns whether there are any.
    pub(super) async fn learn_annotations(
        &self,
        endpoint: &Endpoint,
        dialect: &Dialect,
        request: &Request,
        sent: &Sent,
    ) -> bool {
        let Some(name) = request.params.get("name").and_then(Value::as_str) else { return false };

        let mut pages = Pages::default();
        for _ in 0..MAX_PAGES {
            let list = Request::new("tools/list", pages.params());
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let reply = endpoint.exchange(&self.transport, dialect, &list, id, None, sent).await;
            let Ok(Answer::Result(page)) = reply.map(|reply| reply.answer) else { return false };

            let mut tools = Vec::new();
            let next = pages.add_page(page, &mut tools);
            if let Some(tool) =
                tools.iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(name))
            {
                return self.annotations.remember(tool).unwrap_or_default();
            }

            match next {
                Next::Page => {}
                Next::End => return false,
                Next::Circle => {
                    warn_of_circle(&endpoint.label);
                    return false;
                }
            }
        }
        false
    }
}
