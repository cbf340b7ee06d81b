//! A listener of Apache Kafka that speaks TLS and asks for a password (SASL/SCRAM).

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use fleet_ops::tls::testing::Authority;

const USER: &str = "fleet";
const PASSWORD: &str = "correct-horse";
const MECHANISM: &str = "SCRAM-SHA-512";

/// The listener, and what clients need for it.
#[derive(Debug)]
pub struct Secured {
    /// The value of `bootstrap.servers`.
    pub brokers: String,
    port: u16,
    /// The authority of the listener's certificate.
    authority: Authority,
    /// Its certificate and key in one file, as Kafka reads them.
    keystore: PathBuf,
}

impl Secured {
    /// Makes the certificate of a listener below `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let authority = Authority::new(directory, "kafka-authority");
        let pair = authority.issue("broker", "DNS:localhost,IP:127.0.0.1");
        let read = |path: &Path| fs::read_to_string(path).expect("a file of the authority");
        let keystore = directory.join("keystore.pem");
        fs::write(&keystore, read(&pair.key) + &read(&pair.certificate)).expect("the key store");

        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        Self { brokers: format!("localhost:{port}"), port, authority, keystore }
    }

    /// What the listener adds to the properties of a node that has these.
    pub(crate) fn extend(&self, properties: &str) -> String {
        let (name, address) = ("SECURED", format!("SECURED://localhost:{}", self.port));
        let extended = properties.lines().map(|line| match line.split_once('=') {
            Some(("listeners" | "advertised.listeners", _)) => format!("{line},{address}"),
            Some(("listener.security.protocol.map", _)) => format!("{line},{name}:SASL_SSL"),
            _ => line.to_owned(),
        });
        let keystore = self.keystore.display();
        let own = [
            format!("sasl.enabled.mechanisms={MECHANISM}"),
            "listener.name.secured.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;"
                .to_owned(),
            "listener.name.secured.ssl.keystore.type=PEM".to_owned(),
            format!("listener.name.secured.ssl.keystore.location={keystore}"),
        ];
        extended.chain(own).collect::<Vec<_>>().join("\n") + "\n"
    }

    /// The argument of the storage tool that makes the user.
    pub(crate) fn user() -> String {
        format!("{MECHANISM}=[name={USER},password={PASSWORD}]")
    }

    /// The variables with which our programs use the listener.
    pub fn env(&self) -> Vec<(String, String)> {
        self.env_with(PASSWORD, &self.authority)
    }

    /// The same with a wrong password.
    pub fn env_with_wrong_password(&self) -> Vec<(String, String)> {
        self.env_with("wrong", &self.authority)
    }

    /// The same with the authority of somebody else, made below `directory`.
    pub fn env_with_other_authority(&self, directory: &Path) -> Vec<(String, String)> {
        self.env_with(PASSWORD, &Authority::new(directory, "other-authority"))
    }

    fn env_with(&self, password: &str, authority: &Authority) -> Vec<(String, String)> {
        let authority = authority.certificate();
        let variables = [
            ("KAFKA_BROKERS", self.brokers.as_str()),
            ("KAFKA_PROPERTY_SECURITY_PROTOCOL", "SASL_SSL"),
            ("KAFKA_PROPERTY_SASL_MECHANISM", MECHANISM),
            ("KAFKA_PROPERTY_SASL_USERNAME", USER),
            ("KAFKA_PROPERTY_SASL_PASSWORD", password),
            ("KAFKA_PROPERTY_SSL_CA_LOCATION", authority.to_str().expect("a path in UTF-8")),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }
}
