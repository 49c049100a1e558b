//! Of two conflicting grants of overlapping items the later has the larger token (F1).

use std::collections::BTreeMap;

use lockservice_core::{FencingToken, LockItem, LockMode, TableRef};

/// The number of grants of a table that are remembered.
const GRANTS_MAX: usize = 400;

#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// The grants of each table, with the largest tokens.
    grants: BTreeMap<TableRef, Vec<Granted>>,
    /// The journals, which refuse a write below the highest token that they have seen.
    journals: BTreeMap<String, (FencingToken, String)>,
}

#[derive(Debug)]
struct Granted {
    who: String,
    item: LockItem,
    mode: LockMode,
    token: FencingToken,
}

impl Tokens {
    pub(super) fn granted(
        &mut self,
        who: &str,
        table: &TableRef,
        item: &LockItem,
        mode: LockMode,
        token: FencingToken,
    ) -> Result<(), String> {
        let grants = self.grants.entry(table.clone()).or_default();
        let earlier = grants.iter().find(|earlier| {
            earlier.token >= token
                && earlier.who != who
                && earlier.item.overlaps(item)
                && !earlier.mode.is_compatible(mode)
        });
        let result = match earlier {
            Some(earlier) => Err(format!(
                "a token that does not grow: {who} was granted {table}:{item} {mode:?} under \
                 {token} after {} was granted {} {:?} under {}",
                earlier.who, earlier.item, earlier.mode, earlier.token
            )),
            None => Ok(()),
        };
        // What a later grant of the same item and mode covers says no more.
        grants.retain(|old| old.item != *item || old.mode != mode || old.token > token);
        if grants.len() == GRANTS_MAX {
            grants.remove(0);
        }
        grants.push(Granted { who: who.to_owned(), item: item.clone(), mode, token });
        result
    }

    /// A holder that may believe in its lock is never refused by the data.
    pub(super) fn wrote(
        &mut self,
        who: &str,
        place: &str,
        token: FencingToken,
    ) -> Result<(), String> {
        match self.journals.get(place) {
            Some((highest, other)) if *highest > token => Err(format!(
                "the journal of {place} refuses {who} under {token}: {other} has written under \
                 {highest}"
            )),
            _ => {
                self.journals.insert(place.to_owned(), (token, who.to_owned()));
                Ok(())
            }
        }
    }
}
