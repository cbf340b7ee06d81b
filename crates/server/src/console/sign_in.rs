//! Signing in with an API key, and out.

use axum::{
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use fleet_access::{AuditRecord, AuthRefusal, AuthStatus, Presented};
use fleet_console::{
    Page, Section, links,
    screens::{ProblemScreen, SignInScreen},
    views::ProblemView,
};
use fleet_ops::clock;

use super::{
    Console,
    session::SESSION_TIME,
    visit::{Change, Failure, Form, is_from_own_page, show},
};
use crate::http::MAX_BODY;

/// The cookie of a session. The prefix makes browsers accept it from this host only, over TLS only,
/// and from no page below a path.
const SECURE_COOKIE: &str = "__Host-mcp-fleet";
/// The cookie over plain HTTP, where browsers don't accept the prefix.
const PLAIN_COOKIE: &str = "mcp-fleet";
const PROBLEM: &str = "application/problem+json";

/// Returns the value of the session's cookie.
pub(super) fn session_cookie<'h>(console: &Console, headers: &'h HeaderMap) -> Option<&'h str> {
    let find = |name: &str| {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs =
            lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim())
    };
    match find(SECURE_COOKIE) {
        Some(cookie) => Some(cookie),
        // Somebody between the browser and this server could have set it.
        None if console.inner.access.address().is_secure() => None,
        None => find(PLAIN_COOKIE),
    }
}

/// The layer in front of authentication: puts the credentials of a session into its requests. If
/// they, or those of a request without a session, are refused, a browser is sent to sign in.
pub(super) async fn present_session(
    State(console): State<Console>,
    mut request: Request,
    next: Next,
) -> Response {
    let cookie = session_cookie(&console, request.headers()).map(str::to_owned);
    if !request.headers().contains_key(header::AUTHORIZATION)
        && let Some(cookie) = &cookie
        && let Some(authorization) = console.inner.sessions.open(cookie, clock::now())
        && let Ok(mut value) = HeaderValue::try_from(authorization)
    {
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }

    let is_page = request.method() == Method::GET && !request.headers().contains_key("hx-request");
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let response = next.run(request).await;
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
    if !is_problem {
        return response;
    }

    // Only the layer that authenticates answers with a problem document here.
    let mut answer = match response.status() {
        StatusCode::UNAUTHORIZED if is_page => {
            let next = if target == links::ROOT { "" } else { &target };
            Redirect::to(&links::with_query("/sign-in", [("next", next)])).into_response()
        }
        status => refused_page(status, response).await,
    };
    if cookie.is_some() {
        clear_cookies(answer.headers_mut());
    }
    answer
}

/// The page about credentials that are refused.
async fn refused_page(status: StatusCode, response: Response) -> Response {
    let body = to_bytes(response.into_body(), MAX_BODY).await.unwrap_or_default();
    let problem: ProblemView = serde_json::from_slice(&body).unwrap_or_default();
    let page = Page::public(problem.title.clone(), Section::Other);
    let back = Some(links::with_query("/sign-in", []));
    match show(ProblemScreen::new(page, problem, back)) {
        Ok(page) => (status, page).into_response(),
        Err(_) => status.into_response(),
    }
}

/// `GET /console/sign-in`.
pub(super) async fn show_form(request: Request) -> Result<Html<String>, Response> {
    let query = request.uri().query().unwrap_or_default();
    let next = Form::parse(&Bytes::copy_from_slice(query.as_bytes())).get("next").to_owned();
    show_form_again(safe_target(&next), None)
}

fn show_form_again(next: &str, problem: Option<ProblemView>) -> Result<Html<String>, Response> {
    let page = Page::public("Sign in", Section::Other);
    show(SignInScreen::new(page, next.to_owned(), problem)).map_err(Failure::into_response)
}

