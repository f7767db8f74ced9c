//! The rule: what becomes of one change, given what its key's slots say.
//!
//! ```text
//! l none, or l.seq <= base, or l is our own and not everywhere    for the others
//! l is our own and everywhere                                     everywhere
//! l was copied, or the rules prefer the change to l               everywhere
//! the rules make one value of both                                that one, everywhere
//! else                                                            rejected
//! ```
//!
//! per slot. *Everywhere* includes the origin: it is about to receive the older version and must end
//! with this one. What a change loses is taken out of it, the rest goes on. A field that an insert
//! brings to a row which was deleted and made again by systems that have no such field is taken,
//! everywhere: nobody else tells what it is. An insert that lost to a delete is answered by that
//! delete, everywhere (a server may have deleted nothing while the insert was not yet to be seen). A
//! delete cannot be halved: where it loses anything the row lives, and its origin, which has deleted
//! it, gets back what no winner brings. An update of a row that was deleted meanwhile revives it
//! everywhere, so it must carry the whole row.
//!
//! Differences of additive fields commute, so they never meet each other. They meet whole values:
//!
//! ```text
//! difference, after a whole value it has not seen     everywhere: its origin loses it to that value
//! whole value, after a difference it has not seen     everywhere: its origin would add it to this value
//! delete, after a difference it has not seen          an update against a delete
//! ```
//!
//! Where the row lives on after such a delete, the origin alone gets back what it had of the field, as
//! a difference: the others' were added to nothing there. Until it has that, what it writes goes everywhere.

use crate::admit::copies::Index;
use crate::admit::held::Base;
use crate::admit::index::{NOBODY, Slot, SlotStore, added, returned, slot_key};
use crate::admit::policy::{Contest, Weighed};
use crate::admit::topology::{Layout, bits};
use crate::admit::{Bodies, Bugs};
use crate::change::{Change, ChangeWriter, Op, Rule, Verdict};
use crate::error::Result;
use crate::position::Seq;
use crate::rules::Merge;
use crate::schema::SystemId;
use crate::value::number::{write_difference, write_sum};
use crate::value::{Datum, Row, Value, write_datum};

/// What becomes of one change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// As it stands. `slots` are its.
    Accepted { slots: u128, everywhere: bool },
    /// Lost as a whole.
    Rejected { winner: Seq },
    /// Only `slots` of it go on, with these values in place of its own: the rest lost against `winner`.
    Partly { slots: u128, everywhere: bool, winner: Seq, merged: Vec<(usize, Vec<u8>)> },
    /// A rejected delete: the origin's own image of `slots` goes back to it.
    Restored { slots: u128, winner: Seq },
    /// An insert that lost to a delete: the delete goes out again. A server may have carried it
    /// out while the insert was under way and not yet to be seen, and then the row is there.
    Redeleted { winner: Seq, deletion: Slot },
    /// An update of a row that entry `deletion` deleted: completed from there.
    Revived { everywhere: bool, deletion: Seq },
}

/// A change that met a version which it had not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clash {
    /// The latest such version.
    pub against: Slot,
    pub rule: Rule,
    /// Slots that lost, and of these the ones that a person is asked about.
    pub lost: u128,
    pub waits: u128,
    pub merged: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub ruling: Ruling,
    pub clash: Option<Clash>,
    /// Slots of differences that go to the others alone.
    pub others_only: u128,
    /// Additive slots whose value its origin alone gets back, as a difference.
    pub returned: u128,
}

/// What concerns a change besides its slots.
pub(super) struct Case<'a> {
    pub layout: &'a Layout,
    pub system: SystemId,
    pub base: Base<'a>,
    pub bugs: Bugs,
}

/// What the slots said so far.
#[derive(Default)]
struct Slots {
    lost: u128,
    waits: u128,
    winner: Seq,
    everywhere: bool,
    /// Slots of differences, and of these the ones that go everywhere.
    added: u128,
    added_everywhere: u128,
    merged: Vec<(usize, Vec<u8>)>,
    clash: Option<(Slot, Rule)>,
    /// Additive ones that a delete has not seen a difference of, and no whole value that its system is
    /// about to receive; and those where it is.
    differ: u128,
    stand: u128,
}

