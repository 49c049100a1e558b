//! The loop and the picture, on a screen in memory, with readings and keys that are made up.

use std::cell::RefCell;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use futures::stream;
use lockservice_core::clock::Time;
use lockservice_core::metrics::ServiceGauges;
use lockservice_core::service::{
    HotCounts, HotKey, HotWindow, LongWait, OpenedBy, SessionStatus, Totals, WaitsFor,
};
use lockservice_core::testing::TokioClock;
use lockservice_core::{
    Blocker, Error, ErrorKind, Key, LockItem, LockMode, NodeName, ServiceId, SessionHandle,
    SessionNumber, TableRef, TxnId, TxnNumber,
};
use ratatui::backend::TestBackend;

use super::*;
use crate::cli::output::printable;

fn row(key: &str) -> LockItem {
    LockItem::Row(Key::new(key).unwrap())
}

fn txn(number: u64) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(number), false)
}

fn hot(key: &str, waits: u64, ms: u64, missed: u64) -> HotKey {
    let counts = |waits, missed| HotCounts {
        waits,
        waited: Duration::from_millis(ms),
        longest: Duration::from_millis(ms / 2),
        missed: Duration::from_millis(missed),
    };
    HotKey {
        table: TableRef::new("bank", "accounts").unwrap(),
        item: row(key),
        minute: counts(1, 0),
        ten_minutes: counts(waits, missed),
        last: Duration::from_millis(70),
        waiting: 1,
    }
}

fn wait(client: &str, seconds: u64, waits_for: Option<WaitsFor>) -> LongWait {
    LongWait {
        table: TableRef::new("bank", "accounts").unwrap(),
        item: row("alice"),
        mode: LockMode::Exclusive,
        txn: txn(7),
        label: String::new(),
        client: client.to_owned(),
        session: None,
        waiting: Duration::from_secs(seconds),
        waits_for,
    }
}

fn session(number: u64, client: &str, left: u64) -> SessionStatus {
    SessionStatus {
        handle: SessionHandle { service: ServiceId::new(1), number: SessionNumber::new(number) },
        client: client.to_owned(),
        opened_by: OpenedBy { identity: String::new(), address: "127.0.0.1:9".to_owned() },
        ttl: Duration::from_secs(10),
        left: Duration::from_secs(left),
        txns: number as usize,
        waiting: 0,
        ending: String::new(),
        still_running: String::new(),
    }
}

/// A node that has granted so many locks.
fn stats(granted: u64) -> ServiceStats {
    let mut gauges = ServiceGauges::default();
    (gauges.serves, gauges.lease_left) = (true, Duration::from_millis(4_200));
    (gauges.sessions, gauges.sessions_max, gauges.held) = (12, 10_000, 1_204);
    let holder = Blocker {
        txn: txn(3),
        item: row("alice"),
        mode: LockMode::Shared,
        granted: true,
        label: "nightly".to_owned(),
        client: "holder@host:1".to_owned(),
    };
    ServiceStats {
        node: NodeName::new("node-1").unwrap(),
        service: ServiceId::new(1),
        gauges,
        totals: Totals { granted, deadlocks: 3, ..Totals::default() },
        hot: vec![hot("alice", 5, 3_000, 0), hot("bob", 900, 2_000, 10)],
        longest_waits: vec![
            wait("waiter@host:2", 65, Some(WaitsFor::Txn(holder))),
            wait("other@host:3", 8, Some(WaitsFor::Table { last_owner: None })),
        ],
        nearest_to_loss: vec![session(7, "worker-7", 2), session(8, "worker-8", 9)],
    }
}

fn model() -> Model {
    Model::new("127.0.0.1:7654", Duration::from_secs(1), None)
}

/// The lines of a screen.
fn lines(terminal: &Terminal<TestBackend>) -> Vec<String> {
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let width = usize::from(buffer.area.width).max(1);
    cells.chunks(width).map(|line| line.concat().trim_end().to_owned()).collect()
}

fn drawn(model: &Model, now: Time, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, model, now)).unwrap();
    lines(&terminal)
}

/// The one line with this text.
#[track_caller]
fn line_with<'a>(lines: &'a [String], text: &str) -> &'a str {
    let mut found = lines.iter().filter(|line| line.contains(text));
    match (found.next(), found.next()) {
        (Some(line), None) => line,
        _ => panic!("{text:?} is not in one line:\n{}", lines.join("\n")),
    }
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

