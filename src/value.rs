//! One set of values between any two databases, and their compact form in a row.
//!
//! A [`Value`] borrows: from the receive buffer while capturing, from the journal's buffer
//! while applying. A row is written once, by normalize, as tag + payload per field; those
//! bytes are journaled and later read again without an allocation per value.
//!
//! ```text
//! row   = datum*                       one per canonical field, in schema order
//! datum = tag u8, payload              numbers little endian; text and bytes: len u32, bytes
//! ```

pub mod number;

use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;

/// The canonical kind of a field: what its values are compared and carried as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Bool,
    /// −2^63 … 2^64−1.
    Int,
    /// Any precision, as decimal text without exponent.
    Decimal,
    Float32,
    Float64,
    Text,
    Bytes,
    Date,
    Time,
    /// Wall clock without zone.
    DateTime,
    /// An instant, UTC.
    Timestamp,
    Uuid,
    Json,
    /// Binary digits: of PostgreSQL's bit and varbit, MySQL's BIT.
    Bits,
    /// PostgreSQL's array, as its own text.
    Array,
}

impl Kind {
    pub const ALL: [Kind; 15] = [
        Kind::Bool,
        Kind::Int,
        Kind::Decimal,
        Kind::Float32,
        Kind::Float64,
        Kind::Text,
        Kind::Bytes,
        Kind::Date,
        Kind::Time,
        Kind::DateTime,
        Kind::Timestamp,
        Kind::Uuid,
        Kind::Json,
        Kind::Bits,
        Kind::Array,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Decimal => "decimal",
            Kind::Float32 => "float32",
            Kind::Float64 => "float64",
            Kind::Text => "text",
            Kind::Bytes => "bytes",
            Kind::Date => "date",
            Kind::Time => "time",
            Kind::DateTime => "datetime",
            Kind::Timestamp => "timestamp",
            Kind::Uuid => "uuid",
            Kind::Json => "json",
            Kind::Bits => "bits",
            Kind::Array => "array",
        }
    }

    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// A value, never NULL. `Copy`: a tag and at most a fat pointer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Bool(bool),
    Int(i64),
    /// Only above `i64::MAX`, so that every integer has one spelling.
    UInt(u64),
    /// Optional sign, digits, optional fraction; no exponent. Scale as the source wrote it
    /// (`1.50`); [`decimal_eq`] and keys ignore trailing zeros. PostgreSQL also has `NaN`,
    /// `Infinity` and `-Infinity` ([`is_special_decimal`]).
    Decimal(&'a str),
    Float32(f32),
    Float64(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Days since 1970-01-01, proleptic Gregorian; or one of the `DATE_…` that no calendar has.
    Date(i32),
    /// Microseconds since midnight; beyond one day or negative only from MySQL's TIME.
    Time(i64),
    /// Microseconds since 1970-01-01 00:00:00, no zone; or one of the `INSTANT_…`.
    DateTime(i64),
    /// Microseconds since 1970-01-01 00:00:00 UTC; or one of the `INSTANT_…`.
    Timestamp(i64),
    Uuid([u8; 16]),
    /// JSON text, numbers kept digit for digit.
    Json(&'a str),
    /// `0` and `1`, the first digit first.
    Bits(&'a str),
    /// As PostgreSQL writes arrays: `{1,NULL,"a b"}`, `[0:1]={x,y}`.
    Array(&'a str),
}

/// PostgreSQL's `infinity` and `-infinity`, MySQL's `0000-00-00`; in the order in which the
/// servers sort them.
pub const DATE_INFINITY: i32 = i32::MAX;
pub const DATE_MINUS_INFINITY: i32 = i32::MIN;
pub const DATE_ZERO: i32 = i32::MIN + 1;
/// The same of datetimes and timestamps.
pub const INSTANT_INFINITY: i64 = i64::MAX;
pub const INSTANT_MINUS_INFINITY: i64 = i64::MIN;
pub const INSTANT_ZERO: i64 = i64::MIN + 1;

/// Decimals that are no numbers of digits.
pub fn is_special_decimal(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

/// One field of a row image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Datum<'a> {
    /// Not carried: an unchanged TOAST column, one outside a minimal row image, or a field
    /// that the origin does not bind. Never to be written as NULL.
    NotSent,
    Null,
    Value(Value<'a>),
    /// What is to be added to the value that is there (NULL, or no row, is zero): a decimal text
    /// with an optional minus. Only in after images, of fields whose differences are merged.
    Added(&'a str),
}

impl<'a> Datum<'a> {
    pub fn value(self) -> Option<Value<'a>> {
        match self {
            Datum::Value(value) => Some(value),
            Datum::Null | Datum::NotSent | Datum::Added(_) => None,
        }
    }

    pub fn is_sent(self) -> bool {
        !matches!(self, Datum::NotSent)
    }
}

const TAG_NOT_SENT: u8 = 0;
const TAG_NULL: u8 = 1;
const TAG_FALSE: u8 = 2;
const TAG_TRUE: u8 = 3;
const TAG_INT: u8 = 4;
const TAG_UINT: u8 = 5;
const TAG_DECIMAL: u8 = 6;
const TAG_FLOAT32: u8 = 7;
const TAG_FLOAT64: u8 = 8;
const TAG_TEXT: u8 = 9;
const TAG_BYTES: u8 = 10;
const TAG_DATE: u8 = 11;
const TAG_TIME: u8 = 12;
const TAG_DATETIME: u8 = 13;
const TAG_TIMESTAMP: u8 = 14;
const TAG_UUID: u8 = 15;
const TAG_JSON: u8 = 16;
const TAG_BITS: u8 = 17;
const TAG_ARRAY: u8 = 18;
const TAG_ADDED: u8 = 19;

/// Appends one datum in row form.
pub fn write_datum(out: &mut Vec<u8>, datum: Datum<'_>) {
    fn fixed(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
        out.push(tag);
        out.extend_from_slice(payload);
    }
    fn sized(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
        out.push(tag);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
    }
    let value = match datum {
        Datum::NotSent => return out.push(TAG_NOT_SENT),
        Datum::Null => return out.push(TAG_NULL),
        Datum::Added(difference) => return sized(out, TAG_ADDED, difference.as_bytes()),
        Datum::Value(value) => value,
    };
    match value {
        Value::Bool(false) => out.push(TAG_FALSE),
        Value::Bool(true) => out.push(TAG_TRUE),
        Value::Int(v) => fixed(out, TAG_INT, &v.to_le_bytes()),
        Value::UInt(v) => fixed(out, TAG_UINT, &v.to_le_bytes()),
        Value::Decimal(v) => sized(out, TAG_DECIMAL, v.as_bytes()),
        Value::Float32(v) => fixed(out, TAG_FLOAT32, &v.to_bits().to_le_bytes()),
        Value::Float64(v) => fixed(out, TAG_FLOAT64, &v.to_bits().to_le_bytes()),
        Value::Text(v) => sized(out, TAG_TEXT, v.as_bytes()),
        Value::Bytes(v) => sized(out, TAG_BYTES, v),
        Value::Date(v) => fixed(out, TAG_DATE, &v.to_le_bytes()),
        Value::Time(v) => fixed(out, TAG_TIME, &v.to_le_bytes()),
        Value::DateTime(v) => fixed(out, TAG_DATETIME, &v.to_le_bytes()),
        Value::Timestamp(v) => fixed(out, TAG_TIMESTAMP, &v.to_le_bytes()),
        Value::Uuid(v) => fixed(out, TAG_UUID, &v),
        Value::Json(v) => sized(out, TAG_JSON, v.as_bytes()),
        Value::Bits(v) => sized(out, TAG_BITS, v.as_bytes()),
        Value::Array(v) => sized(out, TAG_ARRAY, v.as_bytes()),
    }
}

/// An encoded row image: cheap to copy, read on demand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Row<'a>(pub &'a [u8]);

impl<'a> Row<'a> {
    pub fn iter(self) -> RowIter<'a> {
        RowIter { rest: self.0 }
    }

    /// The datum of field `index`; `NotSent` past the end (a field added after the row was written).
    pub fn get(self, index: usize) -> Datum<'a> {
        self.iter().nth(index).unwrap_or(Datum::NotSent)
    }

    /// Decodes into `out`, reusing its memory.
    pub fn read_into(self, out: &mut Vec<Datum<'a>>) {
        out.clear();
        out.extend(self.iter());
    }

    /// The first `count` datums as bytes: the key, where key fields come first.
    pub fn prefix(self, count: usize) -> &'a [u8] {
        let mut iter = self.iter();
        for _ in 0..count {
            iter.skip_one();
        }
        &self.0[..self.0.len() - iter.rest.len()]
    }

    /// Bit i: field i is sent.
    pub fn sent(self) -> u128 {
        self.fields(|tag| tag != TAG_NOT_SENT)
    }

    /// Bit i: field i is a difference.
    pub fn added(self) -> u128 {
        self.fields(|tag| tag == TAG_ADDED)
    }

    /// Bit i: field i has the value itself, or NULL.
    pub fn absolute(self) -> u128 {
        self.fields(|tag| tag != TAG_NOT_SENT && tag != TAG_ADDED)
    }

    fn fields(self, of: impl Fn(u8) -> bool) -> u128 {
        let (mut iter, mut fields, mut bit) = (self.iter(), 0, 1u128);
        while let Some(tag) = iter.skip_one() {
            fields |= if of(tag) { bit } else { 0 };
            bit = bit.wrapping_shl(1);
        }
        fields
    }
}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[derive(Debug, Clone)]
pub struct RowIter<'a> {
    rest: &'a [u8],
}

impl<'a> RowIter<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("take returns what was asked for")
    }

    fn sized(&mut self) -> &'a [u8] {
        let len = u32::from_le_bytes(self.array()) as usize;
        self.take(len)
    }

    /// Passes over one datum, whose tag is returned; its value is not looked at.
    fn skip_one(&mut self) -> Option<u8> {
        let (&tag, rest) = self.rest.split_first()?;
        self.rest = rest;
        match tag {
            TAG_NOT_SENT | TAG_NULL | TAG_FALSE | TAG_TRUE => {}
            TAG_FLOAT32 | TAG_DATE => drop(self.take(4)),
            TAG_INT | TAG_UINT | TAG_FLOAT64 | TAG_TIME | TAG_DATETIME | TAG_TIMESTAMP => drop(self.take(8)),
            TAG_UUID => drop(self.take(16)),
            TAG_DECIMAL | TAG_TEXT | TAG_BYTES | TAG_JSON | TAG_BITS | TAG_ARRAY | TAG_ADDED => drop(self.sized()),
            tag => unreachable!("row tag {tag}: rows are checksummed and of a known format version"),
        }
        Some(tag)
    }

    fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.sized())
            .expect("rows hold checked text: written from &str, journal frames are checksummed")
    }
}

