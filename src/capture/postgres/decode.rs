//! Column values: from the server's text form to [`Value`], in place.
//!
//! The text form is the one that the session's settings fix (ISO dates, UTC, shortest floats
//! that read back exactly, bytea in hex). What has no place in our values is refused: a row for
//! quarantine. What is not of the column's type at all is malformed and stops the flow.

use crate::catalog::ColumnType;
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO, MICROS_PER_DAY, Value,
    days_from_civil, is_special_decimal,
};

/// How a column's text is read; from the type that the log gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Bool,
    Int,
    Decimal,
    Float32,
    Float64,
    Text,
    /// char(n): padded with spaces that do not count.
    Char,
    Bytes,
    Date,
    Time,
    DateTime,
    Timestamp,
    Uuid,
    Json,
    Bits,
    Array,
}

impl Format {
    pub fn of(ty: &ColumnType) -> Option<Format> {
        Some(match ty {
            ColumnType::Bool => Format::Bool,
            ColumnType::Int { .. } => Format::Int,
            ColumnType::Decimal { .. } => Format::Decimal,
            ColumnType::Float32 => Format::Float32,
            ColumnType::Float64 => Format::Float64,
            ColumnType::Text { .. } | ColumnType::Enum { .. } | ColumnType::Verbatim => Format::Text,
            ColumnType::Char { .. } => Format::Char,
            ColumnType::Binary { .. } | ColumnType::Bytes { .. } => Format::Bytes,
            ColumnType::Date => Format::Date,
            ColumnType::Time { .. } => Format::Time,
            ColumnType::DateTime { .. } => Format::DateTime,
            ColumnType::Timestamp { .. } => Format::Timestamp,
            ColumnType::Uuid => Format::Uuid,
            ColumnType::Json => Format::Json,
            ColumnType::Bits { .. } => Format::Bits,
            ColumnType::Array { .. } => Format::Array,
            // Of MySQL and MariaDB alone.
            ColumnType::Set { .. } | ColumnType::Year | ColumnType::Inet { .. } | ColumnType::Geometry => return None,
            ColumnType::Unsupported => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A value that cannot be carried, and why.
    Refused(&'static str),
    /// Not a value of the type that the log announced.
    Malformed,
}

type Result<T> = std::result::Result<T, Trouble>;

pub fn value(format: Format, bytes: &mut [u8]) -> Result<Value<'_>> {
    use Trouble::Malformed;
    Ok(match format {
        Format::Bool => match &*bytes {
            b"t" => Value::Bool(true),
            b"f" => Value::Bool(false),
            _ => return Err(Malformed),
        },
        Format::Int => Value::Int(int(bytes).ok_or(Malformed)?),
        Format::Decimal => Value::Decimal(decimal(bytes)?),
        Format::Float32 => Value::Float32(text(bytes)?.parse().map_err(|_| Malformed)?),
        Format::Float64 => Value::Float64(text(bytes)?.parse().map_err(|_| Malformed)?),
        Format::Text => Value::Text(text(bytes)?),
        Format::Char => Value::Text(text(bytes)?.trim_end_matches(' ')),
        Format::Bytes => Value::Bytes(hex(bytes).ok_or(Malformed)?),
        Format::Date => Value::Date(date(bytes)?),
        Format::Time => Value::Time(time(bytes).ok_or(Malformed)?),
        Format::DateTime => Value::DateTime(date_time(bytes)?),
        Format::Timestamp => Value::Timestamp(timestamp(bytes)?),
        Format::Uuid => Value::Uuid(uuid(bytes).ok_or(Malformed)?),
        Format::Json => Value::Json(text(bytes)?),
        Format::Bits if !bytes.iter().all(|byte| matches!(byte, b'0' | b'1')) => return Err(Malformed),
        Format::Bits => Value::Bits(text(bytes)?),
        Format::Array if !bytes.ends_with(b"}") => return Err(Malformed),
        Format::Array => Value::Array(text(bytes)?),
    })
}

/// Only a database in SQL_ASCII sends anything else than UTF-8.
fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Trouble::Refused("text that is not UTF-8"))
}

fn int(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes.split_first()? {
        (b'-', digits) => (true, digits),
        _ => (false, bytes),
    };
    if digits.is_empty() {
        return None;
    }
    // Counted downwards, where there is room for i64::MIN.
    let mut value = 0i64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

fn decimal(bytes: &[u8]) -> Result<&str> {
    let text = text(bytes)?;
    if is_special_decimal(text) {
        return Ok(text);
    }
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let points = digits.iter().filter(|&&byte| byte == b'.').count();
    if points > 1 || digits.len() == points || !digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return Err(Trouble::Malformed);
    }
    Ok(text)
}

/// `\x6162` → `ab`, into the bytes where it stood.
fn hex(bytes: &mut [u8]) -> Option<&[u8]> {
    if !bytes.starts_with(b"\\x") || !bytes.len().is_multiple_of(2) {
        return None;
    }
    let len = bytes.len() / 2 - 1;
    for i in 0..len {
        let (high, low) = (HEX[usize::from(bytes[2 * i + 2])], HEX[usize::from(bytes[2 * i + 3])]);
        if (high | low) > 15 {
            return None;
        }
        bytes[i] = high << 4 | low;
    }
    Some(&bytes[..len])
}

/// Values of hex digits; everything else is above 15.
const HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

fn date(bytes: &[u8]) -> Result<i32> {
    match bytes {
        b"infinity" => return Ok(DATE_INFINITY),
        b"-infinity" => return Ok(DATE_MINUS_INFINITY),
        _ => {}
    }
    let (bytes, before_christ) = era(bytes);
    calendar_day(bytes, before_christ).ok_or(Trouble::Malformed)
}

fn date_time(bytes: &[u8]) -> Result<i64> {
    if let Some(infinite) = infinite(bytes) {
        return Ok(infinite);
    }
    let (bytes, before_christ) = era(bytes);
    micros(bytes, before_christ)
}

/// The session's zone is UTC: every instant ends in `+00`.
fn timestamp(bytes: &[u8]) -> Result<i64> {
    if let Some(infinite) = infinite(bytes) {
        return Ok(infinite);
    }
    let (bytes, before_christ) = era(bytes);
    let bytes = bytes.strip_suffix(b"+00").ok_or(Trouble::Malformed)?;
    micros(bytes, before_christ)
}

fn infinite(bytes: &[u8]) -> Option<i64> {
    match bytes {
        b"infinity" => Some(INSTANT_INFINITY),
        b"-infinity" => Some(INSTANT_MINUS_INFINITY),
        _ => None,
    }
}

fn era(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.strip_suffix(b" BC") {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    }
}

fn micros(bytes: &[u8], before_christ: bool) -> Result<i64> {
    let parts = || {
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        Some((calendar_day(&bytes[..space], before_christ)?, time(&bytes[space + 1..])?))
    };
    let (days, time) = parts().ok_or(Trouble::Malformed)?;
    let midnight = i64::from(days).checked_mul(MICROS_PER_DAY);
    midnight
        .and_then(|midnight| midnight.checked_add(time))
        .filter(|micros| (INSTANT_ZERO + 1..INSTANT_INFINITY).contains(micros))
        .ok_or(Trouble::Refused("a time beyond the year 294246"))
}

/// `2024-02-29`; years have four digits or more, and there is no year 0.
fn calendar_day(bytes: &[u8], before_christ: bool) -> Option<i32> {
    let year_len = bytes.len().checked_sub(6)?;
    let (year, rest) = bytes.split_at(year_len);
    let [b'-', m1, m2, b'-', d1, d2] = rest else { return None };
    let year = i32::try_from(digits(year)?).ok()?;
    let year = if before_christ { 1 - year } else { year };
    days_from_civil(year, digits(&[*m1, *m2])?, digits(&[*d1, *d2])?)
}

/// `12:34:56.789`, and `24:00:00`.
fn time(bytes: &[u8]) -> Option<i64> {
    let (clock, fraction) = bytes.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = clock else { return None };
    let (hours, minutes, seconds) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?, digits(&[*s1, *s2])?);
    let micros = match fraction {
        [] => 0,
        [b'.', fraction @ ..] if fraction.len() <= 6 => digits(fraction)? * 10u32.pow(6 - fraction.len() as u32),
        _ => return None,
    };
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60 + i64::from(seconds);
    (minutes < 60 && seconds <= 86_400).then_some(seconds * 1_000_000 + i64::from(micros))
}

