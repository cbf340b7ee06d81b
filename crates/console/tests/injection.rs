//! Texts from outside in every field of every screen: nothing in them becomes markup.
//!
//! The pages are read token by token, and every tag and attribute must be one that our own templates
//! have. So a test does not have to know in which ways a browser could be tricked.

#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use fleet_access::Asker;
use fleet_console::{
    JobsFilter, Page, Rights, Section, Visitor,
    screens::{
        ApprovalsScreen, BulkKind, BulkProgress, BulkScreen, CallOutcome, ChecksScreen, EditScreen,
        JobScreen, JobsScreen, LetterScreen, LettersFilter, LettersScreen, Overview,
        OverviewScreen, ProblemScreen, PurgeScreen, ReplayScreen, ServerScreen, ServersScreen,
        SignInScreen, ToolScreen, ToolsScreen,
    },
    views::{JobPage, ProblemView, PurgeView},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Texts that become code where somebody forgets to escape them.
const CORPUS: [&str; 22] = [
    "<script>alert(1)</script>",
    "\"><script>alert(1)</script>",
    "'><script>alert(1)</script>",
    "</pre></textarea></title></style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)",
    "' onfocus='alert(1)' autofocus='",
    "<svg/onload=alert(1)>",
    "<svg><script href=data:,alert(1) />",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href=\"javascript:alert(1)\">x</a>",
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "# x\n\n[x](javascript:alert(1)) ![y](https://evil.example/y.png)\n\n<b onclick=alert(1)>",
    "<div hx-get=\"/evil\" hx-trigger=\"load\" hx-on:load=\"alert(1)\">",
    "<form action=//evil.example><button>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=\"0;url=//evil.example\">",
    "<style>@import '//evil.example'</style>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "\u{0}<script>alert(1)</script>\u{2028}\u{202e}",
    "<!--><script>alert(1)</script>-->",
];

/// The tags of our templates, and those that Markdown becomes.
const TAGS: &str = "html head meta title link script body a header svg path nav div span form input \
    button main p h1 h2 h3 h4 h5 h6 footer section ul ol li label select option details summary table \
    caption thead tbody tr th td pre dl dt dd time progress json-tree schema-form textarea figure img \
    figcaption audio strong em code hr blockquote br del rect";
/// Their attributes. None runs anything.
const ATTRIBUTES: &str = "lang charset name content rel href type src defer class viewbox aria-hidden d \
    fill opacity stroke stroke-width stroke-linejoin aria-label aria-current title method action value id \
    tabindex role hx-get hx-trigger hx-select hx-target hx-swap hx-sse:connect hx-sse:close hx-morph-skip data-live \
    data-live-text data-copy data-continue data-schema aria-labelledby aria-describedby scope placeholder \
    autocomplete spellcheck open selected datetime max rows maxlength required autofocus alt loading \
    controls preload download x y width height preserveaspectratio start";

/// A tag with its attributes.
#[derive(Debug)]
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

/// Reads the tags of a page as a browser does that finds every `<` that is followed by a letter.
fn tags_of(html: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let first = rest.chars().next().unwrap_or(' ');
        if first == '!' {
            assert!(rest.to_ascii_lowercase().starts_with("!doctype html>"), "{:.60}", rest);
            continue;
        }
        let closes = first == '/';
        let body = if closes { &rest[1..] } else { rest };
        let (tag, after) = read_tag(body);
        assert!(!closes || tag.attributes.is_empty(), "{tag:?}");
        tags.push(tag);
        rest = after;
    }
    tags
}

fn read_tag(text: &str) -> (Tag, &str) {
    let end = text.find(|c: char| c.is_whitespace() || c == '>' || c == '/').unwrap_or(text.len());
    let mut tag = Tag { name: text[..end].to_ascii_lowercase(), attributes: Vec::new() };
    let mut rest = text[end..].trim_start();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if let Some(after) = rest.strip_prefix('>') {
            return (tag, after);
        }
        assert!(!rest.is_empty(), "a tag has no end: {tag:?}");
        let end = rest.find(|c: char| c.is_whitespace() || "=>/".contains(c)).unwrap();
        let name = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start();
        let Some(value) = rest.strip_prefix('=') else {
            tag.attributes.push((name, String::new()));
            continue;
        };
        let quote = value.chars().next().unwrap();
        assert!(quote == '"' || quote == '\'', "an attribute without quotes: {name} of {tag:?}");
        let end = value[1..].find(quote).unwrap() + 1;
        tag.attributes.push((name, value[1..end].to_owned()));
        rest = &value[end + 1..];
    }
}

