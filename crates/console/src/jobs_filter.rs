//! The filter of a list of jobs, which is in the URL of its page.

use std::time::Duration;

use fleet_job::time::Timestamp;

use crate::links;

/// The parameters that a filter can have.
const NAMES: [&str; 10] = [
    "state",
    "type",
    "tool",
    "tenant",
    "idPrefix",
    "errorCode",
    "metadata",
    "within",
    "since",
    "until",
];
/// The page of the list.
const CURSOR: &str = "cursor";

/// Times that a filter can be limited to, counted back from now.
pub(crate) const SPANS: [(&str, &str, u64); 5] = [
    ("15m", "last 15 minutes", 900),
    ("1h", "last hour", 3_600),
    ("24h", "last 24 hours", 86_400),
    ("7d", "last 7 days", 604_800),
    ("30d", "last 30 days", 2_592_000),
];

/// Which jobs a page lists, as its URL says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsFilter {
    pairs: Vec<(String, String)>,
    cursor: Option<String>,
}

impl JobsFilter {
    /// Reads the query of a URL. Unknown and empty parameters are left out.
    pub fn parse(query: &str) -> Self {
        let mut filter = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            if name == CURSOR {
                filter.cursor = Some(value.to_owned());
            } else if NAMES.contains(&&*name) {
                filter.pairs.push((name.into_owned(), value.to_owned()));
            }
        }
        filter
    }

    /// The URL of the list with this filter.
    pub fn url(&self) -> String {
        let cursor = self.cursor.as_deref().map(|cursor| (CURSOR, cursor));
        links::jobs(self.pairs().chain(cursor))
    }

    /// The query that this filter is for the REST interface, without the page of the list.
    pub fn rest_query(&self, now: Timestamp) -> Vec<(String, String)> {
        let translate = |(name, value): (&str, &str)| match name {
            "within" => {
                let (.., seconds) = SPANS.iter().find(|(known, ..)| *known == value)?;
                let since = now.minus(Duration::from_secs(*seconds));
                Some(("since".to_owned(), since.to_string()))
            }
            _ => Some((name.to_owned(), value.to_owned())),
        };
        self.pairs().filter_map(translate).collect()
    }

    /// The parameters of a stream of events about jobs that this filter may list. A stream knows no
    /// times and no codes, so it may have events about other jobs.
    pub fn stream_query(&self) -> Vec<(String, String)> {
        let of_stream = ["type", "tool", "tenant", "idPrefix", "metadata"];
        let pairs = self.pairs().filter(|(name, _)| of_stream.contains(name));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The place of the page in the list.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Returns whether every job is listed.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.pairs().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == value
    }

    /// The URL of the list with another value of a parameter; without it, if the value is empty.
    pub(crate) fn url_with(&self, name: &str, value: &str) -> String {
        let others = self.pairs().filter(|(known, _)| *known != name);
        let found = others.chain([(name, value)]);
        // A list with another filter begins with its first page.
        links::jobs(found)
    }

    /// The URL of the list's next page.
    pub(crate) fn next_page(&self, cursor: &str) -> String {
        links::jobs(self.pairs().chain([(CURSOR, cursor)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_comes_from_its_url_and_makes_it_again() {
        let filter = JobsFilter::parse("state=failed&tool=&x=1&idPrefix=a%20b&cursor=c");
        assert_eq!(filter.url(), "/console/jobs?state=failed&idPrefix=a+b&cursor=c");
        assert_eq!(JobsFilter::parse("state=failed&idPrefix=a+b&cursor=c"), filter);
        assert_eq!(filter.url_with("state", "queued"), "/console/jobs?idPrefix=a+b&state=queued");
        assert_eq!(filter.url_with("state", ""), "/console/jobs?idPrefix=a+b");
    }

    #[test]
    fn times_are_counted_back_from_now() {
        let now = Timestamp::from_millis_clamped(7_200_000);
        let query = JobsFilter::parse("within=1h&tool=t").rest_query(now);
        assert_eq!(query[0], ("since".to_owned(), "1970-01-01T01:00:00.000Z".to_owned()));
        assert_eq!(query[1], ("tool".to_owned(), "t".to_owned()));
        assert!(JobsFilter::parse("within=forever").rest_query(now).is_empty());
    }
}
