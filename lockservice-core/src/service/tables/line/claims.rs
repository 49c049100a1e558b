//! The lines of tables that take claims after a restart (P6).

use std::sync::Arc;

use tokio::sync::Notify;

use crate::id::TableRef;
use crate::service::tables::line::Lines;
use crate::table::TableHandle;

impl Lines {
    /// From here on a table takes claims under `bound`: its line stays until they are over. Returns
    /// what is [returned](Joined::new_line) to the first call of a line, if the table has none.
    pub(in crate::service) fn begin_claims(
        &mut self,
        table: &TableRef,
        bound: &TableHandle,
    ) -> Option<Arc<Notify>> {
        let is_new = !self.lines.contains_key(table);
        let line = self.lines.entry(table.clone()).or_default();
        (line.bound, line.takes_claims) = (Some(bound.clone()), true);
        if std::mem::take(&mut line.is_deserted) {
            self.deserted -= 1;
        }
        is_new.then(|| Arc::clone(&line.deserted))
    }

    /// The claims of a table are over: its binder hands it over to the calls of the line.
    pub(in crate::service) fn end_claims(&mut self, table: &TableRef) {
        if let Some(line) = self.lines.get_mut(table) {
            line.takes_claims = false;
        }
    }

    /// Wakes the binder of a table, whose claims may be over.
    pub(in crate::service) fn look_again(&self, table: &TableRef) {
        if let Some(line) = self.lines.get(table) {
            line.deserted.notify_one();
        }
    }
}
