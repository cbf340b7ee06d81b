//! Routes from offered names and URIs to servers.
//!
//! Two tools can't have the same offered name. The server that was initialized first keeps the
//! name, so that a newcomer can't take over another server's calls. Tools that can't be offered are
//! listed with the reason. The same applies to prompts. Resources keep their URIs, since results
//! refer to them; if two servers have the same URI, the later server's is offered as one that names
//! the server. Pages and skills always are (see [`apps`]).

use std::collections::{BTreeMap, btree_map::Entry};

use fleet_job::tool_name;
use fleet_pins::Standing;
use rmcp::model::{Prompt, Resource, ResourceTemplate, SKILLS_EXTENSION_ID, Tool};

use super::{
    apps,
    catalog::Catalog,
    changes::Lists,
    extensions::{Extensions, Owner},
    listed::HiddenTool,
    pins::Withheld,
};

/// Begins a URI that names its server: `mcp-fleet://<server>/<URI at the server>`.
const NAMED: &str = "mcp-fleet://";

/// The route of an offered item.
#[derive(Debug, Clone, PartialEq)]
pub struct Route<T> {
    /// The server that has the item.
    pub server: String,
    /// The item's name or URI at its server.
    pub name: String,
    /// The item as it is offered.
    pub listed: T,
}

/// An item that is offered under a name of its own.
pub trait Named: Clone {
    /// Returns the item's name at its server.
    fn name(&self) -> &str;
    /// Returns the item as it is offered under `name`.
    fn offered(&self, server: &str, name: String) -> Self;
}

impl Named for Tool {
    fn name(&self) -> &str {
        &self.name
    }

    fn offered(&self, server: &str, name: String) -> Self {
        let mut tool = self.clone();
        tool.name = name.into();
        apps::offer_in_meta(server, &mut tool.meta);
        tool
    }
}

impl Named for Prompt {
    fn name(&self) -> &str {
        &self.name
    }

    fn offered(&self, server: &str, name: String) -> Self {
        let mut prompt = self.clone();
        prompt.name = name;
        apps::offer_in_meta(server, &mut prompt.meta);
        prompt
    }
}

/// All routes.
#[derive(Debug, Default)]
pub struct Routes {
    tools: BTreeMap<String, Route<Tool>>,
    prompts: BTreeMap<String, Route<Prompt>>,
    resources: BTreeMap<String, Route<Resource>>,
    /// In the order of the servers. The first template that matches a URI counts.
    templates: Vec<Route<ResourceTemplate>>,
    extensions: Extensions,
    hidden: BTreeMap<String, Vec<HiddenTool>>,
    /// Tools that are not as pinned.
    withheld: BTreeMap<String, WithheldTool>,
}

/// A tool that is neither listed nor called, because it is not as pinned. It keeps its name.
#[derive(Debug, Clone, PartialEq)]
pub struct WithheldTool {
    /// The tool as it would be offered.
    pub route: Route<Tool>,
    /// How it stands to its pin.
    pub standing: Standing,
}

