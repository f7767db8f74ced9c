//! A captured transaction: each of its changes decided, and the entry that it becomes.

use std::sync::Arc;

use bytes::Bytes;

use super::bodies::walk;
use super::decide::{self, Case, Clash, Decided, Ruling};
use super::held::Base;
use super::policy::Contest;
use super::topology::{Layout, Topology};
use super::{Admitted, Arbiter, Bodies, Counts, Slot, held};
use crate::change::{
    Address, Captured, Change, ChangeWriter, Changes, ConflictId, Conflicted, Decision, Entry, Images, Micros, Op,
    Origin, Others, Outcome, Quarantined, Record, Verdict, fold,
};
use crate::error::Result;
use crate::normalize::binding::Role;
use crate::position::Seq;
use crate::schema::{Schema, SystemId, SystemSet};

/// Entry in the making.
#[derive(Default)]
struct Draft {
    index: u64,
    decisions: Vec<Decision>,
    replacements: ChangeWriter,
    addressed: SystemSet,
    /// Changes for each system.
    changes: Vec<u64>,
    /// Changes that the entry shows, accepted or rejected.
    shown: u64,
    counts: Vec<Counts>,
    /// Rows revived without fields that these systems have.
    incomplete: Vec<Incomplete>,
    /// Records of conflicts, and of those that came to an end.
    conflicts: Vec<Record>,
}

/// A revived row, encoded, and the systems that have fields which it lacks.
struct Incomplete {
    targets: SystemSet,
    key_hash: u128,
    change: Bytes,
    /// A later change of the same transaction is in it.
    folded: bool,
}

impl Draft {
    /// Puts an accepted change onto an incomplete row of the same key and transaction: its
    /// replacement, where one was written at `offset`.
    fn fold(&mut self, offset: Option<u64>, change: &Change<'_>) {
        let Some(incomplete) = self.incomplete.iter_mut().find(|i| i.key_hash == change.key_hash) else { return };
        let replaced = offset.and_then(|offset| Changes::new(&self.replacements.bytes[offset as usize..]).next());
        incomplete.change = fold(&incomplete.change, &replaced.unwrap_or(*change));
        incomplete.folded = true;
    }

    /// Appends a verdict; runs of equal ones become one range.
    fn decide(&mut self, verdict: Verdict) {
        let (from, to) = (self.index, self.index + 1);
        match self.decisions.last_mut() {
            Some(last) if last.to == from && last.verdict == verdict => last.to = to,
            _ => self.decisions.push(Decision { from, to, verdict }),
        }
    }

    fn address(&mut self, to: SystemSet) {
        self.addressed = SystemSet(self.addressed.0 | to.0);
        to.iter().for_each(|system| self.changes[system.index()] += 1);
    }
}

impl Arbiter {
    /// Admits a captured transaction. An error leaves the arbiter unusable: it may have entered
    /// half of it, and must be made anew from the journal.
    pub fn captured(&mut self, mut captured: Captured, bodies: &dyn Bodies) -> Result<Admitted> {
        let system = captured.system;
        let name = self.topology.systems[system.index()].clone();
        let mut records = self.has_seen(system, captured.base)?;
        self.systems[system.index()].position = Some(captured.position.clone());
        let base = if self.bugs.base_of_last_entry { self.head } else { captured.base };
        let seq = self.head + 1;
        let mut draft = Draft {
            counts: vec![Counts::default(); self.layouts.len()],
            changes: vec![0; self.systems.len()],
            ..Draft::default()
        };
        walk(&captured.body, bodies, &mut |chunk| {
            for change in Changes::new(chunk) {
                self.admit(&mut draft, &change, &captured, base, seq, bodies)?;
                draft.index += 1;
            }
            Ok(())
        })?;
        debug_assert_eq!(draft.index, captured.changes, "a body has as many changes as it says");
        records.extend(std::mem::take(&mut captured.refused).into_iter().map(Record::Refused));
        if draft.shown == 0 {
            records.push(self.position_record(system, captured.base));
            return Ok(Admitted { records, counts: draft.counts, addressed: draft.changes });
        }
        self.head = seq;
        self.address(draft.addressed, seq);
        for incomplete in std::mem::take(&mut draft.incomplete) {
            // Where the key is held already, the applier folds it like any other.
            let held = |target: &SystemId| self.holds.holds(*target, incomplete.key_hash);
            for target in incomplete.targets.iter().filter(|target| !held(target)).collect::<Vec<_>>() {
                let quarantined = self.incomplete(target, &captured.schema, seq, &incomplete, captured.committed_at);
                self.hold(target, &quarantined);
                // Before the entry: the applier must know it when it reads that.
                records.push(Record::Quarantine(quarantined));
            }
        }
        // Also before it, so that no crash leaves an entry without them; one without its entry is told
        // by its seq.
        records.append(&mut draft.conflicts);
        records.push(Record::Entry(Entry {
            seq,
            origin: Origin::System(name),
            position: Some(captured.position),
            base: captured.base,
            txid: captured.txid,
            committed_at: captured.committed_at,
            hops: captured.hops,
            to: Address::Others,
            schema: captured.schema,
            changes: captured.changes,
            body: captured.body,
            decisions: draft.decisions,
            replacements: draft.replacements.take().into(),
        }));
        Ok(Admitted { records, counts: draft.counts, addressed: draft.changes })
    }

