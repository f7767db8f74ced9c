//! Values as literals of MySQL and MariaDB, for sessions in utf8mb4 and UTC whose sql_mode has
//! backslash escapes.
//!
//! Each type has the one spelling that loses nothing: numbers with an exponent are DOUBLE,
//! without are DECIMAL; FLOAT columns are given the exact double of the float, because the
//! shortest text of a float would be rounded twice; dates are typed, so that a derived table
//! keeps their type.

use crate::catalog::{Column, ColumnType};
use crate::error::{Error, Result};
use crate::value::{DATE_ZERO, Datum, INSTANT_ZERO, MICROS_PER_DAY, Value, civil_from_days, is_partial};

/// Where a literal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Assigned to the column. Decimals are quoted: the rows of a derived table share one type,
    /// which a mix of long and fractional decimal literals does not fit; text does.
    Assigned,
    /// Compared with the column: a decimal must be a number, or both sides become doubles.
    Compared,
}

/// TIME reaches from −838:59:59 to 838:59:59.
const TIME_MAX: i64 = (838 * 3600 + 59 * 60 + 59) * 1_000_000;

pub fn literal(column: &Column, datum: Datum<'_>, place: Place, out: &mut Vec<u8>) -> Result<()> {
    let value = match datum {
        Datum::Value(value) => value,
        Datum::Null => {
            out.extend_from_slice(b"NULL");
            return Ok(());
        }
        // A number without exponent is an exact one.
        Datum::Added(difference) => {
            out.extend_from_slice(difference.as_bytes());
            return Ok(());
        }
        Datum::NotSent => return Err(refused(column, "was not sent")),
    };
    match (&column.ty, value) {
        (ColumnType::Bool | ColumnType::Int { .. }, Value::Bool(v)) => out.push(b'0' + u8::from(v)),
        (ColumnType::Int { .. } | ColumnType::Year, Value::Int(v)) => {
            out.extend_from_slice(itoa::Buffer::new().format(v).as_bytes());
        }
        (ColumnType::Int { .. }, Value::UInt(v)) => out.extend_from_slice(itoa::Buffer::new().format(v).as_bytes()),
        (ColumnType::Decimal { .. }, Value::Decimal(v)) => decimal(column, v, place, out)?,
        (ColumnType::Float32, Value::Float32(v)) => double(column, v.into(), out)?,
        (ColumnType::Float64, Value::Float64(v)) => double(column, v, out)?,
        (
            ColumnType::Char { .. }
            | ColumnType::Text { .. }
            | ColumnType::Enum { .. }
            | ColumnType::Set { .. }
            | ColumnType::Inet { .. },
            Value::Text(v),
        )
        | (ColumnType::Json, Value::Json(v)) => text(v, out),
        (ColumnType::Binary { .. } | ColumnType::Bytes { .. } | ColumnType::Geometry, Value::Bytes(v)) => hex(v, out),
        (ColumnType::Bits { .. }, Value::Bits(v)) => {
            // As a number: b'01' is bytes in a derived table, and would be compared as a double.
            let number = u64::from_str_radix(v, 2).map_err(|_| out_of_range(column))?;
            out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        }
        // A typed literal of it is an error, the text is not.
        (ColumnType::Date, Value::Date(DATE_ZERO)) => out.extend_from_slice(b"'0000-00-00'"),
        (ColumnType::DateTime { .. }, Value::DateTime(INSTANT_ZERO))
        | (ColumnType::Timestamp { .. }, Value::Timestamp(INSTANT_ZERO)) => {
            out.extend_from_slice(b"'0000-00-00 00:00:00'");
        }
        (ColumnType::Date, Value::Date(days)) => {
            // Neither is one of a partial date.
            out.extend_from_slice(if is_partial(days) { b"'" } else { b"DATE'" });
            date(column, days, out)?;
            out.push(b'\'');
        }
        (ColumnType::Time { .. }, Value::Time(micros)) => time(column, micros, out)?,
        (ColumnType::DateTime { .. }, Value::DateTime(micros))
        | (ColumnType::Timestamp { .. }, Value::Timestamp(micros)) => {
            let days = i32::try_from(micros.div_euclid(MICROS_PER_DAY)).map_err(|_| out_of_range(column))?;
            out.extend_from_slice(if is_partial(days) { b"'" } else { b"TIMESTAMP'" });
            date(column, days, out)?;
            out.push(b' ');
            clock(micros.rem_euclid(MICROS_PER_DAY), out);
            out.push(b'\'');
        }
        (ColumnType::Uuid, Value::Uuid(v)) => uuid(&v, out),
        _ => return Err(refused(column, "is not of the kind that its type takes")),
    }
    Ok(())
}