impl Routes {
    /// Builds the routes to what these servers offer. If names collide, the earlier server's is
    /// offered.
    pub fn build<'a>(servers: impl IntoIterator<Item = (&'a str, Catalog)>) -> Self {
        let mut routes = Self::default();
        for (server, catalog) in servers {
            let mut hidden: Vec<_> = catalog.hidden.values().flatten().cloned().collect();
            add_named(&mut routes.tools, server, &catalog.tools, &mut hidden);
            add_named(&mut routes.prompts, server, &catalog.prompts, &mut hidden);
            if !hidden.is_empty() {
                routes.hidden.insert(server.to_owned(), hidden);
            }

            for resource in catalog.resources.iter() {
                let offered =
                    free_uri(&resource.uri, server, |uri| routes.resources.contains_key(uri));
                let mut listed = resource.clone();
                listed.uri.clone_from(&offered);
                apps::offer_in_meta(server, &mut listed.meta);
                let route = Route { server: server.to_owned(), name: resource.uri.clone(), listed };
                routes.resources.insert(offered, route);
            }

            for template in catalog.templates.iter() {
                let own = &template.uri_template;
                let taken = |uri: &str| {
                    routes.templates.iter().any(|route| route.listed.uri_template == uri)
                };
                let mut listed = template.clone();
                listed.uri_template = free_uri(own, server, taken);
                apps::offer_in_meta(server, &mut listed.meta);
                let route = Route { server: server.to_owned(), name: own.clone(), listed };
                routes.templates.push(route);
            }
            routes.extensions.add(server, catalog.declared);
        }
        routes
    }

    /// Takes these tools away, which servers and own names tell.
    #[must_use]
    pub(super) fn withholding(mut self, withheld: &Withheld) -> Self {
        if withheld.is_empty() {
            return self;
        }
        let is_withheld = |_: &String, route: &mut Route<Tool>| {
            withheld.contains_key(&(route.server.clone(), route.name.clone()))
        };
        for (offered, route) in self.tools.extract_if(.., is_withheld) {
            let standing = withheld[&(route.server.clone(), route.name.clone())];
            let reason = format!("it is not as pinned ({})", standing.as_str());
            let hidden = self.hidden.entry(route.server.clone()).or_default();
            hidden.push(HiddenTool::new(&route.name, reason));
            self.withheld.insert(offered, WithheldTool { route, standing });
        }
        self
    }

    /// Returns a tool that is withheld, by its offered name or by `<server>__<tool>` with the tool's
    /// own name.
    pub fn withheld(&self, name: &str) -> Option<&WithheldTool> {
        if self.withheld.is_empty() {
            return None;
        }
        let exposed = || tool_name::exposed_of_plain(name);
        self.withheld.get(name).or_else(|| self.withheld.get(&exposed()?))
    }

    /// Returns a tool of a server that is withheld, by its own name.
    pub(super) fn withheld_at(&self, server: &str, tool: &str) -> Option<&WithheldTool> {
        let found = self.withheld(&tool_name::exposed(server, tool))?;
        let Route { server: of, name, .. } = &found.route;
        (of == server && name == tool).then_some(found)
    }

    /// Returns the route of a tool, by its offered name or by `<server>__<tool>` with the tool's
    /// own name.
    pub fn tool(&self, name: &str) -> Option<&Route<Tool>> {
        find_route(&self.tools, name)
    }

    /// Returns the route that a tool has, or would have if it were not withheld.
    pub fn known_tool(&self, name: &str) -> Option<&Route<Tool>> {
        self.tool(name).or_else(|| Some(&self.withheld(name)?.route))
    }

    /// Returns the routes to all tools, sorted by offered name.
    pub fn tools(&self) -> impl Iterator<Item = &Route<Tool>> {
        self.tools.values()
    }

    /// Returns the routes to one server's tools.
    pub fn tools_of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a Route<Tool>> {
        self.tools.values().filter(move |route| route.server == server)
    }

    /// Returns the routes to all tools that are called `name` at their servers.
    pub fn tools_called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Route<Tool>> {
        self.tools.values().filter(move |route| route.name == name)
    }

    /// Returns the route of a prompt.
    pub fn prompt(&self, name: &str) -> Option<&Route<Prompt>> {
        find_route(&self.prompts, name)
    }

    /// Returns the routes to all prompts, sorted by offered name.
    pub fn prompts(&self) -> impl Iterator<Item = &Route<Prompt>> {
        self.prompts.values()
    }

    /// Returns the routes to all resources, sorted by offered URI.
    pub fn resources(&self) -> impl Iterator<Item = &Route<Resource>> {
        self.resources.values()
    }

    /// Returns the routes to all templates.
    pub fn templates(&self) -> impl Iterator<Item = &Route<ResourceTemplate>> {
        self.templates.iter()
    }

    /// Returns the server that has a resource, and its URI there. The URI may name the server, be
    /// listed, or match a template.
    pub fn resource<'a>(&'a self, uri: &'a str) -> Option<(&'a str, &'a str)> {
        self.resource_among(uri, |_, _| true)
    }

    /// As [`resource`](Self::resource), of the resources that `is_visible` by their server and their
    /// URI there. Others stand in the way of none.
    pub fn resource_among<'a>(
        &'a self,
        uri: &'a str,
        is_visible: impl Fn(&str, &str) -> bool,
    ) -> Option<(&'a str, &'a str)> {
        if let Some((server, own)) = split_named(uri) {
            return is_visible(server, own).then_some((server, own));
        }

        let listed = self.resources.get(uri);
        if let Some(route) = listed.filter(|route| is_visible(&route.server, &route.name)) {
            return Some((&route.server, &route.name));
        }
        // Clients read well-known files of skills, and those that a skill's text names.
        let sees_skills = |server: &str| is_visible(server, uri);
        if uri.starts_with(apps::SKILL)
            && let Owner::One(server) = self.extensions.owner(SKILLS_EXTENSION_ID, sees_skills)
        {
            return Some((server, uri));
        }
        // A page or skill belongs to one server, and this URI does not tell to which.
        if apps::is_bound(uri) {
            return None;
        }

        // The server that listed it first is not visible, so another one's is meant.
        let others = self.resources.values().filter(|route| listed.is_some() && route.name == uri);
        if let Some(route) = others.into_iter().find(|route| is_visible(&route.server, uri)) {
            return Some((&route.server, &route.name));
        }
        let template = self
            .templates
            .iter()
            .find(|route| matches_template(&route.name, uri) && is_visible(&route.server, uri));
        template.map(|route| (route.server.as_str(), uri))
    }

    /// Returns the server that offers a template, and the template there, of the templates that
    /// `is_visible` by their server and what they are there.
    pub fn template_among<'a>(
        &'a self,
        template: &str,
        is_visible: impl Fn(&str, &str) -> bool,
    ) -> Option<(&'a str, &'a str)> {
        let offered = self.templates.iter().filter(|route| route.listed.uri_template == template);
        let route = offered.into_iter().find(|route| is_visible(&route.server, &route.name))?;
        Some((&route.server, &route.name))
    }

    /// Returns the offered URI of a server's resource.
    pub fn offered_uri(&self, server: &str, uri: &str) -> String {
        match self.resource(uri) {
            Some((owner, _)) if owner == server && !apps::is_bound(uri) => uri.to_owned(),
            _ => uri_with_server(server, uri),
        }
    }

    /// Returns the extensions that the servers declare.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Returns the listed items of a server that can't be offered.
    pub fn hidden(&self, server: &str) -> &[HiddenTool] {
        self.hidden.get(server).map_or(&[], Vec::as_slice)
    }

    /// Returns which lists differ from those of `other`.
    pub fn changed_lists(&self, other: &Self) -> Lists {
        Lists {
            tools: !listed(self.tools()).eq(listed(other.tools())),
            prompts: !listed(self.prompts()).eq(listed(other.prompts())),
            resources: !listed(self.resources()).eq(listed(other.resources()))
                || !listed(self.templates()).eq(listed(other.templates())),
        }
    }
}

