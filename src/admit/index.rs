//! The index: which journaled version of a key some system may not have seen yet.
//!
//! One slot per key and class of fields ([`super::topology`]), eight bytes each, because a
//! transaction of a million rows makes a million of them. A slot that every system has seen
//! is harmless: its seq is at or below every later base, so it never makes a conflict. That
//! is why forgetting may be lazy and needs no list of keys per entry.
//!
//! It is derived state: a checkpoint of it and what the journal has behind that, or all that the
//! journal has from where some system still is behind, give it back ([`super::Arbiter::replay`]).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::error::Result;
use crate::position::Seq;
use crate::schema::SystemId;

/// The latest journaled version of one slot of one key.
///
/// ```text
/// seq 48 bits | origin 8 bits | flags 8 bits
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u64);

const EVERYWHERE: u64 = 1;
const DELETED: u64 = 2;
const COPIED: u64 = 4;
const DECIDED: u64 = 8;

impl Slot {
    pub fn new(seq: Seq, origin: SystemId, everywhere: bool, deleted: bool) -> Self {
        debug_assert!(seq < 1 << 48, "seq fits in 48 bits");
        let flags = if everywhere { EVERYWHERE } else { 0 } | if deleted { DELETED } else { 0 };
        Slot(seq << 16 | u64::from(origin.0) << 8 | flags)
    }

    pub fn seq(self) -> Seq {
        self.0 >> 16
    }

    pub fn origin(self) -> SystemId {
        SystemId((self.0 >> 8) as u8)
    }

    /// Its origin gets it back, too.
    pub fn everywhere(self) -> bool {
        self.0 & EVERYWHERE != 0
    }

    /// The row was deleted by it.
    pub fn deleted(self) -> bool {
        self.0 & DELETED != 0
    }

    /// A row that was read from `origin` (or found missing there), not written there: it yields to
    /// every live change.
    pub fn copy(seq: Seq, origin: SystemId, deleted: bool) -> Self {
        Slot(Slot::new(seq, origin, false, deleted).0 | COPIED)
    }

    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// A person's: nothing that has not seen it wins against it.
    pub fn decided(seq: Seq, deleted: bool) -> Self {
        Slot(Slot::new(seq, NOBODY, false, deleted).0 | DECIDED)
    }

    /// The same deletion, told once more by entry `seq`: still of who deleted.
    #[must_use]
    pub fn told_again(self, seq: Seq) -> Self {
        if self.is_decided() { Slot::decided(seq, true) } else { Slot::new(seq, self.origin(), true, true) }
    }

    pub fn is_decided(self) -> bool {
        self.0 & DECIDED != 0
    }
}

/// The origin of what no system wrote, or of one that is gone from the configuration.
pub const NOBODY: SystemId = SystemId(u8::MAX);

/// The index's key of slot number `slot` of a row.
pub fn slot_key(key_hash: u128, slot: usize) -> u128 {
    const MIX: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    key_hash ^ (slot as u128).wrapping_mul(MIX)
}

/// The number under which an additive slot's latest difference by `origin` is kept; its latest whole value
/// has the slot's own. Those that go back to their origin count apart: it has not seen them before they
/// come back.
pub fn added(slot: usize, origin: SystemId, everywhere: bool) -> usize {
    // Above every slot; 256 origins, each twice.
    128 + slot * 512 + usize::from(origin.0) * 2 + usize::from(everywhere)
}

/// The number under which is kept what `origin` alone gets back of an additive slot: until it has that, what
/// it writes has not seen it. No other system's change meets it.
pub fn returned(slot: usize, origin: SystemId) -> usize {
    // Above every difference.
    added(128, SystemId(0), false) + slot * 256 + usize::from(origin.0)
}

/// Where slots are kept: in memory, or on disk.
pub trait SlotStore: Send {
    fn get(&mut self, key: u128) -> Result<Option<Slot>>;

    fn put(&mut self, key: u128, slot: Slot) -> Result<()>;

    /// Slots below `floor` were seen by all; they may go, now or later. Those in `pinned` stay:
    /// a system holds their key.
    fn forget_below(&mut self, floor: Seq, pinned: &HashSet<u128>) -> Result<()>;

    /// What is there now, but what [`forget_below`](Self::forget_below) may forget: to be read elsewhere,
    /// while this goes on.
    fn slots(&self, floor: Seq, pinned: &HashSet<u128>) -> Slots;

