//! `format`: dates, times and datetimes that a system keeps as text.

use std::fmt::Write as _;

use super::transform::{Refusal, kind_of};
use crate::value::{Kind, MICROS_PER_DAY, Value, civil_from_days, days_from_civil};

/// A date, time or datetime kept as text. Every part has a fixed width, so that what is read
/// is written back byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    parts: Vec<Part>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(char),
    Year,
    /// Two digits: 69 to 99 are 19xx, 00 to 68 are 20xx.
    ShortYear,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Micros,
}

#[derive(Debug, Default)]
struct Parts {
    year: i32,
    month: u32,
    day: u32,
    /// Microseconds since midnight.
    time: i64,
}

impl Format {
    pub fn new(text: &str) -> Result<Format, String> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                parts.push(Part::Literal(c));
                continue;
            }
            match chars.next() {
                Some('Y') => parts.push(Part::Year),
                Some('y') => parts.push(Part::ShortYear),
                Some('m') => parts.push(Part::Month),
                Some('d') => parts.push(Part::Day),
                Some('H') => parts.push(Part::Hour),
                Some('M') => parts.push(Part::Minute),
                Some('S') => parts.push(Part::Second),
                Some('f') => parts.push(Part::Micros),
                Some('%') => parts.push(Part::Literal('%')),
                Some(other) => return Err(format!("has %{other}; known: %Y %y %m %d %H %M %S %f %%")),
                None => return Err("ends with a lone %".into()),
            }
        }
        let kind = kind_of_parts(&parts)?;
        Ok(Format { parts, kind })
    }

    /// Date, Time or DateTime, as [`Self::kind`] says.
    pub fn read<'a>(&self, text: &str) -> Result<Value<'a>, Refusal> {
        let wrong = || "the text does not have the binding's format".to_owned();
        let mut rest = text;
        let mut read = Parts::default();
        for part in &self.parts {
            let width = match part {
                Part::Literal(c) => {
                    rest = rest.strip_prefix(*c).ok_or_else(wrong)?;
                    continue;
                }
                Part::Year => 4,
                Part::Micros => 6,
                _ => 2,
            };
            let digits = rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
            let number: i64 = digits.parse().map_err(|_| wrong())?;
            rest = &rest[width..];
            let below = |limit: i64| if number < limit { Ok(number) } else { Err(wrong()) };
            match part {
                Part::Literal(_) => {}
                Part::Year => read.year = number as i32,
                Part::ShortYear => read.year = number as i32 + if number < 69 { 2000 } else { 1900 },
                Part::Month => read.month = number as u32,
                Part::Day => read.day = number as u32,
                Part::Hour => read.time += below(24)? * 3_600_000_000,
                Part::Minute => read.time += below(60)? * 60_000_000,
                Part::Second => read.time += below(60)? * 1_000_000,
                Part::Micros => read.time += number,
            }
        }
        if !rest.is_empty() {
            return Err(wrong());
        }
        if self.kind == Kind::Time {
            return Ok(Value::Time(read.time));
        }
        let days =
            days_from_civil(read.year, read.month, read.day).ok_or("the text names a day that does not exist")?;
        Ok(match self.kind {
            Kind::Date => Value::Date(days),
            _ => Value::DateTime(i64::from(days) * MICROS_PER_DAY + read.time),
        })
    }

    /// Into `out`, cleared. `value` is of [`Self::kind`].
    pub fn write<'a>(&self, value: Value<'_>, out: &'a mut Vec<u8>) -> Result<&'a str, Refusal> {
        let (days, time) = match value {
            Value::Date(days) => (days, 0),
            Value::Time(micros) => (0, micros),
            Value::DateTime(micros) => {
                let days = i32::try_from(micros.div_euclid(MICROS_PER_DAY)).map_err(|_| "the date is out of range")?;
                (days, micros.rem_euclid(MICROS_PER_DAY))
            }
            other => return Err(format!("{} has no date or time format", kind_of(other).name())),
        };
        if !(0..MICROS_PER_DAY).contains(&time) {
            return Err("the time is not within one day".into());
        }
        let (year, month, day) = civil_from_days(days);
        let (seconds, micros) = (time / 1_000_000, time % 1_000_000);
        let mut left = time; // what the format has not written must be zero
        let mut text = String::from_utf8(std::mem::take(out)).unwrap_or_default();
        text.clear();
        for part in &self.parts {
            let done = match part {
                Part::Literal(c) => {
                    text.push(*c);
                    Ok(())
                }
                Part::Year if !(0..=9999).contains(&year) => return Err("the year does not have four digits".into()),
                Part::Year => write!(text, "{year:04}"),
                Part::ShortYear if !(1969..=2068).contains(&year) => {
                    return Err("the year is not within 1969 and 2068, which %y can tell apart".into());
                }
                Part::ShortYear => write!(text, "{:02}", year % 100),
                Part::Month => write!(text, "{month:02}"),
                Part::Day => write!(text, "{day:02}"),
                Part::Hour => {
                    left -= seconds / 3600 * 3_600_000_000;
                    write!(text, "{:02}", seconds / 3600)
                }
                Part::Minute => {
                    left -= seconds / 60 % 60 * 60_000_000;
                    write!(text, "{:02}", seconds / 60 % 60)
                }
                Part::Second => {
                    left -= seconds % 60 * 1_000_000;
                    write!(text, "{:02}", seconds % 60)
                }
                Part::Micros => {
                    left -= micros;
                    write!(text, "{micros:06}")
                }
            };
            done.expect("writing to a string");
        }
        *out = text.into_bytes();
        match left {
            0 => Ok(std::str::from_utf8(out).expect("made of a string")),
            _ => Err("the time has parts that the binding's format leaves out".into()),
        }
    }
}

