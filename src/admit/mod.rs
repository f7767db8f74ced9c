//! The one place where order and conflicts are decided: records in, records out.
//!
//! All captured transactions pass one arbiter. It numbers them, decides each change against the
//! index of what was journaled and not yet seen by all ([`index`]), and knows which systems
//! hold which keys ([`held`]). It is pure: time is passed in, what it needs of the journal it
//! asks of [`Bodies`], and replaying the journal's records gives its state back.
//!
//! ```text
//! Captured ─┐                                ┌─▶ Entry, Refused
//! Passed ───┼─▶ arbiter ── index, holds ─────┼─▶ Position
//! Quarantined (appliers), tick (timer) ──────┴─▶ Quarantine, retry Entry, Released
//! ```
//!
//! *Base is exact*: a change is concurrent with a version when its system's own log had not
//! shown that version's marker before it. No clock and no before image takes part in that.

mod copies;
mod copy;
mod decide;
pub mod held;
pub mod index;
mod merge;
mod person;
mod policy;
mod rivals;
mod store;
pub mod topology;

use std::sync::Arc;

use bytes::Bytes;

use copies::Index;
pub use copy::{Copied, Copies};
pub use held::{HeldKey, Rival};
use index::slot_key;
pub use index::{MemoryStore, Slot, SlotStore};
pub use person::ByHand;
pub use store::DiskStore;
pub use topology::{EntityTopology, Member, Topology};

use crate::change::{
    Address, Body, Captured, Change, ChangeWriter, Changes, ConflictId, Conflicted, Decision, Entry, Fate, Images,
    Micros, Op, Operations, Origin, Others, Outcome, Prepared, Quarantined, Record, SpoolRef, Verdict, fold, overlay,
};
use crate::error::{Error, Result};
use crate::normalize::binding::Role;
use crate::position::{Position, Seq};
use crate::schema::{Schema, SystemId, SystemSet, Translation};
use crate::value::Row;
use decide::{Case, Clash, Decided, Ruling};
use held::{Holds, change_of};
use person::Waitings;
use policy::Contest;
use topology::Layout;

/// Mistakes that the simulation plants to show that it would catch them. Production code never
/// sets one.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bugs {
    /// The base is the head of the journal, not the marker in the system's own log.
    pub base_of_last_entry: bool,
    /// A change that follows our own *everywhere* goes to the others only.
    pub own_everywhere_left_out: bool,
    /// A change that wins goes to the others only.
    pub won_everywhere_left_out: bool,
    /// An insert that lost to a delete is rejected only: the row may stay where it was made.
    pub redelete_left_out: bool,
    /// One slot per key although bindings differ in fields.
    pub one_slot: bool,
    /// A held key's later changes keep their base.
    pub held_base_not_lowered: bool,
    /// Appliers write only the columns that changed.
    pub only_changed_columns: bool,
    /// A field that nobody else tells, of a row that was deleted and made again, is rejected.
    pub lone_fields_lost: bool,
    /// A copied row wins and loses as if it had been written just now.
    pub copies_are_live: bool,
    /// A difference and a whole value that have not seen each other go to the others only.
    pub differences_left_out: bool,
    /// A row that outlives its deletion comes back without what its origin had of additive fields.
    pub returned_left_out: bool,
    /// What a person sets goes without the rest of its slot.
    pub set_alone: bool,
    /// What is in a change's way is decided about as it was found, whatever was written since.
    pub rivals_stay: bool,
}

/// What the arbiter reads of the journal while it decides.
pub trait Bodies {
    /// When the transaction of entry `seq` was committed, by its server's clock.
    fn committed_at(&self, seq: Seq) -> Result<Option<Micros>>;

    /// The chunks of a spooled body, in order.
    fn chunks(&self, spool: &SpoolRef, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The last accepted change of that key in entry `seq`, encoded: also of an entry that is
    /// appended and not yet synced. See [`image_in`].
    fn image(&self, seq: Seq, key_hash: u128) -> Result<Option<Bytes>>;
}

/// What admission made of something: records to append in this order, and what was counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    pub records: Vec<Record>,
    /// By [`EntityId`]; empty where nothing was decided.
    pub counts: Vec<Counts>,
    /// Changes for each system; empty where nothing was decided.
    pub addressed: Vec<u64>,
}

