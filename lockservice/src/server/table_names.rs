//! [`TableNames`]: the names of the tables whose numbers a commit presents.

use std::collections::HashMap;
use std::time::Duration;

use lockservice_core::allocator::{LockTableAllocator, PresentedBind};
use lockservice_core::{Error, ErrorKind, Result, TableId, TableRef};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Principal;

/// The least time between two looks at all binds, however many unknown tables are presented.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The names of the tables that were bound at the last look. A table keeps its number.
#[derive(Debug, Default)]
pub(super) struct TableNames(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    names: HashMap<TableId, TableRef>,
    looked: Option<Instant>,
}

impl TableNames {
    /// Fails with `NotPermitted` unless `caller` may use the tables of all `binds`, and as the
    /// allocator's status does. A table that is not bound fails in the same way as one that the
    /// caller may not use.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn check(
        &self,
        allocator: &dyn LockTableAllocator,
        binds: &[PresentedBind],
        caller: &Principal,
    ) -> Result<()> {
        let mut known = self.0.lock().await;
        if binds.iter().any(|bind| !known.names.contains_key(&bind.table)) {
            known.look(allocator).await?;
        }
        for bind in binds {
            let name = known.names.get(&bind.table);
            if name.is_none_or(|name| caller.may_use(name).is_err()) {
                return Err(Error::new(
                    ErrorKind::NotPermitted,
                    "the commit presents a table that the caller's identity may not use, or that \
                     is not bound: present those that were locked",
                )
                .with("table_id", bind.table));
            }
        }
        Ok(())
    }
}

impl Known {
    async fn look(&mut self, allocator: &dyn LockTableAllocator) -> Result<()> {
        if let Some(looked) = self.looked {
            tokio::time::sleep_until(looked + LOOK_INTERVAL).await;
        }
        let status = allocator.status().await?;
        let binds = status.binds.into_iter().map(|status| status.bind);
        self.names = binds.map(|bind| (bind.id, bind.table)).collect();
        self.looked = Some(Instant::now());
        Ok(())
    }
}
