//! Bindings of lockservice in PostgreSQL:
//! `postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME`.
//!
//! [`PgStore`] is a [`BindStore`](lockservice_core::store::BindStore) in one schema of a database,
//! shared by any number of nodes: one of them leads, the others stand by.
//!
//! ```no_run
//! # tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
//! use lockservice_core::store::BindStore;
//!
//! let url = "postgres://locks:secret@db.example/app?schema=locks";
//! let store = lockservice_pg::PgStore::connect(url).await?;
//! assert_eq!(store.describe(), "postgres://db.example:5432/app?schema=locks");
//! println!("{} tables are known", store.load().await?.tables.len());
//! # Ok::<(), lockservice_core::Error>(()) }).expect("a server");
//! ```
//!
//! With a ready pool:
//!
//! ```no_run
//! # async fn open(pool: lockservice_pg::sqlx::PgPool) -> lockservice_core::Result<()> {
//! use lockservice_pg::sqlx::postgres::PgConnectOptions;
//! use lockservice_pg::{PgConfig, PgStore, SchemaName};
//!
//! let schema = SchemaName::new("locks")?;
//! let config = PgConfig { schema, ..PgConfig::new(PgConnectOptions::new()) };
//! let store = PgStore::with_pool(pool, config).await?;
//! # Ok(()) }
//! ```
//!
//! # What it needs
//! - PostgreSQL 12 or later (tested on 15), the primary, a database in UTF-8, and a role that may
//!   create a schema in it, or owns an empty one that was made for it. The schema is created and
//!   migrated by whichever node comes first; any number may start at once. A schema of a newer
//!   format is refused and left as it is.
//! - `fsync` on. A write waits for the disk also where the server's `synchronous_commit` is off,
//!   and for synchronous standbys where the server is set up to.
//! - Connections: per node at most [`connections_max`](PgConfig::connections_max), and one that
//!   listens on a node that stands by.
//! - A pooler such as pgbouncer is found out and needs no option, in any of its modes but
//!   `statement`. Each call is then a transaction of its own: that costs some round trips, and
//!   candidates look for a change of leadership from time to time. A setting lasts for that
//!   transaction, so that nothing of ours reaches other applications.
//! - Several servers of which one takes writes, as Patroni keeps them: name all,
//!   `postgres://USER@HOST1:5432,HOST2:5432/DATABASE`.
//!
//! # What it guarantees
//! - **Durable, atomic, fenced, numbered** (L2). A batch is one statement and one round trip: a
//!   function of the schema updates the row of the leadership if epoch and number fit, which locks
//!   it, applies the batch, and commits. Refusals are responses, not errors.
//! - **An unknown outcome stays harmless.** A write whose caller went away, or whose response was
//!   lost, may still be under way, for as long as the server takes. Once a write with the next
//!   number has landed it finds its number taken and does nothing; until then it is one and the
//!   same write. So it never lands after [`applied`](lockservice_core::store::BindStore::applied)
//!   was read *and* a successor was written.
//! - **No lock outlives a call** (L1). A candidate reads, decides, and then sets the leadership
//!   only if nothing has changed. So a node that is stopped between the two holds up no other.
//! - **Bounded.** Each call ends within [`PgConfig::call_timeout`], three seconds by default.
//!
//! # Stepping back in time (L4)
//! Each response names the server's line of history: its system identifier and its timeline. A
//! promoted standby, and a backup restored with recovery, have another timeline; a copy in another
//! server has another identifier. A disk image put back, or a dump restored into the same server,
//! has the same line and is not noticed by it.
//!
//! Therefore the server's clock is a floor of every new epoch, and of every version, incarnation,
//! table id and token ([`Floor`](lockservice_core::store::Floor)): what an older leadership handed
//! out stays below, even if nothing of it is stored any more, as long as the servers' clocks agree
//! to a few seconds or a node of that time still runs. Epochs reach their end, 2^21, after 68
//! years.
//!
//! With asynchronous standbys a promotion can lose acknowledged writes: it is seen by the timeline,
//! and handled by L4.
//!
//! # Reading it
//! The schema is made for people: `select * from lockservice.head`, `lockservice.tables`,
//! `lockservice.forgotten`, `lockservice.services`, `lockservice.tombstones`.
//!
//! # Code
//! | file | noun |
//! |---|---|
//! | `config` | [`PgConfig`] |
//! | `store` | [`PgStore`] |
//! | `calls`, `connections`, `servers` | a statement on its way; the connections; the servers behind them |
//! | `sql`, `record` | the statements; records as rows and arguments |
//! | `migrate`, `server_check` | the schema and its versions; the check of a server |
//! | `watch` | changes of leadership, by `LISTEN` |
//! | `error` | errors of the driver as kinds |

mod calls;
mod config;
mod connections;
mod error;
mod migrate;
mod record;
mod server_check;
mod servers;
mod sql;
mod store;
mod watch;

/// The driver, for [`PgConfig::connect`] and ready pools.
pub use sqlx;

pub use crate::config::{PgConfig, SchemaName};
pub use crate::migrate::{SCHEMA_FORMAT, stored_format};
pub use crate::store::PgStore;
