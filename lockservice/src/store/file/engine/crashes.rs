//! Power fails at each write, each growth and each sync of a file store, and again while it is
//! repaired.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// The writes since the last sync, in order.
#[derive(Clone, Debug)]
enum Unsynced {
    Write { offset: usize, data: Vec<u8> },
    Len(usize),
}

/// The state that a failed step leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The power fails: so does everything after it.
    Power,
    /// The disk refuses this one step. A sync that fails forgets what it should have written, as
    /// Linux does, but goes on to show it.
    Refusal,
}

#[derive(Debug)]
struct DiskState {
    durable: Vec<u8>,
    shown: Vec<u8>,
    unsynced: Vec<Unsynced>,
    steps: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
    /// A disk that says it has synced and has not.
    lies: bool,
}

/// A disk in memory whose power can fail.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<DiskState>>);

impl Disk {
    fn new(content: &[u8], fault: Option<(usize, Fault)>) -> Self {
        let (durable, shown) = (content.to_vec(), content.to_vec());
        Self(Arc::new(Mutex::new(DiskState {
            durable,
            shown,
            unsynced: Vec::new(),
            steps: 0,
            fault,
            dead: false,
            lies: false,
        })))
    }

    fn with<T>(&self, call: impl FnOnce(&mut DiskState) -> T) -> T {
        call(&mut self.0.lock().expect("no panic while it is locked"))
    }

    fn failed(&self) -> bool {
        self.with(|state| state.fault.is_some_and(|(at, _)| state.steps > at))
    }

    /// The disk when the power is back: the synced writes, and those that `reached` it.
    fn after_power_failure(&self, reached: Reached) -> Vec<u8> {
        self.with(|state| {
            let mut disk = state.durable.clone();
            let mut unsynced = state.unsynced.clone();
            match reached {
                Reached::Nothing => unsynced.clear(),
                Reached::Everything => {}
                Reached::OnlyTheLast => {
                    unsynced = unsynced.split_off(unsynced.len().saturating_sub(1))
                }
                Reached::AllButTheLast => drop(unsynced.pop()),
                Reached::TornAndReordered(seed) => {
                    unsynced = tear(unsynced, &mut StdRng::seed_from_u64(seed))
                }
            }
            unsynced.iter().for_each(|step| apply(step, &mut disk));
            disk
        })
    }
}

/// Which of the writes that were not synced have reached the disk.
#[derive(Clone, Copy, Debug)]
enum Reached {
    Nothing,
    Everything,
    OnlyTheLast,
    AllButTheLast,
    TornAndReordered(u64),
}

/// Some of the writes, some only in part, in any order.
fn tear(steps: Vec<Unsynced>, random: &mut StdRng) -> Vec<Unsynced> {
    const SECTOR: usize = 512;
    let mut torn = Vec::new();
    for step in steps {
        match step {
            Unsynced::Len(_) if random.random() => torn.push(step),
            Unsynced::Len(_) => {}
            Unsynced::Write { offset, data } => match random.random_range(0..4) {
                0 => {}
                1 => torn.push(Unsynced::Write { offset, data }),
                // Cut off anywhere.
                2 => {
                    let cut = random.random_range(0..=data.len());
                    torn.push(Unsynced::Write { offset, data: data[..cut].to_vec() });
                }
                _ => {
                    for (n, sector) in data.chunks(SECTOR).enumerate().filter(|_| random.random()) {
                        torn.push(Unsynced::Write {
                            offset: offset + n * SECTOR,
                            data: sector.to_vec(),
                        });
                    }
                }
            },
        }
    }
    torn.shuffle(random);
    torn
}

