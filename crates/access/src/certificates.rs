//! The `[[certificate]]` tables: which client certificates stand for whom.

use std::sync::Arc;

use fleet_codes as codes;
use serde::Deserialize;

use crate::{
    pattern::Pattern,
    presented::ClientCertificate,
    principal::{CERTIFICATES_ISSUER, Principal, PrincipalKind, Via},
    principals::PrincipalRules,
};

/// A `[[certificate]]` of the policy file: it has either `uri` or `dns_name`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateTable {
    /// The URIs, as a pattern, such as `spiffe://example.org/ns/*/sa/worker`. `*` matches `/` too.
    pub uri: Option<String>,
    /// The DNS names, as a pattern.
    pub dns_name: Option<String>,
    /// What sort of subject it is.
    #[serde(default = "node")]
    pub kind: PrincipalKind,
    /// A name for people.
    pub name: Option<String>,
    /// The tenant.
    pub tenant: Option<String>,
    /// The roles.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The scopes.
    #[serde(default)]
    pub scopes: Vec<String>,
}

fn node() -> PrincipalKind {
    PrincipalKind::Node
}

/// Why a `[[certificate]]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the [[certificate]] number {number} must have exactly one of `uri` and `dns_name` [{code}]",
    code = codes::POLICY_FILE
)]
pub struct CertificateTableError {
    /// Which of the tables it is, from 1 on.
    pub number: usize,
}

/// All `[[certificate]]` tables.
#[derive(Debug, Default)]
pub(crate) struct CertificateRules {
    rules: Vec<CertificateRule>,
    principals: Arc<PrincipalRules>,
}

#[derive(Debug)]
struct CertificateRule {
    pattern: NamePattern,
    table: CertificateTable,
}

#[derive(Debug)]
enum NamePattern {
    Uri(Pattern),
    DnsName(Pattern),
}

impl CertificateRules {
    /// Compiles the tables.
    ///
    /// # Errors
    ///
    /// Returns an error if a table has not exactly one of `uri` and `dns_name`.
    pub(crate) fn new(
        tables: Vec<CertificateTable>,
        principals: Arc<PrincipalRules>,
    ) -> Result<Self, CertificateTableError> {
        let rules = tables.into_iter().zip(1..).map(|(table, number)| {
            let pattern = match (&table.uri, &table.dns_name) {
                (Some(uri), None) => NamePattern::Uri(Pattern::new(uri)),
                // DNS names are compared in lower case.
                (None, Some(name)) => {
                    NamePattern::DnsName(Pattern::new(&name.to_ascii_lowercase()))
                }
                _ => return Err(CertificateTableError { number }),
            };
            Ok(CertificateRule { pattern, table })
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()?, principals })
    }

    /// Returns whether there are no tables.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The principal that a certificate stands for: the first table that covers one of its names
    /// decides, and that name is the subject.
    pub(crate) fn principal(&self, certificate: &ClientCertificate) -> Option<Principal> {
        self.rules.iter().find_map(|rule| {
            let subject = rule.pattern.find(certificate)?;
            let table = &rule.table;
            let mut principal =
                Principal::new(CERTIFICATES_ISSUER, subject, table.kind, Via::Certificate);

            principal.name.clone_from(&table.name);
            principal.tenant.clone_from(&table.tenant);
            principal.add_roles(table.roles.iter().cloned());
            principal.add_scopes(table.scopes.iter().cloned());
            self.principals.complete(&mut principal);
            Some(principal)
        })
    }
}

impl NamePattern {
    fn find(&self, certificate: &ClientCertificate) -> Option<String> {
        match self {
            Self::Uri(pattern) => certificate.uris.iter().find(|uri| pattern.matches(uri)).cloned(),
            Self::DnsName(pattern) => {
                let names = certificate.dns_names.iter().map(|name| name.to_ascii_lowercase());
                names.into_iter().find(|name| pattern.matches(name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<CertificateRules, CertificateTableError> {
        #[derive(Deserialize)]
        struct File {
            certificate: Vec<CertificateTable>,
        }
        let tables = toml::from_str::<File>(text).unwrap().certificate;
        CertificateRules::new(tables, Arc::default())
    }

    #[test]
    fn a_name_decides_and_is_the_subject() {
        let rules = rules(
            "[[certificate]]\nuri = 'spiffe://d/ns/*/sa/worker'\nroles = ['worker']\n\
             [[certificate]]\ndns_name = '*.Example.org'\nkind = 'service'",
        )
        .unwrap();
        let check = |uris: &[&str], names: &[&str], expected: Option<(&str, PrincipalKind)>| {
            let certificate = ClientCertificate {
                uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
                dns_names: names.iter().map(|&name| name.to_owned()).collect(),
                is_withdrawn: false,
            };
            let principal = rules.principal(&certificate);
            let found = principal.as_ref().map(|own| (own.subject.as_str(), own.kind));
            assert_eq!(found, expected);
        };

        let worker = "spiffe://d/ns/a/sa/worker";
        check(&[worker], &[], Some((worker, PrincipalKind::Node)));
        check(
            &["spiffe://d/x"],
            &["A.example.ORG"],
            Some(("a.example.org", PrincipalKind::Service)),
        );
        check(&["spiffe://other/ns/a/sa/worker"], &["example.org"], None);
        check(&[], &[worker], None);
    }

    #[test]
    fn a_table_has_one_name() {
        for bad in ["", "uri = 'a'\ndns_name = 'b'"] {
            let error = rules(&format!("[[certificate]]\n{bad}")).unwrap_err();
            assert_eq!(error, CertificateTableError { number: 1 });
        }
    }
}
