//! [`Credentials`]: what this end trusts, and what it shows of itself; [`Security`]: how it
//! connects with them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use tonic::transport::{Channel, Endpoint};

use super::link::{Link, Token};
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
    token: Option<TokenSource>,
}

/// Where a bearer token is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum TokenSource {
    /// The token itself.
    Value(String),
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(hidden)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Credentials {
    /// Presents a bearer token with every call. To a server that is not on this machine it is sent
    /// with TLS alone, unless the address begins with `http://`.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(TokenSource::Value(token.into()));
        self
    }

    /// Presents the bearer token in this file with every call, as [`token`](Self::token) does. The
    /// file is read again when it has changed.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.token = Some(TokenSource::File(file.into()));
        self
    }

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
    token: Option<Token>,
    /// Carries the calls in place of sockets.
    #[cfg(feature = "simulation")]
    network: Option<std::sync::Arc<dyn super::Network>>,
}

impl Security {
    /// Servers are reached over a simulated network.
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(network: std::sync::Arc<dyn super::Network>) -> Self {
        Self { network: Some(network), ..Self::default() }
    }

    /// Reads the files of `credentials`. Addresses without a scheme are reached with TLS if there
    /// is a CA or a certificate, or if one of `addresses` begins with `https://`.
    ///
    /// Fails with `InvalidArgument` if a file cannot be used, or if an address is none.
    pub(crate) fn load(credentials: &Credentials, addresses: &[String]) -> Result<Self> {
        let mut encrypted = false;
        for address in addresses {
            encrypted |= endpoint(address, Duration::ZERO)?.1 == Some(Scheme::Https);
        }
        let token = credentials.token.as_ref().map(Token::load).transpose()?;
        #[cfg(feature = "tls")]
        {
            let Credentials { ca, own, .. } = credentials.clone();
            let tls = if encrypted || ca.is_some() || own.is_some() {
                Some(TlsClient::load(ca, own)?)
            } else {
                None
            };
            Ok(Self {
                tls,
                token,
                #[cfg(feature = "simulation")]
                network: None,
            })
        }
        #[cfg(not(feature = "tls"))]
        {
            if encrypted {
                return Err(without_tls());
            }
            Ok(Self {
                token,
                #[cfg(feature = "simulation")]
                network: None,
            })
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
                (Some(Scheme::Http), _) => Ok((endpoint, dial)),
                (None, None) => {
                    self.may_be_plain(address, &endpoint)?;
                    Ok((endpoint, dial))
                }
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
            Some(Scheme::Http) => Ok((endpoint, dial)),
            None => {
                self.may_be_plain(address, &endpoint)?;
                Ok((endpoint, dial))
            }
        }
    }

    /// Fails with `InvalidArgument` if a token would be sent in plain text to another machine, and
    /// the address does not say that it may be.
    fn may_be_plain(&self, address: &str, endpoint: &Endpoint) -> Result<()> {
        let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let local = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if self.token.is_none() || local {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            "a token is not sent to another machine in plain text: write https:// before the \
             address or name a CA (--ca), or write http:// if the network is trusted",
        )
        .with("address", address))
    }

    /// The channel to `address`, which connects when it is first used. Must be called within a
    /// tokio runtime. Fails as [`reach`](Self::reach) does.
    pub(crate) fn link(&self, address: &str, connect_timeout: Duration) -> Result<Link> {
        #[cfg(feature = "simulation")]
        if let Some(network) = &self.network {
            return Ok(Link::simulated(std::sync::Arc::clone(network), address));
        }
        let (endpoint, dial) = self.reach(address, connect_timeout)?;
        Ok(self.over(endpoint.connect_with_connector_lazy(dial)))
    }

    /// A channel over which the token is presented, if there is one.
    pub(crate) fn over(&self, channel: Channel) -> Link {
        Link::new(channel, self.token.clone())
    }
}

#[cfg(not(feature = "tls"))]
fn without_tls() -> Error {
    Error::new(ErrorKind::InvalidArgument, "this build has no TLS: add the feature tls")
}
