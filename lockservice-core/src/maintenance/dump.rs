//! [`Dump`]: everything in a store as JSON lines, readable into any backend. Pure.
//!
//! | line | what |
//! |---|---|
//! | the first | `{"dump":{"format":1,"version":…,"source":…,"cluster":…,"epoch":…,…}}` |
//! | any between | a record, as `{"table":…}`: of constants, a service, a table, a tombstone, … |
//! | the last | `{"end":{"constants":…,"services":…,…}}`, how many there were of each |
//!
//! Equal contents give equal records in an equal order, so that two dumps can be compared line by
//! line.

use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

use super::check::problems;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, TxnId, WriteNumber};
use crate::store::{
    ClusterConstants, ClusterId, Forgotten, ServiceRecord, StoreState, TableRecord,
};

/// Version of the dump's format. A dump of a higher one is refused, never guessed at.
pub const DUMP_FORMAT: u32 = 1;

/// Longer than any record: a table of thousands of partitions.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Everything in a store, and where it came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump {
    /// The version of the product that made the dump.
    pub version: String,
    /// The URL of the store, without secrets.
    pub source: String,
    /// Its cluster; `None` if that was not known. A restored store is another's.
    pub cluster: Option<ClusterId>,
    /// Its content.
    pub state: StoreState,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Dump(Header),
    Constants(ClusterConstants),
    Service(ServiceRecord),
    Table(TableRecord),
    Forgotten(Forgotten),
    Tombstone(TxnId),
    End(Counts),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    version: String,
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterId>,
    epoch: Epoch,
    applied: WriteNumber,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct Counts {
    constants: usize,
    services: usize,
    tables: usize,
    /// 1 if any table was forgotten.
    #[serde(default, skip_serializing_if = "is_zero")]
    forgotten: usize,
    tombstones: usize,
}

/// The first line of a dump of any format.
#[derive(Deserialize)]
struct AnyHeader {
    dump: AnyFormat,
}

#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

impl Dump {
    /// A dump of `state`, made by this version.
    ///
    /// # Errors
    /// `StoreUnusable` for a store whose restore was interrupted: finish that first.
    pub fn new(source: impl Into<String>, mut state: StoreState) -> Result<Self> {
        state.check_finished()?;
        sort(&mut state);
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: source.into(),
            cluster: None,
            state,
        })
    }

    /// The dump of the store of `cluster`.
    #[must_use]
    pub fn of(self, cluster: Option<ClusterId>) -> Self {
        Self { cluster, ..self }
    }

    /// Writes the dump.
    ///
    /// # Errors
    /// Those of `out`: what was written then is no whole dump, and is refused as such.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let state = &self.state;
        let mut line = |line: Line| -> io::Result<()> {
            let mut bytes = serde_json::to_vec(&line).map_err(io::Error::other)?;
            bytes.push(b'\n');
            out.write_all(&bytes)
        };
        line(Line::Dump(Header {
            format: DUMP_FORMAT,
            version: self.version.clone(),
            source: self.source.clone(),
            cluster: self.cluster,
            epoch: state.epoch,
            applied: state.applied,
        }))?;
        if let Some(constants) = state.constants {
            line(Line::Constants(constants))?;
        }
        for service in &state.services {
            line(Line::Service(service.clone()))?;
        }
        for table in &state.tables {
            line(Line::Table(table.clone()))?;
        }
        if !state.forgotten.is_none() {
            line(Line::Forgotten(state.forgotten))?;
        }
        for txn in &state.tombstones {
            line(Line::Tombstone(*txn))?;
        }
        line(Line::End(Counts::of(state)))?;
        out.flush()
    }

    /// Reads a whole dump and checks it.
    ///
    /// # Errors
    /// Each names the line.
    /// - `StoreNewer`: the dump is of a later format.
    /// - `StoreCorrupt`: it is damaged, cut off, contradicts itself, or is no dump.
    /// - `StoreUnusable`: `input` cannot be read.
    pub fn read_from(input: impl BufRead) -> Result<Self> {
        let mut lines = Lines { input, number: 0, line: Vec::new() };
        if lines.advance()?.is_none() {
            return Err(lines.wrong(
                "the dump is empty: was the right file given, and was it written to its end?",
            ));
        }
        let Line::Dump(header) = lines.header()? else {
            return Err(lines.wrong(NO_DUMP));
        };
        let mut state =
            StoreState { epoch: header.epoch, applied: header.applied, ..StoreState::default() };
        let counts = loop {
            if lines.advance()?.is_none() {
                return Err(lines.wrong(
                    "the dump is cut off, its last line is missing: copy or make it again",
                ));
            }
            match lines.parse()? {
                Line::Dump(_) => {
                    return Err(lines.wrong("a second dump begins here: restore one at a time"));
                }
                Line::Constants(_) if state.constants.is_some() => {
                    return Err(lines.wrong("the dump has two lines of constants: make it again"));
                }
                Line::Constants(constants) => state.constants = Some(constants),
                Line::Service(service) => state.services.push(service),
                Line::Table(table) => state.tables.push(table),
                Line::Forgotten(_) if !state.forgotten.is_none() => {
                    return Err(
                        lines.wrong("the dump has two lines of forgotten tables: make it again")
                    );
                }
                Line::Forgotten(forgotten) => state.forgotten = forgotten,
                Line::Tombstone(txn) => state.tombstones.push(txn),
                Line::End(counts) => break counts,
            }
        };
        if counts != Counts::of(&state) {
            let found = format!("{:?}", Counts::of(&state));
            return Err(lines
                .wrong("lines of the dump are missing, or too many: copy or make it again")
                .with("announced", format!("{counts:?}"))
                .with("found", found));
        }
        if lines.advance()?.is_some() {
            return Err(lines.wrong("the dump goes on behind its last line: restore one at a time"));
        }
        if let Some(problem) = problems(&state).into_iter().find(|problem| !problem.kind.heals()) {
            let message =
                format!("the dump contradicts itself, {}: {}", problem.record, problem.sentence);
            return Err(Error::new(ErrorKind::StoreCorrupt, message));
        }
        sort(&mut state);
        Ok(Self { version: header.version, source: header.source, cluster: header.cluster, state })
    }
}

