//! Forwards requests to hosted servers, with their progress, cancellation and `_meta`. The results
//! are read by `results`.

use std::{sync::Arc, time::Duration};

use fleet_policy::limits::CallLimits;
use rmcp::{
    RoleServer,
    model::{
        CancelledNotificationParam, ClientCapabilities, ClientRequest, ErrorData,
        ProgressNotificationParam, ProgressToken, RequestMetaObject, ServerResult,
        TASKS_EXTENSION_ID,
    },
    service::{PeerRequestOptions, RequestContext, ServiceError},
};
use serde_json::Value;

use crate::{
    Fleet, apps,
    follow::is_modern,
    handshake_error::{describe_service_error, http_failure, outage_of},
    outage::{Outage, OutageReason},
    remote::exchange::HttpFailure,
    unreadable::is_unreadable,
    upstream::Upstream,
};

mod errors;
mod results;

use errors::{
    LOST, TIMED_OUT, UNREADABLE, cancelled_error, hosted_error, outage_error, turned_away_error,
    unreadable_error,
};
pub use errors::{
    is_lost, server_down_error, server_outage_error, server_unavailable_error, tool_down_error,
    tool_withheld_error, unknown_server_error,
};
pub use results::{
    read_completions, read_custom_result, read_directory, read_prompt_result, read_resource_result,
    read_skill, read_skills, read_tool_result,
};

/// Keys of `_meta` that concern only the connection between caller and gateway.
const HOP_KEYS: [&str; 6] = [
    // Who has submitted the job is for our server alone.
    fleet_job::meta::SIGNED_JOB,
    "progressToken",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/logLevel",
];

/// Forwards a request to a hosted server. Names and URIs in it must be the server's own.
///
/// # Errors
///
/// Returns the server's own JSON-RPC errors unchanged, and `-32603` with `data.reason` if the
/// server can't be reached.
pub async fn forward(
    fleet: &Arc<Fleet>,
    server: &str,
    request: ClientRequest,
    context: &RequestContext<RoleServer>,
) -> Result<ServerResult, ErrorData> {
    // Calls have the limits of their tool, other requests those of the server.
    let (tool, limits) = match &request {
        ClientRequest::CallToolRequest(call) => {
            let tool = call.params.name.to_string();
            let limits = fleet.policy().limits.of_call(server, &tool);
            (tool, limits)
        }
        other => {
            let server = fleet.policy().limits.of_server(server);
            (other.method().to_owned(), CallLimits { server, tool_concurrency: None })
        }
    };

    let Some(calls) = fleet.calls(server) else {
        // The fleet knows why there is no such server.
        return Err(fleet
            .ensure_running(server)
            .await
            .err()
            .map_or_else(|| cancelled_error(server), |error| server_down_error(&error)));
    };

    let begun = tokio::select! {
        begun = calls.begin(&tool, &limits) => begun,
        () = context.ct.cancelled() => return Err(cancelled_error(server)),
    };
    let ticket = begun.map_err(|error| turned_away_error(server, &error))?;
    let upstream = fleet.ensure_running(server).await.map_err(|error| server_down_error(&error))?;
    // The server may have changed the tool while it was down.
    if matches!(request, ClientRequest::CallToolRequest(_))
        && let Some(withheld) = fleet.routes().withheld_at(server, &tool)
    {
        return Err(tool_withheld_error(withheld));
    }

    let sent = match wait_for_token(fleet, server, context).await {
        Ok(()) => {
            send_request(server, &upstream, request, context, limits.server.call_timeout).await
        }
        Err(failure) => Err(failure),
    };
    match sent {
        Ok(result) => {
            ticket.record_answer();
            Ok(result)
        }
        Err(Failure { mut error, sign }) => {
            if !matches!(sign, Sign::Answer) || is_unreadable(&error) {
                error = hide_values(fleet, server, error);
            }

            match sign {
                Sign::Answer => ticket.record_answer(),
                Sign::Lost => ticket.record_loss(&error.message),
                Sign::NotTaken(outage) if outage.reason == OutageReason::Busy => {
                    ticket.record_answer()
                }
                Sign::NotTaken(outage) => ticket.record_outage(outage.reason, &error.message),
                Sign::Timeout { has_progressed } => {
                    ticket.record_timeout(has_progressed, &error.message)
                }
                Sign::None => drop(ticket),
            }

            if let Sign::NotTaken(outage) = sign {
                let retry_after = outage.retry_after.unwrap_or_else(|| calls.retry_after());
                error =
                    outage_error(server, outage.reason, error.message.into_owned(), retry_after);
            }
            Err(error)
        }
    }
}

