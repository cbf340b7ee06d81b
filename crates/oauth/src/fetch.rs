//! The requests to authorization servers.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, header::CONTENT_LENGTH};
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRequest,
};
use url::{Host, Origin, Url};

/// The most bytes of an answer.
const MAX_ANSWER: usize = 256 * 1024;
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where requests may go.
#[derive(Debug, Clone)]
pub enum Reach {
    /// Wherever the MCP server says, also with the client's secret.
    Anywhere,
    /// To these two alone.
    Configured {
        /// The origin of the authorization server. Only it is sent more than questions.
        issuer: Origin,
        /// The origin of the MCP server, which may be asked for its metadata.
        server: Origin,
    },
}

impl Reach {
    /// Requests may go to this authorization server, and questions to this MCP server.
    pub fn configured(issuer: &Url, server: &Url) -> Self {
        Self::Configured { issuer: issuer.origin(), server: server.origin() }
    }
}

/// Sends requests to an MCP server and its authorization server, through clients of the caller's.
/// These must not follow redirects.
#[derive(Clone)]
pub struct BoundedClient {
    sender: Arc<dyn SendRequest>,
    reach: Reach,
    audience: Option<String>,
}

/// Sends one request.
pub(crate) trait SendRequest: Send + Sync {
    /// Sends a request whose target was checked.
    fn send(&self, request: Request<Vec<u8>>) -> OAuthHttpClientFuture<'_>;
}

/// Sends each request through the client that the function returns then for its URL.
struct CurrentClient<F>(F);

impl fmt::Debug for BoundedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedClient").field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl BoundedClient {
    /// Sends each request through the client that `current` returns then for its URL.
    pub fn new(
        current: impl Fn(&Url) -> reqwest::Client + Send + Sync + 'static,
        reach: Reach,
    ) -> Self {
        Self::through(CurrentClient(current), reach)
    }

    pub(crate) fn through(sender: impl SendRequest + 'static, reach: Reach) -> Self {
        Self { sender: Arc::new(sender), reach, audience: None }
    }

    /// Asks for tokens of this audience. That is what authorization servers without RFC 8707 call
    /// the resource.
    #[must_use]
    pub fn with_audience(self, audience: Option<String>) -> Self {
        Self { audience, ..self }
    }

    /// Gets a document.
    pub(crate) async fn get(&self, url: &Url) -> Result<Response<Vec<u8>>, OAuthHttpClientError> {
        self.send(Request::get(url.as_str()).body(Vec::new())?).await
    }

    async fn send(
        &self,
        mut request: Request<Vec<u8>>,
    ) -> Result<Response<Vec<u8>>, OAuthHttpClientError> {
        let url = Url::parse(&request.uri().to_string())?;
        check(&self.reach, request.method(), &url)?;
        if let Some(audience) = &self.audience {
            add_to_form(&mut request, "audience", audience);
        }
        self.sender.send(request).await
    }
}

impl OAuthHttpClient for BoundedClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(self.send(request.request))
    }
}

impl<F: Fn(&Url) -> reqwest::Client + Send + Sync> SendRequest for CurrentClient<F> {
    fn send(&self, request: Request<Vec<u8>>) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let mut request =
                reqwest::Request::try_from(request).map_err(reqwest::Error::without_url)?;
            *request.timeout_mut() = Some(LIMIT);

            let client = (self.0)(request.url());
            // The URL of an MCP server may hold a key.
            let response = client.execute(request).await.map_err(reqwest::Error::without_url)?;
            read(response).await
        })
    }
}

/// Reads an answer, which must not be too long.
async fn read(mut response: reqwest::Response) -> Result<Response<Vec<u8>>, OAuthHttpClientError> {
    let mut builder = Response::builder().status(response.status());
    for (name, value) in response.headers() {
        builder = builder.header(name, value);
    }

    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("the answer has more than {MAX_ANSWER} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(builder.body(body)?)
}

/// Adds a field to the form of a request for a token.
fn add_to_form(request: &mut Request<Vec<u8>>, name: &str, value: &str) {
    if request.method() != Method::POST {
        return;
    }

    let field =
        url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
    let body = request.body_mut();
    body.push(b'&');
    body.extend_from_slice(field.as_bytes());
    let length = HeaderValue::from(body.len());
    if let Some(written) = request.headers_mut().get_mut(CONTENT_LENGTH) {
        *written = length;
    }
}

/// Refuses a request to a place that was not configured, and secrets in clear text. Whatever is not
/// a question (GET) may have a secret, so it goes to the authorization server alone.
fn check(reach: &Reach, method: &Method, url: &Url) -> Result<(), String> {
    let is_question = *method == Method::GET;
    if let Reach::Configured { issuer, server } = reach {
        let (origin, shown) = (url.origin(), url.origin().ascii_serialization());
        if origin != *issuer && !is_question {
            return Err(format!(
                "{shown} is not the configured issuer, so no secret is sent there"
            ));
        }
        if origin != *issuer && origin != *server {
            return Err(format!("{shown} is neither the MCP server nor the configured issuer"));
        }
    }

    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if !is_question && url.scheme() != "https" && !is_loopback {
        let origin = url.origin().ascii_serialization();
        return Err(format!("{origin} is not https, so no secret is sent there"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_added_to_forms() {
        let form = b"grant_type=x".to_vec();
        let mut post = Request::post("https://a/t").header(CONTENT_LENGTH, 12).body(form).unwrap();
        add_to_form(&mut post, "audience", "https://crm/ a");
        assert_eq!(post.body(), b"grant_type=x&audience=https%3A%2F%2Fcrm%2F+a");
        assert_eq!(post.headers()[CONTENT_LENGTH], post.body().len().to_string());

        let mut get = Request::get("https://a/t").body(Vec::new()).unwrap();
        add_to_form(&mut get, "audience", "a");
        assert!(get.body().is_empty());
    }

    #[test]
    fn secrets_go_to_the_configured_issuer_and_never_in_clear_text() {
        let url = |text: &str| Url::parse(text).unwrap();
        let issuer = url("https://idp.example/realm");
        for (server, method, target, is_allowed) in [
            ("http://mcp.internal:8080/mcp", Method::GET, "http://mcp.internal:8080/x", true),
            ("http://mcp.internal:8080/mcp", Method::POST, "http://mcp.internal:8080/token", false),
            ("https://mcp.example/mcp", Method::GET, "https://mcp.example/.well-known/x", true),
            ("https://mcp.example/mcp", Method::POST, "https://mcp.example/token", false),
            ("https://mcp.example/mcp", Method::PUT, "https://mcp.example/token", false),
            ("https://mcp.example/mcp", Method::GET, "https://idp.example/.well-known/y", true),
            ("https://mcp.example/mcp", Method::POST, "https://idp.example/token", true),
            ("https://mcp.example/mcp", Method::POST, "https://evil.example/token", false),
            ("https://mcp.example/mcp", Method::GET, "http://169.254.169.254/latest", false),
            ("https://mcp.example/mcp", Method::GET, "https://idp.example:444/", false),
        ] {
            let reach = Reach::configured(&issuer, &url(server));
            assert_eq!(check(&reach, &method, &url(target)).is_ok(), is_allowed, "{target}");
        }
        for (target, is_allowed) in
            [("http://127.0.0.1:9/token", true), ("https://a/t", true), ("http://a/t", false)]
        {
            let checked = check(&Reach::Anywhere, &Method::POST, &url(target));
            assert_eq!(checked.is_ok(), is_allowed, "{target}");
        }
    }
}
