//! Hosted servers: their state, what policy says of others, and their administration.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use fleet_access::{Action, Arguments, AuditOutcome, Context, OpenRecord, Resource};
use fleet_hosting::{
    registry::{Shared, presence::ShareError},
    status::ServerStatus,
};
use fleet_job::mcp_servers::{McpServers, ServerEntry};
use fleet_jobs::rest::{
    Answer, Operation, Param, ParamLocation, Problem, ProblemKind, RequestBody, parse_body,
    schema_of,
};
use fleet_ops::errors::chain;
use http::{HeaderMap, Method};
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Caller;
use crate::{
    check::ServersReport,
    gateway::{Asking, Gateway},
    tools::servers::statuses_for,
};

/// The longest part of a name that an error repeats, in characters.
const SHOWN_NAME: usize = 64;

/// The servers that the caller may know of.
#[derive(Debug, Serialize, JsonSchema)]
struct ServerList {
    /// One entry per server, with those that are refused. Only who administers a server sees its
    /// errors and the end of its standard error.
    servers: Vec<ServerStatus>,
}

/// A server to host.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewServer {
    /// The name of the server: letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 40))]
    name: String,
    /// How to start or reach the server, as in an `mcpServers` object.
    #[schemars(with = "ServerEntry")]
    config: Value,
}

/// A removal.
#[derive(Debug, Serialize, JsonSchema)]
struct Removal {
    /// The name of the server.
    name: String,
    /// Whether a server of this name was hosted.
    removed: bool,
}

const NAME: Param = Param {
    name: "id",
    location: ParamLocation::Path,
    many: false,
    required: true,
    description: "The name of the server.",
    schema: |_| json_schema!({"type": "string", "minLength": 1}),
    example: "files",
};
const CHANGES: &[ProblemKind] = &[
    ProblemKind::ApprovalRequired,
    ProblemKind::NoSuchServer,
    ProblemKind::UnsupportedMediaType,
    ProblemKind::BadServer,
    ProblemKind::Internal,
    ProblemKind::ServerUnavailable,
    ProblemKind::AuditUnavailable,
];

pub(super) fn operations(gateway: &Gateway) -> Vec<Operation> {
    let administer = Action::AdministerServers;
    let state = || gateway.clone();
    let status = |description| Answer::json::<ServerStatus>(200, description, example());
    vec![
        Operation::with_state(
            (Method::GET, "/servers"),
            "listServers",
            Action::ListTools,
            list_servers,
            state(),
        )
        .described(
            "List hosted servers",
            "The hosted servers that the caller may use or administer, and those that should be hosted but are refused, with \
             the reason.",
        )
        .answering(
            Answer::json::<ServerList>(200, "The servers.", json!({"servers": [example()]})),
            &[ProblemKind::Internal],
        ),
        Operation::with_state(
            (Method::GET, "/servers/{id}"),
            "getServer",
            Action::ListTools,
            show_server,
            state(),
        )
        .described("Get a hosted server", "The state of a hosted server at this replica.")
        .with_params(&[NAME])
        .answering(status("The server."), &[ProblemKind::NoSuchServer, ProblemKind::Internal]),
        Operation::with_state(
            (Method::POST, "/servers"),
            "hostServer",
            administer,
            host_server,
            state(),
        )
        .described(
            "Host a server",
            "Starts or connects to an MCP server, on all replicas, as `server_initialize` does. The answer comes once the \
             server has completed its handshake.",
        )
        .with_body(RequestBody {
            schema: schema_of::<NewServer>,
            examples: vec![(
                "a program",
                json!({"name": "files", "config": {"command": "files-server", "args": ["."]}}),
            )],
            is_required: true,
        })
        .answering(status("The server is hosted."), CHANGES),
        Operation::with_state(
            (Method::DELETE, "/servers/{id}"),
            "removeServer",
            administer,
            remove_server,
            state(),
        )
        .described(
            "Remove a hosted server",
            "Stops a hosted server with all its processes, on all replicas, and removes its tools.",
        )
        .with_params(&[NAME])
        .answering(
            Answer::json::<Removal>(
                200,
                "The server is not hosted any more.",
                json!({"name": "files", "removed": true}),
            ),
            CHANGES,
        ),
        Operation::with_state(
            (Method::POST, "/servers/{id}/restarts"),
            "restartServer",
            administer,
            restart_server,
            state(),
        )
        .described(
            "Restart a hosted server",
            "Starts a hosted server again from its configuration, at this replica. What ran before is stopped once the new \
             one has completed its handshake.",
        )
        .with_params(&[NAME])
        .answering(status("The server runs again."), CHANGES),
        Operation::with_state(
            (Method::POST, "/server-checks"),
            "checkServers",
            administer,
            check_servers,
            state(),
        )
        .described(
            "Check whether servers may be hosted",
            "Says for each server of an `mcpServers` configuration what would happen if it were hosted, which line of the \
             policy allows it, or what would have to be allowed. Nothing is started and nothing is connected to.",
        )
        .with_body(RequestBody {
            schema: |_| json_schema!({"type": "object"}),
            examples: vec![(
                "as in an editor",
                json!({"mcpServers": {"files": {"command": "files-server", "args": ["."]}}}),
            )],
            is_required: true,
        })
        .answering(Answer::json::<ServersReport>(200, "What would happen.", check_example()), CHANGES),
    ]
}

