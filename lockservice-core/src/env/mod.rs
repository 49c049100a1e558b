//! [`Env`]: everything that a node takes from the world beside its store and its peers. That is
//! time, randomness, tasks and timers.
//!
//! | effect | real | simulated |
//! |---|---|---|
//! | [`now`](Env::now) | the [`Clock`] that was given | that clock, at the node's [`ClockRate`] |
//! | [`sleep`](Env::sleep), [`timeout`](Env::timeout) | tokio's timers | tokio's timers, at that rate |
//! | [`spawn`](Env::spawn) | a tokio task | a tokio task |
//! | [`spawn_blocking`](Env::spawn_blocking) | a thread of its own | a tokio task |
//! | [`random_u64`](Env::random_u64) and its like | the operating system's | drawn from a seed |
//!
//! A simulation runs on one thread under tokio's paused clock. Then the order of tasks and timers
//! is determined, and a run is repeated by its seed. Real and simulated nodes run the same code:
//! the lint `clippy::disallowed_methods` forbids every other way to these effects in this crate.
//!
//! Timers only wake. A reading of the clock decides whether a promise is over.
//!
//! Under `--cfg shuttle` tasks and timers are those of a model: see `model.rs`.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Env`], and the rate of its clock |
//! | `process.rs` | [`Process`]: the life of a simulated process |
//! | `model.rs` | tasks and timers for shuttle, in place of tokio's |
//!
//! ```
//! # use lockservice_core::clock::SystemClock;
//! # use lockservice_core::env::{ClockRate, Env};
//! # use std::sync::Arc;
//! let draw = |seed| Env::simulated(Arc::new(SystemClock), seed, ClockRate::EXACT).random_u64();
//! assert_eq!(draw(7), draw(7));
//! assert_ne!(draw(7), draw(8));
//! ```

// This module is the one way to the effects that the lint forbids.
#![allow(clippy::disallowed_methods, reason = "every effect of this crate is called here")]

#[cfg(shuttle)]
mod model;
#[cfg(not(any(loom, shuttle)))]
mod process;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
#[cfg(not(shuttle))]
use tokio::time::{Sleep, Timeout};

use crate::clock::{Clock, SystemClock, Time};
use crate::sync::Mutex;

#[cfg(not(any(loom, shuttle)))]
pub use self::process::Process;

#[cfg(shuttle)]
pub(crate) use self::model::{AbortHandle, Handle, JoinHandle, JoinSet};
#[cfg(not(shuttle))]
#[cfg_attr(loom, allow(unused_imports, reason = "the service is not built for loom"))]
pub(crate) use tokio::runtime::Handle;
#[cfg(not(shuttle))]
#[cfg_attr(loom, allow(unused_imports, reason = "the service is not built for loom"))]
pub(crate) use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Ids are below this bound, so that languages whose numbers are doubles can hold them.
#[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
const ID_END: u64 = 1 << 53;

/// The effects of one node. Cheap to clone; clones share clock and randomness.
///
/// Every constructor of this crate that needs effects takes `impl Into<Env>`. An
/// `Arc<dyn Clock>`, or an `Arc` of any clock, becomes a real environment with that clock.
#[derive(Debug, Clone)]
pub struct Env {
    clock: Arc<dyn Clock>,
    /// `None` for a real environment.
    simulation: Option<Arc<Simulation>>,
    #[cfg(shuttle)]
    timers: model::Timers,
}

#[derive(Debug)]
struct Simulation {
    /// Locked for one draw, together with nothing.
    random: Mutex<StdRng>,
    #[cfg_attr(shuttle, allow(dead_code, reason = "the timers of a model follow its clock"))]
    rate: ClockRate,
    #[cfg(not(any(loom, shuttle)))]
    process: Process,
}

impl Env {
    /// A real environment with the clock of this machine.
    pub fn system() -> Self {
        Self::real(Arc::new(SystemClock))
    }

    /// A real environment with a clock of the caller's choice.
    pub fn real(clock: Arc<dyn Clock>) -> Self {
        Self::new(clock, None)
    }

