//! Long-running calls as MCP tasks.

use std::sync::Arc;

use fleet_access::Asker;
use fleet_job::{meta, trace::TraceContext};
use fleet_jobs::{Caller, JobsError, Tasks};
use futures::{
    StreamExt as _,
    future::join_all,
    stream::{BoxStream, SelectAll},
};
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{
        CallToolResponse, DetailedTask, ErrorData, GetTaskResult, NotificationMetaObject,
        ServerNotification, TaskStatusNotification, TaskStatusNotificationParams, UpdateTaskParams,
    },
    service::{RequestContext, ServiceError},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{Gateway, invocation::Invocation};
use crate::long_running::LongRunning;

/// The tasks whose states a `subscriptions/listen` stream has asked for: in the extensions of its
/// HTTP request or, over standard input, of the MCP request itself.
#[derive(Debug, Clone)]
pub(crate) struct WatchedTasks {
    ids: Arc<[String]>,
    /// The stream's permit; the number of streams that watch tasks is bounded.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl WatchedTasks {
    pub(crate) fn new(ids: Vec<String>, permit: OwnedSemaphorePermit) -> Self {
        Self { ids: ids.into(), _permit: Arc::new(permit) }
    }
}

impl Gateway {
    /// Returns whether calls can become tasks.
    pub(crate) fn has_tasks(&self) -> bool {
        self.inner.tasks.get().is_some()
    }

    /// Returns those of the tasks that the sender of this request may see, or a client without a
    /// request of its own.
    pub(crate) async fn visible_tasks(
        &self,
        ids: Vec<String>,
        parts: Option<&Parts>,
    ) -> Vec<String> {
        let Some(tasks) = self.inner.tasks.get() else { return Vec::new() };
        let asker = parts.and_then(|parts| parts.extensions.get::<Asker>());
        let Some(asker) = asker.or(self.client.as_ref()) else { return Vec::new() };
        let caller = tasks.caller(parts.map(|parts| &parts.headers), asker);
        let found = join_all(ids.iter().map(|id| tasks.get(id, &caller))).await;
        ids.into_iter().zip(found).filter(|(_, found)| found.is_ok()).map(|(id, _)| id).collect()
    }

