//! Markdown of tools and results as HTML.
//!
//! The text is from outside. Raw HTML in it is shown as text, images are not loaded, and links lead
//! to web pages or nowhere.

use askama::filters::HtmlSafe;
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};
use url::Url;

/// Markdown that has become HTML.
#[derive(Debug, Clone)]
pub(crate) struct Rendered(String);

impl std::fmt::Display for Rendered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl HtmlSafe for Rendered {}

/// Renders Markdown. The text has been bounded before.
pub(crate) fn render(text: &str) -> Rendered {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let mut open_links = Vec::new();
    let events = Parser::new_ext(text, options).filter_map(|event| tame(event, &mut open_links));

    let mut out = String::with_capacity(text.len() * 2);
    html::push_html(&mut out, events);
    Rendered(out)
}

/// Returns whether a text looks like Markdown rather than like plain text.
pub(crate) fn is_likely(text: &str) -> bool {
    let marks = text.lines().take(200).filter(|line| {
        let line = line.trim_start();
        line.starts_with("# ")
            || line.starts_with("## ")
            || line.starts_with("### ")
            || line.starts_with("```")
            || line.starts_with("- **")
            || line.starts_with("| --")
            || line.starts_with("|--")
    });
    marks.count() >= 1 && text.contains('\n')
}

/// Makes an event harmless.
fn tame<'a>(event: Event<'a>, open_links: &mut Vec<bool>) -> Option<Event<'a>> {
    match event {
        // Printed as text, which escapes it.
        Event::Html(html) | Event::InlineHtml(html) => Some(Event::Text(html)),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let allowed = is_allowed(&dest_url);
            open_links.push(allowed);
            allowed.then_some(Event::Start(Tag::Link { link_type, dest_url, title, id }))
        }
        Event::End(TagEnd::Link) => {
            open_links.pop().unwrap_or_default().then_some(Event::End(TagEnd::Link))
        }
        // Its alternative text stays.
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => None,
        // The elements that these become take attributes from the text.
        Event::Start(Tag::CodeBlock(_)) => {
            let kind = pulldown_cmark::CodeBlockKind::Fenced(CowStr::Borrowed(""));
            Some(Event::Start(Tag::CodeBlock(kind)))
        }
        Event::Start(Tag::Heading { level, .. }) => Some(Event::Start(Tag::Heading {
            level: lower(level),
            id: None,
            classes: Vec::new(),
            attrs: Vec::new(),
        })),
        Event::End(TagEnd::Heading(level)) => Some(Event::End(TagEnd::Heading(lower(level)))),
        // An alignment becomes a `style` attribute.
        Event::Start(Tag::Table(columns)) => {
            let plain = vec![pulldown_cmark::Alignment::None; columns.len()];
            Some(Event::Start(Tag::Table(plain)))
        }
        event => Some(event),
    }
}

/// The level of a heading below those of the page.
fn lower(level: pulldown_cmark::HeadingLevel) -> pulldown_cmark::HeadingLevel {
    use pulldown_cmark::HeadingLevel::{H1, H2, H3, H4, H5, H6};
    match level {
        H1 | H2 => H3,
        H3 => H4,
        H4 => H5,
        H5 | H6 => H6,
    }
}

/// Whether a link may be followed.
fn is_allowed(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https" | "mailto"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, has: &[&str], has_not: &[&str]) {
        let html = render(text).to_string();
        has.iter().for_each(|part| assert!(html.contains(part), "{text}: {html}"));
        has_not.iter().for_each(|part| assert!(!html.contains(part), "{text}: {html}"));
    }

    #[test]
    fn markdown_is_rendered() {
        check(
            "# A\n\n- b\n\n**c** `d`",
            &["<h3>A</h3>", "<li>b</li>", "<strong>c", "<code>d"],
            &[],
        );
        check("|a|b|\n|:-|-:|\n|1|2|", &["<table>", "<td>1</td>"], &["style="]);
        check("[a](https://example.com)", &["<a href=\"https://example.com\">a</a>"], &[]);
    }

    #[test]
    fn nothing_in_it_runs_or_is_loaded() {
        check("<script>alert(1)</script>", &["&lt;script&gt;"], &["<script"]);
        check("a <img src=x onerror=alert(1)> b", &["&lt;img"], &["<img"]);
        for url in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,x",
            "//e.com",
            "/console",
        ] {
            check(&format!("[a]({url})"), &["a"], &["<a", "href"]);
        }
        check("[a](<java\tscript:alert(1)>)", &[], &["href"]);
        check("![alt](https://evil.example/x.png)", &["alt"], &["<img", "evil"]);
        check("```\"onload=alert(1)\nx\n```", &["<pre><code>"], &["onload"]);
        check("# a {#x onclick=alert(1)}", &["<h3>"], &["<h3 "]);
    }
}
