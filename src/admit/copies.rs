//! The index with the copied rows beside it: a load makes a slot of every row, and hardly one is
//! ever asked for.
//!
//! What one entry copied has one version, so its keys are a list, which is sorted when somebody
//! asks: only a live change of a copied row does, or a copy from another system. Too many lists
//! at once move into a store of their own, oldest first, which knows how to keep them on disk. As
//! long as all of that was copied from one system, the next rows from there need not look into it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet, VecDeque};

use super::index::{Slot, SlotStore, Slots};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::SystemId;

/// Keys in lists: 8 MiB.
const KEYS_MAX: usize = 1 << 19;

/// A [`SlotStore`], and what was copied.
pub(super) struct Index {
    store: Box<dyn SlotStore>,
    /// Oldest first.
    copies: VecDeque<Copies>,
    keys: usize,
    keys_max: usize,
    moved: Option<Moved>,
}

/// Lists that were too many.
struct Moved {
    store: Box<dyn SlotStore>,
    /// Whose rows they are copies of.
    from: BTreeSet<SystemId>,
}

/// Of one entry.
struct Copies {
    version: Slot,
    keys: Vec<u128>,
    sorted: bool,
}

impl Copies {
    fn has(&mut self, key: u128) -> bool {
        if !std::mem::replace(&mut self.sorted, true) {
            self.keys.sort_unstable();
        }
        self.keys.binary_search(&key).is_ok()
    }
}

impl Index {
    pub fn new(store: Box<dyn SlotStore>) -> Self {
        Index { store, copies: VecDeque::new(), keys: 0, keys_max: KEYS_MAX, moved: None }
    }

    /// Enters one version of many keys.
    pub fn put_copies(&mut self, mut keys: Vec<u128>, version: Slot) -> Result<()> {
        keys.shrink_to_fit();
        self.keys += keys.len();
        if !keys.is_empty() {
            self.copies.push_back(Copies { version, keys, sorted: false });
        }
        if self.keys <= self.keys_max {
            return Ok(());
        }
        match self.move_oldest() {
            // Where the disk takes nothing, twice as many may stay.
            Err(error) if self.keys <= 2 * self.keys_max => {
                tracing::warn!(error = %error.full(), "copied keys stay in memory");
                Ok(())
            }
            moved => moved,
        }
    }

    /// Half of the lists, so that it is seldom done, and in one run.
    fn move_oldest(&mut self) -> Result<()> {
        let moved = match &mut self.moved {
            Some(moved) => moved,
            None => self.moved.insert(Moved { store: self.store.sibling()?, from: BTreeSet::new() }),
        };
        let mut slots = Vec::with_capacity(self.keys - self.keys_max / 2);
        let (mut lists, mut keys) = (0, self.keys);
        for oldest in &self.copies {
            if keys <= self.keys_max / 2 {
                break;
            }
            (lists, keys) = (lists + 1, keys - oldest.keys.len());
            moved.from.insert(oldest.version.origin());
            slots.extend(oldest.keys.iter().map(|key| (*key, oldest.version)));
        }
        slots.sort_unstable_by_key(|(key, version)| (*key, Reverse(version.seq())));
        slots.dedup_by_key(|(key, _)| *key);
        moved.store.ingest(&mut slots.into_iter().map(Ok))?;
        self.copies.drain(..lists);
        self.keys = keys;
        Ok(())
    }

    /// What was copied, the oldest first.
    pub fn lists(&self) -> impl Iterator<Item = (Slot, &[u128])> {
        self.copies.iter().map(|copies| (copies.version, &copies.keys[..]))
    }

    /// The version that a row read from `reader` meets. What was copied from there itself it has.
    pub fn get_for_copy(&mut self, key: u128, reader: SystemId) -> Result<Option<Slot>> {
        let stored = self.store.get(key)?;
        let moved = match self.moved.as_mut().filter(|moved| moved.from.iter().any(|from| *from != reader)) {
            Some(moved) => moved.store.get(key)?.filter(|version| version.origin() != reader),
            None => None,
        };
        Ok(self.copied(key, |version| version.origin() != reader).max_by_seq(stored).max_by_seq(moved))
    }

    fn copied(&mut self, key: u128, counts: impl Fn(Slot) -> bool) -> Option<Slot> {
        let mut newest = self.copies.iter_mut().rev().filter(|copies| counts(copies.version));
        newest.find_map(|copies| copies.has(key).then_some(copies.version))
    }

    /// Into the store, unless that has a newer one.
    fn keep(&mut self, key: u128, version: Slot) -> Result<()> {
        match self.store.get(key)? {
            Some(stored) if stored.seq() >= version.seq() => Ok(()),
            _ => self.store.put(key, version),
        }
    }
}

trait Newest {
    fn max_by_seq(self, other: Option<Slot>) -> Option<Slot>;
}

impl Newest for Option<Slot> {
    fn max_by_seq(self, other: Option<Slot>) -> Option<Slot> {
        self.into_iter().chain(other).max_by_key(|slot| slot.seq())
    }
}

impl SlotStore for Index {
    fn get(&mut self, key: u128) -> Result<Option<Slot>> {
        let stored = self.store.get(key)?;
        let moved = match &mut self.moved {
            Some(moved) => moved.store.get(key)?,
            None => None,
        };
        Ok(self.copied(key, |_| true).max_by_seq(stored).max_by_seq(moved))
    }

