//! A job, and what is done with it.

use axum::{
    extract::{Path, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_console::{
    Notice, Section, content, links,
    screens::{EditScreen, JobScreen},
    views::{JobPage, ProblemView, ToolView},
};
use fleet_job::view::{JobHistory, JobRecord, JobView, SubmittedJobs, tool_result};
use serde_json::{Value, json};

use super::{
    Console, headers,
    visit::{Change, Failure, Screen, Visit, go_on, show},
};

/// The part of the page that is fetched again after each transition.
const HISTORY: &str = "history";

/// The path of a job in the REST interface.
fn rest_path(id: &str) -> String {
    format!("/jobs/{}", links::segment(id))
}

/// `GET /console/jobs/{id}`.
pub(super) async fn show_job(
    State(console): State<Console>,
    visit: Visit,
    Path(id): Path<String>,
) -> Screen {
    let (api, path) = (&console.inner.api, rest_path(&id));
    let part = visit.parameter("part");
    // They are read from topics, which is too much for every sign of progress.
    let (with_record, with_history) =
        (!visit.is_refresh, !visit.is_refresh || part.as_deref() == Some(HISTORY));
    let (record_path, history_path) = (format!("{path}/envelope"), format!("{path}/history"));

    let (job, record, history) = tokio::join!(
        api.get::<JobView>(&visit.asker, &path, &[]),
        async {
            match with_record {
                true => api.get::<JobRecord>(&visit.asker, &record_path, &[]).await,
                false => Err(ProblemView::default()),
            }
        },
        async {
            match with_history {
                true => api.get::<JobHistory>(&visit.asker, &history_path, &[]).await,
                false => Err(ProblemView::default()),
            }
        },
    );
    let job = job.map_err(|problem| Failure::from(problem).leading_to(links::jobs([])))?;

    let mut page = visit.page(format!("Job {id}"), Section::Jobs);
    if !job.is_terminal() {
        page = page.live_from(format!("{}/live", links::job(&id)));
    }
    show(JobScreen::new(page, &JobPage { job, history, record }))
}

async fn get_job(console: &Console, visit: &Visit, id: &str) -> Result<JobView, Failure> {
    let job = console.inner.api.get(&visit.asker, &rest_path(id), &[]).await;
    job.map_err(|problem| Failure::from(problem).leading_to(links::jobs([])))
}

/// `GET /console/jobs/{id}/result.json`.
pub(super) async fn download_result(
    State(console): State<Console>,
    visit: Visit,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let job = get_job(&console, &visit, &id).await?;
    let Some(result) = tool_result(&job.event) else {
        let failure = Failure::new(StatusCode::NOT_FOUND, "This job has no result", "");
        return Err(failure.leading_to(links::job(&id)));
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"result.json\""),
        (header::CONTENT_SECURITY_POLICY, headers::FILE_POLICY),
    ];
    Ok((headers, result.to_string()).into_response())
}

/// `GET /console/jobs/{id}/content/{index}`: an image or a recording of the result.
pub(super) async fn serve_content(
    State(console): State<Console>,
    visit: Visit,
    Path((id, index)): Path<(String, usize)>,
) -> Result<Response, Failure> {
    let job = get_job(&console, &visit, &id).await?;
    let media = tool_result(&job.event).and_then(|result| content::media_at(result, index));
    let Some(media) = media else {
        let detail = "The result has no image or recording at this place.";
        return Err(Failure::new(StatusCode::NOT_FOUND, "There is no such content", detail));
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media.media_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(headers::FILE_POLICY)),
        // A result never changes.
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=300")),
    ];
    Ok((headers, media.bytes).into_response())
}

/// `GET /console/jobs/{id}/edit`.
pub(super) async fn show_edit(
    State(console): State<Console>,
    visit: Visit,
    Path(id): Path<String>,
) -> Screen {
    let job = get_job(&console, &visit, &id).await?;
    let path = format!("{}/envelope", rest_path(&id));
    let record = console.inner.api.get::<JobRecord>(&visit.asker, &path, &[]).await;
    let record = record.map_err(|problem| Failure::from(problem).leading_to(links::job(&id)))?;

    let arguments = record.envelope.pointer("/payload/arguments").cloned().unwrap_or(json!({}));
    let arguments = serde_json::to_string_pretty(&arguments).unwrap_or_default();
    show_form(&console, &visit, &job, arguments, None).await
}

async fn show_form(
    console: &Console,
    visit: &Visit,
    job: &JobView,
    arguments: String,
    problem: Option<ProblemView>,
) -> Screen {
    let tool = job.event.tool.as_deref().unwrap_or_default();
    let path = format!("/tools/{}", links::segment(tool));
    // A tool that is gone has no schema, and its job can be edited as JSON.
    let tool = console.inner.api.get::<ToolView>(&visit.asker, &path, &[]).await;
    let schema = tool.map(|tool| tool.input_schema).unwrap_or_default();
    let page = visit.page("Edit and run", Section::Jobs);
    show(EditScreen::new(page, job, arguments, &schema, problem))
}

