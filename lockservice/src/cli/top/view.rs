//! The picture of a model: what a node does, and its lists. Pure.

use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::service::{HotWindow, ServiceStats};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::model::{Model, Pane};
use super::panes;
use super::rates::Rates;
use crate::cli::output::printable;

/// The least height of the lists in which all three of them have room.
const THREE_LISTS_MIN: u16 = 15;

/// Draws a model at the time `now`.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, now: Time) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(5), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(model, now)), head);
    frame.render_widget(Paragraph::new(foot_line(model)), foot);
    if let Some(stats) = &model.last {
        let areas = list_areas(body, model.pane);
        for (pane, area) in Pane::ALL.into_iter().zip(areas) {
            panes::draw(frame, area, model, pane, stats);
        }
    }
}

/// The chosen list has half of the room, or all if there is little.
fn list_areas(body: Rect, chosen: Pane) -> [Rect; Pane::ALL.len()] {
    let others = if body.height < THREE_LISTS_MIN { 0 } else { 1 };
    let share = |pane| Constraint::Fill(if pane == chosen { 2 } else { others });
    Layout::vertical(Pane::ALL.map(share)).areas(body)
}

fn head_lines(model: &Model, now: Time) -> Vec<Line<'static>> {
    let server = printable(&model.server).into_owned();
    let Some(stats) = &model.last else {
        return vec![format!("{server}: reading").into(), state_line(model, now)];
    };
    let serves = match stats.gauges.serves {
        true => format!("serves, lease {}", short(stats.gauges.lease_left)).into(),
        false => Span::from("does not grant locks").reversed(),
    };
    let node = printable(stats.node.as_str()).into_owned();
    vec![
        Line::from(vec![Span::from(node).bold(), format!(" at {server}  ").into(), serves]),
        use_line(stats),
        rates_line(model.rates.as_ref()),
        totals_line(stats),
        state_line(model, now),
    ]
}

fn use_line(stats: &ServiceStats) -> Line<'static> {
    let gauges = &stats.gauges;
    let of = |used: usize, most: usize| format!("{used} of {most}");
    let mib = |bytes: usize| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    fields([
        ("sessions", of(gauges.sessions, gauges.sessions_max)),
        ("locks", gauges.held.to_string()),
        ("waiting", of(gauges.waiting, gauges.waiting_max)),
        ("transactions", gauges.txns.to_string()),
        ("tables", gauges.tables.to_string()),
        ("memory", format!("{} of {} MiB", mib(gauges.lock_bytes), mib(gauges.lock_bytes_max))),
    ])
}

fn rates_line(rates: Option<&Rates>) -> Line<'static> {
    let rate = |of: fn(&Rates) -> f64| rates.map_or("-".to_owned(), |rates| number(of(rates)));
    fields([
        ("grants/s", rate(|rates| rates.granted)),
        ("waits/s", rate(|rates| rates.waits)),
        ("waited s/s", rate(|rates| rates.waited)),
        ("refused/s", rate(|rates| rates.refused)),
        ("deadlocks/s", rate(|rates| rates.deadlocks)),
    ])
}

fn totals_line(stats: &ServiceStats) -> Line<'static> {
    let totals = &stats.totals;
    fields([
        ("since the start: grants", totals.granted.to_string()),
        ("waits", totals.waits.to_string()),
        ("deadlocks", totals.deadlocks.to_string()),
        ("sessions lost", totals.sessions_lost.to_string()),
        ("leases lost", totals.leases_lost.to_string()),
    ])
}

/// The reason why what is shown is not of now, or not of everything.
fn state_line(model: &Model, now: Time) -> Line<'static> {
    if let Some(failing) = &model.failing {
        let why = failing.why.to_string();
        let time = short(now.since(failing.since));
        let text = format!("no response for {time}, trying again: {}", printable(&why));
        return Line::from(Span::from(text).reversed());
    }
    let table = model.only.as_ref().map(|table| format!("keys and waits of {table}  "));
    let paused = model.is_paused().then_some("paused");
    let text = format!("{}{}", table.unwrap_or_default(), paused.unwrap_or_default());
    Line::from(printable(&text).into_owned()).bold()
}

fn foot_line(model: &Model) -> Line<'static> {
    if let Some(typed) = &model.typed {
        let why = model.refused.as_ref().map(|why| format!("  {why}")).unwrap_or_default();
        let text = format!("table, or group/table; empty for all: {typed}_{why}");
        return Line::from(printable(&text).into_owned());
    }
    let window = match model.window {
        HotWindow::Minute => "w ten minutes",
        _ => "w one minute",
    };
    let pause = if model.is_paused() { "p go on" } else { "p pause" };
    format!("q quit  Tab/1/2/3 list  s order  {window}  / table  {pause}").into()
}

/// Names and values.
fn fields<const N: usize>(fields: [(&'static str, String); N]) -> Line<'static> {
    let spans = fields.into_iter().flat_map(|(name, value)| {
        [Span::styled(format!("{name} "), Style::new().dim()), format!("{value}  ").into()]
    });
    Line::from(spans.collect::<Vec<_>>())
}

/// A number with as many digits as it is worth.
fn number(of: f64) -> String {
    if of >= 100.0 { format!("{of:.0}") } else { format!("{of:.1}") }
}

/// A time in its largest unit, and the next one if the first is small.
pub(super) fn short(time: Duration) -> String {
    let (micros, seconds) = (time.as_micros(), time.as_secs());
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..60_000_000 => format!("{:.1} s", time.as_secs_f64()),
        60_000_000..3_600_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}
