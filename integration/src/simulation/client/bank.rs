//! Transfers between accounts: two exclusive locks, taken in any order, and a validated commit.

use std::time::Duration;

use lockservice::{
    BeginCommit, Client, Commit, CommitAttempt, CommitTimestamp, CommitWindow, LockMode,
    PresentedBind, Session, TxnId,
};
use lockservice_core::table::Grant;
use rand::Rng as _;

use super::{ACCOUNTS, Desk, Done, Txn, failed, row, table};

/// The time that a commit needs, and at most takes.
const WINDOW: CommitWindow =
    CommitWindow { least: Duration::from_millis(100), most: Duration::from_secs(1) };

impl Desk {
    pub(super) async fn transfer(&mut self, client: &Client, session: &Session) -> Done {
        let bank = format!("bank-{}", self.random.random_range(0..2));
        let table = table(&bank);
        let from = self.random.random_range(0..ACCOUNTS);
        let to = (from + self.random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let mut txn = self.begin(session, true);
        let mut grants = Vec::new();
        for account in [from, to] {
            let timeout = self.timeout();
            grants.push(txn.lock(&table, row(account), LockMode::Exclusive, timeout).await?);
            self.pause(0, 10).await;
        }
        let checks = self.office.checks.clone();
        let read = |number| checks.with_accounts(|accounts| Ok(accounts.read(&bank, number)));
        let (Some(was_from), Some(was_to)) = (read(from), read(to)) else {
            return Err(failed("no accounts"));
        };
        self.think().await;
        let commit = self.validated(client, &txn, &grants).await?;
        let amount = self.random.random_range(1..10);
        let label = txn.label.clone();
        checks.with_accounts(|accounts| accounts.transfer(&label, &was_from, &was_to, amount));
        self.note(|| format!("{label} commits {amount} from {bank}:{from} to {to}"));
        commit.finish(self, client).await;
        let at = CommitTimestamp::new(self.random.random_range(1..1 << 40));
        let ended = txn.end(Some(Commit::at(at)));
        // Half of them wait for it.
        if let Some(ended) = ended.filter(|_| self.random.random_bool(0.5)) {
            drop(ended.await);
        }
        Ok("transfers")
    }

    /// Validates the commit of a transaction with these grants. When it returns, the commit may
    /// land, before anything else happens.
    pub(super) async fn validated(
        &mut self,
        client: &Client,
        txn: &Txn,
        grants: &[Grant],
    ) -> lockservice::Result<Validated> {
        let id = txn.get().id().ok_or_else(|| failed("it holds nothing"))?;
        let mut binds: Vec<PresentedBind> = Vec::new();
        for grant in grants {
            let bind = PresentedBind::from(&grant.bind);
            if !binds.contains(&bind) {
                binds.push(bind);
            }
        }
        let attempt = CommitAttempt::new(self.random.random());
        let request = BeginCommit { txn: id, binds, attempt, window: WINDOW };
        let admission = client.allocator().begin_commit(&request).await.inspect_err(|e| {
            self.office.checks.count("commits refused");
            self.note(|| format!("{} may not commit: {e}", txn.label));
        })?;
        // The write is on its way.
        self.pause(0, 60).await;
        if self.env.now() >= admission.until {
            self.office.checks.count("commits too late");
            return Err(failed("the commit came too late"));
        }
        Ok(Validated { id, attempt })
    }
}

/// A commit that was admitted.
pub(super) struct Validated {
    id: TxnId,
    attempt: CommitAttempt,
}

impl Validated {
    /// Ends it; some never do.
    pub(super) async fn finish(self, desk: &mut Desk, client: &Client) {
        if desk.random.random_bool(0.9) {
            drop(client.allocator().finish_commit(self.id, self.attempt).await);
        }
    }
}
