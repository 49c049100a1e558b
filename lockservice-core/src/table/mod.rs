//! The lock engine: every lock table that this node owns, in memory, behind one interface.
//!
//! [`LockEngine`] is the shell: one mutex, the wakers, and [`LockCall`], the future of a call. Inside is a pure state that takes time as an
//! argument, reads no clock, awaits nothing and wakes nobody. What a file holds:
//!
//! | file | noun |
//! |---|---|
//! | `engine.rs` | the shell, and the **linearisation point** of grant and cancel |
//! | `state.rs` | all tables, transactions and calls; installing, sealing, unlocking |
//! | `locking.rs` | the way of a call: taken item by item, waiting, granted or taken back |
//! | `deadlock.rs` | the wait graph: promotion, cycles, victims, reorderings |
//! | `lock_table.rs` | one table: rows, ranges, tokens |
//! | `entry.rs` | one row or range: its holders and its queue |
//! | `interval.rs` | the index that finds the ranges overlapping an item |
//! | `call.rs`, `txn.rs` | a call in flight; what a transaction holds |
//!
//! # Data structures
//! Rows are in an ordered map, ranges in an interval index; equal ranges share an entry, a range is one object and never two end points.
//! An entry has its holders (any number of sharers, or one exclusive one; the mode is the holder's) and its queue of waiters. A range waits
//! in the entry of exactly its range. What is in the way of an item is found by visiting the entries that overlap it. A transaction has the
//! list of what it holds; each holder knows its place in that list, so that releasing chosen items is no search.
//!
//! # Invariants
//! They hold whenever the mutex is free; `tests/engine_model.rs` checks them after each of a million random steps.
//!
//! 1. Two transactions hold overlapping items only if both are sharers.
//! 2. Something is in the way of every waiter: an incompatible overlapping hold of another transaction, or such a waiter ahead of it.
//! 3. The wait graph, over holders and over waiters ahead, has no cycle.
//! 4. A transaction has one call in flight at most, so it is one node of the graph. What a call has taken is held, but without a token
//!    (*pending*), until the call is over: then all of it has the call's token, or none of it is there any more.
//! 5. A call waits for a token only in a table without one (F2).
//! 6. An entry has a holder or a waiter.
//!
//! # Fairness
//! All waiters of the node stand in one order. A wait that begins gets the place behind all others; an upgrade (the transaction holds the item, but
//! more weakly) gets the place before all others. A waiter is granted if nobody who holds, and nobody ahead who waits, is in its way. As only waiters for
//! overlapping items can be in each other's way, the one order works as a queue at each item, over rows and ranges alike. Two upgrades of
//! overlapping items exclude each other by what they hold, whatever their order.
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
//! T3 ends:  T4 and T5 are granted, in one step
//! ```
//!
//! One exception: a request goes ahead of a waiter that itself, directly or over others, waits for the requester's transaction. Had T1 above asked
//! for `b`, it would have got it at once, ahead of T2: waiting behind one who waits for oneself would be a deadlock made by nothing but
//! the queue, and every whole-table lock would abort those that need one more row. `NoWait` treats a waiter ahead as a lock,
//! with the same exception.
//!
//! # Release
//! What was left goes on a list. Of the entries that overlap it, the waiters up to the first exclusive one are candidates; those behind it
//! are behind it. The first candidate in queue order with nothing in its way takes its item and goes on to its next ones, which may have it wait again
//! or be over; then the next candidate, until there is none. So all sharers at the head go in one step, and a cancelled or failed waiter is no different from a
//! release.
//!
//! # Deadlocks
//! A waiter has *hard* edges, to transactions that hold what is in its way, and *soft* edges, to waiters ahead of it that are. A grant makes edges
//! only to a transaction that does not wait. When a wait begins, all new edges lead from or to that waiter; so every cycle runs
//! through it, and it is found at once.
//! Nothing is searched if nobody waits for the requester.
//!
//! 1. A depth-first search along hard edges from the requester back to it finds a deadlock that no order of the queue can resolve. A
//!    member chosen by the [policy](VictimPolicy) fails, with the whole cycle in its error. Repeated until there is none.
//! 2. Then, if there is a cycle with a soft edge, the queue gets another order. Let *C* be the waiters on such cycles (those that the requester reaches
//!    and that reach it), *B* the others that it reaches. New order: *B* as it was, then *C* as it was except that each comes after the members
//!    of *C* whose locks it waits for; then everybody else as they were.
//!
//! **Such an order always exists and has no cycle.** Step 1 left no hard cycle, so the hard edges within *C* are a partial order, and a depth-first walk
//! over them that emits each waiter after those it waits for extends it. In the new order every hard edge leads to someone earlier: within
//! *C* by construction, from *C* to *B* because *B* comes first, within *B* and the rest as before, and *B* has none to *C*, else it would
//! be in *C*. Every soft edge leads to someone earlier by definition. Edges that all lead to someone earlier make no cycle.
//!
//! **Nobody is passed needlessly.** Two waiters in each other's way change their order only if both are in *C*: nobody in *B* waits for *C*, and nobody that
//! was reached waits for one who was not, so those pairs were in the new order already.
//!
//! For soft edges the search needs the nearest waiter that is in the way of all behind it, not all waiters ahead: the others are reached along
//! its own waits. A queue is walked once and not once per waiter.
//!
//! # The linearisation point
//! See [`LockCall`].

mod call;
mod deadlock;
mod engine;
mod entry;
mod hash;
mod inspect;
mod interval;
mod lock_table;
mod locking;
mod state;
mod txn;
mod types;

pub use self::engine::{LockCall, LockEngine};
pub use self::types::{EngineSettings, Grant, ItemGrant, LockInfo, LockRequest, VictimPolicy, WaitInfo, WaitPolicy};