/// `POST /console/jobs/{id}/runs`.
pub(super) async fn run_again(
    State(console): State<Console>,
    Path(id): Path<String>,
    Change { visit, form }: Change,
) -> Result<Response, Failure> {
    let is_edited = !form.get("edited").is_empty();
    let run = match is_edited {
        false => Ok(json!({})),
        true => {
            read_arguments(form.get("arguments")).map(|arguments| json!({"arguments": arguments}))
        }
    };
    let submitted = match run {
        Ok(run) => {
            let path = format!("{}/runs", rest_path(&id));
            console.inner.api.send(&visit.asker, Method::POST, &path, Some(&run)).await
        }
        Err(problem) => Err(problem),
    };

    match submitted {
        Ok(answer) => Ok(go_to_submitted(answer.body)),
        Err(problem) if is_edited => {
            let job = get_job(&console, &visit, &id).await?;
            let status = StatusCode::from_u16(problem.status).unwrap_or_default();
            let arguments = form.get("arguments").to_owned();
            let page = show_form(&console, &visit, &job, arguments, Some(problem)).await?;
            Ok((status, page).into_response())
        }
        Err(problem) => Err(Failure::from(problem).leading_to(links::job(&id))),
    }
}

/// Reads the arguments of a call from a form.
pub(super) fn read_arguments(text: &str) -> Result<Value, ProblemView> {
    let refuse = |detail: String| ProblemView {
        title: "The arguments can't be read".to_owned(),
        status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
        detail,
        ..ProblemView::default()
    };
    let text = if text.trim().is_empty() { "{}" } else { text };
    match serde_json::from_str::<Value>(text) {
        Ok(arguments) if arguments.is_object() => Ok(arguments),
        Ok(_) => Err(refuse("They must be a JSON object, such as {\"path\": \".\"}.".to_owned())),
        Err(error) => Err(refuse(format!("They are not JSON: {error}."))),
    }
}

/// Goes on to the job that was submitted.
pub(super) fn go_to_submitted(answer: Value) -> Response {
    let submitted: SubmittedJobs = serde_json::from_value(answer).unwrap_or_default();
    match submitted.jobs.first() {
        Some(job) if job.existing => go_on(&links::job(&job.job_id), Notice::Existing),
        Some(job) => go_on(&links::job(&job.job_id), Notice::Submitted),
        None => go_on(&links::jobs([]), Notice::Submitted),
    }
}

/// `POST /console/jobs/{id}/cancel`.
pub(super) async fn cancel(
    State(console): State<Console>,
    Path(id): Path<String>,
    Change { visit, .. }: Change,
) -> Result<Response, Failure> {
    let path = format!("{}?wait=2", rest_path(&id));
    let answer = console.inner.api.send(&visit.asker, Method::DELETE, &path, None).await;
    let answer = answer.map_err(|problem| Failure::from(problem).leading_to(links::job(&id)))?;
    let notice = match answer.status {
        StatusCode::OK => Notice::Cancelled,
        _ => Notice::CancelRequested,
    };
    Ok(go_on(&links::job(&id), notice))
}

/// `POST /console/jobs/{id}/decision`.
pub(super) async fn decide(
    State(console): State<Console>,
    Path(id): Path<String>,
    Change { visit, form }: Change,
) -> Result<Response, Failure> {
    let approves = match form.get("verdict") {
        "approve" => true,
        "deny" => false,
        _ => {
            let detail = "A decision is to approve or to deny.";
            return Err(Failure::new(StatusCode::BAD_REQUEST, "There is no decision", detail));
        }
    };

    let mut decision = json!({"approve": approves});
    if !form.get("reason").trim().is_empty() {
        decision["reason"] = form.get("reason").trim().into();
    }
    let path = format!("{}/decision", rest_path(&id));
    let answer = console.inner.api.send(&visit.asker, Method::POST, &path, Some(&decision)).await;
    answer.map_err(|problem| Failure::from(problem).leading_to(links::job(&id)))?;
    let notice = if approves { Notice::Approved } else { Notice::Denied };
    Ok(go_on(&links::job(&id), notice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_object() {
        assert_eq!(read_arguments(" ").unwrap(), json!({}));
        assert_eq!(read_arguments(r#"{"a": 1}"#).unwrap(), json!({"a": 1}));
        for wrong in ["[]", "3", "{", "null"] {
            assert_eq!(read_arguments(wrong).unwrap_err().status, 422, "{wrong}");
        }
    }
}
