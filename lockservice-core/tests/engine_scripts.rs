//! Data-driven scripts: commands in, the whole lock table printed after each.
//!
//! A script (`tests/scripts/*.txt`) is a list of lines `> command`, each followed by what the
//! engine shows then: the outcomes of calls that ended by it, the locks, and the waits.
//! `UPDATE_SCRIPTS=1` writes what is shown into the scripts; read the difference.
//!
//! | command | does |
//! |---|---|
//! | `new [TXN_BYTES]` | starts over, with table `t` installed; a transaction's locks may take so much memory |
//! | `install TABLE [TOKENS]` | installs a table with so many tokens (default 1,000) |
//! | `remove TABLE` | removes it |
//! | `lock TXN [TABLE/]ITEM… (s\|u\|x) [nowait\|skip] [escalate]` | makes a call |
//! | `unlock TXN [TABLE/]ITEM…` | releases chosen items |
//! | `downgrade TXN [TABLE/]ITEM… (s\|u)` | makes chosen items weaker |
//! | `savepoint TXN NAME` | sets a savepoint |
//! | `back TXN NAME` | goes back to one |
//! | `end TXN [TS [definition]]` | releases everything, with a commit or without |
//! | `cancel TXN` | drops the transaction's call |
//! | `rollback TXN` | rolls back its last grant |
//! | `tokens TABLE N` | adds a block of N tokens |
//!
//! Items are rows (`k`) or ranges in mathematical notation without blanks (`[a,b]`, `(a,b)`,
//! `(,b]`, `(,)`).

#[path = "kit/by_id.rs"]
mod by_id;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::ops::Bound;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use by_id::{LockEngine, LockRequest};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{Commit, EngineSettings, Grant, LockCall, Savepoint, WaitPolicy};
use lockservice_core::{
    BindVersion, Blocker, CommitTimestamp, FencingToken, Key, KeyRange, LockItem, LockMode,
    ServiceId, TableId, TableRef, TxnId, TxnNumber,
};

struct Session {
    engine: LockEngine,
    /// The settings of an engine.
    make: fn(EngineSettings) -> LockEngine,
    calls: BTreeMap<u64, LockCall>,
    grants: BTreeMap<u64, Grant>,
    savepoints: BTreeMap<String, Savepoint>,
    token_end: u64,
    version: u64,
}

fn table(name: &str) -> TableId {
    TableId::new(u64::from(name.bytes().next().expect("a table has a name")))
}

fn txn(name: &str) -> u64 {
    name.parse().unwrap_or_else(|_| panic!("a transaction is a number, not {name}"))
}

fn id(number: u64) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(number), false)
}

fn show_txn(id: TxnId) -> u64 {
    id.number().get()
}

fn item(text: &str) -> LockItem {
    let Some((start, end)) = text.split_once(',') else {
        return LockItem::Row(Key::new(text).expect("a key"));
    };
    let bound = |open: bool, key: &str| match key {
        "" => Bound::Unbounded,
        key if open => Bound::Excluded(Key::new(key).expect("a key")),
        key => Bound::Included(Key::new(key).expect("a key")),
    };
    let range = KeyRange::new(
        bound(start.starts_with('('), &start[1..]),
        bound(end.ends_with(')'), &end[..end.len() - 1]),
    );
    LockItem::Range(range.expect("a range"))
}

fn mode(name: &str) -> LockMode {
    match name {
        "s" => LockMode::Shared,
        "u" => LockMode::Update,
        "x" => LockMode::Exclusive,
        other => panic!("{other} is no mode"),
    }
}

fn items(words: &[&str]) -> (TableId, Vec<LockItem>) {
    let (name, _) = words[0].split_once('/').unwrap_or(("t", words[0]));
    (
        table(name),
        words
            .iter()
            .map(|word| item(word.split_once('/').map_or(*word, |(_, item)| item)))
            .collect(),
    )
}

impl Session {
    fn new(engine: fn(EngineSettings) -> LockEngine, settings: EngineSettings) -> Self {
        let mut new = Self {
            engine: engine(settings),
            make: engine,
            calls: BTreeMap::new(),
            grants: BTreeMap::new(),
            savepoints: BTreeMap::new(),
            token_end: 1,
            version: 0,
        };
        new.install("t", 1000);
        new
    }

    fn block(&mut self, count: u64) -> TokenBlock {
        let next = self.token_end;
        self.token_end += count;
        TokenBlock { next: FencingToken::new(next), end: FencingToken::new(self.token_end) }
    }