fn check(screen: &str, html: &str) {
    let known = |list: &str, name: &str| list.split_whitespace().any(|known| known == name);
    for tag in tags_of(html) {
        assert!(known(TAGS, &tag.name), "{screen}: {tag:?}");
        for (name, value) in &tag.attributes {
            assert!(known(ATTRIBUTES, name), "{screen}: {tag:?}");
            let value = value.replace("&#38;", "&").replace("&amp;", "&");
            let leads =
                ["href", "src", "action", "hx-get", "hx-sse:connect"].contains(&name.as_str());
            let is_ours = value.starts_with("/console") || value.starts_with('#');
            let is_web = tag.name == "a" && value.starts_with("https://example.com");
            let is_data = ["img", "audio"].contains(&tag.name.as_str())
                && (value.starts_with("data:image/png;base64,")
                    || value.starts_with("data:audio/wav;base64,"));
            assert!(!leads || is_ours || is_web || is_data, "{screen}: {tag:?}");
        }
    }
    for script in html.match_indices("<script") {
        assert!(html[script.0..].starts_with("<script src=\"/console/static/"), "{screen}");
    }
    assert!(html.len() < 200_000, "{screen} has {} bytes", html.len());
}

fn page() -> Page {
    let visitor = Visitor {
        name: "<b>somebody</b>".to_owned(),
        has_session: true,
        rights: Rights::of(&Asker::local(), false),
        csrf: "token".to_owned(),
        is_read_only: false,
    };
    Page::new("<title>", Section::Jobs, visitor).live_from("/console/live".to_owned())
}

fn view<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn problem(text: &str) -> ProblemView {
    view(json!({"title": text, "status": 400, "detail": text, "code": text, "rule": text}))
}

/// A job with a text wherever it can have one.
fn job(state: &str, text: &str) -> Value {
    let time = "2026-11-21T08:00:00.000Z";
    json!({
        "jobID": text, "state": state, "time": time, "jobType": text, "tool": text, "submittedAt": time,
        "attempts": 3, "worker": text, "source": {"topic": text, "partition": 0, "offset": 1},
        "progress": {"progress": 1.5, "total": 3, "message": text},
        "result": {"content": [
            {"type": "text", "text": text},
            {"type": "text", "text": json!({text: text}).to_string()},
            {"type": "image", "mimeType": text, "data": text},
            {"type": "image", "mimeType": "image/png", "data": text},
            {"type": "audio", "mimeType": "audio/wav", "data": "aGk="},
            {"type": "resource", "resource": {"uri": text, "mimeType": "text/markdown", "text": text}},
            {"type": "resource", "resource": {"uri": text, "blob": text}},
            {"type": "resource_link", "uri": text, "name": text},
            {"type": text, text: text},
        ], "structuredContent": {text: text}},
        "error": {"kind": "tool", "errorCode": text, "message": text, "data": {text: text}},
        "waiting": {"reason": text, "server": text, "since": time},
        "approval": {
            "rule": text, "requestedBy": text, "expiresAt": time, "envelope": text, "key": text,
        },
        "tenant": text, "owner": text, "idempotencyKey": text, "metadata": {text: text},
        "timings": {"finishedAt": time, "waitedMs": 1, "ranMs": 1}, "cancelRequestedAt": time,
    })
}

const STATES: [&str; 8] = [
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "awaiting_approval",
];

