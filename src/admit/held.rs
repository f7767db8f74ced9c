//! Keys that a system holds: what it refused is set aside, and until it has received what
//! replaces it, it does not see that key.
//!
//! A hold begins with a quarantine record, synced before the target transaction whose marker
//! passes the refused entry; it ends when the system's own log shows the marker of the retry
//! that carried everything folded into it. In between, the system's own changes of the key are
//! admitted with a base below the oldest entry it has not received. Of that entry itself it may have
//! some fields: a transaction of several chunks writes them before another is refused.
//!
//! A retry that succeeded can be followed by a new refusal before the system's log has shown
//! it: then there are two holds at once, and which one a local change falls under depends on
//! whether it stands before or after the retry's marker in that log ([`Phase`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::admit::index::slot_key;
use crate::change::{Change, Changes, Micros, Quarantined};
use crate::position::Seq;
use crate::schema::SystemId;

/// Never retried by the timer: only something newer, or a person, can mend it.
pub const NO_TIMER: u32 = u32::MAX;

/// A live quarantine, as an applier is told of it when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    pub quarantined: Quarantined,
    /// The newest retry of exactly this record. Where the marker is at or past it, the key is
    /// no longer held.
    pub retry: Option<Seq>,
}

/// The record that has, in the system, what a refused change brings and what is unique there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Of the refused change, and the quarantine record's `last_seq`.
    pub key_hash: u128,
    pub seq: Seq,
    /// The fields of the unique key.
    pub fields: u128,
    /// As the system has it: one encoded insert.
    pub row: Bytes,
}

/// Part of the system's log in which its changes of the key have not seen `held_seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Phase {
    pub held_seq: Seq,
    /// Those that it may not have of that entry; of later ones it has nothing.
    slots: u128,
    /// Ends with the marker of this entry; `None` while no retry is under way.
    until: Option<Seq>,
}

/// Up to where a change's system had seen its key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'a> {
    seq: Seq,
    held: &'a [Phase],
}

impl Base<'_> {
    /// Of a key that is not held.
    pub fn plain(seq: Seq) -> Self {
        Base { seq, held: &[] }
    }

    /// Lowered where the key is held.
    pub fn of(&self, slot: usize) -> Seq {
        let unseen = self.held.iter().filter(|phase| phase.until.is_none_or(|until| self.seq < until));
        unseen.fold(self.seq, |base, phase| base.min(phase.held_seq - Seq::from(phase.slots >> slot & 1 == 1)))
    }
}

/// What an entity's layout says of a quarantine record.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// Under which the index may know the key.
    pub numbers: Arc<[usize]>,
    /// Slots that are held of its oldest entry.
    pub slots: u128,
}

#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub quarantined: Quarantined,
    /// In order; the last one is the record's.
    phases: Vec<Phase>,
    /// When the timer tries again.
    due: Micros,
    /// Under which the index may know the key.
    numbers: Arc<[usize]>,
    /// What is in the way of the record's change.
    rival: Option<(Rival, u128)>,
}

impl Hold {
    fn last(&mut self) -> &mut Phase {
        self.phases.last_mut().expect("a hold has a phase")
    }

    fn retry(&self) -> Option<Seq> {
        self.phases.last().and_then(|p| p.until)
    }
}

type HoldKey = (SystemId, u128);

#[derive(Debug, Default)]
pub(super) struct Holds {
    live: BTreeMap<HoldKey, Hold>,
    pinned: HashSet<u128>,
    /// Pinned besides, while the journal is replayed: what is held in the end.
    kept: HashSet<u128>,
    /// Those with a rival that nobody has looked into.
    clashing: BTreeSet<HoldKey>,
}

/// The change that a quarantine record holds.
pub(super) fn change_of(quarantined: &Quarantined) -> Change<'_> {
    Changes::new(&quarantined.change).next().expect("a quarantine record holds one change")
}

impl Holds {
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub fn holds(&self, system: SystemId, key: u128) -> bool {
        self.live.contains_key(&(system, key))
    }

