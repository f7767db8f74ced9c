//! Exact sums and differences of integers and decimals, of any length: what additive fields carry.
//!
//! A difference is a text of its own ([`Datum::Added`]) and no value, because it need not fit where
//! values do: from 30,000 to −30,000 is no smallint.

use std::cmp::Ordering;

use bigdecimal::BigDecimal;

use super::{Datum, Value, write_datum};

fn parse(text: &str) -> Option<BigDecimal> {
    text.parse().ok()
}

fn number(value: Value<'_>) -> Option<BigDecimal> {
    match value {
        Value::Int(v) => Some(v.into()),
        Value::UInt(v) => Some(v.into()),
        Value::Decimal(v) => parse(v),
        _ => None,
    }
}

/// Appends to `out` what leads from one value to the other: nothing where they are equal. `false`:
/// one of them is no number (NULL, NaN, not sent), so that only the value itself tells.
pub fn write_difference(out: &mut Vec<u8>, before: Datum<'_>, after: Datum<'_>) -> bool {
    let (Datum::Value(before), Datum::Value(after)) = (before, after) else { return false };
    let difference = match (before, after) {
        (Value::Int(before), Value::Int(after)) => match i128::from(after) - i128::from(before) {
            0 => return write(out, Datum::NotSent),
            difference => return write(out, Datum::Added(itoa::Buffer::new().format(difference))),
        },
        (before, after) => number(before).zip(number(after)).map(|(before, after)| after - before),
    };
    match difference {
        None => false,
        Some(zero) if zero == 0 => write(out, Datum::NotSent),
        Some(difference) => write(out, Datum::Added(&difference.to_plain_string())),
    }
}

fn write(out: &mut Vec<u8>, datum: Datum<'_>) -> bool {
    write_datum(out, datum);
    true
}

/// Appends to `out` what `under` is with `difference` added: a value or a difference. NULL counts as
/// nothing: a row that comes back in parts has it where its other fields came first. Of what was not
/// sent only the difference is known.
pub fn write_sum(out: &mut Vec<u8>, under: Datum<'_>, difference: &str) {
    let sum = |under: BigDecimal| parse(difference).map(|difference| under + difference);
    match under {
        Datum::NotSent => write_datum(out, Datum::Added(difference)),
        Datum::Null if difference.contains('.') => write_datum(out, Datum::Value(Value::Decimal(difference))),
        Datum::Null => write_number(out, Value::Int(0), difference),
        Datum::Added(earlier) => match parse(earlier).and_then(sum) {
            Some(sum) => write_datum(out, Datum::Added(&sum.to_plain_string())),
            None => write_datum(out, under),
        },
        // What is no number absorbs every difference, as it does in the servers.
        Datum::Value(value) => match number(value).and_then(sum) {
            Some(sum) => write_number(out, value, &sum.to_plain_string()),
            None => write_datum(out, under),
        },
    }
}

/// As the kind of `like` spells it. An integer that has outgrown its kind becomes a decimal, for the
/// target to refuse.
fn write_number(out: &mut Vec<u8>, like: Value<'_>, text: &str) {
    let value = match like {
        Value::Decimal(_) => Value::Decimal(text),
        _ => match (text.parse::<i64>(), text.parse::<u64>()) {
            (Ok(v), _) => Value::Int(v),
            (_, Ok(v)) => Value::UInt(v),
            _ => Value::Decimal(text),
        },
    };
    write_datum(out, Datum::Value(value));
}

/// `None`: one of them is no number of digits.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    Some(parse(a)?.cmp(&parse(b)?))
}

/// The difference that takes another one back.
pub fn inverse(difference: &str) -> String {
    match difference.strip_prefix('-') {
        Some(positive) => positive.to_owned(),
        None => format!("-{difference}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Row;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn int(v: i64) -> Datum<'static> {
        Datum::Value(Value::Int(v))
    }

    fn decimal(v: &str) -> Datum<'_> {
        Datum::Value(Value::Decimal(v))
    }

    #[test]
    fn a_difference_is_exact_however_far_it_reaches() {
        let difference = |before, after| written(|out| assert!(write_difference(out, before, after)));

        assert_eq!(Row(&difference(int(i64::MIN), int(i64::MAX))).get(0), Datum::Added("18446744073709551615"));
        assert_eq!(Row(&difference(int(7), int(7))).get(0), Datum::NotSent);
        assert_eq!(
            Row(&difference(Datum::Value(Value::UInt(u64::MAX)), int(5))).get(0),
            Datum::Added("-18446744073709551610")
        );
        assert_eq!(Row(&difference(decimal("1.50"), decimal("1.5"))).get(0), Datum::NotSent);
        assert_eq!(
            Row(&difference(decimal("0.1"), decimal("99999999999999999999999999999999.05"))).get(0),
            Datum::Added("99999999999999999999999999999998.95")
        );
        assert_eq!(Row(&difference(decimal("1"), decimal("0.00000001"))).get(0), Datum::Added("-0.99999999"));
    }

    #[test]
    fn what_is_no_number_has_no_difference() {
        let none = |before, after| assert!(!write_difference(&mut Vec::new(), before, after));

        none(Datum::Null, int(1));
        none(int(1), Datum::Null);
        none(Datum::NotSent, int(1));
        none(decimal("NaN"), decimal("1"));
    }

    #[test]
    fn a_sum_keeps_the_kind_of_what_was_there() {
        let sum = |under, difference| written(|out| write_sum(out, under, difference));

        assert_eq!(Row(&sum(int(5), "-7")).get(0), int(-2));
        assert_eq!(Row(&sum(int(i64::MAX), "1")).get(0), Datum::Value(Value::UInt(1 << 63)));
        assert_eq!(Row(&sum(int(i64::MIN), "-1")).get(0), decimal("-9223372036854775809"));
        assert_eq!(Row(&sum(decimal("1.50"), "0.25")).get(0), decimal("1.75"));
        assert_eq!(Row(&sum(Datum::Added("3"), "-3")).get(0), Datum::Added("0"));
        assert_eq!(Row(&sum(Datum::Null, "4")).get(0), int(4));
        assert_eq!(Row(&sum(Datum::Null, "0.5")).get(0), decimal("0.5"));
        assert_eq!(Row(&sum(Datum::NotSent, "4")).get(0), Datum::Added("4"));
        assert_eq!(inverse("-1.5"), "1.5");
        assert_eq!(inverse("2"), "-2");
    }
}
