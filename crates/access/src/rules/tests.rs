//! What rules decide.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    file::AccessPolicy,
    principal::{PrincipalKind, Via},
    resource::{Annotations, Arguments},
};

const READ_ONLY: Annotations =
    Annotations { read_only: Some(true), destructive: None, idempotent: None, open_world: None };

fn rules(text: &str) -> Rules {
    AccessPolicy::parse(text, None).unwrap_or_else(|error| panic!("{text}\n{error:?}")).rules
}

fn agent() -> Principal {
    let mut agent = Principal::new("https://idp", "alice", PrincipalKind::Person, Via::Token);
    agent.tenant = Some("a".to_owned());
    agent.add_roles(["agent".to_owned()]);
    agent
}

fn decide(
    rules: &Rules,
    principal: &Principal,
    action: Action,
    resource: &Resource<'_>,
) -> Decision {
    let context = Context::default();
    let decision = rules.decide(principal, action, resource, &context);
    let explained = rules.explain(principal, action, resource, &context);
    assert_eq!(explained.decision, decision);
    decision
}

/// Checks a call of a tool of the server `db` by [`agent`], with these arguments.
fn check_call(text: &str, tool: &str, arguments: Value, expected: (RuleEffect, &str)) {
    let rules = rules(text);
    let resource = Resource::tool(Some("db"), tool, Annotations::default());
    let context = Context {
        arguments: Arguments::Known(arguments.as_object().unwrap()),
        ..Context::default()
    };
    let decision = rules.decide(&agent(), Action::CallTool, &resource, &context);
    assert_eq!((decision.verdict, decision.rule.as_str()), expected, "{text}");
}

fn rule(name: &str, effect: &str, rest: &str) -> String {
    format!(
        "[[rule]]\nname = '{name}'\neffect = '{effect}'\nprincipals = ['role:agent']\n\
         actions = ['tools.call']\n{rest}\n"
    )
}

use RuleEffect::{Allow, Approve, Deny};

#[test]
fn deny_wins_over_approve_and_approve_over_allow() {
    let [allow, approve, deny] = [("1", "allow"), ("2", "approve"), ("3", "deny")]
        .map(|(name, effect)| rule(name, effect, ""));
    for (text, expected) in [
        (allow.clone(), (Allow, "1")),
        (format!("{allow}{approve}"), (Approve, "2")),
        (format!("{approve}{allow}"), (Approve, "2")),
        (format!("{deny}{approve}{allow}"), (Deny, "3")),
        (format!("{allow}{approve}{deny}"), (Deny, "3")),
    ] {
        check_call(&text, "query", json!({}), expected);
    }

    // Of several with one effect, the first of the file decides.
    let second = rule("4", "allow", "");
    check_call(&format!("{second}{allow}"), "query", json!({}), (Allow, "4"));
    check_call(&format!("{allow}{second}"), "query", json!({}), (Allow, "1"));
}

#[test]
fn rules_cover_what_they_name() {
    let check = |rest: &str, expected: RuleEffect| {
        let name = if expected == Allow { "r" } else { "default:no-rule" };
        check_call(&rule("r", "allow", rest), "query", json!({}), (expected, name));
    };
    check("tools = ['query']", Allow);
    check("tools = ['drop', 'qu*']", Allow);
    check("tools = ['q']", Deny);
    check("servers = ['db']", Allow);
    check("servers = ['d?']\ntools = ['*']", Allow);
    check("servers = ['other']", Deny);
    check("servers = ['']", Deny);
}

#[test]
fn conditions_decide_and_never_open_by_failing() {
    let when = "when = \"args.path.startsWith('/srv/')\"";
    let check = |effect: &str, arguments: Value, expected: (RuleEffect, &str)| {
        // Another rule allows the call, so that what fails can only close.
        let text = format!("{}{}", rule("r", effect, when), rule("any", "allow", ""));
        check_call(&text, "query", arguments, expected);
    };

    check("deny", json!({"path": "/srv/a"}), (Deny, "r"));
    check("deny", json!({"path": "/tmp"}), (Allow, "any"));
    check("deny", json!({}), (Deny, "r"));
    check("deny", json!({"path": 5}), (Deny, "r"));
    check("approve", json!({"path": "/srv/a"}), (Approve, "r"));
    check("approve", json!({}), (Deny, "r"));
    check("allow", json!({"path": "/srv/a"}), (Allow, "r"));
    check("allow", json!({}), (Allow, "any"));

    let alone = rule("r", "allow", when);
    check_call(&alone, "query", json!({"path": "/tmp"}), (Deny, "default:no-rule"));
    check_call(&alone, "query", json!({}), (Deny, "default:no-rule"));
}

