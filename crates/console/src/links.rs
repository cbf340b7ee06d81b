//! The URLs of the console's own pages.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The path under which all pages are.
pub const ROOT: &str = "/console";

/// What stays as it is in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'.');

/// A text as one segment of a path.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The page of a job.
pub fn job(id: &str) -> String {
    format!("{ROOT}/jobs/{}", segment(id))
}

/// The list of jobs, with these parameters in its query.
pub fn jobs<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    with_query("/jobs", parameters)
}

/// The page of a tool.
pub fn tool(name: &str) -> String {
    format!("{ROOT}/tools/{}", segment(name))
}

/// The page of a hosted server.
pub fn server(name: &str) -> String {
    format!("{ROOT}/servers/{}", segment(name))
}

/// The page of a dead letter, of which this is the place: `topic/partition/offset`.
pub fn letter(place: &str) -> String {
    let mut parts = place.rsplit('/');
    let (offset, partition) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{ROOT}/dead-letters/{}", segment(&format!("{partition}-{offset}")))
}

/// The page that explains a code.
pub fn code(code: &str) -> String {
    format!("{ROOT}/codes/{}", segment(code))
}

/// The URL of a page with a query.
pub fn with_query<'a>(
    page: &str,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters.into_iter().filter(|(_, value)| !value.is_empty()))
        .finish();
    match query.is_empty() {
        true => format!("{ROOT}{page}"),
        false => format!("{ROOT}{page}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_segment_of_a_path() {
        assert_eq!(job("mcp-jobs/0/17"), "/console/jobs/mcp-jobs%2F0%2F17");
        assert_eq!(tool("\"><script>"), "/console/tools/%22%3E%3Cscript%3E");
        assert_eq!(letter("mcp-jobs.dlq/3/17"), "/console/dead-letters/3-17");
    }

    #[test]
    fn queries_have_no_empty_parameters() {
        assert_eq!(jobs([("state", "failed"), ("tool", "")]), "/console/jobs?state=failed");
        assert_eq!(jobs([]), "/console/jobs");
        assert_eq!(jobs([("tool", "a&b=\"")]), "/console/jobs?tool=a%26b%3D%22");
    }
}