fn digits(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || bytes.len() > 9 {
        return None;
    }
    bytes.iter().try_fold(0, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then(|| value * 10 + u32::from(digit))
    })
}

fn uuid(bytes: &[u8]) -> Option<[u8; 16]> {
    if bytes.len() != 36 {
        return None;
    }
    let mut uuid = [0; 16];
    let mut at = 0;
    for (i, byte) in uuid.iter_mut().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            if bytes[at] != b'-' {
                return None;
            }
            at += 1;
        }
        let (high, low) = (HEX[usize::from(bytes[at])], HEX[usize::from(bytes[at + 1])]);
        if (high | low) > 15 {
            return None;
        }
        *byte = high << 4 | low;
        at += 2;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Format; 16] = [
        Format::Bool,
        Format::Int,
        Format::Decimal,
        Format::Float32,
        Format::Float64,
        Format::Text,
        Format::Char,
        Format::Bytes,
        Format::Date,
        Format::Time,
        Format::DateTime,
        Format::Timestamp,
        Format::Uuid,
        Format::Json,
        Format::Bits,
        Format::Array,
    ];

    fn check(format: Format, text: &str, expected: Value<'_>) {
        assert_eq!(value(format, &mut text.as_bytes().to_vec()), Ok(expected), "{text}");
    }

    #[test]
    fn values_are_read_exactly_to_the_edges_of_their_types() {
        check(Format::Int, "-9223372036854775808", Value::Int(i64::MIN));
        check(Format::Int, "9223372036854775807", Value::Int(i64::MAX));
        check(Format::Decimal, "-0.10", Value::Decimal("-0.10"));
        check(Format::Float32, "3.4028235e+38", Value::Float32(f32::MAX));
        check(Format::Float64, "-0", Value::Float64(-0.0));
        check(Format::Float64, "5e-324", Value::Float64(5e-324));
        check(Format::Float64, "-Infinity", Value::Float64(f64::NEG_INFINITY));
        check(Format::Char, "ab  ", Value::Text("ab"));
        check(Format::Text, "ab  ", Value::Text("ab  "));
        check(Format::Bytes, "\\x00ff4A", Value::Bytes(b"\x00\xff\x4a"));
        check(Format::Bytes, "\\x", Value::Bytes(b""));
        check(Format::Date, "1970-01-02", Value::Date(1));
        check(Format::Date, "0001-01-01 BC", Value::Date(-719_528));
        check(Format::Date, "5874897-12-31", Value::Date(2_145_042_905));
        check(Format::Time, "24:00:00", Value::Time(MICROS_PER_DAY));
        check(Format::Time, "00:00:00.1", Value::Time(100_000));
        check(Format::DateTime, "1969-12-31 23:59:59.999999", Value::DateTime(-1));
        check(Format::Timestamp, "294247-01-10 04:00:54.775806+00", Value::Timestamp(i64::MAX - 1));
        check(Format::Decimal, "NaN", Value::Decimal("NaN"));
        check(Format::Decimal, "-Infinity", Value::Decimal("-Infinity"));
        check(Format::Date, "infinity", Value::Date(DATE_INFINITY));
        check(Format::Timestamp, "-infinity", Value::Timestamp(INSTANT_MINUS_INFINITY));
        check(Format::DateTime, "infinity", Value::DateTime(INSTANT_INFINITY));
        check(Format::Bits, "0101", Value::Bits("0101"));
        check(Format::Bits, "", Value::Bits(""));
        check(Format::Array, "[0:1]={1,NULL}", Value::Array("[0:1]={1,NULL}"));
        let uuid = [0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a, 0x11];
        check(Format::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", Value::Uuid(uuid));
    }

    #[test]
    fn what_cannot_be_carried_is_refused_not_malformed() {
        for text in ["294276-12-31 23:59:59.999999", "294247-01-10 04:00:54.775807"] {
            assert!(
                matches!(value(Format::DateTime, &mut text.as_bytes().to_vec()), Err(Trouble::Refused(_))),
                "{text}"
            );
        }
        assert!(matches!(value(Format::Text, &mut [0xff]), Err(Trouble::Refused(_))));
    }

    #[test]
    fn what_is_not_of_the_type_is_malformed() {
        for (format, text) in [
            (Format::Bool, "true"),
            (Format::Int, ""),
            (Format::Int, "9223372036854775808"),
            (Format::Int, "1_000"),
            (Format::Decimal, "."),
            (Format::Decimal, "1e5"),
            (Format::Bytes, "\\x0"),
            (Format::Bytes, "abc"),
            (Format::Date, "2023-02-29"),
            (Format::Date, "01/02/2023"),
            (Format::Time, "24:00:01"),
            (Format::Timestamp, "2024-01-01 00:00:00+02"),
            (Format::Timestamp, "2024-01-01 00:00:00"),
            (Format::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
            (Format::Bits, "012"),
            (Format::Array, "1"),
        ] {
            assert_eq!(value(format, &mut text.as_bytes().to_vec()), Err(Trouble::Malformed), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(format in prop::sample::select(ALL.to_vec()), bytes: Vec<u8>, text in "[-0-9:. +BC]{0,40}") {
            let mut bytes = bytes;
            let _ = value(format, &mut bytes);
            let _ = value(format, &mut text.into_bytes());
        }

        #[test]
        fn floats_are_read_bit_exact(bits: u64) {
            let float = f64::from_bits(bits);
            prop_assume!(!float.is_nan());
            let text = format!("{float:?}");
            let Ok(Value::Float64(read)) = value(Format::Float64, &mut text.into_bytes()) else { panic!("not a float") };
            prop_assert_eq!(read.to_bits(), bits);
        }
    }
}
