//! One owner for each version of a table's bind (B5, B6).

use std::collections::BTreeMap;

use lockservice_core::Bind;

/// The owners that clients were told of.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<(String, u32, u64), u64>);

impl Owners {
    pub(super) fn seen(&mut self, bind: &Bind) -> Result<(), String> {
        let place = (bind.table.to_string(), bind.partition, bind.version.get());
        let owner = *self.0.entry(place).or_insert(bind.owner.get());
        if owner == bind.owner.get() {
            return Ok(());
        }
        Err(format!(
            "two owners of version {} of {}: {owner} and {}",
            bind.version, bind.table, bind.owner
        ))
    }
}