const NO_DUMP: &str = "this is no dump of lockservice: was the right file given?";

fn sort(state: &mut StoreState) {
    state.services.sort_by_key(|service| service.id);
    state.tables.sort_by(|a, b| a.table.cmp(&b.table));
    state.tombstones.sort_unstable();
}

impl Counts {
    fn of(state: &StoreState) -> Self {
        Self {
            constants: usize::from(state.constants.is_some()),
            services: state.services.len(),
            tables: state.tables.len(),
            forgotten: usize::from(!state.forgotten.is_none()),
            tombstones: state.tombstones.len(),
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

struct Lines<R> {
    input: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line that is not blank.
    fn advance(&mut self) -> Result<Option<()>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
            let read = read.map_err(|e| {
                Error::new(
                    ErrorKind::StoreUnusable,
                    "the dump cannot be read: see to the file or the pipe",
                )
                .with("cause", &e)
                .with_source(e)
            })?;
            if read == 0 {
                return Ok(None);
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(()));
            }
        }
    }

    fn header(&self) -> Result<Line> {
        match serde_json::from_slice::<AnyHeader>(&self.line) {
            Ok(AnyHeader { dump }) if dump.format > u64::from(DUMP_FORMAT) => Err(Error::new(
                ErrorKind::StoreNewer,
                format!(
                    "the dump was made by a newer version of lockservice (dump format {}, this \
                        one reads {DUMP_FORMAT}): use that version",
                    dump.format
                ),
            )),
            Ok(AnyHeader { dump }) if dump.format < u64::from(DUMP_FORMAT) => {
                Err(self.wrong(NO_DUMP))
            }
            Ok(_) => self.parse(),
            Err(_) => Err(self.wrong(NO_DUMP)),
        }
    }

    fn parse(&self) -> Result<Line> {
        serde_json::from_slice(&self.line).map_err(|e| {
            let message = if self.line.ends_with(b"\n") {
                "a line of the dump is damaged: copy or make it again"
            } else {
                "the dump is cut off in the middle of a line: copy or make it again"
            };
            self.wrong(message).with("cause", &e).with_source(e)
        })
    }

    fn wrong(&self, message: &str) -> Error {
        Error::new(ErrorKind::StoreCorrupt, message).with("line", self.number)
    }
}
