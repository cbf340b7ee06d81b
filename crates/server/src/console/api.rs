//! The server's own interfaces as the console calls them: in this process, as the visitor.

use axum::{
    Router,
    body::{Body, BodyDataStream, to_bytes},
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use fleet_access::Asker;
use fleet_console::views::ProblemView;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::ServiceExt as _;

/// The most bytes of an answer. Events of jobs, the largest answers, are smaller.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The longest text of an answer that is not a problem document, in characters.
const SHOWN: usize = 500;

/// The routes behind authentication.
#[derive(Clone)]
pub(super) struct Api {
    routes: Router,
}

/// An answer that is not a problem.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Api {
    pub(super) fn new(routes: Router) -> Self {
        Self { routes }
    }

    /// Gets a document.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        asker: &Asker,
        path: &str,
        query: &[(String, String)],
    ) -> Result<T, ProblemView> {
        let answer = self.send(asker, Method::GET, &with_query(path, query), None).await?;
        serde_json::from_value(answer.body).map_err(|error| internal(&error))
    }

    /// Sends a request with this JSON body, or without one.
    pub(super) async fn send(
        &self,
        asker: &Asker,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ProblemView> {
        let (status, _, body) = self.serve(asker, method, path, body).await?;
        let body = to_bytes(body, MAX_ANSWER).await.map_err(|error| internal(&error))?;
        if status.is_success() {
            let body = serde_json::from_slice(&body).map_err(|error| internal(&error))?;
            return Ok(Answer { status, body });
        }
        Err(read_problem(status, &body))
    }

    /// Opens a stream of events.
    pub(super) async fn open_stream(
        &self,
        asker: &Asker,
        path: &str,
        query: &[(String, String)],
    ) -> Result<BodyDataStream, ProblemView> {
        let path = with_query(path, query);
        let (status, _, body) = self.serve(asker, Method::GET, &path, None).await?;
        if status == StatusCode::OK {
            return Ok(body.into_data_stream());
        }
        let body = to_bytes(body, MAX_ANSWER).await.map_err(|error| internal(&error))?;
        Err(read_problem(status, &body))
    }

    async fn serve(
        &self,
        asker: &Asker,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, HeaderMap, Body), ProblemView> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        // The same headers as from a client, since limits count the bytes of a body by them. There
        // are no credentials: the asker goes with the request.
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_LENGTH, bytes.len());
        if body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request = request.header(header::CONTENT_TYPE, json);
        }

        let mut request = request.body(Body::from(bytes)).map_err(|error| internal(&error))?;
        request.extensions_mut().insert(asker.clone());
        let response = match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        Ok((parts.status, parts.headers, body))
    }
}

/// A path with a query.
fn with_query(path: &str, query: &[(String, String)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// Reads an answer that says that something is wrong.
fn read_problem(status: StatusCode, body: &[u8]) -> ProblemView {
    let problem = serde_json::from_slice::<ProblemView>(body).unwrap_or_default();
    if !problem.title.is_empty() {
        return ProblemView { status: status.as_u16(), ..problem };
    }
    ProblemView {
        title: status.canonical_reason().unwrap_or("The request failed").to_owned(),
        status: status.as_u16(),
        detail: String::from_utf8_lossy(body).trim().chars().take(SHOWN).collect(),
        ..ProblemView::default()
    }
}

/// The problem of an answer that the console does not understand.
fn internal(error: &dyn std::error::Error) -> ProblemView {
    tracing::error!(
        error = error.to_string(),
        "the console could not read an answer of its server"
    );
    ProblemView {
        title: "The console failed".to_owned(),
        status: 500,
        detail: "an answer of the server could not be read; see the server's log".to_owned(),
        ..ProblemView::default()
    }
}

#[cfg(test)]
mod tests {
    use axum::{extract::Request as AnyRequest, routing::get};

    use super::*;

    #[tokio::test]
    async fn a_request_goes_with_the_asker_and_without_credentials() {
        let handler = async |request: AnyRequest| {
            assert!(request.extensions().get::<Asker>().is_some());
            assert!(!request.headers().contains_key(header::AUTHORIZATION));
            assert!(!request.headers().contains_key(header::COOKIE));
            axum::Json(request.uri().to_string())
        };
        let api = Api::new(Router::new().route("/jobs", get(handler)));
        let query = [("tool".to_owned(), "a&b".to_owned())];
        let uri: String = api.get(&Asker::local(), "/jobs", &query).await.unwrap();
        assert_eq!(uri, "/jobs?tool=a%26b");

        let problem = api.get::<String>(&Asker::local(), "/x", &[]).await.unwrap_err();
        assert_eq!((problem.status, problem.title.as_str()), (404, "Not Found"));
    }
}
