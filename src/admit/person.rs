//! What people decide: conflicts that wait for them, and changes that they make through the agent.
//!
//! What a person decided stands against everything that had not seen it: it is journaled as the agent's,
//! for all systems, and loses to nothing concurrent. A conflict that waits is settled by that, or by a
//! change of somebody who had seen the version that is there: then there is nothing left to decide.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::topology::bits;
use super::{Admitted, Arbiter, Bodies, Counts, Slot, SlotStore, decide, slot_key, walk};
use crate::change::{
    Address, Body, Change, ChangeWriter, Changes, ConflictId, Conflicted, Entry, Micros, Op, Origin, Record, Rule,
    Settled, Settlement,
};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::{Schema, SystemId, SystemSet};
use crate::value::{Datum, Row, write_datum};

/// Conflicts that wait, by what they are asked for.
#[derive(Debug, Default)]
pub(super) struct Waitings {
    live: BTreeMap<ConflictId, Conflicted>,
    by_key: HashMap<u128, Vec<ConflictId>>,
}

impl Waitings {
    /// Takes up one that waits; any other is history.
    pub fn add(&mut self, conflict: &Conflicted) {
        if conflict.waits() && self.live.insert(conflict.id, conflict.clone()).is_none() {
            self.by_key.entry(conflict.key_hash).or_default().push(conflict.id);
        }
    }

    pub fn remove(&mut self, id: ConflictId) {
        let Some(gone) = self.live.remove(&id) else { return };
        if let Some(ids) = self.by_key.get_mut(&gone.key_hash) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_key.remove(&gone.key_hash);
            }
        }
    }

    /// These two records wait for a person already.
    pub fn is_open(&self, key: u128, other: u128) -> bool {
        self.pairs().any(|(_, pair)| pair == [key, other] || pair == [other, key])
    }

    /// Conflicts of two records, with the keys of both.
    fn pairs(&self) -> impl Iterator<Item = (ConflictId, [u128; 2])> {
        let unique = self.live.values().filter(|conflict| conflict.rule == Rule::Unique);
        unique.filter_map(|conflict| {
            let other = Changes::new(&conflict.images.as_ref()?.current).next()?.key_hash;
            Some((conflict.id, [conflict.key_hash, other]))
        })
    }

    /// Two records that are in nobody's way any more, by what entry `by` brought: nothing is left to decide.
    pub fn parted(&mut self, is_held: impl Fn(u128) -> bool, by: Seq) -> Vec<Record> {
        let free = self.pairs().filter(|(_, pair)| !pair.iter().any(|key| is_held(*key)));
        let free: Vec<ConflictId> = free.map(|(id, _)| id).collect();
        free.iter().for_each(|id| self.remove(*id));
        let settled = |id| Record::Settled(Settled { id, how: Settlement::Superseded, by });
        free.into_iter().map(settled).collect()
    }

    /// A conflict is written before its entry. Where a crash took that along, its change is read and
    /// decided again.
    pub fn orphaned(&mut self, head: Seq) -> Vec<Record> {
        let orphans: Vec<ConflictId> = self.live.keys().filter(|id| id.seq > head).copied().collect();
        orphans.iter().for_each(|id| self.remove(*id));
        let settled = |id| Record::Settled(Settled { id, how: Settlement::Superseded, by: 0 });
        orphans.into_iter().map(settled).collect()
    }

    /// Entry `seq` has a change of these fields, by somebody who had seen what is there.
    pub fn superseded(&mut self, change: &Change<'_>, fields: u128, seq: Seq) -> Vec<Record> {
        if self.live.is_empty() {
            return Vec::new();
        }
        self.settle(change, fields, seq, |_| Settlement::Superseded)
    }

    fn settle(
        &mut self,
        change: &Change<'_>,
        fields: u128,
        seq: Seq,
        how: impl Fn(ConflictId) -> Settlement,
    ) -> Vec<Record> {
        let whole = change.op != Op::Update;
        let meets = |id: &&ConflictId| {
            let images = self.live.get(id).and_then(|conflict| conflict.images.as_ref());
            // One of a row's existence alone has no fields.
            images.is_some_and(|images| whole || images.fields == 0 || images.fields & fields != 0)
        };
        let ids = self.by_key.get(&change.key_hash).map(Vec::as_slice).unwrap_or_default();
        let ids: Vec<ConflictId> = ids.iter().filter(meets).copied().collect();
        ids.iter().for_each(|id| self.remove(*id));
        ids.into_iter().map(|id| Record::Settled(Settled { id, how: how(id), by: seq })).collect()
    }
}

/// Changes that a person makes through the agent, in all systems that receive them.
#[derive(Debug, Clone)]
pub struct ByHand {
    /// Names them in the audit trail: `resolve 1042.0`, `undo …`.
    pub txid: Arc<str>,
    pub at: Micros,
    pub schema: Arc<Schema>,
    pub body: Body,
    pub changes: u64,
    /// The conflict that they resolve.
    pub resolves: Option<ConflictId>,
}

