//! The figures of a turn, and of several. Pure.

use std::time::Duration;

use serde_json::{Value, json};

/// The figures of one turn of one side.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Figures([Option<f64>; Figure::ALL.len()]);

/// One kind of figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Figure {
    /// Cycles a second, of all callers together.
    Cycles,
    /// The median duration of a cycle, in microseconds.
    P50,
    /// The 99th percentile of the duration of a cycle, in microseconds.
    P99,
    /// CPU time of this process for one cycle, in microseconds.
    ClientCpu,
    /// CPU time of the server for one cycle, in microseconds; not always known.
    ServerCpu,
}

impl Figure {
    pub(super) const ALL: [Self; 5] =
        [Self::Cycles, Self::P50, Self::P99, Self::ClientCpu, Self::ServerCpu];

    /// Its name for programs.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Cycles => "cycles_per_s",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::ClientCpu => "client_cpu_us",
            Self::ServerCpu => "server_cpu_us",
        }
    }

    /// Its name for people.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Cycles => "cycles/s",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::ClientCpu => "client CPU µs",
            Self::ServerCpu => "server CPU µs",
        }
    }

    /// The number of significant digits behind the point.
    pub(super) fn decimals(self) -> usize {
        match self {
            Self::Cycles => 0,
            _ => 1,
        }
    }
}

impl Figures {
    /// Computes the figures from the duration of each cycle, of which there is at least one, and
    /// the totals.
    pub(super) fn new(
        mut took: Vec<Duration>,
        elapsed: Duration,
        client_cpu: Duration,
        server_cpu: Option<Duration>,
    ) -> Self {
        took.sort_unstable();
        let at = |percent: usize| {
            took.get(took.len().saturating_sub(1) * percent / 100).map(|took| micros(*took))
        };
        let cycles = took.len() as f64;
        Self(Figure::ALL.map(|figure| match figure {
            Figure::Cycles => Some(cycles / elapsed.as_secs_f64()),
            Figure::P50 => at(50),
            Figure::P99 => at(99),
            Figure::ClientCpu => Some(micros(client_cpu) / cycles),
            Figure::ServerCpu => server_cpu.map(|cpu| micros(cpu) / cycles),
        }))
    }

    /// One of them, if it is known.
    pub(super) fn of(&self, figure: Figure) -> Option<f64> {
        self.0[figure as usize]
    }

    /// These figures as multiples of those of `other`.
    pub(super) fn over(&self, other: &Self) -> Self {
        Self(Figure::ALL.map(|figure| {
            // A server that took less than a tick has no ratio.
            let other = other.of(figure).filter(|value| *value > 0.0)?;
            Some(self.of(figure)? / other)
        }))
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// One figure of several turns.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    /// `None` if the figure is unknown for some turn, or if there was no turn.
    pub(super) fn of(turns: &[Figures], figure: Figure) -> Option<Self> {
        let mut values: Vec<f64> =
            turns.iter().map(|turn| turn.of(figure)).collect::<Option<_>>()?;
        values.sort_unstable_by(f64::total_cmp);
        let middle = [values.get(values.len().saturating_sub(1) / 2)?, &values[values.len() / 2]];
        Some(Self {
            median: f64::midpoint(*middle[0], *middle[1]),
            lowest: values[0],
            highest: values[values.len() - 1],
        })
    }

    /// For programs.
    pub(super) fn json(self) -> Value {
        json!({ "median": self.median, "lowest": self.lowest, "highest": self.highest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(micros: &[u64], elapsed_ms: u64, cpu_us: u64, server_us: Option<u64>) -> Figures {
        Figures::new(
            micros.iter().map(|us| Duration::from_micros(*us)).collect(),
            Duration::from_millis(elapsed_ms),
            Duration::from_micros(cpu_us),
            server_us.map(Duration::from_micros),
        )
    }

    #[test]
    fn the_figures_of_a_turn_are_those_of_its_cycles() {
        let figures = turn(&[30, 10, 20, 1_000], 2, 40, Some(8));
        let found = Figure::ALL.map(|figure| figures.of(figure).unwrap());
        assert_eq!(found, [2_000.0, 20.0, 30.0, 10.0, 2.0]);
        assert_eq!(turn(&[1], 1, 1, None).of(Figure::ServerCpu), None);
    }

    #[test]
    fn a_spread_is_the_median_and_both_ends_and_nothing_if_a_turn_is_not_known() {
        let turns = [40, 10, 20, 30].map(|us| turn(&[us], 1, 1, Some(1)));
        let found = Spread::of(&turns, Figure::P50).unwrap();
        assert_eq!(found, Spread { median: 25.0, lowest: 10.0, highest: 40.0 });
        assert_eq!(Spread::of(&turns[..3], Figure::P50).unwrap().median, 20.0);
        assert_eq!(Spread::of(&[], Figure::P50), None);
        let one_unknown = [turns[0], turn(&[1], 1, 1, None)];
        assert_eq!(Spread::of(&one_unknown, Figure::ServerCpu), None);
    }

    #[test]
    fn a_ratio_is_ours_over_theirs_and_none_where_one_is_missing() {
        let (ours, theirs) = (turn(&[10], 1, 6, Some(8)), turn(&[40], 2, 3, Some(0)));
        let ratio = ours.over(&theirs);
        assert_eq!(
            Figure::ALL.map(|figure| ratio.of(figure)),
            [Some(2.0), Some(0.25), Some(0.25), Some(2.0), None]
        );
    }
}
