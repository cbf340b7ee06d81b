//! Limits on calls.

use std::net::Ipv6Addr;

use super::*;
use crate::{
    file::AccessPolicy,
    principal::{PrincipalKind, Via},
};

const NOW: Duration = Duration::from_secs(1000);

fn limits(text: &str) -> Limits {
    AccessPolicy::parse(text, None).unwrap_or_else(|error| panic!("{text}\n{error:?}")).limits
}

fn principal(subject: &str, tenant: Option<&str>) -> Principal {
    let mut principal = Principal::new("keys", subject, PrincipalKind::Service, Via::Token);
    principal.tenant = tenant.map(str::to_owned);
    principal
}

fn call<'a>(principal: &'a Principal, tool: &'a str) -> LimitedCall<'a> {
    LimitedCall {
        principal,
        action: Action::CallTool,
        server: Some("db"),
        tool: Some(tool),
        bytes: 10,
    }
}

/// How many of so many calls pass at once.
fn passing(limits: &Limits, call: &LimitedCall<'_>, calls: usize) -> usize {
    (0..calls).filter(|_| limits.admit(call, NOW).is_ok()).count()
}

#[test]
fn limits_count_what_they_are_about() {
    let (a, b) = (principal("a", Some("t")), principal("b", Some("t")));
    let check = |per: &str, expected: [usize; 3]| {
        let limits =
            limits(&format!("[[limit]]\nname='l'\nper='{per}'\nrate='5/min'\nactions=['*']"));
        let calls = [call(&a, "x"), call(&b, "x"), call(&a, "y")];
        let passed = calls.map(|call| passing(&limits, &call, 10));
        assert_eq!(passed, expected, "{per}");
    };
    check("principal", [5, 5, 0]);
    check("tenant", [5, 0, 0]);
    check("tool", [5, 0, 5]);
    check("principal-tool", [5, 5, 5]);
}

#[test]
fn limits_cover_what_they_name() {
    let a = principal("a", None);
    let check = |rest: &str, is_covered: bool| {
        let limits = limits(&format!("[[limit]]\nname='l'\nper='principal'\nrate='1/h'\n{rest}"));
        let expected = if is_covered { 1 } else { 3 };
        assert_eq!(passing(&limits, &call(&a, "x"), 3), expected, "{rest}");
    };
    check("", true);
    check("tools = ['x']\nservers = ['d*']\nprincipals = ['subject:a']", true);
    check("tools = ['y']", false);
    check("servers = ['']", false);
    check("principals = ['role:agent']", false);
    check("actions = ['jobs.*']", false);

    // Whoever has no tenant has no share of one.
    let per_tenant = limits("[[limit]]\nname='l'\nper='tenant'\nrate='1/h'");
    assert_eq!(passing(&per_tenant, &call(&a, "x"), 3), 3);
}

#[test]
fn a_call_that_one_limit_refuses_is_counted_by_none() {
    let limits = limits(
        "[[limit]]\nname='wide'\nper='principal'\nrate='10/h'\n\
         [[limit]]\nname='narrow'\nper='principal'\nrate='1/min'\ntools=['x']",
    );
    let a = principal("a", None);
    assert_eq!(passing(&limits, &call(&a, "x"), 5), 1);
    let reached = limits.admit(&call(&a, "x"), NOW).unwrap_err();
    assert_eq!((&*reached.limit, reached.what), ("narrow", "calls"));
    assert_eq!(reached.retry_after, Duration::from_secs(60));
    assert!(reached.to_string().contains("FLEET-RATE-LIMITED"), "{reached}");
    assert_eq!(passing(&limits, &call(&a, "y"), 20), 9);
}

