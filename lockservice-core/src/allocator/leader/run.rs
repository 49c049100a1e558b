//! A leadership from its start to its end: [`lead`] opens the store, renews the leadership (L1) or
//! looks after an exclusive store, and runs the writer. Timers only wake; the clock decides.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::recover::{Hold, Opening, acquire};
use crate::allocator::leader::sweep::sweep_every;
use crate::allocator::leader::writer::{Command, Writer, another_store, end};
use crate::allocator::leader::{Beginning, Elected, LocalShared, NameHolder};
use crate::clock::hi;
use crate::env::JoinHandle;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::Epoch;
use crate::store::{Acquired, BindStore, Leadership, Lineage};
use crate::sync::atomic::Ordering;

/// Opens the store, then writes to it until it is stopped. A shared store's leadership is renewed
/// beside that.
pub(in crate::allocator) async fn lead(
    shared: Arc<LocalShared>,
    store: Arc<dyn BindStore>,
    beginning: Beginning,
    commands: mpsc::Receiver<Command>,
) {
    let Elected { acquired, sent } = match elected(&shared, &*store, &beginning).await {
        Ok(elected) => elected,
        Err(e) => {
            shared.opened.send_replace(Some(Err(e)));
            return;
        }
    };
    shared.metrics.acquired();
    let span = tracing::info_span!("leadership", epoch = %acquired.epoch);
    let leadership = if acquired.exclusive {
        LeadershipCell::exclusive()
    } else {
        LeadershipCell::shared(sent, shared.settings.constants.leadership_ttl())
    };
    let led = Led {
        head: Arc::new(tokio::sync::Mutex::new(acquired.epoch)),
        leadership: Arc::new(leadership),
        shared,
        store,
    };
    if acquired.exclusive {
        led.lead_exclusive(beginning, acquired, commands).instrument(span).await;
    } else {
        led.lead_shared(beginning, acquired, commands).instrument(span).await;
    }
}

/// A task that is aborted when this is dropped.
struct EndsWithMe(JoinHandle<()>);

impl Drop for EndsWithMe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The leadership of the store, requested once if need be. Fails with `StoreInUse` if another
/// leads.
async fn elected(
    shared: &LocalShared,
    store: &dyn BindStore,
    beginning: &Beginning,
) -> Result<Elected> {
    if let Some(elected) = &beginning.elected {
        return Ok(elected.clone());
    }
    let ttl = shared.settings.constants.leadership_ttl();
    match acquire(store, &shared.env, &beginning.candidate, ttl).await? {
        (Leadership::Acquired(acquired), sent) => Ok(Elected { acquired, sent }),
        (Leadership::Held { address, .. }, _) => Err(Error::new(
            ErrorKind::StoreInUse,
            "another allocator leads this store, or may be leading it: use that one, stop it, or \
                stand by for it",
        )
        .with("store", store.describe())
        .with("leader", address.as_ref().map_or("unknown", |address| &address.nodes))
        .with_detail(Detail::RetryAfter(hi(ttl)))),
    }
}

/// A leadership and its store.
#[derive(Clone)]
struct Led {
    shared: Arc<LocalShared>,
    store: Arc<dyn BindStore>,
    /// The epoch that the store has. Locked while it is raised.
    head: Arc<tokio::sync::Mutex<Epoch>>,
    leadership: Arc<LeadershipCell>,
}

impl Led {
    /// Leads a store that is open to this process alone, and looks after it meanwhile.
    async fn lead_exclusive(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        let (stop, stopped) = oneshot::channel();
        let watch = self.clone().watch(stopped);
        let writes = async {
            self.write(beginning, acquired, commands).await;
            drop(stop);
        };
        // A call that is under way ends first: it would hold the store open.
        tokio::join!(writes, watch);
    }

    /// Leads a shared store, and renews the leadership meanwhile.
    async fn lead_shared(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        // In a task of its own, from before the store is loaded: nothing that this one does in one
        // go keeps it from renewing. It ends with this one, also if that is aborted.
        let renewals = self.clone().renew(acquired.lineage.clone());
        let _renewals = EndsWithMe(self.shared.env.spawn(renewals.in_current_span()));
        // It has its first turn now: a task that is spawned, or woken, by one that then holds its
        // thread waits for it (tokio's LIFO slot).
        tokio::task::yield_now().await;
        self.write(beginning, acquired, commands).await;
    }

