//! The address of the database, as libpq writes it.

use std::{fmt, path::PathBuf, str::FromStr as _, time::Duration};

use fleet_ops::tls::{PairFiles, ServerProof, StreamTlsFiles};
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};
use url::form_urlencoded;

/// How long connecting to one address of the database may take, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this time without a sign of life from the database, its connections are given up.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// The name under which the database lists our connections.
const APPLICATION: &str = "mcp-fleet-ledger";
/// The parameters that a URL may have besides those about TLS. The password belongs in front of the
/// host, where everything that logs URLs removes it.
const PARAMETERS: [&str; 14] = [
    "user",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "options",
    "application_name",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
];

/// Where the database is, and how connections to it are secured.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    pub(super) config: Config,
    /// `None` if connections are not encrypted.
    pub(super) tls: Option<StreamTlsFiles>,
}

/// Why a URL can't be used. Never repeats any part of it, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It is no URL of a database.
    #[error(
        "it is not a valid URL; expected something like \
         postgres://user:password@db.example.com:5432/fleet?sslmode=verify-full, with `/`, `?`, \
         `#`, `%` and `@` of the password percent-encoded"
    )]
    Invalid,
    /// It names no host.
    #[error("it names no host; expected something like postgres://user@db.example.com/fleet")]
    NoHost,
    /// It has a parameter that is not known.
    #[error(
        "it has an unknown parameter; expected sslmode, sslrootcert, sslcert, sslkey, {}",
        PARAMETERS.join(", ")
    )]
    Parameter,
    /// The password is a parameter.
    #[error("the password is a parameter; write it in front of the host, as in user:password@host")]
    Password,
    /// The TLS mode is not known, or not supported.
    #[error(
        "sslmode is not supported; expected disable, prefer, require, verify-ca or verify-full"
    )]
    SslMode,
    /// A certificate has no key, or a key no certificate.
    #[error("sslcert and sslkey have no effect without each other; set both or neither")]
    Pair,
}

/// What the parameters about TLS say.
#[derive(Default)]
struct TlsParameters {
    mode: Option<String>,
    authorities: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl DatabaseUrl {
    /// Parses a URL that begins with `postgres://` or `postgresql://`. Files are not read yet.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is invalid or has parameters that are not supported.
    pub fn parse(text: &str) -> Result<Self, DatabaseUrlError> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(DatabaseUrlError::Invalid);
        }
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (tls, others) = split_parameters(query)?;

        let text =
            if others.is_empty() { address.to_owned() } else { format!("{address}?{others}") };
        let mut config = Config::from_str(&text).map_err(|_| DatabaseUrlError::Invalid)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(DatabaseUrlError::NoHost);
        }

        let (mode, tls) = tls.resolve()?;
        config.ssl_mode(mode);
        set_defaults(&mut config);
        Ok(Self { config, tls })
    }
}

/// Separates the parameters about TLS from the others.
fn split_parameters(query: &str) -> Result<(TlsParameters, String), DatabaseUrlError> {
    let mut tls = TlsParameters::default();
    let mut others = form_urlencoded::Serializer::new(String::new());

    // A plus sign is itself here, and not a space.
    let query = query.replace('+', "%2B");
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sslmode" => tls.mode = Some(value.into_owned()),
            "sslrootcert" => tls.authorities = Some(PathBuf::from(&*value)),
            "sslcert" => tls.certificate = Some(PathBuf::from(&*value)),
            "sslkey" => tls.key = Some(PathBuf::from(&*value)),
            "password" => return Err(DatabaseUrlError::Password),
            name if PARAMETERS.contains(&name) => {
                others.append_pair(name, &value);
            }
            _ => return Err(DatabaseUrlError::Parameter),
        }
    }

    // The serializer writes spaces as plus signs, and plus signs as `%2B`.
    Ok((tls, others.finish().replace('+', "%20")))
}

