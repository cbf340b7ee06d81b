//! Answers of hosted servers that can't be read.

use fleet_job::outcome::UNREADABLE_ANSWER;
use rmcp::model::ErrorData;
use serde_json::json;

/// The error that ends a call whose answer has come and can't be read, for the reason `why`, which
/// quotes it. The tool has run, so the call is not to be made again.
pub(crate) fn unreadable_answer(why: &str) -> ErrorData {
    let data = json!({ "reason": UNREADABLE_ANSWER });
    ErrorData::internal_error(format!("the answer can't be read: {why}"), Some(data))
}

/// Whether an error says that the answer to the call can't be read.
pub(crate) fn is_unreadable(error: &ErrorData) -> bool {
    let reason = error.data.as_ref().and_then(|data| data.get("reason"));
    reason.is_some_and(|reason| reason == UNREADABLE_ANSWER)
}
