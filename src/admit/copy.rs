//! Rows that were read from a system's tables: they are older than anything live.
//!
//! A chunk is read between two moments of the system's log. From the first, its low watermark,
//! comes its base: the highest marker that the log had shown. A row loses to every version with
//! a higher seq that did not come from that system, and to whatever its own log changed
//! meanwhile; the caller names those keys. Where it is journaled it is entered as a copy, so
//! that a live change that has not seen it wins everywhere.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::decide::{self, Case};
use super::index::NOBODY;
use super::replay::translated;
use super::{Admitted, Arbiter, Bodies, Changed, Counts, Slot, walk};
use crate::change::{Address, Body, Change, ChangeWriter, Changes, Entry, Micros, Op, Origin, Record};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::{Schema, SystemId, SystemSet, Translation};
use crate::value::Row;

/// Rows of one chunk, as inserts of one entity; deletes of what others have and it has not.
#[derive(Debug, Clone)]
pub struct Copied {
    pub system: SystemId,
    /// Of the low watermark.
    pub base: Seq,
    /// Names the load in the audit trail.
    pub txid: Arc<str>,
    pub read_at: Micros,
    pub schema: Arc<Schema>,
    /// Encoded changes.
    pub rows: bytes::Bytes,
    /// Systems that are to have them; all that bind the entity where absent.
    pub to: Option<Vec<Arc<str>>>,
}

/// What became of a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copies {
    pub admitted: Admitted,
    /// Rows that were journaled.
    pub taken: u64,
    /// Rows that lost to something that is live.
    pub lost: Vec<Lost>,
}

/// A row that lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub key_hash: u128,
    /// What beat it tells every field that the row has, so that nobody misses the row.
    pub told: bool,
}

impl Arbiter {
    /// A chunk of that system is about to be read: what its log has not shown by now stays in the
    /// index until [`close_chunk`](Self::close_chunk). Returns its base.
    pub fn open_chunk(&mut self, system: SystemId) -> Seq {
        let base = self.seen(system);
        self.chunks.push(base);
        base
    }

    pub fn close_chunk(&mut self, base: Seq) {
        if let Some(at) = self.chunks.iter().position(|open| *open == base) {
            self.chunks.swap_remove(at);
        }
    }

    /// Admits the rows of a chunk. `changed`: what the system's own log has told since the low
    /// watermark.
    pub fn copied(&mut self, copied: Copied, changed: &Changed) -> Result<Copies> {
        let Copied { system, base, .. } = copied;
        let name = self.topology.systems[system.index()].clone();
        let seq = self.head + 1;
        let mut out = Copies::default();
        let mut counts = vec![Counts::default(); self.layouts.len()];
        let mut addressed = vec![0; self.systems.len()];
        let mut entered = [Vec::new(), Vec::new()];
        let (mut changes, mut losers, mut newer, mut to) = (0, HashSet::new(), HashMap::new(), SystemSet::EMPTY);
        for (at, change) in Changes::new(&copied.rows).enumerate() {
            let layout = &self.layouts[change.entity.index()];
            changes += 1;
            let since = changed.get(change.key_hash).filter(|_| !self.bugs.copies_are_live);
            let (mut lost, newest) = match since {
                None => (None, None),
                Some(since) if since.tells(&change) => (Some(true), None),
                Some(since) => match since.newest(&change) {
                    None => (Some(false), None),
                    newest => (None, newest),
                },
            };
            if lost.is_none() && layout.indexed {
                let base = newest.as_ref().map_or(base, |(_, base)| *base);
                let base = self.holds.base(system, change.key_hash, base);
                let case = Case { layout, system, base, bugs: self.bugs };
                match decide::decide_copy(&case, &change, &mut self.store)? {
                    Some(slots) => decide::collect(&mut entered[usize::from(change.op == Op::Delete)], &change, slots),
                    // With one slot every version is a whole row.
                    None => lost = Some(layout.slots.len() == 1),
                }
            }
            if let Some(told) = lost {
                out.lost.push(Lost { key_hash: change.key_hash, told });
                losers.insert(at);
                continue;
            }
            if let Some((row, _)) = newest {
                newer.insert(at, row);
            }
            let receivers = self.receivers_of_copy(change.entity.index(), system, copied.to.as_deref());
            receivers.iter().for_each(|target| addressed[target.index()] += 1);
            to = SystemSet(to.0 | receivers.0);
            counts[change.entity.index()].journaled.add(change.op);
        }
        for (keys, deleted) in entered.into_iter().zip([false, true]) {
            self.store.put_copies(keys, Slot::copy(seq, system, deleted))?;
        }
        out.taken = changes - losers.len() as u64;
        if out.taken > 0 {
            self.head = seq;
            self.address(to, seq);
            let entry = Entry {
                seq,
                origin: Origin::Copied(name),
                position: None,
                base,
                txid: copied.txid,
                committed_at: copied.read_at,
                hops: 0,
                to: copied.to.map_or(Address::Others, Address::Only),
                schema: copied.schema,
                changes: out.taken,
                body: Body::Inline(left(copied.rows, &losers, &newer)),
                decisions: Vec::new(),
                replacements: bytes::Bytes::new(),
            };
            out.admitted = Admitted { records: vec![Record::Entry(entry)], counts, addressed };
        }
        Ok(out)
    }

