//! Values as people type them, by the kind that they are to be: in filters and in commands. What
//! commands print of a value is read back as that value.

use super::format::Format;
use super::transform::{integer, uuid_from_text};
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, DATE_ZERO, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO, Kind,
    MICROS_PER_DAY, Value, is_special_decimal,
};

/// `None` where the text is not of the kind. Bytes are made in `scratch`.
pub fn typed<'a>(text: &'a str, kind: Kind, scratch: &'a mut Vec<u8>) -> Option<Value<'a>> {
    Some(match kind {
        Kind::Bool => match text {
            "1" | "true" | "t" => Value::Bool(true),
            "0" | "false" | "f" => Value::Bool(false),
            _ => return None,
        },
        Kind::Int => integer(text)?,
        Kind::Decimal => Value::Decimal(is_decimal(text).then_some(text)?),
        Kind::Float32 => Value::Float32(text.parse().ok()?),
        Kind::Float64 => Value::Float64(text.parse().ok()?),
        Kind::Text => Value::Text(text),
        Kind::Bytes => {
            *scratch = hex(text.strip_prefix("0x")?)?;
            Value::Bytes(scratch)
        }
        Kind::Uuid => Value::Uuid(uuid_from_text(text).ok()?),
        Kind::Date => Value::Date(match text {
            "infinity" => DATE_INFINITY,
            "-infinity" => DATE_MINUS_INFINITY,
            "0000-00-00" => DATE_ZERO,
            text => date(text)?,
        }),
        Kind::Time => Value::Time(time(text)?),
        Kind::DateTime => Value::DateTime(special(text).or_else(|| date_time(text))?),
        Kind::Timestamp => Value::Timestamp(match special(text) {
            Some(special) => special,
            None => {
                let (text, offset) = zone(text)?;
                date_time(text)?.checked_sub(offset)?
            }
        }),
        Kind::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
            Value::Json(text)
        }
        Kind::Bits => Value::Bits(text.bytes().all(|b| matches!(b, b'0' | b'1')).then_some(text)?),
        Kind::Array => Value::Array(text.ends_with('}').then_some(text)?),
    })
}

fn is_decimal(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_digit() || b == b'.';
    let digits = text.trim_start_matches('-');
    let numeric = !digits.is_empty() && digits.bytes().all(plain) && text.len() - digits.len() <= 1;
    numeric || is_special_decimal(text)
}

pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    digits.filter(|d| d.len() % 2 == 0).map(|d| d.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect())
}

fn special(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(INSTANT_INFINITY),
        "-infinity" => Some(INSTANT_MINUS_INFINITY),
        "0000-00-00T00:00:00" | "0000-00-00 00:00:00" => Some(INSTANT_ZERO),
        _ => None,
    }
}

fn date(text: &str) -> Option<i32> {
    match Format::new("%Y-%m-%d").ok()?.read(text).ok()? {
        Value::Date(days) => Some(days),
        _ => None,
    }
}

/// `12:30`, `12:30:59`, `-838:59:59.25`: hours as far as MySQL's TIME has them.
fn time(text: &str) -> Option<i64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = clock.split(':');
    let mut part = |digits: std::ops::RangeInclusive<usize>, below: i64| -> Option<i64> {
        let text = parts.next()?;
        let number: i64 = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??;
        (digits.contains(&text.len()) && number < below).then_some(number)
    };
    let (hours, minutes) = (part(2..=3, 839)?, part(2..=2, 60)?);
    let seconds = if clock.matches(':').count() == 1 && fraction == "0" { 0 } else { part(2..=2, 60)? };
    if parts.next().is_some()
        || fraction.is_empty()
        || fraction.len() > 6
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let micros = fraction.parse::<i64>().ok()? * 10i64.pow(6 - fraction.len() as u32);
    let micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros;
    Some(if negative { -micros } else { micros })
}

/// `2024-02-29`, `2024-02-29 12:30`, `2024-02-29T12:30:59.25`
fn date_time(text: &str) -> Option<i64> {
    let day = i64::from(date(text.get(..10)?)?) * MICROS_PER_DAY;
    match text.get(10..)? {
        "" => Some(day),
        rest => {
            let time = time(rest.strip_prefix([' ', 'T'])?).filter(|time| (0..MICROS_PER_DAY).contains(time))?;
            Some(day + time)
        }
    }
}

/// The text before its zone, and the zone's microseconds; UTC where it names none.
fn zone(text: &str) -> Option<(&str, i64)> {
    if let Some(text) = text.strip_suffix('Z') {
        return Some((text.trim_end(), 0));
    }
    let Some(at) = text.rfind(['+', '-']).filter(|at| *at > 10) else { return Some((text, 0)) };
    let zone = &text[at + 1..];
    let zone = if zone.len() == 2 { format!("{zone}:00") } else { zone.to_owned() };
    let micros = time(&zone)?;
    Some((text[..at].trim_end(), if text[at..].starts_with('-') { -micros } else { micros }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::text;

    #[test]
    fn what_is_printed_of_a_value_is_read_back_as_it() {
        let values = [
            Value::Bool(true),
            Value::Int(-7),
            Value::UInt(u64::MAX),
            Value::Decimal("-1.50"),
            Value::Decimal("NaN"),
            Value::Float32(0.1),
            Value::Float64(1e300),
            Value::Text(" it's "),
            Value::Bytes(&[0, 255]),
            Value::Date(19_000),
            Value::Date(DATE_ZERO),
            Value::Date(DATE_INFINITY),
            Value::Time(-1),
            Value::Time(838 * 3_600_000_000 + 59),
            Value::DateTime(-1),
            Value::DateTime(INSTANT_ZERO),
            Value::Timestamp(1),
            Value::Timestamp(INSTANT_MINUS_INFINITY),
            Value::Uuid([1; 16]),
            Value::Json("{\"a\": [1]}"),
            Value::Bits("0101"),
            Value::Array("[0:1]={1,NULL}"),
        ];
        for value in values {
            let (shown, mut scratch) = (text(value), Vec::new());
            let kind = crate::normalize::transform::kind_of(value);
            assert_eq!(typed(&shown, kind, &mut scratch), Some(value), "{shown}");
        }
    }

    #[test]
    fn what_is_of_another_kind_is_not_read() {
        for (text, kind) in [
            ("yes", Kind::Bool),
            ("1.5", Kind::Int),
            ("1e5", Kind::Decimal),
            ("ff", Kind::Bytes),
            ("0xf", Kind::Bytes),
            ("2024-02-30", Kind::Date),
            ("24:00:00", Kind::DateTime),
            ("2024-02-01 24:00", Kind::DateTime),
            ("12:60", Kind::Time),
            ("{", Kind::Json),
            ("012", Kind::Bits),
        ] {
            assert_eq!(typed(text, kind, &mut Vec::new()), None, "{text}");
        }
    }
}
