//! The requests to authorization servers.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderValue, Method, header::CONTENT_LENGTH};
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRequest,
};
use url::{Host, Origin, Url};

/// The most bytes of an answer.
const MAX_ANSWER: usize = 256 * 1024;
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends requests to an MCP server and its authorization server, through clients of the caller's.
/// These must not follow redirects.
#[derive(Clone)]
pub struct BoundedClient {
    current: Arc<CurrentClient>,
    /// Where requests may go; anywhere if there are none.
    origins: Vec<Origin>,
    audience: Option<String>,
}

type CurrentClient = dyn Fn(&Url) -> reqwest::Client + Send + Sync;

impl fmt::Debug for BoundedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedClient").field("origins", &self.origins).finish_non_exhaustive()
    }
}

impl BoundedClient {
    /// Sends each request through the client that `current` returns then for its URL. Requests go to
    /// these URLs' origins only, if there are any.
    pub fn new(
        current: impl Fn(&Url) -> reqwest::Client + Send + Sync + 'static,
        origins: &[Url],
    ) -> Self {
        let origins = origins.iter().map(Url::origin).collect();
        Self { current: Arc::new(current), origins, audience: None }
    }

    /// Asks for tokens of this audience. That is what authorization servers without RFC 8707 call
    /// the resource.
    #[must_use]
    pub fn with_audience(self, audience: Option<String>) -> Self {
        Self { audience, ..self }
    }

    async fn send(
        &self,
        request: OAuthHttpRequest,
    ) -> Result<http::Response<Vec<u8>>, OAuthHttpClientError> {
        let mut request = reqwest::Request::try_from(request.request)?;
        check(&self.origins, request.method(), request.url())?;
        *request.timeout_mut() = Some(LIMIT);
        if let Some(audience) = &self.audience {
            add_to_form(&mut request, "audience", audience);
        }

        let client = (self.current)(request.url());
        let mut response = client.execute(request).await?;
        let mut builder = http::Response::builder().status(response.status());
        for (name, value) in response.headers() {
            builder = builder.header(name, value);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(format!("the answer has more than {MAX_ANSWER} bytes").into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(builder.body(body)?)
    }
}

impl OAuthHttpClient for BoundedClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(self.send(request))
    }
}

/// Adds a field to the form of a request for a token.
fn add_to_form(request: &mut reqwest::Request, name: &str, value: &str) {
    let form = request.body().and_then(reqwest::Body::as_bytes);
    let (true, Some(form)) = (request.method() == Method::POST, form) else { return };

    let field =
        url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
    let body = [form, b"&", field.as_bytes()].concat();
    let length = HeaderValue::from(body.len());
    *request.body_mut() = Some(body.into());
    if let Some(written) = request.headers_mut().get_mut(CONTENT_LENGTH) {
        *written = length;
    }
}

/// Refuses a request to a place that was not configured, and secrets in clear text.
fn check(origins: &[Origin], method: &Method, url: &Url) -> Result<(), String> {
    if !origins.is_empty() && !origins.contains(&url.origin()) {
        let origin = url.origin().ascii_serialization();
        return Err(format!("{origin} is neither the MCP server nor the configured issuer"));
    }
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if method == Method::POST && url.scheme() != "https" && !is_loopback {
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
        let client = reqwest::Client::new();
        let mut post = client.post("https://a/t").body("grant_type=x").build().unwrap();
        add_to_form(&mut post, "audience", "https://crm/ a");
        let body = post.body().and_then(reqwest::Body::as_bytes).unwrap();
        assert_eq!(body, b"grant_type=x&audience=https%3A%2F%2Fcrm%2F+a");

        let mut get = client.get("https://a/t").build().unwrap();
        add_to_form(&mut get, "audience", "a");
        assert!(get.body().is_none());
    }

    #[test]
    fn secrets_go_to_the_configured_issuer_and_never_in_clear_text() {
        let url = |text: &str| Url::parse(text).unwrap();
        let origins = [url("http://mcp.internal:8080/mcp"), url("https://idp.example/realm")];
        let origins = origins.map(|url| url.origin());
        let ask = |origins: &[Origin], method: Method, text: &str| {
            check(origins, &method, &url(text)).map_err(|error| error.split(' ').count())
        };
        for (method, target, is_allowed) in [
            (Method::GET, "http://mcp.internal:8080/.well-known/x", true),
            (Method::GET, "https://idp.example/.well-known/y", true),
            (Method::POST, "https://idp.example/token", true),
            (Method::POST, "http://mcp.internal:8080/token", false),
            (Method::POST, "https://evil.example/token", false),
            (Method::GET, "http://169.254.169.254/latest", false),
            (Method::GET, "https://idp.example:444/", false),
        ] {
            assert_eq!(ask(&origins, method, target).is_ok(), is_allowed, "{target}");
        }
        for (target, is_allowed) in
            [("http://127.0.0.1:9/token", true), ("https://a/t", true), ("http://a/t", false)]
        {
            assert_eq!(ask(&[], Method::POST, target).is_ok(), is_allowed, "{target}");
        }
    }
}
