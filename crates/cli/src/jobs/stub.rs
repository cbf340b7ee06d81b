//! A stub server with scripted responses, and tests of the client against it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use fleet_job::{
    event::JobState,
    filter::JobFilter,
    view::{CancelOutcome, JobView},
};
use fleet_ops::tls::ClientTls;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    api::Api,
    board::Board,
    follow::{StreamUpdate, follow},
    list::Pages,
    render::tests::job,
    wait::{JobWaits, WaitEnd},
    watch::{Show, Watch},
};
use crate::api_error::ApiError;

const SOON: Duration = Duration::from_secs(10);

/// A scripted response.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: String,
    /// Whether the connection breaks after the body instead of ending properly.
    cut: bool,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string(), cut: false }
    }

    fn busy() -> Self {
        let body = json!({"title": "Service Unavailable", "status": 503, "detail": "the ledger is being read"});
        Self { headers: vec![("retry-after", "0")], ..Self::json(503, &body) }
    }

    fn stream(body: &str) -> Self {
        let headers = vec![("content-type", "text/event-stream")];
        Self { status: 200, headers, body: body.to_owned(), cut: false }
    }

    fn cut(self) -> Self {
        Self { cut: true, ..self }
    }
}

/// A request that the stub received: method, path with query, and headers.
type Asked = (String, String, HeaderMap);

#[derive(Clone)]
struct Stub {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    /// Starts a server that gives these responses, one after the other, and then 410.
    async fn start(answers: impl IntoIterator<Item = Answer>) -> (Api, Self) {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        let stub = Self { answers, asked: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (Api::new(url.parse().unwrap(), Some("secret"), &ClientTls::default()).unwrap(), stub)
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(method, path, _)| format!("{method} {path}")).collect()
    }

    /// The `Last-Event-ID` of each request.
    fn resumed(&self) -> Vec<Option<String>> {
        let asked = self.asked.lock().unwrap();
        let id =
            |headers: &HeaderMap| Some(headers.get("last-event-id")?.to_str().unwrap().to_owned());
        asked.iter().map(|(_, _, headers)| id(headers)).collect()
    }
}

async fn answer(State(stub): State<Stub>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    stub.asked.lock().unwrap().push((
        request.method().to_string(),
        path,
        request.headers().clone(),
    ));
    let answer = stub.answers.lock().unwrap().pop_front();
    let answer =
        answer.unwrap_or_else(|| Answer::json(410, &json!({"detail": "no answer is left"})));

    let mut response = Response::builder().status(StatusCode::from_u16(answer.status).unwrap());
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }

    let body = stream::once(async { Ok::<Bytes, &str>(answer.body.into()) });
    let cut = stream::iter(answer.cut.then_some(()));

    // Let the body go out before the connection breaks.
    let cut = cut.then(|()| async {
        tokio::task::yield_now().await;
        Err("cut")
    });
    response.body(Body::from_stream(body.chain(cut))).unwrap()
}

fn state(id: &str, job: &JobView) -> String {
    format!("id: {id}\nevent: state\ndata: {}\n\n", json!(job))
}

#[tokio::test]
async fn a_job_is_fetched_with_the_token() {
    let done = job("a/b", JobState::Succeeded, 5);
    let (api, stub) = Stub::start([Answer::json(200, &json!(done))]).await;
    assert_eq!(api.get("a/b").await.unwrap(), done);
    assert_eq!(stub.asked(), ["GET /jobs/a%2Fb"]);
    assert_eq!(stub.asked.lock().unwrap()[0].2["authorization"], "Bearer secret");
}

#[tokio::test]
async fn a_problem_is_shown_in_the_servers_words() {
    let problem = json!({"type": "about:blank", "title": "Not Found", "status": 404, "detail": "there is no job `x`"});
    let (api, _) =
        Stub::start([Answer::json(404, &problem), Answer::json(200, &json!({"no": "job"}))]).await;
    let error = api.get("x").await.unwrap_err();
    assert!(!error.is_passing());
    assert_eq!(error.to_string(), "there is no job `x`");
    assert!(matches!(api.get("x").await, Err(ApiError::Unreadable { .. })));
}

#[tokio::test]
async fn requests_are_retried_while_the_server_reads_its_ledger() {
    let list = json!({"jobs": [job("j", JobState::Queued, 5)]});
    let (api, stub) = Stub::start([Answer::busy(), Answer::json(200, &list)]).await;
    assert_eq!(api.list(&JobFilter::default(), 7, None).await.unwrap().jobs.len(), 1);
    assert_eq!(stub.asked(), ["GET /jobs?limit=7", "GET /jobs?limit=7"]);
}

