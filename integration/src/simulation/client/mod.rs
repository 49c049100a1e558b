//! The clients of a world: each is a process of its own, with the product's client in it, that
//! works until it is told to stop.
//!
//! | file | work |
//! |---|---|
//! | `bank` | transfers between accounts, validated |
//! | `readers` | sums of accounts under shared locks, validated |
//! | `jobs` | a lock held for long, whose holder writes a journal with its token |
//! | `rangers` | ranges of all sizes |
//! | `upgraders` | a shared lock that becomes an exclusive one |
//!
//! A client that falls silent is any of them, killed or frozen. One that reclaims is any of them,
//! too, when the process of its node ends and another comes.

mod bank;
mod jobs;
mod rangers;
mod readers;
mod upgraders;

use std::sync::Arc;
use std::time::Duration;

use lockservice::{
    Client, ClientTxn, Error, Key, LockItem, LockMode, LockSpec, Result, Session, TableRef,
    TxnOptions,
};
use lockservice_core::clock::Clock;
use lockservice_core::env::{ClockRate, Env};
use lockservice_core::table::Grant;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use super::invariants::{Belief, Checks, HoldId};
use super::network::Network;

/// The number of accounts of a bank, of rows that jobs share, and of keys that ranges are made of.
const ACCOUNTS: u32 = 4;
const ROWS: u32 = 3;

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// See `bank`.
    Bank,
    /// See `readers`.
    Reader,
    /// See `jobs`.
    Job,
    /// See `rangers`.
    Ranger,
    /// See `upgraders`.
    Upgrader,
}

/// What all clients of a world have in common.
#[derive(Clone, Debug)]
pub struct Office {
    /// The exact time.
    pub clock: Arc<dyn Clock>,
    /// Carries their calls.
    pub network: Network,
    /// The addresses of the nodes.
    pub addresses: Vec<String>,
    /// What must hold.
    pub checks: Checks,
    /// True once they are to end.
    pub closing: watch::Receiver<bool>,
    /// The TTL of their sessions.
    pub ttl: Duration,
}

/// A client, and its process if one runs.
#[derive(Debug)]
pub struct Worker {
    name: String,
    work: Work,
    rate: ClockRate,
    office: Office,
    env: Option<Env>,
    processes: u64,
    seed: u64,
    ended: watch::Sender<bool>,
}

/// A process of a client, as its work sees it.
#[derive(Debug)]
struct Desk {
    name: String,
    env: Env,
    office: Office,
    random: StdRng,
    txns: u64,
}

impl Worker {
    /// A client that does not run yet.
    pub fn new(name: &str, work: Work, office: &Office, rate: ClockRate, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            work,
            rate,
            office: office.clone(),
            env: None,
            processes: 0,
            seed,
            ended: watch::Sender::new(true),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if a process runs.
    pub fn runs(&self) -> bool {
        self.env.is_some()
    }

    /// Starts a process.
    pub fn start(&mut self) {
        self.kill();
        self.processes += 1;
        let seed = self.seed.wrapping_add(self.processes);
        let env = Env::simulated(Arc::clone(&self.office.clock), seed, self.rate);
        let mut addresses = self.office.addresses.clone();
        let first = usize::try_from(seed).unwrap_or_default() % addresses.len();
        addresses.rotate_left(first);
        let builder = Client::builder()
            .name(self.name.clone())
            .call_timeout(Duration::from_secs(3))
            .stop_time(Duration::from_millis(50));
        let network = self.office.network.end(&self.name, &env);
        let client = lockservice::simulation::client(builder, env.clone(), network, &addresses);
        let desk = Desk {
            name: format!("{}/{}", self.name, self.processes),
            env: env.clone(),
            office: self.office.clone(),
            random: StdRng::seed_from_u64(seed),
            txns: 0,
        };
        let (work, ended) = (self.work, self.ended.clone());
        ended.send_replace(false);
        env.spawn(async move {
            desk.open(&client, work).await;
            ended.send_replace(true);
        });
        self.env = Some(env);
    }

    /// Kills the process at once: the client falls silent.
    pub fn kill(&mut self) {
        let Some(env) = self.env.take() else { return };
        if let Some(process) = env.process() {
            process.kill();
        }
        self.office.network.set_frozen(&self.name, false);
        self.office.checks.gone(&self.name);
        self.ended.send_replace(true);
    }

    /// Lets the process make no step, or goes on.
    pub fn set_frozen(&self, frozen: bool) {
        self.office.network.set_frozen(&self.name, frozen);
        let Some(process) = self.env.as_ref().and_then(Env::process) else { return };
        if frozen {
            process.freeze();
        } else {
            process.thaw();
        }
    }

    /// Tells when the process has ended.
    pub fn watch_ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }
}

/// The outcome of one piece of work.
type Done = Result<&'static str>;

