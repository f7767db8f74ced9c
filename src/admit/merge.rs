//! Two concurrent values of one field made one. Pure.

use std::cmp::Ordering;

use serde_json::value::RawValue;

use crate::normalize::transform::json_eq;
use crate::value::number::compare;
use crate::value::{Datum, Value, write_datum};

/// Which of two values is larger; `None` where that cannot be said of their kinds.
pub(super) fn order(a: Value<'_>, b: Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(&b)),
        (Value::UInt(a), Value::UInt(b)) => Some(a.cmp(&b)),
        // An unsigned one is only written as such where no signed one is as large.
        (Value::Int(_), Value::UInt(_)) => Some(Ordering::Less),
        (Value::UInt(_), Value::Int(_)) => Some(Ordering::Greater),
        (Value::Decimal(a), Value::Decimal(b)) => compare(a, b),
        (Value::Float32(a), Value::Float32(b)) => a.partial_cmp(&b),
        (Value::Float64(a), Value::Float64(b)) => a.partial_cmp(&b),
        (Value::Date(a), Value::Date(b)) => Some(a.cmp(&b)),
        (Value::Time(a), Value::Time(b))
        | (Value::DateTime(a), Value::DateTime(b))
        | (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(&b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(&b)),
        _ => None,
    }
}

/// What two sets hold together, the elements of `a` first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum United {
    /// The one holds the other.
    Left,
    Right,
    /// An encoded datum.
    Both(Vec<u8>),
}

/// Of sets (texts with commas), arrays of one dimension and JSON arrays; `None` where it is something
/// else, or an element cannot be told.
pub(super) fn united(a: Value<'_>, b: Value<'_>) -> Option<United> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            let set = |text| elements_of_set(text).collect::<Vec<_>>();
            let (all, from) = joined(&set(a), &set(b), |a, b| a == b);
            Some(made(from, || encoded(Value::Text(&all.join(",")))))
        }
        (Value::Array(a), Value::Array(b)) => {
            let (all, from) = joined(&elements_of_array(a)?, &elements_of_array(b)?, |a, b| a == b);
            Some(made(from, || encoded(Value::Array(&format!("{{{}}}", all.join(","))))))
        }
        (Value::Json(a), Value::Json(b)) => {
            let parse = |text| serde_json::from_str::<Vec<&RawValue>>(text).ok();
            let (a, b) = (parse(a)?, parse(b)?);
            let texts = |values: &[&'_ RawValue]| values.iter().map(|v| v.get().to_owned()).collect::<Vec<_>>();
            let (a, b) = (texts(&a), texts(&b));
            let (all, from) = joined(&refs(&a), &refs(&b), json_eq);
            Some(made(from, || encoded(Value::Json(&format!("[{}]", all.join(","))))))
        }
        _ => None,
    }
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn made(from: Option<United>, both: impl FnOnce() -> Vec<u8>) -> United {
    from.unwrap_or_else(|| United::Both(both()))
}

fn encoded(value: Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    write_datum(&mut out, Datum::Value(value));
    out
}

/// The union, and whether one of both is all of it.
fn joined<'a>(a: &[&'a str], b: &[&'a str], same: impl Fn(&str, &str) -> bool) -> (Vec<&'a str>, Option<United>) {
    let lacks = |of: &[&str], element: &str| !of.iter().any(|other| same(other, element));
    let fresh: Vec<&str> = b.iter().copied().filter(|element| lacks(a, element)).collect();
    let from = match (fresh.is_empty(), a.iter().all(|element| !lacks(b, element))) {
        (true, _) => Some(United::Left),
        (false, true) => Some(United::Right),
        (false, false) => None,
    };
    (a.iter().copied().chain(fresh).collect(), from)
}

fn elements_of_set(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|element| !element.is_empty())
}

/// The elements of `{a,"b c",NULL}` as they are spelled: of one column's type they are spelled alike.
fn elements_of_array(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let (mut elements, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    if inner.is_empty() {
        return Some(elements);
    }
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '{' if !quoted => return None, // more than one dimension
            ',' if !quoted => {
                elements.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    elements.push(&inner[start..]);
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Row;

    fn both(a: Value<'_>, b: Value<'_>) -> Vec<u8> {
        match united(a, b) {
            Some(United::Both(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_either_holds_is_kept_once() {
        let array = both(Value::Array(r#"{a,"b,c",NULL}"#), Value::Array(r#"{"b,c",d}"#));
        assert_eq!(Row(&array).get(0), Datum::Value(Value::Array(r#"{a,"b,c",NULL,d}"#)));

        let set = both(Value::Text("red,blue"), Value::Text("blue,green"));
        assert_eq!(Row(&set).get(0), Datum::Value(Value::Text("red,blue,green")));

        let json = both(Value::Json(r#"[1, {"a":1,"b":2}]"#), Value::Json(r#"[{"b":2,"a":1.0}, "x"]"#));
        assert_eq!(Row(&json).get(0), Datum::Value(Value::Json(r#"[1,{"a":1,"b":2},"x"]"#)));
    }

    #[test]
    fn a_set_that_holds_the_other_is_the_union() {
        assert_eq!(united(Value::Array("{}"), Value::Array("{1}")), Some(United::Right));
        assert_eq!(united(Value::Text("a,b"), Value::Text("b")), Some(United::Left));
        assert_eq!(united(Value::Text("a"), Value::Text("a")), Some(United::Left));
    }

    #[test]
    fn what_is_no_set_has_no_union() {
        assert_eq!(united(Value::Array("{{1},{2}}"), Value::Array("{3}")), None);
        assert_eq!(united(Value::Json("{}"), Value::Json("[1]")), None);
        assert_eq!(united(Value::Int(1), Value::Int(2)), None);
    }
}
