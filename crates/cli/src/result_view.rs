//! Shows the results of tools and jobs. Pure.
//!
//! A result says the same thing twice if it is structured: as JSON, and as text for clients that do
//! not understand the JSON. Nothing is printed twice here.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use fleet_job::tool_name;
use serde_json::{Map, Value};

/// How to print a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ResultFormat {
    /// For people: text as it is, structured results as indented JSON
    Text,
    /// The whole result as JSON
    Json,
    /// Only the structured part, as JSON
    Structured,
    /// Nothing
    None,
}

/// An image, a sound or a file within a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Media {
    /// The media type, such as `image/png`.
    pub(crate) mime: String,
    /// The content; `None` if it is not valid Base64.
    pub(crate) bytes: Option<Vec<u8>>,
}

impl Media {
    /// Returns the usual extension of files of this type.
    pub(crate) fn extension(&self) -> &'static str {
        let essence = self.mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "image/png" => "png",
            "image/jpeg" | "image/jpg" => "jpg",
            "image/gif" => "gif",
            "image/webp" => "webp",
            "image/svg+xml" => "svg",
            "image/avif" => "avif",
            "audio/wav" | "audio/x-wav" | "audio/wave" => "wav",
            "audio/mpeg" | "audio/mp3" => "mp3",
            "audio/ogg" => "ogg",
            "audio/flac" => "flac",
            "audio/mp4" => "m4a",
            "video/mp4" => "mp4",
            "application/pdf" => "pdf",
            "application/json" => "json",
            "text/csv" => "csv",
            "text/html" => "html",
            "text/plain" => "txt",
            _ => "bin",
        }
    }

    /// Describes the content in a few words.
    pub(crate) fn describe(&self) -> String {
        match &self.bytes {
            Some(bytes) => format!("{}, {}", self.mime, format_size(bytes.len())),
            None => format!("{}, not valid Base64", self.mime),
        }
    }
}

/// Returns a result as text for people. `place` returns the line to print for an image, a sound or
/// a file.
pub(crate) fn to_text(result: &Value, place: &mut dyn FnMut(&Media) -> String) -> String {
    if is_tool_result(result) {
        return tool_result_to_text(result, place);
    }
    if let Some(calls) = result.get("calls").and_then(Value::as_array) {
        let parts = calls
            .iter()
            .enumerate()
            .map(|(index, result)| format!("call {}:\n{}", index + 1, part_to_text(result, place)));
        return parts.collect::<Vec<_>>().join("\n\n");
    }
    if let Some(servers) = result.get("servers").and_then(Value::as_object) {
        let parts = servers
            .iter()
            .map(|(name, result)| format!("server {name}:\n{}", part_to_text(result, place)));
        return parts.collect::<Vec<_>>().join("\n\n");
    }
    format!("{result:#}")
}

/// A part of the result of a job with several calls; it has no such parts itself.
fn part_to_text(result: &Value, place: &mut dyn FnMut(&Media) -> String) -> String {
    match is_tool_result(result) {
        true => tool_result_to_text(result, place),
        false => format!("{result:#}"),
    }
}

fn is_tool_result(result: &Value) -> bool {
    result.get("content").is_some_and(Value::is_array) || result.get("structuredContent").is_some()
}

fn tool_result_to_text(result: &Value, place: &mut dyn FnMut(&Media) -> String) -> String {
    let structured = result.get("structuredContent");
    let blocks = result.get("content").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let repeats = |block: &&Value| structured.is_some_and(|value| repeats_value(block, value));

    let mut lines: Vec<String> = blocks
        .iter()
        .filter(|block| !repeats(block))
        .map(|block| show_block(block, place))
        .collect();
    let has_text = blocks.iter().any(|block| !repeats(&block) && block["type"] == "text");
    if let Some(structured) = structured.filter(|_| !has_text) {
        lines.insert(0, format!("{structured:#}"));
    }
    lines.join("\n")
}

/// Returns whether a block is the text form of the structured result.
fn repeats_value(block: &Value, structured: &Value) -> bool {
    let text = block.get("text").and_then(Value::as_str).map(str::trim);
    let looks_like = |text: &&str| text.starts_with(['{', '[']) || !structured.is_object();
    let read = text.filter(looks_like).and_then(|text| serde_json::from_str::<Value>(text).ok());
    read.is_some_and(|value| is_same(&value, structured))
}

/// Returns whether two values are the same, however their numbers are spelled.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let has_same =
                |(name, a): (&String, &Value)| b.get(name).is_some_and(|b| is_same(a, b));
            a.len() == b.len() && a.iter().all(has_same)
        }
        (a, b) => a == b,
    }
}

fn show_block(block: &Value, place: &mut dyn FnMut(&Media) -> String) -> String {
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let shown = match block["type"].as_str() {
        Some("text") => text(block, "text"),
        Some("image" | "audio") => media(block, "data").map(|media| place(&media)),
        Some("resource") => block.get("resource").and_then(|resource| {
            text(resource, "text").or_else(|| media(resource, "blob").map(|media| place(&media)))
        }),
        Some("resource_link") => text(block, "uri").map(|uri| match text(block, "name") {
            Some(name) => format!("{name}: {uri}"),
            None => uri,
        }),
        _ => None,
    };
    shown.unwrap_or_else(|| format!("{block:#}"))
}

