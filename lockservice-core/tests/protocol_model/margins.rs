//! The margins of `protocol.md` with their real numbers: clocks 1 % apart, and 100 ms.
//!
//! The other models have coarse clocks. Here promises of any length that is of use are laid on a
//! line of real time, with each clock as slow or as fast as is allowed. All of them begin at 0,
//! with the last renewal of a lease.

use std::time::Duration;

use lockservice_core::clock::{hi, lo};

const SLOW: f64 = 1.0;
const FAST: f64 = 1.01;
const RATES: [f64; 2] = [SLOW, FAST];

/// The real time, in seconds, that a clock of this rate takes for `duration`.
fn real(duration: Duration, rate: f64) -> f64 {
    duration.as_secs_f64() / rate
}

/// The rest of `whole` on a clock of this rate, at a real time.
fn rest(whole: Duration, at: f64, rate: f64) -> Duration {
    whole.saturating_sub(Duration::from_secs_f64(at * rate))
}

/// Moments of real time from 0 until `end`.
fn moments(end: f64) -> impl Iterator<Item = f64> {
    (0..=1_000).map(move |part| end * f64::from(part) / 1_000.0)
}

/// The real time at which the last client stops, of a node that renewed its lease at 0 and tells
/// its clients the rest of that (P1, P2).
fn clients_stop(ttl: Duration) -> f64 {
    let mut last: f64 = 0.0;
    for (node, client) in RATES.into_iter().flat_map(|node| RATES.map(|client| (node, client))) {
        let stops = |at| at + real(lo(rest(ttl, at, node)), client);
        last = moments(real(lo(ttl), node)).map(stops).fold(last, f64::max);
    }
    last
}

/// The real time at which the first owner lets go what a node held that renewed its lease at 0. The
/// allocator tells it the rest of `told` (R5).
fn owners_let_go(told: Duration) -> f64 {
    let mut first = f64::INFINITY;
    for (allocator, owner) in RATES.into_iter().flat_map(|it| RATES.map(|owner| (it, owner))) {
        let lets_go = |at| at + real(hi(rest(told, at, allocator)), owner);
        first = moments(real(told, allocator) * 1.1).map(lets_go).fold(first, f64::min);
    }
    first
}

/// Lengths of leases: a second to an hour.
fn ttls() -> impl Iterator<Item = Duration> {
    (10..36_000).step_by(7).map(|tenths| Duration::from_millis(tenths * 100))
}

#[test]
fn clients_stop_before_a_table_is_reassigned() {
    for ttl in ttls().step_by(10) {
        assert!(clients_stop(ttl) < real(hi(ttl), FAST), "{ttl:?}");
    }
}

#[test]
fn a_commit_lands_before_its_bind_is_reassigned_and_before_its_pin_ends() {
    for ttl in ttls().step_by(10) {
        for leader in RATES {
            for at in moments(real(ttl, leader)) {
                let window = rest(ttl, at, leader);
                let lands = at + real(lo(window), SLOW);
                assert!(lands < real(hi(ttl), leader), "{ttl:?} at {at}");
                assert!(lands < at + real(hi(window), leader), "{ttl:?} at {at}");
            }
        }
    }
}

#[test]
fn an_owner_that_is_told_the_rest_of_the_allocators_wait_lets_go_after_the_clients_have_stopped() {
    for ttl in ttls().step_by(10) {
        assert!(clients_stop(ttl) < owners_let_go(hi(ttl)), "{ttl:?}");
    }
}

/// Why R5 does not say so.
#[test]
fn an_owner_that_is_told_the_rest_of_a_lease_of_21_seconds_lets_go_too_early() {
    let secs = Duration::from_secs;
    assert!(clients_stop(secs(20)) < owners_let_go(secs(20)));
    assert!(clients_stop(secs(21)) > owners_let_go(secs(21)));
}
