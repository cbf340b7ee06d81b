//! MCP Apps and skills: the `ui://` pages and `skill://` files of several servers under one roof.
//!
//! A page that a tool names runs scripts on behalf of its server, and a skill instructs a model, so
//! a client must never get those of another server with the same URI. Every URI of a hosted server
//! with one of these schemes is therefore *bound* to the server: it is offered as
//! `<scheme>mcp-fleet/<server>/<URI there>` in lists, in `_meta`, in links and embedded resources,
//! and in structured content. In what a client sends to a server, the server's own URIs are
//! restored. Text is left unchanged.
//!
//! The same pass removes keys of mcp-fleet from `_meta`, so that no server can forge them.

use fleet_job::meta;
use rmcp::model::{
    CallToolResult, ContentBlock, GetPromptResult, JsonObject, MetaObject, ReadResourceResult,
    ResourceContents, Skill, SkillResources,
};
use serde_json::Value;

use crate::kept_items::{KEPT_ITEMS, for_each_kept};

/// The schemes of bound URIs: the pages of apps, and the files of skills.
const SCHEMES: [&str; 2] = ["ui://", SKILL];
/// The scheme of skills' files.
pub(super) const SKILL: &str = "skill://";
/// Follows the scheme in the offered URI, before the server.
const HOST: &str = "mcp-fleet/";

/// Returns the scheme of a bound URI. Schemes may be written in upper case.
fn bound_scheme(uri: &str) -> Option<&'static str> {
    let has_scheme = |scheme: &&str| {
        uri.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    SCHEMES.into_iter().find(has_scheme)
}

/// Returns whether a URI is always offered as one that names its server.
pub(super) fn is_bound(uri: &str) -> bool {
    bound_scheme(uri).is_some()
}

/// Returns the offered URI for a bound URI of a server; `None` for other URIs.
pub(super) fn offered_uri(server: &str, uri: &str) -> Option<String> {
    bound_scheme(uri).map(|scheme| format!("{scheme}{HOST}{server}/{uri}"))
}

/// Returns the server that an offered URI names, and the URI there.
pub(super) fn split_offered(uri: &str) -> Option<(&str, &str)> {
    let rest = SCHEMES.into_iter().find_map(|scheme| uri.strip_prefix(scheme))?;
    rest.strip_prefix(HOST)?.split_once('/')
}

/// Returns the URI at the server for an offered URI, if it names this server.
fn own_uri<'a>(server: &str, uri: &'a str) -> Option<&'a str> {
    let (owner, own) = split_offered(uri)?;
    (owner == server && offered_uri(server, own).as_deref() == Some(uri)).then_some(own)
}

/// Rewrites the bound URIs in `_meta`, at any depth, and removes keys of mcp-fleet, except the one
/// with which a server marks a failure as final.
pub fn offer_in_meta(server: &str, meta: &mut Option<MetaObject>) {
    let Some(known) = meta else { return };
    let before = known.len();
    keep_allowed(known);
    known.values_mut().for_each(|value| offer_in_value(server, value));

    if known.is_empty() && before > 0 {
        *meta = None;
    }
}

fn keep_allowed(meta: &mut JsonObject) {
    meta.retain(|key, _| !key.starts_with(meta::PREFIX) || key == meta::FINAL);
}

/// Rewrites the bound URIs in the result of a server's tool.
pub fn offer_in_result(server: &str, result: &mut CallToolResult) {
    for content in &mut result.content {
        offer_in_content(server, content);
    }
    result.structured_content.iter_mut().for_each(|value| offer_in_value(server, value));
    offer_in_result_meta(server, &mut result.meta);
}

/// Does the same as [`offer_in_meta`] for the `_meta` of a result, which may contain kept items.
fn offer_in_result_meta(server: &str, meta: &mut Option<MetaObject>) {
    let kept = meta.as_mut().and_then(|meta| meta.shift_remove(KEPT_ITEMS));
    offer_in_meta(server, meta);
    if let Some(mut kept) = kept {
        for_each_kept(&mut kept, |part| offer_in_kept(server, part));
        meta.get_or_insert_default().insert(KEPT_ITEMS.to_owned(), kept);
    }
}

/// Rewrites the bound URIs in a server's prompt.
pub fn offer_in_prompt(server: &str, result: &mut GetPromptResult) {
    for message in &mut result.messages {
        offer_in_content(server, &mut message.content);
    }
    offer_in_result_meta(server, &mut result.meta);
}