    fn put(&mut self, key: u128, slot: Slot) -> Result<()> {
        self.store.put(key, slot)
    }

    fn forget_below(&mut self, floor: Seq, pinned: &HashSet<u128>) -> Result<()> {
        while self.copies.front().is_some_and(|oldest| oldest.version.seq() < floor) {
            let Some(mut gone) = self.copies.pop_front() else { break };
            self.keys -= gone.keys.len();
            for key in pinned {
                if gone.has(*key) {
                    self.keep(*key, gone.version)?;
                }
            }
        }
        if let Some(moved) = &mut self.moved {
            moved.store.forget_below(floor, pinned)?;
            if moved.store.is_empty() {
                self.moved = None;
            }
        }
        self.store.forget_below(floor, pinned)
    }

    fn slots(&self, floor: Seq, pinned: &HashSet<u128>) -> Slots {
        let mut slots = self.store.slots(floor, pinned);
        if let Some(moved) = &self.moved {
            let Slots { memory, runs, reading } = moved.store.slots(floor, pinned);
            slots.memory.extend(memory);
            slots.runs.extend(runs);
            slots.reading.extend(reading);
        }
        slots
    }

    fn fill(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        self.store.fill(sorted)
    }

    fn ingest(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        self.store.ingest(sorted)
    }

    fn sibling(&self) -> Result<Box<dyn SlotStore>> {
        self.store.sibling()
    }

    fn len(&self) -> usize {
        self.store.len() + self.moved.as_ref().map_or(0, |moved| moved.store.len()) + self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::MemoryStore;

    fn copy(seq: Seq, system: u8) -> Slot {
        Slot::copy(seq, SystemId(system), false)
    }

    fn live(seq: Seq) -> Slot {
        Slot::new(seq, SystemId(0), false, false)
    }

    fn index() -> Index {
        Index { keys_max: 4, ..Index::new(Box::new(MemoryStore::default())) }
    }

    #[test]
    fn the_newest_version_counts_wherever_it_is() {
        let mut index = index();
        index.put(1, live(1)).unwrap();
        index.put_copies(vec![3, 2, 1], copy(2, 0)).unwrap();
        index.put(2, live(3)).unwrap();

        assert_eq!(index.get(1).unwrap(), Some(copy(2, 0)));
        assert_eq!(index.get(2).unwrap(), Some(live(3)));
        assert_eq!(index.get(3).unwrap(), Some(copy(2, 0)));
        assert_eq!(index.get(4).unwrap(), None);
        assert_eq!(index.get_for_copy(3, SystemId(0)).unwrap(), None, "it has read that itself");
        assert_eq!(index.get_for_copy(3, SystemId(1)).unwrap(), Some(copy(2, 0)));
        assert_eq!(index.get_for_copy(1, SystemId(0)).unwrap(), Some(live(1)));
    }

    #[test]
    fn too_many_lists_move_into_a_store_and_hide_nothing_newer() {
        let mut index = index();
        index.put_copies(vec![1, 2, 3], copy(1, 0)).unwrap();
        index.put(2, live(2)).unwrap();
        index.put_copies(vec![4, 5], copy(3, 0)).unwrap();

        assert_eq!((index.copies.len(), index.keys, index.len()), (1, 2, 6));
        assert_eq!(index.get(1).unwrap(), Some(copy(1, 0)));
        assert_eq!(index.get(2).unwrap(), Some(live(2)));
        assert_eq!(index.get(5).unwrap(), Some(copy(3, 0)));
        assert_eq!(index.get_for_copy(1, SystemId(0)).unwrap(), None, "it has read that itself");
        assert_eq!(index.get_for_copy(1, SystemId(1)).unwrap(), Some(copy(1, 0)));
        assert_eq!(index.get_for_copy(2, SystemId(0)).unwrap(), Some(live(2)));
    }

    #[test]
    fn what_was_moved_is_in_a_checkpoint_and_the_newest_of_each_key() {
        let mut index = index();
        index.put(2, live(1)).unwrap();
        index.put_copies(vec![1, 2, 3], copy(2, 0)).unwrap();
        index.put_copies(vec![4, 3], copy(3, 1)).unwrap();
        index.put_copies(vec![1, 5], copy(4, 1)).unwrap();
        index.put(4, live(5)).unwrap();

        let sorted: Result<Vec<_>> = index.slots(0, &HashSet::new()).sorted().collect();

        let moved = [(1, copy(2, 0)), (2, copy(2, 0)), (3, copy(2, 0)), (4, live(5))];
        assert_eq!((sorted.unwrap(), index.keys), (moved.to_vec(), 4));
        assert_eq!(index.get(1).unwrap(), Some(copy(4, 1)));
        assert_eq!(index.get_for_copy(1, SystemId(1)).unwrap(), Some(copy(2, 0)));
        assert_eq!(index.get(3).unwrap(), Some(copy(3, 1)));
    }

    #[test]
    fn what_all_have_seen_goes_and_held_keys_stay() {
        let mut index = index();
        index.put_copies(vec![1, 2], copy(1, 0)).unwrap();
        index.put_copies(vec![3], copy(2, 0)).unwrap();

        index.forget_below(2, &HashSet::from([2])).unwrap();

        assert_eq!(index.get(1).unwrap(), None);
        assert_eq!(index.get(2).unwrap(), Some(copy(1, 0)));
        assert_eq!(index.get(3).unwrap(), Some(copy(2, 0)));
    }
}
