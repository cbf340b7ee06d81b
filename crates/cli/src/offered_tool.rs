//! A tool as an mcp-server offers it. Pure.

use std::borrow::Cow;

use fleet_job::tool_name;
use serde_json::Value;

/// An offered tool.
#[derive(Debug, Clone)]
pub(crate) struct OfferedTool {
    /// The name by which it is called.
    pub(crate) name: String,
    /// The whole entry of the list.
    pub(crate) entry: Value,
}

/// Returns the names under which the tool that a user calls `name` may be offered: a hosted server's
/// own name of a tool is not always one that all clients accept.
pub(crate) fn aliases(name: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let split = tool_name::split(name);
    let offered = split.map(|(server, tool)| Cow::Owned(tool_name::exposed(server, tool)));
    [Cow::Borrowed(name)].into_iter().chain(offered)
}

impl OfferedTool {
    /// Reads an entry of a list of tools; `None` if it has no name.
    pub(crate) fn from_listed(entry: Value) -> Option<Self> {
        let name = entry.get("name")?.as_str()?.to_owned();
        Some(Self { name, entry })
    }

    /// Returns the hosted server that the tool belongs to; `None` for the mcp-server's own tools.
    pub(crate) fn server(&self) -> Option<&str> {
        tool_name::split(&self.name).map(|(server, _)| server)
    }

    pub(crate) fn title(&self) -> Option<&str> {
        let own = self.entry.get("title").and_then(Value::as_str);
        own.or_else(|| self.annotation("title")?.as_str())
    }

    pub(crate) fn description(&self) -> Option<&str> {
        self.entry.get("description")?.as_str()
    }

    /// Returns the JSON Schema of the arguments.
    pub(crate) fn input_schema(&self) -> &Value {
        self.entry.get("inputSchema").unwrap_or(&Value::Null)
    }

    /// Returns the JSON Schema of the structured result.
    pub(crate) fn output_schema(&self) -> Option<&Value> {
        self.entry.get("outputSchema").filter(|schema| schema.is_object())
    }

    fn annotation(&self, name: &str) -> Option<&Value> {
        self.entry.get("annotations")?.get(name)
    }

    /// Returns what the tool says about its effects, in a word. A tool that says nothing counts as
    /// destructive, as the protocol has it.
    pub(crate) fn effect(&self) -> &'static str {
        let is = |name| self.annotation(name).and_then(Value::as_bool);
        match (is("readOnlyHint"), is("destructiveHint"), self.entry.get("annotations")) {
            (Some(true), ..) => "reads",
            (_, Some(false), _) => "changes",
            (_, _, Some(_)) => "destroys",
            (_, _, None) => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tool_tells_its_server_and_effect() {
        let tool = |entry: Value| OfferedTool::from_listed(entry).unwrap();
        let own = tool(json!({"name": "server_list", "annotations": {"readOnlyHint": true}}));
        assert_eq!((own.server(), own.effect()), (None, "reads"));
        let hosted = tool(json!({"name": "db__query", "annotations": {"title": "Query"}}));
        assert_eq!((hosted.server(), hosted.effect()), (Some("db"), "destroys"));
        assert_eq!(hosted.title(), Some("Query"));
        let careful = json!({"name": "a", "annotations": {"destructiveHint": false}});
        assert_eq!(tool(careful).effect(), "changes");
        assert_eq!(tool(json!({"name": "a"})).effect(), "unknown");
        assert!(OfferedTool::from_listed(json!({"title": "nameless"})).is_none());
    }
}
