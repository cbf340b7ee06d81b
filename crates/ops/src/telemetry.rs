//! Logging: one subscriber per process, which writes to standard error.
//!
//! Standard output is reserved for data (`--json` results, MCP over stdio), so log lines never go
//! there.

use std::io::IsTerminal as _;
use std::sync::Once;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::Env;

/// Dependencies whose messages below warning are internal details and would drown ours.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,librdkafka=warn,opentelemetry=warn,opentelemetry_sdk=warn,\
                     opentelemetry_otlp=warn,rdkafka=warn,reqwest=warn,rmcp=warn,\
                     rustls=warn,sqlx=warn,tower=warn,tower_http=warn";

/// The maximum level of `rmcp`, by target. Below info, `rmcp` logs whole messages and their
/// headers, which contain arguments, results and credentials. Its service logs a warning for every
/// error response, in the tool's own words, and for every unexpected message. Its workers log URLs
/// that failed, including keys in them, and errors that the caller is told anyway. A filter that
/// names one of these targets overrides its limit.
const RMCP_AT_MOST: [(&str, LevelFilter); 3] = [
    ("rmcp", LevelFilter::INFO),
    ("rmcp::service", LevelFilter::ERROR),
    ("rmcp::transport::worker", LevelFilter::OFF),
];

/// Starts logging for this process.
///
/// `RUST_LOG` is a complete filter and takes precedence. `LOG_LEVEL` is a level, or a filter that
/// is added to the quiet defaults. Neither makes `rmcp` log whole messages unless it names `rmcp`.
/// `LOG_FORMAT` is `text` (default) or `json`. Each JSON line carries `service`. A second call has
/// no effect, nor does a call in a process that already has a subscriber, so tests may call this
/// freely.
pub fn init(service: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let env = Env::process();
        let (filter, complaint) = filter(&env);
        let (json, complaint_of_format) = parse_format(&env);

        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            // Errors in writing a line are reported with `eprintln!`, which panics if the reader
            // of stderr is gone.
            .log_internal_errors(false);

        let installed = if json {
            builder
                .json()
                .flatten_event(true)
                // Put span fields at the top level of the line, where log stores look for them.
                .with_current_span(false)
                .with_span_list(false)
                .map_event_format(|inner| ServiceFormat { service: service.to_owned(), inner })
                .try_init()
        } else {
            builder.with_ansi(std::io::stderr().is_terminal()).try_init()
        };

        if installed.is_ok() {
            for complaint in [complaint, complaint_of_format].into_iter().flatten() {
                tracing::warn!("{complaint}");
            }
        }
    });
}

/// Returns whether lines are JSON, and a complaint if `LOG_FORMAT` is not a format.
fn parse_format(env: &Env) -> (bool, Option<String>) {
    match env.get("LOG_FORMAT") {
        None => (false, None),
        Some(format) if format.eq_ignore_ascii_case("text") => (false, None),
        Some(format) if format.eq_ignore_ascii_case("json") => (true, None),
        Some(format) => {
            let complaint = format!("ignoring LOG_FORMAT: `{format}` is not text or json");
            (false, Some(complaint))
        }
    }
}

/// Returns a part of `LOG_LEVEL` that is meant as a level and is not one. The filter would take it
/// for the name of a crate and silence everything else.
fn find_unknown_level(filter: &str) -> Option<&str> {
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut words = parts.filter(|part| !part.contains(['=', ':', '[']));
    words.find(|word| word.parse::<LevelFilter>().is_err())
}

/// Returns the filter that the environment asks for, and a complaint if it could not be parsed.
fn filter(env: &Env) -> (EnvFilter, Option<String>) {
    let (name, text) = match (env.get("RUST_LOG"), env.get("LOG_LEVEL")) {
        (Some(own), _) => ("RUST_LOG", format!("{}{own}", rmcp_caps(own, general_level(own)))),
        (None, level) => {
            let own = level.unwrap_or("info");
            ("LOG_LEVEL", format!("{}{QUIET},{own}", rmcp_caps(own, LevelFilter::WARN)))
        }
    };

    let unknown_level =
        env.get("LOG_LEVEL").filter(|_| name == "LOG_LEVEL").and_then(find_unknown_level);
    let parsed = match unknown_level {
        Some(word) => Err(format!(
            "`{word}` is not off, error, warn, info, debug, trace, or a filter such as info,fleet_engine=trace"
        )),
        None => EnvFilter::builder().parse(&text).map_err(|error| error.to_string()),
    };
    match parsed {
        Ok(filter) => (filter, None),
        Err(why) => {
            let fallback = format!("{}{QUIET},info", rmcp_caps("", LevelFilter::WARN));
            (
                EnvFilter::new(fallback),
                Some(format!("ignoring the invalid log filter in {name}: {why}")),
            )
        }
    }
}

/// Returns the level of a filter for targets that it does not name.
fn general_level(filter: &str) -> LevelFilter {
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.filter_map(|part| part.parse().ok()).next_back().unwrap_or(LevelFilter::OFF)
}

