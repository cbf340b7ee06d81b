//! Policy files as a whole.

use super::*;

const WHOLE: &str = "
expand = ['X']

[limits]
max_servers = 5

[[command]]
argv = ['uv', '**']

[[server]]
name = 'db'
trust_annotations = true
call_timeout_ms = 5

[access]
default = 'read-only'

[[issuer]]
url = 'https://idp'
audiences = ['https://me']

[[certificate]]
uri = 'spiffe://d/*'

[[principal]]
issuer = 'https://idp'
claims = {groups = 'ops'}
roles = ['operator']

[[rule]]
name = 'operators'
effect = 'allow'
principals = ['role:operator']
actions = ['jobs.*', 'dead-letters.*']
tenants = ['*']

[[limit]]
name = 'everybody'
per = 'principal'
rate = '600/min'
";

#[test]
fn the_tables_of_both_crates_are_in_one_file() {
    let policy = AccessPolicy::parse(WHOLE, None).unwrap();
    assert_eq!(policy.rules.len(), 1);
    let authenticator =
        policy.authenticator(&KeysFile::default(), None, WithoutCredentials::Refused).unwrap();
    assert_eq!(authenticator.tokens().issuers().collect::<Vec<_>>(), ["https://idp"]);
    assert!(!authenticator.is_unconfigured());
    assert!(AccessPolicy::parse("", None).unwrap().rules.is_empty());
}

#[test]
fn misspelled_tables_and_fields_are_refused() {
    let check = |text: &str, expected: &str| {
        let Err(AccessPolicyError::Toml(error)) = AccessPolicy::parse(text, None) else {
            panic!("accepted: {text}");
        };
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("[[rules]]\nname = 'a'", "unknown field `rules`");
    check("[access]\ndefaults = 'deny'", "unknown field `defaults`");
    check("[access]\ndefault = 'allow'", "unknown variant `allow`");
    check("[[principal]]\nsubjects = 'a'", "unknown field `subjects`");
    check("[[issuer]]\nurl = 'https://a'\naudience = 'b'", "unknown field `audience`");
    check("[[certificate]]\nsan = 'a'", "unknown field `san`");
    check("[[limit]]\nname = 'a'\nper = 'session'", "unknown variant `session`");
    check("[[rule]]\nname = 'a'\neffect = 'permit'", "unknown variant `permit`");
    check("[[rule]]\nname = 'a'\neffect = 'allow'\nactions = ['*']", "missing field `principals`");
    check(
        "[[rule]]\nname = 'a'\neffect = 'allow'\nprincipal = ['anyone']",
        "unknown field `principal`",
    );
}

#[test]
fn an_issuer_is_configured_once() {
    let twice = "[[issuer]]\nurl = 'https://a'\n".repeat(2);
    let error = AccessPolicy::parse(&twice, Some("https://me")).unwrap_err();
    assert!(error.to_string().contains("two [[issuer]]"), "{error}");
    let no_audience = AccessPolicy::parse("[[issuer]]\nurl = 'https://a'", None).unwrap_err();
    assert!(no_audience.to_string().contains("has no audience"), "{no_audience}");
}
