//! The `[[principal]]` tables: what the policy file says of principals beyond their credentials.

use std::collections::BTreeMap;

use fleet_codes as codes;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    pattern::Pattern,
    principal::{Principal, PrincipalKind},
};

/// A `[[principal]]` of the policy file. It applies to every principal that all of `issuer`,
/// `subject`, `kind` and `claims` fit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrincipalTable {
    /// The issuers, as a pattern.
    pub issuer: Option<String>,
    /// The subjects, as a pattern.
    pub subject: Option<String>,
    /// The kind of principal.
    pub kind: Option<PrincipalKind>,
    /// Patterns for claims. A claim that is a list fits if one of its members does.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// Roles that the principals get.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The tenant that the principals belong to, whatever their credentials say. The first table
    /// with one decides.
    pub tenant: Option<String>,
    /// A name for people. The first table with one decides.
    pub name: Option<String>,
}

/// Why a `[[principal]]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalTableError {
    /// It would apply to everybody.
    #[error(
        "the [[principal]] number {number} has none of `issuer`, `subject`, `kind` and `claims`, so \
         it would apply to everybody; say whom it is about (`subject = \"*\"` is everybody) [{code}]",
        code = codes::POLICY_FILE
    )]
    Everybody {
        /// Which of the tables it is, from 1 on.
        number: usize,
    },
    /// It has no effect.
    #[error(
        "the [[principal]] number {number} gives neither `roles` nor a `tenant` nor a `name`; add \
         one, or remove the table [{code}]",
        code = codes::POLICY_FILE
    )]
    NoEffect {
        /// Which of the tables it is, from 1 on.
        number: usize,
    },
}

/// All `[[principal]]` tables, ready to be applied when credentials have been verified.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PrincipalRules(Vec<PrincipalRule>);

#[derive(Debug, PartialEq)]
struct PrincipalRule {
    issuer: Option<Pattern>,
    subject: Option<Pattern>,
    kind: Option<PrincipalKind>,
    claims: Vec<(String, Pattern)>,
    roles: Vec<String>,
    tenant: Option<String>,
    name: Option<String>,
}

impl PrincipalRules {
    /// Compiles the tables.
    ///
    /// # Errors
    ///
    /// Returns an error if a table has no condition or no effect.
    pub(crate) fn new(tables: Vec<PrincipalTable>) -> Result<Self, PrincipalTableError> {
        let rules = tables.into_iter().zip(1..).map(|(table, number)| {
            let is_about_all = table.issuer.is_none()
                && table.subject.is_none()
                && table.kind.is_none()
                && table.claims.is_empty();
            if is_about_all {
                return Err(PrincipalTableError::Everybody { number });
            }
            if table.roles.is_empty() && table.tenant.is_none() && table.name.is_none() {
                return Err(PrincipalTableError::NoEffect { number });
            }
            Ok(PrincipalRule::new(table))
        });
        Ok(Self(rules.collect::<Result<_, _>>()?))
    }

    /// Adds to a principal what the tables say of it. The credentials decide which tables apply, so
    /// their order matters for tenant and name only.
    pub(crate) fn complete(&self, principal: &mut Principal) {
        let fitting: Vec<_> = self.0.iter().filter(|rule| rule.fits(principal)).collect();

        let roles = fitting.iter().flat_map(|rule| rule.roles.iter().cloned());
        principal.add_roles(roles);

        if let Some(tenant) = fitting.iter().find_map(|rule| rule.tenant.as_ref()) {
            principal.tenant = Some(tenant.clone());
        }
        if let Some(name) = fitting.iter().find_map(|rule| rule.name.as_ref()) {
            principal.name = Some(name.clone());
        }
    }
}

impl PrincipalRule {
    fn new(table: PrincipalTable) -> Self {
        let claims = table.claims.into_iter();
        Self {
            issuer: table.issuer.as_deref().map(Pattern::new),
            subject: table.subject.as_deref().map(Pattern::new),
            kind: table.kind,
            claims: claims.map(|(name, pattern)| (name, Pattern::new(&pattern))).collect(),
            roles: table.roles,
            tenant: table.tenant,
            name: table.name,
        }
    }

    fn fits(&self, principal: &Principal) -> bool {
        let has_claim = |(name, pattern): &(String, Pattern)| {
            principal.attributes.get(name).is_some_and(|value| fits_claim(pattern, value))
        };

        self.issuer.as_ref().is_none_or(|issuer| issuer.matches(&principal.issuer))
            && self.subject.as_ref().is_none_or(|subject| subject.matches(&principal.subject))
            && self.kind.is_none_or(|kind| kind == principal.kind)
            && self.claims.iter().all(has_claim)
    }
}

fn fits_claim(pattern: &Pattern, value: &Value) -> bool {
    match value {
        Value::String(text) => pattern.matches(text),
        Value::Array(values) => values.iter().any(|value| fits_claim(pattern, value)),
        Value::Bool(_) | Value::Number(_) => pattern.matches(&value.to_string()),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::principal::Via;

    fn rules(text: &str) -> Result<PrincipalRules, PrincipalTableError> {
        #[derive(Deserialize)]
        struct File {
            principal: Vec<PrincipalTable>,
        }
        PrincipalRules::new(toml::from_str::<File>(text).unwrap().principal)
    }

    fn alice() -> Principal {
        let kind = PrincipalKind::Person;
        let mut alice = Principal::new("https://idp", "alice", kind, Via::Token);
        alice.attributes.insert("groups".to_owned(), json!(["dev", "ops"]));
        alice.attributes.insert("level".to_owned(), json!(3));
        alice
    }

    #[test]
    fn tables_apply_where_everything_fits() {
        let check = |condition: &str, expected: bool| {
            let rules = rules(&format!("[[principal]]\nroles = ['r']\n{condition}")).unwrap();
            let mut alice = alice();
            rules.complete(&mut alice);
            assert_eq!(alice.has_role("r"), expected, "{condition}");
        };
        check("subject = 'al*'", true);
        check("subject = 'al*'\nissuer = 'https://other'", false);
        check("issuer = 'https://idp'\nkind = 'person'", true);
        check("kind = 'service'", false);
        check("claims = {groups = 'ops'}", true);
        check("claims = {groups = 'op'}", false);
        check("claims = {level = '3', groups = 'd*'}", true);
        check("claims = {none = '*'}", false);
    }

    #[test]
    fn roles_add_up_and_the_first_tenant_counts() {
        let rules = rules(
            "[[principal]]\nsubject = '*'\nroles = ['a']\ntenant = 't1'\n\
             [[principal]]\nsubject = 'alice'\nroles = ['b']\ntenant = 't2'\nname = 'Alice'",
        )
        .unwrap();
        let mut alice = alice();
        alice.tenant = Some("claimed".to_owned());
        rules.complete(&mut alice);
        assert_eq!(alice.roles, ["a", "b"]);
        assert_eq!(alice.tenant.as_deref(), Some("t1"));
        assert_eq!(alice.display_name(), "Alice");
    }

    #[test]
    fn tables_without_condition_or_effect_are_refused() {
        let everybody = PrincipalTableError::Everybody { number: 1 };
        assert_eq!(rules("[[principal]]\nroles = ['a']").unwrap_err(), everybody);
        let no_effect = PrincipalTableError::NoEffect { number: 1 };
        assert_eq!(rules("[[principal]]\nsubject = 'a'").unwrap_err(), no_effect);
    }
}
