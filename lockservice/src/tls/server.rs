//! [`ServerTls`]: the side that accepts connections.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use serde::{Deserialize, Serialize};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{Accept, TlsAcceptor, TlsStream};

use super::certificate::Certificate;
use super::{ALPN, explain, files, provider};
use crate::reload::{CHECK_INTERVAL, Reloaded, Reloading};

/// The first byte of a TLS connection: the type of a handshake record.
const HANDSHAKE_RECORD: u8 = 22;
/// The first byte of an HTTP/2 connection in plain text: `PRI * HTTP/2.0`.
const PREFACE: u8 = b'P';
/// The interval at which failed handshakes are logged: the number of those in between is in the
/// next line.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a server's certificates.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The PEM file of this node's certificate, with those between it and its CA behind it.
    pub cert: PathBuf,
    /// The PEM file of the certificate's private key.
    pub key: PathBuf,
    /// The PEM file of the CAs of client certificates. Empty: clients need none.
    pub client_ca: PathBuf,
    /// True if a client may come without a certificate, with a token. Default false.
    pub client_cert_optional: bool,
    /// The PEM file of the CAs of the other nodes' certificates. Empty: those of `client_ca`, else
    /// those that the machine trusts.
    pub peer_ca: PathBuf,
}

impl TlsSettings {
    /// True if there is a certificate to serve with.
    pub fn is_set(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }

    /// Checks that the settings fit together. Reads no file.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the setting that is missing: add it.
    pub fn check(&self) -> Result<()> {
        let set = |path: &PathBuf| !path.as_os_str().is_empty();
        let missing = match (set(&self.cert), set(&self.key)) {
            (true, true) => return Ok(()),
            (false, false) if !set(&self.client_ca) && !set(&self.peer_ca) => return Ok(()),
            (true, false) => "tls.key (--tls-key), the key of the certificate",
            (false, _) => "tls.cert (--tls-cert), the certificate of this node",
        };
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("TLS needs {missing}: add that setting, or remove those of tls"),
        ))
    }

    /// True if clients must present a certificate.
    pub fn is_mutual(&self) -> bool {
        self.is_set() && self.client_ca().is_some() && !self.client_cert_optional
    }

    fn client_ca(&self) -> Option<&PathBuf> {
        (!self.client_ca.as_os_str().is_empty()).then_some(&self.client_ca)
    }

    /// The CAs of the other nodes' certificates, if they are named.
    #[cfg(feature = "cli")]
    pub(crate) fn peer_ca(&self) -> Option<&PathBuf> {
        let named = Some(&self.peer_ca).filter(|path| !path.as_os_str().is_empty());
        named.or_else(|| self.client_ca())
    }
}

/// The certificates of a server, as its files hold them now. A cheap handle: several listeners may
/// share one.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Arc<Reloaded<ServerConfig>>,
    failures: Mutex<Failures>,
}

/// The failed handshakes since the last line in the log.
#[derive(Debug, Default)]
struct Failures {
    logged: Option<Time>,
    since: u64,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the file and the reason: a file cannot be read, a certificate is
    /// not valid now, or the key does not fit. Correct the file.
    pub fn load(settings: &TlsSettings) -> Result<Self> {
        let settings = settings.clone();
        let files = [&settings.cert, &settings.key].into_iter().chain(settings.client_ca());
        let files = files.cloned().collect();
        let config = Arc::new(Reloaded::new(files, move || config(&settings))?);
        Ok(Self(Arc::new(Shared { config, failures: Mutex::default() })))
    }

    /// Reads the files again, for connections from now on. If they cannot be used, that is logged
    /// and changes nothing. It is done without this call too, some seconds after they have changed.
    ///
    /// # Cancel safety
    /// A reload that has begun is completed.
    pub async fn reload(&self) {
        self.check(true).await;
    }

    /// Reads the files again each time that they change, for ever.
    pub(crate) async fn watch(self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.check(false).await;
        }
    }

    async fn check(&self, always: bool) {
        let config = Arc::clone(&self.0.config);
        match tokio::task::spawn_blocking(move || config.check(always)).await {
            Ok(Reloading::Done) => tracing::info!("the certificates were read again"),
            Ok(Reloading::Failed(error)) => tracing::error!(
                %error,
                "the certificates cannot be replaced: the last ones stay in use"
            ),
            // An error means that the runtime is going away.
            Ok(Reloading::Unchanged) | Err(_) => {}
        }
    }

    /// Begins a handshake with the client at `address`. It goes on, once the client has begun it,
    /// with one of the permits of `turns`.
    pub(crate) fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        turns: Arc<Semaphore>,
    ) -> Handshake {
        Handshake { tls: self.clone(), address, turns, state: State::First(stream) }
    }

    /// Logs a handshake that failed.
    fn failed(&self, address: SocketAddr, why: &str) {
        let now = SystemClock.now();
        let mut failures = self.0.failures.lock();
        if failures.logged.is_some_and(|logged| now.since(logged) < LOG_INTERVAL) {
            failures.since += 1;
            return;
        }
        let others = std::mem::take(&mut failures.since);
        failures.logged = Some(now);
        drop(failures);
        tracing::warn!(%address, why, others, "a client could not connect with TLS");
    }
}

