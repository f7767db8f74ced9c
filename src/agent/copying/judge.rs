//! What becomes of one row of a system whose log was lost. Pure.
//!
//! ```text
//! as the journal and the others say that it was     nothing; a version that it lacks is brought
//! another, and its users must have made it so       written: a change of that system, as captured
//! gone, and only a log could tell who did that      brought back, unless deletes are asked for
//! ```
//!
//! What is written has the marker of that moment as its base, like every write of that system
//! since: so what others wrote meanwhile is a conflict, and what nobody else touched is not.

use super::past::{Image, Known, Newest};
use crate::change::{Change, ChangeWriter, Op, overlay};
use crate::schema::EntityId;
use crate::value::{Datum, Row, write_datum};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// The system lacks the present version, and no applier brings it.
    Bring,
    /// Its users wrote it while the log was lost.
    Written(Op),
}

/// One key.
pub struct Case<'a> {
    /// In the system; `None` where there is no such row.
    pub here: Option<Row<'a>>,
    /// In the others.
    pub there: Option<Row<'a>>,
    /// `None`: the journal has nothing that the system had not seen.
    pub known: Option<&'a Known>,
    /// What the system holds was never applied: so it was before.
    pub held: Option<Image>,
    /// Rows that only the others have were deleted here.
    pub delete_extra: bool,
    /// The system receives the entity.
    pub receives: bool,
    /// What it wrote itself may be missing.
    pub restored: bool,
    /// Whether a row that came from elsewhere and one of the system are the same.
    pub same: &'a dyn Fn(Row<'_>, Row<'_>) -> bool,
}

impl Case<'_> {
    /// What the system had before its users wrote, as far as anybody can tell.
    pub fn expected(&self) -> Image {
        if let Some(held) = &self.held {
            return held.clone();
        }
        let there = || self.there.map_or(Image::Absent, |row| Image::Row(row.0.to_vec()));
        let Some(known) = self.known else { return there() };
        let before = match (&known.is, &known.before) {
            (Image::Unknown, Image::Unknown) if known.newest == Newest::Copied => return Image::Unknown,
            (Image::Unknown, Image::Unknown) => return there(),
            (Image::Unknown, before) => before.clone(),
            (is, before) => filled(is, before.row()),
        };
        filled(&before, self.there)
    }

    pub fn judge(&self, expected: &Image) -> Verdict {
        let is = |image: &Image| match (self.here, image) {
            (_, Image::Unknown) => false,
            (None, Image::Absent) => true,
            (Some(here), Image::Row(row)) => (self.same)(Row(row), here),
            _ => false,
        };
        let unchanged = self.held.as_ref().is_some_and(|held| *held == Image::Unknown)
            || *expected == Image::Unknown
            || is(expected)
            || self.known.is_some_and(|known| known.was(self.here));
        if unchanged {
            let lacks = self.restored && self.known.is_some_and(|known| known.newest == Newest::Own);
            return match lacks && self.receives && !self.is_current() {
                true => Verdict::Bring,
                false => Verdict::Nothing,
            };
        }
        match (self.here, expected) {
            (Some(_), Image::Row(_)) => Verdict::Written(Op::Update),
            (Some(_), _) => Verdict::Written(Op::Insert),
            (None, _) if self.delete_extra => Verdict::Written(Op::Delete),
            (None, _) if self.receives && self.there.is_some() => Verdict::Bring,
            (None, _) => Verdict::Nothing,
        }
    }

    /// The system has what the others have.
    fn is_current(&self) -> bool {
        match (self.here, self.there) {
            (Some(here), Some(there)) => (self.same)(there, here),
            (None, None) => true,
            _ => false,
        }
    }
}

/// What an image does not carry, from another.
fn filled(image: &Image, under: Option<Row<'_>>) -> Image {
    match (image, under) {
        (Image::Row(row), Some(under)) => Image::Row(overlay(under, Row(row))),
        _ => image.clone(),
    }
}

