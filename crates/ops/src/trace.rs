//! Spans: what this process does for a job, as part of the trace that the job's producer began.
//!
//! Spans are exported through OTLP if the standard OpenTelemetry variables ask for it
//! (`OTEL_EXPORTER_OTLP_ENDPOINT`, or `OTEL_TRACES_EXPORTER=otlp`). Otherwise a [`Span`] costs
//! nothing and passes its parent's context on unchanged, so the trace continues in other processes.

mod headers;

use std::{
    borrow::Cow,
    collections::HashMap,
    env,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use fleet_job::trace::TraceContext;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanBuilder, Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithHttpConfig as _;
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

pub use opentelemetry::{Value, trace::SpanKind};

/// How long the export of the last spans may take when the process ends.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// The maximum length in bytes of an error message in a span.
const MAX_MESSAGE: usize = 1024;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// An attribute of a span: key and value.
pub type Attribute = (&'static str, Value);

/// Exports the remaining spans when dropped. Keep it until the process ends.
#[derive(Debug, Default)]
#[must_use = "dropping this exports the last spans and ends the export"]
pub struct Exporting(Option<SdkTracerProvider>);

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take()
            && let Err(error) = provider.shutdown_with_timeout(SHUTDOWN)
        {
            tracing::warn!(%error, "could not export the last spans");
        }
    }
}

/// Starts exporting spans if the environment asks for it. An invalid setting is logged and disables
/// traces: jobs never depend on a trace collector.
pub fn init(service: &'static str, version: &'static str) -> Exporting {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let requested = is_export_requested(variable);
    match requested.and_then(|yes| yes.then(|| headers::read_headers(variable)).transpose()) {
        Ok(None) => Exporting::default(),
        Ok(Some(headers)) => start_export(service, version, headers),
        Err(why) => {
            tracing::warn!("traces are disabled: {why}");
            Exporting::default()
        }
    }
}

/// Returns whether spans should be exported, by the OpenTelemetry Environment Variable
/// Specification.
fn is_export_requested(variable: impl Fn(&str) -> Option<String>) -> Result<bool, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }

    let endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(false),
        Some("otlp") => {}
        Some(other) => {
            return Err(format!("OTEL_TRACES_EXPORTER={other} is not supported; set otlp or none"));
        }
        None if endpoint.iter().all(|name| variable(name).is_none()) => return Ok(false),
        None => {}
    }

    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if let Some(protocol) = variable(name) {
            return match protocol.as_str() {
                "http/protobuf" => Ok(true),
                other => Err(format!(
                    "{name}={other} is not supported; set http/protobuf, which collectors accept on port 4318"
                )),
            };
        }
    }

    Ok(true)
}

/// Starts the exporter and installs the process's tracer.
fn start_export(
    service: &'static str,
    version: &'static str,
    headers: HashMap<String, String>,
) -> Exporting {
    let builder = opentelemetry_otlp::SpanExporter::builder().with_http();
    let exporter = match builder.with_headers(headers).build() {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::warn!(%error, "could not start the trace exporter; traces are disabled");
            return Exporting::default();
        }
    };

    let variable = |name: &str| env::var(name).unwrap_or_default();
    let named = !variable("OTEL_SERVICE_NAME").is_empty()
        || variable("OTEL_RESOURCE_ATTRIBUTES").contains("service.name=");

    let resource = Resource::builder().with_attribute(KeyValue::new("service.version", version));
    let resource = if named { resource } else { resource.with_service_name(service) }.build();

    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();

    if TRACER.set(provider.tracer("mcp-fleet")).is_err() {
        tracing::debug!("the trace exporter is already running");
        return Exporting::default();
    }

    Exporting(Some(provider))
}

/// A span in a trace: something that this process does from now until the value is dropped.
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    /// `None` if spans are not exported.
    own: Option<Context>,
}

impl Span {
    /// Starts a span below `parent`, or a new trace if `parent` is empty. `attributes` is called
    /// only if spans are exported.
    pub fn start<A: IntoIterator<Item = Attribute>>(
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
        parent: &TraceContext,
        attributes: impl FnOnce() -> A,
    ) -> Self {
        match TRACER.get() {
            Some(tracer) => Self::start_with(tracer, kind, name.into(), parent, attributes()),
            None => Self { context: parent.clone(), own: None },
        }
    }

