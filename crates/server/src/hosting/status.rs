//! How hosted servers are, in a form for tools and lists.

use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    hosted::{Hosted, Phase},
    launch::LaunchSpec,
    routes::{HiddenTool, Routes},
    upstream::SHOWN_STDERR,
};

/// How one hosted server is.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// `starting`, `running`, `failed`, `idle` (the next call starts it) or `refused` (by the policy).
    pub state: String,
    /// `stdio` or `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// What it says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// The revision of MCP that is spoken with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// Its process, for child processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// For how long it has been running, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// How many tools of it are offered.
    pub tool_count: usize,
    /// Its tools.
    pub tools: Vec<OfferedTool>,
    /// Its tools that can't be offered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden_tools: Vec<HiddenTool>,
    /// How often it was started again.
    pub restarts: u32,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The end of its standard error, for child processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
}

/// What a server says about itself.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ServerInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its title for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// A tool that is offered.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedTool {
    /// Its name at its server.
    pub name: String,
    /// The name to call it by here.
    pub exposed_as: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A server that a list of tools warns of.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unavailable {
    /// Its name.
    pub server: String,
    /// `starting`, `running` (where only some tools can't be offered), `failed` or `refused`.
    pub state: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its tools that can't be offered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden_tools: Vec<HiddenTool>,
}

impl ServerStatus {
    pub(super) fn of(hosted: &Hosted, routes: &Routes, now: Instant) -> Self {
        let state = hosted.state();
        let tools: Vec<OfferedTool> = routes
            .of(&hosted.name)
            .map(|route| OfferedTool {
                name: route.tool.to_string(),
                exposed_as: route.listed.name.to_string(),
                description: route.listed.description.as_ref().map(ToString::to_string),
            })
            .collect();
        let running = match &state.phase {
            Phase::Running(upstream) => Some(upstream),
            Phase::Starting | Phase::Failed | Phase::Idle | Phase::Refused => None,
        };
        let child = running.and_then(|upstream| upstream.child.as_ref());
        let info = running.and_then(|upstream| upstream.info.server_info.as_ref());
        let millis =
            |since: Instant| u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX);
        Self {
            name: hosted.name.clone(),
            state: state.phase.name().to_owned(),
            transport: state.launch.as_ref().map(|launch| transport(&launch.spec).to_owned()),
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
            hidden_tools: routes.hidden(&hosted.name).to_vec(),
            restarts: state.restarts,
            last_error: state.last_error.clone(),
            stderr_tail: child
                .map(|child| child.stderr.text(SHOWN_STDERR))
                .or_else(|| state.stderr.clone())
                .filter(|tail| !tail.is_empty()),
        }
    }
}

impl Unavailable {
    /// The warning for a server, where there is something to warn of.
    pub(super) fn of(hosted: &Hosted, routes: &Routes) -> Option<Self> {
        let state = hosted.state();
        let hidden_tools = routes.hidden(&hosted.name).to_vec();
        let healthy = matches!(state.phase, Phase::Running(_) | Phase::Idle) && hidden_tools.is_empty();
        (!healthy).then(|| Self {
            server: hosted.name.clone(),
            state: state.phase.name(),
            reason: state.last_error.clone(),
            hidden_tools,
        })
    }
}

fn transport(spec: &LaunchSpec) -> &'static str {
    match spec {
        LaunchSpec::Child(_) => "stdio",
        LaunchSpec::Remote(_) => "http",
    }
}
