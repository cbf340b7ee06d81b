//! Views: what they select, rename and forbid, and that they never widen a decision.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    asker::{Asker, CurrentRights},
    file::AccessPolicy,
    principal::{PrincipalKind, Via},
    resource::{Annotations, Arguments},
};

const SUPPORT: &str = r#"
    [view.support]
    principals = ["role:agent"]
    instructions = "Help customers."

    [[view.support.select]]
    servers = ["crm"]
    tools = ["customer_*", "drop_all"]
    hide = ["customer_delete"]
    prompts = ["greet"]

    [[view.support.select]]
    servers = ["kb-*", ""]
    resources = ["kb://*"]

    [[view.support.tool]]
    server = "crm"
    tool = "customer_get"
    as = "find_customer"
    description = "Finds a customer."

    [[view.support.rule]]
    name = "no drops"
    effect = "deny"
    principals = ["anyone"]
    actions = ["tools.call"]
    tools = ["drop_*"]

    [[view.support.rule]]
    name = "ask first"
    effect = "approve"
    principals = ["anyone"]
    actions = ["tools.call"]
    tools = ["customer_merge"]
"#;

fn parse(text: &str) -> CurrentRights {
    CurrentRights::new(AccessPolicy::parse(text, None).unwrap().into_rights())
}

fn asker(rights: &CurrentRights, role: &str) -> Asker {
    let via = Via::Key { id: "k".to_owned() };
    let mut principal = Principal::new("keys", "k", PrincipalKind::Service, via);
    principal.add_roles([role.to_owned()]);
    Asker::new(Arc::new(principal), rights.clone())
}

fn call<'a>(server: Option<&'a str>, tool: &'a str) -> Resource<'a> {
    Resource::tool(server, tool, Annotations { read_only: Some(true), ..Annotations::default() })
}

fn verdict(asker: &Asker, resource: &Resource<'_>) -> (RuleEffect, String) {
    let context = Context { arguments: Arguments::NotYetKnown, ..Context::default() };
    let decision = asker.decide(Action::CallTool, resource, &context);
    (decision.verdict, decision.rule.as_str().to_owned())
}

#[test]
fn a_view_has_what_it_selects_under_its_own_names() {
    let rights = parse(SUPPORT);
    let view = asker(&rights, "agent").enter_view("support").unwrap().view().unwrap();
    let name = |server: Option<&str>, tool: &str| {
        let offered = server.map_or(tool.to_owned(), |server| format!("{server}__{tool}"));
        view.name_of(server, tool, &offered).map(str::to_owned)
    };

    assert_eq!(name(Some("crm"), "customer_get").as_deref(), Some("find_customer"));
    assert_eq!(name(Some("crm"), "customer_list").as_deref(), Some("crm__customer_list"));
    assert_eq!(name(None, "job_status").as_deref(), Some("job_status"));
    assert_eq!(name(Some("kb-eu"), "search").as_deref(), Some("kb-eu__search"));
    for (server, tool) in [(Some("crm"), "customer_delete"), (Some("crm"), "x"), (Some("db"), "x")]
    {
        assert_eq!(name(server, tool), None, "{server:?} {tool}");
    }
    assert_eq!(name(None, "find_customer"), None, "its name is taken by the renamed tool");

    assert_eq!(view.target("find_customer"), Some((Some("crm"), "customer_get")));
    assert!(view.admits("find_customer", Some("crm"), "customer_get"));
    assert!(!view.admits("find_customer", Some("kb-eu"), "search"));
    assert!(!view.admits("crm__customer_get", Some("crm"), "customer_get"), "the old name");

    assert!(view.has_prompt(Some("crm"), "greet") && !view.has_prompt(Some("crm"), "other"));
    assert!(view.has_resource(Some("crm"), "any://thing"));
    assert!(view.has_resource(None, "kb://a") && !view.has_resource(None, "x://a"));
    assert!(!view.has_server(Some("db")));
}

/// As the documentation says of `servers`.
#[test]
fn a_wildcard_selects_our_own_tools_too() {
    for (pattern, expected) in [("*", true), ("?*", false), ("", true), ("crm", false)] {
        let rights = parse(&format!("[[view.v.select]]\nservers = ['{pattern}']\n"));
        let view = asker(&rights, "agent").enter_view("v").unwrap().view().unwrap();
        assert_eq!(view.has_tool(None, "job_submit"), expected, "{pattern:?}");
        assert_eq!(view.has_server(Some("crm")), !pattern.is_empty(), "{pattern:?}");
    }
}