fn example() -> Value {
    json!({
        "name": "files", "state": "running", "transport": "stdio", "protocolVersion": "2025-11-25",
        "uptimeMs": 61_000, "toolCount": 1,
        "tools": [{"name": "file_digest", "exposedAs": "files__file_digest"}], "promptCount": 0,
        "resourceCount": 0, "restarts": 0, "callsInFlight": 0, "callsWaiting": 0,
        "breaker": {"state": "closed", "failures": 0},
    })
}

fn check_example() -> Value {
    json!({"servers": [{
        "name": "files", "verdict": "refused",
        "reason": "policy does not allow the command `files-server .` [FLEET-POLICY-COMMAND]",
        "limits": {
            "handshake_timeout_ms": 30_000, "call_timeout_ms": 60_000, "max_concurrency": null,
            "idle_timeout_ms": null, "max_memory_mb": null, "max_cpu_seconds": null,
            "max_open_files": null,
        },
    }]})
}

/// The servers that somebody may know of.
fn visible_servers(gateway: &Gateway, asking: &Asking) -> Vec<ServerStatus> {
    let statuses = match gateway.shared() {
        Some(shared) => shared.statuses(),
        None => gateway.fleet().statuses(),
    };
    statuses_for(asking, gateway.fleet(), statuses)
}

/// `GET /servers`.
async fn list_servers(State(gateway): State<Gateway>, Caller(asking): Caller) -> Response {
    Json(ServerList { servers: visible_servers(&gateway, &asking) }).into_response()
}

/// `GET /servers/{id}`.
async fn show_server(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let mut servers = visible_servers(&gateway, &asking).into_iter();
    let server = servers.find(|server| server.name == name).ok_or_else(|| unknown(&name))?;
    Ok(Json(server).into_response())
}

/// `POST /servers`.
async fn host_server(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let server: NewServer = parse_body(&headers, &body, ("the server", ProblemKind::BadServer))?;
    let entry = ServerEntry::from_value(&server.config, "config")
        .map_err(|error| Problem::new(ProblemKind::BadServer, error.to_string()))?;
    let shared = shared_of(&gateway)?;

    let record = begin(&asking, &server.name).await?;
    let hosted = shared.initialize(&server.name, &entry).await;
    end(record, hosted.is_ok());
    let status = hosted.map_err(|error| failed(&server.name, &error))?;
    Ok(Json(status).into_response())
}

/// `DELETE /servers/{id}`.
async fn remove_server(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let shared = shared_of(&gateway)?;
    let record = begin(&asking, &name).await?;
    let removed = shared.remove(&name).await;
    end(record, removed.is_ok());
    let removed = removed.map_err(|error| failed(&name, &error))?;
    Ok(Json(Removal { name, removed }).into_response())
}

/// `POST /servers/{id}/restarts`.
async fn restart_server(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let record = begin(&asking, &name).await?;
    let restarted = gateway.fleet().restart(&name).await;
    end(record, matches!(restarted, Ok(Some(_))));
    match restarted {
        Ok(Some(status)) => Ok(Json(status).into_response()),
        Ok(None) => Err(unknown(&name)),
        Err(error) => Err(failed(&name, &ShareError::Init(error))),
    }
}

/// `POST /server-checks`.
async fn check_servers(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let kind = ("the configuration", ProblemKind::BadServer);
    let config: Value = parse_body(&headers, &body, kind)?;
    let config = McpServers::from_value(&config)
        .map_err(|error| Problem::new(ProblemKind::BadServer, error.to_string()))?;
    // The answer tells of programs, files and names that this server can see.
    for name in config.servers.keys() {
        decide(&asking, name)?;
    }
    let report = ServersReport::examine(&config, &gateway.fleet().policy()).await;
    Ok(Json(report).into_response())
}

fn shared_of(gateway: &Gateway) -> Result<&Arc<Shared>, Problem> {
    gateway.shared().ok_or_else(|| {
        Problem::new(ProblemKind::Internal, "this server was started without a registry")
    })
}

/// Decides whether the caller may administer a server.
fn decide(asking: &Asking, name: &str) -> Result<fleet_access::Decision, Problem> {
    let (action, resource) = (Action::AdministerServers, server(name));
    asking.asker().check(action, &resource, &Context::default()).map_err(|decision| {
        let detail = decision.message(action.as_str()).unwrap_or_default();
        Problem::denied(decision, detail)
    })
}

/// Decides whether the caller may administer a server, and begins the record of what it does.
async fn begin(asking: &Asking, name: &str) -> Result<OpenRecord, Problem> {
    let decision = decide(asking, name)?;
    let (action, resource) = (Action::AdministerServers, server(name));
    let begun = asking.asker().begin_record(action, &resource, &decision, Arguments::None).await;
    begun.map_err(|gap| Problem::new(ProblemKind::AuditUnavailable, gap.to_string()))
}

fn end(record: OpenRecord, is_done: bool) {
    record.end(if is_done { AuditOutcome::Succeeded } else { AuditOutcome::Failed }, None);
}

fn server(name: &str) -> Resource<'_> {
    Resource { server: Some(name), ..Resource::default() }
}

fn unknown(name: &str) -> Problem {
    let name: String = name.chars().take(SHOWN_NAME).collect();
    let detail = format!("no server `{name}` is hosted, or the caller may not know of it");
    Problem::new(ProblemKind::NoSuchServer, detail)
}

/// The problem of a change that has failed. The message has the end of standard error, which the
/// caller may see: it administers the server.
fn failed(name: &str, error: &ShareError) -> Problem {
    let kind =
        if error.is_permanent() { ProblemKind::BadServer } else { ProblemKind::ServerUnavailable };
    let name: String = name.chars().take(SHOWN_NAME).collect();
    Problem::new(kind, format!("server `{name}`: {}", chain(error)))
}