impl Slots {
    fn weigh(&mut self, contest: &Contest<'_>, layout: &Layout, slot: usize, latest: Slot) -> Result<()> {
        let merge = layout.merge(slot).map(|merge| (layout.field_of(slot), merge));
        let (weighed, rule) = contest.weigh(latest, merge)?;
        let lost = matches!(weighed, Weighed::Loses | Weighed::Waits);
        // What lost says most of how; else what it met last.
        if lost && self.lost == 0 || self.clash.is_none_or(|(before, _)| self.lost == 0 && before.seq() < latest.seq())
        {
            self.clash = Some((latest, rule));
        }
        self.waits |= u128::from(weighed == Weighed::Waits) << slot;
        match weighed {
            Weighed::Wins => self.everywhere = true,
            Weighed::Merged(datum) => {
                self.everywhere = true;
                self.winner = self.winner.max(latest.seq());
                self.merged.push((layout.field_of(slot), datum));
            }
            Weighed::Loses | Weighed::Waits => {
                self.lost |= 1 << slot;
                self.winner = self.winner.max(latest.seq());
            }
        }
        Ok(())
    }
}

pub(super) fn decide(
    case: &Case<'_>,
    change: &Change<'_>,
    contest: &Contest<'_>,
    store: &mut dyn SlotStore,
) -> Result<Decided> {
    let Case { layout, system, base, bugs } = case;
    let carried = layout.carried(change);
    let mut slots = Slots::default();
    let made_again = change.op == Op::Insert
        && carried != 1
        && !bugs.lone_fields_lost
        && store.get(slot_key(change.key_hash, 0))?.is_some_and(|l| !l.deleted());
    for slot in bits(carried) {
        let latest = store.get(slot_key(change.key_hash, slot))?.filter(|l| l.seq() > base.of(slot));
        let additive = layout.merge(slot) == Some(Merge::Add);
        let differs = additive && is_difference(layout, change, slot);
        slots.added |= u128::from(differs) << slot;
        if let Some(latest) = latest {
            let own = latest.origin() == *system;
            if differs && (own || !latest.deleted()) {
                let everywhere = (!own || latest.everywhere()) && !bugs.differences_left_out;
                slots.added_everywhere |= u128::from(everywhere) << slot;
            } else if own {
                slots.everywhere |= latest.everywhere() && !bugs.own_everywhere_left_out;
            } else if latest.copied() && !bugs.copies_are_live {
                slots.everywhere = true;
            } else if made_again && latest.deleted() {
                slots.clash = slots.clash.or(Some((latest, Rule::UpdateWins)));
                slots.everywhere = true;
            } else {
                let everywhere = slots.everywhere;
                slots.weigh(contest, layout, slot, latest)?;
                slots.everywhere = everywhere || slots.everywhere && !bugs.won_everywhere_left_out;
                // Of a row that lives on: what was there before is gone for its system, too.
                slots.added_everywhere |= u128::from(differs) << slot & !slots.lost;
            }
        }
        if !additive || differs {
            continue;
        }
        if let Some(difference) = unseen_difference(case, change.key_hash, slot, store)? {
            if change.op != Op::Delete || difference.origin() == *system {
                slots.everywhere |= !bugs.differences_left_out;
                continue;
            }
            match latest.filter(|l| l.origin() != *system || l.everywhere()) {
                Some(_) => slots.stand |= 1 << slot,
                None => slots.differ |= 1 << slot,
            }
            if latest.is_none_or(|l| l.origin() == *system) {
                slots.weigh(contest, layout, slot, difference)?;
            }
        }
    }
    rule(case, change, carried, slots, store)
}

