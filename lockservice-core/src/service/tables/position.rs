//! [`HeldPosition`]: a call's position in the line of its table.

use crate::error::Error;
use crate::id::TableRef;
use crate::service::ServiceInner;
use crate::service::tables::line::LinePosition;

/// A call's position in the line of its table. Dropped, it gives the position up.
pub(super) struct HeldPosition<'a> {
    inner: &'a ServiceInner,
    table: &'a TableRef,
    position: LinePosition,
}

impl<'a> HeldPosition<'a> {
    pub(super) fn new(
        inner: &'a ServiceInner,
        table: &'a TableRef,
        position: LinePosition,
    ) -> Self {
        Self { inner, table, position }
    }

    /// Gives the position up, and says why the call did not get the table.
    pub(super) fn give_up(&self) -> Option<Error> {
        self.inner.tables.lines.lock().leave(self.table, self.position, self.inner.parts.env.now())
    }
}

impl Drop for HeldPosition<'_> {
    fn drop(&mut self) {
        drop(self.give_up());
    }
}