/// The value as a field of a line that LOAD DATA reads.
pub fn field(column: &Column, datum: Datum<'_>, out: &mut Vec<u8>) -> Result<()> {
    let value = match datum {
        Datum::Value(value) => value,
        Datum::Null => {
            out.extend_from_slice(b"\\N");
            return Ok(());
        }
        Datum::NotSent | Datum::Added(_) => return Err(refused(column, "was not sent whole")),
    };
    match (&column.ty, value) {
        (
            ColumnType::Char { .. }
            | ColumnType::Text { .. }
            | ColumnType::Enum { .. }
            | ColumnType::Set { .. }
            | ColumnType::Inet { .. },
            Value::Text(v),
        )
        | (ColumnType::Json, Value::Json(v)) => escaped(v.as_bytes(), out),
        (ColumnType::Binary { .. } | ColumnType::Bytes { .. }, Value::Bytes(v)) => hex_digits(v, out),
        // Nothing in them needs an escape: what a literal has around them is taken off.
        _ => {
            let start = out.len();
            literal(column, datum, Place::Assigned, out)?;
            bare(start, out);
        }
    }
    Ok(())
}

/// Takes the quotes off a literal, and the word in front of them.
fn bare(start: usize, out: &mut Vec<u8>) {
    if out.last() != Some(&b'\'') {
        return;
    }
    out.pop();
    let open = out[start..].iter().position(|b| *b == b'\'').expect("a literal that ends with a quote begins with one");
    out.drain(start..=start + open);
}

fn escaped(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'\t' | b'\n' | 0)) {
        out.extend_from_slice(&rest[..at]);
        out.push(b'\\');
        out.push(match rest[at] {
            b'\t' => b't',
            b'\n' => b'n',
            0 => b'0',
            backslash => backslash,
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn refused(column: &Column, why: &str) -> Error {
    Error::data(format!("the value for column {:?} ({}) {why}", column.name, column.type_name))
}

fn out_of_range(column: &Column) -> Error {
    refused(column, "is out of range")
}

fn decimal(column: &Column, value: &str, place: Place, out: &mut Vec<u8>) -> Result<()> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+')) {
        return Err(refused(column, "is not a decimal number"));
    }
    match place {
        Place::Assigned => text(value, out),
        Place::Compared => out.extend_from_slice(value.as_bytes()),
    }
    Ok(())
}

fn double(column: &Column, value: f64, out: &mut Vec<u8>) -> Result<()> {
    if !value.is_finite() {
        return Err(refused(column, "is not a finite number"));
    }
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(value);
    out.extend_from_slice(shortest.as_bytes());
    if !shortest.contains('e') {
        out.extend_from_slice(b"e0");
    }
    Ok(())
}

pub fn text(value: &str, out: &mut Vec<u8>) {
    out.push(b'\'');
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\'' | b'\\')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'\'');
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_digits(value: &[u8], out: &mut Vec<u8>) {
    out.extend(value.iter().flat_map(|b| [HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]));
}

fn hex(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"x'");
    hex_digits(value, out);
    out.push(b'\'');
}

fn uuid(value: &[u8; 16], out: &mut Vec<u8>) {
    out.push(b'\'');
    for (at, group) in [&value[..4], &value[4..6], &value[6..8], &value[8..10], &value[10..]].into_iter().enumerate() {
        if at > 0 {
            out.push(b'-');
        }
        hex_digits(group, out);
    }
    out.push(b'\'');
}

fn digits(value: i64, width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + width, b'0');
    let mut rest = value;
    for place in out[start..].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Years 1 to 9999: what all engines have.
fn date(column: &Column, days: i32, out: &mut Vec<u8>) -> Result<()> {
    let (year, month, day) = civil_from_days(days);
    if !(1..=9999).contains(&year) {
        return Err(out_of_range(column));
    }
    digits(year.into(), 4, out);
    out.push(b'-');
    digits(month.into(), 2, out);
    out.push(b'-');
    digits(day.into(), 2, out);
    Ok(())
}

fn time(column: &Column, micros: i64, out: &mut Vec<u8>) -> Result<()> {
    if !(-TIME_MAX..=TIME_MAX).contains(&micros) {
        return Err(out_of_range(column));
    }
    out.extend_from_slice(if micros < 0 { b"TIME'-" } else { b"TIME'" });
    clock(micros.abs(), out);
    out.push(b'\'');
    Ok(())
}

