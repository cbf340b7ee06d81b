//! Dead letters: why jobs died, and what can be done about them.

use askama::Template;
use serde_json::Value;

use crate::{
    Page, format, links,
    parts::{CodeLink, JsonBlock, TimeTag},
    views::{LetterList, LetterView, PurgeView, ReasonView, ReplayView, SlotView},
};

/// The longest text in a row, in characters.
const ROW_TEXT: usize = 160;
/// The most reasons that a page shows.
const MAX_REASONS: usize = 60;
/// The most letters of a replay that a page names.
const MAX_NAMED: usize = 100;
/// The most bars of a reason.
const MAX_BARS: usize = 24;
/// The height of the bars, in units of their picture.
const BAR_HEIGHT: u64 = 28;

/// Which letters a page is about, as its URL says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LettersFilter {
    /// The kind of error.
    pub kind: String,
    /// The tool, or the start of the message.
    pub about: String,
    /// The id of the job.
    pub job: String,
    /// The letter's place: `<partition>-<offset>`.
    pub letter: String,
}

impl LettersFilter {
    /// The filter as parameters of a URL, without those that are not set.
    pub fn pairs(&self) -> Vec<(&'static str, &str)> {
        let all: [(&'static str, &str); 4] = [
            ("kind", &self.kind),
            ("about", &self.about),
            ("job", &self.job),
            ("letter", &self.letter),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    fn replay_url(&self) -> String {
        links::with_query("/dead-letters/replay", self.pairs())
    }
}

/// A bar of a histogram, in units of its picture.
struct Bar {
    x: usize,
    y: u64,
    height: u64,
}

/// The letters of one reason.
struct ReasonRow {
    kind: String,
    about: String,
    href: String,
    count: String,
    replayed: String,
    newest: Option<TimeTag>,
    bars: Vec<Bar>,
    replay: Option<String>,
}

impl ReasonRow {
    fn new(reason: &ReasonView, can_replay: bool, first: i64, last: i64) -> Self {
        let filter = LettersFilter {
            kind: reason.kind.clone(),
            about: reason.about.clone(),
            ..LettersFilter::default()
        };
        Self {
            kind: format::one_line(&reason.kind, 40),
            about: format::one_line(&reason.about, 80),
            href: links::with_query("/dead-letters", filter.pairs()),
            count: format::count(reason.count),
            replayed: format::count(reason.replayed),
            newest: reason.newest.map(TimeTag::new),
            bars: bars(&reason.slots, first, last),
            replay: (can_replay && reason.count > reason.replayed).then(|| filter.replay_url()),
        }
    }
}

/// The letters over time as bars, of which the highest fills the picture.
fn bars(slots: &[SlotView], first: i64, last: i64) -> Vec<Bar> {
    let mut counts = vec![0_u64; MAX_BARS];
    let span = u128::from(last.abs_diff(first).max(1));
    for slot in slots {
        let middle = slot.start.as_millis() / 2 + slot.end.as_millis() / 2;
        let at = u128::from(middle.clamp(first, last).abs_diff(first));
        let index = usize::try_from(at * (MAX_BARS as u128 - 1) / span).unwrap_or(0);
        if let Some(count) = counts.get_mut(index) {
            *count += slot.letters;
        }
    }

    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let bar = |(index, count): (usize, u64)| {
        let height = (count * BAR_HEIGHT / most).max(2);
        Bar { x: index * 5, y: BAR_HEIGHT.saturating_sub(height), height }
    };
    counts.into_iter().enumerate().filter(|(_, count)| *count > 0).map(bar).collect()
}

/// A letter in a list.
struct LetterRow {
    href: String,
    job: String,
    kind: String,
    what: String,
    message: String,
    time: Option<TimeTag>,
    attempts: u32,
    state: &'static str,
}

impl LetterRow {
    fn new(letter: &LetterView) -> Self {
        Self {
            href: links::letter(&letter.letter),
            job: format::one_line(&letter.job_id, 80),
            kind: format::one_line(&letter.kind, 40),
            what: format::one_line(letter.what.as_deref().unwrap_or_default(), 80),
            message: format::one_line(&letter.message, ROW_TEXT),
            time: letter.time.map(TimeTag::new),
            attempts: letter.attempts,
            state: if letter.replayed { "replayed" } else { "" },
        }
    }
}

/// The dead letters.
#[derive(Template)]
#[template(path = "letters.html")]
pub struct LettersScreen {
    page: Page,
    filter: LettersFilter,
    total: String,
    replayed: String,
    is_empty: bool,
    complete: bool,
    reasons: Vec<ReasonRow>,
    more_reasons: usize,
    letters: Vec<LetterRow>,
    replay_all: Option<String>,
    purge: Option<String>,
}

impl LettersScreen {
    /// The page of the letters that a filter selects.
    pub fn new(page: Page, filter: LettersFilter, list: &LetterList) -> Self {
        let rights = page.rights();
        let slots = || list.reasons.iter().flat_map(|reason| &reason.slots);
        let first = slots().map(|slot| slot.start.as_millis()).min().unwrap_or(0);
        let last = slots().map(|slot| slot.end.as_millis()).max().unwrap_or(0);
        let reasons = list.reasons.iter().take(MAX_REASONS);
        let is_empty = list.letters == 0;
        Self {
            total: format::count(list.letters),
            replayed: format::count(list.replayed),
            is_empty,
            complete: list.complete,
            reasons: reasons
                .map(|reason| ReasonRow::new(reason, rights.replay, first, last))
                .collect(),
            more_reasons: list.reasons.len().saturating_sub(MAX_REASONS),
            letters: list.newest_letters.iter().map(LetterRow::new).collect(),
            replay_all: (rights.replay && !is_empty).then(|| filter.replay_url()),
            purge: (rights.purge && !is_empty && filter.pairs().is_empty())
                .then(|| links::with_query("/dead-letters/purge", [])),
            page,
            filter,
        }
    }
}

/// A dead letter with its record.
#[derive(Template)]
#[template(path = "letter.html")]
pub struct LetterScreen {
    page: Page,
    letter: LetterView,
    job_url: String,
    message: String,
    first_error: Option<String>,
    code: Option<CodeLink>,
    time: Option<TimeTag>,
    origin: Option<JsonBlock>,
    value: Result<JsonBlock, String>,
    headers: Vec<(String, String)>,
    key: Option<String>,
    replay: Option<String>,
}

/// The longest message of a letter, in bytes.
const MESSAGE: usize = 8 * 1024;
/// The most headers of a letter that a page shows.
const MAX_HEADERS: usize = 60;

impl LetterScreen {
    /// The page of a letter.
    pub fn new(page: Page, letter: LetterView) -> Self {
        let header = |header: &Value| {
            let field = |name: &str| format::one_line(&text_of(header.get(name)), 500);
            (field("name"), field("value"))
        };
        let headers: Vec<_> = letter.headers.iter().take(MAX_HEADERS).map(header).collect();
        let code = headers.iter().find_map(|(_, value)| CodeLink::new(value));
        let filter = LettersFilter { letter: place_of(&letter.letter), ..LettersFilter::default() };
        Self {
            job_url: links::job(&letter.job_id),
            message: format::cut(&letter.message, MESSAGE).to_owned(),
            first_error: letter
                .first_error
                .as_ref()
                .map(|text| format::cut(text, MESSAGE).to_owned()),
            code,
            time: letter.time.map(TimeTag::new),
            origin: letter.origin.is_object().then(|| JsonBlock::new("Origin", &letter.origin)),
            value: match serde_json::from_str::<Value>(&text_of(Some(&letter.value))) {
                Ok(value) => Ok(JsonBlock::new("Value", &value)),
                Err(_) => Err(format::cut(&text_of(Some(&letter.value)), MESSAGE).to_owned()),
            },
            headers,
            key: (!letter.key.is_null())
                .then(|| format::one_line(&text_of(Some(&letter.key)), 300)),
            replay: page.rights().replay.then(|| filter.replay_url()),
            page,
            letter,
        }
    }
}

/// A value of the form `{"text": …}` or `{"base64": …}`, or a text, as text.
fn text_of(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => match value.get("text").and_then(Value::as_str) {
            Some(text) => text.to_owned(),
            None => value.to_string(),
        },
    }
}

/// `topic/partition/offset` as `<partition>-<offset>`.
fn place_of(place: &str) -> String {
    let mut parts = place.rsplit('/');
    let (offset, partition) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{partition}-{offset}")
}

/// What is done with a letter of a replay.
struct ReplayRow {
    href: String,
    job: String,
    kind: String,
    verdict: String,
}

/// A replay: what it would do, or has done.
#[derive(Template)]
#[template(path = "replay.html")]
pub struct ReplayScreen {
    page: Page,
    is_preview: bool,
    filters: Vec<(&'static str, String)>,
    to_replay: u64,
    count: String,
    replayed: String,
    failed: u64,
    left: u64,
    max_replays: u32,
    verdicts: Vec<(String, String)>,
    error: Option<String>,
    rows: Vec<ReplayRow>,
    back: String,
}

impl ReplayScreen {
    /// What a replay would do.
    pub fn preview(page: Page, filter: &LettersFilter, report: &ReplayView) -> Self {
        Self { is_preview: true, ..Self::of(page, filter, report) }
    }

    /// What a replay has done.
    pub fn report(page: Page, filter: &LettersFilter, report: &ReplayView) -> Self {
        Self::of(page, filter, report)
    }

    fn of(page: Page, filter: &LettersFilter, report: &ReplayView) -> Self {
        let rows = report.letters.iter().take(MAX_NAMED).map(|letter| ReplayRow {
            href: links::letter(&letter.letter),
            job: format::one_line(&letter.job_id, 80),
            kind: format::one_line(&letter.kind, 40),
            verdict: match &letter.error {
                Some(error) => format::one_line(error, ROW_TEXT),
                None => describe_verdict(&letter.verdict).to_owned(),
            },
        });
        let list = LettersFilter { letter: String::new(), ..filter.clone() };
        let verdicts = report.verdicts.iter();
        Self {
            page,
            is_preview: false,
            filters: filter
                .pairs()
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            to_replay: report.to_replay,
            count: format::count(report.to_replay),
            replayed: format::count(report.replayed),
            failed: report.failed,
            left: report.left,
            max_replays: report.max_replays,
            verdicts: verdicts
                .map(|(name, number)| (describe_verdict(name).to_owned(), number.to_string()))
                .collect(),
            error: report.error.clone(),
            rows: rows.collect(),
            back: links::with_query("/dead-letters", list.pairs()),
        }
    }
}

fn describe_verdict(name: &str) -> &'static str {
    match name {
        "replay" => "goes back to the queue",
        "already-replayed" => "was replayed before",
        "parked" => "was replayed too often and stays",
        "value-omitted" => "has no value to replay",
        "foreign" => "is not of this fleet",
        "superseded" => "has a newer letter of the same job",
        _ => "stays",
    }
}

/// The deletion of dead letters: what it would delete, or has.
#[derive(Template)]
#[template(path = "purge.html")]
pub struct PurgeScreen {
    page: Page,
    before: String,
    preview: Option<String>,
    deleted: Option<String>,
    has_any: bool,
    topic: String,
}

impl PurgeScreen {
    /// The form, with what would be deleted if there is a time already.
    pub fn preview(page: Page, before: String, report: Option<&PurgeView>) -> Self {
        Self {
            page,
            before,
            preview: report.map(|report| format::count(report.letters)),
            deleted: None,
            has_any: report.is_some_and(|report| report.letters > 0),
            topic: report.map(|report| report.topic.clone()).unwrap_or_default(),
        }
    }

    /// What was deleted.
    pub fn report(page: Page, before: String, report: &PurgeView) -> Self {
        let deleted = Some(format::count(report.letters));
        Self { deleted, ..Self::preview(page, before, Some(report)) }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::time::Timestamp;

    use super::*;

    #[test]
    fn bars_fit_their_picture() {
        let slot = |start: i64, count| SlotView {
            start: Timestamp::from_millis_clamped(start),
            end: Timestamp::from_millis_clamped(start + 10),
            letters: count,
        };
        let found = bars(&[slot(0, 1), slot(500, 1_000_000), slot(990, 4)], 0, 1_000);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|bar| bar.y + bar.height == BAR_HEIGHT && bar.x <= 115));
        assert_eq!(found[1].height, BAR_HEIGHT);
        assert!(bars(&[], 0, 0).is_empty());
    }

    #[test]
    fn values_are_text() {
        assert_eq!(text_of(Some(&serde_json::json!({"text": "a"}))), "a");
        assert_eq!(text_of(Some(&serde_json::json!({"base64": "YQ=="}))), "{\"base64\":\"YQ==\"}");
        assert_eq!(place_of("mcp-jobs.dlq/0/17"), "0-17");
    }
}
