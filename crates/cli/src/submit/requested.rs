//! The jobs that a user asks for: those of a file, one call, or one hosting of servers.

use std::path::Path;

use fleet_job::{
    decode,
    envelope::{Envelope, ToolCall, Work},
    mcp_servers,
};
use serde_json::{Map, Value, json};

use super::{Args, lines};
use crate::{
    error::CliError,
    input::{is_stdin, read_input},
};

/// A job and the key of its record.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) envelope: Envelope,
    pub(super) key: Option<String>,
}

impl Job {
    /// Returns the calls of tools that the job consists of.
    pub(super) fn calls(&self) -> &[ToolCall] {
        match &self.envelope.work {
            Work::ToolCall(call) => std::slice::from_ref(call),
            Work::ToolBatch(batch) => &batch.calls,
            Work::ServerInit(_) => &[],
        }
    }
}

/// Reads the jobs that the flags name. There is at least one.
pub(super) fn read_jobs(args: &Args) -> Result<Vec<Job>, CliError> {
    if let Some(path) = &args.file {
        return read_jobs_file(path, args.key.as_deref());
    }

    let job_id = args.job_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());

    let mut object = json!({"jobID": job_id});
    if let Some(path) = &args.server_init {
        let payload = mcp_servers::text::parse(&read_input(path)?)
            .map_err(|error| CliError::Usage(format!("`{}`: {error}", path.display())))?;
        object["jobType"] = "server-init".into();
        object["payload"] = payload;
    } else {
        let arguments: Map<String, Value> =
            serde_json::from_str(&args.arguments).map_err(|error| {
                CliError::Usage(format!("--arguments is not a JSON object: {error}"))
            })?;
        let call = ToolCall {
            server: None,
            tool: args.tool.clone().unwrap_or_default(),
            arguments,
            task: None,
            extra: Map::new(),
        };
        object = Envelope::new(job_id, Work::ToolCall(call)).to_json();
    }

    let envelope = decode::from_json(object.to_string().as_bytes())
        .map_err(|error| CliError::Usage(format!("invalid job: {error}")))?;
    Ok(vec![Job { envelope, key: args.key.clone() }])
}

fn read_jobs_file(path: &Path, key: Option<&str>) -> Result<Vec<Job>, CliError> {
    let file = match is_stdin(path) {
        true => "standard input".to_owned(),
        false => format!("`{}`", path.display()),
    };
    let text = mcp_servers::text::decode(&read_input(path)?)
        .map_err(|error| CliError::Usage(format!("{file}: {error}")))?;

    let jobs = lines::parse(&text, &file, key)?;
    if jobs.is_empty() {
        return Err(CliError::Usage(format!(
            "{file} contains no jobs; expected one JSON object per line"
        )));
    }
    Ok(jobs)
}