#[test]
fn a_node_is_shown_with_its_use_its_rates_and_its_worst_keys_waits_and_sessions() {
    let mut model = model();
    model.take_reading(Ok(stats(1_000)), at(1_000));
    let lines = drawn(&model, at(1_000), 120, 40);
    assert!(line_with(&lines, "grants/s").contains("grants/s -"), "one reading has no rate");
    model.take_reading(Ok(stats(1_500)), at(3_000));
    let lines = drawn(&model, at(3_000), 120, 40);
    assert_eq!(lines[0], "node-1 at 127.0.0.1:7654  serves, lease 4.2 s");
    assert!(lines[1].contains("sessions 12 of 10000  locks 1204  "), "{}", lines[1]);
    assert!(lines[2].starts_with("grants/s 250  waits/s 0.0  "), "{}", lines[2]);
    assert!(lines[3].contains("deadlocks 3"), "{}", lines[3]);
    let alice = line_with(&lines, " 3.0 s ");
    for text in ["bank/accounts", "alice", " 5 ", "1.5 s", "70 ms"] {
        assert!(alice.contains(text), "{text}: {alice}");
    }
    assert!(line_with(&lines, "bob").contains("≥900"), "counts that may lack something say so");
    let waiter = line_with(&lines, "waiter@host:2");
    for text in ["1 min 5 s", "exclusive", "holder holder@host:1 nightly"] {
        assert!(waiter.contains(text), "{text}: {waiter}");
    }
    assert!(line_with(&lines, "other@host:3").contains("the table to be bound"));
    let nearest = line_with(&lines, "worker-7");
    assert!(nearest.contains("2.0 s") && nearest.contains("20 %"), "{nearest}");
}

#[test]
fn a_screen_of_any_size_is_drawn_and_a_low_one_shows_the_chosen_list_alone() {
    let mut model = model();
    // A picture without a reading, and one with it.
    for _ in 0..2 {
        for width in [0, 1, 2, 7, 30, 90] {
            for height in 0..24 {
                drawn(&model, at(0), width, height);
            }
        }
        model.take_reading(Ok(stats(1)), at(0));
    }
    let low = drawn(&model, at(0), 100, 14).join("\n");
    assert!(low.contains("alice") && !low.contains("nearest"), "{low}");
    press(&mut model, KeyCode::Char('3'));
    let low = drawn(&model, at(0), 100, 14).join("\n");
    assert!(low.contains("worker-7") && !low.contains("hottest"), "{low}");
}

#[test]
fn names_that_others_chose_do_not_act_on_the_terminal() {
    let (mut model, mut stats) = (model(), stats(1));
    stats.longest_waits = vec![wait("\u{1b}[2J\u{202e}evil", 1, None)];
    stats.nearest_to_loss = vec![session(1, "a\u{7}\u{202e}b", 1)];
    stats.hot[0].item = row("k\u{1b}\u{202e}c");
    model.take_reading(Ok(stats), at(0));
    let why = Error::new(ErrorKind::Unavailable, "no \u{1b}]0;x\u{7}");
    model.take_reading(Err(why), at(0));
    let lines = drawn(&model, at(0), 200, 40).join("\n");
    assert_eq!(printable(&lines.replace('\n', "")), lines.replace('\n', ""));
    assert!(lines.contains("\\u{1b}[2J") && lines.contains("evil"), "{lines}");
}

