//! The arguments that say what a client trusts, and what it shows of itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::channel::Credentials;
use crate::client::{Client, ClientBuilder};

/// What a client trusts, and what it shows of itself.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CredentialArgs {
    /// Connect with TLS, and trust only servers with a certificate of a CA in this PEM file
    /// [default for https://: the CAs that the machine trusts].
    #[arg(long, env = "LOCKSERVICE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connect with TLS, and present the certificate in this PEM file.
    #[arg(long, env = "LOCKSERVICE_CERT", value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The PEM file of the certificate's private key.
    #[arg(long, env = "LOCKSERVICE_CERT_KEY", value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// Present the bearer token in this file. The token itself can be given as
    /// LOCKSERVICE_AUTH_TOKEN.
    #[arg(long, env = "LOCKSERVICE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The variable that holds a token. A flag would show it to every user of the machine.
const TOKEN_VARIABLE: &str = "LOCKSERVICE_AUTH_TOKEN";

impl CredentialArgs {
    /// The credentials. Their files are not read yet.
    pub(crate) fn credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        if let Some(ca) = &self.ca {
            credentials = credentials.ca(ca);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.cert_key) {
            credentials = credentials.certificate(cert, key);
        }
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        match (&self.token_file, token) {
            (Some(path), _) => credentials.token_file(path),
            (None, Some(token)) => credentials.token(token),
            (None, None) => credentials,
        }
    }

    /// A client that uses them.
    pub(crate) fn client(&self) -> ClientBuilder {
        Client::builder().credentials(self.credentials())
    }

    /// The variables by which a nested `lockservice` uses them too, wherever it runs.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, OsString)> {
        let absolute =
            |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into();
        [
            ("LOCKSERVICE_CA", &self.ca),
            ("LOCKSERVICE_CERT", &self.cert),
            ("LOCKSERVICE_CERT_KEY", &self.cert_key),
            ("LOCKSERVICE_TOKEN_FILE", &self.token_file),
        ]
        .into_iter()
        .filter_map(move |(name, path)| Some((name, absolute(path.as_deref()?))))
    }
}
