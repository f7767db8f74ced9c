//! The arbiter's state from the journal: each record says what it changed.

use std::sync::Arc;

use super::bodies::{inline, walk};
use super::{Arbiter, Bodies, Slot, change_of, decide, index};
use crate::change::{
    Address, Change, ChangeWriter, Changes, Encoded, Entry, Fate, Op, Origin, Prepared, Quarantined, Record, Verdict,
};
use crate::error::Result;
use crate::position::{Position, Seq};
use crate::schema::{SystemId, SystemSet, Translation};

impl Arbiter {
    /// Before the replay: how far a system's log was read, and the marker that it had shown. An
    /// older record may say more, of a log that was lost or of tables that were restored since.
    pub fn follow(&mut self, system: SystemId, position: Position, base: Seq, identity: Arc<str>) {
        let followed = &mut self.systems[system.index()];
        followed.seen = base;
        followed.position = Some(position);
        followed.identity = identity;
        followed.settled = true;
    }

    /// Before the replay: what is held when it ends. The index keeps all that it has of these keys.
    pub fn keep_held(&mut self, held: &[Quarantined]) {
        for quarantined in held {
            let numbers = self.place(quarantined).numbers;
            self.holds.keep(change_of(quarantined).key_hash, &numbers);
        }
    }

    /// Ends the replay. `head` counts where the oldest records are gone; the position records
    /// that the journal knows then are replayed like any other, before this. What comes out is
    /// to be appended.
    pub fn resume(&mut self, head: Seq) -> Vec<Record> {
        self.head = self.head.max(head);
        for (index, followed) in self.systems.iter_mut().enumerate() {
            followed.settled = false;
            self.holds.resume(SystemId(index as u8), followed.seen);
        }
        self.holds.wake();
        let mut records = self.waiting.orphaned(self.head);
        records.extend(self.waiting.parted(|key| self.holds.any_holds(key), self.head));
        records
    }

    /// Takes back what a record of the journal says. In order, from the first one.
    pub fn replay(&mut self, record: &Record, bodies: &dyn Bodies) -> Result<()> {
        match record {
            Record::Entry(entry) => self.replay_entry(entry, bodies)?,
            Record::Position { system, position, base, identity } => {
                if let Some(system) = self.topology.find(system).filter(|system| !self.systems[system.index()].settled)
                {
                    let followed = &mut self.systems[system.index()];
                    followed.identity = identity.clone();
                    followed.position = Some(position.clone());
                    // Not released here: the record that says so follows.
                    followed.seen = followed.seen.max(*base);
                    self.forget()?;
                }
            }
            Record::Quarantine(quarantined) => {
                if let Some(system) = self.topology.find(&quarantined.system) {
                    self.hold(system, quarantined);
                }
            }
            Record::Released { system, key_hash, .. } => {
                if let Some(system) = self.topology.find(system) {
                    self.holds.release(system, *key_hash);
                }
            }
            Record::Prepared(Prepared { system, position, base, .. })
            | Record::Decided { system, position, base, .. } => {
                if let Some(system) = self.topology.find(system).filter(|system| !self.systems[system.index()].settled)
                {
                    let followed = &mut self.systems[system.index()];
                    followed.position = Some(position.clone());
                    followed.seen = followed.seen.max(*base);
                    self.forget()?;
                }
            }
            Record::Conflict(conflict) => self.waiting.add(conflict),
            Record::Settled(settled) => self.waiting.remove(settled.id),
            Record::Refused(_) | Record::Load(_) | Record::Resync(_) => {}
        }
        Ok(())
    }

