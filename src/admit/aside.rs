//! What targets refused: taken up, tried again, given up.

use std::sync::Arc;

use super::Arbiter;
use super::held::{Placed, change_of};
use crate::change::{Entry, Micros, Op, Quarantined, Record};
use crate::error::{Error, Result};
use crate::schema::{SystemId, SystemSet};

impl Arbiter {
    /// A target refused a change, or folded one onto a key it holds. The records must be synced
    /// before the target's transaction commits.
    pub fn quarantined(&mut self, quarantined: &Quarantined, now: Micros) -> Result<Vec<Record>> {
        let system = self
            .topology
            .find(&quarantined.system)
            .ok_or_else(|| Error::stop(format!("system {:?} is not in the configuration", quarantined.system), ""))?;
        if !self.hold(system, quarantined) {
            return Ok(Vec::new());
        }
        let mut records = vec![Record::Quarantine(quarantined.clone())];
        if quarantined.folded {
            records.push(Record::Entry(self.retry(system, quarantined, now)));
        }
        Ok(records)
    }

    pub(super) fn hold(&mut self, system: SystemId, quarantined: &Quarantined) -> bool {
        let placed = self.place(quarantined);
        self.holds.hold(system, quarantined, placed)
    }

    /// Where the index has what a record holds.
    pub(super) fn place(&self, quarantined: &Quarantined) -> Placed {
        let (schema, change) = (&quarantined.schema, change_of(quarantined));
        let Some(entity) = self.topology.schema.find(&schema.entity(change.entity).name) else {
            return Placed { numbers: Arc::from([0]), slots: u128::MAX };
        };
        let layout = &self.layouts[entity.index()];
        let plain = change.op == Op::Update && schema.id == self.topology.schema.id;
        // A row that is made may have been deleted in the same transaction; one that is revived is an update.
        let slots = if plain { layout.carried(&change) | 1 } else { u128::MAX };
        Placed { numbers: layout.numbers(), slots }
    }

    /// Retries that are due. Call every second or so.
    pub fn tick(&mut self, now: Micros) -> Vec<Record> {
        if self.holds.is_empty() {
            return Vec::new();
        }
        let due = self.holds.due(now);
        due.iter().map(|(system, quarantined)| Record::Entry(self.retry(*system, quarantined, now))).collect()
    }

    /// A person wants this one tried now. Empty: it is held no longer, or being tried.
    pub fn try_again(&mut self, quarantined: &Quarantined, now: Micros) -> Vec<Record> {
        match self.idle(quarantined) {
            Some((system, current)) => vec![Record::Entry(self.retry(system, &current, now))],
            None => Vec::new(),
        }
    }

    /// A person gives this one up: its system keeps the row that it has until somebody changes it
    /// again. Empty: it is held no longer, or being tried, or its last retry has not been seen.
    pub fn give_up(&mut self, quarantined: &Quarantined) -> Vec<Record> {
        let Some((system, current)) = self.idle(quarantined) else { return Vec::new() };
        let key_hash = change_of(&current).key_hash;
        if current.last_seq != quarantined.last_seq || !self.holds.has_one_phase(system, key_hash) {
            return Vec::new();
        }
        self.holds.release(system, key_hash);
        let entity = current.schema.entity(change_of(&current).entity).name.as_str().into();
        // An applier that has folded something newer onto it by now keeps that.
        let by = quarantined.last_seq;
        let mut records = vec![Record::Released { system: current.system, entity, key_hash, by }];
        records.extend(self.waiting.parted(|key| self.holds.any_holds(key), by));
        records
    }

    /// What is held under its key, where no retry is under way.
    fn idle(&self, quarantined: &Quarantined) -> Option<(SystemId, Quarantined)> {
        let system = self.topology.find(&quarantined.system)?;
        let current = self.holds.idle(system, change_of(quarantined).key_hash)?;
        Some((system, current.clone()))
    }

    /// A new entry addressed to the holding system alone, carrying the current version: the
    /// record's, onto which everything later was folded.
    fn retry(&mut self, system: SystemId, quarantined: &Quarantined, now: Micros) -> Entry {
        self.head += 1;
        self.address(SystemSet::EMPTY.with(system), self.head);
        self.holds.retried(system, &quarantined.change, quarantined.last_seq, self.head);
        Entry::retry(self.head, quarantined, now)
    }
}
