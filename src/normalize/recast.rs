//! A value of a column's former type as one of its present type: what ALTER … TYPE makes of the
//! same value where it changes nothing but the form.
//!
//! Rows that were logged, and entries that were journaled, before a column's type changed are
//! read so. A cast that depends on a session (zones) or on an expression is none of these.

use super::transform::{Refusal, convert, convertible, integer, kind_of};
use crate::value::{Kind, MICROS_PER_DAY, Value};

/// Whether values of the former kind can be read as the present one. Single values may still
/// refuse.
pub fn leads(former: Kind, present: Kind) -> bool {
    use Kind::{Date, DateTime, Decimal, Int, Text, Timestamp};
    match (former, present) {
        // By the zone of the session that altered the table, which no log tells.
        (DateTime, Timestamp) | (Timestamp, DateTime) => false,
        (Date, DateTime) | (Int | Decimal, Text) | (Text, Int | Decimal) => true,
        (former, present) => convertible(former, present),
    }
}

/// The same value in the present kind. `scratch` holds what had to be made.
pub fn recast<'a>(value: Value<'a>, to: Kind, scratch: &'a mut Vec<u8>) -> Result<Value<'a>, Refusal> {
    if kind_of(value) == to {
        return Ok(value);
    }
    Ok(match (value, to) {
        (Value::Date(days), Kind::DateTime) => Value::DateTime(i64::from(days) * MICROS_PER_DAY),
        (Value::Int(number), Kind::Text) => text(scratch, itoa::Buffer::new().format(number)),
        (Value::UInt(number), Kind::Text) => text(scratch, itoa::Buffer::new().format(number)),
        (Value::Decimal(number), Kind::Text) => Value::Text(number),
        (Value::Text(number), Kind::Int) => integer(number.trim()).ok_or("the text is no integer")?,
        (Value::Text(number), Kind::Decimal) if is_decimal(number.trim()) => Value::Decimal(number.trim()),
        (Value::Text(_), Kind::Decimal) => return Err("the text is no number".into()),
        (value, to) => convert(value, to, scratch)?,
    })
}

fn text<'a>(scratch: &'a mut Vec<u8>, made: &str) -> Value<'a> {
    scratch.clear();
    scratch.extend_from_slice(made.as_bytes());
    Value::Text(std::str::from_utf8(scratch).expect("digits"))
}

/// `-12.50`, without exponent.
fn is_decimal(number: &str) -> bool {
    let digits = number.strip_prefix(['-', '+']).unwrap_or(number);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    !whole.is_empty() && !fraction.is_empty() && (whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_change_keeps_is_kept() {
        for (value, to, expected) in [
            (Value::Int(-5), Kind::Decimal, Value::Decimal("-5")),
            (Value::Int(7), Kind::Text, Value::Text("7")),
            (Value::Decimal("1.50"), Kind::Text, Value::Text("1.50")),
            (Value::Text("-12"), Kind::Int, Value::Int(-12)),
            (Value::Text("18446744073709551615"), Kind::Int, Value::UInt(u64::MAX)),
            (Value::Text("1.50"), Kind::Decimal, Value::Decimal("1.50")),
            (Value::Date(1), Kind::DateTime, Value::DateTime(86_400_000_000)),
        ] {
            assert_eq!(recast(value, to, &mut Vec::new()).unwrap(), expected);
        }
    }

    #[test]
    fn what_it_would_change_is_refused() {
        for (value, to) in [
            (Value::Text("1e3"), Kind::Decimal),
            (Value::Text("."), Kind::Decimal),
            (Value::Text("x"), Kind::Int),
            (Value::Decimal("1.5"), Kind::Int),
        ] {
            assert!(recast(value, to, &mut Vec::new()).is_err());
        }
        assert!(!leads(Kind::DateTime, Kind::Timestamp) && !leads(Kind::Bytes, Kind::Text));
    }
}
