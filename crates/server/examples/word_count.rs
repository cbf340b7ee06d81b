//! `mcp-server` with one tool more: `cargo run -p mcp-server --example word_count -- --port 8080`.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use mcp_server::{
    ServerError,
    toolkit::{Effect, ToolFailure, ToolSpec, Toolkit},
};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const SPEC: ToolSpec = ToolSpec {
    name: "word_count",
    title: "Count words",
    description: "Counts the words of a text.",
    effect: Effect::ReadOnly,
};

/// The arguments of the tool; their JSON Schema is derived.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The text.
    text: String,
}

/// The result of the tool.
#[derive(Serialize, JsonSchema)]
struct Count {
    words: usize,
}

async fn word_count(
    longest: Arc<usize>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Count, ToolFailure> {
    if args.text.len() > *longest {
        return Err(ToolFailure::permanent(format!("the text has more than {longest} bytes")));
    }
    Ok(Count { words: args.text.split_whitespace().count() })
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: mcp_server::Args,
}

fn main() -> Result<ExitCode, ServerError> {
    // Hosted programs run as the same user and must not read this process's environment.
    fleet_ops::inspection::forbid();
    // A hosted program begins as this one, which sets its limits.
    if let Some(code) = fleet_launcher::run_if_asked() {
        return Ok(code);
    }
    serve(Cli::parse().args)?;
    Ok(ExitCode::SUCCESS)
}

#[tokio::main]
async fn serve(args: mcp_server::Args) -> Result<(), ServerError> {
    let own = Toolkit::new(Arc::new(1 << 20)).with(&SPEC, word_count);
    mcp_server::run_with(args, vec![Box::new(own)]).await
}
