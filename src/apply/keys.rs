//! The keys that this target holds, as its applier sees them.
//!
//! The quarantine records decide, not the moment: what a synced record holds is held, although
//! the target transaction behind it may have been lost, and an entry between its first and its
//! last is folded into it already. Within one target transaction what is folded, refused or
//! freed counts at once, and is forgotten with it.

use std::collections::HashMap;

use bytes::Bytes;

use crate::admit::HeldKey;
use crate::apply::batch::Routes;
use crate::change::{Change, ChangeWriter, Changes, Micros, Quarantined, fold};
use crate::error::Error;
use crate::position::Seq;

/// Where a change stands in the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub seq: Seq,
    /// In its entry's source order.
    pub index: u64,
}

/// What is to be done with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Write,
    /// Tries a held key again.
    Retry,
    /// Not written: folded just now or before, or a retry that is no longer the newest.
    Held,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    /// As the journal has them.
    held: HashMap<u128, Quarantined>,
    /// Made in this target transaction, not yet synced.
    pending: HashMap<u128, Quarantined>,
    /// Freed in this target transaction by a retry.
    free: HashMap<u128, Seq>,
    /// Replay only: what was written of a key in this target transaction, folded, and since
    /// which entry. A refusal that follows takes it along, so that the record alone is the
    /// whole truth if the transaction is lost.
    written: HashMap<u128, (Seq, Bytes)>,
}

fn decoded(bytes: &[u8]) -> Change<'_> {
    Changes::new(bytes).next().expect("one encoded change")
}

impl Keys {
    /// Starts from what the arbiter holds and the marker says: a retry at or below the marker
    /// was applied, or its failure would be on record.
    pub fn opened(routes: &Routes, held: Vec<HeldKey>, marker: Seq) -> Self {
        let live = held.into_iter().filter(|h| h.retry.is_none_or(|retry| retry > marker));
        let mut keys = Keys::default();
        for mut quarantined in live.map(|h| h.quarantined) {
            if let Some(translation) = routes.translation(&quarantined.schema) {
                let mut out = ChangeWriter::default();
                if !translation.translate(&decoded(&quarantined.change), &mut out) {
                    continue;
                }
                quarantined.change = out.take().into();
                quarantined.schema = routes.schema.clone();
            }
            keys.held.insert(decoded(&quarantined.change).key_hash, quarantined);
        }
        keys
    }

    /// The arbiter itself set something aside for this target, ahead of its entry.
    pub fn set_aside(&mut self, quarantined: &Quarantined) {
        let key = decoded(&quarantined.change).key_hash;
        self.held.entry(key).or_insert_with(|| quarantined.clone());
    }

    /// A person has given up what was held of this key up to entry `by`. Where a retry freed it,
    /// nothing is held that is so old.
    pub fn given_up(&mut self, key: u128, by: Seq) {
        if self.held.get(&key).is_some_and(|record| record.last_seq <= by) {
            self.held.remove(&key);
        }
    }

    /// Decides on a change of entry `seq`, and folds it where its key is held. `retries`: the
    /// record that the entry carries, where it is a retry.
    pub fn route(&mut self, change: &Change<'_>, at: At, retries: Option<Seq>, now: Micros) -> Route {
        let At { seq, index } = at;
        let key = match change.key_hash {
            // A row without a key is held alone, under a name of its own.
            0 if self.held.contains_key(&keyless_hash(change, seq, index)) => return Route::Held,
            0 => return Route::Write,
            key => key,
        };
        if let Some(record) = self.pending.get_mut(&key) {
            if retries.is_none() {
                fold_onto(record, change, seq, now);
            }
            return Route::Held;
        }
        let held = self.held.get(&key).filter(|record| !self.free.contains_key(&key) && seq >= record.held_seq);
        match (held, retries) {
            (None, None) => Route::Write,
            (Some(record), Some(last_seq)) if record.last_seq == last_seq && is(record, change) => Route::Retry,
            (_, Some(_)) => Route::Held,
            (Some(record), None) if seq <= record.last_seq => Route::Held,
            (Some(record), None) => {
                let mut record = record.clone();
                fold_onto(&mut record, change, seq, now);
                self.pending.insert(key, record);
                Route::Held
            }
        }
    }

    /// A retry is being written: its key is free from here on, should the transaction commit.
    pub fn freed(&mut self, key: u128, seq: Seq) {
        self.free.insert(key, seq);
    }

