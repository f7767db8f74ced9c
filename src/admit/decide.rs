//! The rule: what becomes of one change, given what its key's slots say.
//!
//! ```text
//! l none, or l.seq <= base, or l is our own and not everywhere    for the others
//! l is our own and everywhere                                     everywhere
//! l was copied, or the policy prefers the change to l             everywhere
//! else                                                            rejected
//! ```
//!
//! per slot. A field that an insert brings to a row which was deleted and made again by systems that
//! have no such field is taken, everywhere: nobody else tells what it is. An insert that lost to a delete is answered by that delete, everywhere (a server may
//! have deleted nothing while the insert was not yet to be seen). *Everywhere* includes the origin: it is about to receive the older version and
//! must end with this one. What a change loses is taken out of it, the rest goes on. A delete
//! cannot be halved: where it loses anything the row lives, and its origin, which has deleted
//! it, gets back what no winner brings. An update of a row that was deleted meanwhile revives
//! it everywhere, so it must carry the whole row.

use crate::admit::copies::Index;
use crate::admit::index::{Slot, SlotStore, slot_key};
use crate::admit::policy::Version;
use crate::admit::topology::{Layout, bits};
use crate::admit::{Bodies, Bugs};
use crate::change::{Change, ChangeWriter, Op, Verdict};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::SystemId;
use crate::value::{Datum, Row, write_datum};

/// What becomes of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ruling {
    /// As it stands. `slots` are its.
    Accepted { slots: u128, everywhere: bool, conflict: bool },
    /// Lost as a whole.
    Rejected { winner: Seq },
    /// Only `slots` of it go on: the rest lost against `winner`.
    Partly { slots: u128, everywhere: bool, winner: Seq },
    /// A rejected delete: the origin's own image of `slots` goes back to it.
    Restored { slots: u128, winner: Seq },
    /// An insert that lost to a delete: the delete goes out again. A server may have carried it
    /// out while the insert was under way and not yet to be seen, and then the row is there.
    Redeleted { winner: Seq, origin: SystemId },
    /// An update of a row that entry `deletion` deleted: completed from there.
    Revived { everywhere: bool, deletion: Seq },
}

/// What concerns a change besides its slots.
pub(super) struct Case<'a> {
    pub layout: &'a Layout,
    pub system: SystemId,
    /// Lowered where the key is held.
    pub base: Seq,
    pub bugs: Bugs,
}

pub(super) fn decide(case: &Case<'_>, change: &Change<'_>, store: &mut dyn SlotStore) -> Result<Ruling> {
    let Case { layout, system, base, bugs } = case;
    let carried = layout.carried(change);
    let (mut lost, mut winner) = (0u128, 0);
    let (mut everywhere, mut conflict) = (false, false);
    let new = Version { origin: *system };
    let made_again = change.op == Op::Insert
        && carried != 1
        && !bugs.lone_fields_lost
        && store.get(slot_key(change.key_hash, 0))?.is_some_and(|l| !l.deleted());
    for slot in bits(carried) {
        let Some(latest) = store.get(slot_key(change.key_hash, slot))?.filter(|l| l.seq() > *base) else { continue };
        if latest.origin() == *system {
            everywhere |= latest.everywhere() && !bugs.own_everywhere_left_out;
        } else if latest.copied() && !bugs.copies_are_live {
            everywhere = true;
        } else if made_again && latest.deleted() {
            conflict = true;
            everywhere = true;
        } else if layout.policy.prefers(new, Version { origin: latest.origin() }) {
            conflict = true;
            everywhere |= !bugs.won_everywhere_left_out;
        } else {
            conflict = true;
            lost |= 1 << slot;
            winner = winner.max(latest.seq());
        }
    }
    let kept = carried & !lost;
    if lost != 0 && change.op == Op::Delete {
        let own = layout.member(*system).map_or(0, |m| layout.slots_of(m.fields));
        return Ok(match kept & own {
            0 => Ruling::Rejected { winner },
            slots => Ruling::Restored { slots: slots | 1, winner },
        });
    }
    if lost != 0
        && kept == 0
        && change.op == Op::Insert
        && !bugs.redelete_left_out
        && let Some(latest) = store.get(slot_key(change.key_hash, 0))?.filter(|l| l.deleted() && l.seq() > *base)
    {
        return Ok(Ruling::Redeleted { winner, origin: latest.origin() });
    }
    if lost != 0 {
        return Ok(match kept {
            0 => Ruling::Rejected { winner },
            slots => Ruling::Partly { slots, everywhere, winner },
        });
    }
    if change.op == Op::Update
        && let Some(deletion) = store.get(slot_key(change.key_hash, 0))?.filter(|l| l.deleted() && l.seq() > *base)
    {
        return Ok(Ruling::Revived { everywhere, deletion: deletion.seq() });
    }
    Ok(Ruling::Accepted { slots: carried, everywhere, conflict })
}

