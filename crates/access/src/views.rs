//! Views: named selections of servers and tools, each at an address of its own.
//!
//! A view shows fewer things, under other names, and never more: every decision about somebody who
//! asks in a view is the usual one, narrowed by [`View::narrow`], which can only forbid. So nothing
//! behind the decision has to know about views, except where names are read and written:
//! [`View::name_of`] says how a tool is called in the view, and [`View::target`] which tool a name
//! stands for.
//!
//! Each tool has one name in a view. A tool that is renamed can't be called by its usual name, and
//! no other tool gets the new one.

mod error;
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

pub use error::ViewError;
use table::ViewTable;
pub(crate) use table::ViewTables;
pub use table::is_view_name;

use crate::{
    action::Action,
    pattern::Pattern,
    principal::Principal,
    resource::{Context, Resource},
    rules::{Decision, RuleEffect, RuleName, Rules, Selector},
};

/// The views of a policy file. Replaced as a whole when the file changes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Views(BTreeMap<String, Arc<View>>);

/// A view.
#[derive(Debug)]
pub struct View {
    name: Arc<str>,
    /// The rule that audit records and refusals name.
    rule: Arc<str>,
    /// What clients are told about the view.
    instructions: Option<String>,
    title: Option<String>,
    /// Who may use it; anybody if empty.
    principals: Option<Vec<Selector>>,
    selections: Vec<Selection>,
    tools: HashMap<ToolId, ShownTool>,
    /// The tools that have another name in the view, by that name.
    renamed: HashMap<String, ToolId>,
    rules: Rules,
    /// What it was made from, to tell whether it has changed.
    table: ViewTable,
}

/// Some things of some servers.
#[derive(Debug)]
struct Selection {
    servers: Vec<Pattern>,
    /// Without a list, the view has all tools.
    tools: Option<Vec<Pattern>>,
    /// Tools that the view does not have, whatever selects them.
    hidden: Vec<Pattern>,
    prompts: Option<Vec<Pattern>>,
    resources: Option<Vec<Pattern>>,
}

/// A tool by its server and its name there. Our own tools belong to the server `""`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ToolId {
    server: String,
    tool: String,
}

/// How a view shows a tool. What is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownTool {
    /// Its name in the view.
    pub name: Option<String>,
    /// Its title.
    pub title: Option<String>,
    /// Its description.
    pub description: Option<String>,
}

impl Views {
    /// Compiles views. `trusted_servers` are patterns for hosted servers whose annotations count.
    ///
    /// # Errors
    ///
    /// Returns an error that names the view, the field and what to do.
    pub(crate) fn new(tables: ViewTables, trusted_servers: &[String]) -> Result<Self, ViewError> {
        let views = tables.into_iter().map(|(name, table)| {
            let view = table::compile(&name, table, trusted_servers)?;
            Ok((name, Arc::new(view)))
        });
        views.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the view of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<View>> {
        self.0.get(name)
    }

    /// The names of all views, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.table == other.table
    }
}

impl View {
    /// A view that has nothing and serves nobody: what is left of one that was removed.
    pub(crate) fn removed(name: &Arc<str>) -> Self {
        Self {
            rule: table::rule_name(name),
            name: Arc::clone(name),
            instructions: None,
            title: None,
            principals: Some(Vec::new()),
            selections: Vec::new(),
            tools: HashMap::new(),
            renamed: HashMap::new(),
            rules: Rules::default(),
            table: ViewTable::default(),
        }
    }

    /// The view's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What clients are told about the view.
    pub fn instructions(&self) -> Option<&str> {
        self.instructions.as_deref()
    }

    /// The title for people.
    pub fn title(&self) -> Option<&str> {
        self.title.as_deref()
    }

    /// Returns whether a principal may use the view.
    pub fn serves(&self, principal: &Principal) -> bool {
        let Some(selectors) = &self.principals else { return true };
        selectors.iter().any(|selector| selector.covers(principal))
    }

    /// Returns whether the view has anything of a server; `None` stands for our own.
    pub fn has_server(&self, server: Option<&str>) -> bool {
        self.selections_of(server).next().is_some()
    }

    /// Returns whether the view has a tool, by its own name.
    pub fn has_tool(&self, server: Option<&str>, tool: &str) -> bool {
        let is_listed = |patterns: &[Pattern]| patterns.iter().any(|own| own.matches(tool));
        let mut is_selected = false;
        for selection in self.selections_of(server) {
            if is_listed(&selection.hidden) {
                return false;
            }
            is_selected |= selection.tools.as_deref().is_none_or(is_listed);
        }
        is_selected
    }

    /// Returns whether the view has a prompt.
    pub fn has_prompt(&self, server: Option<&str>, prompt: &str) -> bool {
        self.selections_of(server).any(|selection| {
            let prompts = selection.prompts.as_deref();
            prompts.is_none_or(|list| list.iter().any(|own| own.matches(prompt)))
        })
    }

