//! The lock engine: every lock table that this node owns, in memory, behind one interface.
//!
//! [`LockEngine`] is the shell: the wakers, and [`LockCall`], the future of a call. The shell holds
//! two parts, which read no clock, await nothing and wake no task:
//!
//! - `uncontended/`: the rows that one transaction holds and no other transaction wants, in shards,
//!   each under a mutex of its own.
//! - The **state**, under one mutex: all ranges, all waits, and the rows that more than one
//!   transaction wants. Before it decides a call, the uncontended holds that overlap the item of
//!   the call are moved here.
//!
//! | file | noun |
//! |---|---|
//! | `engine.rs` | the shell: the mutex and its holds |
//! | `lock_call.rs` | the future of a call; the **linearisation point** of grant and cancel |
//! | `uncontended/` | rows that one transaction holds and no other wants: the **hot path** |
//! | `state.rs` | all tables, transactions and calls; installing and sealing |
//! | `call/` | a call in flight: its begin, its way, its wait, its end, its limits and errors |
//! | `release.rs` | releases and roll-backs |
//! | `in_state.rs` | releases, roll-backs and downgrades of the state, in slices |
//! | `slices.rs` | promotion of waiters; work that takes more than one hold of the mutex |
//! | `deadlock.rs` | cycles of the wait graph: victims and reorderings |
//! | `search/` | searches in the wait graph, backwards and forwards |
//! | `lock_table/` | one table: its entries, the conflict check, its tokens |
//! | `entry.rs` | one row or range, with its holders and its queue; queue positions |
//! | `holder.rs`, `holders.rs` | one hold of an entry; the transactions that hold it |
//! | `queue.rs` | the calls that wait for an entry, and the commits that they learn of |
//! | `interval.rs` | the index of ranges, which finds those that overlap an item |
//! | `hash.rs` | maps keyed by ids, with a hash that clients cannot predict |
//! | `txn.rs` | the holds of a transaction |
//! | `memory.rs` | estimates of memory |
//! | `counts.rs` | what the engine counts, for metrics |
//! | `idle.rs` | tables that are not used |
//! | `inspect/`, `list.rs` | lists of locks and waits, in slices of bounded work |
//! | `oldest.rs` | the calls that have waited longest; how many wait for an item |
//! | `types.rs` | requests, grants, settings, lines of lists |
//! | `steps.rs` | the count of work, for tests of cost |
//!
//! # The way of a call
//! A row that is free is locked by [`LockEngine::lock_row`] alone: see `uncontended/`. Every other
//! call takes these steps:
//!
//! 1. [`LockEngine::lock`] brings the items into key order (`call/begin.rs`, `put_in_order`) and
//!    takes the mutex.
//! 2. `accept` refuses a call that is not for the installed version, or a second call of its
//!    transaction (`call/begin.rs`).
//! 3. `advance` takes item after item (`call/advance.rs`), after the uncontended holds that overlap
//!    it were inflated (`uncontended/inflate.rs`). An item that is free is held from here
//!    on, but *pending*: without a token.
//! 4. An item with a conflict ends step 3. The call waits in the queue of that item
//!    (`call/wait.rs`, `begin_wait`). A cycle that this wait closes is resolved at once
//!    (`deadlock.rs`, `resolve_cycles`).
//! 5. The end of a conflicting hold or wait makes the call a candidate. `promote` has it take its
//!    item and go on with step 3 (`slices.rs`).
//! 6. With its last item the call takes a token (F1), and all its items get it (`call/advance.rs`,
//!    `grant`).
//! 7. `finish` keeps the outcome and wakes the task, whose `poll` takes it (`call/end.rs`,
//!    `lock_call.rs`).
//!
//! A call that fails is rolled back, the last item first, before its error is kept (`call/end.rs`,
//! `fail`).
//!
//! # Data structures
//! - A **table** has its contended rows in an ordered map and its ranges in an interval index. A
//!   range is one object and never two end points; equal ranges share an entry.
//! - An **entry** has its holders (any number of sharers, of whom one may hold it for update, or
//!   one exclusive holder) and its queue of waiters, by mode. A range waits in the entry of exactly
//!   its range. The conflict check of an item visits the entries that overlap it.
//! - A **transaction** has the list of its holds. Each hold knows its slot in that list, so that
//!   releasing chosen items is no search. It also knows the number of the call that made it. A
//!   **savepoint** is such a number: the holds since then are the last ones of the list. An upgrade
//!   is a *layer* on the hold before it, with a number of its own.
//!
//! # Invariants
//! They hold whenever the mutex is free, except 2 and 5, which hold once no work is pending.
//! `tests/engine_model/` checks them after each of a million random steps.
//!
//! 1. Two transactions hold overlapping items only in compatible modes.
//! 2. Every waiter has a conflict: an incompatible overlapping hold of another transaction, or such
//!    a waiter ahead of it.
//! 3. The wait graph, over holders and over waiters ahead, has no cycle.
//! 4. A transaction has at most one call in flight, so it is one node of the graph. The items of
//!    that call are pending until it is over. Then all of them have its token, or none of them is
//!    held.
//! 5. A call waits for a token only in a table without one (F2).
//! 6. An entry has a holder or a waiter.
//! 7. An upgrade lies on the weaker hold before it, so that there are at most three. Rolling back
//!    one of them leaves the others, in any order. The hold ends with the last roll-back.
//! 8. The depth of a call stack does not depend on requests of clients. The shape of a tree or a
//!    hash does not depend on anything that clients can predict.
//!
//! # Fairness
//! All waiters of the node stand in one order, that of their **queue positions**:
//!
//! - A wait that begins gets the last position.
//! - A call that waited at an earlier incarnation of the node (`claim.rs`, `lock_again`) gets a
//!   position ahead of all calls that came here first, in the order in which they came there.
//! - An upgrade (the transaction holds the item, but more weakly) gets a position behind the other
//!   upgrades and ahead of all others.
//! - A waiter is granted its item if it conflicts with no holder, and with no waiter ahead of it.
//!
//! Only waiters for overlapping items conflict. So the one order works as a queue at each item, for
//! rows and ranges alike. Two upgrades of overlapping items to exclusive exclude each other by
//! their holds, in any order. Two upgrades to update wait for a third transaction, in their order.
//!
//! A worked example with the transactions A to E and the rows 1 to 7. `x` is exclusive, `s` shared:
//!
//! ```text
//! holds   A 3 x
//! queue   B [1,5] x   waits for A
//!         C 4 x       waits for B, which is ahead and overlaps: rows do not starve a range
//!         D [4,7] s   waits for B and C
//!         E 4 s       waits for B and C, not for D: both share
//! A ends:  B is granted; C, D and E wait for B
//! B ends:  C is granted, for it was ahead of the sharers: sharers do not starve a writer
//! C ends:  D and E are granted, one after the other
//! ```
//!
//! There is one exception. A request goes ahead of a waiter that waits, directly or through others,
//! for the transaction of the request. If A above requests row 2, it gets the row at once, ahead of
//! B. A wait behind B would close a deadlock that only the queue makes. Every lock of a whole table
//! would then abort the transactions that need one more row. `NoWait` treats a waiter ahead as a
//! lock, with the same exception.
//!
//! # Release
//! Every way out of a holder list or a queue (release, roll-back, cancel, failure) puts the item on
//! one list, `released`. Then promotion runs:
//!
//! 1. `find_candidates` takes an item from the list. The first waiter of each queue that overlaps
//!    it becomes a candidate.
//! 2. `promote` takes the first candidate in queue order. If it has a conflict, it stays in its
//!    queue, and so do all waiters behind it, except sharers behind a waiter for update: the first
//!    of them becomes a candidate.
//! 3. If it has none, the waiter behind it becomes a candidate too, so that sharers at the head of
//!    a queue are granted one after another. Then the candidate takes its item and goes on with its
//!    next one (`continue_call`).
//! 4. Steps 1 to 3 repeat until both lists are empty.
//!
//! Step 2 has another exception. A transaction that holds the conflicting lock does not conflict
//! with itself. If it waits further behind in the same queue, it becomes a candidate.
//!
//! A downgrade, and the end of an upgrade, also put their item on the list: waiters may be
//! compatible with the weaker hold.
//!
//! A commit is noted once for each queue that conflicted with a hold of the transaction. A waiter
//! that leaves the queue learns the largest timestamp that was noted since its wait began, and
//! whether one of those commits changed the definition of the table (C5).
//!
//! # Slices
//! One hold of the mutex takes a bounded number of steps. A call that names many rows, the end of a
//! transaction that holds many, and the promotion of many waiters take as many holds as they need.
//! See `slices.rs`.
//!
//! - The thread that began goes on. Another thread that comes meanwhile does as much of the pending
//!   work as its own hold has room for.
//! - A call is granted all of its items or none, and its token after its last item, in any number
//!   of slices. Between two of them it is like a call that waits, except that it is in no queue: it
//!   can be cancelled, and ends with its transaction and its table.
//! - An unlock, an end and a cancel return when all of their rows are free. The rows become free
//!   one after another, so a waiter may get one of them before the others are free.
//! - The outcome with one thread is the same as in one hold: work that has begun is done before
//!   another waiter is promoted.
//!
//! # Deadlocks
//! **Edges.** A waiter has *hard* edges, to transactions with a conflicting hold, and *soft* edges,
//! to conflicting waiters ahead of it. A grant makes edges only to a transaction that does not
//! wait. When a wait begins, every new edge leads from or to that waiter. So every cycle runs
//! through it, and is found at once.
//!
//! **Ancestors.** A call may name *ancestors*: transactions whose work waits until the call has
//! ended. A waiter for a lock of an ancestor then waits for the call too. A call never waits for a
//! lock of its ancestor. When an ancestor has got more locks, the waiting calls that name it are
//! checked again, as if their waits began then.
//!
//! An ancestor is a claim of a client, which the engine cannot check:
//!
//! - A cycle that exists without claims is resolved first, as if there were no claims.
//! - If only claims close a cycle, a call that made such a claim fails.
//! - At most 16 calls are linked to one ancestor. A further call is only refused the locks that the
//!   ancestor holds.
//! - A false claim still gains a queue position: ahead of those that wait for the claimed
//!   transaction, for as long as they do.
//!
//! **How a cycle is resolved** (`deadlock.rs`, `resolve_cycles`):
//!
//! 1. If the transaction and its linked ancestors hold nothing, no waiter waits for them, and there
//!    is no cycle, unless its position is ahead of others. Otherwise a short search forwards often
//!    shows that the waiter does not wait for itself.
//! 2. `cycle` searches backwards along hard edges from the waiter, breadth first: the calls that
//!    wait for its holds, then the calls that wait for those, and so on. They are usually a
//!    handful. If the search finds the waiter's own call, no order of the queue resolves the
//!    deadlock, and the way back is a shortest cycle.
//! 3. `victim` chooses the member that fails: the one that the [policy](VictimPolicy) prefers among
//!    those on *every* hard cycle. The waiter is one of them. So one failure is enough for any
//!    number of cycles. The error names the whole cycle.
//! 4. `resolve_claimed_cycles` does the same for cycles that claims close.
//! 5. `reorder` resolves the cycles that are left: they have a soft edge. Let *R* be the waiters
//!    that reach the transaction of the waiter. Let *C* be the waiter and those of *R* that it
//!    reaches: the members of such cycles. The new order is:
//!    1. all others, as they were,
//!    2. *C* as it was, except that each member comes after those of *C* whose locks it waits for,
//!    3. the rest of *R*, as it was.
//!
//! **The new order exists and has no cycle.** After step 3 no hard cycle is left, so the hard edges
//! within *C* are a partial order. A depth-first walk that emits each waiter after those it waits
//! for extends it. A cycle would run through *R* and *C* only, for no other waiter waits for them.
//! It would not run through the rest of *R*, for *C* does not wait for that. Within *C* every hard
//! edge leads to an earlier member by construction, and every soft edge by definition. Edges that
//! all lead to an earlier member make no cycle.
//!
//! **No waiter is passed without need.** Two conflicting waiters change their order only if both
//! are in *C*: the others do not wait for *R* or *C*, and *C* does not wait for the rest of *R*. So
//! those pairs were in the new order before.
//!
//! **The cost of a search** grows with the sum, not the product, of the waiters that it finds and
//! of the locks that they hold:
//!
//! - A search walks each queue once. For each queue it remembers the position from which on it
//!   found the waiters.
//! - The holders of an entry are one node, for a waiter for one of them waits for all of them.
//! - In a search forwards, the nearest exclusive waiter stands for all waiters ahead of it. The
//!   search reaches them along the waits of that one.
//!
//! `tests/engine_cost.rs` counts the steps.
//!
//! # The linearisation point
//! See [`LockCall`].

