//! The `[view.…]` tables of the policy file.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use serde::Deserialize;

use super::{Selection, ShownTool, ToolId, View, ViewError};
use crate::{
    pattern::Pattern,
    rules::{OF_VIEWS, RuleEffect, RuleTable, Rules, Selector},
};

const MAX_NAME: usize = 40;
const MAX_TOOL_NAME: usize = 64;
/// What stands between server and tool in the name that a tool is offered under.
const SEPARATOR: &str = "__";
/// Begins the names of our own tools.
const OWN_TOOLS: [&str; 3] = ["server_", "job_", "file_"];
/// Below the address of the endpoint, this is the server's card.
const RESERVED: &str = "server-card";

/// A `[view.…]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ViewTable {
    /// The title for people.
    title: Option<String>,
    /// What clients are told about the view.
    instructions: Option<String>,
    /// Who may use it, as in a rule; everybody who may use the server if missing.
    principals: Option<Vec<String>>,
    /// What the view has.
    #[serde(default)]
    select: Vec<SelectTable>,
    /// Tools that look different in the view.
    #[serde(default)]
    tool: Vec<ToolTable>,
    /// Rules that hold in the view, besides all others.
    #[serde(default)]
    rule: Vec<RuleTable>,
}

/// A `[[view.….select]]`: some things of some servers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectTable {
    /// The hosted servers, as patterns. Our own tools belong to the server `""`.
    servers: Vec<String>,
    /// Their tools, as patterns; all if missing.
    tools: Option<Vec<String>>,
    /// Tools that the view does not have, whatever else selects them, as patterns.
    hide: Option<Vec<String>>,
    /// Their prompts, as patterns; all if missing.
    prompts: Option<Vec<String>>,
    /// Their resources, as patterns for URIs; all if missing.
    resources: Option<Vec<String>>,
}

/// A `[[view.….tool]]`: a tool that looks different in the view.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolTable {
    /// The hosted server; our own if missing.
    #[serde(default)]
    server: String,
    /// The tool's own name.
    tool: String,
    /// Its name in the view.
    #[serde(rename = "as")]
    name: Option<String>,
    /// Its title in the view.
    title: Option<String>,
    /// Its description in the view.
    description: Option<String>,
}

/// The name of a view as a rule, in refusals and audit records.
pub(super) fn rule_name(view: &str) -> Arc<str> {
    format!("{OF_VIEWS}{view}").into()
}

/// Compiles a view.
pub(super) fn compile(
    name: &str,
    table: ViewTable,
    trusted_servers: &[String],
) -> Result<View, ViewError> {
    let view = || name.to_owned();
    if !is_view_name(name) {
        return Err(ViewError::Name { view: view() });
    }
    if table.select.is_empty() {
        return Err(ViewError::NoSelection { view: view() });
    }

    let principals = table.principals.as_deref().map(|list| {
        let selectors = list.iter().map(|text| Selector::parse(text));
        selectors.collect::<Result<Vec<_>, _>>()
    });
    let principals =
        principals.transpose().map_err(|error| ViewError::Principal { view: view(), error })?;
    if principals.as_ref().is_some_and(Vec::is_empty) {
        return Err(ViewError::Empty { view: view(), table: "principals", field: "principals" });
    }

    let selections = table.select.iter().map(|select| compile_selection(name, select));
    let mut compiled = View {
        rule: rule_name(name),
        name: name.into(),
        instructions: table.instructions.clone(),
        title: table.title.clone(),
        principals,
        selections: selections.collect::<Result<_, _>>()?,
        tools: HashMap::new(),
        renamed: HashMap::new(),
        rules: compile_rules(name, &table.rule, trusted_servers)?,
        table: ViewTable::default(),
    };
    for tool in &table.tool {
        add_tool(&mut compiled, tool)?;
    }
    compiled.table = table;
    Ok(compiled)
}

/// Returns whether a view can have this name.
pub fn is_view_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(is_plain)
        && name.chars().all(|c| is_plain(c) || matches!(c, '-' | '_'))
        && name != RESERVED
}