/// Replaces values of the server's configuration with their names. For our own errors, which may
/// quote what the server sent.
pub fn hide_values(fleet: &Fleet, server: &str, error: ErrorData) -> ErrorData {
    let message = fleet.secrets(server).hide_in_message(&error.message);
    ErrorData { message: message.into(), ..error }
}

/// A call without a result.
struct Failure {
    error: ErrorData,
    sign: Sign,
}

/// What a failure says about the server.
#[derive(Clone, Copy)]
enum Sign {
    /// The server answered, even if with an error.
    Answer,
    /// The connection was lost, perhaps during the call.
    Lost,
    /// The server did not take the call, so the call has not run.
    NotTaken(Outage),
    /// The server did not answer in time. It may have reported progress before.
    Timeout { has_progressed: bool },
    /// Nothing.
    None,
}

/// Waits until there is an access token, if the server needs one. The time that a call may take is
/// the server's alone.
async fn wait_for_token(
    fleet: &Fleet,
    server: &str,
    context: &RequestContext<RoleServer>,
) -> Result<(), Failure> {
    tokio::select! {
        token = fleet.wait_for_token(server) => token.map_err(|error| Failure {
            error: hosted_error(server, LOST, &error.to_string(), None),
            sign: Sign::NotTaken(Outage::UNAUTHORIZED),
        }),
        () = context.ct.cancelled() => {
            Err(Failure { error: cancelled_error(server), sign: Sign::None })
        }
    }
}

