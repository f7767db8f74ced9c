//! One value from one form to another: exact, or refused with the reason. Pure.
//!
//! Three steps lead from a canonical value into a column and back: the binding's own mapping
//! ([`ValueMap`], [`super::format::Format`]), the change of kind ([`convert`]), and whether the column can
//! hold the result as it is ([`fits`]). None of them rounds, cuts or pads, because a server
//! that did so silently would leave two systems apart with no error anywhere. A reason never
//! contains the value.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::IgnoredAny;

use crate::catalog::{ColumnType, DecimalLimits};
use crate::config::Engine;
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, DATE_ZERO, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO, Kind,
    MICROS_PER_DAY, Value, civil_from_days, is_partial, is_special_decimal, write_inet6,
};

/// Why a value cannot be carried; completes "field … : ".
pub type Refusal = String;

/// The same value in another kind. `scratch` holds what had to be made.
pub fn convert<'a>(value: Value<'a>, to: Kind, scratch: &'a mut Vec<u8>) -> Result<Value<'a>, Refusal> {
    if kind_of(value) == to {
        return Ok(value);
    }
    Ok(match (value, to) {
        (Value::Bits("0"), Kind::Bool) => Value::Bool(false),
        (Value::Bits("1"), Kind::Bool) => Value::Bool(true),
        (Value::Bool(flag), Kind::Bits) => Value::Bits(if flag { "1" } else { "0" }),
        (Value::Bits(digits), Kind::Text) => Value::Text(digits),
        (Value::Text(text), Kind::Bits) if text.bytes().all(|b| matches!(b, b'0' | b'1')) => Value::Bits(text),
        (Value::Text(_), Kind::Bits) => return Err("the text is not of binary digits".into()),
        (Value::Array(text), Kind::Text) => Value::Text(text),
        (Value::Text(text), Kind::Array) if text.ends_with('}') => Value::Array(text),
        (Value::Text(_), Kind::Array) => return Err("the text is not an array as PostgreSQL writes it".into()),
        (Value::Int(0), Kind::Bool) => Value::Bool(false),
        (Value::Int(1), Kind::Bool) => Value::Bool(true),
        (Value::Int(_) | Value::UInt(_), Kind::Bool) => return Err("an integer other than 0 and 1 is no bool".into()),
        (Value::Bool(flag), Kind::Int) => Value::Int(i64::from(flag)),
        (Value::Int(number), Kind::Decimal) => made(scratch, itoa::Buffer::new().format(number), Value::Decimal),
        (Value::UInt(number), Kind::Decimal) => made(scratch, itoa::Buffer::new().format(number), Value::Decimal),
        (Value::Decimal(text), Kind::Int) => decimal_to_int(text)?,
        (Value::Float32(number), Kind::Float64) => Value::Float64(f64::from(number)),
        (Value::Float64(number), Kind::Float32) => float_to_float32(number)?,
        (Value::Uuid(uuid), Kind::Text) => made(scratch, uuid_text(&uuid, &mut [0; 36]), Value::Text),
        (Value::Text(text), Kind::Uuid) => Value::Uuid(uuid_from_text(text)?),
        (Value::Uuid(uuid), Kind::Bytes) => {
            scratch.clear();
            scratch.extend_from_slice(&uuid);
            Value::Bytes(scratch)
        }
        (Value::Bytes(bytes), Kind::Uuid) => {
            Value::Uuid(bytes.try_into().map_err(|_| format!("{} bytes are no uuid; it has 16", bytes.len()))?)
        }
        (Value::Json(text), Kind::Text) => Value::Text(text),
        (Value::Text(text), Kind::Json) => match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Value::Json(text),
            Err(error) => {
                return Err(format!(
                    "the text is not valid JSON (at line {}, column {})",
                    error.line(),
                    error.column()
                ));
            }
        },
        (Value::DateTime(micros), Kind::Timestamp) => Value::Timestamp(micros),
        (Value::Timestamp(micros), Kind::DateTime) => Value::DateTime(micros),
        (value, to) => return Err(format!("{} cannot become {}", kind_of(value).name(), to.name())),
    })
}

