//! One program whose many sessions hold a row each, over a restart of their server.

use std::collections::HashMap;
use std::time::Duration;

use lockservice::client::{Client, ClientTxn, Session};
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::{FencingToken, Key, LockItem, ServiceId, TableRef};

use crate::within;

/// The sessions of one connection.
const PER_CLIENT: usize = 50;

/// The pause between two looks at which server a session has.
const LOOK: Duration = Duration::from_millis(1);

/// How many there are, and where.
#[derive(Clone, Copy, Debug)]
pub struct HoldersOptions {
    /// The number of sessions, each with a transaction that holds a row.
    pub holders: usize,
    /// The number of tables that they share.
    pub tables: usize,
    /// The TTL of the sessions.
    pub ttl: Duration,
}

impl HoldersOptions {
    /// A thousand in a hundred tables.
    pub fn thousand(ttl: Duration) -> Self {
        Self { holders: 1_000, tables: 100, ttl }
    }
}

/// A session with a transaction that holds one row.
#[derive(Debug)]
pub struct Holding {
    /// The session.
    pub session: Session,
    /// Its transaction, which does not validate.
    pub txn: ClientTxn,
    /// The table of the row.
    pub table: TableRef,
    /// The row.
    pub row: String,
    /// The token of the grant.
    pub token: FencingToken,
}

/// All of them.
#[derive(Debug)]
pub struct Holders {
    /// One of each session.
    pub all: Vec<Holding>,
    options: HoldersOptions,
}

/// The table of this number.
pub fn table(number: usize) -> TableRef {
    TableRef::new("default", format!("held-{number}")).expect("a name")
}

/// One row of a table, exclusively.
pub fn row(table: &TableRef, row: &str) -> LockSpec {
    LockSpec::new(table.clone(), vec![LockItem::Row(Key::new(row).expect("a key"))])
}

/// Sessions at `address`, in as many connections as are needed.
///
/// # Panics
/// If the server refuses one.
pub async fn sessions(address: &str, count: usize, ttl: Duration) -> Vec<Session> {
    let mut sessions = Vec::new();
    while sessions.len() < count {
        let client = Client::builder().name("holders").connect(address).await.expect("it responds");
        for _ in 0..PER_CLIENT.min(count - sessions.len()) {
            sessions.push(client.session(Some(ttl)).await.expect("a session"));
        }
    }
    sessions
}

impl Holding {
    /// Locks a free row.
    ///
    /// # Panics
    /// If the server refuses it.
    pub async fn lock(session: Session, table: TableRef, name: String) -> Self {
        let txn = session.txn(TxnOptions::default());
        let grant = within("a free row", txn.lock(row(&table, &name))).await.expect("free");
        Self { session, txn, table, row: name, token: grant.token }
    }
}

impl Holders {
    /// Opens the sessions and locks the rows.
    ///
    /// # Panics
    /// If the server refuses something.
    pub async fn start(address: &str, options: HoldersOptions) -> Self {
        let mut all = Vec::new();
        let sessions = sessions(address, options.holders, options.ttl).await;
        for (number, session) in sessions.into_iter().enumerate() {
            let table = table(number % options.tables);
            all.push(Holding::lock(session, table, format!("row-{number}")).await);
        }
        Self { all, options }
    }

    /// The tables in which something is held.
    pub fn tables(&self) -> impl Iterator<Item = TableRef> + use<> {
        (0..self.options.tables.min(self.options.holders)).map(table)
    }

    /// Why those are lost that are.
    pub fn lost(&self) -> Vec<String> {
        let why = |held: &Holding| held.session.lost_now().or_else(|| held.txn.lost_now());
        self.all.iter().filter_map(why).map(|why| why.to_string()).collect()
    }

    /// Waits until every session is served by another incarnation than `before`, and returns when
    /// that was seen of the last one of each table, to a millisecond or two.
    ///
    /// # Panics
    /// If a session is lost.
    pub async fn reclaimed(&self, before: ServiceId) -> HashMap<TableRef, Time> {
        let mut last = HashMap::new();
        let mut waiting: Vec<&Holding> = self.all.iter().collect();
        while !waiting.is_empty() {
            let now = SystemClock.now();
            waiting.retain(|held| {
                assert_eq!(held.session.lost_now().map(|why| why.to_string()), None);
                let same = held.session.service() == before;
                if !same {
                    last.insert(held.table.clone(), now);
                }
                same
            });
            tokio::time::sleep(LOOK).await;
        }
        last
    }
}
