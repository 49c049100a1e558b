//! The arguments of `certs`.

use std::path::PathBuf;

use clap::Args;

const NOTES: &str = "\
The folder gets ca.pem with its key; server.pem for localhost, this machine and each --host; a \
certificate for each --client; and each certificate's key beside it (-key.pem), which only this \
user may read. A later call keeps the CA and makes the certificates anew: servers and clients read \
them again by themselves.

Keep ca-key.pem away from servers and clients. It makes certificates that they trust.

Examples:
  lockservice certs certs
  lockservice serve --tls-cert certs/server.pem --tls-key certs/server-key.pem \\
      --tls-client-ca certs/ca.pem
  lockservice locks --ca certs/ca.pem --cert certs/client.pem \\
      --cert-key certs/client-key.pem";

#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(crate) struct CertsArgs {
    /// The folder for the files. It is made if it is missing.
    pub(crate) dir: PathBuf,
    /// One more name or address at which the server is reached.
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// The name of a client for which a certificate is made.
    #[arg(long = "client", value_name = "NAME", default_value = "client")]
    pub(crate) clients: Vec<String>,
    /// How many days the certificates are valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3_650))]
    pub(crate) days: u16,
}
