//! Models of `src/docs/protocol.md`: every schedule of a small world is visited, and nothing goes
//! wrong. Without any one of the rules something does.
//!
//! The models are of the rules, not of the code. They show that the rules are enough, and that each
//! of them is needed; the code cites the rules that it follows.
//!
//! Each model is the smallest world in which its rules matter: a state with the checker's choice of
//! what happens next. Its `Rules` have a switch for each rule, or for a part of one. A test named
//! `without_...` takes a rule out and asserts which property is violated. The test `all_rules_...`
//! visits every state with all rules in, and asserts how many there are at least, so that a world
//! in which little can happen is noticed. It also asserts that the model reaches what it is about.
//!
//! `cargo test -p lockservice-core --features testing --test protocol_model -- --nocapture` prints
//! the number of states, and a short schedule for each rule that is taken out.
//!
//! | file | noun | rules | states |
//! |---|---|---|---|
//! | `leases.rs` | the owner of a table, its client, the next owner | B2, B3, B4, P1, P2, clocks | 150,000 |
//! | `commits/` | a commit, and what takes its lock away | C1, C2, C3, C4 | 38,000 |
//! | `claims.rs` | holders of a table, and the processes of its node | B3, P6 | 40,000 |
//! | `remote.rs` | a lock of a transaction of another node | P4, R1, R2, R4, R5, T3 | 940,000 |
//! | `probes.rs` | deadlocks over nodes | D1, D3, D4 | 1,400,000 |
//! | `margins.rs` | hi and lo with their real numbers | B3, C1, C2, P1, R5 | |
//! | `clocks.rs` | the coarse clocks of the models | | |
//! | `check.rs` | the checks | | |
//!
//! Each model says at its head what it leaves out.
// Loom and shuttle come without the model checker.
#![cfg(not(any(loom, shuttle)))]

mod check;
mod claims;
mod clocks;
mod commits;
mod leases;
mod margins;
mod probes;
mod remote;
