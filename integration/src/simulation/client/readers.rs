//! Sums of accounts: shared locks on some rows or on the whole table, reads at two times, and a
//! validated commit. Nothing that was read may have changed.

use lockservice::{Client, KeyRange, LockItem, LockMode, Session};
use rand::Rng as _;

use super::{ACCOUNTS, Desk, Done, failed, row, table};

impl Desk {
    pub(super) async fn sum_up(&mut self, client: &Client, session: &Session) -> Done {
        let bank = format!("bank-{}", self.random.random_range(0..2));
        let table = table(&bank);
        let mut txn = self.begin(session, true);
        let mut grants = Vec::new();
        let mut numbers = vec![0, 2];
        if self.random.random_bool(0.3) {
            let whole = LockItem::Range(KeyRange::whole_table());
            let timeout = self.timeout();
            grants.push(txn.lock(&table, whole, LockMode::Shared, timeout).await?);
            numbers = (0..ACCOUNTS).collect();
        } else {
            for number in &numbers {
                let timeout = self.timeout();
                grants.push(txn.lock(&table, row(*number), LockMode::Shared, timeout).await?);
            }
        }
        let checks = self.office.checks.clone();
        let mut reads = Vec::new();
        for number in numbers {
            let read = checks.with_accounts(|accounts| Ok(accounts.read(&bank, number)));
            reads.push(read.ok_or_else(|| failed("no accounts"))?);
            self.pause(0, 20).await;
        }
        self.think().await;
        let commit = self.validated(client, &txn, &grants).await?;
        checks.with_accounts(|accounts| accounts.unchanged(&txn.label, &reads));
        commit.finish(self, client).await;
        drop(txn.end(None));
        Ok("sums")
    }
}