    /// The environment of one simulated node: randomness is drawn from `seed`, and clock and timers
    /// run at `rate`.
    ///
    /// `clock` is the exact time of the simulation, the same for all nodes. It must follow tokio's
    /// paused clock, or the timers do not agree with it.
    pub fn simulated(clock: Arc<dyn Clock>, seed: u64, rate: ClockRate) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        let clock = match rate {
            ClockRate::EXACT => clock,
            rate => Arc::new(SkewedClock { exact: clock, rate }),
        };
        Self::new(
            clock,
            Some(Arc::new(Simulation {
                random,
                rate,
                #[cfg(not(any(loom, shuttle)))]
                process: Process::default(),
            })),
        )
    }

    /// The process of a simulated node: everything that is spawned through this environment.
    /// `None` for a real one.
    #[cfg(not(any(loom, shuttle)))]
    pub fn process(&self) -> Option<&Process> {
        self.simulation.as_deref().map(|simulation| &simulation.process)
    }

    fn new(clock: Arc<dyn Clock>, simulation: Option<Arc<Simulation>>) -> Self {
        Self {
            clock,
            simulation,
            #[cfg(shuttle)]
            timers: model::Timers::default(),
        }
    }

    /// The clock of the node.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The time now, by the clock of the node.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// A random number.
    pub fn random_u64(&self) -> u64 {
        match &self.simulation {
            None => rand::random(),
            Some(simulation) => simulation.random.lock().random(),
        }
    }

    /// A random number that serves as an id: at least 1 and below 2^53.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn random_id(&self) -> u64 {
        match &self.simulation {
            None => rand::random_range(1..ID_END),
            Some(simulation) => simulation.random.lock().random_range(1..ID_END),
        }
    }

    /// Random bytes, good enough for a secret unless they are simulated.
    pub(crate) fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match &self.simulation {
            None => rand::rng().fill_bytes(&mut bytes),
            Some(simulation) => simulation.random.lock().fill_bytes(&mut bytes),
        }
        bytes
    }

    /// Runs a task. It goes on if the handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        #[cfg(not(any(loom, shuttle)))]
        if let Some(process) = self.process() {
            let handle = tokio::spawn(process.own(task));
            process.keep(handle.abort_handle());
            return handle;
        }
        #[cfg(not(shuttle))]
        return tokio::spawn(task);
        #[cfg(shuttle)]
        return model::spawn(task);
    }

    /// Runs a task that ends when `set` is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn spawn_in<T: Send + 'static>(
        &self,
        set: &mut JoinSet<T>,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        #[cfg(not(any(loom, shuttle)))]
        if let Some(process) = self.process() {
            process.keep(set.spawn(process.own(task)));
            return;
        }
        set.spawn(task);
    }

    /// Runs work that would hold a thread of the runtime up. A simulation has one thread, which
    /// does it as a task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match &self.simulation {
            #[cfg(not(shuttle))]
            None => tokio::task::spawn_blocking(work),
            _ => self.spawn(async move { work() }),
        }
    }

    /// Wakes after `duration` by the timers of the node. It decides nothing: read the clock.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped sleep has no effect.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    #[cfg(not(shuttle))]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        tokio::time::sleep(self.exact(duration))
    }

    /// Polls `future` until it is ready or a timer of `duration` has fired. A future that is ready
    /// counts, also after that.
    ///
    /// # Errors
    /// `Elapsed` if the timer fired first; the future is dropped.
    ///
    /// # Cancel safety
    /// As cancel safe as `future`.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    #[cfg(not(shuttle))]
    pub fn timeout<F: Future>(&self, duration: Duration, future: F) -> Timeout<F> {
        tokio::time::timeout(self.exact(duration), future)
    }

    /// The time of a node's timer by an exact clock.
    #[cfg(not(shuttle))]
    fn exact(&self, duration: Duration) -> Duration {
        match &self.simulation {
            None => duration,
            Some(simulation) => simulation.rate.exact(duration),
        }
    }
}

impl From<Arc<dyn Clock>> for Env {
    fn from(clock: Arc<dyn Clock>) -> Self {
        Self::real(clock)
    }
}

impl<C: Clock> From<Arc<C>> for Env {
    fn from(clock: Arc<C>) -> Self {
        Self::real(clock)
    }
}

/// The rate of a node's clock and timers: its time per exact time, in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockRate {
    parts: u32,
}

/// A clock that keeps exact time passes this many parts in as many parts of exact time.
const PARTS: u32 = 1_000_000;

impl ClockRate {
    /// The rate of an exact clock.
    pub const EXACT: Self = Self { parts: PARTS };