fn compile_selection(view: &str, table: &SelectTable) -> Result<Selection, ViewError> {
    let SelectTable { servers, tools, hide, prompts, resources } = table;
    let servers = Some(servers.clone());
    for (field, list) in [
        ("servers", &servers),
        ("tools", tools),
        ("hide", hide),
        ("prompts", prompts),
        ("resources", resources),
    ] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            return Err(ViewError::Empty { view: view.to_owned(), table: "select", field });
        }
    }
    for (field, list) in [("tools", tools), ("hide", hide)] {
        if let Some(tool) = list.iter().flatten().find(|tool| tool.contains(SEPARATOR)) {
            return Err(ViewError::OfferedName {
                view: view.to_owned(),
                field,
                tool: tool.clone(),
            });
        }
    }

    let patterns = |list: &Option<Vec<String>>| list.as_deref().map(Pattern::list);
    Ok(Selection {
        servers: patterns(&servers).unwrap_or_default(),
        tools: patterns(tools),
        hidden: patterns(hide).unwrap_or_default(),
        prompts: patterns(prompts),
        resources: patterns(resources),
    })
}

fn compile_rules(
    view: &str,
    tables: &[RuleTable],
    trusted_servers: &[String],
) -> Result<Rules, ViewError> {
    let mut rules = tables.to_vec();
    for rule in &mut rules {
        if rule.effect == RuleEffect::Allow {
            let (view, name) = (view.to_owned(), rule.name.clone());
            return Err(ViewError::Allow { view, name });
        }
        rule.name = format!("{}/{}", rule_name(view), rule.name);
    }
    Ok(Rules::of_view(rules, trusted_servers)?)
}

fn add_tool(view: &mut View, table: &ToolTable) -> Result<(), ViewError> {
    let ToolTable { server, tool, name, title, description } = table;
    let in_view = || view.name.to_string();
    for text in [server, tool] {
        if Pattern::new(text).literal().is_none() {
            return Err(ViewError::Pattern { view: in_view(), text: text.clone() });
        }
    }
    for (field, text) in [("title", title), ("description", description)] {
        if text.as_ref().is_some_and(String::is_empty) {
            return Err(ViewError::Empty { view: in_view(), table: "tool", field });
        }
    }

    let own_server = (!server.is_empty()).then_some(server.as_str());
    if !view.has_tool(own_server, tool) {
        let (server, tool) = (server.clone(), tool.clone());
        return Err(ViewError::NotSelected { view: in_view(), server, tool });
    }
    let shown =
        ShownTool { name: name.clone(), title: title.clone(), description: description.clone() };
    if shown == ShownTool::default() {
        return Err(ViewError::NoChange { view: in_view(), tool: tool.clone() });
    }
    if let Some(name) = name {
        check_tool_name(&view.name, name)?;
    }

    let id = ToolId::new(own_server, tool);
    if let Some(name) = name {
        let name = name.clone();
        match view.renamed.entry(name) {
            Entry::Occupied(taken) => {
                let (view, name) = (view.name.to_string(), taken.key().clone());
                return Err(ViewError::SameName { view, name });
            }
            Entry::Vacant(free) => free.insert(id.clone()),
        };
    }
    match view.tools.insert(id, shown) {
        None => Ok(()),
        Some(_) => {
            let (server, tool) = (server.clone(), tool.clone());
            Err(ViewError::SameTool { view: view.name.to_string(), server, tool })
        }
    }
}

fn check_tool_name(view: &str, name: &str) -> Result<(), ViewError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_name = (1..=MAX_TOOL_NAME).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.contains(SEPARATOR);
    if !is_name {
        return Err(ViewError::ToolName { view: view.to_owned(), name: name.to_owned() });
    }
    match OWN_TOOLS.iter().any(|prefix| name.starts_with(prefix)) {
        true => Err(ViewError::ReservedName { view: view.to_owned(), name: name.to_owned() }),
        false => Ok(()),
    }
}

/// The tables of all views, by their names.
pub(crate) type ViewTables = BTreeMap<String, ViewTable>;