fn rule(
    case: &Case<'_>,
    change: &Change<'_>,
    carried: u128,
    slots: Slots,
    store: &mut dyn SlotStore,
) -> Result<Decided> {
    let Case { layout, system, base, bugs } = case;
    let Slots { lost, waits, winner, everywhere, added, added_everywhere, merged, clash, differ, stand } = slots;
    let everywhere = everywhere || added_everywhere != 0;
    let others_only = if everywhere { added & !added_everywhere & !lost } else { 0 };
    let clash = clash.map(|(against, rule)| Clash { against, rule, lost, waits, merged: !merged.is_empty() });
    let decided = |ruling| Decided { ruling, clash, others_only, returned: 0 };
    let kept = carried & !lost;
    let deletion = |store: &mut dyn SlotStore| -> Result<Option<Slot>> {
        Ok(store.get(slot_key(change.key_hash, 0))?.filter(|l| l.deleted() && l.seq() > base.of(0)))
    };
    if lost != 0 && change.op == Op::Delete {
        let own = layout.member(*system).map_or(0, |m| layout.slots_of(m.fields));
        let returned = differ & own;
        let ruling = match kept & own & !(differ | stand) {
            0 => Ruling::Rejected { winner },
            slots => Ruling::Restored { slots: slots | 1, winner },
        };
        return Ok(Decided { ruling, clash, others_only: 0, returned });
    }
    if lost != 0
        && kept == 0
        && change.op == Op::Insert
        && !bugs.redelete_left_out
        && let Some(latest) = deletion(store)?
    {
        return Ok(decided(Ruling::Redeleted { winner, deletion: latest }));
    }
    if lost != 0 || !merged.is_empty() {
        return Ok(decided(match kept {
            0 => Ruling::Rejected { winner },
            slots => Ruling::Partly { slots, everywhere, winner, merged },
        }));
    }
    if change.op == Op::Update
        && let Some(deletion) = deletion(store)?
    {
        return Ok(decided(Ruling::Revived { everywhere, deletion: deletion.seq() }));
    }
    Ok(decided(Ruling::Accepted { slots: carried, everywhere }))
}

/// The change carries the slot's field as a difference.
fn is_difference(layout: &Layout, change: &Change<'_>, slot: usize) -> bool {
    change.after.is_some_and(|after| matches!(after.get(layout.field_of(slot)), Datum::Added(_)))
}

/// A difference of the slot that the change's system will receive, and had not seen: of several that of
/// the highest authority, another's before its own, and last what it alone gets back.
fn unseen_difference(case: &Case<'_>, key_hash: u128, slot: usize, store: &mut dyn SlotStore) -> Result<Option<Slot>> {
    let mut found: Option<Slot> = None;
    let rank = |of: &Slot| (of.origin() == case.system, case.layout.rules.rank(of.origin()));
    for writer in case.layout.writers().chain([NOBODY]) {
        for everywhere in [false, true].into_iter().filter(|everywhere| *everywhere || writer != case.system) {
            let latest = store.get(slot_key(key_hash, added(slot, writer, everywhere)))?;
            if let Some(latest) = latest.filter(|latest| latest.seq() > case.base.of(slot))
                && found.as_ref().is_none_or(|found| rank(&latest) < rank(found))
            {
                found = Some(latest);
            }
        }
    }
    if found.is_none() {
        let back = store.get(slot_key(key_hash, returned(slot, case.system)))?;
        found = back.filter(|back| back.seq() > case.base.of(slot));
    }
    Ok(found)
}

/// What becomes of a row that was copied from `case.system` at its low watermark, its base: the
/// slots that it takes, or `None` where it loses to a version that the system had not seen, or is
/// about to lose. Its own versions it has: what is read is at least as new.
pub(super) fn decide_copy(case: &Case<'_>, change: &Change<'_>, index: &mut Index) -> Result<Option<u128>> {
    let carried = case.layout.carried(change);
    for slot in bits(carried) {
        let latest = index.get_for_copy(slot_key(change.key_hash, slot), case.system)?;
        let latest = latest.filter(|l| l.seq() > case.base.of(slot));
        let own = |l: &Slot| l.origin() == case.system && !l.everywhere() && !l.deleted();
        let additive = case.layout.merge(slot) == Some(Merge::Add);
        let unseen = additive && unseen_difference(case, change.key_hash, slot, index)?.is_some();
        if (latest.is_some_and(|l| !own(&l)) || unseen) && !case.bugs.copies_are_live {
            return Ok(None);
        }
    }
    Ok(Some(carried))
}