/// Whether [`convert`] leads from the one to the other and back.
pub fn convertible(a: Kind, b: Kind) -> bool {
    a == b || {
        let pair = |x, y| (a, b) == (x, y) || (b, a) == (x, y);
        pair(Kind::Bool, Kind::Int)
            || pair(Kind::Int, Kind::Decimal)
            || pair(Kind::Float32, Kind::Float64)
            || pair(Kind::Uuid, Kind::Text)
            || pair(Kind::Uuid, Kind::Bytes)
            || pair(Kind::Json, Kind::Text)
            || pair(Kind::DateTime, Kind::Timestamp)
            || pair(Kind::Bits, Kind::Bool)
            || pair(Kind::Bits, Kind::Text)
            || pair(Kind::Array, Kind::Text)
    }
}

pub fn kind_of(value: Value<'_>) -> Kind {
    match value {
        Value::Bool(_) => Kind::Bool,
        Value::Int(_) | Value::UInt(_) => Kind::Int,
        Value::Decimal(_) => Kind::Decimal,
        Value::Float32(_) => Kind::Float32,
        Value::Float64(_) => Kind::Float64,
        Value::Text(_) => Kind::Text,
        Value::Bytes(_) => Kind::Bytes,
        Value::Date(_) => Kind::Date,
        Value::Time(_) => Kind::Time,
        Value::DateTime(_) => Kind::DateTime,
        Value::Timestamp(_) => Kind::Timestamp,
        Value::Uuid(_) => Kind::Uuid,
        Value::Json(_) => Kind::Json,
        Value::Bits(_) => Kind::Bits,
        Value::Array(_) => Kind::Array,
    }
}

fn made<'a>(scratch: &'a mut Vec<u8>, text: &str, value: fn(&'a str) -> Value<'a>) -> Value<'a> {
    scratch.clear();
    scratch.extend_from_slice(text.as_bytes());
    value(std::str::from_utf8(scratch).expect("copied from a str"))
}

fn decimal_to_int<'a>(text: &str) -> Result<Value<'a>, Refusal> {
    if is_special_decimal(text) {
        return Err("NaN and Infinity are no integers".into());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.bytes().any(|b| b != b'0') {
        return Err("the number has a fraction, an integer has none".into());
    }
    let whole = if matches!(whole, "" | "-" | "+") { "0" } else { whole };
    integer(whole).ok_or_else(|| "the number is beyond every integer type".to_owned())
}

/// −2^63 … 2^64−1, with one spelling each.
pub fn integer<'a>(text: &str) -> Option<Value<'a>> {
    text.parse().map(Value::Int).ok().or_else(|| text.parse().map(Value::UInt).ok())
}

fn float_to_float32<'a>(number: f64) -> Result<Value<'a>, Refusal> {
    let narrow = number as f32;
    if number.is_nan() || f64::from(narrow).to_bits() == number.to_bits() {
        Ok(Value::Float32(narrow))
    } else {
        Err("the number is not exact in single precision".into())
    }
}

fn uuid_text<'b>(uuid: &[u8; 16], out: &'b mut [u8; 36]) -> &'b str {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut at = 0;
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out[at] = b'-';
            at += 1;
        }
        out[at] = HEX[usize::from(byte >> 4)];
        out[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    std::str::from_utf8(out).expect("hex digits and hyphens")
}

/// 36 characters with hyphens, in either case.
pub fn uuid_from_text(text: &str) -> Result<[u8; 16], Refusal> {
    let wrong = || "the text is no uuid of 32 hex digits in five groups".to_owned();
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|&at| bytes[at] != b'-') {
        return Err(wrong());
    }
    let mut uuid = [0; 16];
    let mut digits = bytes.iter().filter(|b| **b != b'-').map(|b| char::from(*b).to_digit(16));
    for byte in &mut uuid {
        let (high, low) = (digits.next().flatten(), digits.next().flatten());
        *byte = (high.ok_or_else(wrong)? * 16 + low.ok_or_else(wrong)?) as u8;
    }
    match digits.next() {
        None => Ok(uuid),
        Some(_) => Err(wrong()),
    }
}

