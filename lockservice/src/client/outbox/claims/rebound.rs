//! [`Rebound`]: under which binds claimed locks are held.

use std::collections::HashMap;

use lockservice_core::{BindVersion, TableRef};

use crate::proto;

/// The present versions of binds, by those under which locks were granted: a claim names the
/// version under which something was held at the last process of the server.
#[derive(Debug, Default)]
pub(in crate::client::outbox) struct Rebound(HashMap<TableRef, Vec<Versions>>);

#[derive(Debug)]
struct Versions {
    granted: BindVersion,
    present: BindVersion,
    /// Something is held that was granted under that version.
    in_use: bool,
}

/// The table and the version that a part of a claim names.
pub(super) type Named = (TableRef, BindVersion);

impl Rebound {
    /// The present version, for a lock that is held and was granted under `granted`.
    pub(super) fn present(&mut self, table: &TableRef, granted: BindVersion) -> BindVersion {
        let versions = self.0.get_mut(table).into_iter().flatten();
        match versions.into_iter().find(|it| it.granted == granted) {
            Some(it) => {
                it.in_use = true;
                it.present
            }
            None => granted,
        }
    }

    /// Forgets what was not [used](Self::present) since this was last called.
    pub(super) fn forget_unused(&mut self) {
        self.0.retain(|_, versions| {
            versions.retain_mut(|it| std::mem::take(&mut it.in_use));
            !versions.is_empty()
        });
    }

    /// What was claimed under these versions is held under those of the response.
    pub(super) fn claimed(&mut self, named: &[Named], response: &proto::Claimed) {
        for ((table, was), is) in named.iter().zip(&response.versions) {
            let is = BindVersion::new(*is);
            let versions = self.0.entry(table.clone()).or_default();
            for it in versions.iter_mut().filter(|it| it.present == *was) {
                it.present = is;
            }
            if versions.iter().all(|it| it.granted != *was) {
                versions.push(Versions { granted: *was, present: is, in_use: false });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_claimed_under_the_version_of_its_last_claim_over_any_number_of_restarts() {
        let (table, other) = (TableRef::new("g", "t"), TableRef::new("g", "u"));
        let (table, other) = (table.expect("names"), other.expect("names"));
        let version = BindVersion::new;
        let mut rebound = Rebound::default();
        for restart in 1..100 {
            // One lock since the start, and one of the last process.
            let old = rebound.present(&table, version(1));
            let new = rebound.present(&table, version(restart));
            assert_eq!((old, new), (version(restart), version(restart)));
            rebound.forget_unused();
            let named = [(table.clone(), old), (table.clone(), new)];
            let response = proto::Claimed { versions: vec![restart + 1; 2] };
            rebound.claimed(&named, &response);
            assert_eq!(rebound.present(&other, version(1)), version(1));
            assert!(rebound.0[&table].len() <= 3, "what nobody holds is forgotten");
        }
    }
}