/// Returns directives that limit `rmcp` where a filter would let it log at `level`. They go before
/// the filter, since the later of two directives for one target wins. A more specific directive
/// wins at any position, so a filter that names all of `rmcp` gets no directive for its service.
fn rmcp_caps(filter: &str, level: LevelFilter) -> String {
    let names_rmcp = filter
        .split(',')
        .any(|part| part.split('=').next().is_some_and(|name| name.trim() == "rmcp"));
    let caps =
        RMCP_AT_MOST.iter().filter(|(target, _)| !(names_rmcp && *target == "rmcp::service"));
    caps.map(|(target, at_most)| format!("{target}={},", level.min(*at_most))).collect()
}

/// Formats JSON lines that start with the service name, so that several binaries can share a log
/// store, and that include span fields: the ids of trace, span and job.
struct ServiceFormat {
    service: String,
    inner: Format<Json>,
}

/// Returns the fields of the spans around an event. If several spans have a field, the innermost
/// wins.
fn span_fields<S>(ctx: &FmtContext<'_, S, JsonFields>) -> serde_json::Map<String, serde_json::Value>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    let mut fields = serde_json::Map::new();

    for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        let extensions = span.extensions();
        let text = extensions.get::<FormattedFields<JsonFields>>();
        if let Some(Ok(own)) = text.map(|text| serde_json::from_str(&text.fields)) {
            let own: serde_json::Map<String, serde_json::Value> = own;
            fields.extend(own);
        }
    }

    fields
}

impl<S> FormatEvent<S, JsonFields> for ServiceFormat
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    JsonFields: for<'writer> FormatFields<'writer>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;

        let service = serde_json::Value::from(self.service.as_str());
        let Some(rest) = line.strip_prefix('{') else { return writer.write_str(&line) };
        write!(writer, "{{\"service\":{service},")?;

        for (name, value) in span_fields(ctx) {
            let name = format!("{}:", serde_json::Value::from(name));
            // The event's own fields take precedence over span fields. Inside a string value, the
            // quotes would be escaped, so this matches only field names.
            if !rest.contains(&name) {
                write!(writer, "{name}{value},")?;
            }
        }

        writer.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_may_be_called_again() {
        init("first");
        init("second");
    }

    #[test]
    fn what_is_not_understood_is_named_with_the_choices() {
        let (_, complaint) = filter(&Env::of([("LOG_LEVEL", "loud")]));
        let complaint = complaint.expect("a complaint");
        assert!(complaint.contains("LOG_LEVEL") && complaint.contains("debug"), "{complaint}");

        let format = |value: &str| parse_format(&Env::of([("LOG_FORMAT", value)]));
        assert_eq!((format("JSON"), format("text")), ((true, None), (false, None)));
        let (json, complaint) = format("xml");
        let complaint = complaint.expect("a complaint");
        assert!(!json && complaint.contains("LOG_FORMAT") && complaint.contains("text or json"));
    }

    #[test]
    fn the_filter_comes_from_the_environment() {
        let check = |env: &[(&str, &str)], expected: &str, complains: bool| {
            let (filter, complaint) = filter(&Env::of(env.iter().copied()));
            assert!(filter.to_string().split(',').any(|part| part == expected), "{filter}");
            assert_eq!(complaint.is_some(), complains);
        };
        check(&[], "info", false);
        check(&[], "librdkafka=warn", false);
        check(&[("LOG_LEVEL", "debug")], "debug", false);
        check(&[("LOG_LEVEL", "debug")], "hyper=warn", false);
        check(&[("LOG_LEVEL", "info,fleet_engine=trace")], "fleet_engine=trace", false);
        check(&[("LOG_LEVEL", "debug"), ("RUST_LOG", "trace")], "trace", false);
        check(&[("RUST_LOG", "=/=nonsense=")], "info", true);
        check(&[("LOG_LEVEL", "loud")], "info", true);
        check(&[("LOG_LEVEL", "WARN,hyper=debug")], "warn", false);
        for (own, rmcp) in [
            ("trace", "rmcp=info"),
            ("debug", "rmcp=info"),
            ("warn", "rmcp=warn"),
            ("info,debug,fleet_ops=warn", "rmcp=info"),
            ("mcp_server=trace", "rmcp=off"),
            ("off", "rmcp=off"),
        ] {
            check(&[("RUST_LOG", own)], rmcp, false);
            check(&[("RUST_LOG", own)], "rmcp::transport::worker=off", false);
        }
        check(&[("LOG_LEVEL", "trace")], "rmcp=warn", false);
        check(&[("LOG_LEVEL", "trace")], "rmcp::transport::worker=off", false);
        check(&[("RUST_LOG", "trace")], "rmcp::service=error", false);
        check(&[("RUST_LOG", "debug,rmcp=trace")], "rmcp=trace", false);
        check(&[("RUST_LOG", "rmcp=trace")], "rmcp::transport::worker=off", false);
        let (all, _) = filter(&Env::of([("RUST_LOG", "rmcp=trace")]));
        assert!(!all.to_string().contains("rmcp::service"), "{all}");
        check(
            &[("RUST_LOG", "rmcp::transport::worker=debug")],
            "rmcp::transport::worker=debug",
            false,
        );
    }
}
