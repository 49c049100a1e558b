//! [`TlsClient`]: the side that connects.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ConfigBuilder, WantsVerifier};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ALPN, explain, files, provider};
use crate::reload::Reloaded;

/// The time to wait for the first bytes of a server after the handshake. With TLS 1.3 they show
/// that it accepted this end's certificate. A proxy may wait for the client to send.
const FIRST_BYTES_MAX: Duration = Duration::from_millis(500);

/// Connects with TLS, with the certificates that its files hold now.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    config: Arc<Reloaded<ClientConfig>>,
    /// The CAs, as errors name them.
    trusted: String,
    /// The file of this end's certificate.
    own: Option<String>,
}

impl TlsClient {
    /// Trusts the CAs in the file `ca`, or those of the machine. Presents the certificate in the
    /// first file of `own`, whose key is in the second.
    ///
    /// Fails with `InvalidArgument` if a file cannot be used, and names it.
    pub(crate) fn load(ca: Option<PathBuf>, own: Option<(PathBuf, PathBuf)>) -> Result<Self> {
        let trusted = match &ca {
            Some(path) => path.display().to_string(),
            None => "this machine".to_owned(),
        };
        let own_file = own.as_ref().map(|(cert, _)| cert.display().to_string());
        let files: Vec<PathBuf> =
            ca.iter().chain(own.iter().flat_map(|(cert, key)| [cert, key])).cloned().collect();
        let config = Reloaded::new(files, move || config(ca.as_ref(), own.as_ref()))?;
        Ok(Self { config: Arc::new(config), trusted, own: own_file })
    }

    /// Speaks TLS over `stream`, to the server that is reached as `host` at `port`, until the
    /// handshake is over.
    ///
    /// # Errors
    /// One with an [`Error`] inside, if the two ends do not accept each other.
    ///
    /// # Cancel safety
    /// The connection is closed.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
        port: u16,
    ) -> io::Result<TlsStream<TcpStream>> {
        let address = address(host, port);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            refused(format!("{host} is no name that a certificate can have: use a host name"))
        })?;
        let connector = TlsConnector::from(self.config.fresh().await);
        let mut stream =
            connector.connect(name, stream).await.map_err(|why| self.explained(why, &address))?;
        if let Ok(Err(why)) = tokio::time::timeout(FIRST_BYTES_MAX, stream.fill_buf()).await {
            return Err(self.explained(why, &address));
        }
        Ok(stream)
    }

    fn explained(&self, why: io::Error, address: &str) -> io::Error {
        match explain::tls_error(&why) {
            Some(error) => {
                refused(explain::to_server(error, address, &self.trusted, self.own.as_deref()))
            }
            None if why.kind() == io::ErrorKind::UnexpectedEof => refused(format!(
                "the server at {address} closed the connection during the TLS handshake: does it \
                 speak TLS?"
            )),
            None => why,
        }
    }
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn refused(sentence: String) -> io::Error {
    io::Error::other(Error::new(ErrorKind::Unauthenticated, sentence))
}

fn config(ca: Option<&PathBuf>, own: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig> {
    let roots = match ca {
        Some(path) => files::roots(path)?,
        None => files::native_roots()?,
    };
    let builder = builder()?.with_root_certificates(roots);
    let mut config = match own {
        Some((cert, key)) => {
            let key = files::certified_key(cert, key)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long, and each handshake is to check the certificates of that time.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(
        |why| Error::new(ErrorKind::Internal, "TLS cannot be set up: report it").with_source(why),
    )
}
