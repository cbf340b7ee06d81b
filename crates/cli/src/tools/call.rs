//! `mcp-fleet tools call`: calls a tool and prints its result.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap_complete::engine::ArgValueCompleter;
use fleet_ops::shutdown;
use serde_json::{Map, Value};

use super::arguments::{self, Assignment};
use crate::{
    call_progress::with_progress,
    error::CliError,
    input::read_input,
    mcp::{CallError, McpServer},
    output,
    result_output::{NotStructured, ResultArgs, ResultPrinter},
    result_view::ResultFormat,
    server_args::ServerArgs,
    submit::{FAILED, INTERRUPTED, TIMED_OUT},
    suggestions,
    tool_schema::Schema,
};

/// The exit code if the tool succeeded, but its result is not what the user asked for.
const NO_RESULT: u8 = 4;
/// How long an interrupted command takes to tell the server.
const TELLING: Duration = Duration::from_secs(2);

const EXAMPLES: &str =
    "Arguments are typed by the tool's schema, which `mcp-fleet tools show` prints:
  path=README.md       text, a number, true or false, as the tool wants it
  tags=a tags=b        an array, item by item
  options:='{\"a\":1}'   any JSON

Examples:
  mcp-fleet tools call files__file_read path=README.md
  mcp-fleet tools call db__query --args '{\"sql\":\"select 1\"}' -o structured
  mcp-fleet tools call db__query --args-file query.json -o json | jq .content
  mcp-fleet tools call shots__screenshot url=https://example.com --save pictures

Exit codes:
  0    the tool succeeded
  1    the tool failed, or could not be called
  3    the tool did not answer within the timeout; it may still run
  4    the tool succeeded, but has no structured result, which -o structured asked for
  130  interrupted; the server is told to cancel the call, but the tool may still run";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The name of the tool
    #[arg(value_name = "TOOL", add = ArgValueCompleter::new(suggestions::tools))]
    tool: String,

    /// Arguments of the tool
    #[arg(
        value_name = "KEY=VALUE",
        value_parser = Assignment::parse,
        conflicts_with_all = ["args", "args_file"],
    )]
    assignments: Vec<Assignment>,

    /// All arguments as a JSON object
    #[arg(help_heading = "Arguments", long, value_name = "JSON", conflicts_with = "args_file")]
    args: Option<String>,

    /// All arguments from a file with a JSON object; `-` for standard input
    #[arg(help_heading = "Arguments", long, value_name = "FILE")]
    args_file: Option<PathBuf>,

    /// How long the tool may take, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,

    /// Call the tool without looking at its schema first
    #[arg(long)]
    no_check: bool,

    #[command(flatten)]
    result: ResultArgs,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let printer = args.result.printer(ResultFormat::Text);
    let server = args.server.mcp()?;

    let called = async {
        let arguments = prepare_arguments(&args, &server).await?;
        let timeout = Duration::from_secs(args.timeout.clamp(1, u64::from(u32::MAX)));
        let call = |news| server.call(&args.tool, arguments, timeout, Some(news));
        Ok::<_, CliError>(with_progress(&args.tool, call).await)
    };
    let called = tokio::select! {
        called = called => Some(called?),
        () = stop.cancelled() => None,
    };
    let Some(called) = called else {
        // The call is dropped, of which the server has yet to hear: this process ends now.
        let is_told = tokio::time::timeout(TELLING, server.close()).await.is_ok();
        output::problem(match is_told {
            true => "interrupted; the server was told to cancel the call",
            false => "interrupted; the server does not answer, so the tool may still run",
        });
        return Ok(ExitCode::from(INTERRUPTED));
    };
    server.close().await;

    match called {
        Ok(result) => Ok(print_result(&printer, &args.tool, &result)),
        Err(error) => Ok(print_failure(&printer, &args.tool, &error)),
    }
}

/// Returns the arguments of the call, checked against the tool's schema if the user allows it.
async fn prepare_arguments(
    args: &Args,
    server: &McpServer,
) -> Result<Map<String, Value>, CliError> {
    let given = whole_arguments(args)?;
    let tool = match args.no_check {
        true => None,
        false => Some(super::find_tool(server, &args.tool).await?),
    };

    let schema = Schema::document(tool.as_ref().map_or(&Value::Null, |tool| tool.input_schema()));
    let arguments = match given {
        Some(arguments) => arguments,
        None => arguments::build(&args.tool, schema, &args.assignments)?,
    };
    arguments::check_complete(&args.tool, schema, &arguments)?;
    Ok(arguments)
}

/// Reads the arguments that are given as one JSON object.
fn whole_arguments(args: &Args) -> Result<Option<Map<String, Value>>, CliError> {
    let (from, text) = match (&args.args, &args.args_file) {
        (Some(text), _) => ("--args".to_owned(), text.clone().into_bytes()),
        (None, Some(path)) => (format!("`{}`", path.display()), read_input(path)?),
        (None, None) => return Ok(None),
    };
    let object = serde_json::from_slice(&text);
    object.map(Some).map_err(|error| {
        CliError::Usage(format!(
            "{from} is not a JSON object: {error} [{}]",
            fleet_codes::TOOL_ARGUMENTS
        ))
    })
}

fn print_result(printer: &ResultPrinter, tool: &str, result: &Value) -> ExitCode {
    match printer.print(tool, result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(NotStructured) => {
            output::problem(&format!(
                "{tool} succeeded, but has no structured result; use -o text or -o json"
            ));
            ExitCode::from(NO_RESULT)
        }
    }
}

/// Prints why there is no result. A tool's own error result is data for programs.
fn print_failure(printer: &ResultPrinter, tool: &str, error: &CallError) -> ExitCode {
    match error.data().filter(|_| error.is_of_tool()) {
        Some(result) if printer.takes_stdout() && !printer.is_text() => {
            // The error says what is wrong if the result has no structured part.
            _ = printer.print(tool, result);
        }
        _ => {}
    }
    let what = if error.is_of_tool() { format!("{tool} failed: ") } else { String::new() };
    output::problem(&format!("{what}{error}"));
    ExitCode::from(if error.is_timeout() { TIMED_OUT } else { FAILED })
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

    fn parse(words: &[&str]) -> Result<Args, String> {
        let words = ["call"].iter().chain(words);
        Command::try_parse_from(words).map(|call| call.args).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_given_in_one_way() {
        assert_eq!(parse(&["t", "a=1", "b:=2"]).unwrap().assignments.len(), 2);
        let args = parse(&["t", "--args", r#"{"a":1}"#]).unwrap();
        assert_eq!(whole_arguments(&args).unwrap().unwrap()["a"], 1);
        assert!(parse(&["t", "a=1", "--args", "{}"]).unwrap_err().contains("cannot be used"));
        assert!(parse(&["t", "--args", "{}", "--args-file", "x"]).is_err());
        assert!(parse(&["t", "a"]).unwrap_err().contains("expected key=value"));
        let args = parse(&["t", "--args", "[]"]).unwrap();
        let error = whole_arguments(&args).unwrap_err().to_string();
        assert!(error.contains("--args is not a JSON object"), "{error}");
        let args = parse(&["t", "--args-file", "/no/such/file"]).unwrap();
        assert!(whole_arguments(&args).unwrap_err().to_string().contains("/no/such/file"));
    }
}
