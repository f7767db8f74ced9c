//! Records that cannot both be: a target has a value that is unique there in one record, and the journal
//! brings it for another.
//!
//! The target's applier sets the change aside like any that is refused, and tells which record is in its
//! way. It is decided here, once for all systems, when that system's log has shown the marker behind the
//! refusal: by then everything that the record in the way was made of is captured. Whatever was decided,
//! or written, meanwhile shows in the index, and then the change is only tried again.
//!
//! ```text
//! applier ──refused──▶ quarantine record, rival ──marker seen──▶ both still as they were?
//!   no   ─▶ retry                        yes ─▶ one of them loses: conflict record, entry for all
//!   (the winner is tried again behind that entry)          or waits: conflict record, entry for nobody
//! ```
//!
//! Only what the agent saw being written is decided by rule. What a load copied, what a person decided
//! and what was decided here before is not taken away from anybody without asking.

use std::cmp::Ordering;

use bytes::Bytes;

use super::policy::left;
use super::topology::bits;
use super::{Admitted, Arbiter, Bodies, ByHand, Counts, Rival, Slot, SlotStore, merge, slot_key};
use crate::change::{
    Address, Body, Change, Changes, ConflictId, Conflicted, Entry, Images, Micros, Op, Origin, Outcome, Record, Rule,
    alike, clash_txid, given_way, updated,
};
use crate::control::text;
use crate::error::Result;
use crate::rules::{Merge, OnClash, Policy, Unique};
use crate::schema::{EntitySchema, SystemId};
use crate::value::{Datum, Row, Value};

/// One of the two records.
struct Side {
    key_hash: u128,
    /// The version that has the value; `None`: every system has shown it.
    version: Option<Slot>,
    /// The change that brought it, as far as that is known; else the row as an insert.
    change: Bytes,
    /// That is what was journaled.
    told: bool,
}

impl Side {
    fn change(&self) -> Change<'_> {
        Changes::new(&self.change).next().expect("one encoded change")
    }

    /// The agent saw somebody write it, and nobody has decided about it since.
    fn written(&self) -> Option<Slot> {
        self.version.filter(|version| !version.copied() && !version.is_decided())
    }
}

/// What is in the way of a change, and whether that is still so.
enum Standing {
    /// Something newer is on its way to the system.
    Moved,
    /// The system has not got to what was journaled; its other holds keep it from that.
    Behind,
    Clash(Side, Side),
}

impl Arbiter {
    /// What is in the way of a change that was just [`quarantined`](Self::quarantined).
    pub fn clashed(&mut self, system: &str, rival: &Rival) {
        if let Some(system) = self.topology.find(system) {
            self.holds.clashed(system, rival);
        }
    }

    /// Decides what may be decided by now. To be called after whatever may have shown a marker.
    pub fn decide_clashes(&mut self, now: Micros, bodies: &dyn Bodies) -> Result<Vec<Admitted>> {
        let mut decided = Vec::new();
        for (system, key) in self.holds.clashing() {
            let Some(rival) = self.holds.rival(system, key) else { continue };
            if self.systems[system.index()].seen < rival.seq {
                continue;
            }
            self.holds.looked_into(system, key);
            decided.extend(self.decide_clash(system, &rival, now, bodies)?);
        }
        Ok(decided)
    }

    fn decide_clash(
        &mut self,
        system: SystemId,
        rival: &Rival,
        now: Micros,
        bodies: &dyn Bodies,
    ) -> Result<Option<Admitted>> {
        let (ours, theirs) = match self.standing(system, rival, bodies)? {
            Standing::Moved => {
                self.holds.wake_key(system, rival.key_hash);
                return Ok(None);
            }
            Standing::Behind => return Ok(None),
            Standing::Clash(ours, theirs) => (ours, theirs),
        };
        let layout = &self.layouts[ours.change().entity.index()];
        let Some(unique) = layout.rules.unique(rival.fields).cloned() else { return Ok(None) };
        let by_rule = match (ours.written(), theirs.written()) {
            (Some(here), Some(there)) => Some(self.stands(&ours, here, &theirs, there, &unique, bodies)?),
            // What every system had stays, and what was there before all of them.
            (Some(_), None) if theirs.version.is_none_or(Slot::copied) => Some(false),
            _ => None,
        };
        let (loser, winner) = if by_rule == Some(true) { (theirs, ours) } else { (ours, theirs) };
        let what = match (by_rule, &unique.on_clash) {
            (None, _) | (_, OnClash::Manual) => None,
            (_, OnClash::Reject) => self.rejected(&loser, rival.fields).map(|change| {
                let whole = Changes::new(&change).next().is_some_and(|change| change.op == Op::Delete);
                (change, if whole { Outcome::Lost } else { Outcome::Partly })
            }),
            (_, OnClash::Rename(template)) => {
                self.renamed(&loser, rival, &unique, template).map(|change| (change, Outcome::Renamed))
            }
        };
        match what {
            Some((change, outcome)) => {
                self.lose(system, &loser, &winner, rival, change, outcome, now, bodies).map(Some)
            }
            None if self.waiting.is_open(loser.key_hash, winner.key_hash) => Ok(None),
            None => self.wait(system, &loser, &winner, rival, now, bodies).map(Some),
        }
    }

