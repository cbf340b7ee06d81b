//! Logs: one subscriber per process, written to standard error.
//!
//! Standard output belongs to data (`--json` results, MCP over stdio), so no log line ever goes there.

use std::io::IsTerminal as _;
use std::sync::Once;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::Env;

/// What dependencies say below warning is about their own insides and would drown ours.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,librdkafka=warn,rdkafka=warn,reqwest=warn,rmcp=warn,\
                     rustls=warn,sqlx=warn,tower=warn,tower_http=warn";

/// Starts logging for this process.
///
/// `RUST_LOG` is a full filter and wins; `LOG_LEVEL` is a level, or a filter that is laid over the quiet defaults;
/// `LOG_FORMAT` is `text` (default) or `json`. Each JSON line carries `service`. A second call does nothing, and
/// neither does a call in a process that has a subscriber already, so tests may call it freely.
pub fn init(service: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let env = Env::process();
        let (filter, complaint) = filter(&env);
        let json = env.get("LOG_FORMAT").is_some_and(|f| f.eq_ignore_ascii_case("json"));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let installed = if json {
            builder
                .json()
                .flatten_event(true)
                .map_event_format(|inner| Named { service: service.to_owned(), inner })
                .try_init()
        } else {
            builder.with_ansi(std::io::stderr().is_terminal()).try_init()
        };
        if installed.is_ok()
            && let Some(complaint) = complaint
        {
            tracing::warn!("{complaint}");
        }
    });
}

/// The filter that the environment asks for, and what is wrong with it where it is not understood.
fn filter(env: &Env) -> (EnvFilter, Option<String>) {
    let (name, text) = match (env.get("RUST_LOG"), env.get("LOG_LEVEL")) {
        (Some(rust_log), _) => ("RUST_LOG", rust_log.to_owned()),
        (None, Some(level)) => ("LOG_LEVEL", format!("{QUIET},{level}")),
        (None, None) => ("LOG_LEVEL", format!("{QUIET},info")),
    };
    match EnvFilter::builder().parse(&text) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(format!("{QUIET},info")), Some(format!("{name} is ignored: {error}"))),
    }
}

/// JSON lines that begin with the name of the service, so that the logs of several binaries can share one store.
struct Named {
    service: String,
    inner: Format<Json>,
}

impl<S> FormatEvent<S, JsonFields> for Named
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
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"service\":{service},{rest}"),
            None => writer.write_str(&line),
        }
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
    }
}