/// Whether a row that `case.system` has no longer stays away: its deletion stands, or nothing comes that
/// the system had not seen. A deletion that lost may leave what differences were added to in that system
/// alone, and it is told by nobody then.
pub(super) fn is_gone(case: &Case<'_>, key_hash: u128, store: &mut dyn SlotStore) -> Result<bool> {
    let Case { layout, system, base, .. } = case;
    // With one slot every version is a whole row.
    if layout.slots.len() == 1 || store.get(slot_key(key_hash, 0))?.is_some_and(Slot::deleted) {
        return Ok(true);
    }
    for slot in 0..layout.slots.len() {
        let latest = store.get(slot_key(key_hash, slot))?.filter(|l| l.seq() > base.of(slot));
        let comes = latest.is_some_and(|l| l.origin() != *system || l.everywhere());
        let additive = layout.merge(slot) == Some(Merge::Add);
        if comes || additive && unseen_difference(case, key_hash, slot, store)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The slots of a journaled change, as its entry tells them. A row that is revived exists, with
/// the fields that it carries: one that nobody could tell is left to whoever writes it next.
pub(super) fn slots_of(layout: &Layout, verdict: Option<&Verdict>, change: &Change<'_>) -> u128 {
    match verdict {
        Some(Verdict::Replaced { winner: None, .. }) => layout.carried(change) | 1,
        _ => layout.carried(change),
    }
}

/// Enters the version that `change`, as it was journaled, is of `slots` into the index.
///
/// `own`: what the origin gets of it, where that is something else.
pub(super) fn enter(
    store: &mut dyn SlotStore,
    layout: &Layout,
    change: &Change<'_>,
    own: Option<&Change<'_>>,
    slots: u128,
    version: Slot,
) -> Result<()> {
    for slot in bits(slots) {
        if layout.merge(slot) != Some(Merge::Add) || !is_difference(layout, change, slot) {
            store.put(slot_key(change.key_hash, slot), version)?;
            continue;
        }
        let back = version.everywhere() && own.is_none_or(|own| is_difference(layout, own, slot));
        store.put(slot_key(change.key_hash, added(slot, version.origin(), back)), version)?;
    }
    Ok(())
}

/// Enters what the origin alone gets back: all that `own` carries and `others` does not.
pub(super) fn enter_returned(
    store: &mut dyn SlotStore,
    layout: &Layout,
    own: &Change<'_>,
    others: Option<&Change<'_>>,
    seq: Seq,
    system: SystemId,
) -> Result<()> {
    for slot in bits(layout.carried(own) & !others.map_or(0, |others| layout.carried(others))) {
        store.put(slot_key(own.key_hash, returned(slot, system)), Slot::new(seq, system, true, false))?;
    }
    Ok(())
}

/// The keys under which a copied row's slots are entered.
pub(super) fn collect(keys: &mut Vec<u128>, change: &Change<'_>, slots: u128) {
    keys.extend(bits(slots).map(|slot| slot_key(change.key_hash, slot)));
}

/// Appends to `out` what is left of a change: the key, and of its image the fields of `slots`, with
/// what was merged in their place. An insert where the row's existence is among them.
pub(super) fn write_part(
    out: &mut ChangeWriter,
    layout: &Layout,
    change: &Change<'_>,
    slots: u128,
    merged: &[(usize, Vec<u8>)],
) {
    let (row, fields) = (change.image(), layout.fields_of(slots));
    let mut after = Vec::with_capacity(row.0.len());
    for (field, datum) in row.iter().enumerate() {
        if let Some((_, datum)) = merged.iter().find(|(of, _)| *of == field) {
            after.extend_from_slice(datum);
            continue;
        }
        let kept = field < layout.key_len || fields >> field & 1 == 1;
        write_datum(&mut after, if kept { datum } else { Datum::NotSent });
    }
    let (op, before) = if slots & 1 == 1 { (Op::Insert, None) } else { (Op::Update, change.before) };
    out.push_change(&Change { op, before, after: Some(Row(&after)), ..*change });
}

/// Appends to `out` what the origin of a rejected delete gets back: fields of `slots` as they were, and
/// those of the additive `returned` as differences, because others were added to nothing meanwhile.
/// Whole, where they are no numbers.
pub(super) fn write_returned(
    out: &mut ChangeWriter,
    layout: &Layout,
    change: &Change<'_>,
    slots: u128,
    returned: u128,
) {
    let (row, fields, added) = (change.image(), layout.fields_of(slots), layout.fields_of(returned));
    let mut after = Vec::with_capacity(row.0.len());
    for (field, datum) in row.iter().enumerate() {
        match datum {
            datum if added >> field & 1 == 1 => write_as_difference(&mut after, datum),
            datum if field < layout.key_len || fields >> field & 1 == 1 => write_datum(&mut after, datum),
            _ => write_datum(&mut after, Datum::NotSent),
        }
    }
    let op = if slots & 1 == 1 { Op::Insert } else { Op::Update };
    out.push_change(&Change { op, before: None, after: Some(Row(&after)), ..*change });
}

fn write_as_difference(out: &mut Vec<u8>, datum: Datum<'_>) {
    let zero = match datum {
        Datum::Null => return write_datum(out, Datum::NotSent),
        Datum::Value(Value::Decimal(_)) => Value::Decimal("0"),
        _ => Value::Int(0),
    };
    if !write_difference(out, Datum::Value(zero), datum) {
        write_datum(out, datum);
    }
}

/// Appends to `out` what the origin gets of a change: all but the differences of these slots.
pub(super) fn write_own(out: &mut ChangeWriter, layout: &Layout, change: &Change<'_>, others_only: u128) {
    let (row, left_out) = (change.image(), layout.fields_of(others_only));
    let mut after = Vec::with_capacity(row.0.len());
    for (field, datum) in row.iter().enumerate() {
        write_datum(&mut after, if left_out >> field & 1 == 1 { Datum::NotSent } else { datum });
    }
    out.push_change(&Change { after: Some(Row(&after)), ..*change });
}

/// Appends to `out` the delete of the row that an insert made.
pub(super) fn write_delete(out: &mut ChangeWriter, change: &Change<'_>) {
    out.push_change(&Change { op: Op::Delete, before: change.after, after: None, ..*change });
}

/// Appends to `out` the revived row: what the change carries, the rest from the image that the
/// deletion carried. Returns the fields that neither has.
pub(super) fn write_revived(
    out: &mut ChangeWriter,
    layout: &Layout,
    change: &Change<'_>,
    deletion: Seq,
    bodies: &dyn Bodies,
) -> Result<u128> {
    let row = change.image();
    let whole = |datum: Datum<'_>| datum.is_sent() && !matches!(datum, Datum::Added(_));
    let sent = row.iter().enumerate().filter(|(_, d)| whole(*d)).fold(0u128, |set, (i, _)| set | 1 << i);
    let missing = layout.fields & !sent;
    if missing == 0 {
        out.push_change(change);
        return Ok(0);
    }
    let image = bodies.image(deletion, change.key_hash)?;
    let last = image.as_ref().and_then(|bytes| crate::change::Changes::new(bytes).next());
    let before = last.and_then(|l| l.before);
    let (mut after, mut found) = (Vec::with_capacity(row.0.len()), 0u128);
    for field in 0..row.iter().count() {
        let datum = row.get(field);
        let known = before.map_or(Datum::NotSent, |before| before.get(field));
        match datum {
            _ if whole(datum) || !known.is_sent() => write_datum(&mut after, datum),
            Datum::Added(difference) => write_sum(&mut after, known, difference),
            _ => write_datum(&mut after, known),
        }
        found |= u128::from(known.is_sent()) << field;
    }
    out.push_change(&Change { after: Some(Row(&after)), ..*change });
    Ok(missing & !found)
}