    /// Faster by this many parts in a million, or slower if negative. A rate that no clock has is
    /// taken as the nearest one that counts: at least one part.
    pub const fn faster_by_ppm(ppm: i32) -> Self {
        let parts = PARTS as i64 + ppm as i64;
        Self { parts: if parts < 1 { 1 } else { parts as u32 } }
    }

    /// The time that the clock of the node shows when so much exact time has passed.
    fn shown(self, exact: Duration) -> Duration {
        scaled(exact, self.parts, PARTS)
    }

    /// The exact time after which the clock of the node shows so much.
    #[cfg_attr(shuttle, allow(dead_code, reason = "the timers of a model follow its clock"))]
    fn exact(self, shown: Duration) -> Duration {
        scaled(shown, PARTS, self.parts)
    }
}

/// `duration * multiply / divide`; saturates.
fn scaled(duration: Duration, multiply: u32, divide: u32) -> Duration {
    if multiply == divide {
        return duration;
    }
    // At most 2^94 nanoseconds times 2^32.
    let nanos = duration.as_nanos() * u128::from(multiply) / u128::from(divide);
    let seconds = nanos / 1_000_000_000;
    match u64::try_from(seconds) {
        Ok(seconds) => Duration::new(seconds, (nanos % 1_000_000_000) as u32),
        Err(_) => Duration::MAX,
    }
}

/// The clock of a simulated node whose time passes at another rate.
#[derive(Debug)]
struct SkewedClock {
    exact: Arc<dyn Clock>,
    rate: ClockRate,
}

impl Clock for SkewedClock {
    fn now(&self) -> Time {
        Time::from_origin(self.rate.shown(self.exact.now().since_origin()))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::testing::TokioClock;

    fn drawn(env: &Env) -> (u64, u64, [u8; 32], u64) {
        (env.random_u64(), env.random_id(), env.random_bytes(), env.clone().random_u64())
    }

    #[test]
    fn two_runs_of_one_seed_draw_the_same_and_other_seeds_draw_others() {
        let run = |seed| {
            drawn(&Env::simulated(Arc::new(SystemClock), seed, ClockRate::faster_by_ppm(-500)))
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_ne!(drawn(&Env::system()), drawn(&Env::system()));
    }

    #[tokio::test(start_paused = true)]
    async fn timers_and_clock_of_a_skewed_node_run_early_or_late_by_its_rate() {
        let exact = TokioClock::new();
        for (ppm, expected_ms) in [(0, 100_000), (10_000, 99_010), (-10_000, 101_011)] {
            let env = Env::simulated(Arc::new(exact), 1, ClockRate::faster_by_ppm(ppm));
            let (began, shown) = (exact.now(), env.now());
            env.sleep(Duration::from_secs(100)).await;
            let took = exact.now().since(began);
            assert_eq!(took.as_millis(), expected_ms, "{ppm} ppm");
            let drift = env.now().since(shown).abs_diff(Duration::from_secs(100));
            assert!(drift < Duration::from_millis(2), "{ppm} ppm: {drift:?}");

            let began = exact.now();
            let never = std::future::pending::<()>();
            env.timeout(Duration::from_secs(100), never).await.expect_err("it is never ready");
            assert_eq!(exact.now().since(began), took);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_and_a_set_of_a_node_run_to_their_end() {
        for env in [Env::system(), Env::simulated(Arc::new(SystemClock), 1, ClockRate::EXACT)] {
            assert_eq!(env.spawn(async { 1 }).await.expect("it ends"), 1);
            assert_eq!(env.spawn_blocking(|| 2).await.expect("it ends"), 2);
            let mut set = JoinSet::new();
            env.spawn_in(&mut set, async { 3 });
            assert_eq!(set.join_all().await, [3]);
        }
    }

    #[test]
    fn rates_saturate_at_both_ends() {
        let slowest = ClockRate::faster_by_ppm(i32::MIN);
        assert_eq!(slowest.exact(Duration::MAX), Duration::MAX);
        assert_eq!(slowest.shown(Duration::from_secs(1)), Duration::from_micros(1));
        let fastest = ClockRate::faster_by_ppm(i32::MAX);
        assert_eq!(fastest.shown(Duration::MAX), Duration::MAX);
        assert_eq!(fastest.exact(Duration::from_secs(2_148)).as_millis(), 999);
    }
}
