//! The simulation of whole nodes and clients: on new seeds and on those that failed once; that a
//! seed repeats its run; and that it can see.
//!
//! Built with `--cfg tokio_unstable` alone, for without it a seed does not determine its run: see
//! `integration/simulate`, which runs any number of seeds.
#![cfg(tokio_unstable)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration::simulation::faults::{Focus, focus_of};
use integration::simulation::{Plan, Report, run};
use lockservice_core::testing::Planted;

/// The number of new seeds, unless `INTEGRATION_SEEDS` says another.
const NEW_SEEDS: u64 = 20;
/// A fault that is planted is found within so many seeds.
const PLANTED_SEEDS: u64 = 60;

/// Seeds that found a fault once, one a line, with what it was.
const FAILED: &str = include_str!("../fixtures/simulation/seeds.txt");

fn run_with(seed: u64, focus: Focus) -> Report {
    run(&Plan { seed, faults: Duration::from_secs(30), focus, echo: false })
}

fn run_seed(seed: u64) -> Report {
    run_with(seed, Focus::All)
}

/// Runs seeds on both processors.
fn run_all(seeds: &[u64]) {
    let half = seeds.len() / 2;
    std::thread::scope(|scope| {
        for seeds in [&seeds[..half], &seeds[half..]] {
            scope.spawn(move || {
                for seed in seeds {
                    let report = run_seed(*seed);
                    assert!(report.violation.is_none(), "{report}");
                    println!("{report}");
                }
            });
        }
    });
}

#[test]
fn new_seeds_violate_nothing() {
    let count = std::env::var("INTEGRATION_SEEDS").ok();
    let count = count.map_or(NEW_SEEDS, |count| count.parse().expect("a number of seeds"));
    // Each run of the tests looks at other seeds; a violation prints the one that repeats it.
    #[allow(clippy::disallowed_methods, reason = "only the choice of seeds")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let first = now.as_secs();
    run_all(&(0..count).map(|n| first + n).collect::<Vec<_>>());
}

#[test]
fn seeds_that_found_a_fault_once_find_none() {
    let lines = FAILED.lines().filter(|line| !line.starts_with('#'));
    let seeds = lines.filter_map(|line| line.split_whitespace().next());
    run_all(&seeds.map(|seed| seed.parse().expect("a seed")).collect::<Vec<_>>());
}

/// A run that differs from its repetition could not be looked into.
#[test]
fn a_seed_repeats_its_run_to_the_last_line_of_the_log() {
    for seed in 1..=4 {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.digest, second.digest, "seed {seed}");
    }
}

/// Plants a fault, and returns the first seed that finds it.
fn finds(fault: Planted) -> Option<(u64, String)> {
    Planted::plant(Some(fault));
    let found = (1..=PLANTED_SEEDS).find_map(|seed| {
        let report = run_with(seed, focus_of(fault));
        Some((seed, report.violation?))
    });
    Planted::plant(None);
    found
}

macro_rules! planted {
    ($($name:ident: $fault:ident;)*) => {$(
        #[test]
        fn $name() {
            let (seed, violation) =
                finds(Planted::$fault).expect("a fault that no seed finds within the bound");
            println!("{:?}: seed {seed}: {violation}", Planted::$fault);
        }
    )*};
}

// The other two, `OldEpochAccepted` and `ReplayTakenTwice`, are found by one seed in some dozens at
// best: `integration/simulate 100 --planted` counts.
planted! {
    an_owner_that_does_not_look_at_its_lease_is_found: GrantWithoutLease;
    a_commit_whose_binds_are_not_checked_is_found: BindNotChecked;
    an_orphan_that_is_released_too_early_is_found: OrphanReleasedEarly;
    a_lost_wake_up_is_found: LostWakeUp;
    a_waiter_that_outlives_the_lease_is_found: WaiterNotFenced;
    a_second_owner_is_found: TwoOwners;
    a_victim_that_is_in_no_cycle_is_found: VictimOutsideCycle;
    a_token_that_is_used_twice_is_found: TokenUsedTwice;
}
