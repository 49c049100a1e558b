//! [`Slots`]: values in slots that are used again.

/// The values, each by a key that it gets. A look-up is an index, and a slot that is free again is
/// used by the next value.
///
/// The key of a value that was [finished](Self::finished) may be given again: nothing more comes
/// for it. The key of one that was [dropped](Self::dropped) is not, so that what comes late for it
/// finds nothing.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// How many values were dropped here.
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts a value in, and returns its key, which is not 0.
    pub(super) fn insert(&mut self, value: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            // 2^32 values do not fit into memory.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | (u64::from(at) + 1)
    }

    fn at(&self, key: u64) -> Option<usize> {
        let at = usize::try_from(key & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
        let slot = self.slots.get(at)?;
        (u64::from(slot.generation) == key >> 32).then_some(at)
    }

    pub(super) fn get(&self, key: u64) -> Option<&T> {
        self.slots[self.at(key)?].value.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let at = self.at(key)?;
        self.slots[at].value.as_mut()
    }

    /// Takes a value out for which nothing more comes.
    pub(super) fn finished(&mut self, key: u64) -> Option<T> {
        let at = self.at(key)?;
        let value = self.slots[at].value.take()?;
        self.free.push(at as u32);
        Some(value)
    }

    /// Takes a value out for which something may yet come.
    pub(super) fn dropped(&mut self, key: u64) -> Option<T> {
        let at = self.at(key)?;
        let value = self.finished(key)?;
        self.slots[at].generation = self.slots[at].generation.wrapping_add(1);
        Some(value)
    }

    /// Every value, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }

    /// Every value with its key, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (1..).zip(&self.slots).filter_map(|(place, slot): (u64, _)| {
            Some((u64::from(slot.generation) << 32 | place, slot.value.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_used_again_and_what_comes_late_for_a_dropped_value_finds_nothing() {
        let mut slots = Slots::default();
        let [a, b] = ["a", "b"].map(|value| slots.insert(value));
        assert_eq!([a, 0, 3].map(|key| slots.get_mut(key).copied()), [Some("a"), None, None]);
        assert_eq!((slots.finished(a), slots.finished(a)), (Some("a"), None));
        let c = slots.insert("c");
        assert_eq!(c, a, "nothing more comes for the first");
        assert_eq!(slots.dropped(b), Some("b"));
        let d = slots.insert("d");
        assert_ne!(d, b);
        assert!(slots.get_mut(b).is_none() && slots.dropped(b).is_none());
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(c, &"c"), (d, &"d")]);
        assert_eq!(slots.slots.len(), 2);
    }
}
