//! Bindings of lockservice in Redis: `redis://`, `redis-sentinel://` and `redis-cluster://`.
//!
//! [`RedisStore`] is a [`BindStore`](lockservice_core::store::BindStore) that any number of nodes
//! share: they form one cluster, and their allocators stand by for each other. It needs Redis 7.0
//! or later, standalone, under Sentinel or as a Cluster.
//!
//! ```no_run
//! # tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
//! use lockservice_core::store::BindStore;
//! use lockservice_redis::{RedisConfig, RedisStore, redis};
//!
//! let url = "redis-sentinel://:secret@10.0.0.1,10.0.0.2,10.0.0.3/main?name=billing&wait=1";
//! let store = RedisStore::connect(url).await?;
//! println!("{}: {} tables", store.describe(), store.load().await?.tables.len());
//!
//! // Or through a client that is there already.
//! let client = redis::Client::open("redis://127.0.0.1/").expect("a URL");
//! let config = RedisConfig { name: "billing".to_owned(), ..RedisConfig::default() };
//! let store = RedisStore::with_client(client, config).await?;
//! # Ok::<(), lockservice_core::Error>(()) }).expect("a store");
//! ```
//!
//! [`RedisConfig::from_url`] has the syntax of the URLs and their options.
//!
//! # How it works
//! Everything of one cluster is one hash, `{lockservice:NAME}`. Each operation is one Lua script,
//! hence one atomic step, that compares the epoch, and for a write its number, with those in the
//! hash (L2), and returns the copy of the store on which it ran. The right to lead is decided by
//! [`Head`](lockservice_core::store::Head): a candidate reads the head, decides, and stores its own
//! only if head and copy are still the same (L1). Each change of leadership is published on the
//! channel `{lockservice:NAME}:leader`, so that a stand-by learns of a resignation at once; without
//! that permission, or while the subscription is down, it polls.
//!
//! One connection serves all calls. When it is lost, or the server turns out to be a replica, the
//! master is looked up again: at the Sentinels (all are queried at once, the first response
//! counts), or as the owner of the key's slot in the Cluster. A call that may be repeated is sent
//! once more; a write never is: its outcome is then
//! [unknown](lockservice_core::ErrorKind::UnknownOutcome), and its number shows it.
//!
//! While the key's slot is moved to another node of a Cluster, calls follow the key (`ASK`). The
//! new node is another copy (L4), for a move that was interrupted can leave an old copy behind: the
//! leader ends once, when the key itself moves, and the next begins after the leadership's TTL.
//! Binds, leases and transactions go on.
//!
//! # What can be lost
//! Redis acknowledges from memory. The setup of the server decides what an acknowledged write
//! survives: is set up:
//!
//! | setup | the process dies | the machine dies | fail-over to a replica |
//! |---|---|---|---|
//! | `appendonly yes`, `appendfsync always` | nothing is lost | nothing is lost | what the replica had not received |
//! | `appendonly yes`, `appendfsync everysec` (Redis' default for it) | nothing is lost | the last second or more | the same |
//! | snapshots only (Redis' default) | all since the last snapshot | the same | the same |
//! | neither | everything | everything | the same |
//! | any, with `wait=N` | as above | as above | nothing, if N is *every* replica that can be promoted; else what the promoted one had not received |
//!
//! [`connect`](RedisStore::connect) warns in the log if the append-only file is off or not synced
//! with each write, and if `maxmemory-policy` lets Redis delete the hash. If `CONFIG` is
//! forbidden it says what could not be checked. Without persistence, a single Redis that restarts
//! by itself within seconds forgets everything; under Sentinel or in a Cluster the replicas then
//! copy that empty master.
//!
//! ## How a step back in time is noticed, and what follows (L4)
//! Each response names the copy that gave it: the process (`run_id`) and the line of replication
//! (`master_replid`). Both are read inside the script. A restart, a promotion, and a master that
//! became a replica and came back all change it. Some changes lose nothing (a restart with a synced
//! append-only file, the first replica that is attached, the last one gone for an hour); they are
//! taken as seriously, and cost one pause of the leadership's TTL in which no table is bound and no
//! commit is admitted.
//!
//! - A leader that sees another copy than it began on, no record, or a smaller number than its own
//!   stops. It does not repair.
//! - A candidate on another copy than the last leader's believes nothing that the copy says of the
//!   leadership, neither a resignation nor its own name: it watches that copy stand still for the
//!   whole TTL first. So does one that finds no record: an empty Redis waits once.
//! - The new epoch is above the stored one, above all that nodes report, and above a floor from the
//!   server's clock ([`Floor`](lockservice_core::store::Floor)). Versions, table ids and tokens are
//!   above the clock's second, above all that is stored and above all that nodes report: what was
//!   handed out before the loss is never handed out again, nor anything below it, as long as the
//!   servers' clocks agree to a few seconds or a node of that time still runs. A clock that is set
//!   back costs only this floor.
//! - Binds that cannot be proven are invalid: transactions that held a lost bind fail at
//!   `begin_commit` and start again.
//!
//! One case is **not** noticed: the same process given older data by hand (`RESTORE`, `DEBUG
//! RELOAD` of an old file, fields edited). Numbers and epochs that nodes report show it, if a node
//! of that time still runs.
//!
//! ## What `wait=N` gives, and what it does not
//! With `wait=N` acquiring, renewing and writing count only when `WAIT` says that N replicas have
//! received the change; otherwise a write fails with `UnknownOutcome`, the others with
//! `Unavailable`. `WAIT` waits for receipt, not for the replica's disk. **Unless N is the number of
//! all replicas that can be promoted, a partition can hold two leaders**, one on each side, each
//! acknowledged by its own replicas, until the Sentinels' or the Cluster's decision reaches both:
//! then only fencing tokens protect the data. With N equal to all of them, one replica that is down
//! stops every bind and renewal. `min-replicas-to-write` with a short `min-replicas-max-lag`
//! shortens the time in which an old master still accepts writes; it does not close it.
//!
//! A cluster that can lose nothing uses PostgreSQL, or one Redis with `appendfsync always` and no
//! fail-over.
//!
//! # What the server must allow
//! The user needs the key and the channels `{lockservice:NAME}*`, and
//! `+@read +@write +@scripting +@connection +@pubsub +info +time`; for `wait=N` also `+wait`, for a
//! Cluster `+cluster`, and `+config|get` if persistence is to be checked. `maxmemory-policy` must
//! be `noeviction`, or a `volatile-` one. A full Redis refuses writes with
//! [`StoreUnusable`](lockservice_core::ErrorKind::StoreUnusable); the leadership itself is still
//! renewed, so that commits go on.
//!
//! # Code
//! | file | noun |
//! |---|---|
//! | `config`, `url` | [`RedisConfig`], and its URL |
//! | `store` | [`RedisStore`] |
//! | `connection`, `topology` | the connection; the search for the server that holds the store |
//! | `scripts`, `head` | the scripts; their responses |
//! | `audit` | the check of a server |
//! | `watch` | changes of leadership |
//! | `error` | errors of the driver as kinds |

mod audit;
mod config;
mod connection;
mod error;
mod head;
mod scripts;
mod store;
mod topology;
mod url;
mod watch;

/// The driver, for a ready [`redis::Client`].
pub use redis;

pub use crate::config::{Address, RedisConfig, RedisTls, Servers};
pub use crate::store::RedisStore;