    fn install(&mut self, name: &str, tokens: u64) {
        self.version += 1;
        let bind = Bind {
            table: TableRef::new("g", name).expect("a table's name"),
            id: table(name),
            partition: 0,
            owner: ServiceId::new(1),
            version: BindVersion::new(self.version),
            slot: BindSlot::NONE,
        };
        let block = self.block(tokens);
        self.engine.install(bind, Some(block), None).expect("a new version");
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match &words[..] {
            ["new"] => *self = Self::new(self.make, EngineSettings::default()),
            ["new", bytes] => {
                let txn_lock_bytes_max = bytes.parse().expect("a number");
                let settings = EngineSettings { txn_lock_bytes_max, ..EngineSettings::default() };
                *self = Self::new(self.make, settings);
            }
            ["install", name] => self.install(name, 1000),
            ["install", name, tokens] => self.install(name, tokens.parse().expect("a number")),
            ["remove", name] => (1..=self.version)
                .for_each(|at| self.engine.remove(table(name), BindVersion::new(at))),
            ["lock", who, rest @ ..] => {
                let (rest, escalate) = match rest {
                    [rest @ .., "escalate"] => (rest, true),
                    _ => (rest, false),
                };
                let (rest, wait) = match rest {
                    [rest @ .., "nowait"] => (rest, WaitPolicy::NoWait),
                    [rest @ .., "skip"] => (rest, WaitPolicy::SkipLocked),
                    _ => (rest, WaitPolicy::Wait),
                };
                let [rest @ .., mode] = rest else { panic!("no mode in {command}") };
                let mode = self::mode(mode);
                let (table, items) = items(rest);
                let version = (1..=self.version)
                    .map(BindVersion::new)
                    .rfind(|at| self.engine.tokens_left(table, *at).is_some());
                let version = version.unwrap_or_default();
                let txn_id = id(txn(who));
                let request =
                    LockRequest { txn: txn_id, table, version, items, mode, wait, escalate };
                let call = self.engine.lock(request, Time::ZERO);
                if let Some(earlier) = self.calls.insert(txn(who), call) {
                    // Only to show the error of a second call of a transaction.
                    let second = self.calls.insert(txn(who), earlier).expect("just put there");
                    self.calls.insert(1000 + txn(who), second);
                }
            }
            ["unlock", who, rest @ ..] => {
                let (table, items) = items(rest);
                self.engine.unlock(id(txn(who)), table, &items, None);
            }
            ["downgrade", who, rest @ .., weaker] => {
                let (table, items) = items(rest);
                self.engine.downgrade(id(txn(who)), table, &items, mode(weaker));
            }
            ["savepoint", who, name] => {
                let savepoint = self.engine.savepoint(id(txn(who)));
                self.savepoints.insert((*name).to_owned(), savepoint);
            }
            ["back", who, name] => {
                let back = self.engine.roll_back_to(id(txn(who)), self.savepoints[*name]);
                if let Err(error) = back {
                    return format!("{who}: {}\n{}", error.kind().name(), self.show());
                }
            }
            ["end", who] => {
                self.engine.unlock_all(id(txn(who)), None);
            }
            ["end", who, ts, rest @ ..] => {
                let timestamp = CommitTimestamp::new(ts.parse().expect("a timestamp"));
                let definition_changed = rest == ["definition"];
                let commit = Commit { timestamp, definition_changed };
                self.engine.unlock_all(id(txn(who)), Some(commit));
            }
            ["cancel", who] => drop(self.calls.remove(&txn(who)).expect("a call to cancel")),
            ["rollback", who] => {
                let grant = self.grants.remove(&txn(who)).expect("a grant to roll back");
                self.engine.roll_back(id(txn(who)), grant.bind.id, &grant);
            }
            ["tokens", name, count] => {
                let block = self.block(count.parse().expect("a number"));
                (1..=self.version).for_each(|at| {
                    self.engine.add_tokens(table(name), BindVersion::new(at), block)
                });
            }
            _ => panic!("unknown command: {command}"),
        }
        self.show()
    }

