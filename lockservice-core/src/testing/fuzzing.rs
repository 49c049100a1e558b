//! What a fuzzer feeds bytes to. Each function takes any input, and panics where a promise about it
//! does not hold.

use crate::maintenance::Dump;
use crate::store::{Batch, Change, Op, StoreState, absorb, changes};

/// An entry of a store of keys and values, as a damaged disk or another program may have left it.
/// The first byte of `input` says how long the key is.
///
/// # Panics
/// If a refused entry adds something, or if an entry that was read is another one once it is
/// written again.
pub fn fuzz_store_entry(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else { return };
    let mut state = StoreState::default();
    if absorb(&mut state, key, value).is_err() {
        assert_eq!(state, StoreState::default(), "a refused entry adds nothing");
        return;
    }
    // The head is not part of a batch.
    let mut again = StoreState { epoch: state.epoch, applied: state.applied, ..Default::default() };
    for change in changes(&batch(&state)) {
        let Change::Put { key: written, value } = change else { continue };
        assert_eq!(written, key, "an entry stands under its own key");
        absorb(&mut again, &written, &value).expect("what was written can be read");
    }
    assert_eq!(again, state);
}

/// A dump of a store.
///
/// # Panics
/// If a dump that was read is another one once it is written and read again.
pub fn fuzz_dump(input: &[u8]) {
    let Ok(dump) = Dump::read_from(input) else { return };
    let mut written = Vec::new();
    dump.write_to(&mut written).expect("memory does not fail");
    let again = Dump::read_from(written.as_slice()).expect("what was written can be read");
    assert_eq!(again, dump);
}

/// The batch that writes a state.
fn batch(state: &StoreState) -> Batch {
    let mut ops: Batch = state.constants.map(Op::PutConstants).into_iter().collect();
    ops.extend(state.tables.iter().cloned().map(Op::PutTable));
    ops.extend(state.services.iter().cloned().map(Op::PutService));
    ops.extend((!state.forgotten.is_none()).then_some(Op::PutForgotten(state.forgotten)));
    ops.extend(state.tombstones.iter().copied().map(Op::PutTombstone));
    ops
}