#[test]
fn whoever_may_not_use_a_view_finds_none() {
    let rights = parse(SUPPORT);
    assert!(asker(&rights, "agent").enter_view("support").is_some());
    assert!(asker(&rights, "other").enter_view("support").is_none());
    assert!(asker(&rights, "agent").enter_view("sales").is_none());
}

#[test]
fn a_view_narrows_decisions_and_names_itself() {
    let all = "\n[[rule]]\nname='all'\neffect='allow'\nprincipals=['anyone']\nactions=['*']\n";
    let rights = parse(&format!("{SUPPORT}{all}"));
    let agent = asker(&rights, "agent");
    let inside = agent.enter_view("support").unwrap();
    for (resource, verdict_inside, rule) in [
        (call(Some("crm"), "customer_list"), RuleEffect::Allow, "all"),
        (call(Some("crm"), "customer_merge"), RuleEffect::Approve, "view:support/ask first"),
        (call(Some("crm"), "drop_all"), RuleEffect::Deny, "view:support/no drops"),
        (call(Some("crm"), "customer_delete"), RuleEffect::Deny, "view:support"),
        (call(Some("db"), "query"), RuleEffect::Deny, "view:support"),
    ] {
        assert_eq!(verdict(&agent, &resource).0, RuleEffect::Allow);
        assert_eq!(verdict(&inside, &resource), (verdict_inside, rule.to_owned()), "{resource:?}");
    }
    assert!(!inside.could_call(Some("db"), None) && inside.could_call(Some("crm"), None));
    assert!(!inside.could_call(Some("crm"), Some("customer_delete")));

    let extension = Resource { server: Some("db"), method: Some("x"), ..Resource::default() };
    let decide = |asker: &Asker, action, resource: &Resource<'_>| {
        asker.decide(action, resource, &Context::default()).is_allowed()
    };
    assert!(decide(&agent, Action::CallExtension, &extension));
    assert!(!decide(&inside, Action::CallExtension, &extension));
    let server = Resource { server: Some("db"), ..Resource::default() };
    assert!(!decide(&inside, Action::AdministerServers, &server));
    assert!(decide(&inside, Action::UseSession, &Resource::default()));
}

/// Own tools may be used without a right to call them, so the view must decide in any case.
#[test]
fn a_view_decides_by_its_own_name_where_no_rule_does() {
    let rights = parse(SUPPORT);
    let outside = asker(&rights, "agent");
    let inside = outside.enter_view("support").unwrap();
    let unknown = |server, tool| Resource::tool(server, tool, Annotations::default());
    for (resource, rule) in [
        (unknown(Some("crm"), "drop_all"), "view:support/no drops"),
        (unknown(Some("crm"), "customer_merge"), "view:support/ask first"),
        (unknown(Some("crm"), "customer_delete"), "view:support"),
        (unknown(Some("db"), "query"), "view:support"),
        (unknown(Some("crm"), "customer_list"), "default:no-rule"),
    ] {
        let (verdict_outside, by_default) = verdict(&outside, &resource);
        assert_eq!((verdict_outside, &*by_default), (RuleEffect::Deny, "default:no-rule"));
        assert_eq!(verdict(&inside, &resource), (RuleEffect::Deny, rule.to_owned()));
    }
}

/// What a view alone says is asked where the rules of the file are not.
#[test]
fn a_view_tells_what_it_alone_forbids() {
    let rights = parse(SUPPORT);
    let outside = asker(&rights, "agent");
    let inside = outside.enter_view("support").unwrap();
    let restriction = |asker: &Asker, tool: &str| {
        let found =
            asker.restriction(Action::CallTool, &call(Some("crm"), tool), &Context::default());
        found.map(|found| (found.verdict, found.rule.as_str().to_owned()))
    };
    for (tool, expected) in [
        ("customer_list", None),
        ("drop_all", Some((RuleEffect::Deny, "view:support/no drops"))),
        ("customer_merge", Some((RuleEffect::Approve, "view:support/ask first"))),
        ("customer_delete", Some((RuleEffect::Deny, "view:support"))),
    ] {
        let expected = expected.map(|(effect, rule)| (effect, rule.to_owned()));
        assert_eq!(restriction(&inside, tool), expected, "{tool}");
        assert_eq!(restriction(&outside, tool), None);
    }

    assert!(inside.is_served() && outside.is_served());
    rights.replace(AccessPolicy::parse("", None).unwrap().into_rights());
    assert!(!inside.is_served() && outside.is_served());
}

