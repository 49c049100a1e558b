//! The raise of the epoch by the writer: for new numbers, and after a data loss (F2, L4).

use std::sync::Arc;
use std::time::Duration;

use crate::allocator::leader::writer::{PAUSE_FIRST, Writer, longer};
use crate::allocator::messages::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::id::Epoch;
use crate::store::{Acquired, DataLoss, Leadership};
use crate::sync::atomic::Ordering;

/// The pause between two attempts to record a data loss in the store.
const RAISE_PAUSE: Duration = Duration::from_millis(50);

impl Writer {
    pub(super) async fn resolve(&mut self) -> Result<()> {
        // Requested again while it was under way.
        if self.state.resolved.load(Ordering::Acquire) {
            return Ok(());
        }
        self.candidate.data_loss = DataLoss::Resolved;
        let raised = self.raise(self.epoch.next()?).await;
        self.candidate.data_loss = DataLoss::Unknown;
        raised?;
        tracing::info!(
            epoch = %self.epoch,
            "no node can still rely on anything that the store lost: the data loss is resolved"
        );
        self.state.observed_before.store(self.epoch.get(), Ordering::Release);
        self.state.resolved.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) async fn raise(&mut self, wanted: Epoch) -> Result<()> {
        if self.epoch >= wanted {
            return Ok(());
        }
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        // The floor is exclusive (L4).
        self.candidate.floor = Epoch::new(wanted.get() - 1);
        let mut head = Arc::clone(&self.head).lock_owned().await;
        self.uncertain = true;
        let mut pause = PAUSE_FIRST;
        let response = loop {
            match self.store.acquire_leadership(&self.candidate, self.leadership_ttl).await {
                Ok(response) => break response,
                // The store may have raised the epoch. Then it would refuse a renewal with the old
                // one as another leader's. So the leader tries until the store responds. (An
                // exclusive store renews nothing, and the caller may try again.)
                Err(e)
                    if !self.state.exclusive
                        && matches!(
                            e.kind(),
                            ErrorKind::UnknownOutcome | ErrorKind::Unavailable
                        ) =>
                {
                    if self.state.leadership.ended() {
                        return Err(self.give_up());
                    }
                    tracing::warn!(
                        store = %self.store.describe(),
                        error = ?e,
                        "cannot raise the epoch yet; trying again"
                    );
                    self.env.sleep(pause).await;
                    pause = longer(pause);
                }
                Err(e) if e.kind() == ErrorKind::Fenced => return Err(self.lose(e)),
                Err(e) => return Err(e),
            }
        };
        self.uncertain = false;
        match response {
            Leadership::Acquired(Acquired { epoch, applied, lineage, .. })
                if epoch >= wanted && applied == self.applied && lineage == self.lineage =>
            {
                (self.epoch, *head) = (epoch, epoch);
                self.state.sequence.raise(epoch);
                Ok(())
            }
            other => Err(self.lose(
                Error::new(
                    ErrorKind::Fenced,
                    "the epoch could not be raised: another leads the store, or wrote to it",
                )
                .with("response", format!("{other:?}")),
            )),
        }
    }

    /// The leadership has ended already. The reason is recorded in the store, if it responds within
    /// the leadership's time. Also while it is unknown whether the last write or raise is there:
    /// the next leader must know, and nothing is changed if another leads already.
    pub(super) async fn raise_above(&mut self, why: Error, observed: Progress) {
        self.candidate.data_loss = DataLoss::Known { high_water: observed.high_water };
        self.candidate.floor = self.candidate.floor.max(observed.epoch);
        let mut head = Arc::clone(&self.head).lock_owned().await;
        let record = async {
            loop {
                match self.store.acquire_leadership(&self.candidate, self.leadership_ttl).await {
                    Ok(response) => return response,
                    Err(e) => {
                        tracing::warn!(
                            error = ?e,
                            "the data loss cannot be recorded in the store yet; trying again"
                        )
                    }
                }
                self.env.sleep(RAISE_PAUSE).await;
            }
        };
        if let Ok(Leadership::Acquired(Acquired { epoch, .. })) =
            self.env.timeout(self.leadership_ttl, record).await
        {
            (self.epoch, *head) = (epoch, epoch);
        }
        self.lose(why);
    }
}
