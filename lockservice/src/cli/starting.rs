//! What a start of a node waits for, and how a node that never got ready leaves.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockservice_core::allocator::{ElectedAllocator, Role};
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::store::BindStore;
use lockservice_core::{Error, ErrorKind};
use parking_lot::Mutex;

use super::exit::{Failure, say_waiting};
use crate::server::may_pass;
use crate::store::StoreUrl;

/// The pause between two tries to open a store that does not respond.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The time for which a node looks for a leader before it reports that there is none.
const QUIET: Duration = Duration::from_secs(2);
/// The interval at which the same reason is reported again.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// The longest time that a node that never got ready may take to resign its leadership.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// The cluster that a node joined while it starts.
#[derive(Default)]
pub(crate) struct Joined(OnceLock<Arc<ElectedAllocator>>);

impl Joined {
    pub(super) fn set(&self, allocator: &Arc<ElectedAllocator>) {
        // A node joins once.
        drop(self.0.set(Arc::clone(allocator)));
    }

    /// Leaves the cluster, if the node had joined it. The node has not made any promise yet.
    pub(crate) async fn leave(&self) {
        if let Some(allocator) = self.0.get() {
            // If this fails, the other nodes wait until the leadership runs out.
            drop(tokio::time::timeout(LEAVE_MAX, allocator.shutdown(true, Duration::ZERO)).await);
        }
    }
}

/// Reports on stderr why a start waits: each reason once, and again from time to time.
pub(crate) struct Waiting {
    json: bool,
    last: Mutex<Option<(String, Time)>>,
}

impl Waiting {
    /// Nothing was reported yet.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, last: Mutex::new(None) }
    }

    /// True if it reports in JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// The last sentence.
    pub(crate) fn last(&self) -> Option<String> {
        self.last.lock().as_ref().map(|(reason, _)| reason.clone())
    }

    pub(super) fn say_error(&self, error: &Error) {
        let mut reason = Failure::from(error.clone()).sentence;
        if let Some(after) = error.retry_after().filter(|_| error.kind() == ErrorKind::NameInUse) {
            reason = format!(
                "{reason}; if that process has died, its lease runs out within {after:.1?}"
            );
        }
        self.say(&reason);
    }

    pub(super) fn say(&self, reason: &str) {
        let now = SystemClock.now();
        let mut last = self.last.lock();
        if last.as_ref().is_some_and(|(said, at)| said == reason && now.since(*at) < SAY_AGAIN) {
            return;
        }
        *last = Some((reason.to_owned(), now));
        drop(last);
        say_waiting(self.json, reason);
    }
}

/// Opens the store, which may itself be starting.
pub(super) async fn open_store(
    url: &StoreUrl,
    waiting: &Waiting,
) -> Result<Arc<dyn BindStore>, Failure> {
    loop {
        match url.open().await {
            Ok(store) => return Ok(store),
            Err(e) if may_pass(&e) => waiting.say_error(&e),
            Err(e) => return Err(e.into()),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// Waits until a leader is known, which may be this node.
pub(super) async fn await_role(
    allocator: &ElectedAllocator,
    waiting: &Waiting,
) -> Result<(), Failure> {
    let mut roles = allocator.roles();
    loop {
        match &*roles.borrow_and_update() {
            Role::Leading(_) | Role::Following { .. } => return Ok(()),
            Role::Stopped(e) => return Err(e.clone().into()),
            Role::Searching(Some(e)) if may_pass(e) => waiting.say_error(e),
            Role::Searching(Some(e)) => return Err(e.clone().into()),
            Role::Searching(None) => {}
        }
        match tokio::time::timeout(QUIET, roles.changed()).await {
            Ok(Ok(())) => {}
            // The allocator was stopped, and then dropped.
            Ok(Err(_)) => return Ok(()),
            Err(_) if matches!(&*roles.borrow(), Role::Searching(None)) => {
                waiting.say(
                    "no node leads the store yet: it is taken over when the last \
                    leadership has run out",
                );
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use lockservice_core::NodeName;
    use lockservice_core::allocator::AllocatorSettings;
    use lockservice_core::testing::SharedStore;

    use super::*;
    use crate::peers::{GrpcPeers, Patience};

    fn join(store: &SharedStore) -> Arc<ElectedAllocator> {
        let mut settings = AllocatorSettings::default();
        settings.constants.leadership_ttl_ms = 1_000;
        let peers = Arc::new(GrpcPeers::new(Patience::for_lease(Duration::from_secs(1))));
        let (clock, name) = (Arc::new(SystemClock), NodeName::new("n").expect("a name"));
        ElectedAllocator::start(Arc::new(store.clone()), clock, settings, name, "n:1", peers)
            .expect("valid settings")
    }

    #[tokio::test]
    async fn a_start_waits_for_a_store_that_does_not_respond_and_says_why() {
        let store = SharedStore::new();
        store.set_cut(true);
        let allocator = join(&store);
        let waiting = Waiting::new(true);
        let started = await_role(&allocator, &waiting);
        let heal = async {
            let mut roles = allocator.roles();
            roles
                .wait_for(|role| matches!(role, Role::Searching(Some(_))))
                .await
                .expect("it lives");
            while waiting.last().is_none() {
                tokio::task::yield_now().await;
            }
            store.set_cut(false);
        };
        let (started, ()) = tokio::join!(started, heal);
        started.expect("the store responds again");
        let said = waiting.last().expect("it said why");
        assert!(said.contains("the store does not respond"), "{said}");
    }

    #[test]
    fn the_same_reason_is_said_once() {
        let waiting = Waiting::new(true);
        waiting.say("a");
        let first = waiting.last.lock().clone();
        waiting.say("a");
        assert_eq!(*waiting.last.lock(), first);
        waiting.say("b");
        assert_eq!(waiting.last().as_deref(), Some("b"));
    }
}
