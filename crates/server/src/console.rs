//! The console: screens for people, below `/console`.
//!
//! [`fleet_console`] makes the HTML. This is the shell around it: it fetches what a screen shows from
//! the REST interface and from `/message` of this very process, as whoever asks, so that a screen
//! never shows or does what its visitor could not see or do without it. Nothing here decides
//! about rights or reads a ledger.
//!
//! `session` puts the credentials that a session's cookie holds into the request, before the layer
//! that authenticates every other request does so here too. `visit` checks that a change comes from
//! a page of ours, `headers` forbids scripts and frames of others, and `live` turns streams of
//! events into hints that a page is to be fetched again.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Redirect, Response},
    routing::{get, post},
};
use fleet_console::links;

use crate::{
    access::{AccessControl, layer},
    error::ServerError,
    http::body::{BODY_TIME, read_body},
};

mod api;
mod bulk;
mod files;
mod headers;
mod job;
mod jobs;
mod letters;
mod live;
mod servers;
mod session;
mod sign_in;
mod tools;
mod visit;

use api::Api;
use session::Sessions;

/// What the console may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ConsoleMode {
    /// There is no console.
    Off,
    /// It shows, and changes nothing.
    Read,
    /// It shows and changes what the visitor may see and change.
    Full,
}

/// The settings of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Whether nothing can be changed.
    pub is_read_only: bool,
    /// The file of the secret that seals sessions, which replicas share. Without one, every process
    /// makes its own.
    pub key_file: Option<PathBuf>,
}

/// The console. Clones share everything.
#[derive(Clone)]
pub(crate) struct Console {
    inner: Arc<Inner>,
}

struct Inner {
    api: Api,
    sessions: Sessions,
    access: AccessControl,
    is_read_only: bool,
}

impl Console {
    /// A console over these routes, which are served in this process without their authentication.
    ///
    /// # Errors
    ///
    /// Returns an error if the secret of sessions can't be read.
    pub(crate) fn new(
        config: &ConsoleConfig,
        routes: Router,
        access: AccessControl,
    ) -> Result<Self, ServerError> {
        if !fleet_console::assets::has_htmx() {
            tracing::info!(
                "the console was built without htmx: pages have plain links and forms and do not \
                 update by themselves; scripts/setup-console installs it for the next build"
            );
        }
        let sessions = Sessions::start(config.key_file.as_deref())?;
        let is_read_only = config.is_read_only;
        Ok(Self {
            inner: Arc::new(Inner { api: Api::new(routes), sessions, access, is_read_only }),
        })
    }

    /// The routes of the console, behind its authentication.
    pub(crate) fn router(self) -> Router {
        let access = self.inner.access.clone();
        let public = Router::new()
            .route("/console/sign-in", get(sign_in::show_form).post(sign_in::sign_in))
            .route("/console/static/{hash}/{name}", get(files::serve_file))
            .layer(from_fn_with_state(BODY_TIME, read_body))
            .with_state(self.clone());

        let private = Router::new()
            .route("/console", get(jobs::show_overview))
            .route("/console/", get(async || Redirect::permanent(links::ROOT)))
            .route("/console/jobs", get(jobs::list_jobs))
            .route("/console/job-operations", get(bulk::preview).post(bulk::take_step))
            .route("/console/jobs/{id}", get(job::show_job))
            .route("/console/jobs/{id}/live", get(live::follow_job))
            .route("/console/jobs/{id}/result.json", get(job::download_result))
            .route("/console/jobs/{id}/content/{index}", get(job::serve_content))
            .route("/console/jobs/{id}/edit", get(job::show_edit))
            .route("/console/jobs/{id}/runs", post(job::run_again))
            .route("/console/jobs/{id}/cancel", post(job::cancel))
            .route("/console/jobs/{id}/decision", post(job::decide))
            .route("/console/approvals", get(servers::list_approvals))
            .route("/console/dead-letters", get(letters::list_letters))
            .route(
                "/console/dead-letters/replay",
                get(letters::preview_replay).post(letters::replay),
            )
            .route("/console/dead-letters/purge", get(letters::preview_purge).post(letters::purge))
            .route("/console/dead-letters/{id}", get(letters::show_letter))
            .route("/console/tools", get(tools::list_tools))
            .route("/console/tools/{name}", get(tools::show_tool))
            .route("/console/tools/{name}/calls", post(tools::call_tool))
            .route("/console/servers", get(servers::list_servers).post(servers::host_server))
            .route("/console/server-checks", post(servers::check_servers))
            .route("/console/servers/{name}", get(servers::show_server))
            .route("/console/servers/{name}/restart", post(servers::restart_server))
            .route("/console/servers/{name}/remove", post(servers::remove_server))
            .route("/console/live", get(live::follow_jobs))
            .route("/console/codes/{code}", get(visit::explain_code))
            .route("/console/sign-out", post(sign_in::sign_out))
            .route("/console/{*path}", get(visit::no_such_page).post(visit::no_such_page))
            .layer(from_fn_with_state(self.clone(), visit::visit))
            .layer(from_fn_with_state(BODY_TIME, read_body))
            .layer(from_fn_with_state(access, layer::authenticate))
            .layer(from_fn_with_state(self.clone(), sign_in::present_session))
            .with_state(self);

        public.merge(private).layer(from_fn(headers::protect))
    }
}

/// Sends a browser that asks for `/` to the console.
pub(crate) async fn redirect_browsers(request: Request, next: Next) -> Response {
    let wants_page = request
        .headers()
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.to_str().is_ok_and(|accept| accept.contains("text/html")));
    if request.uri().path() == "/" && request.method() == Method::GET && wants_page {
        return Redirect::to(links::ROOT).into_response();
    }
    next.run(request).await
}