/// Changes of one entity in one transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub journaled: Operations,
    pub rejected: u64,
    /// Concurrent with what was journaled, whoever won.
    pub conflicts: u64,
    /// Written in a target's table by somebody else; not journaled.
    pub drift: u64,
}

/// How far the arbiter knows one system.
#[derive(Debug, Clone)]
struct Followed {
    /// The highest marker its log has shown.
    seen: Seq,
    /// The last entry that is addressed to it.
    addressed: Seq,
    /// The first one addressed to it after it had everything: what is below was not for it.
    pending_from: Seq,
    position: Option<Position>,
    identity: Arc<str>,
    /// All of this is told already: what older records say of it is past.
    settled: bool,
}

impl Followed {
    /// The first seq that it may not have seen; `None` when it has all that was for it.
    fn behind(&self) -> Option<Seq> {
        (self.seen < self.addressed).then(|| self.pending_from.max(self.seen + 1))
    }

    fn address(&mut self, seq: Seq) {
        if self.behind().is_none() {
            self.pending_from = seq;
        }
        self.addressed = self.addressed.max(seq);
    }
}

pub struct Arbiter {
    topology: Topology,
    layouts: Vec<Layout>,
    store: Index,
    head: Seq,
    systems: Vec<Followed>,
    holds: Holds,
    /// Low watermarks of chunks that are being read: what they have not seen stays in the index.
    chunks: Vec<Seq>,
    waiting: Waitings,
    /// By system: how much its clock is ahead of ours.
    clocks: Vec<Micros>,
    bugs: Bugs,
}

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
    /// Knows nothing yet: [`replay`](Self::replay) every record of the journal, then
    /// [`resume`](Self::resume).
    pub fn new(topology: Topology, store: Box<dyn SlotStore>) -> Self {
        Self::with_bugs(topology, store, Bugs::default())
    }

    #[doc(hidden)]
    pub fn with_bugs(topology: Topology, store: Box<dyn SlotStore>, bugs: Bugs) -> Self {
        let systems = topology.systems.len();
        let entities = topology.schema.entities.iter().zip(&topology.entities);
        let layouts = entities.map(|(entity, t)| Layout::new(entity, t, systems, bugs.one_slot)).collect();
        let unknown =
            Followed { seen: 0, addressed: 0, pending_from: 0, position: None, identity: "".into(), settled: false };
        Arbiter {
            layouts,
            store: Index::new(store),
            head: 0,
            systems: vec![unknown; systems],
            holds: Holds::default(),
            chunks: Vec::new(),
            waiting: Waitings::default(),
            clocks: vec![0; systems],
            bugs,
            topology,
        }
    }

    /// Before the replay: how far a system's log was read, and the marker that it had shown. An
    /// older record may say more, of a log that was lost or of tables that were restored since.
    pub fn follow(&mut self, system: SystemId, position: Position, base: Seq, identity: Arc<str>) {
        let followed = &mut self.systems[system.index()];
        followed.seen = base;
        followed.position = Some(position);
        followed.identity = identity;
        followed.settled = true;
    }

    /// Ends the replay. `head` counts where the oldest records are gone; the position records
    /// that the journal knows then are replayed like any other, before this. What comes out is
    /// to be appended.
    pub fn resume(&mut self, head: Seq) -> Vec<Record> {
        self.head = self.head.max(head);
        self.systems.iter_mut().for_each(|followed| followed.settled = false);
        self.holds.wake();
        let mut records = self.waiting.orphaned(self.head);
        records.extend(self.waiting.parted(|key| self.holds.any_holds(key), self.head));
        records
    }

    /// The last seq given to an entry; the journal may not have synced it yet.
    pub fn head(&self) -> Seq {
        self.head
    }

    /// The highest marker that the system's log has shown.
    pub fn seen(&self, system: SystemId) -> Seq {
        self.systems[system.index()].seen
    }

    /// Where the system's log was read to.
    pub fn position(&self, system: SystemId) -> Option<&Position> {
        self.systems[system.index()].position.as_ref()
    }

    /// The last entry that is addressed to the system.
    pub fn addressed(&self, system: SystemId) -> Seq {
        self.systems[system.index()].addressed
    }

    /// Where the system's applier has to read from at least: what is below was seen, or is for
    /// others, and may have left the journal.
    pub fn applies_from(&self, system: SystemId) -> Seq {
        self.systems[system.index()].behind().unwrap_or(self.head + 1)
    }

    /// The keys that the system holds, for an applier that starts.
    pub fn held(&self, system: SystemId) -> Vec<HeldKey> {
        self.holds.of(system).collect()
    }

    /// All live quarantine records.
    pub fn quarantine(&self) -> impl Iterator<Item = &Quarantined> {
        self.holds.all().map(|(_, quarantined)| quarantined)
    }

    /// Live quarantined keys of an entity, over all systems.
    pub fn held_of(&self, entity: &str) -> usize {
        self.quarantine().filter(|q| q.schema.entity(change_of(q).entity).name == entity).count()
    }

    /// The first seq that must stay in the journal, for systems that have not shown it and for
    /// a restart. Asked only when the journal has synced every base that was told here: after
    /// a restart the older ones count again.
    pub fn needed_from(&self) -> Seq {
        let durable = self.store.durable();
        let index = if durable > 0 { Some(durable + 1) } else { self.holds.oldest_held() };
        self.floor().min(index.unwrap_or(Seq::MAX)).min(self.holds.oldest_retry().unwrap_or(Seq::MAX))
    }

    /// Every system has seen all that is addressed to it below this.
    fn floor(&self) -> Seq {
        self.systems.iter().filter_map(Followed::behind).min().unwrap_or(self.head + 1)
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
        // A system that is gone from the configuration has the lowest authority.
        let system = origin.unwrap_or(index::NOBODY);
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
            Some(Verdict::Everywhere | Verdict::Replaced { everywhere: true, .. } | Verdict::Split { .. })
        );
        let inserted = change.op == Op::Insert;
        let change = match fate {
            Fate::Apply => *change,
            Fate::Replace(encoded) => encoded.change(),
            // Its origin alone gets something back: nothing that others write meets it.
            Fate::Skip if matches!(verdict, Some(Verdict::Split { .. })) => {
                return Ok(SystemSet::EMPTY.with(system));
            }
            Fate::Skip => return Ok(SystemSet::EMPTY),
        };
        scratch.bytes.clear();
        let change = match translation {
            None => change,
            Some(translation) => match translation.translate(&change, scratch) {
                true => Changes::new(&scratch.bytes).next().expect("just written"),
                false => return Ok(SystemSet::EMPTY),
            },
        };
        let Some(layout) = self.layouts.get(change.entity.index()) else { return Ok(SystemSet::EMPTY) };
        if layout.indexed {
            let deleted = change.op == Op::Delete;
            // A delete in place of an insert is of the one who deleted before.
            let before = match inserted && deleted {
                true => self.store.get(slot_key(change.key_hash, 0))?,
                false => None,
            };
            let version = match (&entry.origin, before) {
                (Origin::Agent, _) => Slot::decided(entry.seq, deleted),
                (_, Some(deletion)) => deletion.told_again(entry.seq),
                (_, None) => Slot::new(entry.seq, system, everywhere, deleted),
            };
            let slots = decide::slots_of(layout, verdict, &change);
            let own = match verdict {
                Some(Verdict::Split { own, .. }) => Changes::new(&entry.replacements[*own as usize..]).next(),
                _ => None,
            };
            decide::enter(&mut self.store, layout, &change, own.as_ref(), slots, version)?;
        }
        Ok(if everywhere { layout.receivers } else { layout.receivers.without(system) })
    }

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
            Role::Source => Seq::MAX,
            _ if self.bugs.held_base_not_lowered => base,
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
                    draft.decide(Verdict::Split { others: Others::Replaced(offset), own, winner: Some(winner) });
                }
                (slots, true, false)
            }
            Ruling::Redeleted { winner, deletion } => {
                counts.rejected += 1;
                decide::write_delete(&mut draft.replacements, change);
                draft.decide(Verdict::Replaced { offset, everywhere: true, winner: Some(winner) });
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

    /// The log was read to `position`, with nothing to journal.
    pub fn passed(&mut self, system: SystemId, position: Position, base: Seq, identity: Arc<str>) -> Result<Admitted> {
        let mut records = self.has_seen(system, base)?;
        let followed = &mut self.systems[system.index()];
        followed.position = Some(position);
        followed.identity = identity;
        records.push(self.position_record(system, base));
        Ok(Admitted { records, ..Admitted::default() })
    }

    fn position_record(&self, system: SystemId, base: Seq) -> Record {
        let followed = &self.systems[system.index()];
        Record::Position {
            system: self.topology.systems[system.index()].clone(),
            position: followed.position.clone().expect("set before a record is made of it"),
            base,
            identity: followed.identity.clone(),
        }
    }

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

    fn hold(&mut self, system: SystemId, quarantined: &Quarantined) -> bool {
        let name = &quarantined.schema.entity(change_of(quarantined).entity).name;
        let layout = self.topology.schema.find(name).map(|entity| &self.layouts[entity.index()]);
        let numbers = layout.map_or_else(|| Arc::from([0]), Layout::numbers);
        self.holds.hold(system, quarantined, numbers)
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

    /// The system's log has shown marker `base`.
    fn has_seen(&mut self, system: SystemId, base: Seq) -> Result<Vec<Record>> {
        let followed = &mut self.systems[system.index()];
        if base <= followed.seen {
            return Ok(Vec::new());
        }
        followed.seen = base;
        let name = self.topology.systems[system.index()].clone();
        let freed = self.holds.seen(system, base).into_iter().map(|(hold, by)| {
            let change = change_of(&hold.quarantined);
            let entity = hold.quarantined.schema.entity(change.entity).name.as_str().into();
            Record::Released { system: name.clone(), entity, key_hash: change.key_hash, by }
        });
        let mut records: Vec<Record> = freed.collect();
        if !records.is_empty() {
            records.extend(self.waiting.parted(|key| self.holds.any_holds(key), base));
        }
        self.forget()?;
        Ok(records)
    }

    fn address(&mut self, to: SystemSet, seq: Seq) {
        for (index, followed) in self.systems.iter_mut().enumerate() {
            if to.contains(SystemId(index as u8)) {
                followed.address(seq);
            }
        }
    }

    fn forget(&mut self) -> Result<()> {
        let floor = self.chunks.iter().map(|base| base + 1).fold(self.floor(), Seq::min);
        self.store.forget_below(floor, self.holds.pinned())
    }
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("head", &self.head).field("slots", &self.store.len()).finish_non_exhaustive()
    }
}

