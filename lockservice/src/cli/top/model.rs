//! [`Model`]: what `top` shows. Pure: time, keys and readings are arguments.

use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use lockservice_core::clock::Time;
use lockservice_core::service::{HotWindow, ServiceStats, Totals};
use lockservice_core::{Error, GroupName, Result, TableRef};

use super::rates::Rates;

/// The longest filter that is typed: a group, a slash and a table.
const FILTER_CHARS_MAX: usize = 2 * lockservice_core::NAME_BYTES_MAX + 1;

/// One of the lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pane {
    Hot,
    Waits,
    Sessions,
}

impl Pane {
    pub(super) const ALL: [Self; 3] = [Self::Hot, Self::Waits, Self::Sessions];

    /// The orders of its lines, the first one at the start.
    pub(super) const fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Hot => &["wait time", "waits", "longest", "waiting now"],
            Self::Waits => &["age", "key", "waiter"],
            Self::Sessions => &["part left", "time left", "transactions", "client"],
        }
    }

    fn after(self, steps: usize) -> Self {
        Self::ALL[(self as usize + steps) % Self::ALL.len()]
    }
}

/// What is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Query {
    pub(super) only: Option<TableRef>,
    pub(super) window: HotWindow,
}

/// What the loop does after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    GoOn,
    /// Drops the reading that is under way, if there is one.
    ReadAnew,
    /// Gives the terminal back and stops the process, as Ctrl-Z does elsewhere.
    Stop,
    Quit,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) server: String,
    pub(super) interval: Duration,
    /// The list that has most of the screen, and whose order is changed.
    pub(super) pane: Pane,
    /// The order of each list, as an index of [`Pane::orders`].
    orders: [usize; Pane::ALL.len()],
    pub(super) window: HotWindow,
    pub(super) only: Option<TableRef>,
    /// A filter that is being typed.
    pub(super) typed: Option<String>,
    /// Why the last filter was not taken.
    pub(super) refused: Option<String>,
    paused: bool,
    /// When the next reading begins.
    due: Time,
    /// What is shown is not what is wanted: it is read at once, even by a paused model.
    is_stale: bool,
    /// The last reading that succeeded.
    pub(super) last: Option<ServiceStats>,
    /// The rates up to `counted`; `None` if they are not known.
    pub(super) rates: Option<Rates>,
    /// The counts from which the next rates are, and their time.
    counted: Option<(Totals, Time)>,
    /// Set while readings fail.
    pub(super) failing: Option<Failing>,
}

/// Readings that fail.
#[derive(Debug)]
pub(super) struct Failing {
    pub(super) since: Time,
    /// The last reason.
    pub(super) why: Error,
}

impl Model {
    pub(super) fn new(server: &str, interval: Duration, only: Option<TableRef>) -> Self {
        Self {
            server: server.to_owned(),
            interval,
            pane: Pane::Hot,
            orders: [0; Pane::ALL.len()],
            window: HotWindow::TenMinutes,
            only,
            typed: None,
            refused: None,
            paused: false,
            due: Time::ZERO,
            is_stale: true,
            last: None,
            rates: None,
            counted: None,
            failing: None,
        }
    }

    pub(super) fn query(&self) -> Query {
        Query { only: self.only.clone(), window: self.window }
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    /// The time until the next reading begins, unless one is under way then; `None` if it waits
    /// for a key.
    pub(super) fn due_in(&self, now: Time) -> Option<Duration> {
        match (self.is_stale, self.paused) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => None,
            (false, false) => Some(self.due.remaining(now)),
        }
    }

    /// The order of a list.
    pub(super) fn order(&self, pane: Pane) -> &'static str {
        pane.orders()[self.orders[pane as usize]]
    }

    /// A reading begins.
    pub(super) fn begin_reading(&mut self, now: Time) {
        (self.due, self.is_stale) = (now + self.interval, false);
    }

    /// A reading has ended.
    pub(super) fn take_reading(&mut self, reading: Result<ServiceStats>, now: Time) {
        match reading {
            Ok(stats) => {
                self.count(stats.totals, now);
                (self.last, self.failing) = (Some(stats), None);
            }
            Err(why) => {
                let since = self.failing.as_ref().map_or(now, |failing| failing.since);
                self.failing = Some(Failing { since, why });
            }
        }
    }

    /// Takes the counts of a reading. One that a key has brought forward is left out: a rate over
    /// a moment says little.
    fn count(&mut self, totals: Totals, now: Time) {
        let (before, at) = match self.counted {
            Some((_, at)) if now.since(at) < self.interval / 2 => return,
            Some(counted) => counted,
            None => (totals, now),
        };
        self.rates = Rates::between(&before, &totals, now.since(at));
        self.counted = Some((totals, now));
    }

    /// Something was done at the terminal.
    pub(super) fn take_event(&mut self, event: &Event) -> Next {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.take_key(key),
            // A new size is seen when the model is drawn.
            _ => Next::GoOn,
        }
    }

    fn take_key(&mut self, key: &KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::Quit,
                KeyCode::Char('z') => Next::Stop,
                _ => Next::GoOn,
            };
        }
        self.refused = None;
        if self.typed.is_some() {
            return self.type_in(key.code);
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Tab | KeyCode::Right => self.pane = self.pane.after(1),
            KeyCode::BackTab | KeyCode::Left => self.pane = self.pane.after(2),
            KeyCode::Char('1') => self.pane = Pane::Hot,
            KeyCode::Char('2') => self.pane = Pane::Waits,
            KeyCode::Char('3') => self.pane = Pane::Sessions,
            KeyCode::Char('s') => {
                let order = &mut self.orders[self.pane as usize];
                *order = (*order + 1) % self.pane.orders().len();
            }
            KeyCode::Char('w') => {
                self.window = match self.window {
                    HotWindow::TenMinutes => HotWindow::Minute,
                    _ => HotWindow::TenMinutes,
                };
                return self.read_anew();
            }
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return if self.paused { Next::ReadAnew } else { self.read_anew() };
            }
            KeyCode::Char('/') => {
                let table = self.only.as_ref().map(ToString::to_string);
                self.typed = Some(table.unwrap_or_default());
            }
            _ => {}
        }
        Next::GoOn
    }

    fn type_in(&mut self, key: KeyCode) -> Next {
        let Some(mut typed) = self.typed.take() else { return Next::GoOn };
        match key {
            KeyCode::Esc => return Next::GoOn,
            KeyCode::Enter => match filter(&typed) {
                Ok(only) => {
                    self.only = only;
                    return self.read_anew();
                }
                Err(why) => self.refused = Some(why.message().to_owned()),
            },
            KeyCode::Backspace => drop(typed.pop()),
            KeyCode::Char(c) if typed.chars().count() < FILTER_CHARS_MAX => typed.push(c),
            _ => {}
        }
        self.typed = Some(typed);
        Next::GoOn
    }

    fn read_anew(&mut self) -> Next {
        self.is_stale = true;
        Next::ReadAnew
    }
}

/// The table that was typed: TABLE, or GROUP/TABLE; `None` for all.
fn filter(typed: &str) -> Result<Option<TableRef>> {
    match typed.split_once('/') {
        _ if typed.is_empty() => Ok(None),
        Some((group, table)) => TableRef::new(group, table).map(Some),
        None => TableRef::new(GroupName::default().as_str(), typed).map(Some),
    }
}
