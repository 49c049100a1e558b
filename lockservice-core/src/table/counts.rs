//! What the engine counts, for metrics: plain numbers under the mutexes that are held anyway.

use super::call::Stage;
use super::engine::LockEngine;
use super::state::EngineState;
use super::uncontended::TablePlace;
use crate::clock::Clock;
use crate::key::LockMode;
use crate::metrics::Lengths;

/// The number of rows and ranges that were newly locked, or upgraded, by mode.
pub(super) type Granted = [u64; LockMode::ALL.len()];

/// Adds what was granted elsewhere.
pub(super) fn add(sum: &mut Granted, granted: Granted) {
    sum.iter_mut().zip(granted).for_each(|(sum, granted)| *sum += granted);
}

/// What has happened in an engine since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineCounts {
    pub(crate) granted: Granted,
    /// The cycles that were resolved by a failure.
    pub(crate) deadlocks: Lengths,
}

/// The present state of an engine.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
pub(crate) struct EngineGauges {
    pub(crate) tables: usize,
    pub(crate) held: usize,
    pub(crate) waiting: usize,
    pub(crate) bytes: usize,
}

#[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
impl LockEngine {
    /// What has happened since this was last called, and the present state.
    ///
    /// It takes the mutex of the state once, for a few words, and then that of each shard, one
    /// after the other: grants go on meanwhile. A row that moves between a shard and the state
    /// while this runs may count as held twice, or not at all.
    pub(crate) fn take_counts(&self) -> (EngineCounts, EngineGauges) {
        let (mut counts, mut gauges) = {
            let mut state = self.state().lock();
            let gauges = EngineGauges {
                tables: state.tables.len(),
                held: state.held,
                waiting: state.waiting_calls,
                bytes: state.bytes,
            };
            (std::mem::take(&mut state.counts), gauges)
        };
        for rows in (0..).map_while(|place| self.places().find(TablePlace(place))) {
            let (held, granted) = rows.take_counts();
            gauges.held += held;
            add(&mut counts.granted, granted);
        }
        (counts, gauges)
    }
}

impl EngineState {
    /// Notes when the calls were granted that were granted in this hold of the mutex while a task
    /// waited for them. Without a `clock` that is not noted.
    pub(super) fn note_made_at(&mut self, clock: Option<&dyn Clock>) {
        if self.handed_over.is_empty() {
            return;
        }
        let ids = std::mem::take(&mut self.handed_over);
        let Some(now) = clock.map(Clock::now) else { return };
        for id in ids {
            // It may be gone already.
            if let Some(call) = self.calls.get_mut(id)
                && let Stage::Done(Ok(grant)) = &mut call.stage
            {
                grant.owner.made_at = Some(now);
            }
        }
    }
}