impl TlsParameters {
    /// Returns what the mode means, as libpq defines it: only `verify-full` protects against
    /// whoever can answer in the database's place. A file of authorities makes `require` check
    /// them.
    fn resolve(self) -> Result<(SslMode, Option<StreamTlsFiles>), DatabaseUrlError> {
        // The system's authorities, in libpq's spelling.
        let authorities = self.authorities.filter(|path| path.as_os_str() != "system");
        let (mode, proof) = match self.mode.as_deref().unwrap_or("prefer") {
            "disable" => return Ok((SslMode::Disable, None)),
            "prefer" => (SslMode::Prefer, ServerProof::Nothing),
            "require" if authorities.is_some() => (SslMode::Require, ServerProof::Authority),
            "require" => (SslMode::Require, ServerProof::Nothing),
            "verify-ca" => (SslMode::Require, ServerProof::Authority),
            "verify-full" => (SslMode::Require, ServerProof::Name),
            _ => return Err(DatabaseUrlError::SslMode),
        };

        let pair = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(PairFiles { certificate, key }),
            (None, None) => None,
            _ => return Err(DatabaseUrlError::Pair),
        };
        Ok((mode, Some(StreamTlsFiles { proof, authorities, pair })))
    }
}

fn set_defaults(config: &mut Config) {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(USER_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name(APPLICATION);
    }
    // Of a primary and its standbys, only one can be written to, and that can change.
    if config.get_hosts().len() > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any
    {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.to_string()).finish()
    }
}

/// Hosts and name of the database, without user and password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        for (n, host) in self.config.get_hosts().iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match host {
                Host::Tcp(name) => write!(f, "{comma}{name}")?,
                Host::Unix(path) => write!(f, "{comma}{}", path.display())?,
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sslmode_means_what_it_means_to_libpq() {
        let check = |query: &str, mode: SslMode, proof: Option<ServerProof>| {
            let url = DatabaseUrl::parse(&format!("postgres://u:p@db/fleet{query}")).unwrap();
            assert_eq!(url.config.get_ssl_mode(), mode, "{query}");
            assert_eq!(url.tls.map(|tls| tls.proof), proof, "{query}");
        };
        check("", SslMode::Prefer, Some(ServerProof::Nothing));
        check("?sslmode=disable", SslMode::Disable, None);
        check("?sslmode=require", SslMode::Require, Some(ServerProof::Nothing));
        check("?sslmode=require&sslrootcert=/ca", SslMode::Require, Some(ServerProof::Authority));
        check("?sslmode=verify-ca", SslMode::Require, Some(ServerProof::Authority));
        check("?sslmode=verify-full", SslMode::Require, Some(ServerProof::Name));
    }

    #[test]
    fn addresses_are_those_of_libpq() {
        let url = DatabaseUrl::parse(
            "postgresql://u:p%40%2F@a:1,b:2/fleet?options=-c%20search_path=one&connect_timeout=3",
        )
        .unwrap();
        assert_eq!(url.config.get_password(), Some(&b"p@/"[..]));
        assert_eq!(url.config.get_ports(), [1, 2]);
        assert_eq!(url.config.get_options(), Some("-c search_path=one"));
        assert_eq!(url.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(url.to_string(), "postgres://a,b/fleet");

        let url = DatabaseUrl::parse("postgres:///fleet?host=/run/a+b&user=u").unwrap();
        assert_eq!(url.config.get_hosts(), [Host::Unix("/run/a+b".into())]);
    }

    #[test]
    fn invalid_urls_are_refused_without_being_repeated() {
        use DatabaseUrlError as Error;
        for (url, expected) in [
            ("mysql://hunter2@db/fleet", Error::Invalid),
            ("postgres://u:hunter2@db:port/fleet", Error::Invalid),
            ("postgres://u:hunter2?x=y@db/fleet", Error::Parameter),
            ("postgres://u@db/fleet?password=hunter2", Error::Password),
            ("postgres:///fleet", Error::NoHost),
            ("postgres://db/fleet?sslmode=allow", Error::SslMode),
            ("postgres://db/fleet?sslcert=/c", Error::Pair),
        ] {
            let error = DatabaseUrl::parse(url).unwrap_err();
            assert_eq!(error, expected, "{url}");
            assert!(!error.to_string().contains("hunter2"));
        }

        let url = DatabaseUrl::parse("postgres://u:hunter2@db/fleet").unwrap();
        assert!(!format!("{url} {url:?}").contains("hunter2"));
    }
}