fn press(model: &mut Model, code: KeyCode) -> Next {
    model.take_event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

#[test]
fn keys_choose_the_list_and_its_order() {
    let mut model = model();
    model.take_reading(Ok(stats(1)), at(0));
    let keys = |model: &Model| {
        let lines = drawn(model, at(0), 120, 40);
        let at = |text: &str| lines.iter().position(|line| line.contains(text)).expect("shown");
        (at(" bob ") < at(" alice  "), at("worker-8") < at("worker-7"))
    };
    assert_eq!(keys(&model), (false, false));
    press(&mut model, KeyCode::Char('s'));
    assert_eq!(keys(&model), (true, false), "bob has more waits");
    for key in [KeyCode::Tab, KeyCode::Tab, KeyCode::Char('s'), KeyCode::Char('s')] {
        assert_eq!(press(&mut model, key), Next::GoOn);
    }
    assert_eq!(keys(&model), (true, true), "worker-8 has more transactions");
    press(&mut model, KeyCode::BackTab);
    assert_eq!(model.pane, model::Pane::Waits);
    assert_eq!(press(&mut model, KeyCode::Char('w')), Next::ReadAnew);
    assert_eq!(model.query().window, HotWindow::Minute);
}

#[test]
fn a_filter_is_typed_and_one_that_names_no_table_is_refused_with_the_reason() {
    let mut model = model();
    let type_in = |model: &mut Model, text: &str| {
        press(model, KeyCode::Char('/'));
        for c in text.chars() {
            press(model, KeyCode::Char(c));
        }
    };
    type_in(&mut model, "bank/accountsq");
    press(&mut model, KeyCode::Backspace);
    assert!(drawn(&model, at(0), 120, 40)[39].ends_with("bank/accounts_"), "q is a letter here");
    assert_eq!(press(&mut model, KeyCode::Enter), Next::ReadAnew);
    assert_eq!(model.query().only, Some(TableRef::new("bank", "accounts").unwrap()));
    assert_eq!(press(&mut model, KeyCode::Char('/')), Next::GoOn);
    assert_eq!(press(&mut model, KeyCode::Esc), Next::GoOn, "it ends the typing alone");
    assert!(model.query().only.is_some());
    press(&mut model, KeyCode::Char('/'));
    for _ in 0.."/accounts".len() {
        press(&mut model, KeyCode::Backspace);
    }
    press(&mut model, KeyCode::Char('/'));
    assert_eq!(press(&mut model, KeyCode::Enter), Next::GoOn);
    assert!(drawn(&model, at(0), 160, 40)[39].contains("name is empty"));
    for _ in 0..20 {
        press(&mut model, KeyCode::Backspace);
    }
    assert_eq!(press(&mut model, KeyCode::Enter), Next::ReadAnew);
    assert_eq!(model.query().only, None);
    for (code, modifiers) in
        [(KeyCode::Esc, KeyModifiers::NONE), (KeyCode::Char('c'), KeyModifiers::CONTROL)]
    {
        assert_eq!(model.take_event(&Event::Key(KeyEvent::new(code, modifiers))), Next::Quit);
    }
}

/// A key that is pressed once so many readings have begun, and so much time has passed since.
type Pressed = (usize, Duration, KeyCode);

/// Runs the loop until the last of these keys ends it. Reading number n, from 1, is `readings(n)`.
/// Returns the last screen and the queries.
async fn run_loop(
    model: &mut Model,
    clock: TokioClock,
    keys: &[Pressed],
    readings: impl Fn(usize) -> Result<ServiceStats>,
) -> (Vec<String>, Vec<Query>) {
    let (queries, begun) = (RefCell::new(Vec::new()), tokio::sync::Notify::new());
    let (queries, begun) = (&queries, &begun);
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    let mut events = Box::pin(stream::iter(keys).then(|(after, later, key)| async move {
        while queries.borrow().len() < *after {
            begun.notified().await;
        }
        tokio::time::sleep(*later).await;
        Ok(Event::Key(KeyEvent::new(*key, KeyModifiers::NONE)))
    }));
    let read = |query| -> Reading<'static> {
        queries.borrow_mut().push(query);
        begun.notify_one();
        let result = readings(queries.borrow().len());
        Box::pin(async move { result })
    };
    watch(&mut terminal, model, &mut events, read, &clock).await.expect("a key ends it");
    (lines(&terminal), queries.take())
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the server did not respond in time")
}

const NOW: Duration = Duration::ZERO;
const QUIT: KeyCode = KeyCode::Char('q');

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_is_said_to_and_is_asked_again_until_it_is_back() {
    let (mut model, clock) = (model(), TokioClock::new());
    let fails = |n| if n > 2 { Err(gone()) } else { Ok(stats(n as u64 * 100)) };
    let (shown, queries) = run_loop(&mut model, clock, &[(7, NOW, QUIT)], fails).await;
    assert_eq!(queries.len(), 7);
    let said = line_with(&shown, "no response for ");
    // Readings 3 to 6 have failed, one a second, and the next one has begun.
    assert!(said.contains("no response for 4.0 s, trying again: "), "{said}");
    assert!(said.contains("did not respond in time"), "{said}");
    assert!(shown.iter().any(|line| line.contains("waiter@host:2")), "what was seen stays");
    let back = |n| Ok(stats(1_000 + n as u64 * 100));
    let (shown, _) = run_loop(&mut model, clock, &[(3, NOW, QUIT)], back).await;
    assert!(!shown.iter().any(|line| line.contains("no response")), "{shown:?}");
    assert!(shown[2].starts_with("grants/s 100  "), "{}", shown[2]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_view_reads_nothing_but_what_a_key_asks_for() {
    let minute = Duration::from_secs(60);
    let keys = [
        (2, NOW, KeyCode::Char('p')),
        (2, minute, KeyCode::Char('/')),
        (2, minute, KeyCode::Char('t')),
        (2, minute, KeyCode::Enter),
        (3, minute, QUIT),
    ];
    let readings = |n| Ok(stats(n as u64));
    let (shown, queries) = run_loop(&mut model(), TokioClock::new(), &keys, readings).await;
    let only: Vec<_> = queries.iter().map(|query| query.only.clone()).collect();
    assert_eq!(only, [None, None, Some(TableRef::new("default", "t").unwrap())]);
    assert_eq!(line_with(&shown, "paused"), "keys and waits of default/t  paused");
    let keys = [(2, NOW, KeyCode::Char('p')), (2, minute, KeyCode::Char(' ')), (9, NOW, QUIT)];
    let (_, queries) = run_loop(&mut model(), TokioClock::new(), &keys, readings).await;
    assert_eq!(queries.len(), 9, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_terminal_that_is_gone_ends_the_loop_with_an_error() {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let read = |_| -> Reading<'static> { Box::pin(std::future::pending()) };
    let mut events = stream::empty();
    let ended = watch(&mut terminal, &mut model(), &mut events, read, &TokioClock::new()).await;
    assert_eq!(ended.expect_err("no keys will come").status, exit::IO);
}