    /// Replay: the change was written.
    pub fn wrote(&mut self, encoded: &Bytes, seq: Seq, route: Route) {
        let change = decoded(encoded);
        let key = change.key_hash;
        if key == 0 {
            return;
        }
        if route == Route::Retry {
            self.freed(key, seq);
        }
        match (route, self.held.get(&key), self.written.get_mut(&key)) {
            (Route::Retry, Some(record), _) => drop(self.written.insert(key, (record.held_seq, encoded.clone()))),
            (_, _, Some((_, folded))) => *folded = fold(folded, &change),
            _ => drop(self.written.insert(key, (seq, encoded.clone()))),
        }
    }

    /// Replay: the target refused the change. The record that holds it. Where a record of later
    /// entries is there (its transaction was lost, or the arbiter made it), it gives way: those
    /// entries are still to come, and are folded onto this one.
    pub fn refused(&mut self, routes: &Routes, refusal: &Refusal<'_>) {
        let Refusal { encoded, at: At { seq, index }, route, error, now } = *refusal;
        let change = decoded(encoded);
        let keyless = change.key_hash == 0;
        let key = if keyless { keyless_hash(&change, seq, index) } else { change.key_hash };
        let mut record = Quarantined {
            system: routes.name.clone(),
            schema: routes.schema.clone(),
            held_seq: seq,
            last_seq: seq,
            change: encoded.clone(),
            reason: error.full(),
            code: error.code.clone().unwrap_or_default(),
            attempts: 1,
            at: now,
            folded: false,
        };
        if keyless {
            let mut out = ChangeWriter::default();
            out.push_change(&Change { key_hash: key, ..change });
            record.change = out.take().into();
        }
        match (self.held.get(&key), self.written.get(&key)) {
            (Some(held), _) if route == Route::Retry => {
                record.held_seq = held.held_seq;
                record.attempts = held.attempts.saturating_add(1);
            }
            (_, Some((first, earlier))) => {
                record.held_seq = *first;
                record.change = fold(earlier, &change);
            }
            _ => {}
        }
        self.free.remove(&key);
        self.pending.insert(key, record);
    }

    /// Replay: a difference was written for the key in this target transaction.
    pub fn has_added(&self, key: u128) -> bool {
        let image = |(_, written): &(Seq, Bytes)| decoded(written).after.is_some_and(|after| after.added() != 0);
        self.written.get(&key).is_some_and(image)
    }

    /// What must be synced before the target transaction commits.
    pub fn pending(&self) -> Vec<Quarantined> {
        self.pending.values().cloned().collect()
    }

    /// Nothing of this target transaction must be synced, or is freed by it.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.free.is_empty()
    }

    pub fn synced(&mut self) {
        self.held.extend(self.pending.drain());
    }

    pub fn committed(&mut self) {
        debug_assert!(self.pending.is_empty(), "records are synced before the commit");
        for key in std::mem::take(&mut self.free).keys() {
            self.held.remove(key);
        }
        self.written.clear();
    }

    /// The target transaction is gone; what was synced stays.
    pub fn rolled_back(&mut self) {
        self.pending.clear();
        self.free.clear();
        self.written.clear();
    }

    /// Forgets what only spares a refusal a look back: used where a transaction is too large to
    /// remember its keys. All changes of one source transaction carry the same fields, so the
    /// refused one says it all.
    pub fn forget_written(&mut self) {
        self.written.clear();
    }
}

pub(super) struct Refusal<'a> {
    pub encoded: &'a Bytes,
    pub at: At,
    pub route: Route,
    pub error: &'a Error,
    pub now: Micros,
}

/// Whether the record holds just this change: one of the same last entry may have held another
/// before an older refusal came to it.
fn is(record: &Quarantined, change: &Change<'_>) -> bool {
    let held = decoded(&record.change);
    (held.op, held.before, held.after) == (change.op, change.before, change.after)
}

fn fold_onto(record: &mut Quarantined, change: &Change<'_>, seq: Seq, now: Micros) {
    record.change = fold(&record.change, change);
    record.last_seq = record.last_seq.max(seq);
    record.folded = true;
    record.at = now;
}

/// Rows without a key are held one by one.
fn keyless_hash(change: &Change<'_>, seq: Seq, index: u64) -> u128 {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    bytes[16..].copy_from_slice(&change.entity.0.to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&bytes).max(1)
}