/// Sends a request and waits for the answer. Passes progress and cancellation on.
async fn send_request(
    server: &str,
    upstream: &Upstream,
    request: ClientRequest,
    context: &RequestContext<RoleServer>,
    limit: Duration,
) -> Result<ServerResult, Failure> {
    let options = PeerRequestOptions::with_timeout(limit)
        .with_meta(forwarded_meta(server, context, upstream));
    let sent = upstream.peer.send_request_with_option(request, options).await;
    let handle = sent.map_err(|error| to_failure(server, upstream, error, false))?;

    let id = handle.id.clone();
    let wanted = context.meta.get_progress_token();
    let mut progress =
        wanted.map(|wanted| (wanted, upstream.progress.register(handle.progress_token.clone())));

    let mut response = std::pin::pin!(handle.await_response());
    let mut has_progressed = false;
    let result = loop {
        let next = async {
            match &mut progress {
                Some((token, stream)) => (token.clone(), stream.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = &mut response => break result,
            (token, Some(notification)) = next => {
                has_progressed = true;
                send_progress(context, token, notification).await;
            }
            () = context.ct.cancelled() => {
                let reason = Some("the caller cancelled the call".to_owned());
                let notification = CancelledNotificationParam::new(Some(id), reason);
                // If the connection is lost, there is nothing to cancel.
                _ = upstream.peer.notify_cancelled(notification).await;
                return Err(Failure { error: cancelled_error(server), sign: Sign::None });
            }
        }
    };

    // Pass on the progress that came before the result.
    if let Some((token, stream)) = &mut progress {
        while let Some(notification) = stream.try_next() {
            send_progress(context, token.clone(), notification).await;
        }
    }
    result.map_err(|error| to_failure(server, upstream, error, has_progressed))
}

/// Returns the `_meta` for a hosted server. A server of a newer revision gets the caller's
/// capabilities with every request: all of them if the caller sent them with the request, and only
/// its extensions if the caller declared them for a session.
fn forwarded_meta(
    server: &str,
    context: &RequestContext<RoleServer>,
    upstream: &Upstream,
) -> RequestMetaObject {
    let mut meta = context.meta.clone();
    for key in HOP_KEYS {
        meta.shift_remove(key);
    }
    apps::restore_in_object(server, &mut meta);

    if is_modern(&upstream.info) {
        let of_session = || {
            let declared = context.client_capabilities()?;
            let mut capabilities = ClientCapabilities::default();
            capabilities.extensions = declared.extensions;
            capabilities.experimental = declared.experimental;
            Some(capabilities)
        };
        if let Some(capabilities) = context.meta.client_capabilities().or_else(of_session) {
            meta.set_client_capabilities(without_tasks(capabilities));
        }
    }
    meta
}

/// Leaves out tasks, which the front end provides itself: a caller could neither query nor cancel
/// the task of a hosted server, and would not be notified of its states.
fn without_tasks(mut capabilities: ClientCapabilities) -> ClientCapabilities {
    if let Some(extensions) = &mut capabilities.extensions {
        extensions.remove(TASKS_EXTENSION_ID);
    }
    capabilities
}

async fn send_progress(
    context: &RequestContext<RoleServer>,
    token: ProgressToken,
    mut notification: ProgressNotificationParam,
) {
    notification.progress_token = token;
    // A caller that no longer listens loses nothing but progress.
    _ = context.peer.notify_progress(notification).await;
}

fn to_failure(
    server: &str,
    upstream: &Upstream,
    error: ServiceError,
    has_progressed: bool,
) -> Failure {
    let sign = sign_of(&error, has_progressed);
    if let Some(why) = unread_answer(&error) {
        return Failure { error: unreadable_error(server, &why), sign };
    }

    let error = match error {
        ServiceError::McpError(error) if is_unreadable(&error) => {
            hosted_error(server, UNREADABLE, &error.message, None)
        }
        ServiceError::McpError(error) => name_own_server(server, error),
        ServiceError::Timeout { timeout } => hosted_error(
            server,
            TIMED_OUT,
            &format!("no answer within {} ms", timeout.as_millis()),
            None,
        ),
        error => {
            let text = describe_service_error(&error);
            let stderr = upstream.child.as_ref().map(|child| child.stderr.text(1024));
            hosted_error(server, LOST, &text, stderr.filter(|tail| !tail.is_empty()))
        }
    };
    Failure { error, sign }
}

/// Returns what is wrong with an unreadable answer that was not passed to rmcp.
fn unread_answer(error: &ServiceError) -> Option<String> {
    match error {
        ServiceError::TransportSend(error) => http_failure(error)?.unreadable(),
        _ => None,
    }
}

/// Makes a server's own error name that server. Jobs wait for the server that an error names, so a
/// server must not name another one. Nor may it ask for approval in the name of our rules.
fn name_own_server(server: &str, mut error: ErrorData) -> ErrorData {
    if let Some(Value::Object(data)) = &mut error.data
        && let Some(reason) = data.get("reason")
    {
        if reason == "approval-required" {
            for member in ["reason", "code", "rule", "approvalTtlMs"] {
                data.shift_remove(member);
            }
        }
        data.insert("server".to_owned(), server.into());
    }
    error
}

fn sign_of(error: &ServiceError, has_progressed: bool) -> Sign {
    match error {
        ServiceError::Timeout { .. } => Sign::Timeout { has_progressed },
        ServiceError::TransportSend(error) => match (outage_of(error), http_failure(error)) {
            (Some(outage), _) => Sign::NotTaken(outage),
            // Something answered over HTTP. The status tells whether the server behind it did.
            (None, Some(failure @ HttpFailure::Rejected(_))) => match failure.status() {
                Some(502..=504) => Sign::Lost,
                _ => Sign::Answer,
            },
            (None, Some(failure)) if failure.unreadable().is_some() => Sign::Answer,
            (None, _) => Sign::Lost,
        },
        ServiceError::TransportClosed | ServiceError::Cancelled { .. } => Sign::Lost,
        _ => Sign::Answer,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hosted_server_is_not_told_that_its_caller_knows_tasks() {
        let declared =
            json!({"elicitation": {}, "extensions": {TASKS_EXTENSION_ID: {}, "a/b": {}}});
        let capabilities: ClientCapabilities = serde_json::from_value(declared).unwrap();
        assert!(capabilities.supports_tasks());
        let forwarded = without_tasks(capabilities);
        assert_eq!(json!(forwarded), json!({"elicitation": {}, "extensions": {"a/b": {}}}));
    }
}
