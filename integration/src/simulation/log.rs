//! [`Log`]: what happened in a run, in its order.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The number of lines that are kept.
const LINES_MAX: usize = 2_000;

/// The events of one run. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    began: Instant,
    last: VecDeque<String>,
    count: u64,
    hash: DefaultHasher,
    echo: bool,
}

impl Log {
    /// An empty log; with `echo` each line is printed as it comes.
    pub fn new(echo: bool) -> Self {
        let last = VecDeque::new();
        // Its keys are fixed.
        let hash = DefaultHasher::new();
        Self(Arc::new(Mutex::new(Lines { began: Instant::now(), last, count: 0, hash, echo })))
    }

    /// Adds a line.
    pub fn note(&self, line: impl FnOnce() -> String) {
        let mut lines = self.0.lock();
        let line = format!("{:9.3} {}", lines.began.elapsed().as_secs_f64(), line());
        line.hash(&mut lines.hash);
        lines.count += 1;
        if lines.echo {
            println!("{line}");
        }
        if lines.last.len() == LINES_MAX {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    /// The number of lines, and a number that two runs have in common only if all lines are the
    /// same.
    pub fn digest(&self) -> (u64, u64) {
        let lines = self.0.lock();
        (lines.count, lines.hash.finish())
    }

    /// The last lines.
    pub fn tail(&self, most: usize) -> Vec<String> {
        let lines = self.0.lock();
        lines.last.iter().skip(lines.last.len().saturating_sub(most)).cloned().collect()
    }
}