    /// Decides one change and enters it.
    fn admit(
        &mut self,
        draft: &mut Draft,
        change: &Change<'_>,
        captured: &Captured,
        base: Seq,
        seq: Seq,
        bodies: &dyn Bodies,
    ) -> Result<()> {
        let system = captured.system;
        let layout = &self.layouts[change.entity.index()];
        let counts = &mut draft.counts[change.entity.index()];
        let Some(member) = layout.member(system).filter(|m| m.role != Role::Target) else {
            counts.drift += 1;
            draft.decide(Verdict::Rejected { winner: 0 });
            return Ok(());
        };
        draft.shown += 1;
        let others = layout.receivers.without(system);
        if !layout.indexed {
            counts.journaled.add(change.op);
            draft.address(others);
            return Ok(());
        }
        let base = match member.role {
            // It sees nothing, so it is never concurrent: last journaled wins.
            Role::Source => Base::plain(Seq::MAX),
            _ if self.bugs.held_base_not_lowered => Base::plain(base),
            _ => self.holds.base(system, change.key_hash, base),
        };
        let store = &mut self.store;
        let contest = Contest {
            rules: &layout.rules,
            system,
            change,
            seq,
            at: captured.committed_at,
            clocks: &self.clocks,
            bodies,
        };
        let case = Case { layout, system, base, bugs: self.bugs };
        let Decided { ruling, clash, others_only, returned } = decide::decide(&case, change, &contest, store)?;
        let returned = if self.bugs.returned_left_out { 0 } else { returned };
        counts.conflicts += u64::from(clash.is_some());
        let offset = draft.replacements.bytes.len() as u64;
        let mut told_again = None;
        if returned != 0 {
            self.returning.comes(system, change.entity, change.key_hash, change.key(layout.key_len), seq);
        }
        let (revived, same) = (matches!(ruling, Ruling::Revived { .. }), matches!(ruling, Ruling::Accepted { .. }));
        if let Some(clash) = &clash {
            let conflict =
                conflicted(&self.topology, layout, draft.index, change, captured, seq, clash, &ruling, bodies)?;
            self.waiting.add(&conflict);
            draft.conflicts.push(Record::Conflict(conflict));
        }
        let (slots, everywhere, deleted) = match ruling {
            Ruling::Accepted { slots, everywhere } => {
                counts.journaled.add(change.op);
                if clash.is_none() {
                    draft.conflicts.extend(self.waiting.superseded(change, layout.fields_of(slots), seq));
                }
                if others_only != 0 {
                    decide::write_own(&mut draft.replacements, layout, change, others_only);
                    draft.decide(Verdict::Split { others: Others::Same, own: offset, winner: None });
                } else if everywhere {
                    draft.decide(Verdict::Everywhere);
                }
                (slots, everywhere, change.op == Op::Delete)
            }
            Ruling::Rejected { winner } if returned != 0 => {
                counts.rejected += 1;
                decide::write_returned(&mut draft.replacements, layout, change, 0, returned);
                let own = Changes::new(&draft.replacements.bytes[offset as usize..]).next().expect("just written");
                decide::enter_returned(store, layout, &own, None, seq, system)?;
                draft.decide(Verdict::Split { others: Others::Nothing, own: offset, winner: Some(winner) });
                draft.address(SystemSet::EMPTY.with(system));
                return Ok(());
            }
            Ruling::Rejected { winner } => {
                counts.rejected += 1;
                draft.decide(Verdict::Rejected { winner });
                return Ok(());
            }
            Ruling::Partly { slots, everywhere, winner, merged } => {
                counts.journaled.add(change.op);
                decide::write_part(&mut draft.replacements, layout, change, slots, &merged);
                let own = draft.replacements.bytes.len() as u64;
                if others_only == 0 {
                    draft.decide(Verdict::Replaced { offset, everywhere, winner: Some(winner) });
                } else {
                    let part = draft.replacements.bytes[offset as usize..].to_vec();
                    let part = Changes::new(&part).next().expect("just written");
                    decide::write_own(&mut draft.replacements, layout, &part, others_only);
                    draft.decide(Verdict::Split { others: Others::Replaced(offset), own, winner: Some(winner) });
                }
                (slots, everywhere, false)
            }
            Ruling::Restored { slots, winner } => {
                counts.rejected += 1;
                decide::write_part(&mut draft.replacements, layout, change, slots, &[]);
                if returned == 0 {
                    draft.decide(Verdict::Replaced { offset, everywhere: true, winner: Some(winner) });
                } else {
                    let own = draft.replacements.bytes.len() as u64;
                    decide::write_returned(&mut draft.replacements, layout, change, slots, returned);
                    let mut written = Changes::new(&draft.replacements.bytes[offset as usize..]);
                    let (others, back) = (written.next(), written.next().expect("just written"));
                    decide::enter_returned(store, layout, &back, others.as_ref(), seq, system)?;
                    draft.decide(Verdict::Split { others: Others::Replaced(offset), own, winner: Some(winner) });
                }
                (slots, true, false)
            }
            Ruling::Redeleted { winner, deletion } => {
                counts.rejected += 1;
                decide::write_delete(&mut draft.replacements, change);
                draft.decide(Verdict::Redeleted { offset, winner, by: self.topology.who(deletion) });
                told_again = Some(deletion.told_again(seq));
                (layout.every_slot(), true, true)
            }
            Ruling::Revived { everywhere, deletion } => {
                counts.journaled.add(change.op);
                let missing = decide::write_revived(&mut draft.replacements, layout, change, deletion, bodies)?;
                draft.decide(Verdict::Replaced { offset, everywhere, winner: None });
                let encoded = &draft.replacements.bytes[offset as usize..];
                if missing != 0 {
                    draft.incomplete.push(Incomplete {
                        targets: layout.receivers_with(missing),
                        key_hash: change.key_hash,
                        change: Bytes::copy_from_slice(encoded),
                        folded: false,
                    });
                }
                let written = Changes::new(encoded).next().expect("just written");
                (layout.carried(&written) | 1, everywhere, false)
            }
        };
        let mut written = Changes::new(&draft.replacements.bytes[offset as usize..]);
        let own = written.clone().last().filter(|_| others_only != 0);
        let written = written.next().filter(|_| !same);
        let version = told_again.unwrap_or_else(|| Slot::new(seq, system, everywhere, deleted));
        decide::enter(store, layout, &written.unwrap_or(*change), own.as_ref(), slots, version)?;
        if !revived {
            draft.fold((!same).then_some(offset), change);
        }
        let to = if everywhere { layout.receivers } else { others };
        draft.address(to);
        if !self.holds.is_empty() {
            self.holds.wake_rivals(change.key_hash);
        }
        Ok(())
    }