#[test]
fn lists_show_what_may_be_called_with_some_arguments() {
    let check = |effect: &str, expected| {
        let text = rule("r", effect, "when = 'args.n < 5'")
            + &if effect == "deny" { rule("any", "allow", "") } else { String::new() };
        let resource = Resource::tool(Some("db"), "query", Annotations::default());
        let context = Context { arguments: Arguments::NotYetKnown, owner_names: &[] };
        let decision = rules(&text).decide(&agent(), Action::CallTool, &resource, &context);
        assert_eq!(decision.is_visible(), expected, "{effect}");
    };
    check("allow", true);
    check("approve", true);
    check("deny", true);
}

#[test]
fn without_rules_tools_that_only_read_may_be_called() {
    let check = |text: &str, server, annotations, expected| {
        let resource = Resource::tool(server, "t", annotations);
        let decision = decide(&rules(text), &agent(), Action::CallTool, &resource);
        assert_eq!(decision.is_allowed(), expected, "{text}: {decision:?}");
    };
    let trusted = "[[server]]\nname = 'd*'\ntrust_annotations = true\nmax_concurrency = 1";

    check("", None, READ_ONLY, true);
    check("", None, Annotations::default(), false);
    check("", None, Annotations { read_only: Some(false), ..READ_ONLY }, false);
    check("", Some("db"), READ_ONLY, false);
    check(trusted, Some("db"), READ_ONLY, true);
    check(trusted, Some("other"), READ_ONLY, false);
    check("[access]\ndefault = 'deny'", None, READ_ONLY, false);
    check(&rule("no", "deny", ""), None, READ_ONLY, false);
}

#[test]
fn a_principal_sees_its_own_jobs_and_no_others() {
    let alice = agent();
    let id = alice.id().to_string();
    let check = |text: &str, owner: Option<&str>, tenant: Option<&str>, expected| {
        let decision = decide(&rules(text), &alice, Action::ReadJob, &Resource::job(owner, tenant));
        assert_eq!(decision.is_allowed(), expected, "{text} {owner:?} {tenant:?}: {decision:?}");
    };
    let read = |tenants: &str| {
        format!(
            "[[rule]]\nname='r'\neffect='allow'\nprincipals=['anyone']\nactions=['jobs.*']\n{tenants}"
        )
    };

    let other = "0".repeat(32);
    check("", Some(&id), Some("a"), true);
    check("", Some(&id), None, true);
    check("[access]\ndefault = 'deny'", Some(&id), None, true);
    check("", Some(&other), Some("a"), false);
    check("", None, Some("a"), false);
    check("", None, None, false);

    // A rule without tenants stays within the principal's own.
    check(&read(""), Some(&other), Some("a"), true);
    check(&read(""), None, Some("a"), true);
    check(&read(""), Some(&other), Some("b"), false);
    check(&read(""), Some(&other), None, false);
    check(&read("tenants = ['b']"), Some(&other), Some("b"), true);
    check(&read("tenants = ['b']"), Some(&other), Some("a"), false);
    check(&read("tenants = ['*']"), Some(&other), None, true);
    check(&read("tenants = ['']"), Some(&other), None, true);
}

#[test]
fn a_deny_without_tenants_covers_all_of_them() {
    let text = "[[rule]]\nname='all'\neffect='allow'\nprincipals=['anyone']\nactions=['jobs.*']\n\
                tenants=['*']\n[[rule]]\nname='no'\neffect='deny'\nprincipals=['role:agent']\n\
                actions=['jobs.cancel']";
    let rules = rules(text);
    for tenant in [None, Some("a"), Some("b")] {
        let job = Resource::job(None, tenant);
        assert!(decide(&rules, &agent(), Action::ReadJob, &job).is_allowed());
        assert!(!decide(&rules, &agent(), Action::CancelJob, &job).is_allowed());
    }
}

