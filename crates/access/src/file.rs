//! The tables of the policy file that this crate reads.
//!
//! The same file has tables about hosting, which `fleet-policy` reads. Each of the two knows the
//! other's tables by name and leaves them alone, so a misspelled table is refused by both.

use std::sync::Arc;

use fleet_codes as codes;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    asker::Rights,
    audit::{AuditTable, AuditTableError, AuditedValues},
    authenticator::{Authenticator, WithoutCredentials},
    certificates::{CertificateRules, CertificateTable, CertificateTableError},
    keys::{KeyTable, KeysFile, KeysFileError, Pepper},
    limits::{LimitTable, LimitTableError, Limits},
    principals::{PrincipalRules, PrincipalTable, PrincipalTableError},
    rules::{AccessTable, RuleError, RuleTable, Rules},
    tokens::{IssuerConfig, IssuerTable, IssuerTableError, Tokens},
    views::{ViewError, ViewTables, Views},
};

/// Everything that the policy file says about access.
#[derive(Debug)]
pub struct AccessPolicy {
    /// What principals may do.
    pub rules: Rules,
    /// How much they may do.
    pub limits: Limits,
    /// Which arguments have their values in the audit log.
    pub audited: AuditedValues,
    /// The views.
    pub views: Views,
    principals: Arc<PrincipalRules>,
    issuers: Vec<IssuerConfig>,
    certificates: Vec<CertificateTable>,
}

/// Why the policy file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessPolicyError {
    /// The text is not TOML of this shape.
    #[error("invalid policy file [{code}]", code = codes::POLICY_FILE)]
    Toml(#[source] Box<toml::de::Error>),
    /// A `[[rule]]` can't be used.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A `[[principal]]` can't be used.
    #[error(transparent)]
    Principal(#[from] PrincipalTableError),
    /// An `[[issuer]]` can't be used.
    #[error(transparent)]
    Issuer(#[from] IssuerTableError),
    /// A `[[certificate]]` can't be used.
    #[error(transparent)]
    Certificate(#[from] CertificateTableError),
    /// A `[[limit]]` can't be used.
    #[error(transparent)]
    Limit(#[from] LimitTableError),
    /// The `[audit]` table can't be used.
    #[error(transparent)]
    Audit(#[from] AuditTableError),
    /// A `[view.…]` can't be used.
    #[error(transparent)]
    View(#[from] ViewError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    #[serde(default)]
    access: AccessTable,
    #[serde(default)]
    audit: AuditTable,
    #[serde(default)]
    principal: Vec<PrincipalTable>,
    #[serde(default)]
    rule: Vec<RuleTable>,
    #[serde(default)]
    limit: Vec<LimitTable>,
    #[serde(default)]
    issuer: Vec<IssuerTable>,
    #[serde(default)]
    certificate: Vec<CertificateTable>,
    #[serde(default)]
    view: ViewTables,
    #[serde(default)]
    server: Vec<ServerTable>,
    // Those of `fleet-policy`.
    #[serde(rename = "expand")]
    _expand: Option<IgnoredAny>,
    #[serde(rename = "limits")]
    _limits: Option<IgnoredAny>,
    #[serde(rename = "command")]
    _command: Option<IgnoredAny>,
    #[serde(rename = "remote")]
    _remote: Option<IgnoredAny>,
    #[serde(rename = "pins")]
    _pins: Option<IgnoredAny>,
    #[serde(rename = "pin")]
    _pin: Option<IgnoredAny>,
}

/// What matters here of a `[[server]]`, whose other fields `fleet-policy` reads.
#[derive(Deserialize)]
struct ServerTable {
    name: String,
    #[serde(default)]
    trust_annotations: bool,
}

impl AccessPolicy {
    /// Reads a policy file. `resource` is the public URL of the server, which is the audience of an
    /// `[[issuer]]` without `audiences`.
    ///
    /// # Errors
    ///
    /// Returns an error that names the table, the field and what to do.
    pub fn parse(text: &str, resource: Option<&str>) -> Result<Self, AccessPolicyError> {
        let layout: Layout =
            toml::from_str(text).map_err(|error| AccessPolicyError::Toml(Box::new(error)))?;

        let trusted = layout.server.into_iter().filter(|server| server.trust_annotations);
        let trusted: Vec<_> = trusted.map(|server| server.name).collect();
        let rules = Rules::new(layout.access, layout.rule, &trusted)?;

        let principals = Arc::new(PrincipalRules::new(layout.principal)?);
        // Made once here so that a bad table is refused with the file.
        CertificateRules::new(layout.certificate.clone(), Arc::clone(&principals))?;

        Ok(Self {
            rules,
            limits: Limits::new(layout.limit)?,
            audited: AuditedValues::new(layout.audit)?,
            views: Views::new(layout.view, &trusted)?,
            principals,
            issuers: read_issuers(layout.issuer, resource)?,
            certificates: layout.certificate,
        })
    }

    /// What the policy file says of decisions.
    pub fn into_rights(self) -> Rights {
        let Self { rules, limits, audited, views, .. } = self;
        Rights { rules, limits, audited, views }
    }

    /// Makes the authenticator of this policy and a keys file.
    ///
    /// # Errors
    ///
    /// Returns an error if the keys file has keys and there is no pepper, or if a digest is invalid.
    pub fn authenticator(
        &self,
        keys: &KeysFile,
        pepper: Option<&Pepper>,
        without: WithoutCredentials,
    ) -> Result<Authenticator, KeysFileError> {
        let keys = KeyTable::new(keys, pepper, |principal| self.principals.complete(principal))?;
        let tokens = Tokens::new(self.issuers.clone(), Arc::clone(&self.principals));
        // The tables were compiled when the file was read.
        let certificates =
            CertificateRules::new(self.certificates.clone(), Arc::clone(&self.principals))
                .unwrap_or_default();
        Ok(Authenticator::new(keys, tokens, certificates, without))
    }
}

fn read_issuers(
    tables: Vec<IssuerTable>,
    resource: Option<&str>,
) -> Result<Vec<IssuerConfig>, IssuerTableError> {
    let mut issuers: Vec<IssuerConfig> = Vec::with_capacity(tables.len());
    for table in tables {
        let issuer = IssuerConfig::new(table, resource)?;
        if issuers.iter().any(|other| other.url == issuer.url) {
            return Err(IssuerTableError::SameUrl { url: issuer.url });
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

#[cfg(test)]
mod tests;
