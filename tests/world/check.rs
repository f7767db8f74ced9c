//! What must hold when a simulated world has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use anechoic::change::{Body, Change, Changes, Fate, Origin, Outcome, Record, Rule, Verdict};
use anechoic::normalize::binding::Role;
use anechoic::position::{Position, Seq};
use anechoic::rules::Policy;
use anechoic::schema::SystemId;

use super::model::{Contact, EVENT, FIELDS, Local, Logged, System, added, number};
use super::run::World;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

impl World {
    pub fn check(&self) -> Result<(), String> {
        let held: BTreeSet<u128> =
            self.arbiter.quarantine().map(|q| Changes::new(&q.change).next().unwrap().key_hash).collect();
        let truth = self.truth();
        for (i, system) in self.systems.iter().enumerate() {
            self.check_markers(i, system)?;
            if system.role == Role::Source {
                continue;
            }
            for key in 0..self.keys as i64 {
                let hash = self.hash(key);
                if held.contains(&hash) {
                    continue;
                }
                let expected = truth.0.get(&hash).map(|row| masked(row, system.fields));
                let found = system.rows.get(&key).copied();
                ensure!(
                    expected == found,
                    "diverged: s{i} (fields {:03b}) has {found:?} for key {key}, the journal says {expected:?}",
                    system.fields
                );
            }
            let mut events = system.events.clone();
            events.sort_unstable();
            ensure!(events == truth.1, "s{i} has events {events:?}, written were {:?}", truth.1);
        }
        let [journaled, rejected, drift] = self.counted;
        // A crash makes some of them counted twice.
        ensure!(
            self.tally.crashes > 0 || journaled + rejected + drift == self.tally.changes,
            "books of capture: {:?} of {}",
            self.counted,
            self.tally.changes
        );
        self.check_entries()
    }

    /// What additive fields come to where nothing but one insert and differences were ever written: the
    /// sum of all, whoever lost what. Returns how many differences that were.
    pub fn check_sums(&self) -> Result<u64, String> {
        let added = self.rules.added() >> 1;
        let mut count = 0;
        let any_held = self.log.records.iter().any(|record| matches!(record, Record::Quarantine(_)));
        if self.loads || any_held || self.tally.by_hand > 0 {
            return Ok(0);
        }
        for key in 0..self.keys as i64 {
            for field in (0..FIELDS).filter(|field| added >> field & 1 == 1) {
                let (mut inserts, mut sum, mut differences) = (0, 0, 0);
                for (system, logged) in self.systems.iter().flat_map(|s| s.log.iter().map(move |logged| (s, logged))) {
                    for row in system.committed(logged) {
                        let Local::Contact { key: of, before, after, .. } = row else { continue };
                        if *of != key {
                            continue;
                        }
                        match (before, after) {
                            (Some(before), Some(after)) if before[field] == after[field] => {}
                            (Some(before), Some(after)) => match (before[field], after[field]) {
                                (Some(before), Some(after)) => {
                                    sum += after - before;
                                    differences += 1;
                                }
                                _ => inserts += 2,
                            },
                            (None, Some(after)) if system.has(field) && after[field].is_some() => {
                                sum += after[field].unwrap();
                                inserts += 1;
                            }
                            _ => inserts += 2,
                        }
                    }
                }
                if inserts != 1 || differences == 0 {
                    continue;
                }
                count += differences;
                for (i, system) in
                    self.systems.iter().enumerate().filter(|(_, s)| s.has(field) && s.role != Role::Source)
                {
                    let found = system.rows.get(&key).and_then(|row| row[field]);
                    ensure!(
                        found == Some(sum),
                        "diverged: s{i} has {found:?} in field {field} of {key}, the sum is {sum}"
                    );
                }
            }
        }
        Ok(count)
    }

    /// What waits is what the journal says, whatever crashed.
    pub fn check_waiting(&self) -> Result<(), String> {
        let mut waiting = BTreeSet::new();
        for record in self.log.snapshot.iter().chain(&self.log.records[self.log.dropped..]) {
            match record {
                Record::Conflict(conflict) if conflict.waits() => drop(waiting.insert(conflict.id)),
                Record::Settled(settled) => drop(waiting.remove(&settled.id)),
                _ => {}
            }
        }
        let known: BTreeSet<_> = self.arbiter.conflicts().map(|conflict| conflict.id).collect();
        ensure!(known == waiting, "{known:?} wait, the journal says {waiting:?}");
        Ok(())
    }

    /// Markers in a log only rise, and each is of an entry that is addressed to the system.
    fn check_markers(&self, i: usize, system: &System) -> Result<(), String> {
        let echoes = system.log.iter().filter_map(|logged| match logged {
            Logged::Echo { seq, .. } => Some(*seq),
            _ => None,
        });
        let echoes: Vec<Seq> = echoes.collect();
        ensure!(echoes.is_sorted_by(|a, b| a < b), "s{i} applied twice: {echoes:?}");
        Ok(())
    }

