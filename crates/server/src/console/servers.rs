//! Hosted servers: shown, added, restarted and removed.

use axum::{
    extract::{Path, State},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use fleet_console::{
    Notice, Section, links,
    screens::{ApprovalsScreen, ChecksScreen, ServerScreen, ServersScreen},
    views::{ProblemView, ServerChecks, ServerList, ServerView},
};
use fleet_job::view::JobList;
use serde_json::{Map, Value, json};

use super::{
    Console,
    visit::{Change, Failure, Screen, Visit, go_on, show},
};

fn list_url() -> String {
    links::with_query("/servers", [])
}

/// `GET /console/servers`.
pub(super) async fn list_servers(State(console): State<Console>, visit: Visit) -> Screen {
    show_list(&console, &visit, None, None).await
}

async fn show_list(
    console: &Console,
    visit: &Visit,
    config: Option<String>,
    problem: Option<ProblemView>,
) -> Screen {
    let list = console.inner.api.get::<ServerList>(&visit.asker, "/servers", &[]).await?;
    let page = visit.page("Servers", Section::Servers);
    show(ServersScreen::new(page, &list.servers, config, problem))
}

/// `GET /console/servers/{name}`.
pub(super) async fn show_server(
    State(console): State<Console>,
    visit: Visit,
    Path(name): Path<String>,
) -> Screen {
    let path = format!("/servers/{}", links::segment(&name));
    let server = console.inner.api.get::<ServerView>(&visit.asker, &path, &[]).await;
    let server = server.map_err(|problem| Failure::from(problem).leading_to(list_url()))?;
    show(ServerScreen::new(visit.page(name, Section::Servers), server))
}

/// `POST /console/server-checks`: what would happen to the servers of a configuration.
pub(super) async fn check_servers(
    State(console): State<Console>,
    Change { visit, form }: Change,
) -> Result<Response, Failure> {
    let text = form.get("config").to_owned();
    let checked = match read_config(&text) {
        Ok(config) => {
            let api = &console.inner.api;
            let path = "/server-checks";
            let answer = api.send(&visit.asker, Method::POST, path, Some(&config)).await;
            answer.map(|answer| (answer.body, config))
        }
        Err(problem) => Err(problem),
    };

    match checked {
        Ok((checks, config)) => {
            let checks: ServerChecks = serde_json::from_value(checks).map_err(|_| {
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "The answer could not be read", "")
            })?;
            let page = visit.page("What would happen", Section::Servers);
            let screen = ChecksScreen::new(page, &checks, servers_of(&config), text);
            Ok(show(screen)?.into_response())
        }
        Err(problem) => {
            let status = StatusCode::from_u16(problem.status).unwrap_or_default();
            let page = show_list(&console, &visit, Some(text), Some(problem)).await?;
            Ok((status, page).into_response())
        }
    }
}

/// Reads a configuration as people paste it: with or without the object around the servers.
fn read_config(text: &str) -> Result<Value, ProblemView> {
    let refuse = |detail: String| ProblemView {
        title: "The configuration can't be read".to_owned(),
        status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
        detail,
        ..ProblemView::default()
    };
    let config = fleet_job::mcp_servers::text::parse(text.as_bytes())
        .map_err(|error| refuse(format!("{error}.")))?;
    match config {
        Value::Object(object)
            if object.contains_key("mcpServers") || object.contains_key("servers") =>
        {
            Ok(Value::Object(object))
        }
        Value::Object(object) => Ok(json!({"mcpServers": object})),
        _ => Err(refuse("It must be a JSON object with `mcpServers`.".to_owned())),
    }
}

/// The servers of a configuration by name.
fn servers_of(config: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    let servers = config.get("mcpServers").or_else(|| config.get("servers"));
    servers.and_then(Value::as_object).unwrap_or(&NONE)
}

/// `POST /console/servers`.
pub(super) async fn host_server(
    State(console): State<Console>,
    Change { visit, form }: Change,
) -> Result<Response, Failure> {
    let name = form.get("name");
    let config: Value = serde_json::from_str(form.get("entry")).unwrap_or_default();
    let server = json!({"name": name, "config": config});
    let answer =
        console.inner.api.send(&visit.asker, Method::POST, "/servers", Some(&server)).await;
    answer.map_err(|problem| Failure::from(problem).leading_to(list_url()))?;
    Ok(go_on(&links::server(name), Notice::Hosted))
}

/// `POST /console/servers/{name}/restart`.
pub(super) async fn restart_server(
    State(console): State<Console>,
    Path(name): Path<String>,
    Change { visit, .. }: Change,
) -> Result<Response, Failure> {
    let path = format!("/servers/{}/restarts", links::segment(&name));
    let answer = console.inner.api.send(&visit.asker, Method::POST, &path, None).await;
    answer.map_err(|problem| Failure::from(problem).leading_to(links::server(&name)))?;
    Ok(go_on(&links::server(&name), Notice::Restarted))
}

/// `POST /console/servers/{name}/remove`.
pub(super) async fn remove_server(
    State(console): State<Console>,
    Path(name): Path<String>,
    Change { visit, .. }: Change,
) -> Result<Response, Failure> {
    let path = format!("/servers/{}", links::segment(&name));
    let answer = console.inner.api.send(&visit.asker, Method::DELETE, &path, None).await;
    answer.map_err(|problem| Failure::from(problem).leading_to(links::server(&name)))?;
    Ok(go_on(&list_url(), Notice::Removed))
}

/// `GET /console/approvals`.
pub(super) async fn list_approvals(State(console): State<Console>, visit: Visit) -> Screen {
    let query = [("state".to_owned(), "awaiting_approval".to_owned())];
    let list = console.inner.api.get::<JobList>(&visit.asker, "/jobs", &query).await?;
    let page = visit.page("Approvals", Section::Approvals);
    show(ApprovalsScreen::new(page.live_from(links::with_query("/live", [])), &list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_and_without_the_object_around_it() {
        let bare = read_config(r#"{"a": {"command": "x"}}"#).unwrap();
        assert_eq!(servers_of(&bare)["a"], json!({"command": "x"}));
        for field in ["mcpServers", "servers"] {
            let whole = read_config(&format!(r#"{{"{field}": {{"a": {{}}}}}}"#)).unwrap();
            assert!(servers_of(&whole).contains_key("a"), "{field}");
        }
        for wrong in ["", "[]", "{", "7"] {
            assert_eq!(read_config(wrong).unwrap_err().status, 422, "{wrong}");
        }
    }
}
