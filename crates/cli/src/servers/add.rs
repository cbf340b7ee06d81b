//! `mcp-fleet servers add`: hosts servers.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use fleet_job::meta;
use fleet_ops::shutdown;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::source::{self, Extras, WantedServer};
use crate::{
    call_progress::with_progress,
    dlq::text::shorten,
    error::CliError,
    input::read_input,
    mcp::{CallError, McpServer},
    output,
    result_view::for_terminal,
    server_args::ServerArgs,
    submit::INTERRUPTED,
};

/// How many tools are named.
const SHOWN_TOOLS: usize = 10;
/// The longest text of the server that is printed on one line.
const TEXT: usize = 2_000;

const EXAMPLES: &str = "Examples:
  mcp-fleet servers add mcp.json
  mcp-fleet servers add ~/.cursor/mcp.json --only db --only weather
  mcp-fleet servers add https://mcp.example.com/mcp --header 'Authorization: Bearer ${TOKEN}'
  mcp-fleet servers add --name weather --env UNITS=metric -- uvx my-weather-server

The mcp-server starts the commands and connects to the URLs, on its machine, under its policy.
Adding a server that runs from the same configuration changes nothing; another configuration
replaces it once it answers. A value such as ${TOKEN} is a variable of the mcp-server.

Exit codes:
  0    all of them are hosted
  1    one is not
  130  interrupted";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// A file with an `mcpServers` object (`-` for standard input), or the URL of a server
    #[arg(value_name = "FILE|URL", required_unless_present = "command")]
    source: Option<String>,

    /// The command that starts a server
    #[arg(value_name = "COMMAND", last = true, conflicts_with = "source")]
    command: Vec<String>,

    /// The name of the server; by default, it is made of the URL or the command
    #[arg(help_heading = "Hosted server", long, value_name = "NAME", conflicts_with = "only")]
    name: Option<String>,

    /// Only this server of the file; may be repeated
    #[arg(help_heading = "Hosted server", long, value_name = "NAME", conflicts_with = "command")]
    only: Vec<String>,

    /// A variable for the command; may be repeated
    #[arg(
        help_heading = "Hosted server",
        long,
        value_name = "NAME=VALUE",
        value_parser = parse_variable,
        conflicts_with = "source",
    )]
    env: Vec<(String, String)>,

    /// The directory in which the command runs
    #[arg(help_heading = "Hosted server", long, value_name = "DIR", conflicts_with = "source")]
    cwd: Option<String>,

    /// A header for every request to the URL; may be repeated
    #[arg(
        help_heading = "Hosted server",
        long,
        value_name = "NAME: VALUE",
        value_parser = parse_header,
        conflicts_with = "command",
    )]
    header: Vec<(String, String)>,

    /// How long each server may take to start, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    parse_pair(text, '=').ok_or_else(|| "expected NAME=VALUE".to_owned())
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    parse_pair(text, ':').ok_or_else(|| "expected NAME: VALUE".to_owned())
}

fn parse_pair(text: &str, separator: char) -> Option<(String, String)> {
    let (name, value) = text.split_once(separator)?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_owned(), value.trim_start().to_owned()))
}

