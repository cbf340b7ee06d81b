//! An audit record as a line for people. Pure.

use fleet_access::{AuditPrincipal, AuditRecord, AuditResource};

use crate::dlq::text::shorten;

/// The most characters of a text that somebody else chose.
const MAX_TEXT: usize = 80;

/// Formats a record on one line.
pub(super) fn describe(record: &AuditRecord) -> String {
    let what = describe_resource(&record.resource);
    let who = match &record.principal {
        Some(principal) => describe_principal(principal),
        None => {
            let fault = record.fault.as_deref().unwrap_or("unknown");
            format!("nobody ({})", shorten(fault, MAX_TEXT))
        }
    };
    let mut line = format!(
        "{}  {:<9}  {}{what}  by {who}",
        record.time,
        record.outcome.as_str(),
        shorten(&record.action, MAX_TEXT),
    );

    let more = [
        ("from", &record.peer),
        ("rule", &record.rule),
        ("code", &record.code),
        ("job", &record.job_id),
        ("trace", &record.trace_id),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            line.push_str(&format!("  {name} {}", shorten(value, MAX_TEXT)));
        }
    }
    line
}

fn describe_resource(resource: &AuditResource) -> String {
    let text = |text: &Option<String>| text.as_deref().map(|text| shorten(text, MAX_TEXT));
    let named =
        [&resource.tool, &resource.prompt, &resource.uri, &resource.method, &resource.secret];
    let what = named.into_iter().find_map(text);
    match (text(&resource.server), what) {
        (Some(server), Some(what)) => format!(" {server}/{what}"),
        (Some(one), None) | (None, Some(one)) => format!(" {one}"),
        (None, None) => String::new(),
    }
}

fn describe_principal(principal: &AuditPrincipal) -> String {
    let name = principal.name.as_deref().unwrap_or(&principal.subject);
    let tenant = principal.tenant.as_deref().map(|tenant| format!(" of {tenant}"));
    let via = match &principal.key {
        Some(key) => format!("key {key}"),
        None => principal.via.clone(),
    };
    let text = format!("{name}{} ({via})", tenant.unwrap_or_default());
    shorten(&text, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(record: Value, expected: &str) {
        assert_eq!(describe(&serde_json::from_value(record).unwrap()), expected);
    }

    #[test]
    fn a_line_says_who_did_what() {
        check(
            json!({
                "time": "2026-11-28T10:00:00.000Z",
                "principal": {
                    "id": "0123456789abcdef0123456789abcdef", "issuer": "keys", "subject": "ci",
                    "name": "CI\u{1b}[2J", "kind": "service", "tenant": "a", "via": "key",
                    "key": "ci-1",
                },
                "peer": "192.0.2.1",
                "action": "tools.call",
                "resource": {"server": "db", "tool": "drop"},
                "rule": "no writing", "verdict": "deny", "outcome": "refused",
                "code": "FLEET-DENIED", "jobId": "j",
            }),
            "2026-11-28T10:00:00.000Z  refused    tools.call db/drop  by CI [2J of a (key ci-1)  \
             from 192.0.2.1  rule no writing  code FLEET-DENIED  job j",
        );
        check(
            json!({
                "time": "2026-11-28T10:00:00.000Z", "action": "authenticate", "verdict": "deny",
                "outcome": "refused", "fault": "expired", "code": "FLEET-UNAUTHENTICATED",
            }),
            "2026-11-28T10:00:00.000Z  refused    authenticate  by nobody (expired)  \
             code FLEET-UNAUTHENTICATED",
        );
    }
}
