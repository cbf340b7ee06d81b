//! A visit: who looks at a page, and whether a change comes from a page of ours.

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderName, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use fleet_access::Asker;
use fleet_console::{
    Notice, Page, Rights, Section, Visitor,
    screens::{CodeScreen, ProblemScreen},
    views::ProblemView,
};
use fleet_ops::http::guard;

use super::{Console, session::Sessions, sign_in};
use crate::http::MAX_BODY;

/// The header by which htmx says that it fetches a part of a page.
const HTMX: HeaderName = HeaderName::from_static("hx-request");
/// The header by which browsers say which page has sent a request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The parameter that names what the last change has done.
const NOTICE: &str = "notice";
/// The field of a form with the token.
const CSRF: &str = "csrf";

/// Who looks at a page.
#[derive(Clone)]
pub(super) struct Visit {
    pub(super) asker: Asker,
    pub(super) visitor: Visitor,
    /// Whether a part of a page is fetched again.
    pub(super) is_refresh: bool,
    query: String,
}

impl Visit {
    /// A page for this visitor.
    pub(super) fn page(&self, title: impl Into<String>, section: Section) -> Page {
        let notice = self.parameter(NOTICE).and_then(|name| Notice::parse(&name));
        Page::new(title, section, self.visitor.clone()).with_notice(notice)
    }

    /// The query of the URL.
    pub(super) fn query(&self) -> &str {
        &self.query
    }

    /// A parameter of the URL.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Visit {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        // The layer in front of every page puts it there.
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// What went wrong, and where to go on. It becomes a page.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    problem: ProblemView,
    back: Option<String>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self {
            problem: ProblemView {
                title: title.to_owned(),
                status: status.as_u16(),
                detail: detail.into(),
                ..ProblemView::default()
            },
            back: None,
        }
    }

    /// The same, from which one goes on there.
    pub(super) fn leading_to(self, url: impl Into<String>) -> Self {
        Self { back: Some(url.into()), ..self }
    }
}

impl From<ProblemView> for Failure {
    fn from(problem: ProblemView) -> Self {
        Self { problem, back: None }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status);
        let mut response = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        // The layer that knows the visitor makes a page of it.
        response.extensions_mut().insert(self);
        response
    }
}

/// A page as a response.
pub(super) type Screen = Result<Html<String>, Failure>;

/// A screen as a page.
pub(super) fn show(screen: impl askama::Template) -> Screen {
    let html = screen.render().map_err(|error| {
        tracing::error!(error = error.to_string(), "a page of the console could not be made");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "The page could not be made", "")
    })?;
    Ok(Html(html))
}

/// The layer in front of every page: says who visits, and makes pages of failures.
pub(super) async fn visit(
    State(console): State<Console>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(asker) = request.extensions().get::<Asker>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let cookie = sign_in::session_cookie(&console, request.headers()).unwrap_or_default();
    let principal = asker.principal();
    let visitor = Visitor {
        name: principal.display_name().to_owned(),
        has_session: !cookie.is_empty() && principal.is_verified(),
        rights: Rights::of(&asker, console.inner.is_read_only),
        csrf: console.inner.sessions.form_token(principal.id(), cookie),
        is_read_only: console.inner.is_read_only,
    };
    let visit = Visit {
        asker,
        visitor,
        is_refresh: request.headers().contains_key(HTMX),
        query: request.uri().query().unwrap_or_default().to_owned(),
    };

    request.extensions_mut().insert(visit.clone());
    let mut response = next.run(request).await;
    let Some(failure) = response.extensions_mut().remove::<Failure>() else { return response };
    let page = visit.page(failure.problem.title.clone(), Section::Other);
    let status = response.status();
    match show(ProblemScreen::new(page, failure.problem, failure.back)) {
        Ok(page) => (status, page).into_response(),
        Err(_) => status.into_response(),
    }
}

/// A change that a visitor asks for by a form of a page of ours.
pub(super) struct Change {
    pub(super) visit: Visit,
    pub(super) form: Form,
}

impl FromRequest<Console> for Change {
    type Rejection = Failure;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Failure> {
        let refuse =
            |detail: &str| Failure::new(StatusCode::FORBIDDEN, "The change was refused", detail);
        let (parts, body) = request.into_parts();
        let Some(visit) = parts.extensions.get::<Visit>().cloned() else {
            return Err(refuse("nobody was authenticated for this request"));
        };
        if !is_from_own_page(&parts.uri, &parts.headers) {
            return Err(refuse(
                "the request does not come from a page of this console; if a proxy changes the \
                 Host header, let it pass the one of the browser on",
            ));
        }

        let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
        let form = Form::parse(&body);
        if !Sessions::is_form_token(&visit.visitor.csrf, form.get(CSRF)) {
            return Err(refuse(
                "the form is not from a page of this session; go back, load the page again and \
                 repeat the change",
            ));
        }
        // Signing out changes nothing but the session.
        if console.inner.is_read_only && !parts.uri.path().ends_with("/sign-out") {
            return Err(refuse("this console only shows (MCP_CONSOLE=read)"));
        }
        Ok(Self { visit, form })
    }
}

/// Returns whether a browser says that a request comes from a page of this server. A request of
/// which no browser says anything does not.
pub(super) fn is_from_own_page(uri: &Uri, headers: &HeaderMap) -> bool {
    match headers.get(header::ORIGIN) {
        Some(_) => guard::is_same_origin(uri, headers),
        None => headers.get(FETCH_SITE).is_some_and(|site| site == "same-origin"),
    }
}

/// The fields of a form.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(body: &Bytes) -> Self {
        Self(url::form_urlencoded::parse(body).into_owned().collect())
    }

    /// The value of a field; empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The fields as the query of a URL.
    pub(super) fn as_query(&self) -> String {
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }
}

/// Goes on to a page, which says what was done.
pub(super) fn go_on(url: &str, notice: Notice) -> Response {
    let separator = if url.contains('?') { '&' } else { '?' };
    Redirect::to(&format!("{url}{separator}{NOTICE}={}", notice.name())).into_response()
}

/// `GET /console/codes/{code}`.
pub(super) async fn explain_code(visit: Visit, Path(code): Path<String>) -> Screen {
    let page = visit.page("Error code", Section::Other);
    match CodeScreen::new(page, &code) {
        Some(screen) => show(screen),
        None => Err(Failure::new(
            StatusCode::NOT_FOUND,
            "There is no such code",
            "Codes of mcp-fleet begin with FLEET-.",
        )),
    }
}

/// Any other path.
pub(super) async fn no_such_page(_: Visit) -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "There is no such page",
        "The address is not of this console.",
    )
}
