//! What an mcp-server reports about a hosted server, and what it means. Pure.

use std::time::Duration;

use fleet_codes as codes;
use serde::Deserialize;

use crate::dlq::text::{format_age, new_table, shorten};

/// The maximum length of a problem in the table.
const PROBLEM: usize = 60;
/// The maximum length of a problem that is printed as a whole.
const TEXT: usize = 2_000;

/// A hosted server, as `server_status` describes it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HostedServer {
    pub(crate) name: String,
    state: String,
    transport: Option<String>,
    uptime_ms: Option<u64>,
    tool_count: u64,
    restarts: u64,
    calls_in_flight: u64,
    breaker: Breaker,
    last_error: Option<String>,
    pub(crate) stderr_tail: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Breaker {
    state: String,
    last_failure: String,
}

/// Whether a hosted server works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Works,
    /// It may work in a moment.
    Starts,
    /// It does not, because of `problem`; `remedy` is what to do.
    Fails {
        problem: String,
        remedy: String,
    },
}

impl HostedServer {
    /// Decides whether the server works.
    pub(crate) fn condition(&self) -> Condition {
        let problem = |usual: &str| {
            let known = [self.last_error.as_deref(), Some(self.breaker.last_failure.as_str())];
            let known = known.into_iter().flatten().find(|text| !text.is_empty());
            shorten(known.unwrap_or(usual), TEXT)
        };
        let fails = |problem: String, usual: &str| {
            let remedy = remedy_of(&problem).unwrap_or(usual).to_owned();
            Condition::Fails { problem, remedy }
        };

        match self.state.as_str() {
            "running" | "idle" if self.breaker.state == "open" => fails(
                problem("its calls are not answered"),
                "It is called again by itself after a pause; `mcp-fleet servers logs` may say why \
                 it does not answer.",
            ),
            "running" | "idle" => Condition::Works,
            "starting" => Condition::Starts,
            "refused" => fails(
                problem("the policy does not allow it"),
                "Allow it in the policy of the mcp-server, which then starts it by itself.",
            ),
            "failed" => fails(
                problem("it does not run"),
                "The next call starts it again; `mcp-fleet servers logs` shows its last words.",
            ),
            state => {
                fails(format!("its state is {}", shorten(state, PROBLEM)), "Update mcp-fleet.")
            }
        }
    }

    /// Returns the server's problem on one line, or `-` for a server without one.
    fn short_problem(&self) -> String {
        match self.condition() {
            Condition::Fails { problem, .. } => shorten(&problem, PROBLEM),
            Condition::Works | Condition::Starts => "-".to_owned(),
        }
    }
}

/// Returns what to do about a problem whose text has a stable code.
fn remedy_of(problem: &str) -> Option<&'static str> {
    let (_, rest) = problem.rsplit_once("[FLEET-")?;
    let (code, _) = rest.split_once(']')?;
    let code = codes::find(&format!("FLEET-{code}"))?;
    let mut entries = codes::TABLE.iter().flat_map(|section| section.entries);
    entries.find(|entry| entry.code == code).map(|entry| entry.remedy)
}

/// Formats hosted servers as a table.
pub(super) fn servers_table(servers: &[HostedServer]) -> String {
    let mut table = new_table([
        "SERVER",
        "STATE",
        "TRANSPORT",
        "TOOLS",
        "UPTIME",
        "RESTARTS",
        "CALLS",
        "PROBLEM",
    ]);
    for server in servers {
        let uptime = server.uptime_ms.map(|ms| format_age(Duration::from_millis(ms)));
        table.add_row([
            shorten(&server.name, PROBLEM),
            shorten(&server.state, PROBLEM),
            shorten(server.transport.as_deref().unwrap_or("-"), PROBLEM),
            server.tool_count.to_string(),
            uptime.unwrap_or_else(|| "-".to_owned()),
            server.restarts.to_string(),
            server.calls_in_flight.to_string(),
            server.short_problem(),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn server(reported: Value) -> HostedServer {
        serde_json::from_value(reported).unwrap()
    }

    #[test]
    fn a_server_works_or_has_a_problem_and_a_remedy() {
        let check = |reported: Value, expected: &[&str]| match server(reported).condition() {
            Condition::Fails { problem, remedy } => {
                let text = format!("{problem} / {remedy}");
                assert!(!expected.is_empty(), "{text}");
                expected.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
            }
            Condition::Works | Condition::Starts => assert_eq!(expected, [""; 0]),
        };
        let closed = json!({"state": "closed"});
        check(json!({"name": "a", "state": "running", "breaker": closed}), &[]);
        check(json!({"name": "a", "state": "idle", "new": 1}), &[]);
        check(json!({"name": "a", "state": "starting"}), &[]);
        let open = json!({"state": "open", "lastFailure": "it hangs\u{1b}"});
        check(json!({"name": "a", "state": "running", "breaker": open}), &["it hangs  /"]);
        check(json!({"name": "a", "state": "failed"}), &["does not run", "servers logs"]);
        let refused = "no rule allows `x` [FLEET-POLICY-COMMAND]";
        let remedy = remedy_of(refused).unwrap();
        check(json!({"name": "a", "state": "refused", "lastError": refused}), &["no rule", remedy]);
        check(json!({"name": "a", "state": "dreaming"}), &["its state is dreaming"]);
    }

    #[test]
    fn a_table_has_a_row_per_server() {
        let servers = [
            server(json!({"name": "db", "state": "running", "toolCount": 7, "uptimeMs": 61_000})),
            server(json!({"name": "x", "state": "failed", "lastError": "it\nbroke"})),
        ];
        let text = servers_table(&servers);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("1m 1s") && text.contains("it broke"), "{text}");
    }
}