/// The value as the column can hold it: itself, or a decimal without surplus zeros.
pub fn fits<'a>(value: Value<'a>, ty: &ColumnType, engine: Engine) -> Result<Value<'a>, Refusal> {
    let mysql = engine == Engine::Mysql;
    match (value, ty) {
        (Value::Int(_) | Value::UInt(_), ColumnType::Int { bytes, signed }) => int_fits(value, *bytes, *signed)?,
        (Value::Int(year), ColumnType::Year) if year != 0 && !(1901..=2155).contains(&year) => {
            return Err("the number is no year that the column takes (0, 1901 to 2155)".into());
        }
        (Value::UInt(_), ColumnType::Year) => {
            return Err("the number is no year that the column takes (0, 1901 to 2155)".into());
        }
        (Value::Decimal(text), ColumnType::Decimal { limits }) if is_special_decimal(text) => {
            special_decimal_fits(text, limits.is_some(), mysql)?;
        }
        (Value::Decimal(text), ColumnType::Decimal { limits: Some(limits) }) => {
            return decimal_fits(text, *limits).map(Value::Decimal);
        }
        (Value::Float32(number), _) if mysql && !number.is_finite() => return Err(no_such_float()),
        (Value::Float64(number), _) if mysql && !number.is_finite() => return Err(no_such_float()),
        (Value::Text(text), _) => text_fits(text, ty, mysql)?,
        (Value::Bytes(bytes), ColumnType::Binary { bytes: width }) if bytes.len() != *width as usize => {
            return Err(format!("{} bytes into a column of exactly {width}", bytes.len()));
        }
        (Value::Bytes(bytes), ColumnType::Bytes { bytes: Some(max) }) if bytes.len() as u64 > *max => {
            return Err(format!("{} bytes into a column of at most {max}", bytes.len()));
        }
        (Value::Bits(digits), ColumnType::Bits { length: Some(length), varying }) => {
            let count = digits.len() as u64;
            if count > u64::from(*length) || (!varying && count < u64::from(*length)) {
                return Err(format!("{count} binary digits into a column of {length}"));
            }
        }
        (Value::Date(days), _) => date_fits(days, mysql)?,
        (Value::Time(micros), ColumnType::Time { digits }) => {
            let range = if mysql { -3_020_399_000_000..=3_020_399_000_000 } else { 0..=MICROS_PER_DAY };
            if !range.contains(&micros) {
                return Err("the time is beyond what the column takes".into());
            }
            digits_fit(micros, *digits)?;
        }
        (Value::DateTime(micros), ColumnType::DateTime { digits }) => instant_fits(micros, *digits, mysql)?,
        (Value::Timestamp(micros), ColumnType::Timestamp { digits }) => {
            if micros == INSTANT_ZERO && mysql {
                return Ok(value);
            }
            // MySQL's timestamp counts seconds from 1; the upper end (2038 or 2106) is the server's to say.
            let seconds = micros.div_euclid(1_000_000);
            let infinite = matches!(micros, INSTANT_INFINITY | INSTANT_MINUS_INFINITY);
            if mysql && !infinite && !(1..=i64::from(u32::MAX)).contains(&seconds) {
                return Err("the time is beyond what a timestamp column takes (1970 to 2038, or 2106)".into());
            }
            instant_fits(micros, *digits, mysql)?;
        }
        _ => {}
    }
    Ok(value)
}

fn no_such_float() -> Refusal {
    "NaN and Infinity do not exist in MySQL and MariaDB".into()
}

fn special_decimal_fits(text: &str, limited: bool, mysql: bool) -> Result<(), Refusal> {
    if mysql {
        return Err("NaN and Infinity do not exist as decimals in MySQL and MariaDB".into());
    }
    if limited && text != "NaN" { Err("a numeric with a precision holds no Infinity".into()) } else { Ok(()) }
}

fn int_fits(value: Value<'_>, bytes: u8, signed: bool) -> Result<(), Refusal> {
    let number = match value {
        Value::Int(number) => i128::from(number),
        Value::UInt(number) => i128::from(number),
        _ => return Ok(()),
    };
    let bits = u32::from(bytes) * 8;
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    if (low..=high).contains(&number) { Ok(()) } else { Err(format!("the number is not within {low} and {high}")) }
}

