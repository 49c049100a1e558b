//! A bank on lockservice: many workers move money between accounts, auditors add it all up, and the
//! sum stays right, also while the server is killed and restarted.
//!
//! ```sh
//! cargo run --release -- serve &
//! cargo run --release --example bank -- --seconds 20 --journal /tmp/bank.journal
//! cargo run --release --example bank -- --seconds 5 --without-locks   # loses money, exits 1
//! ```
//!
//! The accounts live in a journal file of the bank's own. Its only concurrency control is the
//! fencing token that every read and write presents (rule F1): a write below the highest token seen
//! on that account is refused, and so is a read below the highest that has written. Workers read
//! balances and write absolute values, so whoever works without a lock loses somebody's money.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use lockservice::{
    Advice, BeginCommit, Client, ClientTxn, Clock as _, CommitAttempt, CommitTimestamp,
    CommitWindow, Error, ErrorKind, Grant, Key, KeyRange, LockItem, LockMode, LockSpec,
    PresentedBind, Session, SystemClock, TableRef, TxnOptions,
};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// What every account holds at first.
const OPENING_BALANCE: i64 = 1_000;

/// How many wrong audits are told one by one.
const WRONG_AUDITS_SHOWN: u64 = 5;

/// Moves money between accounts under locks, and checks that none is lost.
#[derive(Debug, Parser)]
struct Args {
    /// How long to work.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The file that holds the accounts. Continued if it is there.
    #[arg(long)]
    journal: PathBuf,
    /// Works without locks, with rising invented tokens, to show what is lost then.
    #[arg(long)]
    without_locks: bool,
    /// Where the server is: HOST:PORT or a URL.
    #[arg(long, env = "LOCKSERVICE_SERVER", default_value = "127.0.0.1:7654")]
    server: String,
    /// How many workers move money at once.
    #[arg(long, default_value_t = 64)]
    workers: usize,
    /// How many accounts there are.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(2..))]
    accounts: u16,
    /// Seeds the choice of accounts and amounts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

// ---- the journal: storage that trusts tokens and nothing else ----

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    balance: i64,
    /// The highest token that has read or written.
    seen: u64,
    /// The highest token that has written.
    written: u64,
}

/// A token was too old: somebody with a later lock has been here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused;

#[derive(Debug)]
struct Journal {
    state: Mutex<(Vec<Account>, File)>,
}

impl Journal {
    /// Opens the journal and replays it, or begins one. A line that a crash cut short is dropped.
    fn open(path: &Path, accounts: usize) -> std::io::Result<Self> {
        let opening = Account { balance: OPENING_BALANCE, ..Account::default() };
        let mut state = vec![opening; accounts];
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            for change in line.split_whitespace() {
                let fields: Option<Vec<i64>> =
                    change.split(':').map(|field| field.parse().ok()).collect();
                let Some([account, token, balance]) = fields.as_deref() else { continue };
                let Some(account) =
                    usize::try_from(*account).ok().and_then(|account| state.get_mut(account))
                else {
                    continue;
                };
                account.balance = *balance;
                account.written = account.written.max(token.unsigned_abs());
                account.seen = account.seen.max(account.written);
            }
            whole += line.len() as u64;
            line.clear();
        }
        file.set_len(whole)?;
        Ok(Self { state: Mutex::new((state, file)) })
    }

    /// F1: a read below the highest token that has written is refused.
    fn read(&self, account: usize, token: u64) -> Result<i64, Refused> {
        let account = &mut self.state.lock().0[account];
        if token < account.written {
            return Err(Refused);
        }
        account.seen = account.seen.max(token);
        Ok(account.balance)
    }

    /// F1: a write below the highest token seen is refused. All of the changes are made, or none.
    fn write(&self, changes: &[(usize, u64, i64)]) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let (accounts, file) = &mut *state;
        if changes.iter().any(|(account, token, _)| *token < accounts[*account].seen) {
            return Err(Refused);
        }
        let line: Vec<String> = changes
            .iter()
            .map(|(account, token, balance)| format!("{account}:{token}:{balance}"))
            .collect();
        // A journal that cannot be written is no bank: stop here, with nothing half done.
        writeln!(file, "{}", line.join(" ")).expect("the journal can be written");
        for (account, token, balance) in changes {
            accounts[*account] = Account { balance: *balance, seen: *token, written: *token };
        }
        Ok(())
    }

    fn sum(&self) -> i64 {
        self.state.lock().0.iter().map(|account| account.balance).sum()
    }
}

// ---- the workers ----

#[derive(Debug, Default)]
struct Counters {
    transfers: AtomicU64,
    audits: AtomicU64,
    wrong_audits: AtomicU64,
    deadlocks: AtomicU64,
    refused_by_journal: AtomicU64,
    refused_commits: AtomicU64,
    sessions_lost: AtomicU64,
    other_retries: AtomicU64,
}

