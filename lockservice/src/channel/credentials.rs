//! [`Credentials`]: what this end trusts, and what it shows of itself; [`Security`]: how it
//! connects with them.

#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use tonic::transport::{Channel, Endpoint};

use super::{Dial, Scheme, endpoint};
#[cfg(feature = "tls")]
use crate::tls::TlsClient;

/// What one end of a connection trusts, and what it shows of itself to the other end.
///
/// Files are read again, for connections from then on, some seconds after they have changed.
///
/// ```
/// use lockservice::Credentials;
///
/// let credentials =
///     Credentials::default().ca("certs/ca.pem").certificate("certs/me.pem", "certs/me-key.pem");
/// # drop(credentials);
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Credentials {
    #[cfg(feature = "tls")]
    ca: Option<PathBuf>,
    #[cfg(feature = "tls")]
    own: Option<(PathBuf, PathBuf)>,
}

impl Credentials {
    /// Connects with TLS, and trusts only servers whose certificates are signed by a CA in this
    /// PEM file. Without it those of `https://` addresses are checked against the CAs that the
    /// machine trusts.
    #[cfg(feature = "tls")]
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// Connects with TLS, and presents the certificate in the PEM file `cert`, whose private key
    /// is in the PEM file `key`.
    #[cfg(feature = "tls")]
    pub fn certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.own = Some((cert.into(), key.into()));
        self
    }
}

/// How servers are reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    #[cfg(feature = "tls")]
    tls: Option<TlsClient>,
}

impl Security {
    /// Reads the files of `credentials`. Addresses without a scheme are reached with TLS if there
    /// is a CA or a certificate, or if one of `addresses` begins with `https://`.
    ///
    /// Fails with `InvalidArgument` if a file cannot be used, or if an address is none.
    pub(crate) fn load(credentials: &Credentials, addresses: &[String]) -> Result<Self> {
        let mut encrypted = false;
        for address in addresses {
            encrypted |= endpoint(address, Duration::ZERO)?.1 == Some(Scheme::Https);
        }
        #[cfg(feature = "tls")]
        {
            let Credentials { ca, own } = credentials.clone();
            let tls = if encrypted || ca.is_some() || own.is_some() {
                Some(TlsClient::load(ca, own)?)
            } else {
                None
            };
            Ok(Self { tls })
        }
        #[cfg(not(feature = "tls"))]
        {
            let _ = credentials;
            if encrypted { Err(without_tls()) } else { Ok(Self {}) }
        }
    }

    /// The endpoint at `address`, and how to connect to it. Fails with `InvalidArgument` for an
    /// address that is none, or that cannot be reached with these credentials.
    pub(crate) fn reach(
        &self,
        address: &str,
        connect_timeout: Duration,
    ) -> Result<(Endpoint, Dial)> {
        let (endpoint, scheme) = endpoint(address, connect_timeout)?;
        let dial = Dial::new(connect_timeout);
        #[cfg(feature = "tls")]
        {
            match (scheme, &self.tls) {
                (Some(Scheme::Http), _) | (None, None) => Ok((endpoint, dial)),
                (Some(Scheme::Https) | None, Some(tls)) => {
                    // The endpoint's own scheme would have the transport do TLS by itself.
                    let origin = endpoint.uri().to_string().replacen("http://", "https://", 1);
                    let origin =
                        origin.parse().map_err(|why: tonic::codegen::http::uri::InvalidUri| {
                            super::no_address(address).with_source(why)
                        })?;
                    Ok((endpoint.origin(origin), dial.with_tls(tls.clone())))
                }
                (Some(Scheme::Https), None) => Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a server named an address with https://, and this end has no CA to check it \
                     with: name one with --ca FILE or LOCKSERVICE_CA",
                )
                .with("address", address)),
            }
        }
        #[cfg(not(feature = "tls"))]
        match scheme {
            Some(Scheme::Https) => Err(without_tls().with("address", address)),
            Some(Scheme::Http) | None => Ok((endpoint, dial)),
        }
    }

    /// The channel to `address`, which connects when it is first used. Must be called within a
    /// tokio runtime. Fails as [`reach`](Self::reach) does.
    pub(crate) fn channel(&self, address: &str, connect_timeout: Duration) -> Result<Channel> {
        let (endpoint, dial) = self.reach(address, connect_timeout)?;
        Ok(endpoint.connect_with_connector_lazy(dial))
    }
}

#[cfg(not(feature = "tls"))]
fn without_tls() -> Error {
    Error::new(ErrorKind::InvalidArgument, "this build has no TLS: add the feature tls")
}
