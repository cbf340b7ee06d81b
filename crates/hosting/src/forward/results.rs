//! Reads the results of hosted servers, and rewrites the URIs and `_meta` in them.
//!
//! Servers of older revisions leave `resultType` out of results. These functions add it; the front
//! end removes it again for older callers.

use rmcp::model::{
    CallToolResponse, CompleteResult, ErrorData, GetPromptResponse, GetSkillResult,
    ListResourcesResult, ListSkillsResult, ReadResourceResponse, ResultType, ServerResult,
};
use serde_json::Value;

use super::errors::unreadable_error;
use crate::{apps, content_results, inbound::raw_result, routes::Routes, tool_results};

/// The longest part of an unreadable result that is quoted, in bytes.
const SHOWN: usize = 200;

/// Reads the result of a tool call.
pub fn read_tool_result(server: &str, result: ServerResult) -> Result<CallToolResponse, ErrorData> {
    let read = tool_results::read_call_result(result);
    let mut response = read.map_err(|problem| unreadable_error(server, &problem))?;
    match &mut response {
        CallToolResponse::Complete(result) => {
            apps::offer_in_result(server, result);
            result.result_type = Some(ResultType::COMPLETE);
        }
        CallToolResponse::InputRequired(result) => apps::offer_in_meta(server, &mut result.meta),
        CallToolResponse::Task(result) => apps::offer_in_meta(server, &mut result.meta),
        _ => {}
    }
    Ok(response)
}

/// Reads the result of a request for a prompt.
pub fn read_prompt_result(
    server: &str,
    result: ServerResult,
) -> Result<GetPromptResponse, ErrorData> {
    let read = content_results::read_prompt(result);
    let mut response = read.map_err(|problem| unreadable_error(server, &problem))?;
    match &mut response {
        GetPromptResponse::Complete(result) => {
            apps::offer_in_prompt(server, result);
            result.result_type = Some(ResultType::COMPLETE);
        }
        GetPromptResponse::InputRequired(result) => apps::offer_in_meta(server, &mut result.meta),
        _ => {}
    }
    Ok(response)
}

/// Reads the contents of a resource.
pub fn read_resource_result(
    server: &str,
    result: ServerResult,
) -> Result<ReadResourceResponse, ErrorData> {
    let read = content_results::read_resource(result);
    let mut response = read.map_err(|problem| unreadable_error(server, &problem))?;
    match &mut response {
        ReadResourceResponse::Complete(result) => {
            apps::offer_in_resource(server, result);
            result.result_type = Some(ResultType::COMPLETE);
        }
        ReadResourceResponse::InputRequired(result) => {
            apps::offer_in_meta(server, &mut result.meta)
        }
        _ => {}
    }
    Ok(response)
}

/// Reads the skills of a server.
pub fn read_skills(server: &str, result: ServerResult) -> Result<ListSkillsResult, ErrorData> {
    match result {
        ServerResult::ListSkillsResult(mut result) => {
            result.skills.iter_mut().for_each(|skill| apps::offer_in_skill(server, skill));
            apps::offer_in_meta(server, &mut result.meta);
            result.result_type = Some(ResultType::COMPLETE);
            Ok(result)
        }
        other => Err(unexpected_result_error(server, "list of skills", other)),
    }
}

/// Reads one skill.
pub fn read_skill(server: &str, result: ServerResult) -> Result<GetSkillResult, ErrorData> {
    match result {
        ServerResult::GetSkillResult(mut result) => {
            apps::offer_in_skill(server, &mut result.skill);
            apps::offer_in_meta(server, &mut result.meta);
            result.result_type = Some(ResultType::COMPLETE);
            Ok(result)
        }
        other => Err(unexpected_result_error(server, "skill", other)),
    }
}

/// Reads a directory of resources, and rewrites their URIs to the offered ones.
pub fn read_directory(
    server: &str,
    routes: &Routes,
    result: ServerResult,
) -> Result<ListResourcesResult, ErrorData> {
    match result {
        ServerResult::ListResourcesResult(mut result) => {
            for resource in &mut result.resources {
                resource.uri = routes.offered_uri(server, &resource.uri);
                apps::offer_in_meta(server, &mut resource.meta);
            }
            apps::offer_in_meta(server, &mut result.meta);
            result.result_type = Some(ResultType::COMPLETE);
            Ok(result)
        }
        other => Err(unexpected_result_error(server, "directory", other)),
    }
}

/// Reads the completions of an argument.
pub fn read_completions(server: &str, result: ServerResult) -> Result<CompleteResult, ErrorData> {
    match result {
        ServerResult::CompleteResult(mut result) => {
            apps::offer_in_meta(server, &mut result.meta);
            result.result_type = Some(ResultType::COMPLETE);
            Ok(result)
        }
        other => Err(unexpected_result_error(server, "completion", other)),
    }
}

/// Reads the result of an extension's method, and rewrites its bound URIs to the offered ones.
pub fn read_custom_result(server: &str, result: ServerResult) -> Value {
    let mut result = Value::Object(raw_result(result));
    apps::offer_in_answer(server, &mut result);
    result
}

/// The error for a result of the wrong kind.
fn unexpected_result_error(server: &str, what: &str, result: ServerResult) -> ErrorData {
    let shown = fleet_wire::quote(&Value::Object(raw_result(result)).to_string(), SHOWN);
    unreadable_error(server, &format!("it is not a {what}: {shown}"))
}
