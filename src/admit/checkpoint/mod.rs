//! The arbiter's state of one moment, so that a start need not replay the journal from where some
//! system is behind, or a held key reaches back to.
//!
//! What the journal says anyway (positions, held records, conflicts that wait) comes from there at
//! the start; here is what else a replay would come to: the index, what is addressed to whom, and
//! since when each held key is. It is derived: whatever is wrong with it, the journal replayed from
//! where it is needed gives the same.
//!
//! ```text
//! arbiter ── checkpoint(): copied in memory ──▶ Checkpoint ── write(), elsewhere ──▶ file
//! file ── verify() ──▶ Saved ── restore() ──▶ arbiter ◀── replay(): what the journal has behind it
//! ```

mod file;
mod state;

use std::fmt::Debug;
use std::io::Read;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub use file::{Saved, verify};
pub use state::State;

use super::{Arbiter, Slot, SlotStore};
use crate::admit::held::Phase;
use crate::admit::index::Slots;
use crate::change::Quarantined;
use crate::error::Result;
use crate::position::Seq;

/// To be written elsewhere, while the arbiter goes on.
pub struct Checkpoint {
    pub about: About,
    held: Vec<Quarantined>,
    slots: Slots,
    copies: Vec<(Slot, Vec<u128>)>,
}

impl Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("about", &self.about).finish_non_exhaustive()
    }
}

/// All but the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What [`Arbiter::print`] says.
    pub topology: String,
    pub head: Seq,
    /// In order of authority.
    pub systems: Vec<Addressed>,
    /// Of each held record, in its order.
    phases: Vec<Vec<Phase>>,
}

/// How far one system was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressed {
    /// What every system had seen by then is left out of the index.
    pub seen: Seq,
    addressed: Seq,
    pending_from: Seq,
}

impl Arbiter {
    /// What the index's keys and a hold's numbers depend on: bindings, rules, systems and their order.
    pub fn print(&self) -> String {
        let Self { topology, layouts, .. } = self;
        let what = format!("{:?} {:x} {layouts:?}", topology.systems, topology.schema.id);
        format!("{:032x}", xxh3_128(what.as_bytes()))
    }

    /// To be asked only when the journal has all that this was told, bases included. What is copied
    /// here has a limit: an index that is larger lies on disk, and is read while it is written.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.forget()?;
        let systems = self.systems.iter().map(|followed| Addressed {
            seen: followed.seen,
            addressed: followed.addressed,
            pending_from: followed.pending_from,
        });
        let (held, phases) = self.holds.standing().map(|(_, held, phases)| (held.clone(), phases.to_vec())).unzip();
        let about = About { topology: self.print(), head: self.head, systems: systems.collect(), phases };
        let slots = self.store.slots(self.floor(), self.holds.pinned());
        let copies = self.store.lists().map(|(version, keys)| (version, keys.to_vec())).collect();
        Ok(Checkpoint { about, held, slots, copies })
    }

    /// Of an arbiter that knows nothing yet but what [`follow`](Self::follow) and [`keep_held`](Self::keep_held)
    /// told: what comes behind it is replayed then. After an error it must be made anew.
    pub fn restore<R: Read>(&mut self, mut saved: Saved<R>) -> Result<()> {
        let About { head, systems, phases, .. } = saved.about.clone();
        self.head = head;
        for (followed, was) in self.systems.iter_mut().zip(systems) {
            (followed.addressed, followed.pending_from) = (was.addressed, was.pending_from);
        }
        for (quarantined, phases) in saved.held.iter().zip(phases) {
            if let Some(system) = self.topology.find(&quarantined.system) {
                let placed = self.place(quarantined);
                self.holds.restore(system, quarantined, phases, placed);
            }
        }
        self.store.fill(&mut saved.slots())?;
        while let Some((version, keys)) = saved.copies()? {
            self.store.put_copies(keys, version)?;
        }
        self.forget()
    }
}
