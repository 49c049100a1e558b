//! A shared lock that becomes an exclusive one: two of them on one row are a deadlock.

use lockservice::{LockMode, Session};
use rand::Rng as _;

use super::{Desk, Done, ROWS, failed, row, table};

impl Desk {
    pub(super) async fn upgrade(&mut self, session: &Session) -> Done {
        let table = table("jobs-0");
        let number = self.random.random_range(0..ROWS);
        let mut txn = self.begin(session, false);
        let modes = [LockMode::Shared, LockMode::Update];
        let first = modes[self.random.random_range(0..2)];
        for mode in [first, LockMode::Exclusive] {
            let timeout = self.timeout();
            txn.lock(&table, row(number), mode, timeout).await?;
            self.pause(0, 150).await;
            if !txn.is_safe() {
                return Err(failed("the lock was lost"));
            }
        }
        drop(txn.end(None));
        Ok("upgrades")
    }
}