impl<'a> Iterator for RowIter<'a> {
    type Item = Datum<'a>;

    fn next(&mut self) -> Option<Datum<'a>> {
        let (&tag, rest) = self.rest.split_first()?;
        self.rest = rest;
        let value = match tag {
            TAG_NOT_SENT => return Some(Datum::NotSent),
            TAG_NULL => return Some(Datum::Null),
            TAG_ADDED => return Some(Datum::Added(self.text())),
            TAG_FALSE => Value::Bool(false),
            TAG_TRUE => Value::Bool(true),
            TAG_INT => Value::Int(i64::from_le_bytes(self.array())),
            TAG_UINT => Value::UInt(u64::from_le_bytes(self.array())),
            TAG_DECIMAL => Value::Decimal(self.text()),
            TAG_FLOAT32 => Value::Float32(f32::from_bits(u32::from_le_bytes(self.array()))),
            TAG_FLOAT64 => Value::Float64(f64::from_bits(u64::from_le_bytes(self.array()))),
            TAG_TEXT => Value::Text(self.text()),
            TAG_BYTES => Value::Bytes(self.sized()),
            TAG_DATE => Value::Date(i32::from_le_bytes(self.array())),
            TAG_TIME => Value::Time(i64::from_le_bytes(self.array())),
            TAG_DATETIME => Value::DateTime(i64::from_le_bytes(self.array())),
            TAG_TIMESTAMP => Value::Timestamp(i64::from_le_bytes(self.array())),
            TAG_UUID => Value::Uuid(self.array()),
            TAG_JSON => Value::Json(self.text()),
            TAG_BITS => Value::Bits(self.text()),
            TAG_ARRAY => Value::Array(self.text()),
            tag => unreachable!("row tag {tag}: rows are checksummed and of a known format version"),
        };
        Some(Datum::Value(value))
    }
}

