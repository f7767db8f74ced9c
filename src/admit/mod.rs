//! The one place where order and conflicts are decided: records in, records out.
//!
//! All captured transactions pass one arbiter. It numbers them, decides each change against the
//! index of what was journaled and not yet seen by all ([`index`]), and knows which systems
//! hold which keys ([`held`]). It is pure: time is passed in, what it needs of the journal it
//! asks of [`Bodies`], and replaying the journal's records gives its state back.
//!
//! ```text
//! Captured ─┐                                ┌─▶ Entry, Refused
//! Passed ───┼─▶ arbiter ── index, holds ─────┼─▶ Position
//! Quarantined (appliers), tick (timer) ──────┴─▶ Quarantine, retry Entry, Released
//! ```
//!
//! *Base is exact*: a change is concurrent with a version when its system's own log had not
//! shown that version's marker before it. No clock and no before image takes part in that.

mod aside;
mod bodies;
mod captured;
pub mod checkpoint;
mod copies;
mod copy;
mod decide;
pub mod held;
pub mod index;
mod merge;
mod person;
mod policy;
mod replay;
mod returning;
mod rivals;
mod since;
mod store;
pub mod topology;

use std::sync::Arc;

use bodies::walk;
pub use bodies::{Bodies, image_in};
use copies::Index;
pub use copy::{Copied, Copies, Lost};
pub use held::{HeldKey, Rival};
use index::slot_key;
pub use index::{MemoryStore, Slot, SlotStore};
pub use person::ByHand;
pub use since::Changed;
pub use store::DiskStore;
pub use topology::{EntityTopology, Member, Topology};

use crate::change::{Micros, Operations, Quarantined, Record};
use crate::error::Result;
use crate::position::{Position, Seq};
use crate::schema::{SystemId, SystemSet};
use held::{Holds, change_of};
use person::Waitings;
use returning::Returning;
use topology::Layout;

/// Mistakes that the simulation plants to show that it would catch them. Production code never
/// sets one.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bugs {
    /// The base is the head of the journal, not the marker in the system's own log.
    pub base_of_last_entry: bool,
    /// A change that follows our own *everywhere* goes to the others only.
    pub own_everywhere_left_out: bool,
    /// A change that wins goes to the others only.
    pub won_everywhere_left_out: bool,
    /// An insert that lost to a delete is rejected only: the row may stay where it was made.
    pub redelete_left_out: bool,
    /// One slot per key although bindings differ in fields.
    pub one_slot: bool,
    /// A held key's later changes keep their base.
    pub held_base_not_lowered: bool,
    /// Appliers write only the columns that changed.
    pub only_changed_columns: bool,
    /// A field that nobody else tells, of a row that was deleted and made again, is rejected.
    pub lone_fields_lost: bool,
    /// A copied row wins and loses as if it had been written just now.
    pub copies_are_live: bool,
    /// A difference and a whole value that have not seen each other go to the others only.
    pub differences_left_out: bool,
    /// A row that outlives its deletion comes back without what its origin had of additive fields.
    pub returned_left_out: bool,
    /// What a person sets goes without the rest of its slot.
    pub set_alone: bool,
    /// What is in a change's way is decided about as it was found, whatever was written since.
    pub rivals_stay: bool,
}

/// What admission made of something: records to append in this order, and what was counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    pub records: Vec<Record>,
    /// By [`EntityId`]; empty where nothing was decided.
    pub counts: Vec<Counts>,
    /// Changes for each system; empty where nothing was decided.
    pub addressed: Vec<u64>,
}

/// Changes of one entity in one transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub journaled: Operations,
    pub rejected: u64,
    /// Concurrent with what was journaled, whoever won.
    pub conflicts: u64,
    /// Written in a target's table by somebody else; not journaled.
    pub drift: u64,
}

/// How far the arbiter knows one system.
#[derive(Debug, Clone)]
struct Followed {
    /// The highest marker its log has shown.
    seen: Seq,
    /// The last entry that is addressed to it.
    addressed: Seq,
    /// The first one addressed to it after it had everything: what is below was not for it.
    pending_from: Seq,
    position: Option<Position>,
    identity: Arc<str>,
    /// All of this is told already: what older records say of it is past.
    settled: bool,
}

impl Followed {
    /// The first seq that it may not have seen; `None` when it has all that was for it.
    fn behind(&self) -> Option<Seq> {
        (self.seen < self.addressed).then(|| self.pending_from.max(self.seen + 1))
    }

    fn address(&mut self, seq: Seq) {
        if self.behind().is_none() {
            self.pending_from = seq;
        }
        self.addressed = self.addressed.max(seq);
    }
}

pub struct Arbiter {
    topology: Topology,
    layouts: Vec<Layout>,
    store: Index,
    head: Seq,
    systems: Vec<Followed>,
    holds: Holds,
    /// Low watermarks of chunks that are being read: what they have not seen stays in the index.
    chunks: Vec<Seq>,
    waiting: Waitings,
    returning: Returning,
    /// By system: how much its clock is ahead of ours.
    clocks: Vec<Micros>,
    bugs: Bugs,
}

impl Arbiter {
    /// Knows nothing yet: [`replay`](Self::replay) every record of the journal, then
    /// [`resume`](Self::resume).
    pub fn new(topology: Topology, store: Box<dyn SlotStore>) -> Self {
        Self::with_bugs(topology, store, Bugs::default())
    }

