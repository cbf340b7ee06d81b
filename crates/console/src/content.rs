//! The result of a tool as blocks of a page.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::{
    format,
    markdown::{self, Rendered},
    parts::JsonBlock,
};

/// The most items of a result that a page shows.
const MAX_ITEMS: usize = 20;
/// The most bytes of text that a page shows of all items together.
const MAX_TEXT: usize = 40 * 1024;
/// The most bytes of Markdown, which is in the page twice.
const MAX_MARKDOWN: usize = 16 * 1024;
/// The most bytes of an image or a recording that is in the page itself.
const MAX_INLINE: usize = 96 * 1024;
/// The media types of images that browsers show without running anything.
const IMAGES: [&str; 5] = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"];
/// The media types of recordings.
const RECORDINGS: [&str; 7] = [
    "audio/mpeg",
    "audio/wav",
    "audio/x-wav",
    "audio/ogg",
    "audio/webm",
    "audio/aac",
    "audio/flac",
];

/// A result as blocks.
#[derive(Default)]
pub(crate) struct Blocks {
    pub(crate) blocks: Vec<Block>,
    /// How many items are left out.
    pub(crate) omitted: usize,
}

/// One item of a result.
pub(crate) enum Block {
    Text(String),
    Markdown {
        rendered: Rendered,
        source: String,
    },
    Json(JsonBlock),
    Image {
        src: String,
        media_type: String,
    },
    Recording {
        src: String,
        media_type: String,
    },
    Link {
        uri: String,
        name: String,
    },
    /// What can't be shown, and why.
    Other(String),
}

/// Where the bytes of images and recordings come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MediaSource<'a> {
    /// From the page of this job.
    Job(&'a str),
    /// From the page itself, if they are small.
    Inline,
}

impl Blocks {
    /// Reads a tool's result: its content, and what it has in structure.
    pub(crate) fn of_result(result: &Value, source: MediaSource<'_>) -> Self {
        let mut blocks = Self::default();
        let content = result.get("content").and_then(Value::as_array);
        let Some(items) = content else {
            blocks.blocks.push(Block::Json(JsonBlock::new("Result", result)));
            return blocks;
        };

        let mut room = MAX_TEXT;
        for (index, item) in items.iter().enumerate().take(MAX_ITEMS) {
            blocks.blocks.push(Block::of_item(item, index, source, &mut room));
        }
        blocks.omitted = items.len().saturating_sub(MAX_ITEMS);

        // Servers repeat the structure as text for older clients; the text is enough.
        if let Some(structured) = result.get("structuredContent")
            && !is_repeated(structured, items)
        {
            blocks.blocks.push(Block::of_json("Structured result", structured, &mut room));
        }
        blocks
    }
}

impl Block {
    fn of_item(item: &Value, index: usize, source: MediaSource<'_>, room: &mut usize) -> Self {
        let text_of = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        match text_of("type") {
            "text" => Self::of_text(text_of("text"), "", room),
            "image" => Self::of_media(item, index, source, &IMAGES),
            "audio" => Self::of_media(item, index, source, &RECORDINGS),
            "resource" => {
                let resource = item.get("resource").unwrap_or(&Value::Null);
                let field = |name: &str| resource.get(name).and_then(Value::as_str);
                match field("text") {
                    Some(text) => Self::of_text(text, field("mimeType").unwrap_or_default(), room),
                    None => Self::Other(format!(
                        "A resource without text: {}",
                        format::one_line(field("uri").unwrap_or_default(), 200)
                    )),
                }
            }
            "resource_link" => Self::Link {
                uri: format::one_line(text_of("uri"), 500),
                name: format::one_line(text_of("name"), 200),
            },
            _ => Self::of_json("An item", item, room),
        }
    }

    fn of_text(text: &str, media_type: &str, room: &mut usize) -> Self {
        if text.trim_start().starts_with(['{', '['])
            && let Ok(value) = serde_json::from_str::<Value>(text)
        {
            return Self::of_json("Result", &value, room);
        }

        let kept = format::cut(text, *room);
        if kept.is_empty() && !text.is_empty() {
            let size = format::bytes(text.len() as u64);
            return Self::Other(format!("{size} of text are not shown, since the page is full."));
        }
        let size = format::escaped_size(kept);
        let mut shown = kept.to_owned();
        *room -= size;

        if kept.len() < text.len() {
            let rest = format::bytes((text.len() - kept.len()) as u64);
            shown.push_str(&format!("\n… ({rest} more)"));
        }
        let is_markdown = media_type == "text/markdown" || markdown::is_likely(&shown);
        if is_markdown && size <= MAX_MARKDOWN {
            // Markup takes some more.
            *room = room.saturating_sub(size * 2);
            return Self::Markdown { rendered: markdown::render(&shown), source: shown };
        }
        Self::Text(shown)
    }

    fn of_json(label: &'static str, value: &Value, room: &mut usize) -> Self {
        let json = JsonBlock::up_to(*room, label, value);
        *room -= json.size();
        Self::Json(json)
    }

