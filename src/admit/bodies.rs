//! What the arbiter reads of the journal: bodies, and what an entry made of a key.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Body, Change, ChangeWriter, Changes, Entry, Fate, Micros, Op, SpoolRef, overlay};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::{Schema, Translation};
use crate::value::Row;

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

/// The chunks of a body, in order.
pub(super) fn walk(body: &Body, bodies: &dyn Bodies, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match body {
        Body::Inline(bytes) => each(bytes),
        Body::Spooled(spool) => bodies.chunks(spool, each),
    }
}

pub(super) fn inline(body: &Body) -> &[u8] {
    match body {
        Body::Inline(bytes) => bytes,
        Body::Spooled(_) => &[],
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
