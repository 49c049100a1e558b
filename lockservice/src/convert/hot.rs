//! The rows and ranges that calls wait for most.

use std::time::Duration;

use lockservice_core::service::{HotCounts, HotKey, HotWindow};
use lockservice_core::{Error, ErrorKind, Result};

use super::status::item_to_proto;
use super::{item_from_range, item_from_row, millis_down, table_from_proto};
use crate::proto;

/// A window as its number on the wire.
pub fn hot_window_to_proto(window: HotWindow) -> i32 {
    match window {
        HotWindow::Minute => proto::HotWindow::Minute.into(),
        // This version knows no other.
        _ => proto::HotWindow::TenMinutes.into(),
    }
}

/// The window of a request.
///
/// # Errors
/// `InvalidArgument` for one that this version does not know.
pub fn hot_window_from_proto(window: i32) -> Result<HotWindow> {
    match proto::HotWindow::try_from(window) {
        Ok(proto::HotWindow::Minute) => Ok(HotWindow::Minute),
        Ok(proto::HotWindow::TenMinutes) => Ok(HotWindow::TenMinutes),
        Err(_) => Err(Error::new(
            ErrorKind::InvalidArgument,
            "a window is 0 (the last ten minutes) or 1 (the last minute)",
        )
        .with("window", window)),
    }
}

/// A line as a message.
pub fn hot_key_to_proto(key: &HotKey) -> proto::HotInfo {
    use proto::hot_info::Item;
    proto::HotInfo {
        group: key.table.group.to_string(),
        table: key.table.name.to_string(),
        item: Some(item_to_proto(&key.item, Item::Row, Item::Range)),
        minute: Some(counts_to_proto(&key.minute)),
        ten_minutes: Some(counts_to_proto(&key.ten_minutes)),
        last_ms: millis_down(key.last),
        waiting: key.waiting as u64,
        cut: false,
    }
}

/// The line in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn hot_key_from_proto(info: proto::HotInfo) -> Result<HotKey> {
    use proto::hot_info::Item;
    Ok(HotKey {
        table: table_from_proto(&info.group, &info.table)?,
        item: match info.item {
            Some(Item::Row(row)) => item_from_row(&row)?,
            Some(Item::Range(range)) => item_from_range(&range)?,
            None => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a hot key names neither a row nor a range",
                ));
            }
        },
        minute: counts_from_proto(&info.minute.unwrap_or_default()),
        ten_minutes: counts_from_proto(&info.ten_minutes.unwrap_or_default()),
        last: Duration::from_millis(info.last_ms),
        waiting: usize::try_from(info.waiting).unwrap_or(usize::MAX),
    })
}

fn counts_to_proto(counts: &HotCounts) -> proto::HotCounts {
    proto::HotCounts {
        waits: counts.waits,
        waited_us: micros(counts.waited),
        longest_us: micros(counts.longest),
        missed_us: micros(counts.missed),
    }
}

fn counts_from_proto(counts: &proto::HotCounts) -> HotCounts {
    HotCounts {
        waits: counts.waits,
        waited: Duration::from_micros(counts.waited_us),
        longest: Duration::from_micros(counts.longest_us),
        missed: Duration::from_micros(counts.missed_us),
    }
}

/// Whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use lockservice_core::{Key, KeyRange, LockItem, TableRef};

    use super::*;

    /// A line whose every number is another.
    pub(crate) fn example(item: LockItem) -> HotKey {
        let counts = |n| HotCounts {
            waits: n,
            waited: Duration::from_micros(n + 1),
            longest: Duration::from_micros(n + 2),
            missed: Duration::from_micros(n + 3),
        };
        HotKey {
            table: TableRef::new("g", "t").expect("a name"),
            item,
            minute: counts(1),
            ten_minutes: counts(10),
            last: Duration::from_millis(7),
            waiting: 3,
        }
    }

    #[test]
    fn hot_keys_and_windows_cross_the_wire() {
        for item in
            [LockItem::Row(Key::new("k").expect("a key")), LockItem::Range(KeyRange::whole_table())]
        {
            let key = example(item);
            assert_eq!(hot_key_from_proto(hot_key_to_proto(&key)).expect("own message"), key);
        }
        for window in [HotWindow::Minute, HotWindow::TenMinutes] {
            let read = hot_window_from_proto(hot_window_to_proto(window));
            assert_eq!(read.expect("own number"), window);
        }
        let unknown = hot_window_from_proto(7).expect_err("not known");
        assert_eq!(unknown.kind(), ErrorKind::InvalidArgument);
    }
}