    #[doc(hidden)]
    pub fn with_bugs(topology: Topology, store: Box<dyn SlotStore>, bugs: Bugs) -> Self {
        let systems = topology.systems.len();
        let entities = topology.schema.entities.iter().zip(&topology.entities);
        let layouts = entities.map(|(entity, t)| Layout::new(entity, t, systems, bugs.one_slot)).collect();
        let unknown =
            Followed { seen: 0, addressed: 0, pending_from: 0, position: None, identity: "".into(), settled: false };
        Arbiter {
            layouts,
            store: Index::new(store),
            head: 0,
            systems: vec![unknown; systems],
            holds: Holds::default(),
            chunks: Vec::new(),
            waiting: Waitings::default(),
            returning: Returning::new(systems),
            clocks: vec![0; systems],
            bugs,
            topology,
        }
    }

    /// The last seq given to an entry; the journal may not have synced it yet.
    pub fn head(&self) -> Seq {
        self.head
    }

    /// What the index holds.
    pub fn slots(&self) -> usize {
        self.store.len()
    }

    /// The highest marker that the system's log has shown.
    pub fn seen(&self, system: SystemId) -> Seq {
        self.systems[system.index()].seen
    }

    /// Where the system's log was read to.
    pub fn position(&self, system: SystemId) -> Option<&Position> {
        self.systems[system.index()].position.as_ref()
    }

    /// The last entry that is addressed to the system.
    pub fn addressed(&self, system: SystemId) -> Seq {
        self.systems[system.index()].addressed
    }

    /// Where the system's applier has to read from at least: what is below was seen, or is for
    /// others, and may have left the journal.
    pub fn applies_from(&self, system: SystemId) -> Seq {
        self.systems[system.index()].behind().unwrap_or(self.head + 1)
    }

    /// The keys that the system holds, for an applier that starts.
    pub fn held(&self, system: SystemId) -> Vec<HeldKey> {
        self.holds.of(system).collect()
    }

    /// All live quarantine records.
    pub fn quarantine(&self) -> impl Iterator<Item = &Quarantined> {
        self.holds.all().map(|(_, quarantined)| quarantined)
    }

    /// Live quarantined keys of an entity, over all systems.
    pub fn held_of(&self, entity: &str) -> usize {
        self.quarantine().filter(|q| q.schema.entity(change_of(q).entity).name == entity).count()
    }

    /// The first seq that must stay in the journal, for systems that have not shown it and for
    /// a restart, also one without a checkpoint. Asked only when the journal has synced every base that was told here: after
    /// a restart the older ones count again.
    pub fn needed_from(&self) -> Seq {
        let held = self.holds.oldest_held().into_iter().chain(self.holds.oldest_retry());
        held.fold(self.floor(), Seq::min)
    }

    /// Every system has seen all that is addressed to it below this.
    fn floor(&self) -> Seq {
        self.systems.iter().filter_map(Followed::behind).min().unwrap_or(self.head + 1)
    }

    /// The log was read to `position`, with nothing to journal.
    pub fn passed(&mut self, system: SystemId, position: Position, base: Seq, identity: Arc<str>) -> Result<Admitted> {
        let mut records = self.has_seen(system, base)?;
        let followed = &mut self.systems[system.index()];
        followed.position = Some(position);
        followed.identity = identity;
        records.push(self.position_record(system, base));
        Ok(Admitted { records, ..Admitted::default() })
    }

    fn position_record(&self, system: SystemId, base: Seq) -> Record {
        let followed = &self.systems[system.index()];
        Record::Position {
            system: self.topology.systems[system.index()].clone(),
            position: followed.position.clone().expect("set before a record is made of it"),
            base,
            identity: followed.identity.clone(),
        }
    }

    /// The system's log has shown marker `base`.
    fn has_seen(&mut self, system: SystemId, base: Seq) -> Result<Vec<Record>> {
        let followed = &mut self.systems[system.index()];
        if base <= followed.seen {
            return Ok(Vec::new());
        }
        followed.seen = base;
        let name = self.topology.systems[system.index()].clone();
        let freed = self.holds.seen(system, base).into_iter().map(|(hold, by)| {
            let change = change_of(&hold.quarantined);
            let entity = hold.quarantined.schema.entity(change.entity).name.as_str().into();
            Record::Released { system: name.clone(), entity, key_hash: change.key_hash, by }
        });
        let mut records: Vec<Record> = freed.collect();
        if !records.is_empty() {
            records.extend(self.waiting.parted(|key| self.holds.any_holds(key), base));
        }
        // A chunk that is open may have missed what was shown since.
        let shown = self.chunks.iter().copied().fold(base, Seq::min);
        self.returning.seen(system, shown, &self.holds);
        self.forget()?;
        Ok(records)
    }

    fn address(&mut self, to: SystemSet, seq: Seq) {
        for (index, followed) in self.systems.iter_mut().enumerate() {
            if to.contains(SystemId(index as u8)) {
                followed.address(seq);
            }
        }
    }

    fn forget(&mut self) -> Result<()> {
        let floor = self.chunks.iter().map(|base| base + 1).fold(self.floor(), Seq::min);
        self.store.forget_below(floor, self.holds.pinned())
    }
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("head", &self.head).field("slots", &self.store.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
