//! A record that another one is in the way of: what becomes of it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Change, ChangeWriter, ConflictId, Op, overlay};
use crate::value::{Datum, Row, write_datum};

/// Names the agent's entry that ends, or tells, a clash of two records.
pub fn clash_txid(id: ConflictId) -> Arc<str> {
    format!("unique {id}").into()
}

/// What a change that must give way becomes; `carried` says which fields go along with these.
/// `None`: nobody knows any more what was before.
pub fn given_way(key_len: usize, change: &Change<'_>, fields: u128, carried: impl Fn(u128) -> u128) -> Option<Bytes> {
    let after = change.after?;
    match (change.op, change.before) {
        (Op::Insert, _) => {
            let mut before = Vec::with_capacity(after.0.len());
            for datum in after.iter() {
                write_datum(&mut before, if matches!(datum, Datum::Added(_)) { Datum::NotSent } else { datum });
            }
            let mut out = ChangeWriter::default();
            out.push_change(&Change { op: Op::Delete, before: Some(Row(&before)), after: None, ..*change });
            Some(out.take().into())
        }
        (_, Some(before)) => {
            let changed = |field: &usize| {
                let (then, now) = (before.get(*field), after.get(*field));
                *field >= key_len && then.is_sent() && now.is_sent() && !alike(then, now)
            };
            let changed = (0..128)
                .filter(|field| fields >> field & 1 == 1)
                .filter(changed)
                .fold(0u128, |set, field| set | 1 << field);
            let back = |field, datum| if changed >> field & 1 == 1 { before.get(field) } else { datum };
            (changed != 0).then(|| updated(key_len, change, carried(changed), back))
        }
        (_, None) => None,
    }
}

/// An update of these fields to what `set` makes of the row that is there.
pub fn updated<'d>(
    key_len: usize,
    change: &Change<'d>,
    carried: u128,
    set: impl Fn(usize, Datum<'d>) -> Datum<'d>,
) -> Bytes {
    let row = change.image();
    let (mut after, there) = (Vec::with_capacity(row.0.len()), change.before);
    for (field, datum) in row.iter().enumerate() {
        let datum = if datum.is_sent() { datum } else { there.map_or(Datum::NotSent, |there| there.get(field)) };
        let kept = field < key_len || carried >> field & 1 == 1;
        write_datum(&mut after, if kept { set(field, datum) } else { Datum::NotSent });
    }
    let now = change.before.map_or_else(|| row.0.to_vec(), |before| overlay(before, row));
    let mut out = ChangeWriter::default();
    out.push_change(&Change { op: Op::Update, before: Some(Row(&now)), after: Some(Row(&after)), ..*change });
    out.take().into()
}

/// Bit by bit, or a NaN would never be itself.
pub fn alike(a: Datum<'_>, b: Datum<'_>) -> bool {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    write_datum(&mut left, a);
    write_datum(&mut right, b);
    left == right
}
