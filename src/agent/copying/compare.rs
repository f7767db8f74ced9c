//! Compares the rows of a page with those that another system has for the same keys. Pure.

use std::collections::HashMap;

use crate::change::{Changes, Op};
use crate::normalize::array;
use crate::normalize::transform::json_eq;
use crate::scan::{Page, Plan};
use crate::schema::EntitySchema;
use crate::value::{Datum, Row, Value, decimal_eq};

/// What the other system has for one row of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Equal,
    /// Bit i: field i differs.
    Different(u128),
    Missing,
    /// Does not belong there: outside that binding's filter.
    Elsewhere,
}

/// One class per row of `page`, in its order.
pub fn compare(page: &Page, there: &Page, plan: &Plan) -> Vec<Class> {
    let found: HashMap<u128, Row<'_>> =
        there.all().filter_map(|change| Some((change.key_hash, change.after?))).collect();
    let class = |change: crate::change::Change<'_>| {
        debug_assert_eq!(change.op, Op::Insert, "pages hold inserts");
        class_of(change.after, found.get(&change.key_hash).copied(), plan)
    };
    Changes::new(&page.rows).map(class).collect()
}

/// Of one key: the row here, and the one there, which `plan` is of.
pub fn class_of(here: Option<Row<'_>>, there: Option<Row<'_>>, plan: &Plan) -> Class {
    match (here, there) {
        (Some(here), Some(there)) => match differing(here, there, plan) | plan.unread(there) {
            0 => Class::Equal,
            fields => Class::Different(fields),
        },
        (Some(here), None) if !plan.belongs(here) => Class::Elsewhere,
        (Some(_), None) | (None, Some(_)) => Class::Missing,
        (None, None) => Class::Elsewhere,
    }
}

/// Fields that both rows carry and that differ.
pub fn differing(here: Row<'_>, there: Row<'_>, plan: &Plan) -> u128 {
    let pairs = here.iter().zip(there.iter()).enumerate();
    let differ = pairs.filter(|(field, (a, b))| a.is_sent() && b.is_sent() && !same(*a, *b, *field, plan));
    differ.fold(0, |set, (field, _)| set | 1 << field)
}

/// One value, however it is written: numbers as numbers, documents as documents.
fn same(a: Datum<'_>, b: Datum<'_>, field: usize, plan: &Plan) -> bool {
    match (a, b) {
        (Datum::Value(Value::Decimal(a)), Datum::Value(Value::Decimal(b))) => decimal_eq(a, b),
        (Datum::Value(Value::Json(a)), Datum::Value(Value::Json(b))) => a == b || json_eq(a, b),
        (Datum::Value(Value::Array(a)), Datum::Value(Value::Array(b))) => {
            a == b || plan.element(field).is_some_and(|element| array::same(a, b, element))
        }
        (Datum::Value(Value::Float32(a)), Datum::Value(Value::Float32(b))) => a == b || a.is_nan() && b.is_nan(),
        (Datum::Value(Value::Float64(a)), Datum::Value(Value::Float64(b))) => a == b || a.is_nan() && b.is_nan(),
        (a, b) => a == b,
    }
}

/// The names of a set of fields.
pub fn names(entity: &EntitySchema, fields: u128) -> impl Iterator<Item = &str> {
    entity.fields.iter().enumerate().filter(move |(i, _)| fields >> i & 1 == 1).map(|(_, field)| field.name.as_str())
}
