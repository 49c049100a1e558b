//! Uncontended holds: rows that one transaction holds and no other wants, kept apart from the
//! engine's state so that they cost little.
//!
//! In the literature these are *deflated* locks. The engine's state, with its queues, its conflict
//! check and its wait graph, knows only what is *contended*. A hold that another call meets is
//! moved there (*inflated*) before that call is decided.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | this page |
//! | `slab.rs` | the rows of a shard, in chunks that are given back |
//! | `order.rs` | the slots of a shard in the order of their keys |
//! | `shard.rs` | a part of a table's rows under one mutex, with tokens and memory on credit |
//! | `rows.rs` | the shards of a table, its published ranges, what a grant says of its history |
//! | `places.rs` | the places of tables, found without a reference count |
//! | `handles.rs` | [`TableHandle`] and [`TxnHandle`]: what a caller keeps so that nothing is looked up |
//! | `lock_row.rs` | the way of a row lock |
//! | `unlock.rs` | releases: of chosen holds, of all |
//! | `partial.rs` | savepoints and downgrades |
//! | `inflate.rs` | the ways between the shards and the state |
//! | `snapshot.rs` | the rows in key order, for lists |
//!
//! # The way of a row lock
//! [`LockEngine::lock_row`](super::LockEngine::lock_row):
//!
//! 1. The transaction's mutex is taken. A transaction that is closed, or at its limit, goes the
//!    general way.
//! 2. The key is hashed, once. The hash chooses the shard and the slot in its index.
//! 3. Under the shard's mutex: the shard serves the version of the handle, the row is not in its
//!    index, and no published range covers the row. Then the row is inserted, with the next token
//!    of the shard's credit. **This is the linearisation point of the grant.**
//! 4. The transaction's list of holds gets the slot.
//!
//! Every other case goes the general way: [`LockEngine::lock`](super::LockEngine::lock) under the
//! mutex of the state.
//!
//! # Invariants
//! They hold whenever the mutex of the state is free.
//!
//! 1. **Marked.** A row has a *contended* mark in its shard exactly if the state has an entry for
//!    it. A marked row has no uncontended hold.
//! 2. **Published.** A range is published exactly if the state has an entry for it. No published
//!    range overlaps an uncontended hold.
//! 3. **Known.** A call is decided by the state only after the uncontended holds that overlap its
//!    item were inflated, and those of its own transaction. So the state knows all holds that a
//!    decision, or a choice of a victim, depends on.
//! 4. **Nothing is passed.** A row is granted here only if no holder and no waiter in the state
//!    overlaps it (by 1 and 2). So the one order of the queue stays exact.
//! 5. **Tokens grow (F1).** The tokens of a shard's credit are above all tokens that were granted
//!    on its rows before the credit was drawn. If the state grants a later token on a row of the
//!    shard, what is left of the credit is dropped before the row is unmarked.
//! 6. **Memory.** The bytes of all uncontended holds and the unused credit of all shards are part
//!    of [`EngineState::bytes`](super::state::EngineState::bytes). Credit that is not used is
//!    collected before a call fails for want of memory. A hold that is inflated changes its bytes
//!    for those that it takes in the state, which are more; it is never refused that.
//!
//! # Ranges
//! A table in which no range was ever requested has no index of ranges and no order of its rows.
//! The first range makes each shard build one (`order.rs`), which it then maintains. A range
//! is *published* before it looks at the rows:
//!
//! 1. The range enters the table's interval index.
//! 2. Each shard is visited under its mutex: it counts the range, and the holds in the range are
//!    inflated.
//!
//! A row lock of the same shard comes before the visit, and its hold is inflated; or after it, and
//! finds the range. The order of the shard's mutex makes either side see the other.
//!
//! # Order of the mutexes
//! Transaction, then state, then shard, then the index of published ranges. Of shards one at a
//! time.
//!
//! # A worked example
//! `A`, `B` are transactions, `r` is a row, `T` the state.
//!
//! ```text
//! A locks r          shard: r held by A, token 1            T: -
//! B locks r          B meets A's hold: the general way
//!   inflate          shard: r marked                        T: r held by A, token 1
//!   wait             shard: r marked                        T: r held by A; B waits
//! A ends             A's slot holds no hold of A: it calls T
//!   release, promote shard: r marked                        T: r held by B, token 300
//! C locks r          r is marked: the general way, C waits behind B
//! B, C end           shard: r unmarked, credit dropped      T: -
//! ```

mod handles;
mod inflate;
mod lock_row;
mod order;
mod partial;
mod places;
mod rows;
mod shard;
mod slab;
mod snapshot;
mod unlock;

pub(super) use self::handles::HoldSeq;
pub use self::handles::{CallGuard, Closed, Savepoint, TableHandle, TxnHandle};
pub use self::lock_row::RowGrant;
pub(super) use self::places::{TablePlace, TablePlaces};
pub(super) use self::rows::TableRows;
pub(super) use self::snapshot::{RowSnapshot, SNAPSHOT_KEYS, SnapshotBuild};