    fn incomplete(
        &self,
        target: SystemId,
        schema: &Arc<Schema>,
        seq: Seq,
        row: &Incomplete,
        at: Micros,
    ) -> Quarantined {
        Quarantined {
            system: self.topology.systems[target.index()].clone(),
            schema: schema.clone(),
            held_seq: seq,
            last_seq: seq,
            change: row.change.clone(),
            reason: "the row was deleted and revived by a system that lacks fields of it, and the journal no longer \
                     has them"
                .to_owned(),
            code: String::new(),
            attempts: held::NO_TIMER,
            at,
            folded: row.folded,
        }
    }
}

/// What the journal tells of a change that met a version which it had not seen.
fn conflicted(
    topology: &Topology,
    layout: &Layout,
    index: u64,
    change: &Change<'_>,
    captured: &Captured,
    seq: Seq,
    clash: &Clash,
    ruling: &Ruling,
    bodies: &dyn Bodies,
) -> Result<Conflicted> {
    let outcome = match ruling {
        _ if clash.waits != 0 => Outcome::Waiting,
        Ruling::Rejected { .. } | Ruling::Restored { .. } | Ruling::Redeleted { .. } => Outcome::Lost,
        Ruling::Partly { .. } if clash.lost != 0 => Outcome::Partly,
        Ruling::Partly { .. } => Outcome::Merged,
        Ruling::Accepted { .. } | Ruling::Revived { .. } => Outcome::Won,
    };
    let images = match outcome {
        Outcome::Waiting => {
            let mut out = ChangeWriter::default();
            out.push_change(change);
            let current = bodies.image(clash.against.seq(), change.key_hash)?.unwrap_or_default();
            let fields = layout.fields_of(clash.waits);
            Some(Images { schema: captured.schema.clone(), change: out.take().into(), current, fields })
        }
        _ => None,
    };
    let entity = &topology.schema.entity(change.entity).name;
    Ok(Conflicted {
        id: ConflictId { seq, index },
        entity: entity.as_str().into(),
        key_hash: change.key_hash,
        system: topology.systems[captured.system.index()].clone(),
        against: clash.against.seq(),
        against_system: topology.systems.get(clash.against.origin().index()).cloned(),
        rule: clash.rule,
        outcome,
        at: captured.committed_at,
        images,
    })
}
