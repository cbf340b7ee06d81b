//! The value of a letter in a form that may be shown.

use std::borrow::Cow;

use fleet_job::{decode, envelope::Work, mcp_servers::secrets, record::RawRecord};
use serde_json::Value;

/// The largest value that is unpacked to look for secrets, in bytes.
const MAX_BYTES: usize = 16 << 20;
/// What a record contains that may have the configuration of a server.
const SIGNS: [&str; 3] = ["server-init", "mcpServers", "server_initialize"];
/// Stands for a value in which secrets can't be told from the rest.
const UNREADABLE: &[u8] =
    b"(not shown: it names servers to host, but is no JSON in which secrets could be hidden)";

/// Returns the value of a record as people may see it: without the values of environment variables
/// and headers of servers to host. Any other value is returned as it is.
pub fn value(record: &RawRecord) -> Option<Cow<'_, [u8]>> {
    let raw = record.value.as_deref()?;

    // The job may be packed, or in a form of others.
    if let Ok(envelope) = decode::decode(record, MAX_BYTES)
        && let Work::ServerInit(_) = envelope.work
    {
        let mut job = envelope.to_json();
        secrets::hide(&mut job["payload"]);
        return Some(Cow::Owned(job.to_string().into_bytes()));
    }

    // It may be a job but for a mistake, or call the tool that hosts servers.
    let text = String::from_utf8_lossy(raw);
    if !SIGNS.iter().any(|sign| text.contains(sign)) {
        return Some(Cow::Borrowed(raw));
    }
    match serde_json::from_slice::<Value>(raw) {
        Ok(mut job) => {
            secrets::hide(&mut job);
            open_payload(&mut job);
            Some(Cow::Owned(job.to_string().into_bytes()))
        }
        Err(_) => Some(Cow::Borrowed(UNREADABLE)),
    }
}

/// Hides the secrets of a payload that is JSON in a string, which becomes an object.
fn open_payload(job: &mut Value) {
    let Some(payload) = job.get_mut("payload") else { return };
    let Some(text) = payload.as_str() else { return };
    match serde_json::from_str(text) {
        Ok(mut opened) => {
            secrets::hide(&mut opened);
            *payload = opened;
        }
        Err(_) => *payload = secrets::HIDDEN.into(),
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::*;
    use crate::testing;

    fn shown(text: &str) -> String {
        let record =
            RawRecord { value: Some(text.into()), ..testing::record(1, "j", ErrorKind::Tool, 0) };
        String::from_utf8(value(&record).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn the_secrets_of_servers_are_hidden_also_in_what_is_no_job() {
        let servers = r#"{"mcpServers":{"db":{"command":"db","env":{"TOKEN":"geheim"}}}}"#;
        let payload = Value::from(servers).to_string();
        for text in [
            format!(r#"{{"jobID":"j","jobType":"server-init","payload":{servers}}}"#),
            format!(r#"{{"jobID":"j","jobType":"server-init","payload":{payload}}}"#),
            format!(r#"{{"jobID":7,"jobType":"server-init","payload":{servers}}}"#),
            format!(r#"{{"jobID":7,"jobType":"server-init","payload":{payload}}}"#),
            format!(r#"{{"jobType":"server-init","payload":{servers}"#),
        ] {
            let shown = shown(&text);
            assert!(!shown.contains("geheim"), "{text}: {shown}");
        }
        let whole =
            shown(&format!(r#"{{"jobID":"j","jobType":"server-init","payload":{servers}}}"#));
        assert!(whole.contains("TOKEN") && whole.contains("***"), "{whole}");
    }

    #[test]
    fn everything_else_is_shown_byte_for_byte() {
        for text in [r#"{"jobID": "j", "payload": {"headers": {"a":  1}}}"#, "no JSON"] {
            assert_eq!(shown(text), text);
        }
        let none = RawRecord { value: None, ..testing::record(1, "j", ErrorKind::Tool, 0) };
        assert_eq!(value(&none), None);
    }
}
