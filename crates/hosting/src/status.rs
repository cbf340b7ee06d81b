//! The status of hosted servers, for tools and lists.

use std::time::Instant;

use fleet_oauth::TokenStanding;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    breaker::BreakerStanding,
    hosted::{Hosted, Phase, State},
    launch::LaunchSpec,
    listed::HiddenTool,
    routes::Routes,
    upstream::SHOWN_STDERR,
};

/// The status of a hosted server.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// The server's name.
    pub name: String,
    /// `starting`, `running`, `failed` (it does not run, or calls do not reach it), `idle` (the
    /// next call starts it) or `refused` (policy does not allow it).
    pub state: String,
    /// `stdio`, `http` or `sse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// What the server says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// The MCP revision of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// The process id of a child process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How long the server has been running, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// The number of offered tools.
    pub tool_count: usize,
    /// The offered tools.
    pub tools: Vec<OfferedTool>,
    /// The listed tools, prompts and resources that can't be offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden_tools: Vec<HiddenTool>,
    /// The number of offered prompts.
    pub prompt_count: usize,
    /// The number of offered resources and resource templates.
    pub resource_count: usize,
    /// How often the server was restarted.
    pub restarts: u32,
    /// The number of running calls.
    pub calls_in_flight: usize,
    /// The number of calls that wait because too many are running.
    pub calls_waiting: usize,
    /// Whether calls are let through.
    pub breaker: BreakerStatus,
    /// The access token of a remote for which the policy's `oauth` gets any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<AccessTokenStatus>,
    /// A change that the shared registry has not accepted yet; absent if other replicas can know
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingStatus>,
    /// The restrictions on a child process that the kernel does not enforce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_enforced: Vec<&'static str>,
    /// The last problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The end of a child process's standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
}

/// A write that the shared registry has not accepted yet. It is repeated until it succeeds.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharingStatus {
    /// `unwritten`: only this replica hosts the server; `removal-unwritten`: the server is still to
    /// be removed.
    pub state: &'static str,
    /// How long the write has been pending, in milliseconds.
    pub age_ms: u64,
    /// How often the write has failed.
    pub failures: u32,
    /// The last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What is known of the access token of a remote. The token itself is never shown.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessTokenStatus {
    /// `none` (it was not needed yet), `valid` or `failed` (the authorization server gives none).
    pub state: &'static str,
    /// How long it is valid, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl AccessTokenStatus {
    fn of(spec: &LaunchSpec) -> Option<Self> {
        let standing = spec.remote()?.headers.tokens()?.standing();
        let (state, expires_in_ms, last_error) = match standing {
            TokenStanding::None => ("none", None, None),
            TokenStanding::Valid(left) => {
                let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                ("valid", Some(left), None)
            }
            TokenStanding::Failed(reason) => ("failed", None, Some(reason.to_string())),
        };
        Some(Self { state, expires_in_ms, last_error })
    }
}

/// Whether calls are let through to a server.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BreakerStatus {
    /// `closed` (calls are let through), `open` (they fail at once) or `probing` (the next call
    /// tests the server).
    pub state: &'static str,
    /// The number of lost calls in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// How long the breaker stays open, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The error of the last lost call.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_failure: String,
}

impl BreakerStatus {
    fn of(hosted: &Hosted, now: Instant) -> Self {
        let (standing, last_failure) = hosted.calls.standing(now);
        let (state, failures, wait) = match standing {
            BreakerStanding::Closed(failures) => ("closed", Some(failures), None),
            BreakerStanding::Open(wait) => ("open", None, Some(wait)),
            BreakerStanding::Probing => ("probing", None, None),
        };
        let retry_after_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Self { state, failures, retry_after_ms, last_failure }
    }

    fn is_closed(&self) -> bool {
        self.state == "closed"
    }
}

/// What a server says about itself.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ServerInfo {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The title for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// An offered tool.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedTool {
    /// The tool's name at its server.
    pub name: String,
    /// The tool's name here.
    pub exposed_as: String,
    /// What the tool does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A server that a list of tools warns about.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unavailable {
    /// The server's name.
    pub server: String,
    /// `starting`, `running` (if some tools can't be offered, or calls are not answered), `failed`
    /// or `refused`.
    pub state: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The tools that can't be offered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden_tools: Vec<HiddenTool>,
}

impl ServerStatus {
    /// Leaves out what tells how the server works: its process, its errors, and what it has that
    /// can't be offered.
    pub fn hide_diagnostics(&mut self) {
        self.pid = None;
        self.hidden_tools = Vec::new();
        self.access_token = None;
        self.sharing = None;
        self.not_enforced = Vec::new();
        self.last_error = None;
        self.stderr_tail = None;
        self.breaker.last_failure = String::new();
    }

