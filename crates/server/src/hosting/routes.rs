//! Which offered name leads to which tool of which server.
//!
//! Two tools can't have one name. Servers come in the order in which they were initialised, and the first keeps the
//! name: a newcomer can't take over calls that are meant for another. What can't be offered is kept with the reason,
//! so that it can be seen.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use fleet_job::tool_name;
use rmcp::model::Tool;
use schemars::JsonSchema;
use serde::Serialize;

/// Where a call goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The server.
    pub server: String,
    /// The tool's name there.
    pub tool: Cow<'static, str>,
    /// The tool as it is offered.
    pub listed: Tool,
}

/// A tool that can't be offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HiddenTool {
    /// The tool's name at its server.
    pub name: String,
    /// Why it can't be offered.
    pub reason: String,
}

/// All routes.
#[derive(Debug, Default)]
pub struct Routes {
    by_name: BTreeMap<String, Route>,
    hidden: BTreeMap<String, Vec<HiddenTool>>,
}

impl Routes {
    /// The routes to these servers' tools. Earlier servers keep their names.
    pub fn build<'a>(servers: impl IntoIterator<Item = (&'a str, Arc<Vec<Tool>>)>) -> Self {
        let mut routes = Self::default();
        for (server, tools) in servers {
            for tool in tools.iter() {
                if let Err(reason) = routes.add(server, tool) {
                    // A name that can't be presented is shown escaped.
                    let name = tool.name.escape_debug().take(200).collect();
                    routes.hidden.entry(server.to_owned()).or_default().push(HiddenTool { name, reason });
                }
            }
        }
        routes
    }

    fn add(&mut self, server: &str, tool: &Tool) -> Result<(), String> {
        if !tool_name::is_presentable(&tool.name) {
            return Err("its name has characters that no tool name may have".to_owned());
        }
        let name = tool_name::exposed(server, &tool.name);
        match self.by_name.entry(name) {
            Entry::Occupied(taken) => {
                let Route { server, tool, .. } = taken.get();
                Err(format!("`{}` is taken by tool `{tool}` of server `{server}`", taken.key()))
            }
            Entry::Vacant(free) => {
                let mut listed = tool.clone();
                listed.name = free.key().clone().into();
                free.insert(Route { server: server.to_owned(), tool: tool.name.clone(), listed });
                Ok(())
            }
        }
    }

    /// Where a call of this name goes.
    pub fn get(&self, name: &str) -> Option<&Route> {
        self.by_name.get(name)
    }

    /// All offered tools, by name.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.by_name.values().map(|route| &route.listed)
    }

    /// The routes to one server.
    pub fn of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a Route> {
        self.by_name.values().filter(move |route| route.server == server)
    }

    /// The tools of a server that can't be offered.
    pub fn hidden(&self, server: &str) -> &[HiddenTool] {
        self.hidden.get(server).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Arc<Vec<Tool>> {
        let tool = |name: &&str| Tool::new((*name).to_owned(), "", rmcp::model::JsonObject::new());
        Arc::new(names.iter().map(tool).collect())
    }

    #[test]
    fn names_lead_to_tools() {
        let routes = Routes::build([("a", tools(&["x", "y"])), ("b", tools(&["x"]))]);
        let names: Vec<_> = routes.tools().map(|tool| tool.name.to_string()).collect();
        assert_eq!(names, ["a__x", "a__y", "b__x"]);
        assert_eq!(routes.get("b__x").map(|route| (route.server.as_str(), &*route.tool)), Some(("b", "x")));
        assert_eq!(routes.get("x"), None);
        assert_eq!(routes.of("a").count(), 2);
    }

    #[test]
    fn nobody_takes_over_a_name() {
        // A server `a_` could pose as tool `_x` of server `a`.
        let routes = Routes::build([("a", tools(&["_x", "x", "x", "bad\nname"])), ("a_", tools(&["x"]))]);
        assert_eq!(routes.get("a___x").map(|route| route.server.as_str()), Some("a"));
        assert_eq!(routes.hidden("a").len(), 2);
        assert_eq!(routes.hidden("a")[1].name, "bad\\nname");
        assert!(routes.hidden("a_")[0].reason.contains("taken by tool `_x` of server `a`"));
        assert!(routes.hidden("c").is_empty());
    }
}