#[test]
fn nothing_in_jobs_becomes_markup() {
    for text in CORPUS {
        for state in STATES {
            let history =
                json!({"events": [job(state, text), job(state, text)], "complete": false});
            let record = json!({
                "jobID": text, "source": {"topic": text, "partition": 0, "offset": 1}, "key": text,
                "envelope": {"payload": {"tool": text, "arguments": {text: text}}},
            });
            let mut shown = JobPage {
                job: view(job(state, text)),
                history: Ok(view(history)),
                record: Ok(view(record)),
            };
            check("job", &JobScreen::new(page(), &shown).to_string());
            shown.history = Err(problem(text));
            shown.record = Err(problem(text));
            check("job", &JobScreen::new(page(), &shown).to_string());

            let schema = json!({"properties": {text: {"description": text}}});
            let problem = Some(problem(text));
            let edit = EditScreen::new(page(), &shown.job, text.to_owned(), &schema, problem);
            check("edit", &edit.to_string());
        }

        let list = view(json!({
            "jobs": STATES.map(|state| job(state, text)).to_vec(), "nextCursor": text,
        }));
        let counts = view(json!({
            "states": {"failed": 3, text: 1}, "total": 4, "completeSince": "2026-11-21T08:00:00Z",
        }));
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(
                ["state", "tool", "tenant", "idPrefix", "errorCode", "metadata", "since", "cursor"]
                    .map(|name| (name, text)),
            )
            .finish();
        let filter = JobsFilter::parse(&query);
        check("jobs", &JobsScreen::new(page(), filter.clone(), &list, Some(&counts)).to_string());
        check("approvals", &ApprovalsScreen::new(page(), &list).to_string());

        let report = view(json!({
            "dryRun": false, "matched": 3, "done": 1, "failed": 1, "complete": false,
            "nextCursor": text, "retryStep": false, "operation": text, "jobs": [
                {"jobID": text, "state": "failed", "tool": text, "outcome": "failed", "detail": text},
                {"jobID": text, "state": "failed", "outcome": "done", "newJobID": text},
            ],
        }));
        for kind in [BulkKind::Cancel, BulkKind::Run] {
            let progress = BulkProgress { done: 1, failed: 1 };
            check("bulk", &BulkScreen::preview(page(), kind, &filter, &report).to_string());
            let shown = BulkScreen::progress(page(), kind, &filter, &report, &progress);
            check("bulk", &shown.to_string());
        }
    }
}

fn server(text: &str, state: &str) -> Value {
    json!({
        "name": text, "state": state, "transport": text, "protocolVersion": text,
        "serverInfo": {"name": text, "version": text}, "uptimeMs": 7, "restarts": 2, "pid": 7,
        "tools": [{"name": text, "exposedAs": text, "description": text}],
        "hiddenTools": [{"name": text, "reason": text}], "callsInFlight": 1, "callsWaiting": 1,
        "breaker": {"state": text, "lastFailure": text}, "lastError": text, "stderrTail": text,
    })
}

#[test]
fn nothing_in_servers_becomes_markup() {
    for text in CORPUS {
        for state in ["running", "failed", "refused", text] {
            let mut shown = server(text, state);
            check("server", &ServerScreen::new(page(), view(shown.clone())).to_string());
            shown["breaker"]["state"] = "open".into();
            check("server", &ServerScreen::new(page(), view(shown)).to_string());
        }

        let servers = [view(server(text, "running"))];
        let config = Some(text.to_owned());
        let list = ServersScreen::new(page(), &servers, config, Some(problem(text)));
        check("servers", &list.to_string());
        let check_of = |verdict: &str| {
            json!({
                "name": text, "verdict": verdict, "reason": text, "rule": {"table": text, "number": 1, "covers": text}, "program": text,
                "environment": [text], "addresses": [text], "warnings": [text],
            })
        };
        let verdicts = ["allowed", "refused", text].map(check_of).to_vec();
        let checks = view(json!({"warnings": [text], "servers": verdicts}));
        let configs = json!({text: {"command": text}});
        let screen =
            ChecksScreen::new(page(), &checks, configs.as_object().unwrap(), text.to_owned());
        check("checks", &screen.to_string());

        let overview = Overview {
            counts: Err(problem(text)),
            open: view(json!({"jobs": [job("running", text)]})),
            failed: view(json!({"jobs": [job("failed", text)]})),
            servers: servers.into(),
        };
        check("overview", &OverviewScreen::new(page(), &overview).to_string());
    }
}

#[test]
fn nothing_in_tools_becomes_markup() {
    for text in CORPUS {
        let tool = || {
            json!({
                "name": text, "server": text, "tool": text, "title": text, "description": text,
                "annotations": {"readOnlyHint": true, text: text},
                "calls": {"since": "2026-11-21T08:00:00Z", "calls": 7, "errorShare": 0.5, "p50Ms": 1, "p95Ms": 2},
                "inputSchema": {"required": [text], "properties": {text: {"default": text, "description": text}}},
                "outputSchema": {"title": text},
            })
        };
        let list = view(json!({"tools": [tool(), tool()], "complete": false}));
        check("tools", &ToolsScreen::new(page(), String::new(), &list).to_string());
        check("tools", &ToolsScreen::new(page(), text.to_owned(), &list).to_string());

        let result = job("succeeded", text)["result"].take();
        let outcomes = [
            None,
            Some(CallOutcome::Failed(problem(text))),
            Some(CallOutcome::Answered { result, ms: 7 }),
        ];
        for outcome in outcomes {
            for arguments in [None, Some(text.to_owned()), Some(json!({text: text}).to_string())] {
                let Some(outcome) = &outcome else {
                    let shown = ToolScreen::new(page(), view(tool()), arguments, None, text);
                    check("tool", &shown.to_string());
                    continue;
                };
                let outcome = match outcome {
                    CallOutcome::Failed(problem) => CallOutcome::Failed(problem.clone()),
                    CallOutcome::Answered { result, ms } => {
                        CallOutcome::Answered { result: result.clone(), ms: *ms }
                    }
                };
                let shown = ToolScreen::new(page(), view(tool()), arguments, Some(outcome), text);
                check("tool", &shown.to_string());
            }
        }
    }
}

