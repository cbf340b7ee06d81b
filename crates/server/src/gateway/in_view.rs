//! Views in the gateway: the names and texts that a view's clients see.
//!
//! What may be done in a view is decided with everything else (`fleet_access::View`). This module
//! has what is left: a tool has the view's name, title and description, and what the view does not
//! have is refused as if it did not exist.

use std::borrow::Cow;

use fleet_access::{Action, Arguments, Resource};
use fleet_hosting::{routes::Route, status::Unavailable};
use fleet_job::tool_name;
use rmcp::model::{Implementation, ServerCapabilities, Tool};

use super::{Asking, Gateway, VisibleTool, own_info};

impl Gateway {
    /// What a client is told about this server before it asks for anything: in a view, nothing that
    /// the view does not have.
    pub(super) fn describe_server(
        &self,
        capabilities: &mut ServerCapabilities,
    ) -> (Implementation, Option<String>) {
        let routes = self.inner.fleet.routes();
        let Some(view) = self.viewer.as_ref().and_then(|viewer| viewer.view()) else {
            routes.extensions().add_to_capabilities(capabilities, |_| true);
            return (own_info(), Some(INSTRUCTIONS.to_owned()));
        };

        let has_server = |server: &str| view.has_server(Some(server));
        routes.extensions().add_to_capabilities(capabilities, has_server);
        let info = match view.title() {
            Some(title) => own_info().with_title(title),
            None => own_info(),
        };
        (info, view.instructions().map(str::to_owned))
    }

    /// Returns the name under which a tool is offered outside of the view of this handler's client,
    /// by its name in the view; `None` if the view can't have it.
    pub(super) fn name_outside<'a>(&self, name: &'a str) -> Option<Cow<'a, str>> {
        let Some(view) = self.viewer.as_ref().and_then(|viewer| viewer.view()) else {
            return Some(Cow::Borrowed(name));
        };
        if let Some((server, tool)) = view.target(name) {
            return Some(Cow::Owned(offered_name(server, tool)));
        }

        let is_admitted = match self.inner.fleet.routes().tool(name) {
            Some(route) => view.admits(name, Some(&route.server), &route.name),
            None => view.admits(name, None, name),
        };
        is_admitted.then_some(Cow::Borrowed(name))
    }
}

impl Asking {
    /// Puts the name under which a tool is offered elsewhere in the place of its name in the view.
    pub(super) fn leave_view(&self, name: &mut Cow<'static, str>) {
        let Some(view) = self.asker().view() else { return };
        if let Some((server, tool)) = view.target(name) {
            *name = offered_name(server, tool).into();
        }
    }

    /// Returns whether a tool that was found under a name is the one that the caller means by it.
    /// `server` is `None` for our own tools. In a view, a name means what the view has under it.
    pub(super) fn means(&self, name: &str, server: Option<&str>, tool: &str) -> bool {
        self.asker().view().is_none_or(|view| view.admits(name, server, tool))
    }

    /// A tool as the caller sees it; `None` if the caller's view does not have it.
    pub(super) fn see_in_view(&self, mut tool: VisibleTool) -> Option<VisibleTool> {
        let Some(view) = self.asker().view() else { return Some(tool) };
        let server = tool.server.as_deref();
        let name = view.name_of(server, &tool.own_name, &tool.offered.name)?.to_owned();
        if let Some(shown) = view.shown(server, &tool.own_name) {
            change_texts(&mut tool.offered, shown);
        }
        tool.offered.name = name.into();
        Some(tool)
    }

    /// A hosted server's tool as the caller sees it; `None` if the caller's view does not have it.
    pub(crate) fn tool_in_view(&self, route: &Route<Tool>) -> Option<Tool> {
        let tool = VisibleTool {
            server: Some(route.server.clone()),
            own_name: route.name.clone(),
            offered: route.listed.clone(),
        };
        self.see_in_view(tool).map(|tool| tool.offered)
    }

    /// The name of a hosted server's tool as the caller sees it; `None` if the caller's view does
    /// not have the tool.
    pub(crate) fn name_of(&self, route: &Route<Tool>) -> Option<String> {
        let offered = &route.listed.name;
        match self.asker().view() {
            None => Some(offered.to_string()),
            Some(view) => {
                view.name_of(Some(&route.server), &route.name, offered).map(str::to_owned)
            }
        }
    }

    /// Whether the caller's view has anything of a hosted server.
    pub(crate) fn has_server(&self, server: &str) -> bool {
        self.asker().view().is_none_or(|view| view.has_server(Some(server)))
    }

    /// Whether the caller's view has a prompt.
    pub(super) fn has_prompt(&self, server: Option<&str>, prompt: &str) -> bool {
        self.asker().view().is_none_or(|view| view.has_prompt(server, prompt))
    }

    /// Whether the caller's view has a resource or template, by its URI at its server.
    pub(super) fn has_uri(&self, server: Option<&str>, uri: &str) -> bool {
        self.asker().view().is_none_or(|view| view.has_resource(server, uri))
    }

    /// Records that something is refused as unknown because the caller's view does not have it.
    pub(super) fn record_hidden(&self, action: Action, resource: &Resource<'_>) {
        self.asker().record_hidden(action, resource, Arguments::None);
    }

    /// Leaves out of a warning about a server what the caller's view does not have. Returns whether
    /// there is still something to warn about.
    pub(super) fn warn_in_view(&self, server: &mut Unavailable) -> bool {
        let Some(view) = self.asker().view() else { return true };
        let Unavailable { server: name, state, reason, hidden_tools } = server;
        let is_answering = matches!(*state, "running" | "idle") && reason.is_none();

        // Reasons quote other tools and servers.
        *reason = None;
        hidden_tools.retain_mut(|tool| {
            HIDDEN.clone_into(&mut tool.reason);
            view.has_tool(Some(name), &tool.name)
        });
        !is_answering || !hidden_tools.is_empty()
    }
}

/// Why a tool can't be offered, as clients of a view are told.
const HIDDEN: &str = "it can't be offered now";

/// What clients are told that use no view.
const INSTRUCTIONS: &str = "A gateway to MCP servers. Tools of hosted servers are named \
                            <server>__<tool>. server_initialize hosts another server; server_status \
                            shows the state of the hosted servers.";

fn offered_name(server: Option<&str>, tool: &str) -> String {
    server.map_or_else(|| tool.to_owned(), |server| tool_name::exposed(server, tool))
}

fn change_texts(tool: &mut Tool, shown: &fleet_access::ShownTool) {
    if let Some(title) = &shown.title {
        tool.title = Some(title.clone());
        // Older clients read the title there.
        if let Some(annotations) = &mut tool.annotations {
            annotations.title = Some(title.clone());
        }
    }
    if let Some(description) = &shown.description {
        tool.description = Some(description.clone().into());
    }
}