/// Surplus zeros go, nothing else does.
fn decimal_fits(text: &str, limits: DecimalLimits) -> Result<&str, Refusal> {
    let (precision, scale) = (usize::from(limits.precision), usize::from(limits.scale));
    let digits = text.trim_start_matches(['-', '+']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.trim_start_matches('0').len() > precision.saturating_sub(scale) {
        return Err(format!("the number has more digits than {precision},{scale} holds"));
    }
    if fraction.len() <= scale {
        return Ok(text);
    }
    let significant = fraction.trim_end_matches('0').len();
    if significant > scale {
        return Err(format!("the number has {significant} decimals, the column {scale}: it would be rounded"));
    }
    let surplus = fraction.len() - scale + usize::from(scale == 0);
    Ok(&text[..text.len() - surplus])
}

fn text_fits(text: &str, ty: &ColumnType, mysql: bool) -> Result<(), Refusal> {
    if !mysql && text.as_bytes().contains(&0) {
        return Err("PostgreSQL holds no zero byte in text".into());
    }
    let over = |max: u32| text.len() > max as usize && text.chars().count() > max as usize;
    match ty {
        ColumnType::Char { chars } if text.ends_with(' ') => {
            Err(format!("char({chars}) would lose the spaces at the end"))
        }
        ColumnType::Char { chars } | ColumnType::Text { chars: Some(chars), .. } if over(*chars) => {
            Err(format!("{} characters into a column of at most {chars}", text.chars().count()))
        }
        ColumnType::Text { bytes: Some(max), .. } if text.len() as u64 > *max => {
            Err(format!("{} bytes of text into a column of at most {max}", text.len()))
        }
        ColumnType::Enum { labels } if !labels.iter().any(|label| label == text) => {
            Err("the text is none of the column's labels".into())
        }
        ColumnType::Set { labels } if !in_set(text, labels) => {
            Err("the text is not some of the column's labels, each once, in their order".into())
        }
        ColumnType::Inet { v6 } if !is_address(text, *v6) => {
            Err("the text is not an address as the column writes it".into())
        }
        _ => Ok(()),
    }
}

/// The server would put labels into their order, and drop what comes twice.
fn in_set(text: &str, labels: &[String]) -> bool {
    let mut rest = labels.iter();
    text.is_empty() || text.split(',').all(|part| rest.any(|label| label == part))
}

fn is_address(text: &str, v6: bool) -> bool {
    if !v6 {
        return text.parse::<Ipv4Addr>().is_ok_and(|address| address.to_string() == text);
    }
    let mut written = String::new();
    text.parse::<Ipv6Addr>().is_ok_and(|address| {
        write_inet6(address.octets(), &mut written);
        written == text
    })
}

/// A document's numbers as MySQL keeps them: integers of 64 bits, everything else doubles.
pub fn json_numbers_fit(text: &str) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let rest = &bytes[at..];
                let part = |b: &u8| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E');
                let end = at + rest.iter().position(|b| !part(b)).unwrap_or(rest.len());
                if !number_fits(&text[at..end]) {
                    return Err("a number is not exact in a JSON document of MySQL (64 bit integers, doubles)".into());
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Past the closing quote.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn number_fits(number: &str) -> bool {
    // As many digits every double has.
    let short = number.len() <= 15 && !number.contains(['e', 'E']);
    short
        || integer(number).is_some()
        || number.parse::<f64>().is_ok_and(|double| {
            double.is_finite() && scientific(ryu::Buffer::new().format_finite(double)) == scientific(number)
        })
}

/// Equal as documents: numbers by what they are, members in any order. Text that is no JSON
/// equals nothing.
pub fn json_eq(a: &str, b: &str) -> bool {
    fn eq(a: &serde_json::Value, b: &serde_json::Value) -> bool {
        use serde_json::Value::{Array, Number, Object};
        match (a, b) {
            (Number(a), Number(b)) => a == b || scientific(a.as_str()) == scientific(b.as_str()),
            (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| eq(a, b)),
            (Object(a), Object(b)) => {
                a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| eq(a, b)))
            }
            _ => a == b,
        }
    }
    let parse = serde_json::from_str::<serde_json::Value>;
    matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if eq(&a, &b))
}

/// Sign, digits without zeros at either end, and the power of ten behind them.
pub(super) fn scientific(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let negative = mantissa.starts_with('-');
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let kept = digits.trim_end_matches('0');
    if kept.trim_start_matches('0').is_empty() {
        return (negative, String::new(), 0);
    }
    let exponent = exponent.parse().unwrap_or(i64::MAX / 2);
    let behind = exponent - fraction.len() as i64 + (digits.len() - kept.len()) as i64;
    (negative, kept.trim_start_matches('0').to_owned(), behind)
}

fn date_fits(days: i32, mysql: bool) -> Result<(), Refusal> {
    match days {
        DATE_INFINITY | DATE_MINUS_INFINITY if mysql => return Err(no_infinity()),
        DATE_INFINITY | DATE_MINUS_INFINITY => return Ok(()),
        DATE_ZERO if mysql => return Ok(()),
        DATE_ZERO => return Err(no_zero()),
        days if !mysql && is_partial(days) => return Err(no_partial()),
        _ => {}
    }
    // 4713-11-24 BC and 5874897-12-31: the ends of PostgreSQL's date.
    let possible = if mysql {
        (1..=9999).contains(&civil_from_days(days).0)
    } else {
        (-2_440_588..=2_145_042_905).contains(&days)
    };
    if possible { Ok(()) } else { Err("the date is beyond what the column takes".into()) }
}