fn kind_of_parts(parts: &[Part]) -> Result<Kind, String> {
    let count = |wanted: &Part| parts.iter().filter(|part| *part == wanted).count();
    for part in [Part::Month, Part::Day, Part::Hour, Part::Minute, Part::Second, Part::Micros] {
        if count(&part) > 1 {
            return Err("names a part twice".into());
        }
    }
    let date = [count(&Part::Year) + count(&Part::ShortYear), count(&Part::Month), count(&Part::Day)];
    let time = [count(&Part::Hour), count(&Part::Minute), count(&Part::Second), count(&Part::Micros)];
    let has_time = match time {
        [0, 0, 0, 0] => false,
        [1, 1, 0, 0] | [1, 1, 1, _] => true,
        _ => return Err("needs %H and %M, then %S, then %f to be a time".into()),
    };
    match (date, has_time) {
        ([1, 1, 1], false) => Ok(Kind::Date),
        ([1, 1, 1], true) => Ok(Kind::DateTime),
        ([0, 0, 0], true) => Ok(Kind::Time),
        _ => Err("needs one year, %m and %d to be a date, %H and %M to be a time".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(format: &str, text: &str) -> Result<Value<'static>, Refusal> {
        Format::new(format).unwrap_or_else(|e| panic!("{format}: {e}")).read(text)
    }

    #[test]
    fn what_is_read_is_written_back_byte_for_byte() {
        for (format, text, value) in [
            ("%d/%m/%Y", "29/02/2024", Value::Date(19_782)),
            ("%Y%m%d", "19700101", Value::Date(0)),
            ("%d.%m.%y", "31.12.68", Value::Date(36_159)),
            ("%d.%m.%y", "01.01.69", Value::Date(-365)),
            ("%H:%M", "23:59", Value::Time(86_340_000_000)),
            ("%H%M%S.%f", "000001.000002", Value::Time(1_000_002)),
            ("%Y-%m-%dT%H:%M:%S", "1969-12-31T23:59:59", Value::DateTime(-1_000_000)),
            ("am %d. um %H Uhr %M (%m/%Y) 100%%", "am 01. um 02 Uhr 03 (01/1970) 100%", Value::DateTime(7_380_000_000)),
        ] {
            assert_eq!(read(format, text), Ok(value), "{format}");
            let mut out = b"stale".to_vec();
            assert_eq!(Format::new(format).unwrap().write(value, &mut out), Ok(text));
        }
    }

    #[test]
    fn what_would_not_come_back_the_same_is_refused() {
        for (format, text) in [
            ("%d/%m/%Y", "30/02/2024"),
            ("%d/%m/%Y", "1/2/2024"),
            ("%d/%m/%Y", "01/02/24"),
            ("%d/%m/%Y", "01/02/2024 "),
            ("%d/%m/%Y", "01-02-2024"),
            ("%d/%m/%Y", "+1/02/2024"),
            ("%d/%m/%Y", "00/00/0000"),
            ("%d/%m/%Y", ""),
            ("%H:%M", "24:00"),
            ("%H:%M:%S", "12:00:60"),
            ("%Y%m%d", "2024022ö"),
        ] {
            assert!(read(format, text).is_err(), "{format} {text}");
        }
        for (format, value) in [
            ("%d/%m/%Y", Value::Date(3_000_000)),
            ("%d/%m/%y", Value::Date(-366)),
            ("%Y-%m-%d %H:%M", Value::DateTime(1_000_000)),
            ("%Y-%m-%d %H:%M:%S", Value::DateTime(1)),
            ("%H:%M", Value::Time(MICROS_PER_DAY)),
            ("%H:%M", Value::Time(-60_000_000)),
        ] {
            assert!(Format::new(format).unwrap().write(value, &mut Vec::new()).is_err(), "{format} {value:?}");
        }
    }

    #[test]
    fn formats_that_name_no_value_are_refused() {
        for format in
            ["", "%d/%m", "%d/%m/%Y/%Y", "%Y-%m-%d %H", "%S", "%b %d %Y", "%d/%m/%Y %", "%H:%M.%f", "%d%d%m%Y"]
        {
            assert!(Format::new(format).is_err(), "{format}");
        }
    }

    proptest! {
        #[test]
        fn every_instant_of_four_digit_years_survives(micros in -62_135_596_800_000_000i64..253_402_300_800_000_000) {
            let format = Format::new("%f|%S|%M|%H|%d|%m|%Y").unwrap();
            let mut out = Vec::new();
            let text = format.write(Value::DateTime(micros), &mut out).unwrap();

            prop_assert_eq!(format.read(text), Ok(Value::DateTime(micros)));
        }

        #[test]
        fn whatever_is_read_is_written_the_same(text in "[0-9/]{8,11}") {
            let format = Format::new("%d/%m/%Y").unwrap();
            if let Ok(value) = format.read(&text) {
                let mut out = Vec::new();
                prop_assert_eq!(format.write(value, &mut out).unwrap(), text);
            }
        }
    }
}