    /// Opens the store, then writes to it until it is stopped.
    async fn write(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        let Self { shared, store, head, leadership } = self;
        let Beginning { mut candidate, observed, .. } = beginning;
        let lineage = acquired.lineage.clone();
        let exclusive = acquired.exclusive;
        let opening = Opening {
            store: &*store,
            env: &shared.env,
            settings: &shared.settings,
            candidate: &mut candidate,
            hold: Hold { head: &head, leadership: &leadership },
            observed: &observed,
        };
        let opened = match opening.open(acquired).await {
            Ok(opened) => opened,
            Err(e) => {
                end(&shared.ended, &e);
                shared.opened.send_replace(Some(Err(e)));
                return;
            }
        };
        let mut state = opened.state;
        (state.exclusive, state.leadership) = (exclusive, leadership);
        state.origins = Arc::clone(&shared.origins);
        let state = Arc::new(state);
        shared.tables.store(state.tables.len(), Ordering::Release);
        *shared.names.lock() =
            opened.names.into_iter().map(|(name, id)| (name, NameHolder::Known(id))).collect();
        *shared.constants_later.lock() = opened.constants_later;
        let writer = Writer {
            store,
            env: shared.env.clone(),
            candidate,
            leadership_ttl: shared.settings.constants.leadership_ttl(),
            epoch: opened.epoch,
            applied: opened.applied,
            batch_max: shared.settings.batch_max,
            lost: None,
            refused: false,
            lineage,
            uncertain: false,
            state: Arc::clone(&state),
            ended: shared.ended.clone(),
            head,
        };
        if shared.state.set(state).is_err() {
            unreachable!("only this task sets the state, once");
        }
        shared.opened.send_replace(Some(Ok(())));
        writer.run(commands).await;
    }

    /// Renews the leadership every third of its TTL, after a failure every tenth, until it is known
    /// that it is over.
    async fn renew(self, lineage: Lineage) {
        let Self { shared, store, head, leadership } = self;
        let ttl = shared.settings.constants.leadership_ttl();
        let mut pause = ttl / 3;
        while !leadership.ended() {
            shared.env.sleep(pause).await;
            let epoch = head.lock().await;
            let sent = shared.env.now();
            match store.renew(*epoch).await {
                Ok(renewal) if renewal.lineage != lineage => {
                    shared.metrics.renewal_failed();
                    leadership.end();
                    end(&shared.ended, &another_store());
                }
                Ok(_) => {
                    shared.metrics.renewed(leadership.remaining(shared.env.now()));
                    leadership.renewed(sent);
                    pause = ttl / 3;
                }
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    shared.metrics.renewal_failed();
                    leadership.end();
                    end(&shared.ended, &e);
                }
                Err(e) => {
                    shared.metrics.renewal_failed();
                    let remaining = leadership.remaining(shared.env.now());
                    tracing::warn!(
                        error = ?e,
                        ?remaining,
                        "cannot renew the leadership; trying again"
                    );
                    pause = ttl / 10;
                }
            }
        }
    }

    /// Checks with an exclusive store several times within a lease whether it still is exclusive.
    /// It need not be renewed (L1), but its file may have been taken away: then another process can
    /// open the path. Ends when the sender of `stopped` is dropped.
    async fn watch(self, mut stopped: oneshot::Receiver<Infallible>) {
        let Self { shared, store, leadership, .. } = self;
        let every = sweep_every(&shared);
        while !leadership.ended() {
            if shared.env.timeout(every, &mut stopped).await.is_ok() {
                return;
            }
            match store.applied().await {
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    leadership.end();
                    end(&shared.ended, &e);
                }
                // Callers that write get the error.
                Err(e) => tracing::warn!(error = ?e, "cannot look after the store; trying again"),
                Ok(_) => {}
            }
        }
    }
}