/// Decimal text without a leading `+`, leading zeros or trailing fraction zeros: the form in
/// which decimals are compared and hashed. `-0` is `0`.
pub fn decimal_canonical(text: &str, out: &mut String) {
    if is_special_decimal(text) {
        return out.push_str(text);
    }
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if negative && !(whole.is_empty() && fraction.is_empty()) {
        out.push('-');
    }
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

/// Equal as numbers.
pub fn decimal_eq(a: &str, b: &str) -> bool {
    let (mut left, mut right) = (String::new(), String::new());
    decimal_canonical(a, &mut left);
    decimal_canonical(b, &mut right);
    left == right
}

/// Hashes key datums so that equal keys of any system meet: decimals without trailing zeros,
/// −0.0 as 0.0. `seed` separates entities. `scratch` is reused memory.
pub fn key_hash<'a>(seed: u64, key: impl Iterator<Item = Datum<'a>>, scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    for datum in key {
        match datum {
            Datum::Value(Value::Decimal(text)) => {
                let mut canonical = String::new();
                decimal_canonical(text, &mut canonical);
                write_datum(scratch, Datum::Value(Value::Decimal(&canonical)));
            }
            Datum::Value(Value::Float32(v)) => write_datum(scratch, Datum::Value(Value::Float32(v + 0.0))),
            Datum::Value(Value::Float64(v)) => write_datum(scratch, Datum::Value(Value::Float64(v + 0.0))),
            other => write_datum(scratch, other),
        }
    }
    xxhash_rust::xxh3::xxh3_128_with_seed(scratch, seed)
}

