//! The journal: storage that trusts tokens and nothing else.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use parking_lot::Mutex;

/// The balance of every account at the start.
pub(crate) const OPENING_BALANCE: i64 = 1_000;

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    balance: i64,
    /// The highest token that has read or written.
    seen: u64,
    /// The highest token that has written.
    written: u64,
}

/// A token was too old: somebody with a later lock has been here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

#[derive(Debug)]
pub(crate) struct Journal {
    state: Mutex<(Vec<Account>, File)>,
}

impl Journal {
    /// Opens the journal and replays it, or begins one. A line that a crash cut short is dropped.
    pub(crate) fn open(path: &Path, accounts: usize) -> std::io::Result<Self> {
        let opening = Account { balance: OPENING_BALANCE, ..Account::default() };
        let mut state = vec![opening; accounts];
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            for change in line.split_whitespace() {
                let fields: Option<Vec<i64>> =
                    change.split(':').map(|field| field.parse().ok()).collect();
                let Some([account, token, balance]) = fields.as_deref() else { continue };
                let Some(account) =
                    usize::try_from(*account).ok().and_then(|account| state.get_mut(account))
                else {
                    continue;
                };
                account.balance = *balance;
                account.written = account.written.max(token.unsigned_abs());
                account.seen = account.seen.max(account.written);
            }
            whole += line.len() as u64;
            line.clear();
        }
        file.set_len(whole)?;
        Ok(Self { state: Mutex::new((state, file)) })
    }

    /// F1: a read below the highest token that has written is refused.
    pub(crate) fn read(&self, account: usize, token: u64) -> Result<i64, Refused> {
        let account = &mut self.state.lock().0[account];
        if token < account.written {
            return Err(Refused);
        }
        account.seen = account.seen.max(token);
        Ok(account.balance)
    }

    /// F1: a write below the highest token seen is refused. All of the changes are made, or none.
    pub(crate) fn write(&self, changes: &[(usize, u64, i64)]) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let (accounts, file) = &mut *state;
        if changes.iter().any(|(account, token, _)| *token < accounts[*account].seen) {
            return Err(Refused);
        }
        let line: Vec<String> = changes
            .iter()
            .map(|(account, token, balance)| format!("{account}:{token}:{balance}"))
            .collect();
        // A journal that cannot be written is no bank: stop here, with nothing half done.
        writeln!(file, "{}", line.join(" ")).expect("the journal can be written");
        for (account, token, balance) in changes {
            accounts[*account] = Account { balance: *balance, seen: *token, written: *token };
        }
        Ok(())
    }

    /// The highest token that has read or written anything.
    pub(crate) fn highest_token(&self) -> u64 {
        self.state.lock().0.iter().map(|account| account.seen).max().unwrap_or_default()
    }

    pub(crate) fn sum(&self) -> i64 {
        self.state.lock().0.iter().map(|account| account.balance).sum()
    }
}