/// The items of routes, as they are offered.
fn listed<'a, T: 'a>(routes: impl Iterator<Item = &'a Route<T>>) -> impl Iterator<Item = &'a T> {
    routes.map(|route| &route.listed)
}

fn find_route<'a, T>(routes: &'a BTreeMap<String, Route<T>>, name: &str) -> Option<&'a Route<T>> {
    routes.get(name).or_else(|| routes.get(&tool_name::exposed_of_plain(name)?))
}

fn add_named<T: Named>(
    routes: &mut BTreeMap<String, Route<T>>,
    server: &str,
    items: &[T],
    hidden: &mut Vec<HiddenTool>,
) {
    for item in items {
        let reason = match routes.entry(tool_name::exposed(server, item.name())) {
            Entry::Occupied(taken) => {
                let Route { server, name, .. } = taken.get();
                format!("`{}` is taken by `{name}` of server `{server}`", taken.key())
            }
            Entry::Vacant(free) => {
                let listed = item.offered(server, free.key().clone());
                free.insert(Route {
                    server: server.to_owned(),
                    name: item.name().to_owned(),
                    listed,
                });
                continue;
            }
        };
        hidden.push(HiddenTool::new(item.name(), reason));
    }
}

/// Returns the URI itself if it is free and does not look like one that names a server, or else one
/// that names the server.
fn free_uri(uri: &str, server: &str, taken: impl Fn(&str) -> bool) -> String {
    if apps::is_bound(uri) || uri.starts_with(NAMED) || taken(uri) {
        uri_with_server(server, uri)
    } else {
        uri.to_owned()
    }
}

