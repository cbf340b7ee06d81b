//! The settings of TLS, which are the same for every binary.

use std::path::PathBuf;

use crate::config::{named_path, path_parser};

use super::{ClientFiles, ClientTlsFiles, PairFiles, TlsError, TlsFiles};

const CERTIFICATE: &str = "--tls-certificate (MCP_TLS_CERTIFICATE_FILE)";
const KEY: &str = "--tls-key (MCP_TLS_KEY_FILE)";
const CLIENT_CA: &str = "--tls-client-ca (MCP_TLS_CLIENT_CA_FILE)";
const CRL: &str = "--tls-crl (MCP_TLS_CRL_FILE)";
const REQUIRED: &str = "--tls-client-auth required (MCP_TLS_CLIENT_AUTH)";
const OWN_CERTIFICATE: &str = "--server-client-certificate (MCP_SERVER_CLIENT_CERTIFICATE_FILE)";
const OWN_KEY: &str = "--server-client-key (MCP_SERVER_CLIENT_KEY_FILE)";

/// Whether the clients of a listener must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ClientAuth {
    /// Clients may connect without one.
    #[default]
    Optional,
    /// The handshake fails without one.
    Required,
}

/// The TLS settings of a listener.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// The port's certificate (PEM), followed by those of intermediate authorities. With it, the
    /// port speaks TLS and nothing else. A changed file is applied within two seconds.
    #[arg(
        help_heading = "TLS",
        long,
        env = "MCP_TLS_CERTIFICATE_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM), not encrypted.
    #[arg(
        help_heading = "TLS",
        long,
        env = "MCP_TLS_KEY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub tls_key: Option<PathBuf>,
    /// The authorities of client certificates (PEM). Clients may then prove who they are with a
    /// certificate.
    #[arg(
        help_heading = "TLS",
        long,
        env = "MCP_TLS_CLIENT_CA_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// Lists of revoked client certificates (PEM), one of each authority.
    #[arg(
        help_heading = "TLS",
        long,
        env = "MCP_TLS_CRL_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub tls_crl: Option<PathBuf>,
    /// Whether clients must have a certificate. With `required`, probes need one, too.
    #[arg(
        help_heading = "TLS",
        long,
        env = "MCP_TLS_CLIENT_AUTH",
        value_enum,
        default_value_t,
        value_name = "WHETHER"
    )]
    pub tls_client_auth: ClientAuth,
}

impl TlsArgs {
    /// The files of the listener; `None` if it speaks plain HTTP. An empty variable is no file.
    ///
    /// # Errors
    ///
    /// Returns an error if a setting has no effect without another one that is missing.
    pub fn files(&self) -> Result<Option<TlsFiles>, TlsError> {
        let is_required = self.tls_client_auth == ClientAuth::Required;
        let [authorities, revoked] = [&self.tls_client_ca, &self.tls_crl].map(named_path);

        let pair = pair((&self.tls_certificate, CERTIFICATE), (&self.tls_key, KEY))?;
        let Some(pair) = pair else {
            return match (authorities, is_required) {
                (Some(_), _) => Err(incomplete(CLIENT_CA, CERTIFICATE)),
                (None, true) => Err(incomplete(REQUIRED, CERTIFICATE)),
                (None, false) if revoked.is_some() => Err(incomplete(CRL, CERTIFICATE)),
                (None, false) => Ok(None),
            };
        };

        let clients = match (authorities, revoked) {
            (Some(authorities), revoked) => Some(ClientFiles { authorities, revoked, is_required }),
            (None, Some(_)) => return Err(incomplete(CRL, CLIENT_CA)),
            (None, None) if is_required => return Err(incomplete(REQUIRED, CLIENT_CA)),
            (None, None) => None,
        };
        Ok(Some(TlsFiles { pair, clients }))
    }

    /// Returns whether the listener speaks TLS.
    pub fn is_on(&self) -> bool {
        named_path(&self.tls_certificate).is_some()
    }
}