#[test]
fn jobs_are_submitted_for_the_own_tenant() {
    let text = "[[rule]]\nname='r'\neffect='allow'\nprincipals=['role:agent']\n\
                actions=['jobs.submit']\ntools=['query']";
    let rules = rules(text);
    let check = |tool, tenant, expected| {
        let resource =
            Resource { tenant, ..Resource::tool(Some("db"), tool, Annotations::default()) };
        let decision = decide(&rules, &agent(), Action::SubmitJob, &resource);
        assert_eq!(decision.is_allowed(), expected, "{tool} {tenant:?}");
    };
    check("query", None, true);
    check("query", Some("a"), true);
    check("query", Some("b"), false);
    check("drop", None, false);
}

#[test]
fn jobs_of_a_former_owner_stay_visible() {
    let former = "f".repeat(32);
    let job = Resource::job(Some(&former), None);
    let check = |owner_names: &[&str], expected| {
        let context = Context { owner_names, ..Context::default() };
        let decision = Rules::default().decide(&agent(), Action::ReadJob, &job, &context);
        assert_eq!(decision.is_allowed(), expected);
    };
    check(&["e", &former], true);
    check(&["e"], false);
    check(&[], false);
}

#[test]
fn the_local_principal_may_do_everything_that_is_known() {
    let rules_of = |text: &str| rules(text);
    let local = Principal::local();
    let job = Resource::job(None, Some("b"));
    for action in Action::ALL {
        let decision = decide(&Rules::default(), &local, *action, &job);
        assert_eq!((decision.verdict, decision.rule.as_str()), (Allow, "default:local"));
    }
    let unknown = decide(&Rules::default(), &local, Action::Unknown, &Resource::default());
    assert_eq!(unknown.rule.as_str(), "default:unknown-operation");

    let no = "[[rule]]\nname='no'\neffect='deny'\nprincipals=['anyone']\nactions=['tools.call']";
    let resource = Resource::tool(None, "t", READ_ONLY);
    assert!(!decide(&rules_of(no), &local, Action::CallTool, &resource).is_allowed());
}

#[test]
fn principals_without_credentials_see_no_jobs_of_those_who_have_some() {
    for principal in [Principal::local(), Principal::anonymous()] {
        let own = principal.id().to_string();
        let check = |resource: &Resource<'_>, action, expected| {
            let decision = decide(&Rules::default(), &principal, action, resource);
            assert_eq!(decision.is_allowed(), expected, "{resource:?}");
        };
        check(&Resource::tool(None, "t", Annotations::default()), Action::CallTool, true);
        check(&Resource::job(None, None), Action::ReadJob, true);
        check(&Resource::job(Some(&own), None), Action::CancelJob, true);
        check(&Resource::job(Some("somebody"), None), Action::ReadJob, false);
    }
}

#[test]
fn what_can_never_be_done_is_known_from_the_action_alone() {
    let text = rule("r", "allow", "tools = ['query']\nscopes = ['db:read']")
        + "[[rule]]\nname='submit'\neffect='allow'\nprincipals=['tenant:a']\n\
           actions=['jobs.submit']\ntools = ['query']\n\
           [[rule]]\nname='no'\neffect='deny'\nprincipals=['role:agent']\n\
           actions=['servers.*', 'jobs.cancel']\n\
           [[rule]]\nname='some'\neffect='deny'\nprincipals=['role:agent']\n\
           actions=['jobs.read']\ntenants=['b']";
    let rules = rules(&text);
    let possible = |principal: &Principal| -> Vec<_> {
        let actions = Action::ALL.iter().filter(|action| rules.may_ever(principal, **action));
        actions.map(|action| action.as_str()).collect()
    };
    let alice = possible(&agent());
    for action in ["jobs.submit", "jobs.read", "tools.call", "session.use"] {
        assert!(alice.contains(&action), "{action} is not in {alice:?}");
    }
    for action in ["servers.administer", "metrics.read", "act-as", "extensions.call", "jobs.cancel"]
    {
        assert!(!alice.contains(&action), "{action} is in {alice:?}");
    }
    assert_eq!(possible(&Principal::local()).len(), Action::ALL.len());
    assert!(!rules.may_ever(&Principal::local(), Action::Unknown));

    // Whatever is allowed once was possible.
    for action in Action::ALL {
        for resource in [Resource::default(), Resource::tool(None, "query", READ_ONLY)] {
            let decision = decide(&rules, &agent(), *action, &resource);
            assert!(!decision.is_visible() || rules.may_ever(&agent(), *action), "{action:?}");
        }
    }
}

