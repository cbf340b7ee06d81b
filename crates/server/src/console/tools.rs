//! Tools: listed, and called now or as a job.

use std::time::Instant;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use fleet_console::{
    Section, links,
    screens::{CallOutcome, ToolScreen, ToolsScreen},
    views::{ProblemView, ToolList, ToolView},
};
use serde_json::{Value, json};

use super::{
    Console,
    job::{go_to_submitted, read_arguments},
    visit::{Change, Failure, Screen, Visit, show},
};

/// The longest message of an error, in characters.
const MESSAGE: usize = 4_000;

/// `GET /console/tools`.
pub(super) async fn list_tools(State(console): State<Console>, visit: Visit) -> Screen {
    let list = console.inner.api.get::<ToolList>(&visit.asker, "/tools", &[]).await?;
    let search = visit.parameter("q").unwrap_or_default().trim().to_owned();
    show(ToolsScreen::new(visit.page("Tools", Section::Tools), search, &list))
}

/// `GET /console/tools/{name}`.
pub(super) async fn show_tool(
    State(console): State<Console>,
    visit: Visit,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Screen {
    let tool = get_tool(&console, &visit, &name).await?;
    let base = console.inner.access.address().base_url(&uri, &headers);
    let page = visit.page(name, Section::Tools);
    show(ToolScreen::new(page, tool, visit.parameter("arguments"), None, &base))
}

async fn get_tool(console: &Console, visit: &Visit, name: &str) -> Result<ToolView, Failure> {
    let path = format!("/tools/{}", links::segment(name));
    let tool = console.inner.api.get(&visit.asker, &path, &[]).await;
    tool.map_err(|problem| Failure::from(problem).leading_to(links::with_query("/tools", [])))
}

/// `POST /console/tools/{name}/calls`.
pub(super) async fn call_tool(
    State(console): State<Console>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    Change { visit, form }: Change,
) -> Result<Response, Failure> {
    let tool = get_tool(&console, &visit, &name).await?;
    let text = form.get("arguments").to_owned();

    let outcome = match (read_arguments(&text), form.get("how")) {
        (Err(problem), _) => CallOutcome::Failed(problem),
        (Ok(arguments), "job") => {
            let job = json!({"tool": name, "arguments": arguments});
            match console.inner.api.send(&visit.asker, Method::POST, "/jobs", Some(&job)).await {
                Ok(answer) => return Ok(go_to_submitted(answer.body)),
                Err(problem) => CallOutcome::Failed(problem),
            }
        }
        (Ok(arguments), _) => call_now(&console, &visit, &name, &arguments).await,
    };

    let status = match &outcome {
        CallOutcome::Answered { .. } => StatusCode::OK,
        CallOutcome::Failed(problem) => StatusCode::from_u16(problem.status).unwrap_or_default(),
    };
    let base = console.inner.access.address().base_url(&uri, &headers);
    let page = visit.page(name, Section::Tools);
    let screen = show(ToolScreen::new(page, tool, Some(text), Some(outcome), &base))?;
    Ok((status, screen).into_response())
}

async fn call_now(console: &Console, visit: &Visit, name: &str, arguments: &Value) -> CallOutcome {
    let message = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    });
    let started = Instant::now();
    let answer =
        console.inner.api.send(&visit.asker, Method::POST, "/message", Some(&message)).await;
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match answer {
        Err(problem) => CallOutcome::Failed(problem),
        Ok(mut answer) => match answer.body.get_mut("result").map(Value::take) {
            Some(result) => CallOutcome::Answered { result, ms },
            None => CallOutcome::Failed(read_error(&answer.body)),
        },
    }
}

/// The problem in a JSON-RPC error.
fn read_error(answer: &Value) -> ProblemView {
    let text = |path: &str| answer.pointer(path).and_then(Value::as_str);
    let message = text("/error/message").unwrap_or("the answer has neither a result nor an error");
    ProblemView {
        title: "The call failed".to_owned(),
        status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
        detail: message.chars().take(MESSAGE).collect(),
        code: text("/error/data/code").map(str::to_owned),
        ..ProblemView::default()
    }
}