mod call;
#[cfg(not(loom))]
mod claim;
mod counts;
mod deadlock;
mod engine;
mod entry;
mod hash;
mod holder;
mod holders;
mod idle;
mod in_state;
mod inspect;
mod interval;
mod list;
mod lock_call;
mod lock_table;
mod memory;
mod oldest;
mod queue;
mod release;
mod search;
mod slices;
mod state;
mod steps;
mod txn;
mod types;
mod uncontended;

pub(crate) use self::counts::EngineCounts;
#[cfg(not(loom))]
pub(crate) use self::counts::EngineGauges;
pub use self::engine::LockEngine;
#[cfg_attr(loom, allow(unused_imports, reason = "the service is not built for loom"))]
pub(crate) use self::idle::Usage;
pub use self::list::{LockList, RowList, WaitList};
pub use self::lock_call::LockCall;
#[cfg(any(test, feature = "testing"))]
pub use self::memory::EngineMemory;
#[cfg(any(test, feature = "testing"))]
pub use self::steps::{engine_longest_hold, engine_steps};
#[cfg_attr(loom, allow(unused_imports, reason = "the service is not built for loom"))]
pub(crate) use self::types::{CallObstacle, ItemGrant};
pub use self::types::{
    Commit, EngineSettings, Grant, LockInfo, LockRequest, VictimPolicy, WaitInfo, WaitPolicy,
};
pub use self::uncontended::{CallGuard, Closed, RowGrant, Savepoint, TableHandle, TxnHandle};
