//! The workers: transfers and audits under locks, or without.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use lockservice::{
    Advice, BeginCommit, Client, ClientTxn, Clock as _, Commit, CommitAttempt, CommitTimestamp,
    CommitWindow, Credentials, Error, ErrorKind, Grant, Key, KeyRange, LockItem, LockMode,
    LockSpec, PresentedBind, Session, SystemClock, TableRef, TxnOptions,
};
use rand::{Rng as _, rngs::SmallRng};

use crate::journal::{Journal, OPENING_BALANCE, Refused};

/// The number of wrong audits that are reported one by one.
const WRONG_AUDITS_SHOWN: u64 = 5;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) transfers: AtomicU64,
    pub(crate) audits: AtomicU64,
    pub(crate) wrong_audits: AtomicU64,
    pub(crate) deadlocks: AtomicU64,
    pub(crate) refused_by_journal: AtomicU64,
    pub(crate) refused_commits: AtomicU64,
    pub(crate) sessions_lost: AtomicU64,
    pub(crate) other_retries: AtomicU64,
    pub(crate) till_moves: AtomicU64,
    pub(crate) interrupted_clerks: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) journal: Journal,
    pub(crate) accounts: usize,
    /// The tills stand in the journal after the accounts.
    pub(crate) tills: usize,
    pub(crate) table: TableRef,
    pub(crate) till_table: TableRef,
    pub(crate) credentials: Credentials,
    pub(crate) server: String,
    pub(crate) counters: Counters,
    pub(crate) stop: AtomicBool,
    /// Commit timestamps, commit attempts, and with `--without-locks` tokens: each only has to
    /// rise.
    pub(crate) next: AtomicU64,
}

/// The reason why a transfer or an audit did not happen.
#[derive(Debug)]
enum Failure {
    Journal,
    Locks(Error),
}

impl From<Refused> for Failure {
    fn from(_: Refused) -> Self {
        Self::Journal
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Locks(error)
    }
}

pub(crate) fn row(account: usize) -> LockItem {
    LockItem::Row(key(account))
}

fn key(account: usize) -> Key {
    Key::new(format!("account-{account:05}")).expect("a short key")
}

impl Bank {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// The sum of so many accounts.
    pub(crate) fn expected(&self, accounts: usize) -> i64 {
        OPENING_BALANCE * accounts as i64
    }

    /// Two accounts; often popular ones, so that workers meet.
    fn pick(&self, rng: &mut SmallRng) -> (usize, usize) {
        let among = if rng.random_ratio(1, 5) { self.accounts.min(10) } else { self.accounts };
        let from = rng.random_range(0..among);
        let to = (from + rng.random_range(1..among)) % among;
        (from, to)
    }