fn media(holder: &Value, data: &str) -> Option<Media> {
    let data = holder.get(data)?.as_str()?;
    let mime = holder.get("mimeType").and_then(Value::as_str).unwrap_or("application/octet-stream");
    Some(Media { mime: mime.to_owned(), bytes: BASE64_STANDARD.decode(data).ok() })
}

/// Returns the structured part of a result, or of each of its parts; `None` if there is none.
pub(crate) fn structured(result: &Value) -> Option<Cow<'_, Value>> {
    if let Some(own) = result.get("structuredContent") {
        return Some(Cow::Borrowed(own));
    }

    let of_part = |part: &Value| part.get("structuredContent").cloned();
    if let Some(calls) = result.get("calls").and_then(Value::as_array) {
        let parts: Vec<_> = calls.iter().map(of_part).collect();
        let has_any = parts.iter().any(Option::is_some);
        let parts = parts.into_iter().map(Option::unwrap_or_default);
        return has_any.then(|| Cow::Owned(parts.collect()));
    }

    let servers = result.get("servers").and_then(Value::as_object)?;
    let parts: Map<_, _> =
        servers.iter().filter_map(|(name, part)| Some((name.clone(), of_part(part)?))).collect();
    (!parts.is_empty()).then(|| Cow::Owned(Value::Object(parts)))
}

/// Returns text without what a terminal would obey: everything that a tool says could contain
/// escape sequences.
pub(crate) fn for_terminal(text: &str) -> String {
    let is_harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.replace(is_harmful, "\u{fffd}")
}

/// Returns a size in bytes for people.
pub(crate) fn format_size(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    format!("{size:.1} {unit}")
}

/// Returns the beginning of the name of a file for a result of `name`.
pub(crate) fn file_stem(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let plain = name.chars().take(tool_name::MAX_EXPOSED);
    let stem: String = plain.map(|c| if is_plain(c) { c } else { '_' }).collect();
    if stem.is_empty() { "result".to_owned() } else { stem }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text_of(result: Value) -> String {
        to_text(&result, &mut |media| format!("<{}>", media.describe()))
    }

    fn text_block(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[test]
    fn text_is_printed_as_it_is() {
        assert_eq!(text_of(json!({"content": [text_block("a\nb"), text_block("c")]})), "a\nb\nc");
        assert_eq!(text_of(json!({"content": []})), "");
    }

    #[test]
    fn a_structured_result_is_printed_once() {
        let structured = json!({"b": 1, "a": [1.50]});
        let check = |blocks: Value, expected: &str| {
            let result = json!({"content": blocks, "structuredContent": structured});
            assert_eq!(text_of(result), expected);
        };
        let pretty = format!("{structured:#}");
        check(json!([text_block(r#"{"b":1,"a":[1.50]}"#)]), &pretty);
        check(json!([]), &pretty);
        check(json!([text_block("one b")]), "one b");
        let image = json!({"type": "image", "mimeType": "image/png", "data": "AAAA"});
        check(json!([image]), &format!("{pretty}\n<image/png, 3 bytes>"));
    }

    #[test]
    fn content_that_is_no_text_has_its_place() {
        let blocks = json!([
            {"type": "audio", "mimeType": "audio/wav", "data": "not base64!"},
            {"type": "resource", "resource": {"uri": "a:b", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "a:b", "blob": "AAAA"}},
            {"type": "resource_link", "uri": "https://a", "name": "A"},
            {"type": "new"},
        ]);
        let text = text_of(json!({"content": blocks}));
        let expected = "<audio/wav, not valid Base64>\ninside\n\
                        <application/octet-stream, 3 bytes>\nA: https://a\n{\n  \"type\": \"new\"\n}";
        assert_eq!(text, expected);
    }

    #[test]
    fn jobs_of_several_calls_have_parts() {
        let one = json!({"content": [text_block("x")], "structuredContent": {"n": 1}});
        let batch = json!({"calls": [one, {"content": [text_block("y")]}]});
        assert_eq!(text_of(batch.clone()), "call 1:\nx\n\ncall 2:\ny");
        assert_eq!(structured(&batch).unwrap().into_owned(), json!([{"n": 1}, null]));
        let init = json!({"servers": {"db": one}});
        assert_eq!(text_of(init.clone()), "server db:\nx");
        assert_eq!(structured(&init).unwrap().into_owned(), json!({"db": {"n": 1}}));
        assert_eq!(structured(&json!({"calls": [{}]})), None);
        assert_eq!(text_of(json!({"else": 1})), "{\n  \"else\": 1\n}");
    }

    #[test]
    fn names_and_sizes() {
        let media = |mime: &str| Media { mime: mime.to_owned(), bytes: None };
        assert_eq!(media("image/PNG; q=1").extension(), "png");
        assert_eq!(media("x/y").extension(), "bin");
        assert_eq!(file_stem("a/../b c"), "a____b_c");
        assert_eq!(file_stem(""), "result");
        assert_eq!(format_size(1023), "1023 bytes");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(3 << 20), "3.0 MiB");
        assert_eq!(for_terminal("a\u{1b}[2J\tb\nc"), "a\u{fffd}[2J\tb\nc");
    }
}
