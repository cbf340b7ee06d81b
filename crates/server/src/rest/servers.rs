//! Hosted servers: their state, what policy says of others, and their administration.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use fleet_access::{Action, Arguments, AuditOutcome, Context, Decision, OpenRecord, Resource};
use fleet_hosting::{
    registry::{Shared, presence::ShareError},
    status::ServerStatus,
};
use fleet_job::mcp_servers::{McpServers, ServerEntry};
use fleet_jobs::rest::{
    Answer, Operation, Param, ParamLocation, Problem, ProblemKind, RequestBody, parse_body,
    schema_of,
};
use fleet_ops::{clock, errors::chain};
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
/// The most servers in a check, unless policy lets more be hosted.
const MAX_CHECKED: usize = 100;

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
             policy allows it, or what would have to be allowed. Nothing is started and nothing is connected to. There can \
             be 100 servers, or as many as policy lets be hosted if that is more.",
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

    let record = begin(&asking, &server.name, body.len()).await?;
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
    let record = begin(&asking, &name, 0).await?;
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
    let record = begin(&asking, &name, 0).await?;
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
    let policy = gateway.fleet().policy();
    check_count(config.servers.len(), policy.limits.max_servers)?;

    let record = begin_check(&asking, &config, body.len()).await?;
    let report = ServersReport::examine(&config, &policy).await;
    end(record, true);
    Ok(Json(report).into_response())
}

/// Checks that there are not too many servers to check, for each of which programs, files and host
/// names are looked up.
fn check_count(servers: usize, max_servers: usize) -> Result<(), Problem> {
    let limit = max_servers.max(MAX_CHECKED);
    if servers <= limit {
        return Ok(());
    }
    let detail = format!(
        "there are {servers} servers, but at most {limit} can be checked at once; send several requests"
    );
    Err(Problem::new(ProblemKind::BadServer, detail))
}

/// Decides whether the caller may administer all servers of a configuration, counts the check as one
/// action, and begins its record. The answer tells of programs, files and names that this server can
/// see.
async fn begin_check(
    asking: &Asking,
    config: &McpServers,
    bytes: usize,
) -> Result<OpenRecord, Problem> {
    let decisions = config.servers.keys().map(|name| decide(asking, name));
    let decisions = decisions.collect::<Result<Vec<_>, _>>()?;

    let names: Vec<&str> = config.servers.keys().map(String::as_str).collect();
    let resource = match names[..] {
        [name] => server(name),
        _ => Resource::default(),
    };
    admit(asking, &resource, bytes)?;
    match decisions.first() {
        Some(decision) => begin_record(asking, &resource, decision).await,
        // Nothing is looked up for a configuration without servers.
        None => Ok(OpenRecord::default()),
    }
}

fn shared_of(gateway: &Gateway) -> Result<&Arc<Shared>, Problem> {
    gateway.shared().ok_or_else(|| {
        Problem::new(ProblemKind::Internal, "this server was started without a registry")
    })
}

/// Decides whether the caller may administer a server.
fn decide(asking: &Asking, name: &str) -> Result<Decision, Problem> {
    let (action, resource) = (Action::AdministerServers, server(name));
    asking.asker().check(action, &resource, &Context::default()).map_err(|decision| {
        let detail = decision.message(action.as_str()).unwrap_or_default();
        Problem::denied(decision, detail)
    })
}

/// Decides whether the caller may administer a server, counts that with the bytes of the request, and
/// begins the record of what it does.
async fn begin(asking: &Asking, name: &str, bytes: usize) -> Result<OpenRecord, Problem> {
    let (decision, resource) = (decide(asking, name)?, server(name));
    admit(asking, &resource, bytes)?;
    begin_record(asking, &resource, &decision).await
}

/// Counts an action of administration towards the caller's limits.
fn admit(asking: &Asking, resource: &Resource<'_>, bytes: usize) -> Result<(), Problem> {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let (action, now) = (Action::AdministerServers, clock::monotonic());
    let admitted = asking.asker().admit(action, resource, bytes, now);
    // Only calls of tools last long enough to hold slots.
    admitted.map(drop).map_err(|reached| Problem::limited(&reached))
}

async fn begin_record(
    asking: &Asking,
    resource: &Resource<'_>,
    decision: &Decision,
) -> Result<OpenRecord, Problem> {
    let action = Action::AdministerServers;
    let begun = asking.asker().begin_record(action, resource, decision, Arguments::None).await;
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

#[cfg(test)]
mod tests {
    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal};

    use super::*;

    const LIMIT: &str = "
        [[limit]]
        name = 'few'
        per = 'principal'
        actions = ['servers.administer']
        servers = ['db']
        rate = '1/min'
    ";

    fn asking() -> Asking {
        let rights = AccessPolicy::parse(LIMIT, None).unwrap().into_rights();
        let principal = Arc::new(Principal::local());
        Asking::by_rest(Asker::new(principal, CurrentRights::new(rights)))
    }

    fn status(problem: Problem) -> u16 {
        problem.into_response().status().as_u16()
    }

    #[tokio::test]
    async fn a_limit_counts_the_administration_of_the_servers_that_it_names() {
        let asking = asking();
        assert!(begin(&asking, "db", 0).await.is_ok());
        assert_eq!(begin(&asking, "db", 0).await.err().map(status), Some(429));
        assert!(begin(&asking, "files", 0).await.is_ok());

        let config = json!({"mcpServers": {"db": {"command": "db"}}});
        let config = McpServers::from_value(&config).unwrap();
        assert_eq!(begin_check(&asking, &config, 0).await.err().map(status), Some(429));
    }

    #[test]
    fn the_number_of_servers_in_a_check_is_bounded() {
        assert!(check_count(100, 32).is_ok() && check_count(200, 200).is_ok());
        assert_eq!(check_count(101, 32).err().map(status), Some(422));
    }
}