fn no_infinity() -> Refusal {
    "infinity does not exist in MySQL and MariaDB (the column's infinity and minus_infinity say what stands for it)"
        .into()
}

fn no_zero() -> Refusal {
    "the zero date 0000-00-00 does not exist in PostgreSQL (zero_date of its column in MySQL says what stands for it)"
        .into()
}

fn no_partial() -> Refusal {
    "dates such as 2024-00-10 and 2024-10-00 do not exist in PostgreSQL: complete it where it was written, and the row goes \
     on"
        .into()
}

fn instant_fits(micros: i64, digits: u8, mysql: bool) -> Result<(), Refusal> {
    match micros {
        INSTANT_INFINITY | INSTANT_MINUS_INFINITY if mysql => return Err(no_infinity()),
        INSTANT_INFINITY | INSTANT_MINUS_INFINITY => return Ok(()),
        INSTANT_ZERO if mysql => return Ok(()),
        INSTANT_ZERO => return Err(no_zero()),
        micros if !mysql && i32::try_from(micros.div_euclid(MICROS_PER_DAY)).is_ok_and(is_partial) => {
            return Err(no_partial());
        }
        _ => {}
    }
    // PostgreSQL's begins at 4713-11-24 BC and ends beyond our microseconds.
    let possible = if mysql {
        i32::try_from(micros.div_euclid(MICROS_PER_DAY)).is_ok_and(|days| (1..=9999).contains(&civil_from_days(days).0))
    } else {
        micros >= -210_866_803_200_000_000
    };
    if !possible {
        return Err("the date is beyond what the column takes".into());
    }
    digits_fit(micros, digits)
}

fn digits_fit(micros: i64, digits: u8) -> Result<(), Refusal> {
    let unit = 10i64.pow(6 - u32::from(digits.min(6)));
    if micros % unit == 0 {
        Ok(())
    } else {
        Err(format!("the time has more than the column's {digits} fraction digits"))
    }
}

/// `values = { active = "A", closed = "C" }`: one to one, both ways.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueMap {
    /// (canonical, in the column)
    pairs: Vec<(Mapped, Mapped)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Mapped {
    Text(String),
    Int(Value<'static>),
    Bool(bool),
}

impl Mapped {
    fn new(text: &str, kind: Kind) -> Option<Mapped> {
        match kind {
            Kind::Text => Some(Mapped::Text(text.to_owned())),
            Kind::Int => integer(text).map(Mapped::Int),
            Kind::Bool => match text {
                "true" | "1" => Some(Mapped::Bool(true)),
                "false" | "0" => Some(Mapped::Bool(false)),
                _ => None,
            },
            _ => None,
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Mapped::Text(text) => Value::Text(text),
            Mapped::Int(value) => *value,
            Mapped::Bool(flag) => Value::Bool(*flag),
        }
    }
}

impl ValueMap {
    /// `Err` names the text that is not of the kind.
    pub fn new(pairs: &[(String, String)], canonical: Kind, column: Kind) -> Result<ValueMap, String> {
        let mapped = |text: &String, kind: Kind| {
            Mapped::new(text, kind).ok_or_else(|| format!("value {text:?} is not of type {}", kind.name()))
        };
        let pair = |(from, to): &(String, String)| Ok((mapped(from, canonical)?, mapped(to, column)?));
        Ok(ValueMap { pairs: pairs.iter().map(pair).collect::<Result<_, String>>()? })
    }

    pub fn to_canonical(&self, value: Value<'_>) -> Result<Value<'_>, Refusal> {
        let found = self.pairs.iter().find(|(_, stored)| stored.value() == value);
        found
            .map(|(canonical, _)| canonical.value())
            .ok_or_else(|| "the column's value is not in the values map".into())
    }

    pub fn to_column(&self, value: Value<'_>) -> Result<Value<'_>, Refusal> {
        let found = self.pairs.iter().find(|(canonical, _)| canonical.value() == value);
        found.map(|(_, stored)| stored.value()).ok_or_else(|| "the value is not in the values map".into())
    }

    /// The values as the column holds them.
    pub fn stored(&self) -> impl Iterator<Item = Value<'_>> {
        self.pairs.iter().map(|(_, stored)| stored.value())
    }
}

#[cfg(test)]
mod tests;