#[test]
fn a_view_that_is_removed_or_closed_has_nothing_any_more() {
    let rights = parse(SUPPORT);
    let inside = asker(&rights, "agent").enter_view("support").unwrap();
    let tool = call(Some("kb-eu"), "search");
    let trusting = "[[server]]\nname = '*'\ntrust_annotations = true\n";
    rights
        .replace(AccessPolicy::parse(&format!("{SUPPORT}{trusting}"), None).unwrap().into_rights());
    assert_eq!(verdict(&inside, &tool).0, RuleEffect::Allow);

    let closed = format!("{SUPPORT}{trusting}").replace("role:agent", "role:other");
    rights.replace(AccessPolicy::parse(&closed, None).unwrap().into_rights());
    assert_eq!(verdict(&inside, &tool), (RuleEffect::Deny, "view:support".to_owned()));

    rights.replace(AccessPolicy::parse(trusting, None).unwrap().into_rights());
    assert_eq!(verdict(&inside, &tool), (RuleEffect::Deny, "view:support".to_owned()));
    let view = inside.view().unwrap();
    assert!(!view.has_tool(Some("kb-eu"), "search") && view.target("find_customer").is_none());
}

#[test]
fn bad_tables_are_refused_with_what_to_do() {
    let check = |text: &str, expected: &str| {
        let error = AccessPolicy::parse(text, None).unwrap_err();
        let shown = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        assert!(shown.contains(expected) && shown.contains("FLEET-POLICY-FILE"), "{text}: {shown}");
    };
    let select = "[[view.a.select]]\nservers = ['crm', '']\n";
    let tool = |fields: &str| format!("{select}[[view.a.tool]]\nserver = 'crm'\n{fields}\n");

    for name in ["Support", "server-card", "a.b", "", "-a", "a b"] {
        let text = format!("[[view.{name:?}.select]]\nservers = ['*']\n");
        check(&text, "can't be the name of a view");
    }
    check("[view.a]\n", "selects nothing");
    check("[[view.a.select]]\nservers = []\n", "`servers` of [[view.a.select]] is empty");
    check(&format!("{select}tools = []\n"), "`tools` of [[view.a.select]] is empty");
    check(&format!("{select}tools = ['crm__x']\n"), "offered name");
    check(&format!("{select}hide = ['crm__x']\n"), "offered name");
    check(&format!("{select}tool = ['x']\n"), "unknown field");
    check(&format!("[view.a]\nprincipals = ['x']\n{select}"), "selects nobody");
    check(&format!("[view.a]\nname = 'x'\n{select}"), "unknown field");
    check(&tool("tool = 'x'"), "changes nothing");
    check(&tool("tool = 'x*'\nas = 'y'"), "is a pattern");
    check(&tool("tool = 'x'\ndescription = ''"), "`description` of [[view.a.tool]] is empty");
    for name in ["", "a b", "crm__x", "größe", &"x".repeat(65)] {
        check(&tool(&format!("tool = 'x'\nas = {name:?}")), "can't be the name of a tool");
    }
    for name in ["server_status", "job_submit", "file_x"] {
        check(&tool(&format!("tool = 'x'\nas = {name:?}")), "reserved for the tools of mcp-fleet");
    }
    let [first, second] = ["x", "y"]
        .map(|own| format!("[[view.a.tool]]\nserver = 'crm'\ntool = '{own}'\nas = 'z'\n"));
    check(&format!("{select}{first}{second}"), "two [[view.a.tool]] have `as` = \"z\"");
    check(&format!("{select}{first}{}", first.replace("'z'", "'q'")), "merge them");
    check(&tool("tool = 'x'\nas = 'y'").replace("['crm', '']", "['db']"), "does not have");
    let rule = "[[view.a.rule]]\nname = 'r'\nprincipals = ['anyone']\nactions = ['*']\n";
    check(&format!("{select}{rule}effect = 'allow'\n"), "a view can only narrow");
    check(&format!("{select}{rule}effect = 'deny'\ntools = ['a__b']\n"), "offered name");

    // Records must not take a rule of the file for a view.
    let of_file = rule.replace("view.a.rule", "rule").replace("'r'", "'view:a'");
    check(&format!("{of_file}effect = 'deny'\n"), "begin with `default:` or `view:`");
}

