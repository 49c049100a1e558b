//! [`Turns`]: how work over many records lets other tasks run.

/// Records between two turns of other tasks: well below a millisecond's worth.
const RECORDS_AT_ONCE: usize = 256;

/// Lets other tasks run now and then, in a loop over records that may be a million.
///
/// # Cancel safety
/// Nothing is lost if a turn is dropped: it only counts.
#[derive(Debug, Default)]
pub struct Turns(usize);

impl Turns {
    /// Before each record.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) {
        self.after(1).await;
    }

    /// After so many records.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn after(&mut self, records: usize) {
        self.0 += records;
        if self.0 >= RECORDS_AT_ONCE {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}
