//! [`Link`]: a channel, with the token that its calls present.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lockservice_core::{Error, ErrorKind, Result};
use tonic::body::Body;
use tonic::codegen::http::header::{AUTHORIZATION, HeaderValue};
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;
use tower_service::Service;

use super::credentials::TokenSource;
use crate::reload::Reloaded;

/// The largest token, in bytes: the metadata of a call are at most 8 KiB.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// A channel whose calls present a token, if there is one. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    wire: Wire,
    token: Option<Token>,
}

/// What carries the calls.
#[derive(Clone, Debug)]
enum Wire {
    Http(Channel),
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn super::Network>, Arc<str>),
}

/// A bearer token. It is shown nowhere.
#[derive(Clone, Debug)]
pub(super) enum Token {
    Value(HeaderValue),
    File(Arc<Reloaded<HeaderValue>>),
}

impl Token {
    /// Fails with `InvalidArgument` if it cannot be read, or cannot be sent.
    pub(super) fn load(source: &TokenSource) -> Result<Self> {
        match source {
            TokenSource::Value(token) => Ok(Self::Value(header(token, "the token")?)),
            TokenSource::File(path) => {
                let file = path.clone();
                let load = Reloaded::new(vec![path.clone()], move || read(&file))?;
                Ok(Self::File(Arc::new(load)))
            }
        }
    }

    /// The metadata that present it.
    fn header(&self) -> HeaderValue {
        match self {
            Self::Value(header) => header.clone(),
            Self::File(file) => {
                // A server may refuse the last one by now, so nothing waits for an interval. The
                // look at the file takes microseconds. If it cannot be read, the server says that
                // the last token counts no more.
                drop(file.check(false));
                HeaderValue::clone(&file.current())
            }
        }
    }
}

fn read(path: &Path) -> Result<HeaderValue> {
    let what = format!("the token in the file {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|why| {
        Error::new(ErrorKind::InvalidArgument, format!("{what} cannot be read: {why}"))
    })?;
    header(&text, &what)
}

fn header(token: &str, what: &str) -> Result<HeaderValue> {
    let token = token.trim();
    let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    match header {
        Ok(mut header) if visible && (1..=TOKEN_BYTES_MAX).contains(&token.len()) => {
            header.set_sensitive(true);
            Ok(header)
        }
        _ => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{what} is no token: it is one word of at most {TOKEN_BYTES_MAX} characters"),
        )),
    }
}

impl Link {
    pub(super) fn new(channel: Channel, token: Option<Token>) -> Self {
        Self { wire: Wire::Http(channel), token }
    }

    /// Calls to `address` over a simulated network.
    #[cfg(feature = "simulation")]
    pub(super) fn simulated(network: Arc<dyn super::Network>, address: &str) -> Self {
        Self { wire: Wire::Simulated(network, address.into()), token: None }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Carried;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.wire {
            Wire::Http(channel) => channel.poll_ready(cx).map_err(Into::into),
            #[cfg(feature = "simulation")]
            Wire::Simulated(..) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        match &mut self.wire {
            Wire::Http(channel) => Carried::Http(channel.call(request)),
            #[cfg(feature = "simulation")]
            Wire::Simulated(network, address) => Carried::Simulated(network.call(address, request)),
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The response to a call, when it comes.
pub(crate) enum Carried {
    Http(<Channel as Service<Request<Body>>>::Future),
    #[cfg(feature = "simulation")]
    Simulated(super::NetworkResponse),
}

impl Future for Carried {
    type Output = Result<Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Http(response) => Pin::new(response).poll(cx).map_err(Into::into),
            #[cfg(feature = "simulation")]
            Self::Simulated(response) => response.as_mut().poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_nowhere_and_one_that_cannot_be_sent_is_refused_without_it() {
        let token = Token::load(&TokenSource::Value(" lst_secret\n".to_owned())).expect("a token");
        assert_eq!(token.header(), "Bearer lst_secret");
        assert!(!format!("{token:?}").contains("secret"), "{token:?}");
        let source = TokenSource::Value("lst_secret".to_owned());
        assert!(!format!("{source:?}").contains("secret"), "{source:?}");
        let long = "secret".repeat(1_000);
        for bad in ["", " \n", "sec ret", "secret\u{7}", "secr\u{e9}t", &*long] {
            let refused = Token::load(&TokenSource::Value(bad.to_owned())).expect_err("no token");
            assert!(!refused.to_string().contains("sec"), "{refused}");
        }
    }

    #[test]
    fn a_token_in_a_file_is_read_again_at_once_and_the_last_one_stays_while_it_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "one\n").expect("written");
        let token = Token::load(&TokenSource::File(path.clone())).expect("a token");
        assert_eq!(token.header(), "Bearer one");
        std::fs::write(folder.path().join("new"), "two\n").expect("written");
        std::fs::rename(folder.path().join("new"), &path).expect("renamed");
        assert_eq!(token.header(), "Bearer two");
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(token.header(), "Bearer two");
    }
}