    /// Sends the state of each task that a stream watches, and every change until the task ends.
    pub(super) async fn stream_task_states(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ServiceError> {
        let of_http = context.extensions.get::<Parts>().map(|parts| &parts.extensions);
        let watched = match of_http {
            Some(extensions) => extensions.get::<WatchedTasks>(),
            None => context.extensions.get::<WatchedTasks>(),
        };
        let (Some(watched), Some(tasks)) = (watched, self.inner.tasks.get()) else { return Ok(()) };
        let Ok(caller) = self.caller_of(tasks, context) else { return Ok(()) };
        let mut states: SelectAll<BoxStream<'static, DetailedTask>> =
            watched.ids.iter().map(|id| tasks.watch(id, &caller).boxed()).collect();

        while let Some(task) = states.next().await {
            let mut meta = NotificationMetaObject::new();
            meta.set_subscription_id(context.id.clone());
            let params = TaskStatusNotificationParams::new(task).with_meta(meta);
            let notification = TaskStatusNotification::new(params);

            context
                .peer
                .send_notification(ServerNotification::TaskStatusNotification(notification))
                .await?;
        }
        Ok(())
    }

    /// Starts a task for a call that must or may become one. Returns `None` if the call runs at
    /// once.
    pub(super) async fn start_task(
        &self,
        invocation: &Invocation<'_>,
    ) -> Result<Option<CallToolResponse>, ErrorData> {
        let Invocation { params, context, .. } = invocation;
        let Some(tasks) = self.inner.tasks.get() else { return Ok(None) };
        // A worker's call already belongs to a job.
        if context.meta.contains_key(meta::JOB_ID) {
            return Ok(None);
        }
        // Our own tools answer by where they are called, and a task's call is not made in the view.
        let is_in_view = self.asked_by(context)?.asker().view_name().is_some();
        if is_in_view && invocation.provider.is_some() {
            return Ok(None);
        }

        let Some(long_running) = self.long_running(tasks, invocation) else { return Ok(None) };
        let capabilities = context.client_capabilities();
        let knows_tasks = capabilities.as_ref().is_some_and(|known| known.supports_tasks());
        if !long_running.becomes_task(params, knows_tasks)? {
            return Ok(None);
        }

        let caller = self.caller_of(tasks, context)?;
        let trace = TraceContext::of_meta(&context.meta);
        let task = tasks
            .create(params.clone(), capabilities, &caller, &trace)
            .await
            .map_err(|error| self.task_error(context, error))?;
        Ok(Some(CallToolResponse::Task(task)))
    }

    /// Returns whether the called tool takes long. The settings take precedence over what the tool
    /// declares.
    fn long_running(&self, tasks: &Tasks, invocation: &Invocation<'_>) -> Option<LongRunning> {
        let tool = &invocation.params.name;
        if tasks.is_configured(tool) {
            return Some(LongRunning::Optional);
        }
        if let Some(provider) = invocation.provider {
            return provider.long_running(tool);
        }
        let routes = self.inner.fleet.routes();
        LongRunning::of(routes.tool(tool)?.listed.meta.as_ref())
    }

    pub(super) async fn read_task(
        &self,
        task_id: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let tasks = self.require_tasks()?;
        tasks
            .get(task_id, &self.caller_of(tasks, context)?)
            .await
            .map(GetTaskResult::new)
            .map_err(|error| self.task_error(context, error))
    }

    pub(super) async fn answer_task(
        &self,
        request: UpdateTaskParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let tasks = self.require_tasks()?;
        let caller = self.caller_of(tasks, context)?;
        tasks
            .update(&request.task_id, request.input_responses, &caller)
            .await
            .map_err(|error| self.task_error(context, error))
    }

    pub(super) async fn end_task(
        &self,
        task_id: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let tasks = self.require_tasks()?;
        let caller = self.caller_of(tasks, context)?;
        tasks.cancel(task_id, &caller).await.map_err(|error| self.task_error(context, error))
    }

    fn require_tasks(&self) -> Result<&Tasks, ErrorData> {
        // Without the capability, rmcp refuses requests about tasks by itself.
        let no_tasks = || ErrorData::internal_error("this server has no tasks", None);
        self.inner.tasks.get().ok_or_else(no_tasks)
    }

    fn caller_of(
        &self,
        tasks: &Tasks,
        context: &RequestContext<RoleServer>,
    ) -> Result<Caller, ErrorData> {
        let asking = self.asked_by(context)?;
        let headers = context.extensions.get::<Parts>().map(|parts| &parts.headers);
        // Those of a worker say nothing about whose job it presents.
        let headers = headers.filter(|_| !asking.asker().is_presented());
        Ok(tasks.caller(headers, asking.asker()))
    }

    fn task_error(&self, context: &RequestContext<RoleServer>, error: JobsError) -> ErrorData {
        match &error {
            JobsError::NotFound(id) => {
                let message = format!("unknown task `{id}`, or it belongs to another caller");
                ErrorData::invalid_params(message, None)
            }
            JobsError::Denied { action, decision } => match self.asked_by(context) {
                Ok(asking) => asking.refuse(*action, decision),
                Err(unauthenticated) => unauthenticated,
            },
            JobsError::Limited(reached) => match self.asked_by(context) {
                Ok(asking) => asking.limit(reached, None),
                Err(unauthenticated) => unauthenticated,
            },
            JobsError::Unrecorded(gap) => match self.asked_by(context) {
                Ok(asking) => asking.unrecorded(gap),
                Err(unauthenticated) => unauthenticated,
            },
            JobsError::Bad(_) | JobsError::BadJob { .. } | JobsError::TooLarge { .. } => {
                ErrorData::invalid_params(error.to_string(), None)
            }
            _ => ErrorData::internal_error(error.to_string(), None),
        }
    }
}