    async fn transfer(
        &self,
        client: &Client,
        session: &Session,
        rng: &mut SmallRng,
    ) -> Result<(), Failure> {
        let (from, to) = self.pick(rng);
        let txn = session.txn(TxnOptions { validates: true, label: "transfer".to_owned() });
        // One after the other, in no particular order: deadlocks are found, and one of
        // the two fails.
        let first = txn.lock(LockSpec::new(self.table.clone(), vec![row(from)])).await?;
        let second = txn.lock(LockSpec::new(self.table.clone(), vec![row(to)])).await?;
        let (from_token, to_token) = (first.token.get(), second.token.get());
        let from_balance = self.journal.read(from, from_token)?;
        let to_balance = self.journal.read(to, to_token)?;
        let amount = rng.random_range(1..=10);
        self.commit(client, txn, &[&first, &second], || {
            self.journal.write(&[
                (from, from_token, from_balance - amount),
                (to, to_token, to_balance + amount),
            ])
        })
        .await?;
        self.counters.transfers.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn audit(&self, client: &Client, session: &Session) -> Result<(), Failure> {
        let txn = session.txn(TxnOptions { validates: true, label: "audit".to_owned() });
        let all = KeyRange::new(Bound::Included(key(0)), Bound::Included(key(self.accounts - 1)))?;
        let spec = LockSpec {
            mode: LockMode::Shared,
            ..LockSpec::new(self.table.clone(), vec![LockItem::Range(all)])
        };
        let grant = txn.lock(spec).await?;
        let mut sum = 0;
        for account in 0..self.accounts {
            sum += self.journal.read(account, grant.token.get())?;
        }
        // The sum counts only if the locks were still good when everything had been read.
        self.commit(client, txn, &[&grant], || Ok(())).await?;
        self.counters.audits.fetch_add(1, Relaxed);
        self.check(sum);
        Ok(())
    }

    /// Validates, does `work` if there is time for it, and ends the transaction.
    async fn commit(
        &self,
        client: &Client,
        txn: ClientTxn,
        grants: &[&Grant],
        work: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<(), Failure> {
        let id = txn
            .id()
            .ok_or_else(|| Error::new(ErrorKind::TxnNotFound, "the transaction was never begun"))?;
        let mut binds: Vec<PresentedBind> =
            grants.iter().map(|grant| PresentedBind::from(&grant.bind)).collect();
        binds.dedup();
        let attempt = CommitAttempt::new(self.next());
        let window =
            CommitWindow { least: Duration::from_millis(50), most: Duration::from_secs(2) };
        let allocator = client.allocator();
        let admission =
            allocator.begin_commit(&BeginCommit { txn: id, binds, attempt, window }).await?;
        // C1: the write must not land later than this. What slips through between this look and the
        // write meets the tokens.
        let result = if SystemClock.now() < admission.until { work() } else { Err(Refused) };
        let commit = result.is_ok().then(|| Commit::at(CommitTimestamp::new(self.next())));
        // Not waited for: a finish that is lost only keeps the bind pinned until the admission has
        // run out.
        let _ = allocator.finish_commit(id, attempt).await;
        drop(txn.end(commit));
        result.map_err(Failure::from)
    }

    fn check(&self, sum: i64) {
        let expected = self.expected(self.accounts);
        if sum != expected {
            match self.counters.wrong_audits.fetch_add(1, Relaxed) {
                before if before < WRONG_AUDITS_SHOWN => {
                    eprintln!("bank: an audit found {sum} instead of {expected}");
                }
                WRONG_AUDITS_SHOWN => {
                    eprintln!("bank: more audits are wrong; from now on they are only counted")
                }
                _ => {}
            }
        }
    }

    pub(crate) async fn work(&self, mut rng: SmallRng) -> Result<(), Error> {
        'session: while !self.stop.load(Relaxed) {
            let (client, session) = match self.connect().await {
                Ok(connected) => connected,
                Err(e) if e.advice() == Advice::RetryCall || e.advice() == Advice::NewSession => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Err(e) => return Err(e),
            };
            while !self.stop.load(Relaxed) {
                let done = if rng.random_ratio(1, 50) {
                    self.audit(&client, &session).await
                } else {
                    self.transfer(&client, &session, &mut rng).await
                };
                match done {
                    Ok(()) => {}
                    Err(Failure::Journal) => {
                        self.counters.refused_by_journal.fetch_add(1, Relaxed);
                    }
                    Err(Failure::Locks(e)) => match (e.kind(), e.advice()) {
                        (ErrorKind::Deadlock, _) => {
                            self.counters.deadlocks.fetch_add(1, Relaxed);
                        }
                        (ErrorKind::BindChanged | ErrorKind::CannotCommit, _) => {
                            self.counters.refused_commits.fetch_add(1, Relaxed);
                            if session.lost_now().is_some() {
                                continue 'session;
                            }
                        }
                        (_, Advice::NewSession) => {
                            self.counters.sessions_lost.fetch_add(1, Relaxed);
                            continue 'session;
                        }
                        (_, Advice::RetryCall | Advice::RetryTransaction) => {
                            self.counters.other_retries.fetch_add(1, Relaxed);
                            if session.lost_now().is_some() {
                                continue 'session;
                            }
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        _ => return Err(e),
                    },
                }
            }
            // Courtesy only: the session would lapse by itself.
            let _ = session.close().await;
        }
        Ok(())
    }

    pub(crate) async fn connect(&self) -> Result<(Client, Session), Error> {
        let client = Client::builder()
            .name("bank")
            .credentials(self.credentials.clone())
            .connect(&self.server)
            .await?;
        let session = client.session(None).await?;
        Ok((client, session))
    }

    /// The same work with tokens that mean nothing.
    pub(crate) async fn work_without_locks(&self, mut rng: SmallRng) -> Result<(), Error> {
        while !self.stop.load(Relaxed) {
            if rng.random_ratio(1, 50) {
                let mut sum = 0;
                for account in 0..self.accounts {
                    // The newest token is never refused: that is all that the journal can see.
                    sum += self.journal.read(account, self.next()).unwrap_or_default();
                    if account % 100 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                self.counters.audits.fetch_add(1, Relaxed);
                self.check(sum);
                continue;
            }
            let (from, to) = self.pick(&mut rng);
            let (Ok(from_balance), Ok(to_balance)) =
                (self.journal.read(from, self.next()), self.journal.read(to, self.next()))
            else {
                continue;
            };
            tokio::task::yield_now().await;
            let amount = rng.random_range(1..=10);
            let written = self.journal.write(&[
                (from, self.next(), from_balance - amount),
                (to, self.next(), to_balance + amount),
            ]);
            if written.is_ok() {
                self.counters.transfers.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}