    /// The base that a change of `system` has for `key`.
    pub fn base(&self, system: SystemId, key: u128, seq: Seq) -> Base<'_> {
        Base { seq, held: self.live.get(&(system, key)).map_or(&[], |hold| &hold.phases) }
    }

    /// Takes a record up. `false`: it says nothing new (logged again, or overtaken).
    pub fn hold(&mut self, system: SystemId, quarantined: &Quarantined, placed: Placed) -> bool {
        let Placed { numbers, slots } = placed;
        let key = change_of(quarantined).key_hash;
        let phase = Phase { held_seq: quarantined.held_seq, slots, until: None };
        let due = due(quarantined);
        self.pinned.extend(numbers.iter().map(|number| slot_key(key, *number)));
        let Some(hold) = self.live.get_mut(&(system, key)) else {
            let hold = Hold { quarantined: quarantined.clone(), phases: vec![phase], due, numbers, rival: None };
            self.live.insert((system, key), hold);
            return true;
        };
        let last = *hold.last();
        if hold.quarantined.last_seq >= quarantined.last_seq && last.held_seq <= quarantined.held_seq {
            // A start is told of the last record first: what the ones before it carried counts, too.
            if last.held_seq == quarantined.held_seq {
                hold.last().slots |= slots;
            }
            return false;
        }
        if hold.retry().is_some_and(|retry| quarantined.held_seq > retry) {
            hold.phases.push(phase);
        } else {
            // The oldest entry may have gone on in a later chunk.
            let (held_seq, slots) = (last.held_seq.min(quarantined.held_seq), last.slots | slots);
            *hold.last() = Phase { held_seq, slots, until: None };
        }
        hold.quarantined = quarantined.clone();
        hold.due = due;
        hold.rival = None;
        self.clashing.remove(&(system, key));
        true
    }

    /// Entry `seq` retries the record with `last_seq` that holds this encoded change.
    pub fn retried(&mut self, system: SystemId, change: &[u8], last_seq: Seq, seq: Seq) {
        let Some(key) = Changes::new(change).next().map(|c| c.key_hash) else { return };
        if let Some(hold) = self.live.get_mut(&(system, key))
            && hold.quarantined.last_seq == last_seq
            && hold.quarantined.change == change
        {
            hold.last().until = Some(seq);
        }
    }

    /// The system's log has shown marker `seen`: returns the keys that are held no longer, with
    /// the retry that freed them.
    pub fn seen(&mut self, system: SystemId, seen: Seq) -> Vec<(Hold, Seq)> {
        let mut free = Vec::new();
        for (key, hold) in self.live.range_mut((system, 0)..=(system, u128::MAX)) {
            if let Some(retry) = hold.retry().filter(|retry| *retry <= seen) {
                free.push((*key, retry));
            } else {
                hold.phases.retain(|phase| phase.until.is_none_or(|until| until > seen));
            }
        }
        let mut freed = Vec::new();
        for (key, retry) in free {
            freed.extend(self.release(key.0, key.1).map(|hold| (hold, retry)));
        }
        freed
    }

    pub fn release(&mut self, system: SystemId, key: u128) -> Option<Hold> {
        let hold = self.live.remove(&(system, key))?;
        self.clashing.remove(&(system, key));
        self.pin_anew();
        // It may have been in the way of others, as it was before.
        self.wake_rivals(key);
        let live = &self.live;
        let behind = |(of, hold): (&HoldKey, &Hold)| of.0 == system && hold.rival.as_ref().is_some_and(|r| r.1 == key);
        self.clashing.retain(|of| !live.get_key_value(of).is_some_and(behind));
        Some(hold)
    }

    fn pin_anew(&mut self) {
        self.pinned.clone_from(&self.kept);
        for ((_, key), hold) in &self.live {
            let keys = [Some(*key), hold.rival.as_ref().map(|(_, key)| *key)].into_iter().flatten();
            self.pinned.extend(keys.flat_map(|key| hold.numbers.iter().map(move |number| slot_key(key, *number))));
        }
    }

    /// This key is held when the replay ends. Until then it may be released and held again, and what the
    /// index has of it must not go in between.
    pub fn keep(&mut self, key: u128, numbers: &[usize]) {
        let keys = numbers.iter().map(|number| slot_key(key, *number));
        self.kept.extend(keys.clone());
        self.pinned.extend(keys);
    }

    /// The replay has ended, and the system's log has shown `seen`.
    pub fn resume(&mut self, system: SystemId, seen: Seq) {
        for hold in self.live.range_mut((system, 0)..=(system, u128::MAX)).map(|(_, hold)| hold) {
            let last = hold.phases.pop();
            hold.phases.retain(|phase| phase.until.is_none_or(|until| until > seen));
            hold.phases.extend(last);
        }
        if !self.kept.is_empty() {
            self.kept.clear();
            self.pin_anew();
        }
    }

    /// A hold as [`standing`](Self::standing) told it.
    pub fn restore(&mut self, system: SystemId, quarantined: &Quarantined, phases: Vec<Phase>, placed: Placed) {
        self.hold(system, quarantined, placed);
        if let Some(hold) = self.live.get_mut(&(system, change_of(quarantined).key_hash)) {
            hold.phases = phases;
        }
    }

    /// Every hold with its phases.
    pub fn standing(&self) -> impl Iterator<Item = (SystemId, &Quarantined, &[Phase])> {
        self.live.iter().map(|((system, _), hold)| (*system, &hold.quarantined, &*hold.phases))
    }

    /// What is in the way of the change of a live record: both stay in the index until that is decided.
    pub fn clashed(&mut self, system: SystemId, rival: &Rival) {
        let row = Changes::new(&rival.row).next().map_or(0, |row| row.key_hash);
        let key = (system, rival.key_hash);
        if let Some(hold) = self.live.get_mut(&key)
            && hold.quarantined.last_seq == rival.seq
            && !hold.quarantined.folded
        {
            hold.rival = Some((rival.clone(), row));
            self.pinned.extend(hold.numbers.iter().map(|number| slot_key(row, *number)));
            self.clashing.insert(key);
        }
    }

    pub fn clashing(&self) -> Vec<HoldKey> {
        self.clashing.iter().copied().collect()
    }

    pub fn looked_into(&mut self, system: SystemId, key: u128) {
        self.clashing.remove(&(system, key));
    }

    pub fn rival(&self, system: SystemId, key: u128) -> Option<Rival> {
        self.live.get(&(system, key))?.rival.as_ref().map(|(rival, _)| rival.clone())
    }

    pub fn held(&self, system: SystemId, key: u128) -> Option<&Quarantined> {
        self.live.get(&(system, key)).map(|hold| &hold.quarantined)
    }

    /// What any system holds of a key, in this schema.
    pub fn of_key(&self, key: u128, schema: u64) -> Vec<Bytes> {
        let of_key = self.live.iter().filter(|((_, of), hold)| *of == key && hold.quarantined.schema.id == schema);
        of_key.map(|(_, hold)| hold.quarantined.change.clone()).collect()
    }

    /// Some system holds it.
    pub fn any_holds(&self, key: u128) -> bool {
        self.live.keys().any(|(_, of)| *of == key)
    }

    /// The record with this key was written, or is free: what it was in the way of is tried again.
    pub fn wake_rivals(&mut self, key: u128) {
        let behind = |hold: &&mut Hold| hold.rival.as_ref().is_some_and(|(_, rival)| *rival == key);
        self.live.values_mut().filter(behind).for_each(|hold| hold.due = 0);
    }

    pub fn wake_key(&mut self, system: SystemId, key: u128) {
        if let Some(hold) = self.live.get_mut(&(system, key)) {
            hold.due = 0;
        }
    }

    /// Due for a retry by the timer, or folded with its retry lost in a crash.
    pub fn due(&self, now: Micros) -> Vec<(SystemId, Quarantined)> {
        let idle = self.live.iter().filter(|(_, hold)| hold.retry().is_none());
        idle.filter(|(_, hold)| hold.quarantined.folded || hold.due <= now)
            .map(|((system, _), hold)| (*system, hold.quarantined.clone()))
            .collect()
    }

    /// What is held, where no retry of it is under way.
    pub fn idle(&self, system: SystemId, key: u128) -> Option<&Quarantined> {
        self.live.get(&(system, key)).filter(|hold| hold.retry().is_none()).map(|hold| &hold.quarantined)
    }

    /// No earlier retry is still to be seen in the system's log.
    pub fn has_one_phase(&self, system: SystemId, key: u128) -> bool {
        self.live.get(&(system, key)).is_some_and(|hold| hold.phases.len() == 1)
    }

    /// After a restart everything is tried once more: whoever mended a table restarts the agent.
    pub fn wake(&mut self) {
        let waiting = self.live.values_mut().filter(|hold| hold.quarantined.attempts != NO_TIMER);
        waiting.for_each(|hold| hold.due = 0);
    }

    pub fn of(&self, system: SystemId) -> impl Iterator<Item = HeldKey> {
        self.live
            .range((system, 0)..=(system, u128::MAX))
            .map(|(_, hold)| HeldKey { quarantined: hold.quarantined.clone(), retry: hold.retry() })
    }

    pub fn all(&self) -> impl Iterator<Item = (SystemId, &Quarantined)> {
        self.live.iter().map(|((system, _), hold)| (*system, &hold.quarantined))
    }

    /// The lowest retry that is under way: until it is seen, what it freed must be told again
    /// after a restart.
    pub fn oldest_retry(&self) -> Option<Seq> {
        self.live.values().flat_map(|hold| &hold.phases).filter_map(|phase| phase.until).min()
    }

    pub fn oldest_held(&self) -> Option<Seq> {
        self.live.values().flat_map(|hold| &hold.phases).map(|phase| phase.held_seq).min()
    }

    pub fn pinned(&self) -> &HashSet<u128> {
        &self.pinned
    }
}

/// What a change of another row may mend: a parent that comes, a value that is given free.
/// Anything else is mended by the next change of the key or by a person, and trying it again
/// would only write.
fn by_others(code: &str) -> bool {
    const POSTGRES: [&str; 3] = ["23503", "23505", "23P01"];
    const MYSQL: [&str; 9] = ["1062", "1169", "1216", "1217", "1451", "1452", "1557", "1761", "1762"];
    POSTGRES.contains(&code) || MYSQL.contains(&code)
}

/// Two seconds after the first failure, doubling to five minutes.
fn due(quarantined: &Quarantined) -> Micros {
    if quarantined.attempts == NO_TIMER || !by_others(&quarantined.code) {
        return Micros::MAX;
    }
    let seconds = (1i64 << quarantined.attempts.min(9)).min(300);
    quarantined.at.saturating_add(seconds * 1_000_000)
}
