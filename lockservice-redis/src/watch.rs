//! [`Watch`]: notices a change of leadership at once where Redis announces it, otherwise by
//! polling.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use redis::aio::PubSub;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::RedisConfig;
use crate::connection::StoreConnection;

/// A subscription to the announcements. It is only a hint: even if it breaks, the caller reads the
/// store again in time.
pub(crate) struct Watch {
    channel: String,
    subscription: Mutex<Option<PubSub>>,
}

impl Watch {
    pub(crate) fn new(channel: String) -> Self {
        Self { channel, subscription: Mutex::default() }
    }

    /// Waits until a change was announced, at most `poll`.
    ///
    /// # Cancel safety
    /// Cancel safe: the subscription stays, and an announcement meanwhile ends the next wait.
    pub(crate) async fn wait(
        &self,
        connection: &StoreConnection,
        config: &RedisConfig,
        poll: Duration,
    ) {
        let end = Instant::now() + poll;
        // A second one that waits through the same store polls.
        let Ok(mut subscription) = self.subscription.try_lock() else {
            return sleep_until(end).await;
        };
        if subscription.is_none() {
            let within = config.connect_timeout.min(poll);
            *subscription = timeout(within, self.subscribe(connection)).await.ok().flatten();
        }
        let Some(open) = subscription.as_mut() else {
            drop(subscription);
            return sleep_until(end).await;
        };
        let message = timeout_at(end, open.on_message().next()).await;
        match message {
            // Older announcements are of no interest any more.
            Ok(Some(_)) => while let Some(Some(_)) = open.on_message().next().now_or_never() {},
            // The connection has ended; the leader's server may have, too: look at once, then poll
            // until there is one again.
            Ok(None) => *subscription = None,
            Err(_) => {}
        }
    }

    async fn subscribe(&self, connection: &StoreConnection) -> Option<PubSub> {
        let mut subscription = connection.client().await.ok()?.get_async_pubsub().await.ok()?;
        subscription.subscribe(&self.channel).await.ok()?;
        Some(subscription)
    }
}
