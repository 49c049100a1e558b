//! The lock engine against a deliberately naive model, step by step.
//!
//! The model is a flat list of holds and a flat list of waiters in queue order; every question is
//! answered by looking at all of them. Both are driven by the same random steps, and after each the
//! held locks with their modes and tokens, the waits, the outcomes of all calls, and the memory
//! that the engine counts must be the same. The model predicts everything except which of several
//! cycles is broken first; there it checks that the cycle the engine reports exists.
//!
//! Half of the runs have limits so small that calls run into them, also as their turn comes. In
//! half of them the engine's mutex is let go after so few steps that nearly every call is done in
//! several slices: nothing may come of that.
//!
//! A run that fails prints its seed: `steps(SEED..SEED + 1, 1000)` runs it again.
//!
//! | file | noun |
//! |---|---|
//! | `main.rs` | the runs |
//! | `run.rs` | one run: the engine, its callers and the model |
//! | `steps.rs` | its random steps |
//! | `client.rs` | the caller of a transaction |
//! | `model/` | the model, and its comparison with the engine |

#[path = "../kit/by_id.rs"]
mod by_id;
mod client;
mod model;
mod run;
mod steps;

use std::collections::BTreeMap;

use client::{Client, poll_all};
use lockservice_core::{Key, ServiceId, TxnId, TxnNumber};
use run::Run;

fn id(txn: usize) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(txn as u64), false)
}

/// Every other key is a long one, which takes more memory.
fn key(number: u8) -> Key {
    Key::new(vec![b'a' + number; if number.is_multiple_of(2) { 1 } else { 100 }]).expect("a key")
}

fn number(txn: TxnId) -> usize {
    txn.number().get() as usize
}

fn steps(seeds: std::ops::Range<u64>, steps: u32) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            (0..steps).for_each(|_| run.step());
            run.finish()
        });
        match run {
            Ok(run) => {
                run.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count)
            }
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    counts
}

/// A million steps, in two halves because tests run side by side.
#[test]
fn the_engine_does_what_the_model_does_in_long_runs() {
    let counts = steps(0..500, 1000);
    println!("{counts:?}");
    let of_calls =
        ["granted", "waited", "conflict", "deadlock", "cancelled", "bind_changed", "dropped"];
    let others = ["back to a savepoint", "downgraded", "skipped", "escalated"];
    for what in of_calls.into_iter().chain(others).chain([
        "resource_exhausted",
        "all rolled back",
        "at once",
    ]) {
        assert!(
            counts.get(what).is_some_and(|count| *count > 100),
            "the runs saw too little: {counts:?}"
        );
    }
}

#[test]
fn the_engine_does_what_the_model_does_in_short_runs() {
    let counts = steps(10_000..15_000, 100);
    assert!(counts["deadlock"] > 100, "the runs saw too little: {counts:?}");
}