#[test]
fn who_could_call_a_tool_is_known_before_the_tool_is() {
    let text = rule("query", "allow", "servers = ['db']\ntools = ['query']\nwhen = 'args.x == 1'")
        + &rule("safe", "allow", "servers = ['safe']\nwhen = '!annotations.destructiveHint'")
        + &rule("no", "deny", "servers = ['safe']\ntools = ['drop']")
        + "[[server]]\nname = 'trusted'\ntrust_annotations = true";
    let rules = rules(&text);
    let check = |server, tool, expected| {
        assert_eq!(rules.could_call(&agent(), Some(server), tool), expected, "{server} {tool:?}");
    };
    check("db", Some("query"), true);
    check("db", Some("drop"), false);
    check("db", None, true);
    check("safe", Some("x"), true);
    check("safe", Some("drop"), false);
    check("safe", None, true);
    check("trusted", Some("x"), true);
    check("other", Some("query"), false);
    check("other", None, false);
    assert!(rules.could_call(&Principal::local(), Some("other"), Some("query")));
    assert!(rules.could_call(&agent(), None, Some("file_read")));
}

/// A principal with this role, named by a key or by a token.
fn with_role(role: FleetRole, via: Via) -> Principal {
    let mut principal = Principal::new("keys", "k", PrincipalKind::Service, via);
    principal.add_roles([role.as_str().to_owned()]);
    principal
}

#[test]
fn the_keys_of_a_fleet_need_no_rule() {
    let keyed = |role| with_role(role, Via::Key { id: "k".to_owned() });
    let changes = Resource::tool(Some("db"), "drop", Annotations::default());
    let job = Resource::job(Some("somebody"), Some("b"));
    let check = |text: &str, role, action, resource: &Resource<'_>, expected| {
        let rules = rules(text);
        let decision = decide(&rules, &keyed(role), action, resource);
        assert_eq!((decision.verdict, decision.rule.as_str()), expected, "{text} {action:?}");
    };

    // Nor does a stricter default take anything from them.
    for text in ["", "[access]\ndefault = 'deny'"] {
        let operator = (Allow, "default:fleet-operator");
        for action in Action::ALL {
            check(text, FleetRole::Operator, *action, &job, operator);
        }

        let worker = (Allow, "default:fleet-worker");
        check(text, FleetRole::Worker, Action::CallTool, &changes, worker);
        check(text, FleetRole::Worker, Action::AdministerServers, &changes, worker);
        check(text, FleetRole::Worker, Action::SubmitJob, &job, worker);
        check(
            text,
            FleetRole::Metrics,
            Action::ReadMetrics,
            &job,
            (Allow, "default:fleet-metrics"),
        );

        let no_rule = (Deny, "default:no-rule");
        for action in [Action::ReadMetrics, Action::ReadJob, Action::ActAs, Action::ReadAudit] {
            check(text, FleetRole::Worker, action, &job, no_rule);
        }
        for action in [Action::CallTool, Action::ReadJob, Action::SubmitJob] {
            check(text, FleetRole::Metrics, action, &changes, no_rule);
        }
    }

    let frozen = "[[rule]]\nname='frozen'\neffect='deny'\nprincipals=['anyone']\nactions=['*']";
    check(frozen, FleetRole::Operator, Action::CallTool, &changes, (Deny, "frozen"));
    assert!(!rules(frozen).could_call(&keyed(FleetRole::Worker), Some("db"), Some("drop")));
    assert!(rules("").could_call(&keyed(FleetRole::Worker), Some("db"), Some("drop")));
    assert!(!rules("").could_call(&keyed(FleetRole::Metrics), Some("db"), Some("drop")));
    assert!(rules("").may_ever(&keyed(FleetRole::Worker), Action::AdministerServers));
    assert!(!rules("").may_ever(&keyed(FleetRole::Worker), Action::ReadMetrics));
}

