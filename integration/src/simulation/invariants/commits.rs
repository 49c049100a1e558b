//! What commits is serial: no transaction commits on what another has changed since, so a stale
//! bind never commits (C1 to C4).
//!
//! The data knows no locks and no tokens: nothing but the validation of the commit, and its limit
//! in time, keeps a transaction from writing late.

use std::collections::BTreeMap;

/// The content of an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Account {
    /// What it has.
    pub balance: i64,
    /// The number of commits that wrote it.
    pub version: u64,
}

/// The first balance of each account.
const FIRST: Account = Account { balance: 100, version: 0 };

/// What a transaction has read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The account.
    pub name: (String, u32),
    /// What it was.
    pub was: Account,
}

/// The accounts, by bank and number.
#[derive(Debug, Default)]
pub struct Accounts(BTreeMap<(String, u32), Account>);

impl Accounts {
    /// The content of an account now.
    pub fn read(&mut self, bank: &str, number: u32) -> Read {
        let name = (bank.to_owned(), number);
        let was = *self.0.entry(name.clone()).or_insert(FIRST);
        Read { name, was }
    }

    /// The commit of `who` lands: `amount` goes from one account to the other.
    pub fn transfer(
        &mut self,
        who: &str,
        from: &Read,
        to: &Read,
        amount: i64,
    ) -> Result<(), String> {
        self.unchanged(who, &[from.clone(), to.clone()])?;
        for (read, change) in [(from, -amount), (to, amount)] {
            let account = self.0.entry(read.name.clone()).or_insert(FIRST);
            account.balance += change;
            account.version += 1;
        }
        Ok(())
    }

    /// The commit of a reader lands: nothing that it has read may have changed since.
    pub fn unchanged(&self, who: &str, reads: &[Read]) -> Result<(), String> {
        for read in reads {
            let now = self.0.get(&read.name).copied().unwrap_or(FIRST);
            if now != read.was {
                return Err(format!(
                    "not serial: {who} commits on {:?} as version {}, which is version {} by now",
                    read.name, read.was.version, now.version
                ));
            }
        }
        Ok(())
    }
}