#[tokio::test]
async fn an_unreachable_server_is_named() {
    // The port was bound and released, so nothing listens on it.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}").parse().unwrap();
    let api = Api::new(url, None, &ClientTls::default()).unwrap();
    let error = api.get("x").await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("no mcp-server responds at http://127.0.0.1:{port}: ")),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn pages_are_followed_up_to_the_limit() {
    let page = |ids: &[&str], next: Option<&str>| {
        let jobs: Vec<_> = ids.iter().map(|id| job(id, JobState::Queued, 5)).collect();
        Answer::json(200, &json!({"jobs": jobs, "nextCursor": next}))
    };
    let pages =
        [page(&["a", "b"], Some("x y")), page(&[], Some("z")), page(&["c", "d"], Some("z"))];
    let (api, stub) = Stub::start(pages).await;
    let filter = JobFilter { states: vec![JobState::Queued], ..JobFilter::default() };
    let (mut pages, mut ids) = (Pages::new(&api, &filter, 9), Vec::new());
    while let Some(page) = pages.next().await.unwrap() {
        ids.extend(page.into_iter().map(|job| job.event.job_id));
    }
    assert_eq!(ids, ["a", "b", "c", "d"], "a cursor that does not move is not followed");
    assert_eq!(stub.asked()[1], "GET /jobs?state=queued&limit=7&cursor=x+y");
}

#[tokio::test]
async fn cancellation_outcomes() {
    let (gone, done) = (job("j", JobState::Cancelled, 5), job("j", JobState::Succeeded, 5));
    let problem = json!({"title": "Conflict", "status": 409, "detail": "too late", "job": done});
    let answers = [
        Answer::json(200, &json!({"outcome": "cancelled", "job": gone})),
        Answer::json(409, &problem),
        Answer::json(202, &json!({"outcome": "requested", "job": job("j", JobState::Running, 5)})),
    ];
    let (api, stub) = Stub::start(answers).await;
    for expected in [CancelOutcome::Cancelled, CancelOutcome::TooLate, CancelOutcome::Requested] {
        assert_eq!(api.cancel("j", Some("a b"), 3).await.unwrap().outcome, expected);
    }
    assert_eq!(stub.asked()[0], "DELETE /jobs/j?wait=3&reason=a+b");
}

#[tokio::test]
async fn jobs_are_submitted_and_run_again_even_if_the_server_is_busy_at_first() {
    let submitted = json!({"jobs": [{"jobID": "n", "state": "queued", "existing": false}]});
    let answers = [Answer::busy(), Answer::json(202, &submitted), Answer::json(202, &submitted)];
    let (api, stub) = Stub::start(answers).await;
    assert_eq!(api.submit(&[json!({"jobID": "n"})]).await.unwrap().jobs[0].job_id, "n");
    assert_eq!(api.run_again("a/b", &json!({})).await.unwrap().jobs.len(), 1);
    assert_eq!(stub.asked(), ["POST /jobs", "POST /jobs", "POST /jobs/a%2Fb/runs"]);
}

#[tokio::test]
async fn a_server_that_is_not_ready_says_why() {
    let starting = json!({"status": "not ready", "reason": "reading the registry"});
    let (api, _) = Stub::start([Answer::json(503, &starting), Answer::json(200, &json!({}))]).await;
    let error = api.check_ready(SOON).await.unwrap_err().to_string();
    assert!(error.contains("is not ready: reading the registry [FLEET-NOT-READY]"), "{error}");
    assert!(api.check_ready(SOON).await.is_ok());
}

async fn wait(answers: Vec<Answer>, timeout: Duration) -> (WaitEnd, Stub) {
    let (api, stub) = Stub::start(answers).await;
    let deadline = Instant::now() + timeout;
    let waiting = JobWaits::new(api, deadline, 1);
    (waiting.wait_for_job("j").await, stub)
}

#[tokio::test]
async fn waiting_resumes_after_a_broken_stream() {
    let (running, done) = (job("j", JobState::Running, 5), job("j", JobState::Succeeded, 5));
    let text = format!("{}{}", state("0-1", &running), state("0-7", &running));
    // The stream breaks in the middle of an event, which is then ignored.
    let half = format!("{text}{}", &state("0-9", &done)[..40]);
    let answers = vec![
        Answer::busy(),
        Answer::stream(&half).cut(),
        Answer::json(502, &json!({})),
        Answer::stream(&state("0-9", &done)),
    ];
    let (end, stub) = wait(answers, SOON).await;
    assert!(matches!(end, WaitEnd::Ended(job) if *job == done));
    let id = Some("0-7".to_owned());
    assert_eq!(stub.resumed(), [None, None, id.clone(), id]);
    assert_eq!(stub.asked()[3], "GET /jobs/j/events");
}