fn inline(body: &Body) -> &[u8] {
    match body {
        Body::Inline(bytes) => bytes,
        Body::Spooled(_) => &[],
    }
}

/// The chunks of a body, in order.
fn walk(body: &Body, bodies: &dyn Bodies, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match body {
        Body::Inline(bytes) => each(bytes),
        Body::Spooled(spool) => bodies.chunks(spool, each),
    }
}

/// The last accepted change of a key in an entry, encoded in `schema`: what
/// [`Bodies::image`] answers.
pub fn image_in(entry: &Entry, key_hash: u128, schema: &Arc<Schema>, bodies: &dyn Bodies) -> Result<Option<Bytes>> {
    let translation = Translation::between(&entry.schema, schema);
    let (mut index, mut cursor, mut found) = (0, 0, None);
    walk(&entry.body, bodies, &mut |chunk| {
        for change in Changes::new(chunk) {
            let fate = entry.fate(index, "", &mut cursor);
            index += 1;
            if change.key_hash != key_hash {
                continue;
            }
            let change = match fate {
                Fate::Apply => change,
                Fate::Replace(encoded) => encoded.change(),
                Fate::Skip => continue,
            };
            let mut out = ChangeWriter::default();
            match &translation {
                None => out.push_change(&change),
                Some(translation) => drop(translation.translate(&change, &mut out)),
            }
            let Some(last) = Changes::new(&out.bytes).next() else { continue };
            found = Some(with_earlier(found.as_ref(), &last));
        }
        Ok(())
    })?;
    Ok(found)
}

/// A change of a key, with what an earlier one of the same entry carried and this one does not.
fn with_earlier(earlier: Option<&Bytes>, change: &Change<'_>) -> Bytes {
    let earlier = earlier.and_then(|earlier| Changes::new(earlier).next()).filter(|_| change.op == Op::Update);
    let after = earlier.and_then(|earlier| earlier.after).zip(change.after);
    let after = after.map(|(earlier, after)| overlay(earlier, after));
    let mut out = ChangeWriter::default();
    out.push_change(&Change { after: after.as_deref().map(Row).or(change.after), ..*change });
    out.take().into()
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

#[cfg(test)]
mod tests;