impl Desk {
    /// Works until it is told to stop.
    async fn open(mut self, client: &Client, work: Work) {
        while !self.is_closing() {
            let session = match client.session(Some(self.office.ttl)).await {
                Ok(session) => session,
                Err(e) => {
                    self.note(|| format!("no session: {e}"));
                    self.pause(100, 500).await;
                    continue;
                }
            };
            self.note(|| format!("has session {}", session.id()));
            while !self.is_closing() && session.lost_now().is_none() {
                let done = match work {
                    Work::Bank => self.transfer(client, &session).await,
                    Work::Reader => self.sum_up(client, &session).await,
                    Work::Job => self.do_job(&session).await,
                    Work::Ranger => self.take_range(&session).await,
                    Work::Upgrader => self.upgrade(&session).await,
                };
                match done {
                    Ok(what) => {
                        let name = self.process();
                        self.office.checks.worked(&name, what);
                        self.pause(5, 200).await;
                    }
                    Err(_) => self.pause(20, 200).await,
                }
            }
            match session.lost_now() {
                Some(why) => {
                    self.office.checks.count("sessions lost");
                    self.note(|| format!("lost its session: {why}"));
                }
                None => drop(session.close().await),
            }
        }
        self.note(|| "has ended".to_owned());
    }

    fn is_closing(&self) -> bool {
        *self.office.closing.borrow()
    }

    /// The name of the client.
    fn process(&self) -> String {
        self.name.split('/').next().unwrap_or_default().to_owned()
    }

    fn note(&self, line: impl FnOnce() -> String) {
        self.office.checks.note(|| format!("{} {}", self.name, line()));
    }

    /// Lets between these many milliseconds pass.
    async fn pause(&mut self, least: u64, most: u64) {
        let pause = self.random.random_range(least..=most);
        self.env.sleep(Duration::from_millis(pause)).await;
    }

    /// The time between the last lock and the commit: now and then longer than a promise.
    async fn think(&mut self) {
        if self.random.random_bool(0.1) {
            self.pause(1_000, 8_000).await;
        } else {
            self.pause(0, 30).await;
        }
    }

    /// Begins a transaction.
    fn begin(&mut self, session: &Session, validates: bool) -> Txn {
        self.txns += 1;
        let label = format!("{}/{}", self.name, self.txns);
        let options = TxnOptions { validates, label: label.clone() };
        Txn {
            validates,
            checks: self.office.checks.clone(),
            client: self.process(),
            env: self.env.clone(),
            txn: Some(Arc::new(session.txn(options))),
            label,
            holds: Vec::new(),
        }
    }

    /// A time-out: short, ordinary, or far longer than the wait should take.
    fn timeout(&mut self) -> Duration {
        match self.random.random_range(0..4) {
            0 => Duration::from_millis(300),
            1 | 2 => Duration::from_secs(10),
            _ => Duration::from_secs(90),
        }
    }
}

/// A table of the simulation.
fn table(name: &str) -> TableRef {
    TableRef::new("sim", name).expect("a short name")
}

/// Row `number`.
fn row(number: u32) -> LockItem {
    LockItem::Row(key(number))
}

fn key(number: u32) -> Key {
    Key::new(format!("{number:02}")).expect("a short key")
}

/// A transaction, and what the checks know of it. Dropping it ends it.
struct Txn {
    checks: Checks,
    client: String,
    env: Env,
    /// Taken at the end.
    txn: Option<Arc<ClientTxn>>,
    validates: bool,
    label: String,
    holds: Vec<HoldId>,
}

impl Txn {
    fn get(&self) -> &ClientTxn {
        self.txn.as_ref().expect("it is taken only at the end")
    }

    /// Locks one item.
    async fn lock(
        &mut self,
        table: &TableRef,
        item: LockItem,
        mode: LockMode,
        timeout: Duration,
    ) -> Result<Grant> {
        let mut spec = LockSpec::new(table.clone(), vec![item.clone()]);
        (spec.mode, spec.timeout) = (mode, Some(timeout));
        let what = format!("{}:{item} {mode:?}", table.name);
        let call = self.checks.calls(&self.client, &self.label, &what);
        let result = self.get().lock(spec).await;
        self.checks.called(call, &self.label, result.as_ref().err());
        let grant = result?;
        let belief = Belief {
            env: self.env.clone(),
            deadline: self.get().watch_deadline(),
            validating: self.txn.as_ref().filter(|_| self.validates).map(Arc::downgrade),
        };
        let hold = self.checks.granted(&self.label, table, &item, mode, &grant, belief);
        self.holds.push(hold);
        Ok(grant)
    }

    /// True while its locks are safe.
    fn is_safe(&self) -> bool {
        self.get().lost_now().is_none() && self.env.now() < self.get().deadline()
    }

    /// Gives everything up.
    fn end(&mut self, commit: Option<lockservice::Commit>) -> Option<lockservice::client::Ended> {
        self.holds.drain(..).for_each(|hold| self.checks.released(hold));
        self.checks.ended(&self.label);
        // Nothing else keeps it.
        self.txn.take().and_then(Arc::into_inner).map(|txn| txn.end(commit))
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        drop(self.end(None));
    }
}

/// An error of the simulation's own: the work could not be done.
fn failed(what: &'static str) -> Error {
    Error::new(lockservice::ErrorKind::Cancelled, what)
}
