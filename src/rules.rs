//! What is configured about concurrent changes of an entity: how they are decided, and so what
//! a change carries.
//!
//! With scope `row` a change carries its whole row, with scope `field` what changed. A merged field is
//! carried only where it changed, so that a value which nobody touched takes part in no merge; an
//! additive one is carried as a difference.

use crate::change::Op;
use crate::schema::SystemId;
use crate::value::number::write_difference;
use crate::value::{Datum, Row, write_datum};

/// Which of two concurrent versions stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The system that comes first in [`Rules::ranks`].
    #[default]
    Authority,
    /// The later one; of equally late ones that of the higher authority.
    Latest,
    /// What is there, everywhere; what came without having seen it waits for a person.
    Manual,
}

/// An update that has not seen a deletion, or the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnDelete {
    UpdateWins,
    DeleteWins,
}

/// How two concurrent values of one field become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Merge {
    /// Both differences count.
    Add,
    Max,
    Min,
    /// What is in either, of sets and arrays.
    Union,
    /// One of them, by a policy of the field's own.
    Policy(Policy),
}

/// What becomes of a record whose value, unique in a system, another record has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnClash {
    /// What was inserted goes; what was updated gets its values back.
    Reject,
    /// The template of the value that it gets.
    Rename(String),
    /// Both stay as they are, and one of them waits.
    Manual,
}

/// A field that some table keeps unique beside the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unique {
    pub field: usize,
    pub on_clash: OnClash,
    /// So many characters fit into every column of it; `None`: any number.
    pub chars: Option<u32>,
}

/// How concurrent changes of one entity are decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    pub policy: Policy,
    /// By system: lower is higher authority. Empty: the order of the configuration.
    pub ranks: Vec<u8>,
    /// The field that tells how late a version is, instead of its commit time.
    pub version: Option<usize>,
    /// Fields are decided one by one.
    pub by_field: bool,
    pub on_delete: Option<OnDelete>,
    /// By field; the others follow `policy`.
    pub merges: Vec<(usize, Merge)>,
    /// What is decided about records that cannot both be; of several in one unique key the first.
    pub uniques: Vec<Unique>,
}

impl Rules {
    pub fn rank(&self, system: SystemId) -> u8 {
        self.ranks.get(system.index()).copied().unwrap_or(system.0)
    }

    pub fn merge(&self, field: usize) -> Option<Merge> {
        self.merges.iter().find(|(of, _)| *of == field).map(|(_, merge)| *merge)
    }

    /// Of a unique key with these fields.
    pub fn unique(&self, fields: u128) -> Option<&Unique> {
        self.uniques.iter().find(|unique| fields >> unique.field & 1 == 1)
    }

    /// Updates may carry parts of rows.
    pub fn is_partial(&self) -> bool {
        self.by_field || !self.merges.is_empty()
    }

    /// Fields whose differences are carried.
    pub fn added(&self) -> u128 {
        let added = self.merges.iter().filter(|(_, merge)| *merge == Merge::Add);
        added.fold(0, |set, (field, _)| set | 1 << field)
    }

    /// Appends to `out` what an update carries of its after image. `false`: it changed nothing.
    ///
    /// Without a whole before image everything that was sent is carried, and absolute. The field that
    /// versions are compared by goes with the row, never alone: it would claim what it does not bring.
    pub fn write_carried(&self, key_len: usize, before: Row<'_>, after: Row<'_>, out: &mut Vec<u8>) -> bool {
        let mut then = before.iter();
        let mut pairs = Vec::with_capacity(16);
        let (mut changed, mut row_changed) = (false, false);
        for (field, now) in after.iter().enumerate() {
            let then = then.next().unwrap_or(Datum::NotSent);
            let differs = field >= key_len && now.is_sent() && !same(then, now);
            changed |= differs;
            row_changed |= differs && self.merge(field).is_none();
            pairs.push((then, now, differs));
        }
        for (field, (then, now, differs)) in pairs.into_iter().enumerate() {
            let carried = match self.merge(field) {
                _ if field < key_len => true,
                None if self.by_field => differs || Some(field) == self.version,
                None => row_changed,
                Some(_) => differs,
            };
            match carried {
                false => write_datum(out, Datum::NotSent),
                true if self.merge(field) == Some(Merge::Add) && write_difference(out, then, now) => {}
                true => write_datum(out, now),
            }
        }
        changed
    }

    /// Whether a change of this kind may be carried in part.
    pub fn trims(&self, op: Op) -> bool {
        op == Op::Update && self.is_partial()
    }
}

/// As the log wrote them: of one system and one type.
fn same(a: Datum<'_>, b: Datum<'_>) -> bool {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    a == b || {
        // Bit by bit, or a NaN would never be itself.
        write_datum(&mut left, a);
        write_datum(&mut right, b);
        left == right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn row(datums: &[Datum<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        datums.iter().for_each(|datum| write_datum(&mut out, *datum));
        out
    }

    fn int(v: i64) -> Datum<'static> {
        Datum::Value(Value::Int(v))
    }

    fn text(v: &str) -> Datum<'_> {
        Datum::Value(Value::Text(v))
    }

    fn carried(rules: &Rules, before: &[Datum<'_>], after: &[Datum<'_>]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        rules.write_carried(1, Row(&row(before)), Row(&row(after)), &mut out).then_some(out)
    }

    #[test]
    fn with_scope_field_only_what_changed_is_carried() {
        let rules = Rules { by_field: true, version: Some(3), ..Rules::default() };

        let out = carried(&rules, &[int(1), text("a"), text("b"), int(7)], &[int(1), text("x"), text("b"), int(7)]);

        assert_eq!(out, Some(row(&[int(1), text("x"), Datum::NotSent, int(7)])));
        assert_eq!(carried(&rules, &[int(1), text("a")], &[int(1), text("a")]), None);
    }

    #[test]
    fn a_merged_field_alone_leaves_the_rest_of_the_row_to_others() {
        // Not even what versions are compared by: it would claim the row that it does not bring.
        let merges = vec![(2, Merge::Add), (3, Merge::Max)];
        let rules = Rules { policy: Policy::Latest, version: Some(1), merges, ..Rules::default() };
        let before = [int(1), text("a"), int(10), int(5)];

        let sold = carried(&rules, &before, &[int(1), text("a"), int(8), int(5)]);
        let renamed = carried(&rules, &before, &[int(1), text("b"), int(10), int(5)]);
        let emptied = carried(&rules, &before, &[int(1), text("a"), Datum::Null, int(9)]);

        assert_eq!(sold, Some(row(&[int(1), Datum::NotSent, Datum::Added("-2"), Datum::NotSent])));
        assert_eq!(renamed, Some(row(&[int(1), text("b"), Datum::NotSent, Datum::NotSent])));
        assert_eq!(emptied, Some(row(&[int(1), Datum::NotSent, Datum::Null, int(9)])));
    }
}