/// A connection until both ends have accepted each other.
#[derive(Debug)]
pub(crate) struct Handshake {
    tls: ServerTls,
    address: SocketAddr,
    /// Handshakes are the most expensive thing that a stranger can ask for. So those with one
    /// address are bounded, and others need not wait behind a flood of them.
    turns: Arc<Semaphore>,
    state: State,
}

enum State {
    /// Nothing was received yet.
    First(TcpStream),
    /// It has begun, and others of its address go on.
    Queued(TcpStream, Turn),
    Accepting {
        accept: Box<Accept<TcpStream>>,
        _turn: Option<OwnedSemaphorePermit>,
    },
    /// It is over.
    Over,
}

/// `None` if there are no turns any more.
type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// The outcome of a handshake.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// The client speaks TLS, and presented this certificate.
    Tls(Box<TlsStream<TcpStream>>, Option<Certificate>),
    /// The client speaks HTTP/2 in plain text. The caller must refuse its calls.
    Plain(TcpStream),
}

impl Handshake {
    /// Drives the handshake. Fails, after it has logged the reason, if the two ends do not accept
    /// each other.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let outcome = ready!(self.poll_quietly(cx));
        // A probe of a load balancer connects and closes: that is no failure.
        let began = !matches!(self.state, State::First(_));
        self.state = State::Over;
        if let Err(why) = &outcome
            && began
        {
            let sentence =
                explain::tls_error(why).map_or_else(|| why.to_string(), explain::to_client);
            self.tls.failed(self.address, &sentence);
        }
        Poll::Ready(outcome)
    }

    /// Gives it up: nothing came in time.
    pub(crate) fn is_late(&mut self) {
        self.state = State::Over;
        self.tls.failed(self.address, "the handshake was not over in time");
    }

    fn poll_quietly(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            match &mut self.state {
                State::First(stream) => {
                    let mut byte = [0];
                    if ready!(stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    let State::First(stream) = std::mem::replace(&mut self.state, State::Over)
                    else {
                        return Poll::Ready(Err(over()));
                    };
                    match byte[0] {
                        HANDSHAKE_RECORD => {
                            let turns = Arc::clone(&self.turns);
                            let turn = Box::pin(async move { turns.acquire_owned().await.ok() });
                            self.state = State::Queued(stream, turn);
                        }
                        PREFACE => return Poll::Ready(Ok(Accepted::Plain(stream))),
                        _ => {
                            let why = "it speaks neither TLS nor HTTP/2";
                            return Poll::Ready(Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                why,
                            )));
                        }
                    }
                }
                State::Queued(_, turn) => {
                    let turn = ready!(turn.as_mut().poll(cx));
                    let State::Queued(stream, _) = std::mem::replace(&mut self.state, State::Over)
                    else {
                        return Poll::Ready(Err(over()));
                    };
                    // A handshake uses the certificates that were current at its begin.
                    let acceptor = TlsAcceptor::from(self.tls.0.config.current());
                    let accept = Box::new(acceptor.accept(stream));
                    self.state = State::Accepting { accept, _turn: turn };
                }
                State::Accepting { accept, .. } => {
                    let stream = ready!(Pin::new(&mut **accept).poll(cx))?;
                    let presented = stream.get_ref().1.peer_certificates();
                    let certificate = presented.and_then(<[_]>::first).and_then(Certificate::parse);
                    return Poll::Ready(Ok(Accepted::Tls(Box::new(stream.into()), certificate)));
                }
                State::Over => return Poll::Ready(Err(over())),
            }
        }
    }
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the TLS handshake has failed")
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First(_) => "First",
            Self::Queued(..) => "Queued",
            Self::Accepting { .. } => "Accepting",
            Self::Over => "Over",
        })
    }
}

fn config(settings: &TlsSettings) -> Result<ServerConfig> {
    let internal = |why: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Internal, "TLS cannot be set up: report it").with_source(why)
    };
    let key = files::certified_key(&settings.cert, &settings.key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|why| internal(why.into()))?;
    let builder = match settings.client_ca() {
        Some(path) => {
            let roots = Arc::new(files::roots(path)?);
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            if settings.client_cert_optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|why| internal(why.into()))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long, and each handshake is to check the certificates of that time.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
