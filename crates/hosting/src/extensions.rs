//! The extensions that hosted servers declare, and which server a request of an extension is for.
//!
//! The front end declares what exactly one server declares. It can't declare what several servers
//! do, because a request names no server. App pages are the exception, since their URIs name the
//! server.

use std::collections::BTreeMap;

use rmcp::model::{JsonObject, SKILLS_EXTENSION_ID, ServerCapabilities, TASKS_EXTENSION_ID};

/// The extension of MCP Apps.
pub(crate) const APPS_EXTENSION_ID: &str = "io.modelcontextprotocol/ui";

/// The topics of the protocol's own notifications, which no extension can claim.
const OF_PROTOCOL: [&str; 11] = [
    "cancelled",
    "elicitation",
    "initialized",
    "message",
    "progress",
    "prompts",
    "resources",
    "roots",
    "subscriptions",
    "tasks",
    "tools",
];

/// Settings by the name of an extension.
type Settings = BTreeMap<String, JsonObject>;

/// The extensions and experimental capabilities that one server declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declared {
    extensions: Settings,
    experimental: Settings,
}

impl Declared {
    /// Reads them from a server's capabilities, except tasks, which the front end provides itself.
    pub(super) fn of(capabilities: &ServerCapabilities) -> Self {
        let mut extensions = capabilities.extensions.clone().unwrap_or_default();
        extensions.remove(TASKS_EXTENSION_ID);
        Self { extensions, experimental: capabilities.experimental.clone().unwrap_or_default() }
    }
}

/// The extensions and experimental capabilities of all hosted servers.
#[derive(Debug, Default)]
pub struct Extensions {
    extensions: Declarations,
    experimental: Declarations,
}

/// The servers that declare an extension, and their settings, by its name.
type Declarations = BTreeMap<String, Vec<(String, JsonObject)>>;

/// The server that a request of an extension is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// The only possible server.
    One(&'a str),
    /// Several servers are possible.
    Several(Vec<&'a str>),
    /// No hosted server.
    Nobody,
}

impl Extensions {
    pub(super) fn add(&mut self, server: &str, declared: Declared) {
        let Declared { extensions, experimental } = declared;
        for (claims, settings) in
            [(&mut self.extensions, extensions), (&mut self.experimental, experimental)]
        {
            for (name, settings) in settings {
                claims.entry(name).or_default().push((server.to_owned(), settings));
            }
        }
    }

    /// Adds what the front end can declare to its own capabilities, of the servers that
    /// `is_visible`.
    pub fn add_to_capabilities(
        &self,
        capabilities: &mut ServerCapabilities,
        is_visible: impl Fn(&str) -> bool,
    ) {
        let targets = [
            (&self.extensions, &mut capabilities.extensions),
            (&self.experimental, &mut capabilities.experimental),
        ];
        for (claims, target) in targets {
            let visible = claims.iter().filter_map(|(name, claims)| {
                let claims: Vec<_> =
                    claims.iter().filter(|(server, _)| is_visible(server)).collect();
                forwardable(name, &claims)
            });
            for (name, settings) in visible {
                target
                    .get_or_insert_default()
                    .entry(name.to_owned())
                    .or_insert_with(|| settings.clone());
            }
        }
    }

    /// Returns the server that declares an extension, of those that `is_visible`.
    pub fn owner(&self, extension: &str, is_visible: impl Fn(&str) -> bool) -> Owner<'_> {
        find_owner(self.extensions.get(extension).into_iter().flatten(), is_visible)
    }

    /// Returns the server that a method outside the core protocol is for, of those that
    /// `is_visible`. `name/…` and `vendor/name/…` belong to the extension `vendor/name`. A method
    /// that resembles no extension is for the server that declares one whose methods are unknown
    /// here.
    pub fn owner_of_method(&self, method: &str, is_visible: impl Fn(&str) -> bool) -> Owner<'_> {
        let all = || self.extensions.iter().chain(&self.experimental);
        let by_name = find_owner(
            all().filter(|(name, _)| belongs_to(method, name)).flat_map(|(_, claims)| claims),
            &is_visible,
        );
        if by_name != Owner::Nobody {
            return by_name;
        }

        let is_unknown = |name: &str| name != APPS_EXTENSION_ID && name != SKILLS_EXTENSION_ID;
        let unknown = all().filter(|(name, _)| is_unknown(name)).flat_map(|(_, claims)| claims);
        find_owner(unknown, is_visible)
    }
}