fn clock(micros: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let hours = seconds / 3600;
    digits(hours, if hours > 99 { 3 } else { 2 }, out);
    out.push(b':');
    digits(seconds / 60 % 60, 2, out);
    out.push(b':');
    digits(seconds % 60, 2, out);
    if fraction > 0 {
        out.push(b'.');
        digits(fraction, 6, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::column;

    fn spelled(ty: ColumnType, value: Value<'_>, place: Place) -> Result<String> {
        let mut out = Vec::new();
        literal(&column("c", ty, "t"), Datum::Value(value), place, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_type_has_one_exact_spelling() {
        let text = ColumnType::Text { chars: None, bytes: None };
        let cases = [
            (ColumnType::Bool, Value::Bool(true), "1"),
            (ColumnType::Int { bytes: 8, signed: false }, Value::UInt(u64::MAX), "18446744073709551615"),
            (ColumnType::Int { bytes: 8, signed: true }, Value::Int(i64::MIN), "-9223372036854775808"),
            (ColumnType::Decimal { limits: None }, Value::Decimal("-1.50"), "'-1.50'"),
            (ColumnType::Float32, Value::Float32(0.1), "0.10000000149011612e0"),
            (ColumnType::Float64, Value::Float64(0.1), "0.1e0"),
            (ColumnType::Float64, Value::Float64(-0.0), "-0.0e0"),
            (ColumnType::Float64, Value::Float64(1e300), "1e300"),
            (text.clone(), Value::Text("it's \\ 😀\n"), "'it\\'s \\\\ 😀\n'"),
            (text, Value::Text(""), "''"),
            (ColumnType::Json, Value::Json(r#"{"a":"\n"}"#), r#"'{"a":"\\n"}'"#),
            (ColumnType::Bytes { bytes: None }, Value::Bytes(&[0, 0xab]), "x'00ab'"),
            (ColumnType::Date, Value::Date(-719_162), "DATE'0001-01-01'"),
            (ColumnType::Time { digits: 6 }, Value::Time(-1), "TIME'-00:00:00.000001'"),
            (ColumnType::Time { digits: 0 }, Value::Time(TIME_MAX), "TIME'838:59:59'"),
            (ColumnType::DateTime { digits: 6 }, Value::DateTime(-1), "TIMESTAMP'1969-12-31 23:59:59.999999'"),
            (ColumnType::Timestamp { digits: 0 }, Value::Timestamp(0), "TIMESTAMP'1970-01-01 00:00:00'"),
            (ColumnType::Date, Value::Date(DATE_ZERO), "'0000-00-00'"),
            (ColumnType::Timestamp { digits: 6 }, Value::Timestamp(INSTANT_ZERO), "'0000-00-00 00:00:00'"),
            (ColumnType::Year, Value::Int(0), "0"),
            (ColumnType::Bits { length: Some(3), varying: false }, Value::Bits("010"), "2"),
            (ColumnType::Set { labels: vec!["a".into()] }, Value::Text("a"), "'a'"),
            (ColumnType::Geometry, Value::Bytes(&[1]), "x'01'"),
            (ColumnType::Uuid, Value::Uuid([0x1f; 16]), "'1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f'"),
        ];
        for (ty, value, expected) in cases {
            assert_eq!(spelled(ty, value, Place::Assigned).unwrap(), expected);
        }
        assert_eq!(
            spelled(ColumnType::Decimal { limits: None }, Value::Decimal("-1.50"), Place::Compared).unwrap(),
            "-1.50"
        );
    }

    #[test]
    fn what_a_column_cannot_hold_is_refused_before_it_is_sent() {
        for (ty, value) in [
            (ColumnType::Float64, Value::Float64(f64::NAN)),
            (ColumnType::Date, Value::Date(-719_163)),
            (ColumnType::Date, Value::Date(2_932_897)),
            (ColumnType::DateTime { digits: 6 }, Value::DateTime(i64::MAX)),
            (ColumnType::Time { digits: 6 }, Value::Time(TIME_MAX + 1)),
            (ColumnType::Int { bytes: 4, signed: true }, Value::Text("1; DROP TABLE t")),
            (ColumnType::Decimal { limits: None }, Value::Decimal("NaN")),
        ] {
            let error = spelled(ty, value, Place::Assigned).unwrap_err();
            assert_eq!(error.recovery, crate::error::Recovery::Quarantine);
        }
    }
}