/// The TLS settings of connections to an mcp-server.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServerTlsArgs {
    /// The authorities of the mcp-server's certificate (PEM), in place of the system's. A changed
    /// file is applied within two seconds.
    #[arg(
        help_heading = "MCP server",
        long,
        env = "MCP_SERVER_CA_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub server_ca: Option<PathBuf>,
    /// A client certificate for the mcp-server (PEM), followed by those of intermediate
    /// authorities.
    #[arg(
        help_heading = "MCP server",
        long,
        env = "MCP_SERVER_CLIENT_CERTIFICATE_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub server_client_certificate: Option<PathBuf>,
    /// The client certificate's private key (PEM), not encrypted.
    #[arg(
        help_heading = "MCP server",
        long,
        env = "MCP_SERVER_CLIENT_KEY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub server_client_key: Option<PathBuf>,
}

impl ServerTlsArgs {
    /// The files of the connections. An empty variable is no file.
    ///
    /// # Errors
    ///
    /// Returns an error if a certificate has no key, or a key no certificate.
    pub fn files(&self) -> Result<ClientTlsFiles, TlsError> {
        let pair = pair(
            (&self.server_client_certificate, OWN_CERTIFICATE),
            (&self.server_client_key, OWN_KEY),
        )?;
        Ok(ClientTlsFiles { authorities: named_path(&self.server_ca), pair })
    }
}

/// A certificate and its key, each with the name of its setting.
fn pair(
    (certificate, certificate_setting): (&Option<PathBuf>, &'static str),
    (key, key_setting): (&Option<PathBuf>, &'static str),
) -> Result<Option<PairFiles>, TlsError> {
    match (named_path(certificate), named_path(key)) {
        (Some(certificate), Some(key)) => Ok(Some(PairFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(incomplete(certificate_setting, key_setting)),
        (None, Some(_)) => Err(incomplete(key_setting, certificate_setting)),
    }
}

fn incomplete(setting: &'static str, needed: &'static str) -> TlsError {
    TlsError::Incomplete { setting, needed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_belong_together_are_set_together() {
        let check = |set: &[&str], expected: Result<bool, &str>| {
            let path = |name: &str| set.contains(&name).then(|| PathBuf::from(name));
            let args = TlsArgs {
                tls_certificate: path("certificate"),
                tls_key: path("key"),
                tls_client_ca: path("ca"),
                tls_crl: path("crl"),
                tls_client_auth: match set.contains(&"required") {
                    true => ClientAuth::Required,
                    false => ClientAuth::Optional,
                },
            };
            match (args.files(), expected) {
                (Ok(files), Ok(is_on)) => assert_eq!(files.is_some(), is_on, "{set:?}"),
                (Err(error), Err(text)) => {
                    assert!(error.to_string().starts_with(text), "{set:?}: {error}");
                }
                (files, expected) => panic!("{set:?}: {files:?}, expected {expected:?}"),
            }
        };

        check(&[], Ok(false));
        check(&["certificate", "key"], Ok(true));
        check(&["certificate", "key", "ca", "crl", "required"], Ok(true));
        check(&["certificate"], Err("--tls-certificate"));
        check(&["key"], Err("--tls-key"));
        check(&["ca"], Err("--tls-client-ca"));
        check(&["crl"], Err("--tls-crl"));
        check(&["required"], Err("--tls-client-auth"));
        check(&["certificate", "key", "crl"], Err("--tls-crl"));
        check(&["certificate", "key", "required"], Err("--tls-client-auth"));
    }

    #[test]
    fn an_empty_variable_is_no_file() {
        let args = TlsArgs { tls_certificate: Some(PathBuf::new()), ..TlsArgs::default() };
        assert!(!args.is_on() && args.files().unwrap().is_none());
        let args = ServerTlsArgs { server_ca: Some(PathBuf::new()), ..ServerTlsArgs::default() };
        assert_eq!(args.files().unwrap(), ClientTlsFiles::default());
    }
}
