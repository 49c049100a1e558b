//! Keys, ranges, modes and tables.

use std::ops::Bound;

use lockservice_core::{Error, ErrorKind, Key, KeyRange, LockItem, LockMode, Result, TableRef};
use prost::bytes::Bytes;

use crate::proto;

/// The table of a request; an empty group is `default`.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn table_from_proto(group: &str, table: &str) -> Result<TableRef> {
    TableRef::new(if group.is_empty() { "default" } else { group }, table)
}

/// The items of a request, at most `most` of them.
///
/// # Errors
/// `InvalidArgument` if there are more, or the message cannot be read.
pub fn items_from_proto(
    rows: &[Bytes],
    ranges: &[proto::KeyRange],
    most: usize,
) -> Result<Vec<LockItem>> {
    let count = rows.len() + ranges.len();
    if count > most {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "too many keys in one request: lock fewer at a time, or a range that covers them",
        )
        .with("keys", count)
        .with("limit", most));
    }
    let mut items = Vec::with_capacity(count);
    for row in rows {
        items.push(item_from_row(row)?);
    }
    for range in ranges {
        items.push(item_from_range(range)?);
    }
    Ok(items)
}

/// One row.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn item_from_row(row: &[u8]) -> Result<LockItem> {
    Key::new(row).map(LockItem::Row)
}

/// One range.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn item_from_range(range: &proto::KeyRange) -> Result<LockItem> {
    range_from_proto(range).map(LockItem::Range)
}

/// A range. A bound that is not set is an error: a forgotten bound must not lock the whole table.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn range_from_proto(range: &proto::KeyRange) -> Result<KeyRange> {
    KeyRange::new(bound_from_proto(range.start.as_ref())?, bound_from_proto(range.end.as_ref())?)
}

fn bound_from_proto(bound: Option<&proto::Bound>) -> Result<Bound<Key>> {
    use proto::bound::Bound as Wire;
    match bound.and_then(|bound| bound.bound.as_ref()) {
        Some(Wire::Included(key)) => Ok(Bound::Included(Key::new(key)?)),
        Some(Wire::Excluded(key)) => Ok(Bound::Excluded(Key::new(key)?)),
        Some(Wire::Unbounded(_)) => Ok(Bound::Unbounded),
        None => Err(Error::new(
            ErrorKind::InvalidArgument,
            "a bound of a range is not set: say included, excluded or unbounded",
        )),
    }
}

/// The range as a message.
pub fn range_to_proto(range: &KeyRange) -> proto::KeyRange {
    proto::KeyRange {
        start: Some(bound_to_proto(range.start())),
        end: Some(bound_to_proto(range.end())),
    }
}

fn bound_to_proto(bound: Bound<&Key>) -> proto::Bound {
    use proto::bound::Bound as Wire;
    let bound = match bound {
        Bound::Included(key) => Wire::Included(bytes(key)),
        Bound::Excluded(key) => Wire::Excluded(bytes(key)),
        Bound::Unbounded => Wire::Unbounded(proto::Unbounded {}),
    };
    proto::Bound { bound: Some(bound) }
}

/// The items of a request as rows and ranges.
pub fn items_to_proto(items: &[LockItem]) -> (Vec<Bytes>, Vec<proto::KeyRange>) {
    let (mut rows, mut ranges) = (Vec::new(), Vec::new());
    set_items_to_proto(items, &mut rows, &mut ranges);
    (rows, ranges)
}

/// The items of a request in the place of those of another one.
pub(super) fn set_items_to_proto(
    items: &[LockItem],
    rows: &mut Vec<Bytes>,
    ranges: &mut Vec<proto::KeyRange>,
) {
    rows.clear();
    ranges.clear();
    for item in items {
        push_item_to_proto(item, rows, ranges);
    }
}

/// Adds an item to rows and ranges.
pub fn push_item_to_proto(
    item: &LockItem,
    rows: &mut Vec<Bytes>,
    ranges: &mut Vec<proto::KeyRange>,
) {
    match item {
        LockItem::Row(key) => rows.push(bytes(key)),
        LockItem::Range(range) => ranges.push(range_to_proto(range)),
    }
}

pub(super) fn bytes(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// A mode; unspecified is exclusive.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn mode_from_proto(mode: i32) -> Result<LockMode> {
    match proto::LockMode::try_from(mode) {
        Ok(proto::LockMode::Unspecified | proto::LockMode::Exclusive) => Ok(LockMode::Exclusive),
        Ok(proto::LockMode::Shared) => Ok(LockMode::Shared),
        Ok(proto::LockMode::Update) => Ok(LockMode::Update),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidArgument, "this server does not know the lock mode")
                .with("mode", mode))
        }
    }
}

/// The mode as its number on the wire.
pub fn mode_to_proto(mode: LockMode) -> i32 {
    match mode {
        LockMode::Exclusive => proto::LockMode::Exclusive,
        LockMode::Shared => proto::LockMode::Shared,
        LockMode::Update => proto::LockMode::Update,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    #[test]
    fn rows_and_ranges_with_every_kind_of_bound_cross_the_wire() {
        let bounds = |a: &str| [Bound::Included(key(a)), Bound::Excluded(key(a)), Bound::Unbounded];
        let mut items = vec![LockItem::Row(key("\0é"))];
        for start in bounds("a") {
            for end in bounds("c") {
                items.push(LockItem::Range(KeyRange::new(start.clone(), end).expect("a range")));
            }
        }
        let (rows, ranges) = items_to_proto(&items);
        assert_eq!(items_from_proto(&rows, &ranges, 10).expect("own message"), items);
    }

    #[test]
    fn bad_items_are_refused_and_never_panic() {
        let too_long = vec![0; 4097];
        for row in [&b""[..], &too_long] {
            assert_eq!(item_from_row(row).expect_err("bad").kind(), ErrorKind::InvalidArgument);
        }
        let bound = |key: &'static str| {
            Some(proto::Bound {
                bound: Some(proto::bound::Bound::Included(Bytes::from_static(key.as_bytes()))),
            })
        };
        let ranges = [
            proto::KeyRange { start: bound("b"), end: bound("a") },
            proto::KeyRange { start: bound(""), end: bound("a") },
            proto::KeyRange { start: bound("a"), end: None },
            proto::KeyRange { start: Some(proto::Bound { bound: None }), end: bound("a") },
        ];
        for range in ranges {
            assert_eq!(
                range_from_proto(&range).expect_err("bad").kind(),
                ErrorKind::InvalidArgument
            );
        }
        assert!(mode_from_proto(77).is_err());
        assert_eq!(
            items_from_proto(&[Bytes::from_static(b"a"), Bytes::from_static(b"b")], &[], 1)
                .expect_err("too many")
                .kind(),
            ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn modes_cross_the_wire() {
        for mode in LockMode::ALL {
            assert_eq!(mode_from_proto(mode_to_proto(mode)).expect("own mode"), mode);
        }
    }
}