    fn start_with(
        tracer: &SdkTracer,
        kind: SpanKind,
        name: Cow<'static, str>,
        parent: &TraceContext,
        attributes: impl IntoIterator<Item = Attribute>,
    ) -> Self {
        let propagator = TraceContextPropagator::new();
        let parent = propagator.extract_with_context(&Context::new(), &Carrier(parent.clone()));

        let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_start_time(SystemTime::now())
            .with_attributes(attributes);

        let own = parent.with_span(builder.start_with_context(tracer, &parent));

        let mut carrier = Carrier::default();
        propagator.inject_context(&own, &mut carrier);

        Self { context: carrier.0, own: Some(own) }
    }

    /// Returns the context to pass on to whatever continues the trace inside this span.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Sets an attribute.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(own) = &self.own {
            own.span().set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// Marks the span as failed, with the kind of error (`error.type`) and a message.
    pub fn fail(&self, kind: &'static str, message: &str) {
        let Some(own) = &self.own else { return };
        own.span().set_attribute(KeyValue::new("error.type", kind));

        let end = message.floor_char_boundary(MAX_MESSAGE);
        own.span().set_status(Status::error(message[..end].to_owned()));
    }

    /// Returns a log span whose lines carry the ids of the trace, this span and the job.
    pub fn log(&self, job_id: Option<&str>) -> tracing::Span {
        tracing::info_span!(
            "job",
            job_id,
            trace_id = self.context.trace_id(),
            span_id = self.own.as_ref().and(self.context.span_id())
        )
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            own.span().end();
        }
    }
}

/// Adapts a context to the propagator's interface.
#[derive(Default)]
struct Carrier(TraceContext);

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.pairs().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.pairs().map(|(name, _)| name).collect()
    }
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.0.parent = Some(value),
            "tracestate" => self.0.state = Some(value).filter(|state| !state.is_empty()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    fn context(parent: &str) -> TraceContext {
        TraceContext { parent: Some(parent.to_owned()), state: Some("a=b".to_owned()) }
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn without_an_exporter_the_context_passes_unchanged() {
        let span =
            Span::start(SpanKind::Internal, "s", &context("what is this"), || -> [Attribute; 0] {
                panic!("attributes are not evaluated")
            });
        assert_eq!(span.context(), &context("what is this"));
        span.set("key", 1);
        span.fail("kind", "message");
    }

    #[test]
    fn spans_are_nested() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let tracer = provider.tracer("test");
        let start = |name: &'static str, parent: &TraceContext| {
            Span::start_with(
                &tracer,
                SpanKind::Consumer,
                name.into(),
                parent,
                [("key", "value".into())],
            )
        };

        let outer = start("outer", &context(PARENT));
        assert_eq!(outer.context().trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_ne!(outer.context().span_id(), Some("b7ad6b7169203331"));
        assert_eq!(outer.context().state.as_deref(), Some("a=b"));

        let inner = start("inner", outer.context());
        inner.fail("timeout", &"é".repeat(MAX_MESSAGE));
        drop(inner);
        drop(outer);

        drop(start("root", &TraceContext::default()));

        let spans = exporter.get_finished_spans().unwrap();
        let [inner, outer, root] = spans.as_slice() else { panic!("{spans:?}") };

        assert_eq!(outer.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(inner.parent_span_id, outer.span_context.span_id());
        assert!(matches!(inner.status, Status::Error { .. }));
        assert!(inner.attributes.contains(&KeyValue::new("error.type", "timeout")));
        assert_ne!(root.span_context.trace_id(), outer.span_context.trace_id());
    }

    #[test]
    fn the_standard_variables_control_the_export() {
        let check = |set: &[(&str, &str)], expected: Result<bool, &str>| {
            let found = is_export_requested(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            });
            match (&found, expected) {
                (Err(why), Err(word)) => assert!(why.contains(word), "{why}"),
                _ => assert_eq!(found.ok(), expected.ok(), "{set:?}"),
            }
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        check(&[], Ok(false));
        check(&[endpoint], Ok(true));
        check(
            &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")],
            Ok(true),
        );
        check(&[("OTEL_TRACES_EXPORTER", "otlp")], Ok(true));
        check(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], Ok(false));
        check(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], Ok(false));
        check(&[("OTEL_TRACES_EXPORTER", "zipkin")], Err("OTEL_TRACES_EXPORTER=zipkin"));
        check(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Err("4318"));
        check(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], Ok(true));
    }
}
