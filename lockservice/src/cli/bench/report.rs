//! The printed form of a run.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::cpu::ServerProcess;
use super::stats::{Figure, Figures, Spread};
use super::workload::Workload;
use crate::cli::output::aligned;

/// One run: a workload with so many callers, on every side.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) workload: Workload,
    pub(super) callers: u32,
    /// The duration of one turn of one side.
    pub(super) turn: Duration,
    /// Ours first.
    pub(super) sides: Vec<RunSide>,
}

/// The turns of one side.
#[derive(Debug)]
pub(super) struct RunSide {
    pub(super) name: &'static str,
    pub(super) server: ServerProcess,
    /// The turns of the rounds that every side has ended.
    pub(super) turns: Vec<Figures>,
}

impl Run {
    /// The number of rounds that every side has ended.
    pub(super) fn rounds(&self) -> usize {
        self.sides.iter().map(|side| side.turns.len()).min().unwrap_or_default()
    }

    /// One object for programs.
    pub(super) fn json(&self) -> String {
        let sides: Vec<Value> = self
            .sides
            .iter()
            .enumerate()
            .map(|(at, side)| {
                let mut object = spreads(&side.turns);
                object.insert("side".into(), side.name.into());
                if let ServerProcess::Unknown(why) = &side.server {
                    object.insert("server_cpu_unknown".into(), why.as_str().into());
                }
                if at > 0 {
                    object.insert("ratio".into(), spreads(&self.ratios(side)).into());
                }
                object.into()
            })
            .collect();
        json!({
            "workload": self.workload.name(),
            "callers": self.callers,
            "rounds": self.rounds(),
            "turn_s": self.turn.as_secs_f64(),
            "sides": sides,
        })
        .to_string()
    }

    /// A table for people, for each of the other sides.
    pub(super) fn text(&self) -> String {
        let Some((ours, others)) = self.sides.split_first() else { return String::new() };
        let mut text = format!(
            "{}, {}, {} of {:.2} s: median (lowest – highest)",
            self.workload.name(),
            counted(self.callers as usize, "caller"),
            counted(self.rounds(), "round"),
            self.turn.as_secs_f64(),
        );
        for other in others {
            let ratios = self.ratios(other);
            let mut rows = vec![["", ours.name, other.name, "ratio"].map(str::to_owned)];
            for figure in Figure::ALL {
                let shown = |turns: &[Figures], decimals| {
                    Spread::of(turns, figure).map_or("-".to_owned(), |spread| {
                        let [median, lowest, highest] =
                            [spread.median, spread.lowest, spread.highest]
                                .map(|value| format!("{value:.decimals$}"));
                        format!("{median} ({lowest} – {highest})")
                    })
                };
                rows.push([
                    figure.label().to_owned(),
                    shown(&ours.turns, figure.decimals()),
                    shown(&other.turns, figure.decimals()),
                    shown(&ratios, 2),
                ]);
            }
            let widths: Vec<usize> = (0..4)
                .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default())
                .collect();
            for row in &rows {
                text.push_str(&format!("\n  {}", aligned(row, &widths)));
            }
        }
        for side in &self.sides {
            if let ServerProcess::Unknown(why) = &side.server {
                text.push_str(&format!("\n  no server CPU of {}: {why}", side.name));
            }
        }
        text
    }

    /// Ours over `other`, round by round.
    fn ratios(&self, other: &RunSide) -> Vec<Figures> {
        let ours = self.sides.first().map_or(&[][..], |ours| &ours.turns);
        ours.iter().zip(&other.turns).map(|(ours, other)| ours.over(other)).collect()
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn spreads(turns: &[Figures]) -> Map<String, Value> {
    Figure::ALL
        .iter()
        .map(|figure| {
            let spread = Spread::of(turns, *figure).map_or(Value::Null, Spread::json);
            (figure.key().to_owned(), spread)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &'static str, micros: [u64; 2], server: ServerProcess) -> RunSide {
        let known = !matches!(server, ServerProcess::Unknown(_));
        let turn = |us| {
            let took = vec![Duration::from_micros(us)];
            let cpu = Duration::from_micros(us);
            Figures::new(took, Duration::from_micros(us), cpu, known.then_some(cpu))
        };
        RunSide { name, server, turns: micros.map(turn).into() }
    }

    fn run() -> Run {
        Run {
            workload: Workload::Hot,
            callers: 1,
            turn: Duration::from_millis(600),
            sides: vec![
                side("lockservice", [10, 30], ServerProcess::One(1)),
                side("other", [20, 120], ServerProcess::Unknown("it is far away".to_owned())),
            ],
        }
    }

    #[test]
    fn programs_get_both_sides_with_their_spread_and_the_ratio_of_each_round() {
        let object: Value = serde_json::from_str(&run().json()).unwrap();
        assert_eq!(object["workload"], "hot");
        assert_eq!(object["rounds"], 2);
        let [ours, other] = [0, 1].map(|at| &object["sides"][at]);
        assert_eq!(ours["side"], "lockservice");
        let spread = json!({ "median": 20.0, "lowest": 10.0, "highest": 30.0 });
        assert_eq!(ours["p50_us"], spread);
        assert_eq!(ours["server_cpu_us"], spread);
        assert_eq!(ours.get("ratio"), None);
        assert_eq!(other["server_cpu_us"], Value::Null);
        assert_eq!(other["server_cpu_unknown"], "it is far away");
        let ratio = json!({ "median": 0.375, "lowest": 0.25, "highest": 0.5 });
        assert_eq!(other["ratio"]["p50_us"], ratio);
        assert_eq!(other["ratio"]["server_cpu_us"], Value::Null);
    }

    #[test]
    fn people_get_a_table_for_each_other_side_and_learn_what_is_not_known() {
        let text = run().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "hot, 1 caller, 2 rounds of 0.60 s: median (lowest – highest)",
                "                 lockservice             other                 ratio",
                "  cycles/s       66667 (33333 – 100000)  29167 (8333 – 50000)  3.00 (2.00 – 4.00)",
                "  p50 µs         20.0 (10.0 – 30.0)      70.0 (20.0 – 120.0)   0.38 (0.25 – 0.50)",
            ],
            "{text}"
        );
        assert_eq!(lines.last(), Some(&"  no server CPU of other: it is far away"));
    }
}