    /// Both records as they are, where they are still in each other's way.
    fn standing(&mut self, system: SystemId, rival: &Rival, bodies: &dyn Bodies) -> Result<Standing> {
        let Some(held) = self.holds.held(system, rival.key_hash) else { return Ok(Standing::Behind) };
        let change = super::change_of(held);
        let row = Changes::new(&rival.row).next().expect("one encoded change");
        if change.op == Op::Delete || held.schema.id != self.topology.schema.id {
            return Ok(Standing::Behind);
        }
        let entity = change.entity.index();
        let ours = Side {
            key_hash: rival.key_hash,
            change: held.change.clone(),
            version: self.version(entity, rival.key_hash, rival.fields)?,
            told: true,
        };
        let there = self.version(entity, row.key_hash, rival.fields)?;
        let stay = self.bugs.rivals_stay;
        if ours.version.is_some_and(|version| version.seq() > rival.seq) && !stay {
            return Ok(Standing::Moved);
        }
        let told = match there {
            Some(there) => bodies.image(there.seq(), row.key_hash)?,
            None => None,
        };
        let same = told.as_ref().is_none_or(|told| agrees(told, &row, rival.fields));
        // Behind the refused change in its own entry, where it is of that one.
        let newer = there.filter(|there| there.seq() > rival.seq || there.seq() == rival.seq && !same);
        // Its own it had already.
        if newer.is_some_and(|newer| newer.deleted() || newer.origin() != system || !same) && !stay {
            return Ok(Standing::Moved);
        }
        if (there.is_some_and(Slot::deleted) || !same && self.holds.holds(system, row.key_hash)) && !stay {
            return Ok(Standing::Behind);
        }
        // Where somebody holds it, the record there says what became of the row since that system had it.
        let folded = self.holds.of_key(row.key_hash, self.topology.schema.id);
        let folded = folded.into_iter().find(|folded| agrees(folded, &row, rival.fields));
        let theirs = Side {
            key_hash: row.key_hash,
            version: there,
            told: folded.is_some() || told.is_some(),
            change: folded.or(told).unwrap_or_else(|| rival.row.clone()),
        };
        Ok(Standing::Clash(ours, theirs))
    }

    /// The latest version of these fields of a key that some system may not have seen.
    fn version(&mut self, entity: usize, key_hash: u128, fields: u128) -> Result<Option<Slot>> {
        let layout = &self.layouts[entity];
        if !layout.indexed {
            return Ok(None);
        }
        let mut latest: Option<Slot> = None;
        for slot in bits(layout.slots_with(fields)) {
            let found = self.store.get(slot_key(key_hash, slot))?;
            latest = found.into_iter().chain(latest).max_by_key(|slot| slot.seq());
        }
        Ok(latest)
    }

