//! The actions of the commands under a lock, in their order.

use std::path::{Path, PathBuf};

/// A file to which every command appends one line for everything it does, `NAME DOES TOKEN`. The
/// kernel puts the lines in order.
#[derive(Debug)]
pub struct Timeline(PathBuf);

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The holder of the command.
    pub name: String,
    /// `begins`, `works`, `ends` or `overlaps`.
    pub does: String,
    /// Under which token.
    pub token: u64,
}

impl Timeline {
    /// A timeline in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self(directory.join("timeline"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Everything so far.
    ///
    /// # Panics
    /// If a line is not one of ours.
    pub fn events(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                match (
                    words.next(),
                    words.next(),
                    words.next().and_then(|token| token.parse().ok()),
                ) {
                    (Some(name), Some(does), Some(token)) => Event { name, does, token },
                    _ => panic!("not a line of a timeline: {line:?}"),
                }
            })
            .collect()
    }

    /// Checks that no command ran beside another, in the order of their tokens (F1, B3, P2), and
    /// that exactly `names` ran, in this order.
    ///
    /// # Panics
    /// If that is not so.
    pub fn check(&self, names: &[&str]) {
        let events = self.events();
        let overlap = events.iter().find(|event| event.does == "overlaps");
        assert_eq!(overlap, None, "a command began while the one before it still ran: {events:?}");
        let mut turns: Vec<(&str, u64)> =
            events.iter().map(|event| (event.name.as_str(), event.token)).collect();
        turns.dedup();
        let ran: Vec<&str> = turns.iter().map(|(name, _)| *name).collect();
        assert_eq!(ran, names, "each command runs once, and is over before the next begins");
        assert!(
            turns.is_sorted_by(|(_, first), (_, second)| first < second),
            "tokens grow: {turns:?}"
        );
    }
}
