//! Authorities and certificates that exist in tests only, made with the command `openssl`.

#![expect(clippy::expect_used, reason = "a panic in a test is its report")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::PairFiles;

/// An authority with its files in a directory of its own.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    /// Makes an authority of this name below `directory`.
    ///
    /// # Panics
    ///
    /// Panics if `openssl` is missing or fails.
    pub fn new(directory: &Path, name: &str) -> Self {
        let authority = Self { directory: directory.join(name) };
        fs::create_dir_all(&authority.directory).expect("a directory for the authority");
        authority.write("index.txt", "");
        authority.write("crlnumber", "01");
        authority.write(
            "openssl.cnf",
            &format!(
                "[req]\ndistinguished_name = name\nx509_extensions = authority\nprompt = no\n\
                 [name]\nCN = {name}\n\
                 [authority]\nbasicConstraints = critical,CA:TRUE\n\
                 keyUsage = critical,keyCertSign,cRLSign\nsubjectKeyIdentifier = hash\n\
                 [ca]\ndefault_ca = lists\n\
                 [lists]\ndatabase = index.txt\ncrlnumber = crlnumber\ndefault_md = sha256\n\
                 default_crl_days = 2\ncrl_extensions = list\n\
                 [list]\nauthorityKeyIdentifier = keyid:always\n"
            ),
        );
        authority.run(
            "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -keyout ca.key -out ca.pem -days 2",
        );
        authority
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Issues a certificate for servers and clients with these alternative names, such as
    /// `DNS:localhost,IP:127.0.0.1` or `URI:spiffe://example.org/worker`.
    ///
    /// # Panics
    ///
    /// Panics if `openssl` fails.
    pub fn issue(&self, file: &str, names: &str) -> PairFiles {
        self.write(
            "leaf.ext",
            &format!(
                "subjectAltName = {names}\nbasicConstraints = CA:FALSE\n\
                 keyUsage = critical,digitalSignature\nextendedKeyUsage = serverAuth,clientAuth\n\
                 authorityKeyIdentifier = keyid\n"
            ),
        );
        self.run(&format!(
            "req -new -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -keyout {file}.key -out leaf.csr -subj /CN={file}"
        ));
        self.run(&format!(
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile leaf.ext -out {file}.pem"
        ));
        let at = |kind: &str| self.directory.join(format!("{file}.{kind}"));
        PairFiles { certificate: at("pem"), key: at("key") }
    }

    /// Revokes a certificate of this authority.
    ///
    /// # Panics
    ///
    /// Panics if `openssl` fails.
    pub fn revoke(&self, pair: &PairFiles) {
        let file = pair.certificate.display();
        self.run(&format!("ca -config openssl.cnf -keyfile ca.key -cert ca.pem -revoke {file}"));
    }

    /// The authority's list of revoked certificates, as it is now.
    ///
    /// # Panics
    ///
    /// Panics if `openssl` fails.
    pub fn revocation_list(&self) -> String {
        self.run("ca -config openssl.cnf -keyfile ca.key -cert ca.pem -gencrl -out crl.pem");
        fs::read_to_string(self.directory.join("crl.pem")).expect("the revocation list")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).expect("a file of the authority");
    }

    fn run(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.directory)
            .output()
            .expect("openssl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {errors}");
    }
}