#[derive(Debug)]
struct Bank {
    journal: Journal,
    accounts: usize,
    table: TableRef,
    server: String,
    counters: Counters,
    stop: AtomicBool,
    /// Commit timestamps, commit attempts, and with `--without-locks` tokens: each only has to
    /// rise.
    next: AtomicU64,
}

/// Why a transfer or an audit did not happen.
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

fn row(account: usize) -> LockItem {
    LockItem::Row(key(account))
}

fn key(account: usize) -> Key {
    Key::new(format!("account-{account:05}")).expect("a short key")
}

impl Bank {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn expected(&self) -> i64 {
        OPENING_BALANCE * self.accounts as i64
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
        // One after the other, in no particular order: deadlocks are found, and told to one of the
        // two.
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
        // What was read counts only if the locks were still good when everything had been read.
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
        let commit_ts = result.is_ok().then(|| CommitTimestamp::new(self.next()));
        // Not waited for: a finish that is lost only keeps the bind pinned until the admission has
        // run out.
        let _ = allocator.finish_commit(id, attempt).await;
        drop(txn.end(commit_ts));
        result.map_err(Failure::from)
    }

    fn check(&self, sum: i64) {
        if sum != self.expected() {
            match self.counters.wrong_audits.fetch_add(1, Relaxed) {
                before if before < WRONG_AUDITS_SHOWN => {
                    eprintln!("bank: an audit found {sum} instead of {}", self.expected());
                }
                WRONG_AUDITS_SHOWN => {
                    eprintln!("bank: more audits are wrong; from now on they are only counted")
                }
                _ => {}
            }
        }
    }

    async fn work(&self, mut rng: SmallRng) -> Result<(), Error> {
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

    async fn connect(&self) -> Result<(Client, Session), Error> {
        let client = Client::builder().name("bank").connect(&self.server).await?;
        let session = client.session(None).await?;
        Ok((client, session))
    }

    /// The same work with tokens that mean nothing.
    async fn work_without_locks(&self, mut rng: SmallRng) -> Result<(), Error> {
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

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            // The server has written it: what a terminal would act upon is left out.
            eprintln!("bank: {}", e.to_string().replace(|c: char| c.is_control(), " "));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<bool, Box<dyn std::error::Error>> {
    let accounts = usize::from(args.accounts);
    let journal = Journal::open(&args.journal, accounts)
        .map_err(|e| format!("cannot open {}: {e}", args.journal.display()))?;
    let highest =
        journal.state.lock().0.iter().map(|account| account.seen).max().unwrap_or_default();
    let bank = Arc::new(Bank {
        journal,
        accounts,
        table: TableRef::new("bank", "accounts")?,
        server: args.server,
        counters: Counters::default(),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(if args.without_locks { highest + 1 } else { 1 }),
    });
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..args.workers {
        let bank = Arc::clone(&bank);
        let rng =
            SmallRng::seed_from_u64(args.seed.wrapping_mul(1_000_003).wrapping_add(worker as u64));
        let without_locks = args.without_locks;
        workers.spawn(async move {
            if without_locks { bank.work_without_locks(rng).await } else { bank.work(rng).await }
        });
    }
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(args.seconds)) => {}
        _ = tokio::signal::ctrl_c() => {}
        // A worker ends early only for an error that no retry can help.
        Some(ended) = workers.join_next() => ended??,
    }
    bank.stop.store(true, Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let counters = &bank.counters;
    let (sum, expected) = (bank.journal.sum(), bank.expected());
    println!(
        "bank: {} transfers, {} audits ({} wrong); retried: {} deadlocks, {} refused commits, {} \
            refused by the journal, {} lost sessions, {} others",
        counters.transfers.load(Relaxed),
        counters.audits.load(Relaxed),
        counters.wrong_audits.load(Relaxed),
        counters.deadlocks.load(Relaxed),
        counters.refused_commits.load(Relaxed),
        counters.refused_by_journal.load(Relaxed),
        counters.sessions_lost.load(Relaxed),
        counters.other_retries.load(Relaxed),
    );
    let worked = counters.transfers.load(Relaxed) > 0 && counters.audits.load(Relaxed) > 0;
    let right = sum == expected && counters.wrong_audits.load(Relaxed) == 0;
    match (right, worked) {
        (true, true) => println!("bank: the sum is right: {sum}"),
        (true, false) => println!(
            "bank: the sum is right ({sum}), but nothing was moved or nothing was audited: is the \
                server there?"
        ),
        (false, _) => {
            println!("bank: MONEY IS LOST OR INVENTED: the sum is {sum} instead of {expected}")
        }
    }
    Ok(right && worked)
}
