//! Calls that take long, as MCP tasks.

use fleet_job::meta;
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{CallToolRequestParams, CallToolResponse, ErrorData, GetTaskResult, UpdateTaskParams},
    service::RequestContext,
};

use super::Gateway;
use fleet_job::trace::TraceContext;

use crate::jobs::{Caller, JobsError, LongRunning, Tasks};

impl Gateway {
    /// Makes a task of a call, where it is to become one.
    pub(super) async fn as_task(
        &self,
        params: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<Option<CallToolResponse>, ErrorData> {
        let Some(tasks) = self.inner.tasks.get() else { return Ok(None) };
        // A worker does what a task is for.
        if context.meta.contains_key(meta::JOB_ID) {
            return Ok(None);
        }
        let Some(long_running) = self.long_running(tasks, &params.name) else { return Ok(None) };
        let capabilities = context.client_capabilities();
        let knows_tasks = capabilities.as_ref().is_some_and(|known| known.supports_tasks());
        if !long_running.becomes_task(params, knows_tasks)? {
            return Ok(None);
        }
        let (caller, trace) = (caller(tasks, context), TraceContext::of_meta(&context.meta));
        let task = tasks.create(params.clone(), capabilities, &caller, &trace).await.map_err(refused)?;
        Ok(Some(CallToolResponse::Task(task)))
    }

    /// Whether a tool takes long. What the settings say goes first.
    fn long_running(&self, tasks: &Tasks, tool: &str) -> Option<LongRunning> {
        if tasks.is_configured(tool) {
            return Some(LongRunning::Optional);
        }
        match self.provider_of(tool) {
            Some(provider) => provider.long_running(tool),
            None => {
                let routes = self.inner.fleet.routes();
                LongRunning::of(routes.tool(tool)?.listed.meta.as_ref())
            }
        }
    }

    pub(super) async fn task(
        &self,
        task_id: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let tasks = self.tasks()?;
        tasks.get(task_id, &caller(tasks, context)).await.map(GetTaskResult::new).map_err(refused)
    }

    pub(super) async fn answer_task(
        &self,
        request: UpdateTaskParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let tasks = self.tasks()?;
        let caller = caller(tasks, context);
        tasks.update(&request.task_id, request.input_responses, &caller).await.map_err(refused)
    }

    pub(super) async fn end_task(
        &self,
        task_id: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let tasks = self.tasks()?;
        tasks.cancel(task_id, &caller(tasks, context)).await.map_err(refused)
    }

    fn tasks(&self) -> Result<&Tasks, ErrorData> {
        // Without them rmcp answers by itself, because the capability is not there.
        self.inner.tasks.get().ok_or_else(|| ErrorData::internal_error("there are no tasks here", None))
    }
}

fn caller(tasks: &Tasks, context: &RequestContext<RoleServer>) -> Caller {
    tasks.caller(context.extensions.get::<Parts>().map(|parts| &parts.headers))
}

fn refused(error: JobsError) -> ErrorData {
    match &error {
        JobsError::NotFound(id) => {
            ErrorData::invalid_params(format!("there is no task `{id}`, or it is not yours"), None)
        }
        JobsError::Bad(_) | JobsError::BadJob { .. } | JobsError::TooLarge { .. } => {
            ErrorData::invalid_params(error.to_string(), None)
        }
        _ => ErrorData::internal_error(error.to_string(), None),
    }
}
