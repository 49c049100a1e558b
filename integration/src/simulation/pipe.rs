//! One direction of a stream: its frames arrive in their order, after a delay.

use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use lockservice_core::env::Env;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::network::Network;

/// The frames that may be on their way: more wait, as in full buffers.
const FRAMES_MAX: usize = 64;

/// The two processes of a pipe.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) network: Network,
    pub(super) from: String,
    pub(super) to: String,
    /// The resets between them when the stream began.
    pub(super) resets: u64,
}

type Frame = http_body::Frame<Bytes>;

enum Message {
    Frame(Frame),
    /// The sender has said everything.
    End,
}

struct Receiver {
    ends: Ends,
    patience: Duration,
    messages: mpsc::Receiver<(Instant, Message)>,
}

/// Carries the frames of `body`, which a task of the sending process reads, to the other process,
/// which gives up after a silence of `patience`.
pub(super) fn carry(sender: &Env, mut body: Body, ends: Ends, patience: Duration) -> Body {
    let (out, messages) = mpsc::channel(FRAMES_MAX);
    let (network, resets) = (ends.network.clone(), ends.resets);
    let (own, other) = (ends.from.clone(), ends.to.clone());
    sender.spawn(async move {
        let mut last = Instant::now();
        let pump = async {
            loop {
                let frame = tokio::select! {
                    biased;
                    frame = body.frame() => frame,
                    // The receiver reads no more.
                    () = out.closed() => return,
                };
                let message = match frame {
                    Some(Ok(frame)) => Message::Frame(frame),
                    // The sender has dropped its side: the receiver sees a reset.
                    Some(Err(_)) => return,
                    None => Message::End,
                };
                let over = matches!(message, Message::End);
                last = last.max(Instant::now() + network.delay());
                if out.send((last, message)).await.is_err() || over {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = pump => {}
            () = network.broken(&own, &other, resets, patience) => {}
        }
    });
    let receiver = Receiver { ends, patience, messages };
    let frames = stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.next().await {
            Ok(Some(frame)) => Some((Ok(frame), Some(receiver))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    Body::new(StreamBody::new(frames))
}

impl Receiver {
    async fn next(&mut self) -> Result<Option<Frame>, Status> {
        let Self { ends: Ends { network, from, to, resets }, patience, messages } = self;
        let next = async {
            let message = match messages.recv().await {
                Some((at, message)) => {
                    tokio::time::sleep_until(at).await;
                    Some(message)
                }
                None => {
                    tokio::time::sleep(network.delay()).await;
                    None
                }
            };
            network.open(from, to).await;
            message
        };
        tokio::select! {
            biased;
            message = next => match message {
                Some(Message::Frame(frame)) => Ok(Some(frame)),
                Some(Message::End) => Ok(None),
                None => Err(Status::unavailable("the connection was reset")),
            },
            () = network.broken(to, from, *resets, *patience) => {
                Err(Status::unavailable("the connection broke"))
            }
        }
    }
}
