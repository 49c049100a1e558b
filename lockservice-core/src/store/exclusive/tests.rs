use super::super::{Op, encode};
use super::*;
use crate::id::{ServiceId, TxnCounter, TxnId};
use crate::store::Visit;

/// Entries, of which those from `broken_from` on cannot be read.
#[derive(Clone, Debug)]
struct Entries {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    broken_from: usize,
}

impl KeyValue for Entries {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone()))
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<()> {
        for (at, (key, value)) in self.entries.iter().enumerate() {
            if at == self.broken_from {
                return Err(Error::new(ErrorKind::StoreCorrupt, "a damaged page"));
            }
            visit(key, value)?;
        }
        Ok(())
    }

    fn apply(&mut self, _: &[Change]) -> Result<()> {
        panic!("nothing is to be written")
    }

    fn reopen(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Sound records and, between them, `damaged` ones.
fn entries(damaged: usize) -> Entries {
    let txn = |counter| TxnId { origin: ServiceId::new(1), counter: TxnCounter::new(counter) };
    let put = |op| match layout::changes(&vec![op]).pop() {
        Some(Change::Put { key, value }) => (key, value),
        other => panic!("{other:?}"),
    };
    let mut entries = vec![(FORMAT_KEY.to_vec(), b"1".to_vec())];
    for counter in 0..damaged as u64 {
        let (key, sound) = put(Op::PutTombstone(txn(2 * counter)));
        entries.push((key.clone(), sound));
        let (moved, _) = put(Op::PutTombstone(txn(2 * counter + 1)));
        entries.push((moved, encode(&txn(2 * counter))));
    }
    Entries { entries, broken_from: usize::MAX }
}

async fn inspect(entries: Entries) -> Result<Inspection> {
    ExclusiveStore::inspect("mine:".to_owned(), move || Ok(entries)).await
}

fn records(inspection: &Inspection) -> Vec<&str> {
    let records = inspection.damage.named().iter().flat_map(Error::context);
    records.filter(|(name, _)| *name == "record").map(|(_, record)| record).collect()
}

#[tokio::test]
async fn an_inspection_names_every_damaged_record_and_an_open_refuses_the_first() {
    let engine = entries(3);
    let inspection = inspect(engine.clone()).await.expect("a store");
    let damaged = [1, 3, 5]
        .map(|counter| TxnId { origin: ServiceId::new(1), counter: TxnCounter::new(counter) });
    assert_eq!(records(&inspection), damaged.map(|txn| format!("tombstone {txn}")));
    assert_eq!((inspection.state.tombstones.len(), inspection.store.as_str()), (3, "mine:"));
    let refused =
        ExclusiveStore::open("mine:".to_owned(), move || Ok(engine)).await.expect_err("damaged");
    assert!(
        refused.to_string().contains(&format!("record: tombstone {}", damaged[0])),
        "{refused}"
    );
}

#[tokio::test]
async fn what_an_engine_cannot_read_on_from_ends_an_inspection_but_loses_nothing_of_it() {
    let inspection = inspect(Entries { broken_from: 4, ..entries(3) }).await.expect("a store");
    let damaged =
        format!("tombstone {}", TxnId { origin: ServiceId::new(1), counter: TxnCounter::new(1) });
    assert_eq!(records(&inspection), [damaged.as_str(), "all that were not read yet"]);
    assert_eq!(inspection.state.tombstones.len(), 2);
}

#[tokio::test]
async fn what_is_no_store_of_this_format_is_not_inspected() {
    let mut engine = entries(1);
    engine.entries[0].1 = b"2".to_vec();
    assert_eq!(inspect(engine.clone()).await.expect_err("newer").kind(), ErrorKind::StoreNewer);
    engine.entries[0].1 = b"?".to_vec();
    assert_eq!(
        records(&inspect(engine.clone()).await.expect("damaged")),
        ["format", "tombstone 1-1"]
    );
    engine.entries.remove(0);
    assert_eq!(
        inspect(engine.clone()).await.expect_err("no store").kind(),
        ErrorKind::StoreCorrupt
    );
    engine.entries.clear();
    assert_eq!(inspect(engine).await.expect("empty").state, StoreState::default());
}
