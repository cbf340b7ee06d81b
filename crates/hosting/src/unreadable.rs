//! Unreadable answers of hosted servers.

use fleet_job::outcome::UNREADABLE_ANSWER;
use rmcp::model::ErrorData;
use serde_json::json;

/// The error of a call whose answer is unreadable; `why` quotes it. The tool may have run, so the
/// call must not be repeated.
pub(crate) fn unreadable_answer(why: &str) -> ErrorData {
    let data = json!({ "reason": UNREADABLE_ANSWER });
    ErrorData::internal_error(format!("the answer can't be read: {why}"), Some(data))
}

/// Returns whether an error means that the answer to the call was unreadable.
pub(crate) fn is_unreadable(error: &ErrorData) -> bool {
    let reason = error.data.as_ref().and_then(|data| data.get("reason"));
    reason.is_some_and(|reason| reason == UNREADABLE_ANSWER)
}