/// Rewrites the bound URIs in the contents of a server's resource.
pub fn offer_in_resource(server: &str, result: &mut ReadResourceResult) {
    for contents in &mut result.contents {
        offer_in_contents(server, contents);
    }
    offer_in_result_meta(server, &mut result.meta);
}

fn offer_in_content(server: &str, content: &mut ContentBlock) {
    match content {
        ContentBlock::Text(text) => offer_in_meta(server, &mut text.meta),
        ContentBlock::Image(image) => offer_in_meta(server, &mut image.meta),
        ContentBlock::Audio(audio) => offer_in_meta(server, &mut audio.meta),
        ContentBlock::Resource(embedded) => {
            offer_in_contents(server, &mut embedded.resource);
            offer_in_meta(server, &mut embedded.meta);
        }
        ContentBlock::ResourceLink(link) => {
            offer_uri(server, &mut link.uri);
            offer_in_meta(server, &mut link.meta);
        }
        // Kinds of later protocol revisions.
        _ => {}
    }
}

fn offer_in_contents(server: &str, contents: &mut ResourceContents) {
    let (uri, meta) = match contents {
        ResourceContents::TextResourceContents { uri, meta, .. }
        | ResourceContents::BlobResourceContents { uri, meta, .. } => (uri, meta),
        _ => return,
    };
    offer_uri(server, uri);
    offer_in_meta(server, meta);
}

/// Rewrites the bound URIs in an item or member that rmcp can't represent, but not in its text.
fn offer_in_kept(server: &str, part: &mut Value) {
    let texts =
        ["/text", "/resource/text", "/content/text", "/content/resource/text"].map(|place| {
            (place, part.pointer_mut(place).filter(|text| text.is_string()).map(Value::take))
        });
    offer_in_answer(server, part);

    for (place, text) in texts {
        if let (Some(place), Some(text)) = (part.pointer_mut(place), text) {
            *place = text;
        }
    }
}

/// Rewrites the bound URIs in JSON of unknown shape: an extension's answer, or content of an unknown
/// kind. Removes keys of mcp-fleet.
pub fn offer_in_answer(server: &str, answer: &mut Value) {
    offer_in_value(server, answer);
    remove_our_keys(answer);
}