fn uri_with_server(server: &str, uri: &str) -> String {
    apps::offered_uri(server, uri).unwrap_or_else(|| format!("{NAMED}{server}/{uri}"))
}

/// Returns the server that a URI names, and the URI there.
pub fn split_named(uri: &str) -> Option<(&str, &str)> {
    match uri.strip_prefix(NAMED) {
        Some(named) => named.split_once('/'),
        None => apps::split_offered(uri),
    }
}

/// Returns whether a URI matches a template (RFC 6570): it contains the literal parts in their
/// order, and anything in place of the expressions. This is looser than the RFC, and only decides
/// which server is asked.
fn matches_template(template: &str, uri: &str) -> bool {
    let mut literals = template.split('{');
    let Some(mut rest) = literals.next().and_then(|first| uri.strip_prefix(first)) else {
        return false;
    };
    let mut parts =
        literals.filter_map(|part| part.split_once('}')).map(|(_, literal)| literal).peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(literal) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(literal);
        }
        match rest.find(literal) {
            Some(at) => rest = &rest[at + literal.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::extensions::Declared;

    fn tools(names: &[&str]) -> Catalog {
        let tool = |name: &&str| Tool::new((*name).to_owned(), "", rmcp::model::JsonObject::new());
        Catalog { tools: Arc::new(names.iter().map(tool).collect()), ..Catalog::default() }
    }

    fn resources(uris: &[&str], templates: &[&str]) -> Catalog {
        let resources = uris.iter().map(|uri| Resource::new(*uri, "r")).collect();
        let templates = templates.iter().map(|uri| ResourceTemplate::new(*uri, "t")).collect();
        Catalog {
            resources: Arc::new(resources),
            templates: Arc::new(templates),
            ..Catalog::default()
        }
    }

    #[test]
    fn offered_names_are_routed_to_tools() {
        let routes = Routes::build([("a", tools(&["x", "y"])), ("b", tools(&["x"]))]);
        let names: Vec<_> = routes.tools().map(|route| route.listed.name.to_string()).collect();
        assert_eq!(names, ["a__x", "a__y", "b__x"]);
        let to = routes.tool("b__x").map(|route| (route.server.as_str(), route.name.as_str()));
        assert_eq!(to, Some(("b", "x")));
        assert_eq!(routes.tool("x"), None);
        assert_eq!(routes.tools_of("a").count(), 2);
    }

    #[test]
    fn a_withheld_tool_is_known_and_not_offered() {
        let withheld = [(("a".to_owned(), "x.y".to_owned()), Standing::Changed)];
        let routes = Routes::build([("a", tools(&["x.y", "z"]))]).withholding(&withheld.into());
        for name in [tool_name::exposed("a", "x.y"), "a__x.y".to_owned()] {
            let known = routes.known_tool(&name).map(|route| route.name.as_str());
            assert_eq!((routes.tool(&name), known), (None, Some("x.y")), "{name}");
        }
        assert_eq!(routes.known_tool("a__z"), routes.tool("a__z"));
        assert_eq!(routes.known_tool("a__other"), None);
    }

    #[test]
    fn every_tool_is_reachable_by_its_own_name() {
        let own = [
            "work",
            "a.b",
            "ns/do-it",
            "with space",
            "größe",
            "工具",
            "bad\nname",
            &"x".repeat(100),
        ];
        let routes = Routes::build([("q", tools(&own))]);
        assert_eq!((routes.tools().count(), routes.hidden("q").len()), (own.len(), 0));
        for name in own {
            let offered = tool_name::exposed("q", name);
            assert_eq!(routes.tool(&offered).map(|route| route.name.as_str()), Some(name));
            assert_eq!(
                routes.tool(&format!("q__{name}")).map(|route| route.name.as_str()),
                Some(name)
            );
        }
        assert_eq!(routes.tool("q__nope.x"), None);
    }

    #[test]
    fn no_server_takes_over_a_name() {
        // Server `a_` could offer a tool under the name of tool `_x` of server `a`.
        let routes =
            Routes::build([("a", tools(&["_x", "x", "x", "_.y"])), ("a_", tools(&["x", ".y"]))]);
        assert_eq!(routes.tool("a___x").map(|route| route.server.as_str()), Some("a"));
        assert_eq!(routes.tool("a___.y").map(|route| route.server.as_str()), Some("a"));
        assert_eq!(routes.hidden("a").len(), 1);
        assert!(routes.hidden("a_")[0].reason.contains("taken by `_x` of server `a`"));
        assert!(routes.hidden("a_")[1].reason.contains("taken by `_.y` of server `a`"));
        assert!(routes.hidden("c").is_empty());
    }

    #[test]
    fn resources_keep_their_uris_if_possible() {
        let a = resources(&["file:///x"], &["db://{table}/rows/{id}"]);
        let b = resources(&["file:///x", "mcp-fleet://a/file:///x"], &["{+anything}"]);
        let routes = Routes::build([("a", a), ("b", b)]);
        let offered: Vec<_> = routes.resources().map(|route| route.listed.uri.as_str()).collect();
        let second = "mcp-fleet://b/file:///x";
        assert_eq!(offered, ["file:///x", second, "mcp-fleet://b/mcp-fleet://a/file:///x"]);
        for (uri, expected) in [
            ("file:///x", ("a", "file:///x")),
            (second, ("b", "file:///x")),
            ("mcp-fleet://a/file:///x", ("a", "file:///x")),
            ("db://people/rows/7", ("a", "db://people/rows/7")),
            ("other://y", ("b", "other://y")),
        ] {
            assert_eq!(routes.resource(uri), Some(expected), "{uri}");
        }
        assert_eq!(routes.offered_uri("a", "file:///x"), "file:///x");
        assert_eq!(routes.offered_uri("b", "file:///x"), second);
    }

    /// Whatever others offer first, a reader finds what the servers offer that it sees.
    #[test]
    fn what_is_not_visible_stands_in_the_way_of_nothing() {
        let first = resources(&["file:///x"], &["db://{table}", "t://{x}"]);
        let second = resources(&["file:///x", "file:///y"], &["db://{anything}", "t://{x}"]);
        let routes = Routes::build([("a", first), ("b", second)]);
        let of_b = |server: &str, _: &str| server == "b";
        for uri in ["file:///x", "file:///y", "db://people"] {
            assert_eq!(routes.resource_among(uri, of_b), Some(("b", uri)), "{uri}");
        }
        assert_eq!(routes.resource_among("mcp-fleet://b/q", of_b), Some(("b", "q")));
        assert_eq!(routes.resource_among("mcp-fleet://a/file:///x", of_b), None);
        assert_eq!(routes.resource_among("file:///x", |_, _| false), None);
        assert_eq!(routes.template_among("db://{table}", of_b), None);
        let named = "mcp-fleet://b/t://{x}";
        assert_eq!(routes.template_among(named, of_b), Some(("b", "t://{x}")));
    }

    #[test]
    fn pages_of_two_servers_are_kept_apart() {
        let page = "ui://widget/x.html";
        let posing = "ui://mcp-fleet/a/ui://widget/x.html";
        let routes = Routes::build([
            ("a", resources(&[page], &["ui://widget/{name}"])),
            ("b", resources(&[page, posing], &["{+anything}"])),
        ]);
        for server in ["a", "b"] {
            let offered = format!("ui://mcp-fleet/{server}/{page}");
            assert!(routes.resources().any(|route| route.listed.uri == offered), "{offered}");
            assert_eq!(routes.resource(&offered), Some((server, page)));
            assert_eq!(routes.offered_uri(server, page), offered);
        }
        let template = "ui://mcp-fleet/a/ui://widget/{name}";
        assert_eq!(routes.template_among(template, |_, _| true), Some(("a", "ui://widget/{name}")));
        let nested = format!("ui://mcp-fleet/b/{posing}");
        assert_eq!(routes.resource(&nested), Some(("b", posing)));
        assert_eq!(routes.resource(page), None, "it is ambiguous");
        assert_eq!(routes.resources().count(), 3);
    }

    #[test]
    fn skills_of_two_servers_are_kept_apart() {
        let skill = "skill://pdf/SKILL.md";
        let with_skill = || resources(&[skill], &["skill://{name}/SKILL.md"]);
        let routes = Routes::build([("a", with_skill()), ("b", with_skill())]);
        for server in ["a", "b"] {
            let offered = format!("skill://mcp-fleet/{server}/{skill}");
            assert!(routes.resources().any(|route| route.listed.uri == offered), "{offered}");
            assert_eq!(routes.resource(&offered), Some((server, skill)));
            assert_eq!(routes.offered_uri(server, skill), offered);
            let template = format!("skill://mcp-fleet/{server}/skill://{{name}}/SKILL.md");
            assert_eq!(
                routes.template_among(&template, |_, _| true),
                Some((server, "skill://{name}/SKILL.md"))
            );
        }
        assert_eq!(routes.resource(skill), None, "it is ambiguous");
    }

    /// A skill's text names its files without the server.
    #[test]
    fn a_plain_uri_of_a_skill_belongs_to_the_only_server_that_declares_skills() {
        let skilled = || {
            let extensions = serde_json::json!({"extensions": {SKILLS_EXTENSION_ID: {}}});
            let declared = Declared::of(&serde_json::from_value(extensions).unwrap());
            Catalog { declared, ..Catalog::default() }
        };
        let file = "skill://pdf/forms.md";
        let plain = resources(&[file], &[]);
        let one = Routes::build([("a", skilled()), ("b", plain)]);
        assert_eq!(one.resource(file), Some(("a", file)));
        assert_eq!(one.offered_uri("a", file), format!("skill://mcp-fleet/a/{file}"));
        let two = Routes::build([("a", skilled()), ("b", skilled())]);
        assert_eq!(two.resource(file), None);
    }

    #[test]
    fn templates_match_their_uris() {
        for (template, uri, expected) in [
            ("test://template/{id}/data", "test://template/123/data", true),
            ("test://template/{id}/data", "test://template/123/dat", false),
            ("test://{a}/{b}", "test://x/y", true),
            ("test://{a}/{b}", "test://x", false),
            ("test://fixed", "test://fixed", true),
            ("test://fixed", "test://fixed/more", false),
            ("{+all}", "", true),
        ] {
            assert_eq!(matches_template(template, uri), expected, "{template} {uri}");
        }
    }

    #[test]
    fn changed_lists_are_found() {
        let (before, after) =
            (Routes::build([("a", tools(&["x"]))]), Routes::build([("a", tools(&["y"]))]));
        assert_eq!(before.changed_lists(&after), Lists { tools: true, ..Lists::default() });
        assert!(!after.changed_lists(&after).any());
    }
}