/// Day numbers from here on stand for dates of MySQL and MariaDB that no calendar has: 2024-00-10, 2024-10-00,
/// 2024-02-31. They lie before every date of PostgreSQL, also as microseconds.
const DATE_PARTIAL: i32 = -100_000_000;
const DATE_PARTIAL_END: i32 = DATE_PARTIAL + 10_000 * 13 * 32;

/// Without a month or a day, or with a day that its month has not.
pub fn is_partial(days: i32) -> bool {
    (DATE_PARTIAL..DATE_PARTIAL_END).contains(&days)
}

/// Day number of a date as MySQL has them, partial ones too; zero is none of these.
pub fn days_from_mysql(year: i32, month: u32, day: u32) -> Option<i32> {
    days_from_civil(year, month, day).or_else(|| {
        let possible = (1..=9999).contains(&year) && month <= 12 && day <= 31;
        possible.then(|| DATE_PARTIAL + (year * 13 + month as i32) * 32 + day as i32)
    })
}

/// Year, month, day of a day number (days since 1970-01-01, proleptic Gregorian, or partial).
pub fn civil_from_days(days: i32) -> (i32, u32, u32) {
    if is_partial(days) {
        let code = days - DATE_PARTIAL;
        return (code / 32 / 13, (code / 32 % 13) as u32, (code % 32) as u32);
    }
    let z = i64::from(days) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year as i32, month, day)
}

/// Day number of a civil date, or `None` if there is no such day.
pub fn days_from_civil(year: i32, month: u32, day: u32) -> Option<i32> {
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let y = i64::from(year) - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let doy = (153 * mp + 2) / 5 + i64::from(day) - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    let days = i32::try_from(era * 146_097 + doe - 719_468).ok()?;
    (civil_from_days(days) == (year, month, day)).then_some(days)
}