/// Removes keys of mcp-fleet from every `_meta` in JSON.
fn remove_our_keys(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(remove_our_keys),
        Value::Object(object) => {
            if let Some(meta) = object.get_mut("_meta").and_then(Value::as_object_mut) {
                keep_allowed(meta);
            }
            object.values_mut().for_each(remove_our_keys);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Rewrites the bound URIs in a server's skill.
pub fn offer_in_skill(server: &str, skill: &mut Skill) {
    offer_uri(server, &mut skill.uri);
    if let SkillResources::Files(files) = &mut skill.resources {
        files.iter_mut().for_each(|file| offer_uri(server, &mut file.uri));
    }
    offer_in_meta(server, &mut skill.meta);
}

/// Rewrites every string in JSON that is a bound URI.
fn offer_in_value(server: &str, value: &mut Value) {
    for_each_text(value, &mut |text| offer_uri(server, text));
}

fn offer_uri(server: &str, uri: &mut String) {
    if let Some(offered) = offered_uri(server, uri) {
        *uri = offered;
    }
}

/// Restores a server's own URIs for those that are offered.
pub fn restore_in_value(server: &str, value: &mut Value) {
    for_each_text(value, &mut |text| restore_in_text(server, text));
}

/// Restores a server's own URI in a single text.
pub fn restore_in_text(server: &str, text: &mut String) {
    if let Some(own) = own_uri(server, text) {
        *text = own.to_owned();
    }
}

/// Restores a server's own URIs in the arguments of a call, or in `_meta`.
pub fn restore_in_object(server: &str, object: &mut JsonObject) {
    object.values_mut().for_each(|value| restore_in_value(server, value));
}

/// Calls `change` for every string in JSON except the keys of objects. The recursion is as deep as
/// the JSON parser allows.
fn for_each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(values) => values.iter_mut().for_each(|value| for_each_text(value, change)),
        Value::Object(object) => object.values_mut().for_each(|value| for_each_text(value, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PAGE: &str = "ui://widget/x.html";
    const OF_A: &str = "ui://mcp-fleet/a/ui://widget/x.html";

    #[test]
    fn page_uris_are_rewritten_wherever_they_occur() {
        let mut result: CallToolResult = serde_json::from_value(json!({
            "content": [
                {"type": "text", "text": PAGE, "_meta": {"page": PAGE}},
                {"type": "resource_link", "uri": PAGE, "name": "x"},
                {"type": "resource_link", "uri": "file:///x", "name": "x"},
                {"type": "resource", "resource": {"uri": PAGE, "text": "<p>"}},
            ],
            "structuredContent": {"pages": [PAGE, "UI://widget/y.html"], "text": format!("see {PAGE}")},
            "_meta": {"ui": {"resourceUri": PAGE, "more": [PAGE]}, "openai/outputTemplate": PAGE},
        }))
        .unwrap();
        offer_in_result("a", &mut result);

        let expected = json!({
            "content": [
                {"type": "text", "text": PAGE, "_meta": {"page": OF_A}},
                {"type": "resource_link", "uri": OF_A, "name": "x"},
                {"type": "resource_link", "uri": "file:///x", "name": "x"},
                {"type": "resource", "resource": {"uri": OF_A, "text": "<p>"}},
            ],
            "structuredContent": {
                "pages": [OF_A, "ui://mcp-fleet/a/UI://widget/y.html"],
                "text": format!("see {PAGE}"),
            },
            "_meta": {"ui": {"resourceUri": OF_A, "more": [OF_A]}, "openai/outputTemplate": OF_A},
        });
        let result = serde_json::to_value(result).unwrap();
        for part in ["content", "structuredContent", "_meta"] {
            assert_eq!(result[part], expected[part]);
        }
    }

    #[test]
    fn only_a_servers_own_uris_are_restored() {
        let of_b = "ui://mcp-fleet/b/ui://widget/x.html";
        let mut arguments = json!({"page": OF_A, "pages": [of_b], "text": format!("see {OF_A}")});
        restore_in_value("a", &mut arguments);
        assert_eq!(
            arguments,
            json!({"page": PAGE, "pages": [of_b], "text": format!("see {OF_A}")})
        );
    }

    #[test]
    fn uris_of_skills_are_bound_to_their_server() {
        let own = "skill://pdf/SKILL.md";
        let offered = "skill://mcp-fleet/a/skill://pdf/SKILL.md";
        assert_eq!(offered_uri("a", own).as_deref(), Some(offered));
        assert_eq!(split_offered(offered), Some(("a", own)));
        let check = |uri: &str, expected: &str| {
            let mut uri = uri.to_owned();
            restore_in_text("a", &mut uri);
            assert_eq!(uri, expected);
        };
        check(offered, own);
        // These are not what is offered.
        for other in ["skill://mcp-fleet/a/ui://x", "skill://mcp-fleet/a/x", own] {
            check(other, other);
        }

        let mut skill: Skill = serde_json::from_value(json!({
            "uri": own,
            "frontmatter": {"name": "pdf", "description": "d"},
            "resources": [{"uri": own, "digest": "sha256:0", "size": 1}],
            "_meta": {"uri": own},
        }))
        .unwrap();
        offer_in_skill("a", &mut skill);
        let skill = serde_json::to_value(skill).unwrap();
        for pointer in ["/uri", "/resources/0/uri", "/_meta/uri"] {
            assert_eq!(skill.pointer(pointer), Some(&json!(offered)), "{skill}");
        }
    }

    #[test]
    fn a_server_can_not_forge_our_keys() {
        let check = |meta: Value, expected: Value| {
            let mut meta = serde_json::from_value(meta).unwrap();
            offer_in_meta("a", &mut meta);
            assert_eq!(json!(meta), expected);
        };
        let forged = json!({"io.mcp-fleet/repeated": true, "io.mcp-fleet/final": true, "own": 1});
        check(forged, json!({"io.mcp-fleet/final": true, "own": 1}));
        check(json!({"io.mcp-fleet/unavailable": []}), Value::Null);
        check(json!({}), json!({}));

        let mut kept = json!({"type": "text", "text": PAGE, "z": PAGE, "_meta": {"io.mcp-fleet/repeated": true}});
        offer_in_kept("a", &mut kept);
        assert_eq!(kept, json!({"type": "text", "text": PAGE, "z": OF_A, "_meta": {}}));

        let mut unknown =
            json!([{"type": "video", "_meta": {"io.mcp-fleet/repeated": true, "own": 1}}]);
        offer_in_answer("a", &mut unknown);
        assert_eq!(unknown, json!([{"type": "video", "_meta": {"own": 1}}]));
    }
}