fn apply(step: &Unsynced, disk: &mut Vec<u8>) {
    match step {
        Unsynced::Len(len) => disk.resize(*len, 0),
        Unsynced::Write { offset, data } => {
            disk.resize(disk.len().max(offset + data.len()), 0);
            disk[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

impl DiskState {
    /// Counts a step; fails if it is the one that fails, or if the power has failed.
    fn step(&mut self) -> io::Result<()> {
        let now = self.steps;
        self.steps += 1;
        match self.fault {
            Some((at, fault)) if at == now => {
                self.dead = fault == Fault::Power;
                Err(io::Error::other("a fault"))
            }
            _ if self.dead => Err(io::Error::other("the power has failed")),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Unsynced) -> io::Result<()> {
        let done = self.step();
        if done.is_ok() || self.dead && self.fault.is_some_and(|(at, _)| at + 1 == self.steps) {
            apply(&change, &mut self.shown);
            self.unsynced.push(change);
        }
        done
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|state| state.shown.len()) as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("small");
        self.with(|state| {
            if state.dead {
                return Err(io::Error::other("the power has failed"));
            }
            let found =
                state.shown.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(found);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|state| state.change(Unsynced::Len(usize::try_from(len).expect("small"))))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            let done = state.step();
            match &done {
                Ok(()) if state.lies => {}
                Ok(()) => {
                    for step in state.unsynced.drain(..) {
                        apply(&step, &mut state.durable);
                    }
                }
                // From now on no sync writes them.
                Err(_) if !state.dead => state.unsynced.clear(),
                Err(_) => {}
            }
            done
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("small");
        self.with(|state| state.change(Unsynced::Write { offset, data: data.to_vec() }))
    }
}

fn path() -> &'static Path {
    Path::new("crashes")
}

/// A new database, closed.
fn new_database() -> Vec<u8> {
    let disk = Disk::new(&[], None);
    let shared: Arc<dyn StorageBackend> = Arc::new(disk.clone());
    open_database(path(), &shared).expect("an empty disk").database.close().expect("closed");
    assert!(disk.with(|state| state.unsynced.is_empty()), "a closed database is synced");
    disk.with(|state| state.durable.clone())
}

/// Puts, overwrites and removals; some make the file grow.
fn batches() -> Vec<Vec<Change>> {
    let put =
        |key: u8, fill: u8, len: usize| Change::Put { key: vec![key], value: vec![fill; len] };
    (0..5u8)
        .map(|n| {
            let large = if n % 3 == 1 { 40_000 } else { 300 };
            let mut batch = vec![put(0, n, 10), put(10 + n, n, large), put(20 + n % 2, n, 2_000)];
            if n >= 2 {
                batch.push(Change::Delete { key: vec![10 + n - 2] });
            }
            batch
        })
        .collect()
}

fn entries_after(batches: &[Vec<Change>]) -> Entries {
    let mut entries = Entries::new();
    for change in batches.iter().flatten() {
        match change {
            Change::Put { key, value } => drop(entries.insert(key.clone(), value.clone())),
            Change::Delete { key } => drop(entries.remove(key)),
        }
    }
    entries
}

fn entries_of(engine: &FileEngine) -> Result<Entries> {
    let mut entries = Entries::new();
    engine.scan(&mut |key, value| {
        entries.insert(key.to_vec(), value.to_vec());
        Ok(())
    })?;
    Ok(entries)
}

/// Opens the store, writes batches until one fails, and closes it. Returns the number of batches
/// that were acknowledged.
fn write_until_failure(disk: &Disk, batches: &[Vec<Change>]) -> usize {
    let Ok(mut engine) = FileEngine::on(path(), disk.clone(), None) else { return 0 };
    batches.iter().take_while(|batch| engine.apply(batch).is_ok()).count()
}

/// Fails unless a store on `content` opens with what was acknowledged, or with the batch after it
/// too, whole.
fn check(content: &[u8], batches: &[Vec<Change>], acknowledged: usize) -> Result<(), String> {
    let engine = FileEngine::on(path(), Disk::new(content, None), None)
        .map_err(|e| format!("does not open: {e:?}"))?;
    let found = entries_of(&engine).map_err(|e| format!("cannot be read: {e:?}"))?;
    let most = batches.len().min(acknowledged + 1);
    let whole = (acknowledged..=most).any(|count| found == entries_after(&batches[..count]));
    if whole {
        Ok(())
    } else {
        Err(format!("{acknowledged} were acknowledged, found {:?}", found.keys()))
    }
}

const WHOLE: [Reached; 4] =
    [Reached::Nothing, Reached::Everything, Reached::OnlyTheLast, Reached::AllButTheLast];

fn all_of(seeds: u64, base: usize) -> impl Iterator<Item = Reached> {
    let torn = (0..seeds).map(move |seed| Reached::TornAndReordered(seed << 32 | base as u64));
    WHOLE.into_iter().chain(torn)
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails_at_any_write_or_sync_nor_when_it_fails_again_during_the_repair()
 {
    let (new, batches) = (new_database(), batches());
    let mut failures = 0;
    for at in 0.. {
        let disk = Disk::new(&new, Some((at, Fault::Power)));
        let acknowledged = write_until_failure(&disk, &batches);
        if !disk.failed() {
            assert_eq!(acknowledged, batches.len());
            break;
        }
        failures += 1;
        for reached in all_of(4, at) {
            let content = disk.after_power_failure(reached);
            if let Err(why) = check(&content, &batches, acknowledged) {
                panic!("power failed at step {at}, {reached:?}: {why}");
            }
        }
        // The same again while it is opened, which may repair it.
        let content = disk.after_power_failure(Reached::TornAndReordered(at as u64));
        for again in 0.. {
            let disk = Disk::new(&content, Some((again, Fault::Power)));
            drop(FileEngine::on(path(), disk.clone(), None));
            if !disk.failed() {
                break;
            }
            for reached in [Reached::Nothing, Reached::TornAndReordered((at << 16 | again) as u64)]
            {
                if let Err(why) = check(&disk.after_power_failure(reached), &batches, acknowledged)
                {
                    panic!(
                        "power failed at step {at} and at step {again} of the repair, \
                            {reached:?}: {why}"
                    );
                }
            }
        }
    }
    assert!(failures > 50, "only {failures} steps");
}

#[test]
fn nothing_acknowledged_is_lost_when_a_write_or_sync_is_refused_and_the_power_fails_later() {
    let (new, batches) = (new_database(), batches());
    for at in 0.. {
        let disk = Disk::new(&new, Some((at, Fault::Refusal)));
        let Ok(mut engine) = FileEngine::on(path(), disk.clone(), None) else { continue };
        let mut written = 0;
        for batch in &batches {
            while engine.apply(batch).is_err() {
                // As `ExclusiveStore` does: what is there decides whether the batch is.
                engine.reopen().unwrap_or_else(|e| panic!("refused at step {at}: {e:?}"));
                let found = entries_of(&engine).expect("readable");
                if found == entries_after(&batches[..=written]) {
                    break;
                }
                assert_eq!(found, entries_after(&batches[..written]), "refused at step {at}");
            }
            written += 1;
        }
        for reached in all_of(2, at) {
            if let Err(why) = check(&disk.after_power_failure(reached), &batches, written) {
                panic!("refused at step {at}, then {reached:?}: {why}");
            }
        }
        drop(engine);
        if !disk.failed() {
            break;
        }
    }
}

/// The tests above can fail: a disk whose syncs do nothing loses what was acknowledged.
#[test]
fn a_disk_that_lies_about_its_syncs_is_found_out() {
    let (new, batches) = (new_database(), batches());
    let disk = Disk::new(&new, Some((40, Fault::Power)));
    disk.with(|state| state.lies = true);
    let acknowledged = write_until_failure(&disk, &batches);
    assert!(acknowledged > 0 && disk.failed());
    check(&disk.after_power_failure(Reached::Nothing), &batches, acknowledged)
        .expect_err("it is lost");
}
