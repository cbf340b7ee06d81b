//! Checks before a submission that the server knows the tools that jobs call.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

use fleet_codes as codes;
use fleet_job::{envelope::Work, mcp_servers::McpServers, tool_name};

use super::requested::Job;
use crate::{
    error::CliError,
    mcp::McpServer,
    near_names::{did_you_mean, near_names},
    offered_tool,
    servers::{self, Condition, HostedServer},
};

/// The most unknown tools that are named.
const SHOWN: usize = 10;

/// Jobs call tools that the server does not offer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub(crate) struct UnknownTools {
    server: String,
    tools: Vec<UnknownToolOfJobs>,
}

#[derive(Debug, PartialEq, Eq)]
struct UnknownToolOfJobs {
    name: String,
    /// How often it is called.
    calls: usize,
    hint: String,
}

impl UnknownTools {
    fn describe(&self) -> String {
        let (server, code) = (&self.server, codes::UNKNOWN_TOOL);
        let remedy = "(--no-check submits it anyway)";
        if let [UnknownToolOfJobs { name, hint, .. }] = self.tools.as_slice() {
            return format!(
                "nothing was submitted: {server} offers you no tool `{name}`{hint} {remedy} [{code}]"
            );
        }

        let count = self.tools.len();
        let mut text = format!(
            "nothing was submitted: {server} does not offer {count} of the tools {remedy} [{code}]"
        );
        // Writing to a string cannot fail.
        for UnknownToolOfJobs { name, calls, hint } in self.tools.iter().take(SHOWN) {
            let _written = write!(text, "\n  `{name}` ({calls} calls){hint}");
        }
        if count > SHOWN {
            let _written = write!(text, "\n  … and {} more", count - SHOWN);
        }
        text
    }
}

/// Fails if jobs call tools that the server does not know.
pub(super) async fn check_tools(server: &McpServer, jobs: &[Job]) -> Result<(), CliError> {
    if jobs.iter().all(|job| job.calls().is_empty()) {
        return Ok(());
    }

    let tools = server.list_tools().await?;
    let offered: HashSet<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    if missing_tools(jobs, &offered, &[]).is_empty() {
        return Ok(());
    }

    // The tools of a server that does not run yet are not offered, but its jobs wait for it.
    let hosted = servers::read_servers(&servers::fetch_servers(server).await?);
    let missing = missing_tools(jobs, &offered, &hosted);
    if missing.is_empty() {
        return Ok(());
    }
    Err(UnknownTools { server: server.name().to_owned(), tools: missing }.into())
}

/// Returns the called tools that nobody offers.
fn missing_tools(
    jobs: &[Job],
    offered: &HashSet<&str>,
    hosted: &[HostedServer],
) -> Vec<UnknownToolOfJobs> {
    let awaited: HashSet<String> = hosted
        .iter()
        .filter(|server| server.condition() != Condition::Works)
        .map(|server| server.name.clone())
        .chain(jobs.iter().flat_map(initialized_servers))
        .collect();

    let mut missing: BTreeMap<String, usize> = BTreeMap::new();
    for call in jobs.iter().flat_map(Job::calls) {
        let name = call.exposed_name();
        let server = call.server.as_deref().or_else(|| tool_name::server_of(&name));
        let is_awaited = server.is_some_and(|server| awaited.contains(server));
        if !is_awaited && !offered_tool::aliases(&name).any(|name| offered.contains(&*name)) {
            *missing.entry(name).or_default() += 1;
        }
    }

    let describe = |(name, calls): (String, usize)| {
        let hint = did_you_mean(&near_names(&name, offered.iter().copied()));
        UnknownToolOfJobs { name, calls, hint }
    };
    missing.into_iter().map(describe).collect()
}

/// Returns the names of the servers that a job hosts.
fn initialized_servers(job: &Job) -> Vec<String> {
    let Work::ServerInit(payload) = &job.envelope.work else { return Vec::new() };
    let servers = McpServers::from_value(&payload.clone().into());
    servers.map(|servers| servers.servers.into_keys().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use fleet_job::decode;
    use serde_json::{Value, json};

    use super::*;

    fn job(value: Value) -> Job {
        Job { envelope: decode::from_json(value.to_string().as_bytes()).unwrap(), key: None }
    }

    fn call(payload: Value) -> Job {
        job(json!({"jobID": "j", "jobType": "tool-call", "payload": payload}))
    }

    fn hosted(name: &str, state: &str) -> HostedServer {
        serde_json::from_value(json!({"name": name, "state": state})).unwrap()
    }

    fn missing(jobs: &[Job], hosted: &[HostedServer]) -> Vec<String> {
        let odd = tool_name::exposed("q", "a.b");
        let offered = HashSet::from(["files__file_read", "server_list", odd.as_str()]);
        missing_tools(jobs, &offered, hosted).into_iter().map(|tool| tool.name).collect()
    }

    #[test]
    fn only_tools_that_nobody_will_offer_are_unknown() {
        let good = [
            call(json!({"tool": "server_list"})),
            call(json!({"tool": "file_read", "server": "files"})),
            call(json!({"tool": "files__file_read"})),
            // As its server names it; it is offered under a name that all clients accept.
            call(json!({"tool": "q__a.b"})),
        ];
        assert_eq!(missing(&good, &[]), [""; 0]);

        let query = call(json!({"tool": "query", "server": "db"}));
        assert_eq!(missing(slice::from_ref(&query), &[hosted("db", "running")]), ["db__query"]);
        assert_eq!(missing(slice::from_ref(&query), &[hosted("db", "failed")]), [""; 0]);
        let init = json!({"mcpServers": {"db": {"command": "x"}}});
        let init = job(json!({"jobID": "i", "jobType": "server-init", "payload": init}));
        assert_eq!(missing(&[init, query.clone()], &[]), [""; 0]);

        let batch = json!({"calls": [{"tool": "query", "server": "db"}, {"tool": "make_coffee"}]});
        let batch = job(json!({"jobID": "b", "jobType": "tool-batch", "payload": batch}));
        assert_eq!(missing(&[batch, query], &[]), ["db__query", "make_coffee"]);
    }

    #[test]
    fn the_error_names_tools_and_what_was_meant() {
        let jobs = [call(json!({"tool": "files__file_raed"})), call(json!({"tool": "nothing"}))];
        let offered = HashSet::from(["files__file_read"]);
        let tools = missing_tools(&jobs, &offered, &[]);
        let error = UnknownTools { server: "http://a".to_owned(), tools };
        let text = error.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("nothing was submitted: http://a does not offer 2"), "{text}");
        assert_eq!(lines[1], "  `files__file_raed` (1 calls); did you mean `files__file_read`?");
        assert_eq!(lines.len(), 3);

        let tools = error.tools.into_iter().take(1).collect();
        let one = UnknownTools { server: error.server, tools };
        assert!(one.to_string().contains("no tool `files__file_raed`; did you mean"));
    }
}