proptest! {
    /// Whatever a view and its rules say, nothing is allowed in it that is not allowed elsewhere.
    #[test]
    fn a_view_never_widens(
        tools in proptest::collection::vec("[ab*]{1,3}", 1..3),
        hide in proptest::collection::vec("[ab*]{1,3}", 1..3),
        denied in "[ab*]{1,2}",
        base in "[ab*]{1,2}",
        effect in prop::sample::select(vec!["allow", "approve", "deny"]),
        own in prop::sample::select(vec!["approve", "deny"]),
        server in prop::sample::select(vec![None, Some("a"), Some("b")]),
        tool in "[ab]{1,2}",
    ) {
        let text = format!(
            "[[rule]]\nname = 'base'\neffect = '{effect}'\nprincipals = ['anyone']\n\
             actions = ['tools.call']\ntools = ['{base}']\n\
             [[view.v.select]]\nservers = ['a', '']\ntools = {tools:?}\nhide = {hide:?}\n\
             [[view.v.rule]]\nname = 'own'\neffect = '{own}'\nprincipals = ['anyone']\n\
             actions = ['tools.call']\ntools = ['{denied}']\n"
        );
        let rights = parse(&text);
        for outside in [asker(&rights, "agent"), Asker::new(Arc::new(Principal::local()), rights.clone())] {
            let inside = outside.enter_view("v").unwrap();
            let resource = call(server, &tool);
            prop_assert!(verdict(&inside, &resource).0 >= verdict(&outside, &resource).0);
            prop_assert!(!inside.could_call(server, Some(&tool)) || outside.could_call(server, Some(&tool)));
            prop_assert!(!inside.may_ever(Action::CallTool) || outside.may_ever(Action::CallTool));
            // What the view forbids is forbidden by the view, whatever forbids it besides.
            let restriction = inside.restriction(Action::CallTool, &resource, &Context::default());
            let (decided, rule) = verdict(&inside, &resource);
            if let Some(restriction) = restriction {
                prop_assert!(decided >= restriction.verdict);
                prop_assert!(!rule.starts_with("default:"));
            }
        }
    }

    /// Names in a view are unique, and each is admitted for its tool alone.
    #[test]
    fn a_name_in_a_view_means_one_tool(
        renames in proptest::collection::btree_map("[abc]", "[xyz]{1,2}", 0..3),
        hide in "[abc]",
    ) {
        let names: std::collections::BTreeSet<_> = renames.values().collect();
        prop_assume!(names.len() == renames.len() && !renames.contains_key(&hide));
        let renamed: String = renames.iter().map(|(tool, name)| {
            format!("[[view.v.tool]]\nserver = 's'\ntool = '{tool}'\nas = '{name}'\n")
        }).collect();
        let rights = parse(&format!("[[view.v.select]]\nservers = ['*']\nhide = ['{hide}']\n{renamed}"));
        let view = Arc::clone(rights.get().views.get("v").unwrap());

        // Tools of a server, and our own, whose names may be those that renamed tools have.
        let hosted = ["a", "b", "c"].map(|tool| (Some("s"), tool.to_owned(), format!("s__{tool}")));
        let own = ["a", "x", "y", "xy"].map(|tool| (None, tool.to_owned(), tool.to_owned()));
        let tools: Vec<_> = hosted.into_iter().chain(own).collect();
        let called: Vec<_> = tools.iter().filter_map(|(server, tool, offered)| {
            let name = view.name_of(*server, tool, offered)?;
            Some((name, *server, tool))
        }).collect();
        let unique: std::collections::BTreeSet<_> = called.iter().map(|(name, ..)| name).collect();
        prop_assert_eq!(unique.len(), called.len());

        for (name, server, tool) in &called {
            prop_assert!(view.admits(name, *server, tool));
            if let Some(target) = view.target(name) {
                prop_assert_eq!(target, (*server, tool.as_str()));
            }
        }
        for (server, tool, offered) in &tools {
            let is_listed = called.iter().any(|(name, ..)| name == offered);
            prop_assert!(is_listed || view.target(offered).is_some() || !view.admits(offered, *server, tool));
        }
    }
}