    fn show(&mut self) -> String {
        let mut text = String::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut calls = std::mem::take(&mut self.calls);
        calls.retain(|who, call| match Pin::new(call).poll(&mut context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                match outcome {
                    Ok(grant) => {
                        write!(text, "{who}: granted, token {}", grant.token).expect("a string");
                        if !grant.newly_locked {
                            text.push_str(", nothing new");
                        }
                        if grant.waited.is_some() {
                            text.push_str(", waited");
                        }
                        if let Some((txn, item)) = &grant.conflict {
                            write!(text, " for {} of {}", item, show_txn(*txn)).expect("a string");
                        }
                        if let Some(ts) = grant.prev_commit_ts {
                            write!(text, ", prev commit {ts}").expect("a string");
                        }
                        if grant.prev_definition_changed {
                            text.push_str(" of a definition");
                        }
                        if let Some(ts) = grant.table_commit_ts {
                            write!(text, ", table commit {ts}").expect("a string");
                        }
                        if let Some(ts) = grant.table_definition_ts {
                            write!(text, ", definition {ts}").expect("a string");
                        }
                        for key in &grant.skipped {
                            write!(text, ", skipped {key}").expect("a string");
                        }
                        if let Some(range) = &grant.escalated {
                            write!(text, ", escalated to {range}").expect("a string");
                        }
                        self.grants.insert(*who, grant);
                    }
                    Err(error) => {
                        write!(text, "{who}: {}", error.kind().name()).expect("a string");
                        for edge in error.deadlock().unwrap_or_default() {
                            let (waiter, holder) = (show_txn(edge.waiter), show_txn(edge.holder));
                            assert_eq!(edge.victim, waiter == *who, "the victim finds itself");
                            write!(text, "; {waiter} waits for {} of {holder}", edge.item)
                                .expect("a string");
                        }
                        if let Some(Blocker { item, mode, txn, granted, .. }) = error.blocker() {
                            let how = if *granted { "held by" } else { "awaited by" };
                            write!(text, "; {item} {mode} {how} {}", show_txn(*txn))
                                .expect("a string");
                        }
                    }
                }
                text.push('\n');
                false
            }
        });
        self.calls = calls;
        let named = |table: &TableRef| {
            if table.name.as_str() == "t" { String::new() } else { format!("{}/", table.name) }
        };
        for lock in self.engine.locks(None) {
            let (who, token) = (show_txn(lock.txn), lock.token);
            let how = if lock.pending { "pending, token" } else { "token" };
            write!(text, "  {}{} {} {who} {how} {token}", named(&lock.table), lock.item, lock.mode)
                .expect("a string");
            if lock.waiters > 0 {
                write!(text, " awaited by {}", lock.waiters).expect("a string");
            }
            text.push('\n');
        }
        for wait in self.engine.waits(None) {
            let (who, holder) = (show_txn(wait.waiter), show_txn(wait.holder));
            let how = if wait.granted { "held by" } else { "behind" };
            let (item, held) = (&wait.item, &wait.held_item);
            writeln!(
                text,
                "  {who} waits for {}{item} {}: {held} {how} {holder}",
                named(&wait.table),
                wait.mode
            )
            .expect("a string");
        }
        text
    }
}

#[test]
fn the_table_after_each_command_is_what_the_scripts_say() {
    run_scripts(std::env::var_os("UPDATE_SCRIPTS").is_some(), LockEngine::new);
}

#[test]
fn the_same_is_shown_when_the_mutex_is_let_go_after_each_step() {
    run_scripts(false, |settings| LockEngine::with_steps_per_hold(settings, 1));
}

fn run_scripts(update: bool, engine: fn(EngineSettings) -> LockEngine) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder)
        .expect("the scripts")
        .map(|entry| entry.expect("a script").path())
        .collect();
    scripts.sort();
    assert!(scripts.len() > 5, "the scripts are missing");
    for path in scripts {
        let script = std::fs::read_to_string(&path).expect("a script");
        let mut session = Session::new(engine, EngineSettings::default());
        let mut shown = String::new();
        for line in script.lines() {
            if let Some(command) = line.strip_prefix("> ") {
                writeln!(shown, "{line}").expect("a string");
                shown.push_str(&session.run(command));
            } else if line.starts_with('#') || line.is_empty() {
                writeln!(shown, "{line}").expect("a string");
            }
        }
        if update {
            std::fs::write(&path, &shown).expect("the script can be written");
        } else {
            let differs = script.lines().zip(shown.lines()).position(|(a, b)| a != b);
            assert!(
                script == shown,
                "{}: line {:?} differs; shown was\n{shown}",
                path.display(),
                differs.map(|at| at + 1)
            );
        }
    }
}