#[test]
fn roles_that_an_issuer_gives_are_not_those_of_the_fleet() {
    for via in [Via::Token, Via::Certificate] {
        for role in FleetRole::ALL {
            let principal = with_role(role, via.clone());
            let decision =
                decide(&rules(""), &principal, Action::ReadMetrics, &Resource::default());
            assert_eq!(decision.verdict, Deny, "{principal:?}");
        }
    }
}

#[test]
fn nobody_may_do_what_is_not_known() {
    let all = "[[rule]]\nname='all'\neffect='allow'\nprincipals=['anyone']\nactions=['*']";
    let decision = decide(&rules(all), &agent(), Action::Unknown, &Resource::default());
    assert_eq!(decision.verdict, Deny);
}

#[test]
fn what_changes_something_needs_a_rule() {
    let read = [
        "session.use",
        "tools.list",
        "prompts.list",
        "prompts.get",
        "resources.list",
        "resources.read",
        "resources.subscribe",
        "completions",
    ];
    for action in Action::ALL {
        let decision = decide(&Rules::default(), &agent(), *action, &Resource::default());
        assert_eq!(decision.is_allowed(), read.contains(&action.as_str()), "{action:?}");
    }
}

#[test]
fn a_refusal_names_all_scopes_that_are_missing() {
    let text = rule("r", "allow", "tools = ['query']\nscopes = ['db:read', 'db:write']");
    let rules = rules(&text);
    let resource = Resource::tool(Some("db"), "query", Annotations::default());
    let mut alice = agent();
    alice.add_scopes(["db:read".to_owned()]);

    let decision = decide(&rules, &alice, Action::CallTool, &resource);
    assert_eq!(decision.verdict, Deny);
    assert_eq!(decision.scopes, ["db:read", "db:write"]);
    assert_eq!(decision.code(), Some(fleet_codes::INSUFFICIENT_SCOPE));
    let challenge = decision.challenge(Some("https://me/meta")).unwrap().to_string();
    assert!(challenge.contains(r#"error="insufficient_scope""#), "{challenge}");
    assert!(challenge.contains(r#"scope="db:read db:write""#), "{challenge}");

    alice.add_scopes(["db:write".to_owned()]);
    assert!(decide(&rules, &alice, Action::CallTool, &resource).is_allowed());
    assert_eq!(rules.scopes(), ["db:read", "db:write"]);

    // More scopes would not help with another tool.
    let other = Resource::tool(Some("db"), "drop", Annotations::default());
    let decision = decide(&rules, &agent(), Action::CallTool, &other);
    assert!(decision.scopes.is_empty() && decision.challenge(None).is_none());
}

#[test]
fn an_explanation_has_the_rules_that_were_near() {
    let text = rule("yes", "allow", "tools = ['query']")
        + &rule("other-tool", "deny", "tools = ['drop']")
        + &rule("failed", "allow", "when = 'args.absent == 1'")
        + "[[rule]]\nname='other'\neffect='deny'\nprincipals=['role:x']\nactions=['*']";
    let resource = Resource::tool(Some("db"), "query", Annotations::default());
    let arguments = json!({});
    let context = Context {
        arguments: Arguments::Known(arguments.as_object().unwrap()),
        ..Context::default()
    };
    let explained = rules(&text).explain(&agent(), Action::CallTool, &resource, &context);

    let names: Vec<_> = explained.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["yes", "other-tool", "failed"]);
    assert_eq!(explained.rules[0].applies, Applies::Yes);
    assert_eq!(explained.rules[1].applies, Applies::No("tools"));
    assert!(matches!(explained.rules[2].applies, Applies::ConditionFailed(_)));
    assert_eq!(explained.decision.rule.as_str(), "yes");
}

#[test]
fn bad_rules_are_refused_with_what_to_do() {
    let check = |text: &str, expected: &str| {
        let error = AccessPolicy::parse(text, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let head = |name: &str, principals: &str, actions: &str| {
        format!(
            "[[rule]]\nname='{name}'\neffect='allow'\nprincipals={principals}\nactions={actions}\n"
        )
    };
    let call = |rest: &str| head("r", "['anyone']", "['tools.call']") + rest;

    check(&head("", "['anyone']", "['*']"), "`name` of the [[rule]] \"\"");
    check(&head("default:x", "['anyone']", "['*']"), "`name`");
    check(&(call("") + &call("")), "two [[rule]] have the name \"r\"");
    check(&head("r", "[]", "['*']"), "`principals` of the [[rule]] \"r\" is empty");
    check(&head("r", "['agent']", "['*']"), "\"agent\" selects nobody");
    check(&head("r", "['anyone']", "['tool.call']"), "no action is called \"tool.call\"");
    check(&call("tools = ['db__query']"), "\"db__query\" is a tool's offered name");
    check(&call("tools = []"), "`tools` of the [[rule]] \"r\" is empty");
    check(&call("prompts = ['a']"), "`prompts` of the [[rule]] \"r\" applies to none");
    check(&call("tenants = ['a']"), "`tenants` of the [[rule]] \"r\" applies to none");
    check(&call("when = 'user.x'"), "`when` of the [[rule]] \"r\": there is no variable \"user\"");
}

/// One of a few short names, so that rules and principals meet.
fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "a*", "*"]).prop_map(str::to_owned)
}

fn any_rule() -> impl Strategy<Value = String> {
    let selectors = prop::sample::select(vec!["role", "tenant", "subject", "key", "issuer"]);
    let actions = prop::sample::select(vec!["tools.call", "jobs.*", "*", "jobs.submit"]);
    (
        prop::sample::select(vec!["allow", "approve", "deny"]),
        prop::collection::vec((selectors, name()), 1..3),
        actions,
        prop::option::of(name()),
        prop::option::of(name()),
        prop::sample::select(vec![
            "",
            "when = \"args.x == 'a'\"",
            "when = \"resource.tool == 'a'\"",
        ]),
    )
        .prop_map(|(effect, selectors, action, tool, server, when)| {
            let selectors: Vec<_> =
                selectors.iter().map(|(kind, name)| format!("'{kind}:{name}'")).collect();
            let list = |field: &str, name: Option<String>| {
                name.map_or_else(String::new, |name| format!("{field} = ['{name}']\n"))
            };
            format!(
                "effect = '{effect}'\nprincipals = [{}]\nactions = ['{action}']\n{}{}{when}\n",
                selectors.join(", "),
                list("tools", tool),
                list("servers", server),
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The index finds every rule that applies: a decision is what all rules together say.
    #[test]
    fn the_index_changes_no_decision(
        texts in prop::collection::vec(any_rule(), 1..12),
        role in name(), tenant in name(), subject in name(), tool in name(), server in name(),
        has_argument in any::<bool>(),
        action in prop::sample::select(vec![Action::CallTool, Action::SubmitJob, Action::ReadJob]),
    ) {
        let text: String = texts
            .iter()
            .enumerate()
            .map(|(number, text)| format!("[[rule]]\nname = 'r{number}'\n{text}"))
            .collect();
        let rules = rules(&text);

        let via = Via::Key { id: "a".to_owned() };
        let mut principal = Principal::new("b", subject, PrincipalKind::Service, via);
        principal.tenant = Some(tenant);
        principal.add_roles([role]);
        let resource = Resource::tool(Some(&server), &tool, Annotations::default());
        let arguments = if has_argument { json!({"x": "a"}) } else { json!({}) };
        let context =
            Context { arguments: Arguments::Known(arguments.as_object().unwrap()), owner_names: &[] };

        let explained = rules.explain(&principal, action, &resource, &context);
        let effects = explained.rules.iter().filter_map(|rule| match rule.applies {
            Applies::Yes => Some((rule.effect, &rule.name)),
            Applies::ConditionFailed(_) if rule.effect != Allow => Some((Deny, &rule.name)),
            _ => None,
        });
        let strongest = effects.fold(None, |best: Option<(RuleEffect, _)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        });
        let (verdict, rule) = match &strongest {
            Some((effect, name)) => (*effect, name.as_ref()),
            None => (Deny, "default:no-rule"),
        };
        prop_assert_eq!(explained.decision.verdict, verdict);
        prop_assert_eq!(explained.decision.rule.as_str(), rule);
    }
}