    fn of_media(item: &Value, index: usize, source: MediaSource<'_>, known: &[&str]) -> Self {
        let text_of = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let (media_type, data) = (text_of("mimeType"), text_of("data"));
        let Some(media_type) = known.iter().find(|known| **known == media_type) else {
            let media_type = format::one_line(media_type, 100);
            return Self::Other(format!(
                "Content of type “{media_type}”, which is not shown here."
            ));
        };

        let src = match source {
            MediaSource::Job(id) => format!("{}/content/{index}", crate::links::job(id)),
            MediaSource::Inline if data.len() > MAX_INLINE => {
                let size = format::bytes(data.len() as u64 * 3 / 4);
                return Self::Other(format!(
                    "{media_type} of {size}, too large for this page: call the tool as a job to see it."
                ));
            }
            MediaSource::Inline if BASE64_STANDARD.decode(data).is_ok() => {
                format!("data:{media_type};base64,{data}")
            }
            MediaSource::Inline => return Self::Other("Content that is not Base64.".to_owned()),
        };
        let media_type = (*media_type).to_owned();
        match media_type.starts_with("image/") {
            true => Self::Image { src, media_type },
            false => Self::Recording { src, media_type },
        }
    }
}

/// Whether the one text of a result is the structure as JSON.
fn is_repeated(structured: &Value, items: &[Value]) -> bool {
    let [item] = items else { return false };
    let text = item.get("text").and_then(Value::as_str).unwrap_or_default();
    serde_json::from_str::<Value>(text).is_ok_and(|value| value == *structured)
}

/// The bytes of an item of a result, with their media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// The media type, which is one of those that browsers only show or play.
    pub media_type: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Returns the image or recording at this place in a result.
pub fn media_at(result: &Value, index: usize) -> Option<Media> {
    let item = result.get("content")?.get(index)?;
    let media_type = item.get("mimeType")?.as_str()?;
    let media_type = IMAGES.iter().chain(&RECORDINGS).find(|known| **known == media_type)?;
    let bytes = BASE64_STANDARD.decode(item.get("data")?.as_str()?).ok()?;
    Some(Media { media_type, bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blocks(content: Value) -> Vec<Block> {
        Blocks::of_result(&json!({"content": content}), MediaSource::Job("j")).blocks
    }

    #[test]
    fn each_kind_of_content_has_its_block() {
        let found = blocks(json!([
            {"type": "text", "text": "plain"},
            {"type": "text", "text": "{\"a\":1}"},
            {"type": "text", "text": "# Title\n\ntext"},
            {"type": "image", "mimeType": "image/png", "data": "aGk="},
            {"type": "audio", "mimeType": "audio/wav", "data": "aGk="},
            {"type": "resource_link", "uri": "file:///a", "name": "a"},
            {"type": "resource", "resource": {"uri": "u", "text": "t", "mimeType": "text/plain"}},
        ]));
        assert!(matches!(&found[0], Block::Text(text) if text == "plain"));
        assert!(matches!(found[1], Block::Json(_)));
        assert!(matches!(found[2], Block::Markdown { .. }));
        assert!(
            matches!(&found[3], Block::Image { src, .. } if src == "/console/jobs/j/content/3")
        );
        assert!(matches!(found[4], Block::Recording { .. }));
        assert!(matches!(found[5], Block::Link { .. }));
        assert!(matches!(found[6], Block::Text(_)));
    }

    #[test]
    fn only_known_media_types_are_served() {
        let result = |media_type: &str| {
            json!({"content": [
                {"type": "image", "mimeType": media_type, "data": "aGk="},
            ]})
        };
        let png = media_at(&result("image/png"), 0).unwrap();
        assert_eq!((png.media_type, png.bytes.as_slice()), ("image/png", &b"hi"[..]));
        for media_type in ["image/svg+xml", "text/html", "image/png; charset=x", ""] {
            assert_eq!(media_at(&result(media_type), 0), None, "{media_type}");
        }
        assert_eq!(media_at(&result("image/png"), 1), None);
    }

    #[test]
    fn a_result_is_bounded() {
        let many: Vec<_> =
            (0..100).map(|_| json!({"type": "text", "text": "x".repeat(9_000)})).collect();
        let blocks = Blocks::of_result(&json!({"content": many}), MediaSource::Inline);
        assert_eq!((blocks.blocks.len(), blocks.omitted), (MAX_ITEMS, 100 - MAX_ITEMS));
        let texts = blocks.blocks.iter().map(|block| match block {
            Block::Text(text) => text.len(),
            _ => 0,
        });
        assert!(texts.sum::<usize>() <= MAX_TEXT + 100);
    }

    #[test]
    fn a_structure_that_is_also_text_is_shown_once() {
        let repeated = json!({
            "content": [{"type": "text", "text": "{\"a\":1}"}], "structuredContent": {"a": 1},
        });
        assert_eq!(Blocks::of_result(&repeated, MediaSource::Inline).blocks.len(), 1);
        let more = json!({
            "content": [{"type": "text", "text": "a is 1"}], "structuredContent": {"a": 1},
        });
        assert_eq!(Blocks::of_result(&more, MediaSource::Inline).blocks.len(), 2);
    }
}