    /// Every captured transaction is journaled once; a change is rejected only where its
    /// system had not seen the winner, or held the key.
    fn check_entries(&self) -> Result<(), String> {
        let any_held = self.log.records.iter().any(|record| matches!(record, Record::Quarantine(_)));
        for (i, system) in self.systems.iter().enumerate() {
            if system.role == Role::Target {
                continue;
            }
            let mut base = 0;
            let entries = self.log.entries.iter().map(|at| &self.log.records[*at]).filter_map(|r| match r {
                Record::Entry(entry) if entry.origin == Origin::System(self.names[i].clone()) => Some(entry),
                _ => None,
            });
            let mut entries = entries.peekable();
            for (at, logged) in system.log.iter().enumerate() {
                let position = Some(Position::Memory { index: at as u64 + 1 });
                let changes = match logged {
                    Logged::Echo { seq, side, .. } => {
                        base = *seq;
                        let found = entries.next_if(|entry| entry.position == position);
                        ensure!(
                            found.is_none_or(|e| e.base == base),
                            "s{i}: a side effect that has not seen its marker"
                        );
                        let found = found.map_or(0, |entry| entry.changes as usize);
                        ensure!(
                            found == *side,
                            "s{i}: {side} side effects in transaction {at}, of which {found} were captured"
                        );
                        continue;
                    }
                    Logged::Prepared(..) | Logged::Decided { committed: false, .. } => continue,
                    Logged::Local(_) | Logged::Decided { .. } => system.committed(logged),
                };
                let Some(entry) = entries.next() else { return Err(format!("s{i}: transaction {at} was lost")) };
                ensure!(
                    entry.position == Some(Position::Memory { index: at as u64 + 1 })
                        && entry.changes == changes.len() as u64,
                    "s{i}: transaction {at} is not the entry {}",
                    entry.seq
                );
                ensure!(entry.base == base, "s{i}: transaction {at} has base {}, its log says {base}", entry.base);
                if !any_held {
                    for decision in &entry.decisions {
                        if let Verdict::Rejected { winner } = decision.verdict {
                            ensure!(winner > base, "s{i}: rejected against {winner}, which it had seen ({base})");
                        }
                    }
                }
            }
            ensure!(entries.next().is_none(), "s{i}: an entry nobody wrote");
        }
        Ok(())
    }

    /// Two records that were told to be in each other's way were, by what the journal had made of them until
    /// then; and by authority the higher one stays.
    pub fn check_clashes(&self, field: usize) -> Result<(), String> {
        let mut conflicts = BTreeMap::new();
        for record in &self.log.records {
            if let Record::Conflict(conflict) = record
                && conflict.rule == Rule::Unique
            {
                conflicts.insert(conflict.id.seq, conflict);
            }
        }
        for (seq, conflict) in conflicts {
            // A crash may have taken its entry.
            let kept = |seq: Seq| self.log.entries.len() as u64 >= seq;
            if !kept(seq) || !self.log.entry(seq).txid.starts_with("unique ") {
                continue;
            }
            let images = conflict.images.as_ref().ok_or("a clash without images")?;
            let other = Changes::new(&images.current).next().ok_or("a clash with nobody")?.key_hash;
            let (rows, _) = self.truth_before(seq);
            let value = |key: u128| rows.get(&key).and_then(|row| row[field]);
            ensure!(
                value(conflict.key_hash).is_some() && value(conflict.key_hash) == value(other),
                "clash {}: {:?} gives way to {:?}",
                conflict.id,
                value(conflict.key_hash),
                value(other)
            );
            let rank = |name: &str| {
                let place = self.names.iter().position(|of| **of == *name);
                place.map_or(u8::MAX, |at| self.rules.rank(SystemId(at as u8)))
            };
            let known = conflict.outcome != Outcome::Waiting && conflict.against != 0;
            if let (true, Policy::Authority, Some(against)) = (known, self.rules.policy, &conflict.against_system) {
                let own = self.rules.merge(field + 1).is_some();
                ensure!(
                    own || rank(against) <= rank(&conflict.system),
                    "clash {}: {against} stays against {}",
                    conflict.id,
                    conflict.system
                );
            }
        }
        Ok(())
    }

    /// What the accepted changes of the journal, one after the other, come to.
    pub fn truth(&self) -> (BTreeMap<u128, Contact>, Vec<i64>) {
        self.truth_before(Seq::MAX)
    }

    fn truth_before(&self, seq: Seq) -> (BTreeMap<u128, Contact>, Vec<i64>) {
        let mut rows: BTreeMap<u128, Contact> = BTreeMap::new();
        let mut events = Vec::new();
        for at in &self.log.entries {
            let Record::Entry(entry) = &self.log.records[*at] else { unreachable!("entries") };
            if entry.seq >= seq {
                break;
            }
            if entry.is_retry() {
                continue;
            }
            let (mut index, mut cursor) = (0, 0);
            let mut each = |change: Change<'_>| {
                let fate = entry.fate(index, "", &mut cursor);
                index += 1;
                let change = match fate {
                    Fate::Apply => change,
                    Fate::Replace(encoded) => encoded.change(),
                    Fate::Skip => return,
                };
                if change.entity == EVENT {
                    return events.extend(number(change.image().get(0)));
                }
                let Some(after) = change.after else {
                    rows.remove(&change.key_hash);
                    return;
                };
                let row = rows.entry(change.key_hash).or_default();
                for (field, value) in row.iter_mut().enumerate() {
                    *value = added(*value, after.get(field + 1));
                }
            };
            match &entry.body {
                Body::Inline(bytes) => Changes::new(bytes).for_each(&mut each),
                Body::Spooled(spool) => {
                    self.log.spool[&spool.id].iter().for_each(|chunk| Changes::new(chunk).for_each(&mut each));
                }
            }
        }
        events.sort_unstable();
        (rows, events)
    }
}

fn masked(row: &Contact, fields: u8) -> Contact {
    std::array::from_fn(|field| row[field].filter(|_| fields >> field & 1 == 1))
}
