//! Selectors: whom a rule or a limit covers.

use crate::{
    pattern::Pattern,
    principal::{Principal, PrincipalId, PrincipalKind, Via},
};

/// Some principals.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Selector {
    Anyone,
    Role(Pattern),
    Tenant(Pattern),
    Subject(Pattern),
    Issuer(Pattern),
    Key(Pattern),
    Kind(PrincipalKind),
    Id(PrincipalId),
}

/// A selector can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It has another form.
    #[error(
        "{0:?} selects nobody; write \"anyone\", or one of role:, tenant:, subject:, issuer:, key:, \
         kind: and id: with a pattern after it, such as \"role:agent\" or \"key:ci-*\""
    )]
    Form(String),
    /// There is no such kind.
    #[error("{0:?} is no kind of principal; use person, service, node or anonymous")]
    Kind(String),
    /// The id can't be one.
    #[error("{0:?} is not the id of a principal, which has 32 lower-case hexadecimal digits")]
    Id(String),
}

impl Selector {
    /// Reads a selector such as `role:agent`.
    pub(crate) fn parse(text: &str) -> Result<Self, SelectorError> {
        if text == "anyone" {
            return Ok(Self::Anyone);
        }

        let form = || SelectorError::Form(text.to_owned());
        let (kind, value) =
            text.split_once(':').filter(|(_, value)| !value.is_empty()).ok_or_else(form)?;
        Ok(match kind {
            "role" => Self::Role(Pattern::new(value)),
            "tenant" => Self::Tenant(Pattern::new(value)),
            "subject" => Self::Subject(Pattern::new(value)),
            "issuer" => Self::Issuer(Pattern::new(value)),
            "key" => Self::Key(Pattern::new(value)),
            "kind" => {
                let kind = PrincipalKind::parse(value);
                Self::Kind(kind.ok_or_else(|| SelectorError::Kind(value.to_owned()))?)
            }
            "id" => {
                let id = value.parse();
                Self::Id(id.map_err(|_| SelectorError::Id(value.to_owned()))?)
            }
            _ => return Err(form()),
        })
    }

    /// Returns whether the selector covers a principal.
    pub(crate) fn covers(&self, principal: &Principal) -> bool {
        match self {
            Self::Anyone => true,
            Self::Role(pattern) => match pattern.literal() {
                Some(role) => principal.has_role(role),
                None => principal.roles.iter().any(|role| pattern.matches(role)),
            },
            Self::Tenant(pattern) => {
                principal.tenant.as_deref().is_some_and(|tenant| pattern.matches(tenant))
            }
            Self::Subject(pattern) => pattern.matches(&principal.subject),
            Self::Issuer(pattern) => pattern.matches(&principal.issuer),
            Self::Key(pattern) => match &principal.via {
                Via::Key { id } => pattern.matches(id),
                _ => false,
            },
            Self::Kind(kind) => principal.kind == *kind,
            Self::Id(id) => principal.id() == *id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_cover_what_they_name() {
        let via = Via::Key { id: "ci-1".to_owned() };
        let mut principal = Principal::new("keys", "ci", PrincipalKind::Service, via);
        principal.tenant = Some("a".to_owned());
        principal.add_roles(["agent".to_owned()]);
        let id = format!("id:{}", principal.id());

        let check = |text: &str, expected| {
            assert_eq!(Selector::parse(text).unwrap().covers(&principal), expected, "{text}");
        };
        for fitting in
            ["anyone", "role:agent", "role:a*", "tenant:a", "subject:c?", "issuer:keys", "key:ci-*"]
        {
            check(fitting, true);
        }
        check("kind:service", true);
        check(&id, true);
        for other in ["role:agents", "tenant:b", "subject:ci-1", "issuer:*x", "key:ci", "kind:node"]
        {
            check(other, false);
        }

        // Somebody without a tenant or a key has none that a wildcard could match.
        let local = Principal::local();
        for wild in ["tenant:*", "key:*", "role:*"] {
            assert!(!Selector::parse(wild).unwrap().covers(&local), "{wild}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "everyone", "role:", "roles:agent", "agent", "*"] {
            assert_eq!(Selector::parse(bad), Err(SelectorError::Form(bad.to_owned())));
        }
        assert!(matches!(Selector::parse("kind:robot"), Err(SelectorError::Kind(_))));
        assert!(matches!(Selector::parse("id:1"), Err(SelectorError::Id(_))));
    }
}
