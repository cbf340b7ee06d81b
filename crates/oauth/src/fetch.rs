//! The requests to authorization servers.

use std::{fmt, sync::Arc, time::Duration};

use http::{StatusCode, header::LOCATION};
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRedirectPolicy,
    OAuthHttpRequest,
};
use url::Url;

/// The most bytes of an answer.
const MAX_ANSWER: usize = 256 * 1024;
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The most redirects that are followed, within one origin.
const MAX_REDIRECTS: usize = 3;

/// Sends requests to authorization servers through a client of the caller's, whose trust and
/// addresses are the caller's too. The client must not follow redirects by itself.
#[derive(Clone)]
pub struct BoundedClient(Arc<CurrentClient>);

type CurrentClient = dyn Fn() -> reqwest::Client + Send + Sync;

impl fmt::Debug for BoundedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundedClient")
    }
}

impl BoundedClient {
    /// Sends each request through the client that `current` returns then.
    pub fn new(current: impl Fn() -> reqwest::Client + Send + Sync + 'static) -> Self {
        Self(Arc::new(current))
    }

    async fn send(
        &self,
        request: OAuthHttpRequest,
    ) -> Result<http::Response<Vec<u8>>, OAuthHttpClientError> {
        let follows = request.redirect_policy == OAuthHttpRedirectPolicy::Follow;
        let mut request = reqwest::Request::try_from(request.request)?;
        *request.timeout_mut() = Some(LIMIT);

        for _ in 0..=MAX_REDIRECTS {
            let again = request.try_clone();
            let url = request.url().clone();
            let mut response = (self.0)().execute(request).await?;
            if follows
                && let Some(next) = redirect_target(&response, &url)
                && let Some(mut again) = again
            {
                *again.url_mut() = next;
                request = again;
                continue;
            }

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
            return Ok(builder.body(body)?);
        }
        Err(format!("more than {MAX_REDIRECTS} redirects").into())
    }
}

impl OAuthHttpClient for BoundedClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(self.send(request))
    }
}

/// Where a redirect leads, if it stays with its origin: secrets go nowhere else.
fn redirect_target(response: &reqwest::Response, from: &Url) -> Option<Url> {
    let is_redirect = matches!(
        response.status(),
        StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
            | StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
    );
    let target = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    let target = from.join(target.to_str().ok()?).ok()?;
    (target.origin() == from.origin()).then_some(target)
}
