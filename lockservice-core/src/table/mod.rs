//! The lock engine: every lock table that this node owns, in memory, behind one interface.
//!
//! [`LockEngine`] is the shell: one mutex, the wakers, and [`LockCall`], the future of a call.
//! Inside is a pure state that takes time as an argument, reads no clock, awaits nothing and wakes
//! nobody. What a file holds:
//!
//! | file | noun |
//! |---|---|
//! | `engine.rs` | the shell, and the **linearisation point** of grant and cancel |
//! | `state.rs` | all tables, transactions and calls; installing, sealing, unlocking |
//! | `locking.rs` | the way of a call: taken item by item, waiting, granted or taken back |
//! | `slices.rs` | promotion; work that takes more than one hold of the mutex |
//! | `deadlock.rs` | the wait graph: cycles, victims, reorderings |
//! | `search.rs` | searches in the wait graph, backwards and forwards |
//! | `lock_table.rs` | one table: rows, ranges, tokens |
//! | `entry.rs` | one row or range: its holders and its queue |
//! | `holders.rs`, `queue.rs` | who holds an entry; who waits for it, and which commits they are told of |
//! | `interval.rs` | the index that finds the ranges overlapping an item |
//! | `hash.rs` | maps keyed by ids, with a hash that clients cannot work out |
//! | `call.rs`, `txn.rs` | a call in flight; what a transaction holds |
//! | `inspect.rs`, `list.rs` | what an operator sees, in slices of bounded work |
//! | `steps.rs` | how much work was done, for tests of cost |
//!
//! # Data structures
//! Rows are in an ordered map, ranges in an interval index; equal ranges share an entry, a range is
//! one object and never two end points. An entry has its holders (any number of sharers, or one
//! exclusive one; the mode is the holder's) and its queue of waiters. A range waits in the entry of
//! exactly its range. What is in the way of an item is found by visiting the entries that overlap
//! it. A transaction has the list of what it holds; each holder knows its place in that list, so
//! that releasing chosen items is no search.
//!
//! # Invariants
//! They hold whenever the mutex is free, but for 2 and 5, which hold once the state is settled;
//! `tests/engine_model.rs` checks them after each of a million random steps.
//!
//! 1. Two transactions hold overlapping items only if both are sharers.
//! 2. Something is in the way of every waiter: an incompatible overlapping hold of another
//!    transaction, or such a waiter ahead of it.
//! 3. The wait graph, over holders and over waiters ahead, has no cycle.
//! 4. A transaction has one call in flight at most, so it is one node of the graph. What a call has
//!    taken is held, but without a token (*pending*), until the call is over: then all of it has
//!    the call's token, or none of it is there any more.
//! 5. A call waits for a token only in a table without one (F2).
//! 6. An entry has a holder or a waiter.
//! 7. An upgrade lies on the shared hold before it. Taking back the one leaves the other, in either
//!    order; the hold ends when both are gone.
//! 8. The depth of a call stack does not depend on what clients ask for, nor does the shape of a
//!    tree or a hash on anything that they could predict.
//!
//! # Fairness
//! All waiters of the node stand in one order. A wait that begins gets the place behind all others;
//! an upgrade (the transaction holds the item, but more weakly) gets the place before all others. A
//! waiter is granted if nobody who holds, and nobody ahead who waits, is in its way. As only
//! waiters for overlapping items can be in each other's way, the one order works as a queue at each
//! item, over rows and ranges alike. Two upgrades of overlapping items exclude each other by what
//! they hold, whatever their order.
//!
//! A worked example. `x` is exclusive, `s` shared:
//!
//! ```text
//! holds   T1 c x
//! queue   T2 [a,e] x     for T1
//!         T3 d x         behind T2, which is ahead and overlaps: a range does not starve behind rows
//!         T4 [d,g] s     behind T2 and T3
//!         T5 d s         behind T2 and T3, not behind T4: both share
//! T1 ends:  T2 is granted; T3, T4, T5 now wait for what it holds
//! T2 ends:  T3 is granted, it was ahead of the sharers: writers do not starve behind them
//! T3 ends:  T4 and T5 are granted, one after the other
//! ```
//!
//! One exception: a request goes ahead of a waiter that itself, directly or over others, waits for
//! the requester's transaction. Had T1 above asked for `b`, it would have got it at once, ahead of
//! T2: waiting behind one who waits for oneself would be a deadlock made by nothing but the queue,
//! and every whole-table lock would abort those that need one more row. `NoWait` treats a waiter
//! ahead as a lock, with the same exception.
//!
//! # Release
//! A released item goes on a list. The first waiter of each queue that overlaps it is a candidate.
//! The first candidate in queue order with nothing in its way takes its item and goes on to its
//! next ones, which may have it wait again or be over; the waiter behind it is the next candidate
//! of that queue. If the first one of a queue has something in its way, so have all behind it, with
//! one exception: a sharer is not in its own way where it holds what is in the way of the others.
//! So all sharers at the head go one after another, none is looked at before its turn, and a
//! cancelled or failed waiter is no different from a release: whoever leaves a queue, by whatever
//! way, puts its item on the list.
//!
//! # Slices
//! One hold of the mutex takes a bounded number of steps: a call that names many rows, the end of a
//! transaction that has many, and the turns of many waiters are done under as many holds as that
//! takes. See `slices.rs`.
//!
//! - The thread that began goes on. Any other one that comes meanwhile helps with what its own hold
//!   leaves room for.
//! - A call is granted all of its items or none, and its token after its last one, in however many
//!   slices. Between two of them it is like a call that waits, except that it is in no queue: it
//!   can be cancelled, and ends with its transaction and its table.
//! - An unlock, an end and a cancel return when all of their rows are free. The rows go one after
//!   another, so a waiter may get one of them before the others are free.
//! - With one thread the outcome is the same as in one hold: what was begun is done before another
//!   waiter's turn comes.
//!
//! A commit's timestamp is noted once for each queue in whose way the transaction stood. A waiter
//! learns the largest one noted since its wait began when it leaves the queue.
//!
//! # Deadlocks
//! A call may have *ancestors*: transactions whose work waits until the call has ended. While it
//! waits, whoever waits for a lock of an ancestor waits for the call too. A lock of an ancestor is
//! never waited for. When a transaction on whose behalf calls wait has got more locks, those calls
//! are looked at again, as if their waits began then.
//!
//! An ancestor is a client's claim, which nobody can check. So a cycle that exists without claims
//! is broken first, as if there were none (1. below); of one that is left only a call fails whose
//! own claim closes it. Few calls are linked to one ancestor; more of them are only refused what it
//! holds. What a false claim still gets is a place: ahead of those who wait for the claimed
//! transaction, as long as they do.
//!
//! A waiter has *hard* edges, to transactions that hold what is in its way, and *soft* edges, to
//! waiters ahead of it that are. A grant makes edges only to a transaction that does not wait. When
//! a wait begins, all new edges lead from or to that waiter; so every cycle runs through it, and it
//! is found at once. Nothing is searched if the requester holds nothing, for then nobody waits for
//! it; a few looks forwards often show that it waits for nobody who waits. Otherwise the search
//! goes backwards from the requester: to those who wait for what it holds, to those who wait for
//! them, and so on, usually a handful.
//!
//! 1. A breadth-first search backwards along hard edges, until the requester's own call is found,
//!    finds a deadlock that no order of the queue can resolve, and a shortest cycle of it. One
//!    member of that cycle fails, with the whole cycle in its error: of those that are on *every*
//!    cycle of hard edges, the one that the [policy](VictimPolicy) chooses. The requester is one of
//!    them. So one failure is enough, however many cycles a wait closes.
//! 2. Then, if there is a cycle with a soft edge, the queue gets another order. Let *R* be the
//!    waiters that reach the requester's transaction, and *C* those of them, with the requester,
//!    that it reaches itself: they are on such cycles. New order: everybody else as they were; then
//!    *C* as it was except that each comes after the members of *C* whose locks it waits for; then
//!    the rest of *R* as it was.
//!
//! **Such an order always exists and has no cycle.** Step 1 left no hard cycle, so the hard edges
//! within *C* are a partial order, and a depth-first walk over them that emits each waiter after
//! those it waits for extends it. A cycle would run through *R* and *C* only, for nobody else waits
//! for them; and not through the rest of *R*, which *C* does not wait for, so within *C*. There
//! every hard edge leads to someone earlier by construction, and every soft edge by definition.
//! Edges that all lead to someone earlier make no cycle.
//!
//! **Nobody is passed needlessly.** Two waiters in each other's way change their order only if both
//! are in *C*: nobody else waits for *R* or *C*, and *C* does not wait for the rest of *R*, so
//! those pairs were in the new order already.
//!
//! **What a search costs** grows with the number of waiters that it finds and of the locks that
//! they hold, not with the product. Each queue is walked once, because for each place it is
//! remembered from where on the waiters were found. Those who hold an entry are one node, because
//! whoever waits for one of them waits for all. Forwards, the nearest exclusive waiter stands for
//! all ahead of it: they are reached along its own waits. `tests/engine_cost.rs` counts the steps.
//!
//! # The linearisation point
//! See [`LockCall`].

mod call;
mod deadlock;
mod engine;
mod entry;
mod hash;
mod holders;
mod idle;
mod inspect;
mod interval;
mod list;
mod lock_table;
mod locking;
mod queue;
mod search;
mod slices;
mod state;
mod steps;
mod txn;
mod types;

pub use self::engine::{LockCall, LockEngine};
pub use self::idle::{IdleTables, Usage};
pub use self::list::{LockList, WaitList};
#[cfg(any(test, feature = "testing"))]
pub use self::steps::{engine_longest_hold, engine_steps};
#[cfg_attr(loom, allow(unused_imports, reason = "the service is not built for loom"))]
pub(crate) use self::types::{CallObstacle, ItemGrant};
pub use self::types::{
    EngineSettings, Grant, LockInfo, LockRequest, VictimPolicy, WaitInfo, WaitPolicy,
};