    /// Whether `ours` keeps the value.
    fn stands(
        &self,
        ours: &Side,
        here: Slot,
        theirs: &Side,
        there: Slot,
        unique: &Unique,
        bodies: &dyn Bodies,
    ) -> Result<bool> {
        let rules = &self.layouts[ours.change().entity.index()].rules;
        let first = (here.seq(), ours.key_hash) < (there.seq(), theirs.key_hash);
        let by_authority = match rules.rank(here.origin()).cmp(&rules.rank(there.origin())) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => first,
        };
        let policy = match rules.merge(unique.field) {
            Some(Merge::Policy(policy)) => policy,
            _ => rules.policy,
        };
        Ok(match policy {
            Policy::Authority => by_authority,
            Policy::Manual => first,
            Policy::Latest => match self.lateness(ours, here, theirs, there, rules.version, bodies)? {
                Some(Ordering::Greater) => true,
                Some(Ordering::Less) => false,
                Some(Ordering::Equal) | None => by_authority,
            },
        })
    }

    fn lateness(
        &self,
        ours: &Side,
        here: Slot,
        theirs: &Side,
        there: Slot,
        version: Option<usize>,
        bodies: &dyn Bodies,
    ) -> Result<Option<Ordering>> {
        if let Some(field) = version {
            let (ours, theirs) = (ours.change(), theirs.change());
            let (here, there) = (left(&ours, field), left(&theirs, field));
            return Ok(match (here, there) {
                (Datum::Value(here), Datum::Value(there)) => merge::order(here, there),
                (Datum::Value(_), _) => Some(Ordering::Greater),
                (_, Datum::Value(_)) => Some(Ordering::Less),
                _ => None,
            });
        }
        let corrected = |slot: Slot| -> Result<Option<Micros>> {
            let ahead = self.clocks.get(slot.origin().index()).copied().unwrap_or_default();
            Ok(bodies.committed_at(slot.seq())?.map(|at| at.saturating_sub(ahead)))
        };
        Ok(corrected(here)?.zip(corrected(there)?).map(|(here, there)| here.cmp(&there)))
    }

    /// An insert is taken back whole; an update gives back the values of the unique key that it has
    /// changed. `None`: nobody knows any more what was before.
    fn rejected(&self, loser: &Side, fields: u128) -> Option<Bytes> {
        let change = loser.change();
        let layout = &self.layouts[change.entity.index()];
        given_way(layout.key_len, &change, fields, |changed| layout.fields_of(layout.slots_with(changed)))
            .filter(|_| loser.told)
    }

    /// `None`: the template makes no other value of it that fits.
    fn renamed(&self, loser: &Side, rival: &Rival, unique: &Unique, template: &str) -> Option<Bytes> {
        let (change, field) = (loser.change(), unique.field);
        let layout = &self.layouts[change.entity.index()];
        let row = change.image();
        // Of a key of several fields it may have changed another one alone; in this one they are equal.
        let there = Changes::new(&rival.row).next().expect("one encoded change");
        let told = if row.get(field).is_sent() { row } else { there.image() };
        let Datum::Value(Value::Text(value)) = told.get(field) else { return None };
        let writer = loser.version.and_then(|version| self.topology.systems.get(version.origin().index()))?;
        let schema = self.topology.schema.entity(change.entity);
        let name = rendered(template, value, writer, &key_text(schema, row), unique.chars)?;
        if name == value {
            return None;
        }
        let carried = layout.fields_of(layout.slots_with(1 << field));
        let set = |at: usize, datum| if at == field { Datum::Value(Value::Text(&name)) } else { datum };
        Some(updated(layout.key_len, &change, carried, set))
    }

    /// One of them loses, in all systems.
    fn lose(
        &mut self,
        system: SystemId,
        loser: &Side,
        winner: &Side,
        rival: &Rival,
        change: Bytes,
        outcome: Outcome,
        now: Micros,
        bodies: &dyn Bodies,
    ) -> Result<Admitted> {
        let conflict = self.between(system, loser, winner, rival, outcome, now, bodies)?;
        let entity = loser.change().entity.index();
        let mut admitted = self.by_hand(
            ByHand {
                txid: clash_txid(conflict.id),
                at: now,
                schema: self.topology.schema.clone(),
                body: Body::Inline(change),
                changes: 1,
                resolves: None,
            },
            bodies,
        )?;
        admitted.counts[entity].conflicts += 1;
        // Before its entry, as all of them.
        admitted.records.insert(0, Record::Conflict(conflict));
        Ok(admitted)
    }

    /// A person decides. The entry is nobody's: it gives the conflict its number and its place in time.
    fn wait(
        &mut self,
        system: SystemId,
        loser: &Side,
        winner: &Side,
        rival: &Rival,
        now: Micros,
        bodies: &dyn Bodies,
    ) -> Result<Admitted> {
        let conflict = self.between(system, loser, winner, rival, Outcome::Waiting, now, bodies)?;
        self.head += 1;
        let entry = Entry {
            seq: self.head,
            origin: Origin::Agent,
            position: None,
            base: self.head - 1,
            txid: clash_txid(conflict.id),
            committed_at: now,
            hops: 0,
            to: Address::Only(Vec::new()),
            schema: self.topology.schema.clone(),
            changes: 1,
            body: Body::Inline(loser.change.clone()),
            decisions: Vec::new(),
            replacements: Bytes::new(),
        };
        self.waiting.add(&conflict);
        let mut counts = vec![Counts::default(); self.layouts.len()];
        counts[loser.change().entity.index()].conflicts += 1;
        let records = vec![Record::Conflict(conflict), Record::Entry(entry)];
        Ok(Admitted { records, counts, addressed: vec![0; self.systems.len()] })
    }

    fn between(
        &self,
        found_in: SystemId,
        loser: &Side,
        winner: &Side,
        rival: &Rival,
        outcome: Outcome,
        now: Micros,
        bodies: &dyn Bodies,
    ) -> Result<Conflicted> {
        let name = |system: SystemId| self.topology.systems.get(system.index()).cloned();
        // What every system has shown somebody wrote before; one of them is where it was found.
        let writer = |side: &Side| name(side.version.map_or(found_in, Slot::origin));
        let seq = |side: &Side| side.version.map_or(0, Slot::seq);
        let at = match loser.version {
            Some(version) => bodies.committed_at(version.seq())?,
            None => None,
        };
        Ok(Conflicted {
            id: ConflictId { seq: self.head + 1, index: 0 },
            entity: self.topology.schema.entity(loser.change().entity).name.as_str().into(),
            key_hash: loser.key_hash,
            system: writer(loser).unwrap_or_else(|| "agent".into()),
            against: seq(winner),
            against_system: writer(winner),
            rule: Rule::Unique,
            outcome,
            at: at.unwrap_or(now),
            images: Some(Images {
                schema: self.topology.schema.clone(),
                change: loser.change.clone(),
                current: winner.change.clone(),
                fields: rival.fields,
            }),
        })
    }
}

