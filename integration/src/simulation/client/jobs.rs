//! Work under one lock: held for long, without a validation. Its protection is the promise (P2),
//! and the token (F1).

use lockservice::{LockMode, Session};
use rand::Rng as _;

use super::{Desk, Done, ROWS, failed, row, table};

impl Desk {
    pub(super) async fn do_job(&mut self, session: &Session) -> Done {
        let table = table(&format!("jobs-{}", self.random.random_range(0..2)));
        let number = self.random.random_range(0..ROWS);
        let mut txn = self.begin(session, false);
        let timeout = self.timeout();
        let grant = txn.lock(&table, row(number), LockMode::Exclusive, timeout).await?;
        let place = format!("{}:{number}", table.name);
        for _ in 0..self.random.random_range(1..12) {
            self.pause(1, 300).await;
            if !txn.is_safe() {
                self.note(|| format!("{} stops its work", txn.label));
                return Err(failed("the lock was lost"));
            }
            self.office.checks.wrote(&txn.label, &place, grant.token);
        }
        let ended = txn.end(None);
        if let Some(ended) = ended.filter(|_| self.random.random_bool(0.5)) {
            drop(ended.await);
        }
        Ok("jobs")
    }
}