    fn receivers_of_copy(&self, entity: usize, system: SystemId, only: Option<&[Arc<str>]>) -> SystemSet {
        let receivers = self.layouts[entity].receivers.without(system);
        let Some(only) = only else { return receivers };
        let named = |target: &SystemId| only.contains(&self.topology.systems[target.index()]);
        receivers.iter().filter(named).collect()
    }

    pub(super) fn replay_copy(&mut self, entry: &Entry, source: &str, bodies: &dyn Bodies) -> Result<()> {
        let translation = Translation::between(&entry.schema, &self.topology.schema);
        // A system that is gone from the configuration has the lowest authority.
        let system = self.topology.find(source).unwrap_or(NOBODY);
        let only = match &entry.to {
            Address::Others => None,
            Address::Only(names) => Some(names.clone()),
        };
        let (mut to, mut scratch) = (SystemSet::EMPTY, ChangeWriter::default());
        let mut entered = [Vec::new(), Vec::new()];
        walk(&entry.body, bodies, &mut |chunk| {
            for change in Changes::new(chunk) {
                scratch.bytes.clear();
                let Some(change) = translated(change, translation.as_ref(), &mut scratch) else { continue };
                let Some(layout) = self.layouts.get(change.entity.index()) else { continue };
                if layout.indexed {
                    let slots = layout.carried(&change);
                    decide::collect(&mut entered[usize::from(change.op == Op::Delete)], &change, slots);
                }
                to = SystemSet(to.0 | self.receivers_of_copy(change.entity.index(), system, only.as_deref()).0);
            }
            Ok(())
        })?;
        for (keys, deleted) in entered.into_iter().zip([false, true]) {
            self.store.put_copies(keys, Slot::copy(entry.seq, system, deleted))?;
        }
        self.address(to, entry.seq);
        self.forget()
    }
}

/// The rows that are left, mostly all of them, those in `newer` as they stand there.
fn left(rows: bytes::Bytes, losers: &HashSet<usize>, newer: &HashMap<usize, Vec<u8>>) -> bytes::Bytes {
    if losers.is_empty() && newer.is_empty() {
        return rows;
    }
    let mut kept = ChangeWriter::default();
    for (at, change) in Changes::new(&rows).enumerate().filter(|(at, _)| !losers.contains(at)) {
        let after = newer.get(&at).map(|row| Row(row)).or(change.after);
        kept.push_change(&Change { after, ..change });
    }
    kept.take().into()
}