    /// The status of a server that should be hosted but is refused.
    pub(crate) fn refused(name: &str, problem: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: "refused".to_owned(),
            transport: None,
            server_info: None,
            protocol_version: None,
            pid: None,
            uptime_ms: None,
            tool_count: 0,
            tools: Vec::new(),
            hidden_tools: Vec::new(),
            prompt_count: 0,
            resource_count: 0,
            restarts: 0,
            calls_in_flight: 0,
            calls_waiting: 0,
            breaker: BreakerStatus {
                state: "closed",
                failures: None,
                retry_after_ms: None,
                last_failure: String::new(),
            },
            access_token: None,
            sharing: None,
            not_enforced: Vec::new(),
            last_error: Some(problem.to_owned()),
            stderr_tail: None,
        }
    }

    pub(super) fn of(hosted: &Hosted, routes: &Routes, now: Instant) -> Self {
        let state = hosted.state();
        let tools: Vec<OfferedTool> = routes
            .tools_of(&hosted.name)
            .map(|route| OfferedTool {
                name: route.name.clone(),
                exposed_as: route.listed.name.to_string(),
                description: route.listed.description.as_ref().map(ToString::to_string),
            })
            .collect();

        let running = match &state.phase {
            Phase::Running(upstream) => Some(upstream),
            Phase::Starting | Phase::Failed | Phase::Idle | Phase::Refused => None,
        };
        let trouble = hosted.calls.trouble();
        let child = running.and_then(|upstream| upstream.child.as_ref());
        let info = running.and_then(|upstream| upstream.info.server_info.as_ref());
        let millis = |since: Instant| {
            u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        Self {
            name: hosted.name.clone(),
            state: state_name(&state.phase, trouble.is_some()).to_owned(),
            transport: state.launch.as_ref().map(|launch| {
                let is_sse = running.is_some_and(|upstream| upstream.is_sse);
                transport_name(&launch.spec, is_sse).to_owned()
            }),
            server_info: info.map(|info| ServerInfo {
                name: info.name.clone(),
                version: info.version.clone(),
                title: info.title.clone(),
            }),
            protocol_version: running.map(|upstream| upstream.info.protocol_version.to_string()),
            pid: child.map(|child| child.pid),
            uptime_ms: running.map(|upstream| millis(upstream.since)),
            tool_count: tools.len(),
            tools,
            hidden_tools: hidden_tools(hosted, &state, routes),
            prompt_count: state.catalog.prompts.len(),
            resource_count: state.catalog.resources.len() + state.catalog.templates.len(),
            restarts: state.restarts,
            calls_in_flight: hosted.calls.in_flight(),
            calls_waiting: hosted.calls.waiting(),
            breaker: BreakerStatus::of(hosted, now),
            access_token: state
                .launch
                .as_ref()
                .and_then(|launch| AccessTokenStatus::of(&launch.spec)),
            sharing: None,
            not_enforced: child.map(|child| child.gaps.clone()).unwrap_or_default(),
            last_error: trouble.or_else(|| state.last_error.clone()),
            stderr_tail: child
                .map(|child| child.stderr.text(SHOWN_STDERR))
                .or_else(|| state.attempt.as_ref()?.stderr(SHOWN_STDERR))
                .or_else(|| state.stderr.clone())
                .filter(|tail| !tail.is_empty()),
        }
    }
}

impl Unavailable {
    /// Returns the warning for a server, if there is anything to warn about.
    pub(super) fn of(hosted: &Hosted, routes: &Routes) -> Option<Self> {
        let state = hosted.state();
        let hidden_tools = hidden_tools(hosted, &state, routes);
        let breaker = BreakerStatus::of(hosted, Instant::now());

        let runs = matches!(state.phase, Phase::Running(_) | Phase::Idle);
        let trouble = hosted.calls.trouble().is_some();
        let unanswered = !breaker.is_closed() || trouble;
        let healthy = runs && hidden_tools.is_empty() && !unanswered;
        let lost = || format!("calls are not answered: {}", breaker.last_failure);
        let reason = if runs && unanswered { Some(lost()) } else { state.last_error.clone() };
        let (server, state) = (hosted.name.clone(), state_name(&state.phase, trouble));
        (!healthy).then_some(Self { server, state, reason, hidden_tools })
    }
}

/// Returns the hidden tools of a server. Their names come from the server and may contain values of
/// variables, like everything that it sends.
fn hidden_tools(hosted: &Hosted, state: &State, routes: &Routes) -> Vec<HiddenTool> {
    let secrets = state.secrets();
    let hide = |text: &str| secrets.hide(text).into_owned();
    let hidden = routes.hidden(&hosted.name).iter();
    hidden.map(|tool| HiddenTool { name: hide(&tool.name), reason: hide(&tool.reason) }).collect()
}

/// Returns the state as people see it: a server that no call reaches has failed, whatever the state
/// of its connection.
fn state_name(phase: &Phase, in_trouble: bool) -> &'static str {
    match phase {
        Phase::Running(_) if in_trouble => "failed",
        phase => phase.name(),
    }
}

/// Returns how a server is reached. If the configuration does not say, that is known once the
/// server runs.
fn transport_name(spec: &LaunchSpec, is_sse: bool) -> &'static str {
    match spec {
        LaunchSpec::Child(_) => "stdio",
        LaunchSpec::Url(_) if is_sse => "sse",
        LaunchSpec::Url(_) => "http",
        LaunchSpec::Remote(_) => "http",
        LaunchSpec::Sse(_) => "sse",
    }
}
