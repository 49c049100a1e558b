//! A client of a lockservice server.
//!
//! ```no_run
//! # async fn example() -> lockservice::Result<()> {
//! use lockservice::{Client, Key, LockItem, LockSpec, TableRef, TxnOptions};
//!
//! let client = Client::connect("127.0.0.1:7654").await?;
//! let session = client.session(None).await?;
//! let accounts = TableRef::new("default", "accounts")?;
//! let txn = session.txn(TxnOptions::default());
//! let grant = txn.lock(LockSpec::new(accounts, vec![LockItem::Row(Key::new("alice")?)])).await?;
//! println!("locked under token {}", grant.token);
//! // … work, and stop at once if `session.lost()` resolves …
//! txn.end(None); // sent, and need not be waited for
//! session.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A caller can observe for which holder its call waits:
//!
//! ```no_run
//! # use lockservice::{LockSpec, Result, Session};
//! # async fn example(session: Session, spec: LockSpec) -> Result<()> {
//! let (waits, mut observed) = tokio::sync::watch::channel(None);
//! let call = session.lock_reporting(spec, &waits);
//! let mut call = std::pin::pin!(call);
//! let lock = loop {
//!     tokio::select! {
//!         outcome = &mut call => break outcome?,
//!         Ok(()) = observed.changed() => println!("waiting: {:?}", *observed.borrow_and_update()),
//!     }
//! };
//! # lock.release().await
//! # }
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `connect`, `builder` | [`Client`]: the connections that sessions share; its settings |
//! | `session`, `cluster_session`, `node_session` | [`Session`], over nodes; its part at one node |
//! | `txn` | [`ClientTxn`], [`TxnSavepoint`], [`LockGuard`], [`Ended`] |
//! | `follow` | the way of a lock call to the owner of its table |
//! | `outbox`, `stream` | operations without a response; the request side of a stream |
//! | `driver` | the task behind a session: its stream, its renewals |
//! | `resume`, `backoff` | new connections, claims after a restart; the pauses between attempts |
//! | `responses` | the responses of a stream, as they are read |
//! | `allocator`, `admin`, `kills` | validation of commits; lists and calls for operators |
//! | `cluster_admin` | lists of all nodes of a cluster |
//!
//! The way of a lock call: `session` or `txn`, `txn/call` (a permit), `outbox` (encoded, a place in
//! the order), `stream` (a frame), the server; `driver`, `responses`, `outbox/response`, and back
//! to `txn`.
//!
//! # Implementation details
//! A [`Session`] has one stream and one task that reads it. Callers put operations into an outbox;
//! the request side of the stream takes everything that is there into one frame, without a task in
//! between. A frame with responses for several callers wakes them all before the next frame goes
//! out, so that their next operations share it.
//!
//! Every operation stays in the outbox until its response has arrived. A new stream, after a
//! connection broke, sends the operations without a response again, under the same sequence (T2).
//!
//! The **deadline** of the locks is lo(promise) after the send of the last acknowledged renewal,
//! less the time that the protected work needs to stop (P2). From then on the session is lost, even
//! if the server still keeps it.
//!
//! # Several nodes
//! A lock table is owned by one node, and a session belongs to one node (T5). So a [`Session`]
//! spans nodes: the one where it was opened, and each where one of its transactions was sent
//! because the owner of its table is there. A transaction lives on exactly one of them: it moves
//! while it holds nothing, and fails with `SpansNodes` if it would have to hold locks at two. A
//! lock rests on the promise of the node where it is (P1, P2). [`LockGuard::watch_deadline`] and
//! [`LockGuard::lost`] report that node alone; [`Session::watch_deadline`] and [`Session::lost`]
//! report all nodes in use, so that watching the session is enough. Closing the session closes it
//! on all of them.
//!
//! # Transactions that the server ends
//! An operator or a limit of the server may end one transaction. [`ClientTxn::lost`] and
//! [`LockGuard::lost`] report it, and the session goes on with its other transactions. If the
//! application asks for neither, the server does not renew the session, so that [`Session::lost`]
//! resolves before the locks can go to others.

//!
//! # Restarts of a server
//! A server that is restarted takes no lock (P6). The session connects again until its deadline,
//! and claims at the next process of the same node what its transactions hold, by the client's own
//! account. Then it goes on as before: transactions, tokens and calls that wait stay what they are,
//! and [`Session::service`] is another one. An application notices nothing, with these exceptions:
//!
//! | after a restart | is lost, and [`ClientTxn::lost`] says so |
//! |---|---|
//! | a transaction that [validates](crate::TxnOptions::validates) and has called the server | with `BindChanged`: it is to begin again (T4) |
//! | a transaction whose claim the server refuses | with `ClaimRefused` and the reason: its work is to stop by its deadline, which does not move |
//!
//! Locks and releases of such a transaction do nothing at the server. If a claim was refused and
//! the application asks for neither [`ClientTxn::lost`] nor [`LockGuard::lost`], the deadline of
//! the session does not move either, and [`Session::lost`] resolves there.
//!
//! If no process of the node takes the claims before the deadline, the session is lost.

mod admin;
mod allocator;
mod backoff;
mod builder;
mod cluster_admin;
mod cluster_session;
mod connect;
mod driver;
mod follow;
mod kills;
mod node_session;
mod outbox;
mod responses;
mod resume;
mod session;
mod stream;
mod txn;

pub use self::admin::{AdminClient, Kill, Listed};
pub use self::allocator::{Admission, AllocatorClient};
pub use self::builder::ClientBuilder;
pub use self::cluster_admin::{ClusterAdmin, ClusterList, MissingNode};
pub use self::connect::Client;
pub use self::kills::{TxnKill, TxnKills};
#[cfg(feature = "fuzzing")]
pub(crate) use self::responses::fuzz_server_frame;
pub use self::session::Session;
pub use self::txn::{ClientTxn, Ended, LockGuard, TxnSavepoint};
