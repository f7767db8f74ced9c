//! What an arbiter knows, for tests that compare how two came to it.

use std::collections::{BTreeMap, HashSet};

use crate::admit::held::Phase;
use crate::admit::index::slot_key;
use crate::admit::{Arbiter, Followed, Slot, SlotStore, change_of};
use crate::change::{ConflictId, Quarantined};
use crate::error::Result;
use crate::position::{Position, Seq};
use crate::schema::SystemId;

#[doc(hidden)]
#[derive(Debug)]
pub struct State {
    head: Seq,
    seen: Vec<(Seq, Option<Position>)>,
    /// What each may not have seen.
    behind: Vec<Option<Seq>>,
    held: Vec<(SystemId, Quarantined, Vec<Phase>)>,
    waiting: Vec<ConflictId>,
    floor: Seq,
    /// From where the slots of held keys count.
    pinned: BTreeMap<u128, Seq>,
    slots: BTreeMap<u128, Slot>,
}

impl Arbiter {
    #[doc(hidden)]
    pub fn state(&self) -> Result<State> {
        let mut slots = BTreeMap::new();
        for slot in self.store.slots(0, &HashSet::new()).sorted() {
            let (key, slot) = slot?;
            slots.insert(key, slot);
        }
        for (version, keys) in self.store.lists() {
            for key in keys {
                let slot = slots.entry(*key).or_insert(version);
                *slot = if slot.seq() > version.seq() { *slot } else { version };
            }
        }
        let mut pinned: BTreeMap<u128, Seq> = BTreeMap::new();
        let held: Vec<_> =
            self.holds.standing().map(|(system, held, phases)| (system, held.clone(), phases.to_vec())).collect();
        for (_, held, phases) in &held {
            let from = phases.iter().map(|phase| phase.held_seq).min().unwrap_or(Seq::MAX);
            for number in self.place(held).numbers.iter() {
                let least = pinned.entry(slot_key(change_of(held).key_hash, *number)).or_insert(from);
                *least = from.min(*least);
            }
        }
        Ok(State {
            head: self.head,
            seen: self.systems.iter().map(|followed| (followed.seen, followed.position.clone())).collect(),
            behind: self.systems.iter().map(Followed::behind).collect(),
            held,
            waiting: self.conflicts().map(|conflict| conflict.id).collect(),
            floor: self.floor(),
            pinned,
            slots,
        })
    }
}

impl State {
    /// In what it is not what a replay of the whole journal has come to.
    ///
    /// Slots that everybody has seen may be there or not: none of them makes a conflict. And between what a
    /// system has seen and the first entry for it that it has not, either may stand.
    pub fn differs(&self, whole: &State) -> Option<String> {
        let differ = |what: &str, left: &dyn std::fmt::Debug, right: &dyn std::fmt::Debug| {
            Some(format!("{what}: {left:?}, by the whole journal {right:?}"))
        };
        if self.head != whole.head {
            return differ("head", &self.head, &whole.head);
        }
        if self.seen != whole.seen {
            return differ("seen", &self.seen, &whole.seen);
        }
        if self.behind.iter().zip(&whole.behind).any(|(here, whole)| here.is_some() != whole.is_some()) {
            return differ("behind", &self.behind, &whole.behind);
        }
        if self.held != whole.held {
            return differ("held", &self.held, &whole.held);
        }
        if self.waiting != whole.waiting {
            return differ("waiting", &self.waiting, &whole.waiting);
        }
        let floor = self.floor.max(whole.floor);
        let counts = |key: &u128, slot: &Slot| {
            slot.seq() >= floor || whole.pinned.get(key).is_some_and(|from| slot.seq() >= *from)
        };
        for (key, slot) in self.slots.iter().chain(&whole.slots).filter(|(key, slot)| counts(key, slot)) {
            let (here, there) = (self.slots.get(key), whole.slots.get(key));
            if here != there {
                return differ(&format!("slot {key:032x} {slot:?}"), &here, &there);
            }
        }
        None
    }
}
