//! Ranges of all sizes, and rows between them, in both modes; some calls are cancelled.

use std::ops::Bound;
use std::time::Duration;

use lockservice::{KeyRange, LockItem, LockMode, Session};
use rand::Rng as _;

use super::{Desk, Done, failed, key, row, table};

/// The keys that ranges are made of.
const KEYS: u32 = 8;

impl Desk {
    pub(super) async fn take_range(&mut self, session: &Session) -> Done {
        let table = table("ranges");
        let mut txn = self.begin(session, false);
        for _ in 0..self.random.random_range(1..4) {
            let from = self.random.random_range(0..KEYS);
            let to = self.random.random_range(from..KEYS);
            let item = match self.random.random_range(0..6) {
                0 => LockItem::Range(KeyRange::whole_table()),
                1 | 2 => row(from),
                _ => {
                    let (from, to) = (Bound::Included(key(from)), Bound::Included(key(to)));
                    LockItem::Range(KeyRange::new(from, to)?)
                }
            };
            let modes = [LockMode::Shared, LockMode::Update, LockMode::Exclusive];
            let mode = modes[self.random.random_range(0..3)];
            let timeout = self.timeout();
            let patience = match self.random.random_range(0..5) {
                0 => Duration::from_millis(self.random.random_range(0..200)),
                _ => Duration::from_secs(300),
            };
            let env = self.env.clone();
            match env.timeout(patience, txn.lock(&table, item, mode, timeout)).await {
                Ok(grant) => drop(grant?),
                Err(_) => {
                    self.office.checks.cancelled(&txn.client);
                    return Err(failed("the call was cancelled"));
                }
            }
            self.pause(0, 100).await;
            if !txn.is_safe() {
                return Err(failed("the locks were lost"));
            }
        }
        drop(txn.end(None));
        Ok("ranges")
    }
}
