//! The lists: hottest keys, longest waits, sessions nearest to a loss. Pure.

use std::cmp::Reverse;

use lockservice_core::service::{
    HotKey, HotWindow, LongWait, ServiceStats, SessionStatus, WaitsFor,
};
use lockservice_core::{LockItem, TableRef};
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Row, Table};

use super::model::{Model, Pane};
use super::view::short;
use crate::cli::output::printable;

/// Draws a list.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    pane: Pane,
    stats: &ServiceStats,
) {
    let order = model.order(pane);
    let (what, table) = match pane {
        Pane::Hot => (hot_title(model.window), hot(&stats.hot, model.window, order)),
        Pane::Waits => ("2 longest waits", waits(&stats.longest_waits, order)),
        Pane::Sessions => ("3 sessions nearest to a loss", sessions(&stats.nearest_to_loss, order)),
    };
    let title = Line::from(format!(" {what}, by {order} "));
    let title = if pane == model.pane { title.reversed() } else { title };
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(table.column_spacing(1).block(block), area);
}

const fn hot_title(window: HotWindow) -> &'static str {
    match window {
        HotWindow::Minute => "1 hottest keys of the last minute",
        _ => "1 hottest keys of the last ten minutes",
    }
}

fn hot(keys: &[HotKey], window: HotWindow, order: &str) -> Table<'static> {
    let mut keys: Vec<&HotKey> = keys.iter().collect();
    // Sorted by the server; the sort is stable.
    match order {
        "waits" => keys.sort_by_key(|key| Reverse(key.counts(window).waits)),
        "longest" => keys.sort_by_key(|key| Reverse(key.counts(window).longest)),
        "waiting now" => keys.sort_by_key(|key| Reverse(key.waiting)),
        _ => {}
    }
    let rows = keys.into_iter().map(|key| {
        let counts = key.counts(window);
        // The truth may be more.
        let least = if counts.missed.is_zero() { "" } else { "≥" };
        Row::new([
            table_name(&key.table),
            item(&key.item),
            format!("{least}{}", counts.waits),
            format!("{least}{}", short(counts.waited)),
            short(counts.longest),
            short(key.last),
            key.waiting.to_string(),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(2),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(5),
    ];
    let names = ["TABLE", "KEY", "WAITS", "WAITED", "LONGEST", "LAST AGO", "NOW"];
    Table::new(rows, widths).header(Row::new(names).style(Style::new().bold()))
}

fn waits(waits: &[LongWait], order: &str) -> Table<'static> {
    let mut waits: Vec<&LongWait> = waits.iter().collect();
    match order {
        "key" => waits.sort_by_key(|wait| (wait.table.clone(), item(&wait.item))),
        "waiter" => waits.sort_by_key(|wait| who(&wait.client, &wait.label, wait.txn)),
        _ => {}
    }
    let rows = waits.into_iter().map(|wait| {
        Row::new([
            short(wait.waiting),
            who(&wait.client, &wait.label, wait.txn),
            table_name(&wait.table),
            item(&wait.item),
            wait.mode.to_string(),
            obstacle(wait.waits_for.as_ref()),
        ])
    });
    let widths = [
        Constraint::Length(11),
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Fill(3),
    ];
    let names = ["FOR", "WAITER", "TABLE", "KEY", "MODE", "WAITS FOR"];
    Table::new(rows, widths).header(Row::new(names).style(Style::new().bold()))
}

fn sessions(sessions: &[SessionStatus], order: &str) -> Table<'static> {
    let mut sessions: Vec<&SessionStatus> = sessions.iter().collect();
    match order {
        "time left" => sessions.sort_by_key(|session| session.left),
        "transactions" => sessions.sort_by_key(|session| Reverse(session.txns)),
        "client" => sessions.sort_by(|a, b| a.client.cmp(&b.client)),
        _ => {}
    }
    let rows = sessions.into_iter().map(|session| {
        let part = 100.0 * session.left.as_secs_f64() / session.ttl.as_secs_f64().max(1e-3);
        Row::new([
            session.handle.to_string(),
            printable(&session.client).into_owned(),
            printable(&session.opened_by.address).into_owned(),
            short(session.left),
            // A server keeps a session a little longer than it promises.
            format!("{:.0} %", part.min(100.0)),
            session.txns.to_string(),
            session.waiting.to_string(),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(11),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(7),
    ];
    let names = ["SESSION", "CLIENT", "ADDRESS", "LEFT", "PART", "TXNS", "WAITING"];
    Table::new(rows, widths).header(Row::new(names).style(Style::new().bold()))
}

fn obstacle(waits_for: Option<&WaitsFor>) -> String {
    match waits_for {
        Some(WaitsFor::Txn(blocker)) => {
            let how = if blocker.granted { "holder" } else { "waiter" };
            format!("{how} {}", who(&blocker.client, &blocker.label, blocker.txn))
        }
        Some(WaitsFor::Table { last_owner: Some((_, node)) }) => {
            format!("the table, last of node {}", printable(node.as_str()))
        }
        Some(WaitsFor::Table { last_owner: None }) => "the table to be bound".to_owned(),
        Some(WaitsFor::Token) => "a fencing token".to_owned(),
        _ => "-".to_owned(),
    }
}

/// A transaction as operators know it.
fn who(client: &str, label: &str, txn: lockservice_core::TxnId) -> String {
    let name = match (client, label) {
        ("", "") => txn.to_string(),
        ("", label) => label.to_owned(),
        (client, "") => client.to_owned(),
        (client, label) => format!("{client} {label}"),
    };
    printable(&name).into_owned()
}

fn table_name(table: &TableRef) -> String {
    printable(&table.to_string()).into_owned()
}

fn item(item: &LockItem) -> String {
    printable(&item.to_string()).into_owned()
}
