//! The console: who gets in, what a foreign page can do, and what browsers are told.

use reqwest::{Client, Response, redirect::Policy};
use tempfile::TempDir;

use crate::{
    access::{Keys, list_tools},
    common::{PATIENCE, Server, eventually},
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     media-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// A name of a file that becomes code where somebody forgets to escape it.
const EVIL: &str = "<img src=x onerror=alert(1)>\"'.txt";

/// A server with files, whose console shows them, and a browser without a session.
struct Visit {
    server: Server,
    http: Client,
    _root: TempDir,
}

impl Visit {
    async fn start(mode: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(EVIL), "# x\n\n<script>alert(1)</script>\n").unwrap();
        let path = root.path().to_str().unwrap();
        let server = Server::start(&["--console", mode, "--root", path]).await;
        Self { server, http: browser(), _root: root }
    }

    async fn get(&self, path: &str) -> Response {
        self.http.get(self.server.url(path)).send().await.unwrap()
    }

    async fn token(&self, path: &str) -> String {
        token_in(&self.get(path).await.text().await.unwrap())
    }

    /// Posts a form as a page of this origin would.
    async fn post(&self, path: &str, origin: Option<&str>, form: &[(&str, &str)]) -> Response {
        post(&self.http, &self.server, path, origin, None, form).await
    }

    fn origin(&self) -> String {
        self.server.url("")
    }
}

fn browser() -> Client {
    Client::builder().no_proxy().redirect(Policy::none()).timeout(PATIENCE).build().unwrap()
}

async fn post(
    http: &Client,
    server: &Server,
    path: &str,
    origin: Option<&str>,
    cookie: Option<&str>,
    form: &[(&str, &str)],
) -> Response {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut request = http
        .post(server.url(path))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body);
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    request.send().await.unwrap()
}

/// The token in the first form of a page.
fn token_in(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"csrf\" value=\"").expect(page);
    rest.split_once('"').unwrap().0.to_owned()
}

#[tokio::test]
async fn every_answer_forbids_scripts_frames_and_caches() {
    let visit = Visit::start("full").await;
    let paths = [
        "/console",
        "/console/jobs",
        "/console/tools",
        "/console/tools/file_list",
        "/console/servers",
        "/console/approvals",
        "/console/dead-letters",
        "/console/sign-in",
        "/console/codes/FLEET-TIMEOUT",
        "/console/nothing",
        "/console/jobs/none",
        "/console/live",
    ];
    for path in paths {
        let response = visit.get(path).await;
        let headers = response.headers().clone();
        let expected = [
            ("content-security-policy", POLICY),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name} of {path}");
        }
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");

        let page = response.text().await.unwrap();
        assert!(page.len() < 200_000, "{path}: {} bytes", page.len());
        for forbidden in ["<script>", " style=", " onclick=", "javascript:", "=\"http", "=\"//"] {
            assert!(!page.contains(forbidden), "{path}: {forbidden}");
        }
    }
    let refused = visit.post("/console/servers", None, &[]).await;
    assert_eq!(refused.headers()["content-security-policy"], POLICY);
}