    /// Takes in what [`Slots::sorted`] gave, before anything else.
    fn fill(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()>;

    /// Takes in many slots at once, newer than what it has, in the order of their keys, each once.
    fn ingest(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()>;

    /// An empty one of the same kind, to be used beside this.
    fn sibling(&self) -> Result<Box<dyn SlotStore>>;

    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Slots in the order of their keys, at most one of each.
pub type Run = Box<dyn Iterator<Item = Result<(u128, Slot)>> + Send>;

/// All slots of one moment.
#[derive(Default)]
pub struct Slots {
    pub memory: Vec<(u128, Slot)>,
    pub runs: Vec<Run>,
    /// Whoever made the runs keeps them readable meanwhile.
    pub reading: Vec<Arc<()>>,
}

impl Slots {
    /// In the order of their keys; of each key the newest one.
    pub fn sorted(self) -> impl Iterator<Item = Result<(u128, Slot)>> {
        let Slots { mut memory, runs, reading } = self;
        memory.sort_unstable_by_key(|(key, slot)| (*key, Reverse(slot.seq())));
        memory.dedup_by_key(|(key, _)| *key);
        let memory: Run = Box::new(memory.into_iter().map(Ok));
        let mut sources: Vec<_> = std::iter::once(memory).chain(runs).map(Iterator::peekable).collect();
        std::iter::from_fn(move || {
            let _reading = &reading;
            let mut least = None;
            for (at, source) in sources.iter_mut().enumerate() {
                match source.peek() {
                    Some(Ok((key, _))) if least.is_none_or(|(_, of)| *key < of) => least = Some((at, *key)),
                    Some(Err(_)) => return source.next(),
                    _ => {}
                }
            }
            let (at, key) = least?;
            let same = |source: &mut std::iter::Peekable<Run>| {
                source.next_if(|next| next.as_ref().is_ok_and(|(of, _)| *of == key))?.ok()
            };
            sources[at..].iter_mut().filter_map(same).max_by_key(|(_, slot)| slot.seq()).map(Ok)
        })
    }
}

/// Keys are hashes already.
#[derive(Debug, Default, Clone)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only words are hashed");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }
}

/// Two words: a u128 would be aligned to 16 and cost a third more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key([u64; 2]);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl Key {
    fn new(key: u128) -> Self {
        Key([key as u64, (key >> 64) as u64])
    }

    fn whole(self) -> u128 {
        u128::from(self.0[1]) << 64 | u128::from(self.0[0])
    }
}

type Shard = HashMap<Key, u64, BuildHasherDefault<Identity>>;

pub(super) const SHARDS: usize = 64;

/// In memory: 25 bytes per slot and table place. Sharded, so that growing copies a small part.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Vec<Shard>,
    len: usize,
    /// Puts since it was last swept.
    puts: usize,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore { shards: (0..SHARDS).map(|_| Shard::default()).collect(), len: 0, puts: 0 }
    }
}

impl MemoryStore {
    fn shard(&mut self, key: Key) -> &mut Shard {
        &mut self.shards[key.0[1] as usize % SHARDS]
    }

    /// The slots of one shard, for a store that moves them elsewhere.
    pub(super) fn slots_of(&self, shard: usize) -> impl Iterator<Item = (u128, Slot)> + '_ {
        self.shards[shard].iter().map(|(key, slot)| (key.whole(), Slot(*slot)))
    }

    /// Gives up all of a shard but these keys, and its memory.
    pub(super) fn evict(&mut self, shard: usize, keep: &HashSet<u128>) {
        let mut evicted = std::mem::take(&mut self.shards[shard]);
        self.len -= evicted.len();
        evicted.retain(|key, _| keep.contains(&key.whole()));
        self.len += evicted.len();
        self.shards[shard].extend(evicted);
    }
}

impl SlotStore for MemoryStore {
    fn get(&mut self, key: u128) -> Result<Option<Slot>> {
        let key = Key::new(key);
        Ok(self.shard(key).get(&key).map(|s| Slot(*s)))
    }

    fn put(&mut self, key: u128, slot: Slot) -> Result<()> {
        let key = Key::new(key);
        self.puts += 1;
        if self.shard(key).insert(key, slot.0).is_none() {
            self.len += 1;
        }
        Ok(())
    }

    /// Sweeps when as much was put as half of what is there, so that it stays cheap per put.
    fn forget_below(&mut self, floor: Seq, pinned: &HashSet<u128>) -> Result<()> {
        if self.puts < 4096 + self.len / 2 {
            return Ok(());
        }
        self.puts = 0;
        for shard in &mut self.shards {
            shard.retain(|key, slot| Slot(*slot).seq() >= floor || pinned.contains(&key.whole()));
            if shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit();
            }
        }
        self.len = self.shards.iter().map(Shard::len).sum();
        Ok(())
    }

    fn slots(&self, floor: Seq, pinned: &HashSet<u128>) -> Slots {
        let all = (0..SHARDS).flat_map(|shard| self.slots_of(shard));
        let memory = all.filter(|(key, slot)| slot.seq() >= floor || pinned.contains(key)).collect();
        Slots { memory, ..Slots::default() }
    }

    fn fill(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        for slot in sorted {
            let (key, slot) = slot?;
            self.put(key, slot)?;
        }
        Ok(())
    }

    fn ingest(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        self.fill(sorted)
    }

    fn sibling(&self) -> Result<Box<dyn SlotStore>> {
        Ok(Box::new(MemoryStore::default()))
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_parts() {
        let slot = Slot::new(1 << 40, SystemId(63), true, false);

        assert_eq!(
            (slot.seq(), slot.origin(), slot.everywhere(), slot.deleted()),
            (1 << 40, SystemId(63), true, false)
        );
        assert!(Slot::new(1, SystemId(0), false, true).deleted());
    }

    #[test]
    fn what_all_have_seen_is_forgotten_and_held_keys_stay() {
        let mut store = MemoryStore::default();
        for n in 1..=10_000u64 {
            store
                .put(slot_key(u128::from(n) << 64 | u128::from(n), 0), Slot::new(n, SystemId(0), false, false))
                .unwrap();
        }
        let held = 5u128 << 64 | 5;

        store.forget_below(9_001, &HashSet::from([held])).unwrap();

        assert_eq!(store.len(), 1001);
        assert_eq!(store.get(held).unwrap().map(Slot::seq), Some(5));
        assert_eq!(store.get(7u128 << 64 | 7).unwrap(), None);
    }
}