    fn replay_entry(&mut self, entry: &Entry, bodies: &dyn Bodies) -> Result<()> {
        self.head = self.head.max(entry.seq);
        if let Origin::Copied(source) = &entry.origin {
            return self.replay_copy(entry, source, bodies);
        }
        let origin = entry.origin.system().and_then(|name| self.topology.find(name));
        if let (Some(system), Some(position)) = (origin, &entry.position)
            && let followed = &mut self.systems[system.index()]
            && !followed.settled
        {
            followed.position = Some(position.clone());
            followed.seen = followed.seen.max(entry.base);
        }
        let translation = Translation::between(&entry.schema, &self.topology.schema);
        if let Address::Only(names) = &entry.to {
            let to: Vec<SystemId> = names.iter().filter_map(|n| self.topology.find(n)).collect();
            for system in to {
                self.address(SystemSet::EMPTY.with(system), entry.seq);
                if entry.is_retry() {
                    self.holds.retried(system, inline(&entry.body), entry.base, entry.seq);
                }
            }
            return self.forget();
        }
        let system = self.system_of(&entry.origin);
        let (mut index, mut cursor, mut to) = (0, 0, SystemSet::EMPTY);
        let mut scratch = ChangeWriter::default();
        walk(&entry.body, bodies, &mut |chunk| {
            for change in Changes::new(chunk) {
                to = SystemSet(
                    to.0 | self
                        .replay_change(entry, index, &change, system, &mut cursor, &translation, &mut scratch)?
                        .0,
                );
                index += 1;
            }
            Ok(())
        })?;
        self.address(to, entry.seq);
        self.forget()
    }

    /// One that is gone from the configuration has the lowest authority.
    fn system_of(&self, origin: &Origin) -> SystemId {
        origin.system().and_then(|name| self.topology.find(name)).unwrap_or(index::NOBODY)
    }

    fn replay_change(
        &mut self,
        entry: &Entry,
        index: u64,
        change: &Change<'_>,
        system: SystemId,
        cursor: &mut usize,
        translation: &Option<Translation>,
        scratch: &mut ChangeWriter,
    ) -> Result<SystemSet> {
        // What a system that is neither origin nor excluded does with it, and whether the origin gets it.
        let fate = entry.fate(index, "", cursor);
        let verdict = entry.decisions.get(*cursor).filter(|d| d.from <= index).map(|d| &d.verdict);
        let everywhere = matches!(
            verdict,
            Some(
                Verdict::Everywhere
                    | Verdict::Replaced { everywhere: true, .. }
                    | Verdict::Split { .. }
                    | Verdict::Redeleted { .. }
            )
        );
        let own = match verdict {
            Some(Verdict::Split { own, .. }) => Some(Encoded(&entry.replacements[*own as usize..]).change()),
            _ => None,
        };
        let others = match fate {
            Fate::Apply => Some(*change),
            Fate::Replace(encoded) => Some(encoded.change()),
            Fate::Skip => None,
        };
        scratch.bytes.clear();
        let mut for_own = ChangeWriter::default();
        let own = own.and_then(|own| translated(own, translation.as_ref(), &mut for_own));
        let others = others.and_then(|others| translated(others, translation.as_ref(), scratch));
        let Some(layout) = others.or(own).and_then(|change| self.layouts.get(change.entity.index())) else {
            return Ok(SystemSet::EMPTY);
        };
        if let Some(own) = own.as_ref().filter(|_| layout.indexed) {
            decide::enter_returned(&mut self.store, layout, own, others.as_ref(), entry.seq, system)?;
        }
        // Its origin alone gets something back.
        let Some(change) = others else { return Ok(SystemSet::EMPTY.with(system)) };
        if layout.indexed {
            let deleted = change.op == Op::Delete;
            let (by, system) = match verdict {
                Some(Verdict::Redeleted { by, .. }) => (by, self.system_of(by)),
                _ => (&entry.origin, system),
            };
            let version = match by {
                Origin::Agent => Slot::decided(entry.seq, deleted),
                _ => Slot::new(entry.seq, system, everywhere, deleted),
            };
            let slots = decide::slots_of(layout, verdict, &change);
            decide::enter(&mut self.store, layout, &change, own.as_ref(), slots, version)?;
        }
        Ok(if everywhere { layout.receivers } else { layout.receivers.without(system) })
    }
}

/// The change in the schema of today; `None` where that has no such entity.
pub(super) fn translated<'a>(
    change: Change<'a>,
    translation: Option<&Translation>,
    scratch: &'a mut ChangeWriter,
) -> Option<Change<'a>> {
    match translation {
        None => Some(change),
        Some(translation) if translation.translate(&change, scratch) => Changes::new(&scratch.bytes).next(),
        Some(_) => None,
    }
}
