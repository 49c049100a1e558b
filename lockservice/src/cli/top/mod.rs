//! `top`: a node, live on a terminal.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the command: terminal, server and signals; the loop |
//! | `model.rs` | [`Model`]: what is shown, and what keys and readings change in it; pure |
//! | `rates.rs` | [`Rates`](rates::Rates): how fast counts grow, from two readings; pure |
//! | `view.rs`, `panes.rs` | the picture of a model; its three lists; pure |
//! | `screen.rs` | [`Screen`]: the terminal while it is taken, which is always given back |
//!
//! Each reading is one call, `Admin.GetStats`, with a bounded number of lines: what it costs the
//! server does not grow with the number of locks.

mod model;
mod panes;
mod rates;
mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use futures::{Stream, StreamExt as _};
use lockservice_core::Result;
use lockservice_core::clock::Clock;
use lockservice_core::service::ServiceStats;
use nix::sys::signal::{Signal, raise};
use ratatui::Terminal;
use ratatui::backend::Backend;
use tokio::signal::unix::{SignalKind, signal};

use self::model::{Model, Next, Query};
use self::screen::Screen;
use super::args::TopArgs;
use super::exit::{self, Failure};
use super::lock::End;
use crate::client::AdminClient;

/// The lines of each list that are read: more than fit on most screens.
const LINES: u32 = 50;

/// The longest that a reading may take before the server counts as gone.
const READING_MAX: Duration = Duration::from_secs(3);

/// A reading under way.
type Reading<'a> = Pin<Box<dyn Future<Output = Result<ServiceStats>> + 'a>>;

/// Shows a node until a key or a signal ends it.
pub(super) async fn run(args: &TopArgs, json: bool) -> Result<End, Failure> {
    if json || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::usage(
            "top shows a node on a terminal, and this is none: use `lockservice locks --json`, \
             `waits --json` or `hot --json`, which print lines for programs",
        ));
    }
    let builder = args.client.credentials.client().call_timeout(READING_MAX);
    let client = builder.connect(&args.client.server).await?;
    let admin = client.admin();
    let mut model = Model::new(&args.client.server, args.interval, args.only.table());
    // The first reading says what no later one can mend: a role that is missing, say.
    let first = read(&admin, model.query()).await?;
    model.begin_reading(client.clock().now());
    model.take_reading(Ok(first), client.clock().now());
    // Before the terminal is taken: none may end the process without giving it back.
    let mut signals = signals().map_err(cannot_take_signals)?;
    let mut events = EventStream::new();
    let reader = |query| Box::pin(read(&admin, query)) as Reading<'_>;
    let clock = &**client.clock();
    loop {
        let mut screen = Screen::open().map_err(no_terminal)?;
        let ended = tokio::select! {
            ended = watch(screen.terminal(), &mut model, &mut events, reader, clock) => ended?,
            signal = first_of(&mut signals) => return Ok(End::Signal(signal)),
        };
        drop(screen);
        match ended {
            Next::Stop => {
                raise(Signal::SIGTSTP).map_err(|error| cannot_take_signals(error.into()))?
            }
            _ => return Ok(End::Status(0)),
        }
    }
}

async fn read(admin: &AdminClient, query: Query) -> Result<ServiceStats> {
    admin.stats(query.only.as_ref(), query.window, LINES).await
}

/// Draws the model, and takes what comes: keys, readings, time. Returns when a key ends it, or
/// stops the process.
async fn watch<'a, B: Backend>(
    terminal: &mut Terminal<B>,
    model: &mut Model,
    events: &mut (impl Stream<Item = io::Result<Event>> + Unpin),
    read: impl Fn(Query) -> Reading<'a>,
    clock: &dyn Clock,
) -> Result<Next, Failure> {
    let mut reading: Option<Reading<'a>> = None;
    loop {
        let now = clock.now();
        terminal.draw(|frame| view::draw(frame, model, now)).map_err(cannot_draw)?;
        tokio::select! {
            biased;
            event = events.next() => match event.transpose().map_err(no_terminal)? {
                Some(event) => match model.take_event(&event) {
                    Next::GoOn => {}
                    // What is under way is no longer what is wanted.
                    Next::ReadAnew => reading = None,
                    ended @ (Next::Stop | Next::Quit) => return Ok(ended),
                },
                None => return Err(no_terminal(io::ErrorKind::UnexpectedEof.into())),
            },
            Some(result) = under_way(&mut reading) => {
                reading = None;
                model.take_reading(result, clock.now());
            }
            () = pause(model.due_in(now)), if reading.is_none() => {
                model.begin_reading(clock.now());
                reading = Some(read(model.query()));
            }
        }
    }
}

/// The result of a reading; `None`, at once, if none is under way.
async fn under_way(reading: &mut Option<Reading<'_>>) -> Option<Result<ServiceStats>> {
    Some(reading.as_mut()?.await)
}

/// Lets so much time pass; `None` for ever.
async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

type Signals = [(Signal, tokio::signal::unix::Signal); 3];

/// The signals that end the command.
fn signals() -> io::Result<Signals> {
    Ok([
        (Signal::SIGINT, signal(SignalKind::interrupt())?),
        (Signal::SIGTERM, signal(SignalKind::terminate())?),
        (Signal::SIGHUP, signal(SignalKind::hangup())?),
    ])
}

async fn first_of(signals: &mut Signals) -> Signal {
    let [(int, a), (term, b), (hup, c)] = signals;
    tokio::select! {
        _ = a.recv() => *int,
        _ = b.recv() => *term,
        _ = c.recv() => *hup,
    }
}

fn cannot_take_signals(error: io::Error) -> Failure {
    Failure::new(exit::OS, "os", format!("cannot take signals: {error}"))
}

fn no_terminal(error: io::Error) -> Failure {
    Failure::new(
        exit::IO,
        "terminal",
        format!(
            "the terminal cannot be used: {error}; `lockservice locks --json` and `waits --json` \
             need none"
        ),
    )
}

fn cannot_draw(error: impl std::error::Error) -> Failure {
    Failure::new(exit::IO, "terminal", format!("cannot write to the terminal: {error}"))
}