pub const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Appends an address as PostgreSQL and MariaDB's manual write it: the longest run of two zero
/// groups or more is `::`, an IPv4 address inside keeps its dots.
pub fn write_inet6(address: [u8; 16], out: &mut String) {
    let address = Ipv6Addr::from(address);
    let _ = match address.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high > 0 => {
            let [a, b, c, d] = (u32::from(high) << 16 | u32::from(low)).to_be_bytes();
            write!(out, "::{a}.{b}.{c}.{d}")
        }
        _ => write!(out, "{address}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back_what_was_written() {
        let datums = [
            Datum::NotSent,
            Datum::Null,
            Datum::Value(Value::Bool(true)),
            Datum::Value(Value::Int(i64::MIN)),
            Datum::Value(Value::UInt(u64::MAX)),
            Datum::Value(Value::Decimal("-12.50")),
            Datum::Value(Value::Float32(0.1)),
            Datum::Value(Value::Float64(-0.0)),
            Datum::Value(Value::Text("héllo 😀")),
            Datum::Value(Value::Text("")),
            Datum::Value(Value::Bytes(&[0, 255])),
            Datum::Value(Value::Date(-719_162)),
            Datum::Value(Value::Time(1)),
            Datum::Value(Value::DateTime(i64::MAX)),
            Datum::Value(Value::Timestamp(-1)),
            Datum::Value(Value::Uuid([7; 16])),
            Datum::Value(Value::Json("{\"a\":1.0}")),
            Datum::Value(Value::Bits("0101")),
            Datum::Value(Value::Array("{1,NULL}")),
        ];
        let mut bytes = Vec::new();
        for datum in datums {
            write_datum(&mut bytes, datum);
        }

        assert_eq!(Row(&bytes).iter().collect::<Vec<_>>(), datums);
        assert_eq!(Row(&bytes).sent(), (1 << datums.len()) - 2, "all but the first");
        for count in 0..=datums.len() {
            assert_eq!(Row(Row(&bytes).prefix(count)).iter().count(), count);
        }
        assert_eq!(Row(&bytes).get(99), Datum::NotSent);
    }

    #[test]
    fn equal_decimals_have_one_canonical_form() {
        for (a, b) in [("1.50", "1.5"), ("-0.00", "0"), ("007", "7"), ("+3.0", "3"), (".5", "0.5")] {
            assert!(decimal_eq(a, b), "{a} {b}");
        }
        assert!(!decimal_eq("1.5", "-1.5"));
        assert!(decimal_eq("NaN", "NaN") && !decimal_eq("Infinity", "-Infinity"));
    }

    #[test]
    fn addresses_have_one_spelling() {
        for text in ["::", "::1", "::102", "::1.2.3.4", "::ffff:1.2.3.4", "2001:db8:0:1:1:1:1:1", "1:0:0:2::3"] {
            let mut out = String::new();
            write_inet6(text.parse::<Ipv6Addr>().expect("an address").octets(), &mut out);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn civil_dates_survive_the_round_trip() {
        for days in [-719_162, -1, 0, 1, 59, 60, 11_016, 2_932_896] {
            let (y, m, d) = civil_from_days(days);
            assert_eq!(days_from_civil(y, m, d), Some(days));
        }
        assert_eq!(civil_from_days(-719_162), (1, 1, 1));
        assert_eq!(civil_from_days(2_932_896), (9999, 12, 31));
        for (y, m, d) in [(2024, 0, 10), (2024, 10, 0), (1, 0, 0), (9999, 2, 31), (2023, 2, 29)] {
            let days = days_from_mysql(y, m, d).unwrap();
            assert!(is_partial(days) && i64::from(days).checked_mul(MICROS_PER_DAY).is_some());
            assert_eq!((civil_from_days(days), days_from_civil(y, m, d)), ((y, m, d), None));
        }
        assert_eq!(days_from_mysql(2024, 2, 29), days_from_civil(2024, 2, 29));
        assert_eq!(days_from_mysql(0, 0, 1), None);
        assert_eq!(days_from_civil(2023, 2, 29), None);
        assert_eq!(days_from_civil(2024, 13, 1), None);
    }
}
