//! `mcp-fleet servers check`: checks that hosted servers work.

use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;
use serde_json::json;

use super::report::{Condition, HostedServer};
use crate::{
    error::CliError,
    near_names::{did_you_mean, near_names},
    output,
    server_args::ServerArgs,
    suggestions,
};

const EXAMPLES: &str = "Examples:
  mcp-fleet servers check
  mcp-fleet servers check db weather

To see what the policy would do with servers that are not hosted yet, use `mcp-server policy check`.

Exit codes:
  0  all of them work
  1  one does not work, is still starting, or is not hosted";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The servers to check; all by default
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(suggestions::hosted_servers))]
    names: Vec<String>,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let servers = super::read_servers(&super::fetch_servers(&server).await?);
    server.close().await;

    let mut all_work = true;
    for (name, condition) in choose(&servers, &args.names) {
        all_work &= condition == Some(Condition::Works);
        if args.json {
            output::json(&describe_json(&name, condition.as_ref()));
        } else {
            output::line(&describe(&name, condition.as_ref(), &servers));
        }
    }
    if servers.is_empty() && args.names.is_empty() && !args.json {
        output::line(&format!("{} hosts no servers that you may see", server.name()));
    }
    Ok(if all_work { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the servers to check with their conditions; `None` if one is not hosted.
fn choose(servers: &[HostedServer], names: &[String]) -> Vec<(String, Option<Condition>)> {
    if names.is_empty() {
        let all = servers.iter();
        return all.map(|server| (server.name.clone(), Some(server.condition()))).collect();
    }

    let of_name = |name: &String| {
        let server = servers.iter().find(|server| server.name == *name);
        (name.clone(), server.map(HostedServer::condition))
    };
    names.iter().map(of_name).collect()
}

fn describe(name: &str, condition: Option<&Condition>, servers: &[HostedServer]) -> String {
    match condition {
        Some(Condition::Works) => format!("{name}: works"),
        Some(Condition::Starts) => format!("{name}: is starting; check again in a moment"),
        Some(Condition::Fails { problem, remedy }) => format!("{name}: {problem}\n  {remedy}"),
        None => {
            let near = near_names(name, servers.iter().map(|server| server.name.as_str()));
            let code = fleet_codes::UNKNOWN_SERVER;
            format!("{name}: is not hosted{} [{code}]", did_you_mean(&near))
        }
    }
}

fn describe_json(name: &str, condition: Option<&Condition>) -> serde_json::Value {
    match condition {
        Some(Condition::Works) => json!({"name": name, "condition": "works"}),
        Some(Condition::Starts) => json!({"name": name, "condition": "starts"}),
        Some(Condition::Fails { problem, remedy }) => {
            json!({"name": name, "condition": "fails", "problem": problem, "remedy": remedy})
        }
        None => json!({"name": name, "condition": "unknown"}),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::server, *};

    #[test]
    fn servers_are_chosen_and_described() {
        let servers = [
            server(json!({"name": "db", "state": "running"})),
            server(json!({"name": "web", "state": "failed", "lastError": "it broke"})),
        ];
        let all = choose(&servers, &[]);
        assert_eq!(all[0], ("db".to_owned(), Some(Condition::Works)));
        assert!(describe("web", all[1].1.as_ref(), &servers).starts_with("web: it broke\n  "));
        assert_eq!(describe_json("web", all[1].1.as_ref())["condition"], "fails");

        let chosen = choose(&servers, &["wep".to_owned()]);
        let text = describe("wep", chosen[0].1.as_ref(), &servers);
        assert!(text.starts_with("wep: is not hosted; did you mean `web`?"), "{text}");
    }
}