#[tokio::test]
async fn waiting_for_an_unknown_job_ends_at_once() {
    let (end, _) =
        wait(vec![Answer::json(404, &json!({"detail": "there is no job `j`"}))], SOON).await;
    assert!(matches!(end, WaitEnd::Unknown(error) if error.to_string().contains("no job")));
}

#[tokio::test]
async fn a_job_without_events_is_checked_once_more_at_the_timeout() {
    let done = job("j", JobState::Failed, 5);
    // Either of the two requests may get the first response.
    let (end, _) = wait(
        vec![Answer::json(200, &json!(done)), Answer::json(200, &json!(done))],
        Duration::ZERO,
    )
    .await;
    assert!(matches!(end, WaitEnd::Ended(_)));
}

#[tokio::test]
async fn a_stream_of_all_jobs_reports_gaps() {
    let running = job("j", JobState::Running, 5);
    let first = format!(
        ": hello\n\nid: 0-1,1-4\n\nevent: what?\ndata: x\n\n{}",
        state("0-2,1-4", &running)
    );
    let second = format!(
        "id: 0-9,1-9\nevent: reset\ndata: {{}}\n\n{}",
        state("0-10,1-9", &running).replace("event: state", "event: running")
    );
    let (api, stub) = Stub::start([Answer::stream(&first).cut(), Answer::stream(&second)]).await;
    let filter = JobFilter {
        tool: Some("t".into()),
        states: vec![JobState::Failed],
        ..JobFilter::default()
    };
    let mut news = follow(api.clone(), api.events(&filter).unwrap());
    let mut heard = Vec::new();

    loop {
        match tokio::time::timeout(SOON, news.recv()).await.unwrap() {
            Some(StreamUpdate::Open) => heard.push("open"),
            Some(StreamUpdate::Missed) => heard.push("missed"),
            Some(StreamUpdate::Job(_)) => heard.push("job"),
            Some(StreamUpdate::Trouble(_)) => heard.push("trouble"),
            Some(StreamUpdate::Ended(_)) | None => break,
        }
    }

    let expected = ["open", "missed", "job", "trouble", "open", "missed", "job", "trouble"];
    assert_eq!(heard, expected);
    let resumed = [None, Some("0-2,1-4".to_owned()), Some("0-10,1-9".to_owned())];
    assert_eq!(stub.resumed(), resumed);
    assert_eq!(stub.asked()[0], "GET /events?tool=t");
}

/// Records what it is shown.
struct Noted(Arc<Mutex<Vec<String>>>, CancellationToken);

impl Show for Noted {
    fn job(&mut self, job: &JobView) {
        self.0.lock().unwrap().push(job.event.job_id.clone());
    }

    fn begin(&mut self, news: &[&JobView]) {
        let ids: Vec<_> = news.iter().map(|job| job.event.job_id.as_str()).collect();
        self.0.lock().unwrap().push(format!("begin {}", ids.join(" ")));
        self.1.cancel();
    }

    fn connection(&mut self, _: Option<&ApiError>) {}

    fn tick(&mut self, _: &Board) {}
}

#[tokio::test]
async fn watching_lists_missed_jobs_and_stops_on_request() {
    let list = json!({"jobs": [job("b", JobState::Queued, 6), job("a", JobState::Failed, 5)]});
    let (api, _) = Stub::start([Answer::json(200, &list)]).await;
    let (sender, news) = tokio::sync::mpsc::channel(8);
    for next in [
        StreamUpdate::Open,
        StreamUpdate::Job(Box::new(job("a", JobState::Failed, 5))),
        StreamUpdate::Missed,
    ] {
        sender.send(next).await.unwrap();
    }

    let (noted, stop) = (Arc::default(), CancellationToken::new());
    let show = Box::new(Noted(Arc::clone(&noted), stop.clone()));
    let filter = JobFilter::default();
    let watch = Watch { api, board: Board::new(filter.clone(), 9), filter, show, stale: false };
    tokio::time::timeout(SOON, watch.run(news, Duration::from_millis(5), stop))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*noted.lock().unwrap(), ["a", "begin b"]);
}
