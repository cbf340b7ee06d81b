//! Conditions that are refused, and what those that are not come to.

use serde_json::json;

use super::*;
use crate::{
    principal::{Principal, PrincipalKind, Via},
    resource::{Annotations, Arguments, Context as RequestContext, Resource},
};

fn refused(source: &str) -> ConditionError {
    match Condition::compile(source) {
        Err(error) => error,
        Ok(_) => panic!("accepted: {source}"),
    }
}

#[test]
fn only_what_exists_may_be_used() {
    let variable = |name: &str| ConditionError::Variable(name.to_owned());
    assert_eq!(refused("user.name == 'a'"), variable("user"));
    assert_eq!(refused("args.a == request.a"), variable("request"));
    assert_eq!(refused("args.all(x, x == y)"), variable("y"));
    assert_eq!(refused("args.all(x, true) && x"), variable("x"));
    assert_eq!(refused("has(jwt.sub)"), variable("jwt"));

    let field = |source: &str, expected: &str| match refused(source) {
        ConditionError::Field { field, .. } => assert_eq!(field, expected),
        other => panic!("{source}: {other}"),
    };
    field("principal.tennant == 'a'", "tennant");
    field("principal['Subject'] == 'a'", "Subject");
    field("has(resource.name)", "name");
    field("annotations.readOnly", "readOnly");
    field("principal.?group.orValue('') == 'a'", "group");

    let function = |name: &str| ConditionError::Function(name.to_owned());
    assert_eq!(refused("args.path.matches('a+')"), function("matches"));
    assert_eq!(refused("now() > args.t"), function("now"));
    assert_eq!(refused("optional.some(args.a).hasValue()"), function("optional.some"));

    assert_eq!(refused("args.a.all(x, args.b.all(y, x == y))"), ConditionError::NestedLoop);
    for quadratic in ["args.a.all(x, x in args.b)", "args.a.exists(x, args.s.contains(x))"] {
        assert_eq!(refused(quadratic), ConditionError::ArgumentsInLoop);
    }
    assert_eq!(refused("true"), ConditionError::Constant("true".to_owned()));
    assert_eq!(refused("1 == 1"), ConditionError::Constant("1 == 1".to_owned()));
    assert!(matches!(refused("args.a =="), ConditionError::Syntax(_)));
    assert!(matches!(refused(""), ConditionError::Syntax(_)));
    assert!(matches!(refused("a.B{c: args.d} == 1"), ConditionError::Struct(_)));
    assert_eq!(refused(&"args.a && ".repeat(1000)), ConditionError::TooLong);
}

/// Evaluates a condition for a call of a hosted server's tool.
fn evaluate(source: &str, trusts_annotations: bool) -> Result<bool, String> {
    let condition = Condition::compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));

    let via = Via::Key { id: "ci-1".to_owned() };
    let mut principal = Principal::new("keys", "ci", PrincipalKind::Service, via);
    principal.add_roles(["agent", "ops"].map(str::to_owned));
    principal.attributes.insert("groups".to_owned(), json!(["g1", "g2"]));

    let annotations = Annotations { read_only: Some(true), ..Annotations::default() };
    let resource = Resource::tool(Some("db"), "query", annotations);
    let arguments = json!({
        "path": "/srv/a", "n": 5, "big": 18_446_744_073_709_551_615_u64, "half": 0.5,
        "list": [1, 2, 3], "nested": {"a": {"b": true}}, "none": null,
    });
    let context = RequestContext {
        arguments: Arguments::Known(arguments.as_object().unwrap()),
        owner_names: &[],
    };
    condition.evaluate(&Facts::new(&principal, &resource, &context, trusts_annotations))
}

#[test]
fn conditions_see_everything_about_a_call() {
    for holds in [
        "args.path.startsWith('/srv/')",
        "args.path.contains('a') && args.path.endsWith('a') && size(args.path) == 6",
        "args.n <= 5 && args.half < 1.0",
        "args.big > 18446744073709551614u",
        "args.list.all(x, x > 0) && 2 in args.list && !(5 in args.list)",
        "args.list.all(x, x in [1, 2, 3]) && [1].all(x, 'ops' in principal.roles)",
        "args.list.exists(x, x == 3) && args.list.map(x, x * 2)[0] == 2",
        "args.nested.a.b",
        "args.none == null",
        "has(args.path) && !has(args.absent)",
        "args.?absent.orValue('x') == 'x'",
        "'agent' in principal.roles && principal.kind == 'service' && principal.key == 'ci-1'",
        "principal.attributes.groups.exists(g, g == 'g2')",
        "principal.tenant == null && principal.name == null && principal.via == 'key'",
        "size(principal.id) == 32 && principal.subject == 'ci' && principal.issuer == 'keys'",
        "resource.server == 'db' && resource.tool == 'query' && !resource.own",
        "annotations.readOnlyHint && annotations.destructiveHint",
        "type(args.n) == int && string(args.n) == '5'",
        "args.n > 100 ? false : true",
    ] {
        assert_eq!(evaluate(holds, true), Ok(true), "{holds}");
        assert_eq!(evaluate(&format!("!({holds})"), true), Ok(false), "{holds}");
    }
}

#[test]
fn annotations_that_are_not_trusted_say_the_worst() {
    let worst = "!annotations.readOnlyHint && annotations.destructiveHint && \
                 !annotations.idempotentHint && annotations.openWorldHint";
    assert_eq!(evaluate(worst, false), Ok(true));
}

#[test]
fn what_can_not_be_evaluated_is_an_error() {
    for bad in [
        "args.absent == 1",
        "args.n.startsWith('a')",
        "args.n",
        "args.n / 0 == 1",
        "args.list[9] == 1",
    ] {
        assert!(evaluate(bad, true).is_err(), "{bad}");
    }
    // A loop's variable may have the name of a variable.
    assert_eq!(evaluate("args.list.all(principal, principal > 0)", true), Ok(true));
}

#[test]
fn only_conditions_on_arguments_depend_on_them() {
    let check = |source: &str, expected| {
        assert_eq!(Condition::compile(source).unwrap().uses_arguments(), expected, "{source}");
    };
    check("args.a == 1", true);
    check("'a' in principal.roles || has(args.a)", true);
    check("principal.roles.all(args, args == 'a')", false);
    check("principal.subject == 'args.a'", false);
}