impl Extensions {
    /// Returns the extension that a server's notification belongs to, if only this server declares
    /// it. `notifications/name/…` and `vendor/name/…` belong to `vendor/name`.
    pub fn extension_of_notice(&self, server: &str, method: &str) -> Option<&str> {
        let rest = method.strip_prefix("notifications/").unwrap_or(method);
        let topic = rest.split('/').next().unwrap_or(rest);
        if OF_PROTOCOL.contains(&topic) {
            return None;
        }

        let all = self.extensions.iter().chain(&self.experimental);
        let own =
            all.filter(|(_, claims)| matches!(claims.as_slice(), [(owner, _)] if owner == server));
        own.map(|(name, _)| name.as_str()).find(|name| belongs_to(rest, name))
    }
}

/// Returns an extension and its settings if the front end can declare it.
fn forwardable<'a>(
    name: &'a str,
    claims: &[&'a (String, JsonObject)],
) -> Option<(&'a str, &'a JsonObject)> {
    match claims {
        [(_, settings)] => Some((name, settings)),
        [(_, settings), ..] if name == APPS_EXTENSION_ID => Some((name, settings)),
        _ => None,
    }
}

fn find_owner<'a>(
    claims: impl Iterator<Item = &'a (String, JsonObject)>,
    is_visible: impl Fn(&str) -> bool,
) -> Owner<'a> {
    let mut servers: Vec<_> = claims.map(|(server, _)| server.as_str()).collect();
    servers.retain(|server| is_visible(server));
    servers.sort_unstable();
    servers.dedup();
    match servers.as_slice() {
        [] => Owner::Nobody,
        [server] => Owner::One(server),
        _ => Owner::Several(servers),
    }
}

