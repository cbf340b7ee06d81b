//! The payload of an envelope, by the type of its job.

use serde_json::{Map, Value};

use super::fields::{check_range, invalid, read_typed};
use crate::{
    envelope::{JobType, MAX_BATCH_CALLS, MAX_BATCH_PARALLEL, ToolBatch, ToolCall, Work},
    mcp_servers::{self, McpServers},
    outcome::JobError,
    wrapping::kind_of,
};

/// Decodes the work of a job from its type and payload.
pub(super) fn decode_work(job_type: &str, payload: Value) -> Result<Work, JobError> {
    let kind = JobType::from_name(job_type).ok_or_else(|| {
        let known = JobType::ALL.map(JobType::as_str).join(", ");
        invalid(format!("`jobType`: `{job_type}` is unknown; expected one of {known}"))
    })?;

    let payload = match payload {
        Value::String(text) if kind == JobType::ServerInit => parse_configuration(&text)?,
        Value::String(text) => parse_payload(&text)?,
        Value::Null => {
            return Err(invalid(format!("`payload` is missing; a {job_type} job needs one")));
        }
        other => other,
    };

    let Value::Object(mut object) = payload else {
        return Err(invalid(format!(
            "`payload` is a JSON {}; it must be an object",
            kind_of(&payload)
        )));
    };

    match kind {
        JobType::ServerInit => decode_server_init(Value::Object(object)),
        JobType::ToolCall => {
            let arguments = take_arguments(&mut object);
            let call: ToolCall = read_typed(Value::Object(object), "payload")?;
            check_call(&call, "payload")?;
            Ok(Work::ToolCall(restore_arguments(call, arguments)))
        }
        JobType::ToolBatch => {
            let calls = object.get_mut("calls").and_then(Value::as_array_mut).into_iter().flatten();
            let arguments: Vec<_> =
                calls.map(|call| call.as_object_mut().and_then(take_arguments)).collect();
            let mut batch: ToolBatch = read_typed(Value::Object(object), "payload")?;
            check_batch(&batch)?;

            let calls = batch.calls.into_iter().zip(arguments);
            batch.calls =
                calls.map(|(call, arguments)| restore_arguments(call, arguments)).collect();
            Ok(Work::ToolBatch(batch))
        }
    }
}

/// Parses a payload in a string. Some producers encode it twice, so it may be a string inside a
/// string.
fn parse_payload(text: &str) -> Result<Value, JobError> {
    let read = |text: &str| {
        serde_json::from_str(text).map_err(|source| {
            invalid(format!("`payload` is a string that does not contain valid JSON: {source}"))
        })
    };
    match read(text)? {
        Value::String(inner) => read(&inner),
        other => Ok(other),
    }
}

/// Parses a configuration in a string, which may have comments and other deviations from JSON.
fn parse_configuration(text: &str) -> Result<Value, JobError> {
    let read = |text: &str| {
        mcp_servers::text::parse(text.as_bytes())
            .map_err(|error| invalid(format!("`payload`: {error}")))
    };
    match read(text)? {
        Value::String(inner) => read(&inner),
        other => Ok(other),
    }
}

/// Takes the arguments out of a call if they are an object. The typed read reports any other value.
fn take_arguments(call: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    call.get("arguments").filter(|arguments| arguments.is_object())?;
    match call.shift_remove("arguments") {
        Some(Value::Object(arguments)) => Some(arguments),
        _ => None,
    }
}

/// Puts the arguments back into a call.
fn restore_arguments(call: ToolCall, arguments: Option<Map<String, Value>>) -> ToolCall {
    ToolCall { arguments: arguments.unwrap_or(call.arguments), ..call }
}

/// Decodes the payload of a `server-init` job.
fn decode_server_init(payload: Value) -> Result<Work, JobError> {
    let servers =
        McpServers::from_value(&payload).map_err(|error| invalid(format!("`payload`: {error}")))?;

    if servers.servers.is_empty() {
        return Err(invalid("`payload.mcpServers` does not name any server".to_owned()));
    }

    if let Some(error) = servers.first_error_of_all() {
        return Err(invalid(format!("`payload`: {error}")));
    }

    match payload {
        Value::Object(object) => Ok(Work::ServerInit(object)),
        // The caller has checked that the payload is an object.
        _ => Err(invalid("`payload` must be an object".to_owned())),
    }
}

fn check_call(call: &ToolCall, place: &str) -> Result<(), JobError> {
    if call.tool.is_empty() {
        return Err(invalid(format!("`{place}.tool` is empty")));
    }
    if call.server.as_deref() == Some("") {
        return Err(invalid(format!(
            "`{place}.server` is empty; leave it out to call one of mcp-server's own tools"
        )));
    }
    Ok(())
}

fn check_batch(batch: &ToolBatch) -> Result<(), JobError> {
    if !(1..=MAX_BATCH_CALLS).contains(&batch.calls.len()) {
        let n = batch.calls.len();
        return Err(invalid(format!(
            "`payload.calls` has {n} calls; it must have 1 to {MAX_BATCH_CALLS}"
        )));
    }

    check_range(
        "payload.parallel",
        batch.parallel.map(u64::from),
        1,
        u64::from(MAX_BATCH_PARALLEL),
    )?;

    batch
        .calls
        .iter()
        .enumerate()
        .try_for_each(|(index, call)| check_call(call, &format!("payload.calls[{index}]")))
}