/// The useful parts of the answer of `server_initialize`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Initialized {
    disabled: bool,
    transport: Option<String>,
    pid: Option<u32>,
    tools: Vec<Tool>,
    warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Tool {
    exposed_as: String,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let wanted = wanted_servers(&args)?;
    if wanted.is_empty() {
        return Err(CliError::Usage("there is no server to host: all are switched off".to_owned()));
    }

    let server = args.server.mcp()?;
    let timeout = Duration::from_secs(args.timeout.clamp(1, u64::from(u32::MAX)));
    let mut all_hosted = true;
    for wanted in wanted {
        let hosted = tokio::select! {
            hosted = host(&server, &wanted, timeout) => hosted,
            () = stop.cancelled() => {
                output::problem("interrupted; a server that is being started may still be hosted");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        };
        all_hosted &= hosted.is_ok();
        print_outcome(&wanted.name, &hosted, args.json);
    }
    server.close().await;
    Ok(if all_hosted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wanted_servers(args: &Args) -> Result<Vec<WantedServer>, CliError> {
    let name = args.name.as_deref();
    let extras =
        Extras { env: args.env.clone(), cwd: args.cwd.clone(), headers: args.header.clone() };
    let Some(source) = &args.source else {
        return Ok(vec![source::from_command(&args.command, name, &extras)?]);
    };

    if let Some(url) = source::parse_url(source) {
        if !args.only.is_empty() {
            return Err(CliError::Usage("--only goes with a file, not with a URL".to_owned()));
        }
        return Ok(vec![source::from_url(&url, name, &extras)?]);
    }
    if name.is_some() || !args.header.is_empty() {
        return Err(CliError::Usage(format!(
            "--name and --header need a URL, and `{source}` is a file; --only chooses among the servers \
             that the file names"
        )));
    }
    let content = read_input(&PathBuf::from(source))?;
    Ok(source::from_file(source, &content, &args.only)?)
}

/// Hosts a server and returns the structured answer.
async fn host(
    server: &McpServer,
    wanted: &WantedServer,
    timeout: Duration,
) -> Result<Value, CallError> {
    let arguments = Map::from_iter([
        ("name".to_owned(), Value::from(wanted.name.as_str())),
        ("config".to_owned(), wanted.config.clone()),
    ]);
    let what = format!("starting {}", wanted.name);
    let call = |news| server.call("server_initialize", arguments, timeout, Some(news));
    let mut result = with_progress(&what, call).await?;
    Ok(result.get_mut("structuredContent").map(Value::take).unwrap_or_default())
}

fn print_outcome(name: &str, hosted: &Result<Value, CallError>, as_json: bool) {
    match hosted {
        Ok(answer) if as_json => output::json(answer),
        Err(error) if as_json => output::json(&json!({"name": name, "error": error.to_string()})),
        Ok(answer) => describe(name, answer).iter().for_each(|line| output::line(line)),
        Err(error) => {
            output::problem(&error.to_string());
            if let Some(tail) = stderr_tail(error.data()) {
                output::note(&format!("the end of its standard error:\n{}", for_terminal(tail)));
            }
        }
    }
}

/// Returns the lines about a hosted server.
fn describe(name: &str, answer: &Value) -> Vec<String> {
    let Initialized { disabled, transport, pid, tools, warnings } =
        Initialized::deserialize(answer).unwrap_or_default();
    let transport = shorten(&transport.unwrap_or_else(|| "unknown transport".to_owned()), TEXT);
    let process = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();

    let mut lines = vec![match disabled {
        true => format!("{name}: switched off in its configuration; nothing was started"),
        false => format!("{name}: hosted ({transport}{process}), {} tools", tools.len()),
    }];
    let names = tools.iter().take(SHOWN_TOOLS).map(|tool| shorten(&tool.exposed_as, TEXT));
    lines.extend(names.map(|name| format!("  {name}")));
    if tools.len() > SHOWN_TOOLS {
        let more = tools.len() - SHOWN_TOOLS;
        lines.push(format!("  … and {more} more: mcp-fleet tools list --of {name}"));
    }
    lines.extend(warnings.iter().map(|warning| format!("  warning: {}", shorten(warning, TEXT))));
    lines
}

/// Returns the end of the standard error of a server that could not be started.
fn stderr_tail(failure: Option<&Value>) -> Option<&str> {
    failure?.get("_meta")?.get(meta::ERROR_DETAILS)?.get("stderrTail")?.as_str()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn wanted(words: &[&str]) -> Result<Vec<WantedServer>, String> {
        let words = ["add"].iter().chain(words);
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        wanted_servers(&command.args).map_err(|error| fleet_ops::errors::chain(&error))
    }

    #[test]
    fn a_source_is_a_file_a_url_or_a_command() {
        let child = wanted(&["--name", "w", "--env", "A=b=c", "--", "uvx", "-x", "y"]).unwrap();
        let expected = json!({"command": "uvx", "args": ["-x", "y"], "env": {"A": "b=c"}});
        assert_eq!((child[0].name.as_str(), &child[0].config), ("w", &expected));

        let remote = wanted(&["https://example.com", "--header", "X: y: z"]).unwrap();
        assert_eq!(remote[0].config["headers"], json!({"X": "y: z"}));

        let error = |words: &[&str]| wanted(words).unwrap_err();
        assert!(error(&[]).contains("required"));
        assert!(error(&["mcp.json", "--", "x"]).contains("cannot be used"));
        assert!(error(&["/no/such/file"]).contains("/no/such/file"));
        assert!(error(&["/no/such/file", "--name", "x"]).contains("--only chooses"));
        assert!(error(&["http://a", "--only", "x"]).contains("not with a URL"));
        assert!(error(&["http://a", "--env", "A=b"]).contains("cannot be used"));
        assert!(error(&["--env", "A", "--", "x"]).contains("NAME=VALUE"));
    }

    #[test]
    fn a_hosted_server_is_described() {
        let tools: Vec<_> = (0..12).map(|n| json!({"exposedAs": format!("a__t{n}")})).collect();
        let answer =
            json!({"name": "a", "transport": "stdio", "pid": 7, "tools": tools, "warnings": ["w"]});
        let lines = describe("a", &answer);
        assert_eq!(lines[0], "a: hosted (stdio, pid 7), 12 tools");
        assert_eq!(lines.len(), 1 + SHOWN_TOOLS + 2);
        assert!(lines[11].contains("2 more") && lines[12].contains("warning: w"), "{lines:?}");
        assert!(describe("a", &json!({"disabled": true}))[0].contains("switched off"));

        let failure = json!({"_meta": {meta::ERROR_DETAILS: {"stderrTail": "boom"}}});
        assert_eq!(stderr_tail(Some(&failure)), Some("boom"));
        assert_eq!(stderr_tail(Some(&json!({}))), None);
    }
}