/// `POST /console/sign-in`.
pub(super) async fn sign_in(State(console): State<Console>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // Nobody is to be signed in under somebody else's name by a foreign page.
    if !is_from_own_page(&parts.uri, &parts.headers) {
        let detail = "The form is not from a page of this console.";
        let problem = ProblemView {
            title: "Not signed in".to_owned(),
            detail: detail.to_owned(),
            ..ProblemView::default()
        };
        return answer_form(StatusCode::FORBIDDEN, "", problem);
    }
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    let form = Form::parse(&body);
    let next = safe_target(form.get("next")).to_owned();

    let authorization = format!("Bearer {}", form.get("key").trim());
    let presented = Presented {
        authorization: &[authorization.as_bytes()],
        certificate: None,
        from_loopback: false,
    };
    match console.inner.access.identify(&presented).await {
        // Without credentials everybody is served alike, whatever they send.
        Ok(principal) if !principal.is_verified() => {
            Redirect::to(target_or_root(&next)).into_response()
        }
        Ok(_) => match console.inner.sessions.seal(&authorization, clock::now()) {
            Some(cookie) => {
                let is_secure =
                    console.inner.access.address().is_secure() || is_https(&parts.headers);
                let mut response = Redirect::to(target_or_root(&next)).into_response();
                set_cookie(response.headers_mut(), is_secure, &cookie);
                response
            }
            None => {
                let problem = ProblemView {
                    title: "Not signed in".to_owned(),
                    detail: "The token is too long for the cookie of a session. Use an API key."
                        .to_owned(),
                    ..ProblemView::default()
                };
                answer_form(StatusCode::PAYLOAD_TOO_LARGE, &next, problem)
            }
        },
        Err(refusal) => {
            console.inner.access.record_refusal(|time| AuditRecord::of_refusal(time, &refusal));
            answer_form(status_of(&refusal), &next, problem_of(&refusal))
        }
    }
}

fn answer_form(status: StatusCode, next: &str, problem: ProblemView) -> Response {
    match show_form_again(next, Some(problem)) {
        Ok(page) => (status, page).into_response(),
        Err(response) => response,
    }
}

fn status_of(refusal: &AuthRefusal) -> StatusCode {
    match refusal.status() {
        AuthStatus::BadRequest => StatusCode::BAD_REQUEST,
        AuthStatus::Unauthorized => StatusCode::UNAUTHORIZED,
        AuthStatus::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn problem_of(refusal: &AuthRefusal) -> ProblemView {
    ProblemView {
        title: "Not signed in".to_owned(),
        detail: refusal.fault().explain().to_owned(),
        code: Some(refusal.code().as_str().to_owned()),
        ..ProblemView::default()
    }
}

/// `POST /console/sign-out`.
pub(super) async fn sign_out(_: Change) -> Response {
    let mut response = Redirect::to(&links::with_query("/sign-in", [])).into_response();
    clear_cookies(response.headers_mut());
    response
}

/// Whether the browser has sent a request over TLS, which a proxy may have ended.
fn is_https(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

fn set_cookie(headers: &mut HeaderMap, is_secure: bool, cookie: &str) {
    let age = SESSION_TIME.as_secs();
    let text = match is_secure {
        true => format!(
            "{SECURE_COOKIE}={cookie}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax; Secure"
        ),
        false => format!("{PLAIN_COOKIE}={cookie}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax"),
    };
    headers.extend(HeaderValue::try_from(text).map(|mut value| {
        value.set_sensitive(true);
        (header::SET_COOKIE, value)
    }));
}

fn clear_cookies(headers: &mut HeaderMap) {
    for (name, secure) in [(SECURE_COOKIE, "; Secure"), (PLAIN_COOKIE, "")] {
        let text = format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax{secure}");
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// The page to go on to: one of the console, or none.
fn safe_target(target: &str) -> &str {
    let is_plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let rest = target.strip_prefix(links::ROOT).filter(|_| is_plain);
    let is_ours = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
    if is_ours { target } else { "" }
}

fn target_or_root(target: &str) -> &str {
    if target.is_empty() { links::ROOT } else { target }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for ours in ["/console", "/console/jobs?state=failed", "/console?x=1"] {
            assert_eq!(safe_target(ours), ours);
        }
        for foreign in [
            "https://evil.example",
            "//evil.example",
            "/consoleevil",
            "/console\\evil",
            "/console/\r\nset-cookie: a=b",
            "/jobs",
            "javascript:alert(1)",
            "",
        ] {
            assert_eq!(safe_target(foreign), "", "{foreign}");
        }
    }
}