/// Appends the change that the log would have told. `fields`: the ones that the system has.
pub fn write(
    out: &mut ChangeWriter,
    entity: EntityId,
    key_hash: u128,
    op: Op,
    here: Option<Row<'_>>,
    before: &Image,
    fields: u128,
) {
    let own = |row: Row<'_>| {
        let mut bytes = Vec::with_capacity(row.0.len());
        for (field, datum) in row.iter().enumerate() {
            write_datum(&mut bytes, if fields >> field & 1 == 1 { datum } else { Datum::NotSent });
        }
        bytes
    };
    let before = before.row().filter(|_| op != Op::Insert).map(own);
    let before = before.as_deref().map(Row);
    out.push_change(&Change { entity, op, key_hash, before, after: here.filter(|_| op != Op::Delete) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn row(id: i64, name: &str) -> Vec<u8> {
        let mut row = Vec::new();
        write_datum(&mut row, Datum::Value(Value::Int(id)));
        write_datum(&mut row, Datum::Value(Value::Text(name)));
        row
    }

    fn judged(here: Option<&[u8]>, there: Option<&[u8]>, known: Option<&Known>, delete_extra: bool) -> Verdict {
        let (here, there, restored) = (here.map(Row), there.map(Row), true);
        let case =
            Case { here, there, known, held: None, delete_extra, receives: true, restored, same: &|a, b| a.0 == b.0 };
        case.judge(&case.expected())
    }

    #[test]
    fn without_anything_unseen_what_differs_was_written_here() {
        let (old, new) = (row(1, "old"), row(1, "new"));

        assert_eq!(judged(Some(&old), Some(&old), None, false), Verdict::Nothing);
        assert_eq!(judged(Some(&new), Some(&old), None, false), Verdict::Written(Op::Update));
        assert_eq!(judged(Some(&new), None, None, false), Verdict::Written(Op::Insert));
        assert_eq!(judged(None, Some(&old), None, false), Verdict::Bring);
        assert_eq!(judged(None, Some(&old), None, true), Verdict::Written(Op::Delete));
    }

    #[test]
    fn what_others_wrote_meanwhile_is_no_write_of_this_system() {
        let (old, theirs, ours) = (row(1, "old"), row(1, "theirs"), row(1, "ours"));
        let known = |is: Image, before: Image| Known { is, before, newest: Newest::Others, ..Known::default() };
        let unseen = known(Image::Row(old.clone()), Image::Unknown);

        assert_eq!(judged(Some(&old), Some(&theirs), Some(&unseen), false), Verdict::Nothing);
        assert_eq!(judged(Some(&ours), Some(&theirs), Some(&unseen), false), Verdict::Written(Op::Update));
        let inserted = known(Image::Unknown, Image::Absent);
        assert_eq!(judged(None, Some(&theirs), Some(&inserted), true), Verdict::Nothing);
    }

    #[test]
    fn restored_rows_get_back_what_was_written_here_after_the_backup() {
        let (old, own) = (row(1, "old"), row(1, "own"));
        let first = row(1, "first");
        let mut lost = Known { before: Image::Row(old.clone()), newest: Newest::Own, ..Known::default() };
        lost.wrote(Some(Row(&first)));
        lost.wrote(Some(Row(&own)));

        assert_eq!(judged(Some(&old), Some(&own), Some(&lost), false), Verdict::Bring);
        assert_eq!(judged(Some(&first), Some(&own), Some(&lost), false), Verdict::Bring, "a backup in between");
        assert_eq!(judged(Some(&own), Some(&own), Some(&lost), false), Verdict::Nothing);
        assert_eq!(judged(Some(&row(1, "since")), Some(&own), Some(&lost), false), Verdict::Written(Op::Update));
        // and what was deleted here after the backup goes again
        lost.wrote(None);
        assert_eq!(judged(Some(&own), None, Some(&lost), false), Verdict::Bring);
        assert_eq!(judged(None, None, Some(&lost), false), Verdict::Nothing);
    }

    #[test]
    fn a_copy_on_its_way_is_no_evidence() {
        let copied = Known { newest: Newest::Copied, ..Known::default() };

        assert_eq!(judged(Some(&row(1, "here")), Some(&row(1, "there")), Some(&copied), true), Verdict::Nothing);
    }
}