/// What was journaled, or held, says all of these fields, and what the system has in them.
fn agrees(told: &Bytes, row: &Change<'_>, fields: u128) -> bool {
    Changes::new(told).next().is_some_and(|told| {
        told.op != Op::Delete
            && bits(fields).all(|field| {
                let told = left(&told, field);
                told.is_sent() && alike(told, row.image().get(field))
            })
    })
}

fn key_text(schema: &EntitySchema, row: Row<'_>) -> String {
    let key = row.iter().take(schema.key_len).filter_map(Datum::value).map(text);
    key.collect::<Vec<_>>().join("-")
}

/// The template filled in. Where it is too long, the value in it is cut at its end.
fn rendered(template: &str, value: &str, system: &str, key: &str, chars: Option<u32>) -> Option<String> {
    let fill = |value: &str| {
        let (mut out, mut rest) = (String::new(), template);
        while let Some(open) = rest.find('{') {
            let (before, from) = rest.split_at(open);
            let end = from.find('}').unwrap_or(from.len() - 1);
            out.push_str(before);
            out.push_str(match &from[1..end] {
                "value" => value,
                "system" => system,
                _ => key,
            });
            rest = &from[end + 1..];
        }
        out + rest
    };
    let whole = fill(value);
    let most = chars.map_or(usize::MAX, |chars| chars as usize);
    if whole.chars().count() <= most {
        return Some(whole);
    }
    let (beside, times) = (fill("").chars().count(), template.matches("{value}").count());
    let room = most.checked_sub(beside)?.checked_div(times)?;
    Some(fill(&value.chars().take(room).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_names_the_value_its_writer_and_its_key() {
        let long = rendered("{value}-{system}-{key}", "ada@example.org", "shop", "7", None);

        assert_eq!(long.as_deref(), Some("ada@example.org-shop-7"));
    }

    #[test]
    fn a_name_that_would_not_fit_is_cut_in_its_value_alone() {
        let cut = |chars| rendered("{value}-{system}-{key}", "ädä@example.org", "shop", "7", Some(chars));

        assert_eq!(cut(11).as_deref(), Some("ädä@-shop-7"));
        assert_eq!(cut(7).as_deref(), Some("-shop-7"));
        assert_eq!(cut(6), None);
        assert_eq!(rendered("x{key}", "v", "shop", "1234", Some(3)), None);
    }
}
