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
//! balances and write absolute values, so a worker without a lock loses money.
//!
//! | file | noun |
//! |---|---|
//! | `main.rs` | the arguments, the run, and its verdict |
//! | `journal.rs` | the journal: storage that trusts tokens and nothing else |
//! | `workers.rs` | the bank: transfers, audits, commits, and retries |
//! | `tills.rs` | clerks, who rely on their locks alone |

mod journal;
mod tills;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use lockservice::{Credentials, TableRef};
use rand::{SeedableRng as _, rngs::SmallRng};

use crate::journal::Journal;
use crate::workers::{Bank, Counters};

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
    /// The PEM file of the CA of the server's certificate: connects with TLS.
    #[arg(long, env = "LOCKSERVICE_CA")]
    ca: Option<PathBuf>,
    /// The PEM file of the certificate to present.
    #[arg(long, env = "LOCKSERVICE_CERT", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The PEM file of its private key.
    #[arg(long, env = "LOCKSERVICE_CERT_KEY", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// The file of the bearer token to present.
    #[arg(long, env = "LOCKSERVICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How many workers move money at once.
    #[arg(long, default_value_t = 64)]
    workers: usize,
    /// How many accounts there are.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(2..))]
    accounts: u16,
    /// How many clerks move money between tills besides. They do not validate.
    #[arg(long, default_value_t = 0)]
    clerks: u16,
    /// Seeds the choice of accounts and amounts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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

impl Args {
    fn credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        if let Some(ca) = &self.ca {
            credentials = credentials.ca(ca);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.cert_key) {
            credentials = credentials.certificate(cert, key);
        }
        match &self.token_file {
            Some(path) => credentials.token_file(path),
            None => credentials,
        }
    }
}

async fn run(args: Args) -> Result<bool, Box<dyn std::error::Error>> {
    let accounts = usize::from(args.accounts);
    // As many as clerks, who need two each: so they wait for each other.
    let tills = match usize::from(args.clerks) {
        0 => 0,
        clerks => clerks.max(2),
    };
    let journal = Journal::open(&args.journal, accounts + tills)
        .map_err(|e| format!("cannot open {}: {e}", args.journal.display()))?;
    let highest = journal.highest_token();
    let bank = Arc::new(Bank {
        journal,
        accounts,
        tills,
        table: TableRef::new("bank", "accounts")?,
        till_table: TableRef::new("bank", "tills")?,
        credentials: args.credentials(),
        server: args.server,
        counters: Counters::default(),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(if args.without_locks { highest + 1 } else { 1 }),
    });
    let mut workers = tokio::task::JoinSet::new();
    let rng = |worker: usize| {
        SmallRng::seed_from_u64(args.seed.wrapping_mul(1_000_003).wrapping_add(worker as u64))
    };
    if !args.without_locks {
        for clerk in 0..usize::from(args.clerks) {
            let (bank, rng) = (Arc::clone(&bank), rng(args.workers + clerk));
            workers.spawn(async move { bank.work_at_tills(rng).await });
        }
    }
    for worker in 0..args.workers {
        let (bank, rng) = (Arc::clone(&bank), rng(worker));
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
    let (sum, expected) = (bank.journal.sum(), bank.expected(accounts + tills));
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
    if args.clerks > 0 {
        println!(
            "bank: {} moves between tills, {} interrupted clerks",
            counters.till_moves.load(Relaxed),
            counters.interrupted_clerks.load(Relaxed),
        );
    }
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