/// Returns whether a method belongs to an extension.
fn belongs_to(method: &str, extension: &str) -> bool {
    let short = extension.rsplit('/').next().unwrap_or(extension);
    [extension, short].iter().any(|name| {
        method.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn declared(capabilities: Value) -> Declared {
        Declared::of(&serde_json::from_value(capabilities).unwrap())
    }

    fn of(servers: &[(&str, Value)]) -> Extensions {
        let mut extensions = Extensions::default();
        servers.iter().for_each(|(server, capabilities)| {
            extensions.add(server, declared(capabilities.clone()));
        });
        extensions
    }

    fn offered(extensions: &Extensions) -> Value {
        let mut capabilities = ServerCapabilities::default();
        extensions.add_to_capabilities(&mut capabilities, |_| true);
        json!(capabilities)
    }

    #[test]
    fn extensions_of_exactly_one_server_are_declared() {
        let skills = json!({"extensions": {SKILLS_EXTENSION_ID: {"directoryRead": true}}});
        let apps = json!({"extensions": {APPS_EXTENSION_ID: {}, TASKS_EXTENSION_ID: {}}, "experimental": {"x": {}}});
        let one = of(&[("a", skills.clone()), ("b", apps.clone()), ("c", json!({"tools": {}}))]);
        assert_eq!(
            offered(&one),
            json!({
                "extensions": {SKILLS_EXTENSION_ID: {"directoryRead": true}, APPS_EXTENSION_ID: {}},
                "experimental": {"x": {}},
            })
        );
        assert_eq!(one.owner(SKILLS_EXTENSION_ID, |_| true), Owner::One("a"));

        let two = of(&[("a", skills.clone()), ("b", skills), ("c", apps.clone()), ("d", apps)]);
        assert_eq!(
            offered(&two),
            json!({"extensions": {APPS_EXTENSION_ID: {}}}),
            "only pages name their server"
        );
        assert_eq!(two.owner(SKILLS_EXTENSION_ID, |_| true), Owner::Several(vec!["a", "b"]));
    }

    #[test]
    fn a_notification_belongs_to_an_extension_of_its_server() {
        let declares = json!({"extensions": {"com.example/palette": {}, "com.example/tools": {}}});
        let clock = json!({"experimental": {"clock": {}}});
        let servers = of(&[("a", declares.clone()), ("b", clock)]);
        let check = |server: &str, method: &str, expected: Option<&str>| {
            assert_eq!(servers.extension_of_notice(server, method), expected, "{server} {method}");
        };
        check("a", "notifications/palette/changed", Some("com.example/palette"));
        check("a", "notifications/com.example/palette/changed", Some("com.example/palette"));
        check("a", "com.example/palette/changed", Some("com.example/palette"));
        check("b", "notifications/clock", Some("clock"));
        check("b", "notifications/palette/changed", None);
        check("a", "notifications/clock", None);
        check("a", "notifications/palettes", None);
        check("a", "notifications/tools/list_changed", None);

        let both = of(&[("a", declares.clone()), ("b", declares)]);
        assert_eq!(both.extension_of_notice("a", "notifications/palette/changed"), None);
    }

    #[test]
    fn a_method_is_for_the_server_that_declares_its_extension() {
        let palette = json!({"extensions": {"com.example/palette": {}}});
        let clock = json!({"experimental": {"clock": {}}});
        let apps = json!({"extensions": {APPS_EXTENSION_ID: {}}});
        let servers = of(&[("a", palette.clone()), ("b", clock), ("c", apps.clone())]);
        for method in ["palette/mix", "com.example/palette/mix", "palette"] {
            assert_eq!(servers.owner_of_method(method, |_| true), Owner::One("a"), "{method}");
        }
        assert_eq!(servers.owner_of_method("clock/now", |_| true), Owner::One("b"));
        assert_eq!(
            servers.owner_of_method("palettes/mix", |_| true),
            Owner::Several(vec!["a", "b"])
        );

        assert_eq!(
            of(&[("a", palette.clone()), ("c", apps.clone())]).owner_of_method("mix", |_| true),
            Owner::One("a")
        );
        assert_eq!(of(&[("c", apps)]).owner_of_method("mix", |_| true), Owner::Nobody);
        let both = of(&[("a", palette.clone()), ("b", palette)]);
        assert_eq!(both.owner_of_method("palette/mix", |_| true), Owner::Several(vec!["a", "b"]));
    }

    /// Servers that are not visible must not make a difference.
    #[test]
    fn a_method_is_for_the_visible_servers_alone() {
        let palette = json!({"extensions": {"com.example/palette": {}}});
        let clock = json!({"experimental": {"clock": {}}});
        let servers = of(&[("a", palette.clone()), ("b", palette.clone()), ("c", clock.clone())]);
        let is_visible = |server: &str| server != "b";
        let alone = of(&[("a", palette), ("c", clock)]);
        for method in ["palette/mix", "clock/now", "nothing", "com.example/palette/x"] {
            let found = servers.owner_of_method(method, is_visible);
            assert_eq!(found, alone.owner_of_method(method, |_| true), "{method}");
        }
        assert_eq!(servers.owner("com.example/palette", is_visible), Owner::One("a"));
        assert_eq!(servers.owner("com.example/palette", |_| false), Owner::Nobody);

        // As if `b` did not declare it, it is for the one server whose methods are unknown.
        let two = of(&[
            ("a", json!({"experimental": {"x": {}}})),
            ("b", json!({"experimental": {"clock": {}}})),
        ]);
        assert_eq!(two.owner_of_method("clock/now", |server| server == "a"), Owner::One("a"));
    }
}
