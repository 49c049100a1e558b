//! The rows of a shard, in chunks that are given back when they are empty.

use super::handles::HoldSeq;
use crate::id::{FencingToken, ServiceId, TxnId, TxnNumber};
use crate::key::{Key, LockMode};

/// A row that is held here, or that the state has an entry for.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: Key,
    /// The holder. Meaningless unless the row is held here.
    pub(super) txn: TxnId,
    /// In a free slot: the number of the next free one.
    pub(super) token: FencingToken,
    pub(super) seq: HoldSeq,
    pub(super) state: RowState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RowState {
    /// The slot has no row.
    Free,
    /// `txn` holds it, and no other transaction wants it.
    Held(LockMode),
    /// The state decides about it.
    Contended,
}

/// Rows of a full chunk.
const CHUNK: usize = 256;

/// Rows for which an empty chunk keeps its memory.
const KEPT: usize = 8;

/// No slot.
const NONE: u32 = u32::MAX;

/// See the module. A slot keeps its number until its row is removed.
#[derive(Debug, Default)]
pub(super) struct Slab {
    chunks: Vec<Chunk>,
    /// The chunks that may have room.
    with_room: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Chunk {
    rows: Vec<Row>,
    /// The first free slot.
    free: u32,
    len: u32,
    /// It is among those with room.
    listed: bool,
}

impl Row {
    /// A row that the state decides about.
    pub(super) const fn contended(key: Key) -> Self {
        let txn = TxnId::new(ServiceId::new(0), TxnNumber::new(0), false);
        let (token, seq) = (FencingToken::new(0), HoldSeq::FIRST);
        Self { key, txn, token, seq, state: RowState::Contended }
    }

    const fn free(next: u32) -> Self {
        let mut row = Self::contended(Key::empty());
        row.token = FencingToken::new(next as u64);
        row.state = RowState::Free;
        row
    }

    /// True if `txn` holds it here.
    pub(super) fn is_held_by(&self, txn: TxnId) -> bool {
        self.txn == txn && matches!(self.state, RowState::Held(_))
    }
}

impl Slab {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Row> {
        let (chunk, at) = split(slot);
        self.chunks.get(chunk)?.rows.get(at)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Row> {
        let (chunk, at) = split(slot);
        self.chunks.get_mut(chunk)?.rows.get_mut(at)
    }

    /// The key in a slot that has a row.
    pub(super) fn key(&self, slot: u32) -> &Key {
        let (chunk, at) = split(slot);
        &self.chunks[chunk].rows[at].key
    }

    /// Adds a row and returns its slot.
    pub(super) fn insert(&mut self, row: Row) -> u32 {
        self.len += 1;
        while let Some(&number) = self.with_room.last() {
            let chunk = &mut self.chunks[number as usize];
            let at = chunk.free;
            if at != NONE {
                let free = &mut chunk.rows[at as usize];
                chunk.free = free.token.get() as u32;
                *free = row;
                chunk.len += 1;
                return number * CHUNK as u32 + at;
            }
            if chunk.rows.len() < CHUNK {
                chunk.rows.push(row);
                chunk.len += 1;
                return number * CHUNK as u32 + chunk.rows.len() as u32 - 1;
            }
            chunk.listed = false;
            self.with_room.pop();
        }
        // `lock_bytes_max` ends long before 2^32 rows.
        let number = self.chunks.len() as u32;
        self.chunks.push(Chunk { rows: vec![row], free: NONE, len: 1, listed: true });
        self.with_room.push(number);
        number * CHUNK as u32
    }

    /// Removes the row in a slot that has one.
    pub(super) fn remove(&mut self, slot: u32) -> Row {
        self.len -= 1;
        let (number, at) = split(slot);
        let chunk = &mut self.chunks[number];
        let row = std::mem::replace(&mut chunk.rows[at], Row::free(chunk.free));
        chunk.free = at as u32;
        chunk.len -= 1;
        if chunk.len == 0 && chunk.rows.capacity() > KEPT {
            (chunk.rows, chunk.free) = (Vec::new(), NONE);
        }
        if !std::mem::replace(&mut chunk.listed, true) {
            self.with_room.push(number as u32);
        }
        if self.len == 0 && self.chunks.len() > 1 {
            *self = Self::default();
        }
        row
    }

    /// The slots that have a row, from `slot` on, with their rows.
    pub(super) fn from(&self, slot: u32) -> impl Iterator<Item = (u32, &Row)> {
        let (first, at) = split(slot);
        let chunks = self.chunks.iter().enumerate().skip(first);
        chunks.flat_map(move |(number, chunk)| {
            let skip = if number == first { at } else { 0 };
            let rows = chunk.rows.iter().enumerate().skip(skip);
            rows.filter(|(_, row)| row.state != RowState::Free)
                .map(move |(at, row)| ((number * CHUNK + at) as u32, row))
        })
    }
}

const fn split(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK, slot as usize % CHUNK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn slots_are_used_again_and_empty_chunks_are_freed() {
        let mut random = StdRng::seed_from_u64(1);
        let (mut slab, mut expected) = (Slab::default(), BTreeMap::new());
        for round in 0..20_000_u32 {
            // Long times in which it grows, and as long ones in which it shrinks.
            if random.random_bool(if round / 2_500 % 2 == 0 { 0.8 } else { 0.2 }) {
                let key = Key::new(round.to_be_bytes()).expect("a key");
                let slot = slab.insert(Row::contended(key.clone()));
                assert!(expected.insert(slot, key).is_none(), "a slot has one row");
            } else if let Some(slot) = expected.keys().nth(random.random_range(0..50)).copied() {
                assert_eq!(Some(slab.remove(slot).key), expected.remove(&slot));
            }
            assert_eq!(slab.len(), expected.len());
        }
        assert!(
            slab.from(0)
                .map(|(slot, row)| (slot, &row.key))
                .eq(expected.iter().map(|(slot, key)| (*slot, key)))
        );
        for slot in expected.into_keys() {
            slab.remove(slot);
        }
        let kept: usize = slab.chunks.iter().map(|chunk| chunk.rows.capacity()).sum();
        assert!(kept <= KEPT, "{kept} rows are kept");
        assert_eq!(slab.from(0).count(), 0);
    }

    #[test]
    fn a_row_with_a_short_key_takes_a_cache_line() {
        assert_eq!(size_of::<Row>(), 64);
    }
}