/// What becomes of a row that was copied from `case.system` at its low watermark, `case.base`: the
/// slots that it takes, or `None` where it loses to a version that the system had not seen, or is
/// about to lose. Its own versions it has: what is read is at least as new.
pub(super) fn decide_copy(case: &Case<'_>, change: &Change<'_>, index: &mut Index) -> Result<Option<u128>> {
    let carried = case.layout.carried(change);
    for slot in bits(carried) {
        let latest = index.get_for_copy(slot_key(change.key_hash, slot), case.system)?.filter(|l| l.seq() > case.base);
        let own = |l: &Slot| l.origin() == case.system && !l.everywhere() && !l.deleted();
        if latest.is_some_and(|l| !own(&l)) && !case.bugs.copies_are_live {
            return Ok(None);
        }
    }
    Ok(Some(carried))
}

/// The slots of a journaled change, as its entry tells them. A row that is revived exists, with
/// the fields that it carries: one that nobody could tell is left to whoever writes it next.
pub(super) fn slots_of(layout: &Layout, verdict: Option<&Verdict>, change: &Change<'_>) -> u128 {
    match verdict {
        Some(Verdict::Replaced { winner: None, .. }) => layout.carried(change) | 1,
        _ => layout.carried(change),
    }
}

/// Enters a version into the index.
pub(super) fn enter(store: &mut dyn SlotStore, key_hash: u128, slots: u128, version: Slot) -> Result<()> {
    bits(slots).try_for_each(|slot| store.put(slot_key(key_hash, slot), version))
}

/// The keys under which a copied row's slots are entered.
pub(super) fn collect(keys: &mut Vec<u128>, change: &Change<'_>, slots: u128) {
    keys.extend(bits(slots).map(|slot| slot_key(change.key_hash, slot)));
}

/// Appends to `out` what is left of a change: the key, and of its image the fields of `slots`.
/// An insert where the row's existence is among them.
pub(super) fn write_part(out: &mut ChangeWriter, layout: &Layout, change: &Change<'_>, slots: u128) {
    let (row, fields) = (change.image(), layout.fields_of(slots));
    let mut after = Vec::with_capacity(row.0.len());
    for (field, datum) in row.iter().enumerate() {
        let kept = field < layout.key_len || fields >> field & 1 == 1;
        write_datum(&mut after, if kept { datum } else { Datum::NotSent });
    }
    let (op, before) = if slots & 1 == 1 { (Op::Insert, None) } else { (Op::Update, change.before) };
    out.push_change(&Change { op, before, after: Some(Row(&after)), ..*change });
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
    let sent = row.iter().enumerate().filter(|(_, d)| d.is_sent()).fold(0u128, |set, (i, _)| set | 1 << i);
    let missing = layout.fields & !sent;
    if missing == 0 {
        out.push_change(change);
        return Ok(0);
    }
    let image = bodies.image(deletion, change.key_hash)?;
    let last = image.as_ref().and_then(|bytes| crate::change::Changes::new(bytes).next());
    let (mut after, mut found) = (Vec::with_capacity(row.0.len()), 0u128);
    for field in 0..row.iter().count() {
        let mut datum = row.get(field);
        if let Some(known) =
            last.and_then(|l| l.before).map(|b| b.get(field)).filter(|d| !datum.is_sent() && d.is_sent())
        {
            datum = known;
            found |= 1 << field;
        }
        write_datum(&mut after, datum);
    }
    out.push_change(&Change { after: Some(Row(&after)), ..*change });
    Ok(missing & !found)
}