#[test]
fn slots_are_free_again_when_calls_end() {
    let limits = limits("[[limit]]\nname='l'\nper='principal'\nconcurrency=2");
    let (a, b) = (principal("a", None), principal("b", None));

    let first = limits.admit(&call(&a, "x"), NOW).unwrap();
    let _second = limits.admit(&call(&a, "x"), NOW).unwrap();
    let reached = limits.admit(&call(&a, "x"), NOW).unwrap_err();
    assert_eq!(reached.what, "concurrency");
    let _other = limits.admit(&call(&b, "x"), NOW).unwrap();

    drop(first);
    let _third = limits.admit(&call(&a, "x"), NOW).unwrap();
    assert!(limits.admit(&call(&a, "x"), NOW).is_err());
}

#[test]
fn bytes_are_limited_and_one_large_request_passes_alone() {
    let limits = limits("[[limit]]\nname='l'\nper='principal'\nbytes='1kB/s'");
    let a = principal("a", None);
    let large = LimitedCall { bytes: 1_000_000, ..call(&a, "x") };
    drop(limits.admit(&large, NOW).unwrap());

    let reached = limits.admit(&call(&a, "x"), NOW).unwrap_err();
    assert_eq!((reached.what, reached.retry_after), ("bytes", Duration::from_millis(10)));
    drop(limits.admit(&call(&a, "x"), NOW + reached.retry_after).unwrap());
}

#[test]
fn a_reload_keeps_what_was_used() {
    let text = "[[limit]]\nname='l'\nper='principal'\nrate='2/h'\nconcurrency=5";
    let old = limits(text);
    let a = principal("a", None);
    let running = old.admit(&call(&a, "x"), NOW).unwrap();

    let mut same = limits(text);
    same.adopt(&old);
    assert_eq!(passing(&same, &call(&a, "x"), 5), 1);

    let mut tighter = limits("[[limit]]\nname='l'\nper='principal'\nconcurrency=1");
    tighter.adopt(&same);
    assert!(tighter.admit(&call(&a, "x"), NOW).is_err());
    drop(running);
    drop(tighter.admit(&call(&a, "x"), NOW).unwrap());

    let mut gone = limits("");
    gone.adopt(&tighter);
    assert_eq!(gone.keys(), 0);
    assert_eq!(passing(&gone, &call(&a, "x"), 5), 5);
}

#[test]
fn ten_thousand_principals_take_bounded_memory() {
    let limits = limits("[[limit]]\nname='l'\nper='principal'\nrate='60/s'\nconcurrency=5");
    for number in 0..10_000 {
        let principal = principal(&format!("p{number}"), None);
        let now = NOW + Duration::from_millis(number);
        drop(limits.admit(&call(&principal, "x"), now));
    }
    // One comes each millisecond, and is forgotten one to two seconds later.
    assert!(limits.keys() <= 2001, "{}", limits.keys());
}

#[test]
fn addresses_of_one_network_are_one_key() {
    let of = |text: &str| LimitKey::of_address(text.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
    assert_ne!(of("10.0.0.1"), LimitKey::of_address(Ipv6Addr::LOCALHOST.into()));
}

#[test]
fn bad_limits_are_refused_with_what_to_do() {
    let check = |rest: &str, expected: &str| {
        let text = format!("[[limit]]\nname='l'\nper='principal'\n{rest}");
        let error = AccessPolicy::parse(&text, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("", "none of `rate`, `concurrency` and `bytes`");
    check("burst = 5\nconcurrency = 1", "`burst` but no `rate`");
    for bad in ["5", "5/week", "0/s", "-1/s", "5 MB/s", "x/s"] {
        check(&format!("rate = '{bad}'"), "is not a rate");
    }
    check("bytes = '5 TB/s'", "`bytes` of the [[limit]] \"l\"");
    check("rate='1/s'\nprincipals = ['bob']", "\"bob\" selects nobody");
    check("rate='1/s'\nactions = ['nothing']", "no action is called \"nothing\"");
    check("rate='1/s'\ntools = []", "`tools` of the [[limit]] \"l\" is empty");
    check("rate='1/s'\n[[limit]]\nname='l'\nper='tool'\nrate='1/s'", "two [[limit]]");
}
