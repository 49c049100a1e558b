//! Lines that are written without waiting: a full pipe on stderr stops neither a server nor a
//! wrapper.
//!
//! # Implementation details
//! A [`Sink`] has a bounded queue and a thread that writes it. The thread may block for any time; a
//! caller only appends to the queue. A line that finds no room is lost and counted. The count is
//! written in its place: after the lines before it, before the next one that found room.
//!
//! The file stays in blocking mode. `O_NONBLOCK` belongs to the open file, which the process shares
//! with its command and with its caller.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::json;

/// The largest number of bytes that wait to be written.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// The time for which the end of the process waits for the remaining lines.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Stderr of this process.
static STDERR: OnceLock<Sink> = OnceLock::new();
/// Stdout of a process that serves.
static STDOUT: OnceLock<Sink> = OnceLock::new();
/// Set once by `main`, before the first line. `Relaxed`: it guards no other memory.
static JSON: AtomicBool = AtomicBool::new(false);

/// Stderr. Its thread starts with the first line.
pub(crate) fn stderr() -> &'static Sink {
    STDERR.get_or_init(|| Sink::new(io::stderr()))
}

/// Stdout, for a line that is written without waiting.
pub(crate) fn stdout() -> &'static Sink {
    STDOUT.get_or_init(|| Sink::new(io::stdout()))
}

/// Notes about lost lines are JSON objects from now on.
pub(crate) fn use_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Waits until everything is written, for a bounded time. The last act of `main` calls it.
pub(crate) fn flush() {
    for sink in [STDOUT.get(), STDERR.get()].into_iter().flatten() {
        sink.flush(FLUSH_MAX);
    }
}

/// A file whose lines are written by a thread of its own.
#[derive(Clone)]
pub(crate) struct Sink(Arc<SinkShared>);

struct SinkShared {
    /// Held for a moment, never while something is written.
    state: Mutex<SinkState>,
    /// Notified when a line came, or when the queue is empty and nothing is being written.
    changed: Condvar,
    /// Held by the thread for as long as it writes; by a caller only if there is no thread.
    out: Mutex<Box<dyn Write + Send>>,
}

#[derive(Default)]
struct SinkState {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that found no room since the last one that did.
    lost: u64,
    writing: bool,
    /// True if no thread could be started: then callers write themselves.
    direct: bool,
}

impl Sink {
    fn new(out: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(SinkShared {
            state: Mutex::default(),
            changed: Condvar::new(),
            out: Mutex::new(Box::new(out)),
        });
        let writer = Arc::clone(&shared);
        let started =
            std::thread::Builder::new().name("output".to_owned()).spawn(move || writer.write_on());
        shared.state.lock().direct = started.is_err();
        Self(shared)
    }

    /// Appends one line, which ends with a newline. Does not wait: a line without room is lost.
    pub(crate) fn line(&self, line: impl Into<Vec<u8>>) {
        let line = line.into();
        let mut state = self.0.state.lock();
        if state.direct {
            drop(state);
            // A closed file is no reason to stop.
            let _ = self.0.out.lock().write_all(&line);
            return;
        }
        // A line is always taken into an empty queue, however long it is.
        if !state.lines.is_empty() && state.bytes + line.len() > WAITING_BYTES_MAX {
            state.lost += 1;
            return;
        }
        if let Some(note) = state.note() {
            state.push(note);
        }
        state.push(line);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, at most for `longest`.
    fn flush(&self, longest: Duration) {
        let mut state = self.0.state.lock();
        let busy =
            |state: &mut SinkState| state.writing || !state.lines.is_empty() || state.lost > 0;
        // A reader that has not read by now never will.
        let _ = self.0.changed.wait_while_for(&mut state, busy, longest);
    }
}

impl SinkShared {
    fn write_on(&self) {
        loop {
            let mut state = self.state.lock();
            state.writing = false;
            let line = loop {
                if let Some(line) = state.lines.pop_front() {
                    state.bytes -= line.len();
                    break line;
                }
                if let Some(note) = state.note() {
                    break note;
                }
                self.changed.notify_all();
                self.changed.wait(&mut state);
            };
            state.writing = true;
            drop(state);
            let mut out = self.out.lock();
            // A closed file is no reason to stop: the next write fails too.
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    }
}

impl SinkState {
    fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// The sentence about the lines that were lost, said once.
    fn note(&mut self) -> Option<Vec<u8>> {
        let lost = std::mem::take(&mut self.lost);
        if lost == 0 {
            return None;
        }
        let sentence =
            format!("{lost} lines were lost here, because this output was not read in time");
        let note = if JSON.load(Ordering::Relaxed) {
            json!({ "warning": sentence, "kind": "output_lost", "lines": lost }).to_string()
        } else {
            format!("warning: {sentence}")
        };
        Some(format!("{note}\n").into_bytes())
    }
}

/// One event of the log, written as one line.
pub(crate) struct LogLine;

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr().line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    #[test]
    fn a_sink_without_a_reader_blocks_no_writer_and_says_how_much_was_lost() {
        let (reader, writer) = io::pipe().unwrap();
        let sink = Sink::new(writer);
        let count = 40;
        // Far more than a pipe and the queue have room for.
        for n in 0..count {
            sink.line(format!("{n} {}\n", "x".repeat(WAITING_BYTES_MAX / 10)));
            // The pipe has no room for the first line, so that the thread takes no other one.
            while n == 0 && !sink.0.state.lock().writing {
                std::thread::yield_now();
            }
        }
        let mut lines = BufReader::new(reader).lines().map(|line| line.unwrap());
        let mut next = 0;
        let note = loop {
            let line = lines.next().unwrap();
            match line.split_once(' ').unwrap() {
                (number, text) if text.starts_with('x') => {
                    assert_eq!(number, next.to_string(), "in order");
                    next += 1;
                }
                _ => break line,
            }
        };
        assert_eq!(
            note,
            format!(
                "warning: {} lines were lost here, because this output was not read in time",
                count - next
            )
        );
        sink.line("after\n");
        assert_eq!(lines.next().unwrap(), "after");
    }

    #[test]
    fn a_loss_is_reported_where_it_was() {
        let mut state = SinkState { lost: 2, ..SinkState::default() };
        let note = state.note().unwrap();
        assert!(
            note.starts_with(b"warning: 2 lines were lost"),
            "{}",
            String::from_utf8_lossy(&note)
        );
        assert_eq!(state.note(), None, "once");
    }
}