impl Arbiter {
    /// The conflicts that wait for a person, the oldest first.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflicted> {
        self.waiting.live.values()
    }

    pub fn conflict(&self, id: ConflictId) -> Option<&Conflicted> {
        self.waiting.live.get(&id)
    }

    /// How much the system's clock is ahead of ours, as measured.
    pub fn set_clock(&mut self, system: SystemId, ahead: Micros) {
        self.clocks[system.index()] = ahead;
    }

    /// A person leaves what is there as it is. Empty: that conflict does not wait.
    pub fn keep(&mut self, id: ConflictId) -> Vec<Record> {
        if self.conflict(id).is_none() {
            return Vec::new();
        }
        self.waiting.remove(id);
        vec![Record::Settled(Settled { id, how: Settlement::Resolved, by: 0 })]
    }

    /// With all fields of the slots that a change decides. What had not seen it loses those, in its own
    /// system too, which must be told what they are instead.
    fn completed(&mut self, body: &Bytes, bodies: &dyn Bodies) -> Result<Bytes> {
        let mut out = ChangeWriter::default();
        for change in Changes::new(body) {
            let layout = &self.layouts[change.entity.index()];
            let whole = !layout.indexed || change.op != Op::Update || self.bugs.set_alone;
            let Some(after) = change.after.filter(|_| !whole) else {
                out.push_change(&change);
                continue;
            };
            let mut row: Vec<u8> = after.0.to_vec();
            for slot in bits(layout.carried(&change)).filter(|slot| layout.merge(*slot).is_none()) {
                let fields = layout.slots[slot];
                if fields & !Row(&row).sent() == 0 {
                    continue;
                }
                let image = match self.store.get(slot_key(change.key_hash, slot))? {
                    Some(latest) => bodies.image(latest.seq(), change.key_hash)?,
                    None => None,
                };
                let latest = image.as_ref().and_then(|image| Changes::new(image).next());
                let latest = latest.and_then(|latest| latest.after);
                let there = |field| latest.map_or(Datum::NotSent, |row| row.get(field));
                let before = |field| change.before.map_or(Datum::NotSent, |row| row.get(field));
                let mut whole = Vec::with_capacity(row.len());
                for (field, datum) in Row(&row).iter().enumerate() {
                    let filled = match fields >> field & 1 == 1 && !datum.is_sent() {
                        true if there(field).is_sent() => there(field),
                        true => before(field),
                        false => datum,
                    };
                    write_datum(&mut whole, filled);
                }
                row = whole;
            }
            out.push_change(&Change { after: Some(Row(&row)), ..change });
        }
        Ok(out.take().into())
    }

    /// Admits what a person decided, whatever is there.
    pub fn by_hand(&mut self, mut by_hand: ByHand, bodies: &dyn Bodies) -> Result<Admitted> {
        let seq = self.head + 1;
        if let Body::Inline(bytes) = &by_hand.body {
            by_hand.body = Body::Inline(self.completed(bytes, bodies)?);
        }
        let mut counts = vec![Counts::default(); self.layouts.len()];
        let mut addressed = vec![0; self.systems.len()];
        let (mut to, mut settled) = (SystemSet::EMPTY, Vec::new());
        walk(&by_hand.body, bodies, &mut |chunk| {
            for change in Changes::new(chunk) {
                let layout = &self.layouts[change.entity.index()];
                counts[change.entity.index()].journaled.add(change.op);
                layout.receivers.iter().for_each(|system| addressed[system.index()] += 1);
                to = SystemSet(to.0 | layout.receivers.0);
                let slots = layout.carried(&change);
                if layout.indexed {
                    let version = Slot::decided(seq, change.op == Op::Delete);
                    decide::enter(&mut self.store, layout, &change, None, slots, version)?;
                }
                let how = |id| match Some(id) == by_hand.resolves {
                    true => Settlement::Resolved,
                    false => Settlement::Superseded,
                };
                settled.extend(self.waiting.settle(&change, layout.fields_of(slots), seq, how));
                self.holds.wake_rivals(change.key_hash);
            }
            Ok(())
        })?;
        // Of two records the other one was changed, or one is given other values that gave way by a rule.
        let ended = |id| settled.iter().any(|record| matches!(record, Record::Settled(settled) if settled.id == id));
        if let Some(id) = by_hand.resolves.filter(|id| !ended(*id)) {
            self.waiting.remove(id);
            settled.push(Record::Settled(Settled { id, how: Settlement::Resolved, by: seq }));
        }
        self.head = seq;
        self.address(to, seq);
        let mut records = vec![Record::Entry(Entry {
            seq,
            origin: Origin::Agent,
            position: None,
            base: seq - 1,
            txid: by_hand.txid,
            committed_at: by_hand.at,
            hops: 0,
            to: Address::Others,
            schema: by_hand.schema,
            changes: by_hand.changes,
            body: by_hand.body,
            decisions: Vec::new(),
            replacements: Bytes::new(),
        })];
        records.append(&mut settled);
        Ok(Admitted { records, counts, addressed })
    }
}