#[tokio::test]
async fn files_are_kept_and_others_are_not_served() {
    let visit = Visit::start("full").await;
    let page = visit.get("/console").await.text().await.unwrap();
    let (_, rest) = page.split_once("<link rel=\"stylesheet\" href=\"").unwrap();
    let style = rest.split_once('"').unwrap().0;

    let response = visit.get(style).await;
    assert_eq!(response.headers()["content-type"], "text/css; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "public, max-age=31536000, immutable");
    for path in [
        "/console/static/0000000000000000/console.css",
        "/console/static/x/..%2F..%2FCargo.toml",
        "/console/static/x/%2Fetc%2Fpasswd",
    ] {
        assert_eq!(visit.get(path).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn a_change_needs_the_token_and_the_origin_of_a_page_of_ours() {
    let visit = Visit::start("full").await;
    let (tool, path) = ("/console/tools/file_list", "/console/tools/file_list/calls");
    let (token, own) = (visit.token(tool).await, visit.origin());
    let call = |token| [("csrf", token), ("arguments", "{\"path\": \".\"}"), ("how", "now")];

    let accepted = visit.post(path, Some(&own), &call(&token)).await;
    assert_eq!(accepted.status(), 200);
    let page = accepted.text().await.unwrap();
    assert!(page.contains("onerror") && !page.contains("<img"), "{page}");

    let other_port = "http://127.0.0.1:1";
    for (origin, token) in [
        (None, token.as_str()),
        (Some("null"), &token),
        (Some("https://evil.example"), &token),
        (Some(other_port), &token),
        (Some(&own), ""),
        (Some(&own), "AAAA"),
        (Some(&own), &token[1..]),
    ] {
        let refused = visit.post(path, origin, &call(token)).await;
        assert_eq!(refused.status(), 403, "{origin:?} {token}");
        assert!(!refused.text().await.unwrap().contains("onerror"));
    }

    // A read never changes anything, and a change is never a read.
    for path in [path, "/console/servers/x/remove", "/console/jobs/j/cancel"] {
        let with_token = format!("{path}?csrf={token}&how=now");
        assert!(matches!(visit.get(&with_token).await.status().as_u16(), 404 | 405), "{path}");
    }
}

#[tokio::test]
async fn another_server_has_other_tokens() {
    let (one, other) = (Visit::start("full").await, Visit::start("full").await);
    let token = other.token("/console/tools/file_list").await;
    let form = [("csrf", token.as_str()), ("arguments", "{}")];
    let refused = one.post("/console/tools/file_list/calls", Some(&one.origin()), &form).await;
    assert_eq!(refused.status(), 403);
}

#[tokio::test]
async fn a_console_that_only_shows_changes_nothing() {
    let visit = Visit::start("read").await;
    let page = visit.get("/console/tools/file_list").await.text().await.unwrap();
    assert!(page.contains("read only") && !page.contains("Call now"), "{page}");
    let page = visit.get("/console/servers").await.text().await.unwrap();
    assert!(!page.contains("<textarea"), "{page}");

    for path in ["/console/tools/file_list/calls", "/console/server-checks", "/console/servers"] {
        let refused = visit.post(path, Some(&visit.origin()), &[("csrf", "x")]).await;
        assert_eq!(refused.status(), 403, "{path}");
    }
}

#[tokio::test]
async fn a_name_from_outside_is_text_in_a_result() {
    let visit = Visit::start("full").await;
    let token = visit.token("/console/tools/file_read").await;
    let arguments = serde_json::json!({"path": EVIL}).to_string();
    let form = [("csrf", token.as_str()), ("arguments", &arguments), ("how", "now")];
    let origin = visit.origin();
    let page = visit.post("/console/tools/file_read/calls", Some(&origin), &form).await;
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    assert!(page.contains("alert(1)"), "{page}");
    assert!(!page.contains("<script>") && !page.contains("<img"), "{page}");
}

#[tokio::test]
async fn without_jobs_there_is_a_console_only_if_it_is_asked_for() {
    let server = Server::start(&[]).await;
    for path in ["/console", "/console/jobs", "/console/sign-in"] {
        let answer = server.http.get(server.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    let visit = Visit::start("full").await;
    let root = visit.http.get(visit.server.url("/")).header("accept", "text/html");
    assert_eq!(root.send().await.unwrap().headers()["location"], "/console");
    assert_eq!(visit.get("/").await.status(), 404);
}

/// Signs in; returns the answer.
async fn sign_in(server: &Server, origin: Option<&str>, key: &str, next: &str) -> Response {
    let form = [("key", key), ("next", next)];
    post(&browser(), server, "/console/sign-in", origin, None, &form).await
}

/// The `name=value` of the cookie that an answer sets.
fn cookie_of(response: &Response) -> String {
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    cookie.split_once(';').unwrap().0.to_owned()
}

async fn get_with(server: &Server, path: &str, cookie: &str) -> Response {
    browser().get(server.url(path)).header("cookie", cookie).send().await.unwrap()
}

#[tokio::test]
async fn a_key_opens_a_session_that_ends_with_the_key() {
    let mut keys = Keys::new();
    let key = keys.add("ops", "somebody");
    let server = keys.start_server_with(&["--console", "full"]).await;
    let own = server.url("");

    let asked = browser().get(server.url("/console/tools?q=a")).send().await.unwrap();
    assert_eq!(asked.status(), 303);
    assert_eq!(asked.headers()["location"], "/console/sign-in?next=%2Fconsole%2Ftools%3Fq%3Da");

    for wrong in ["", "mf_ops_AAAA", "nonsense", "a b"] {
        let refused = sign_in(&server, Some(&own), wrong, "").await;
        assert!(matches!(refused.status().as_u16(), 400 | 401), "{wrong}");
        assert!(!refused.headers().contains_key("set-cookie"), "{wrong}");
    }
    for origin in [None, Some("https://evil.example"), Some("null")] {
        let refused = sign_in(&server, origin, &key, "").await;
        assert_eq!(refused.status(), 403, "{origin:?}");
        assert!(!refused.headers().contains_key("set-cookie"));
    }

    let opened = sign_in(&server, Some(&own), &key, "/console/tools?q=a").await;
    assert_eq!(
        (opened.status().as_u16(), &opened.headers()["location"]),
        (303, &"/console/tools?q=a".parse().unwrap())
    );
    let elsewhere = sign_in(&server, Some(&own), &key, "//evil.example").await;
    assert_eq!(elsewhere.headers()["location"], "/console");

    let cookie = cookie_of(&opened);
    assert!(!cookie.contains(&key) && cookie.starts_with("mcp-fleet="), "{cookie}");
    let page = get_with(&server, "/console/tools", &cookie).await;
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    assert!(
        page.contains("somebody") && page.contains("Sign out") && !page.contains(&key),
        "{page}"
    );

    // The cookie is for the console, whose changes have tokens, and for nothing else.
    let request = server.http.get(server.url("/tools")).header("cookie", &cookie);
    assert_eq!(request.send().await.unwrap().status(), 401);
    assert_eq!(list_tools(&server, &[]).await.status(), 401);
    let forged = format!("{}A", &cookie[..cookie.len() - 1]);
    assert_eq!(get_with(&server, "/console", &forged).await.status(), 303);

    keys.revoke("ops");
    eventually("the session ends with its key", async || {
        (get_with(&server, "/console/tools", &cookie).await.status() == 303).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_token_belongs_to_its_session_and_signing_out_ends_it() {
    let mut keys = Keys::new();
    let (mine, yours) = (keys.add("a", "me"), keys.add("b", "you"));
    let server = keys.start_server_with(&["--console", "full"]).await;
    let own = server.url("");
    let mine = cookie_of(&sign_in(&server, Some(&own), &mine, "").await);
    let yours = cookie_of(&sign_in(&server, Some(&own), &yours, "").await);
    let page = get_with(&server, "/console/servers", &yours).await.text().await.unwrap();
    let your_token = token_in(&page);

    let sign_out = async |cookie: &str, token: &str| {
        let form = [("csrf", token)];
        post(&browser(), &server, "/console/sign-out", Some(&own), Some(cookie), &form).await
    };
    assert_eq!(sign_out(&mine, &your_token).await.status(), 403);
    let out = sign_out(&yours, &your_token).await;
    assert_eq!(out.headers()["location"], "/console/sign-in");
    let cleared = out.headers().get_all("set-cookie").iter();
    assert!(
        cleared.map(|cookie| cookie.to_str().unwrap()).all(|cookie| cookie.contains("Max-Age=0"))
    );
}

#[tokio::test]
async fn behind_tls_the_cookie_is_for_this_host_alone() {
    let mut keys = Keys::new();
    let key = keys.add("ops", "somebody");
    let url = "https://fleet.example.com";
    let args = ["--console", "full", "--public-url", url, "--allowed-hosts", "fleet.example.com"];
    let server = keys.start_server_with(&args).await;
    let form = format!("key={key}");
    let request = browser().post(server.url("/console/sign-in"));
    let request = request
        .header("host", "fleet.example.com")
        .header("origin", url)
        .header("content-type", "application/x-www-form-urlencoded");
    let opened = request.body(form).send().await.unwrap();
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("__Host-mcp-fleet=") && cookie.contains("; Secure"), "{cookie}");
    assert!(cookie.contains("Path=/;") && !cookie.contains("Domain"), "{cookie}");

    // What somebody on the way could set over plain HTTP is no session.
    let value = cookie.split_once(';').unwrap().0.split_once('=').unwrap().1;
    let with = async |cookie: String| get_with(&server, "/console", &cookie).await.status();
    assert_eq!(with(format!("mcp-fleet={value}")).await, 303);
    assert_eq!(with(format!("__Host-mcp-fleet={value}")).await, 200);
}