#[test]
fn nothing_in_dead_letters_becomes_markup() {
    for text in CORPUS {
        let letter = || {
            json!({
                "letter": text, "jobID": text, "kind": text, "message": text, "what": text, "attempts": 3,
                "time": "2026-11-21T08:00:00Z", "worker": text, "replayCount": 1, "replayed": true,
                "origin": {"topic": text, "partition": 0, "offset": 1}, "firstError": text,
                "headers": [{"name": text, "value": {"text": text}}, {"name": text, "value": text}],
                "key": {"text": text}, "value": {"text": text},
            })
        };
        let list = view(json!({
            "topic": text, "letters": 2, "replayed": 1, "complete": false,
            "newestLetters": [letter(), letter()], "reasons": [{
                "kind": text, "about": text, "count": 2, "replayed": 1, "oldest": null, "newest": null,
                "slots": [{"start": "2026-11-21T08:00:00Z", "end": "2026-11-21T09:00:00Z", "letters": 2}],
            }],
        }));
        let own = || text.to_owned();
        let filter = LettersFilter { kind: own(), about: own(), job: own(), letter: own() };
        check("letters", &LettersScreen::new(page(), filter.clone(), &list).to_string());
        check("letter", &LetterScreen::new(page(), view(letter())).to_string());

        let report = view(json!({
            "maxReplays": 3, "verdicts": {text: 1, "replay": 1}, "toReplay": 1, "replayed": 1,
            "failed": 1, "left": 1, "error": text, "letters": [
                {"letter": text, "jobID": text, "kind": text, "verdict": text},
                {"letter": text, "jobID": text, "kind": text, "verdict": text, "error": text},
            ],
        }));
        check("replay", &ReplayScreen::preview(page(), &filter, &report).to_string());
        check("replay", &ReplayScreen::report(page(), &filter, &report).to_string());
        let purge = PurgeView { topic: own(), letters: 3 };
        check("purge", &PurgeScreen::preview(page(), own(), Some(&purge)).to_string());
        check("purge", &PurgeScreen::report(page(), own(), &purge).to_string());
    }
}

#[test]
fn nothing_in_errors_becomes_markup() {
    for text in CORPUS {
        let shown = ProblemScreen::new(page(), problem(text), None);
        check("problem", &shown.to_string());
        let public = Page::public(text, Section::Other);
        let shown = SignInScreen::new(public, text.to_owned(), Some(problem(text)));
        check("sign-in", &shown.to_string());
    }
}

#[test]
fn pages_stay_small_however_much_there_is() {
    for unit in ["ä", "<", "# a\n\n- b\n", "{\"a\":[1,2,3]}"] {
        let text = unit.repeat(400_000 / unit.len());
        // Nothing of a job is longer than this but its result, its error, its arguments and its
        // metadata.
        let short = &text[..text.floor_char_boundary(256)];
        let mut large = job("failed", short);
        for (index, item) in [&text, &text, &text].iter().enumerate() {
            large["result"]["content"][index] = json!({"type": "text", "text": item});
        }
        large["error"]["message"] = text.as_str().into();
        large["metadata"] = json!({"a": text});
        let record = json!({
            "jobID": "j", "source": {"topic": "t", "partition": 0, "offset": 1},
            "envelope": {"payload": {"arguments": {"a": text}}},
        });
        let shown = JobPage {
            job: view(large.clone()),
            history: Ok(view(json!({"events": vec![large; 50], "complete": true}))),
            record: Ok(view(record)),
        };
        check("job", &JobScreen::new(page(), &shown).to_string());

        let list = view(json!({"jobs": vec![job("failed", short); 50]}));
        check("jobs", &JobsScreen::new(page(), JobsFilter::default(), &list, None).to_string());
    }
}

#[test]
fn the_check_notices_markup() {
    for text in ["<p onclick=\"x\">", "<iframe>", "<a href=\"javascript:x\">", "<p style=\"x\">"] {
        let caught = std::panic::catch_unwind(|| check("test", text));
        assert!(caught.is_err(), "{text}");
    }
}
