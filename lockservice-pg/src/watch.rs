//! [`Watch`]: notices changes of leadership at once (`LISTEN`).
//!
//! # Implementation details
//! A task of its own holds the connection; it begins with the first wait, so that a node that never
//! stands by has none. A change raises a generation. A caller waits until the generation is above
//! the one at which it last requested the leadership, so a change between request and wait is not
//! missed. The task raises it also after each new connection: what happened meanwhile is not known.
//! Behind a pooler no listener is opened: its messages would reach the next user of its connection
//! then.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Executor;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::PgConfig;
use crate::servers::Servers;

/// A connection that has been silent for this long is probed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Pause before a lost connection is replaced; callers look by themselves meanwhile.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Watch {
    listen: bool,
    servers: Arc<Servers>,
    channel: String,
    connect_timeout: Duration,
    generation: watch::Sender<u64>,
    /// The generation before the last question for the leadership. Alone: nothing else is published
    /// by it.
    observed: AtomicU64,
    task: OnceLock<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn new(config: &PgConfig, channel: &str, servers: Arc<Servers>) -> Self {
        Self {
            listen: config.listen,
            servers,
            channel: channel.to_owned(),
            connect_timeout: config.connect_timeout,
            generation: watch::Sender::new(0),
            observed: AtomicU64::new(0),
            task: OnceLock::new(),
        }
    }

    /// The caller requests the leadership now, and does not know later changes.
    pub(crate) fn observe(&self) {
        self.observed.store(*self.generation.borrow(), Ordering::Relaxed);
    }

    /// Waits until something may have changed since then, at most `poll`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn changed(&self, poll: Duration) {
        if self.listen && !self.servers.pooler() {
            self.task.get_or_init(|| {
                let listener = Listener {
                    servers: Arc::clone(&self.servers),
                    channel: self.channel.clone(),
                    connect_timeout: self.connect_timeout,
                    generation: self.generation.clone(),
                };
                tokio::spawn(listener.listen())
            });
        }
        let observed = self.observed.load(Ordering::Relaxed);
        let mut generation = self.generation.subscribe();
        // Over time or not, the caller looks again.
        drop(timeout(poll, generation.wait_for(|now| *now > observed)).await);
        self.observe();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("channel", &self.channel).finish_non_exhaustive()
    }
}

/// The state of the task.
struct Listener {
    servers: Arc<Servers>,
    channel: String,
    connect_timeout: Duration,
    generation: watch::Sender<u64>,
}

impl Listener {
    async fn listen(self) {
        while !self.servers.pooler() {
            if let Err(error) = self.listen_once().await {
                tracing::debug!(channel = self.channel, error = ?error, "cannot listen to changes \
                    of leadership; trying again");
            }
            sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Until the connection is lost.
    async fn listen_once(&self) -> sqlx::Result<()> {
        // A pool for this one connection: a place that is held by a server's silence is of no more
        // use.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.connect_timeout)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.servers.current());
        let begin = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(&self.channel).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let mut listener =
            timeout(self.connect_timeout, begin).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        loop {
            self.generation.send_modify(|generation| *generation += 1);
            loop {
                match timeout(SILENCE_MAX, listener.try_recv()).await {
                    Ok(Ok(Some(_))) => break,
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => {
                        let connected =
                            timeout(self.connect_timeout, (&mut listener).execute("select")).await;
                        connected.map_err(|_| sqlx::Error::PoolTimedOut)??;
                    }
                }
            }
        }
    }
}