    /// Returns whether the view has a resource or template, by its URI at its server.
    pub fn has_resource(&self, server: Option<&str>, uri: &str) -> bool {
        self.selections_of(server).any(|selection| {
            let resources = selection.resources.as_deref();
            resources.is_none_or(|list| list.iter().any(|own| own.matches(uri)))
        })
    }

    /// Returns the name of a tool in the view, which is offered as `offered` elsewhere; `None` if
    /// the view does not have the tool.
    pub fn name_of<'a>(
        &'a self,
        server: Option<&str>,
        tool: &str,
        offered: &'a str,
    ) -> Option<&'a str> {
        if !self.has_tool(server, tool) {
            return None;
        }
        match self.shown(server, tool).and_then(|shown| shown.name.as_deref()) {
            Some(name) => Some(name),
            None => (!self.renamed.contains_key(offered)).then_some(offered),
        }
    }

    /// Returns how the view changes a tool.
    pub fn shown(&self, server: Option<&str>, tool: &str) -> Option<&ShownTool> {
        if self.tools.is_empty() {
            return None;
        }
        self.tools.get(&ToolId::new(server, tool))
    }

    /// Returns the server and the own name of the tool that has another name in the view, by that
    /// name. The server is `None` if the tool is our own.
    pub fn target(&self, name: &str) -> Option<(Option<&str>, &str)> {
        let ToolId { server, tool } = self.renamed.get(name)?;
        Some(((!server.is_empty()).then_some(server.as_str()), tool))
    }

    /// Returns whether a tool that was found under a name is the one that the view has under it.
    pub fn admits(&self, name: &str, server: Option<&str>, tool: &str) -> bool {
        match self.target(name) {
            Some(target) => target == (server, tool) && self.has_tool(server, tool),
            None => {
                let shown = self.shown(server, tool);
                self.has_tool(server, tool) && shown.is_none_or(|shown| shown.name.is_none())
            }
        }
    }

    /// Narrows the decision about something that is asked for in the view.
    ///
    /// If nothing but the lack of a rule denies it, the view's own decision is named, since what is
    /// not allowed by a rule may be allowed in another way, and what the view denies may not.
    pub(crate) fn narrow(
        &self,
        decision: Decision,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Decision {
        let is_denied = decision.verdict == RuleEffect::Deny;
        if is_denied && matches!(decision.rule, RuleName::File(_)) {
            return decision;
        }
        match self.restriction(principal, action, resource, context) {
            Some(own) if is_denied => Decision { verdict: RuleEffect::Deny, ..own },
            Some(own) if own.verdict > decision.verdict => own,
            _ => decision,
        }
    }

    /// What the view itself forbids, or wants to be approved.
    pub(crate) fn restriction(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        if !self.serves(principal) || !self.has(action, resource) {
            return Some(self.refusal());
        }
        self.rules.decide_by_rules(principal, action, resource, context)
    }

    /// Whether some resource exists in the view with which a principal may do something that it may
    /// do elsewhere. `false` is certain, `true` is not.
    pub(crate) fn may_ever(&self, principal: &Principal, action: Action) -> bool {
        self.serves(principal) && !self.rules.always_denies(principal, action)
    }

    /// Whether the view could have a tool, as far as can be told before the tool is known: from its
    /// server and its name, or from its server alone if its name is not certain. `false` is certain,
    /// `true` is not.
    pub(crate) fn could_have(
        &self,
        principal: &Principal,
        server: Option<&str>,
        tool: Option<&str>,
    ) -> bool {
        self.serves(principal)
            && match tool {
                Some(tool) => self.has_tool(server, tool),
                None => self.has_server(server),
            }
    }

    /// The decision against what the view does not have.
    pub(crate) fn refusal(&self) -> Decision {
        let rule = RuleName::File(Arc::clone(&self.rule));
        Decision { verdict: RuleEffect::Deny, rule, scopes: Vec::new() }
    }

    /// Whether the view has what an action is about. What is about no server, such as a list or a
    /// job, is not the view's.
    fn has(&self, action: Action, resource: &Resource<'_>) -> bool {
        let &Resource { server, tool, prompt, uri, method, .. } = resource;
        match (tool, prompt, uri) {
            (Some(tool), _, _) => self.has_tool(server, tool),
            (None, Some(prompt), _) => self.has_prompt(server, prompt),
            (None, None, Some(uri)) => self.has_resource(server, uri),
            (None, None, None) => {
                let is_about_server = server.is_some()
                    || method.is_some()
                    || matches!(action, Action::CallTool | Action::CallExtension);
                !is_about_server || self.has_server(server)
            }
        }
    }

    fn selections_of(&self, server: Option<&str>) -> impl Iterator<Item = &Selection> {
        let server = server.unwrap_or_default();
        let covers = move |selection: &&Selection| {
            selection.servers.iter().any(|pattern| pattern.matches(server))
        };
        self.selections.iter().filter(covers)
    }
}

impl ToolId {
    fn new(server: Option<&str>, tool: &str) -> Self {
        Self { server: server.unwrap_or_default().to_owned(), tool: tool.to_owned() }
    }
}

#[cfg(test)]
mod tests;
