//! What stands for dates that another engine does not have: MySQL's `0000-00-00`, PostgreSQL's
//! `infinity` and `-infinity`.
//!
//! Without a word of the configuration such a value is carried where it exists, and quarantined
//! where it does not. A column's `zero_date`, `infinity` and `minus_infinity` name a stand-in:
//! in the column whose engine has the value, the stand-in is what the others see of it; in a
//! column whose engine lacks it, the stand-in is what is stored. Both ways one to one, so the
//! stand-in itself, where somebody writes it as a date of its own, is refused.

use super::transform::Refusal;
use crate::config::Engine;
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, DATE_ZERO, Datum, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO, Kind,
    MICROS_PER_DAY, Value, civil_from_days, days_from_civil,
};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Zero,
    Infinity,
    MinusInfinity,
}

impl Special {
    pub const ALL: [Special; 3] = [Special::Zero, Special::Infinity, Special::MinusInfinity];

    pub fn key(self) -> &'static str {
        match self {
            Special::Zero => "zero_date",
            Special::Infinity => "infinity",
            Special::MinusInfinity => "minus_infinity",
        }
    }

    fn of(value: Value<'_>) -> Option<Special> {
        match value {
            Value::Date(DATE_ZERO) | Value::DateTime(INSTANT_ZERO) | Value::Timestamp(INSTANT_ZERO) => {
                Some(Special::Zero)
            }
            Value::Date(DATE_INFINITY) | Value::DateTime(INSTANT_INFINITY) | Value::Timestamp(INSTANT_INFINITY) => {
                Some(Special::Infinity)
            }
            Value::Date(DATE_MINUS_INFINITY)
            | Value::DateTime(INSTANT_MINUS_INFINITY)
            | Value::Timestamp(INSTANT_MINUS_INFINITY) => Some(Special::MinusInfinity),
            _ => None,
        }
    }

    /// In the kind of `like`.
    fn value(self, like: Value<'_>) -> Value<'static> {
        let (days, micros) = match self {
            Special::Zero => (DATE_ZERO, INSTANT_ZERO),
            Special::Infinity => (DATE_INFINITY, INSTANT_INFINITY),
            Special::MinusInfinity => (DATE_MINUS_INFINITY, INSTANT_MINUS_INFINITY),
        };
        match like {
            Value::DateTime(_) => Value::DateTime(micros),
            Value::Timestamp(_) => Value::Timestamp(micros),
            _ => Value::Date(days),
        }
    }

    fn is_native(self, engine: Engine) -> bool {
        (self == Special::Zero) == (engine == Engine::Mysql)
    }
}

/// What stands for a special value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandIn {
    /// None: the value is carried as it is, to where it exists.
    Itself,
    Quarantine,
    Null,
    /// Days and microseconds of the day.
    At(i32, i64),
}

impl StandIn {
    /// `quarantine`, `null`, `9999-12-31` or `9999-12-31 23:59:59`.
    pub fn parse(text: &str) -> Option<StandIn> {
        match text {
            "quarantine" => return Some(StandIn::Quarantine),
            "null" => return Some(StandIn::Null),
            _ => {}
        }
        let (date, clock) = text.split_once(' ').unwrap_or((text, "00:00:00"));
        let [year, month, day] = numbers(date, '-', &[4, 2, 2])?;
        let [hour, minute, second] = numbers(clock, ':', &[2, 2, 2])?;
        let seconds = (hour * 60 + minute) * 60 + second;
        (hour < 24 && minute < 60 && second < 60)
            .then(|| days_from_civil(year as i32, month, day))
            .flatten()
            .map(|days| StandIn::At(days, i64::from(seconds) * 1_000_000))
    }

    /// As a value of the kind of `like`; `None` where there is none of it.
    fn value(self, like: Value<'_>) -> Option<Value<'static>> {
        let StandIn::At(days, micros) = self else { return None };
        let instant = i64::from(days) * MICROS_PER_DAY + micros;
        Some(match like {
            Value::DateTime(_) => Value::DateTime(instant),
            Value::Timestamp(_) => Value::Timestamp(instant),
            _ => Value::Date(days),
        })
    }
}

/// As [`StandIn::parse`] reads it.
impl std::fmt::Display for StandIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            StandIn::Itself => f.write_str("itself"),
            StandIn::Quarantine => f.write_str("quarantine"),
            StandIn::Null => f.write_str("null"),
            StandIn::At(days, micros) => {
                let ((year, month, day), seconds) = (civil_from_days(days), micros / 1_000_000);
                let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
                write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
            }
        }
    }
}

fn numbers<const N: usize>(text: &str, between: char, widths: &[usize; N]) -> Option<[u32; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(between);
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next().filter(|p| p.len() == *width && p.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// The policies of one column, in the order of [`Special::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dates(pub [StandIn; 3]);

impl Dates {
    fn of(&self, special: Special) -> StandIn {
        self.0[special as usize]
    }

    /// The keys as the file has them.
    pub fn toml(&self) -> Vec<String> {
        let said = Special::ALL.into_iter().zip(self.0).filter(|(_, stand_in)| *stand_in != StandIn::Itself);
        said.map(|(special, stand_in)| format!("{} = \"{stand_in}\"", special.key())).collect()
    }

    pub fn has_null(&self) -> bool {
        self.0.contains(&StandIn::Null)
    }

    fn stood_for_by(&self, value: Value<'_>) -> Option<Special> {
        Special::ALL.into_iter().find(|special| self.of(*special).value(value) == Some(value))
    }

    /// The stand-ins that the column itself is to hold.
    pub fn stored(&self, kind: Kind, engine: Engine) -> impl Iterator<Item = (Special, Value<'static>)> {
        let like = zero(kind);
        let stored = move |special: Special| Some((special, self.of(special).value(like)?));
        Special::ALL.into_iter().filter(move |special| !special.is_native(engine)).filter_map(stored)
    }

    /// A value of the column as the others see it.
    pub fn to_canonical<'a>(&self, value: Value<'a>, engine: Engine) -> Result<Datum<'a>, Refusal> {
        if let Some(special) = Special::of(value) {
            return match self.of(special) {
                StandIn::Itself => Ok(Datum::Value(value)),
                StandIn::Quarantine => Err(format!("{} is set to quarantine it", special.key())),
                StandIn::Null => Ok(Datum::Null),
                StandIn::At(..) => Ok(self.of(special).value(value).map_or(Datum::Null, Datum::Value)),
            };
        }
        if let Some(special) = self.stood_for_by(value) {
            if special.is_native(engine) {
                return Err(format!("the date is what {} has others see in place of it", special.key()));
            }
            return Ok(Datum::Value(special.value(value)));
        }
        Ok(Datum::Value(value))
    }

    /// A canonical value as the column stores it.
    pub fn to_column<'a>(&self, value: Value<'a>, engine: Engine) -> Result<Datum<'a>, Refusal> {
        if let Some(special) = Special::of(value) {
            return match self.of(special) {
                StandIn::Itself => Ok(Datum::Value(value)),
                StandIn::Quarantine => Err(format!("{} is set to quarantine it", special.key())),
                StandIn::Null => Ok(Datum::Null),
                // The others see the stand-in, so this comes from where it has none.
                StandIn::At(..) if special.is_native(engine) => Ok(Datum::Value(value)),
                StandIn::At(..) => Ok(self.of(special).value(value).map_or(Datum::Null, Datum::Value)),
            };
        }
        if let Some(special) = self.stood_for_by(value) {
            if special.is_native(engine) {
                return Ok(Datum::Value(special.value(value)));
            }
            return Err(format!("the date is what {} stores in place of it", special.key()));
        }
        Ok(Datum::Value(value))
    }

    /// NULL from elsewhere into a column that takes none, and whose zero date is NULL to others.
    pub fn null(&self, kind: Kind, engine: Engine) -> Option<Value<'static>> {
        (engine == Engine::Mysql && self.of(Special::Zero) == StandIn::Null).then(|| zero(kind))
    }
}

fn zero(kind: Kind) -> Value<'static> {
    match kind {
        Kind::DateTime => Value::DateTime(INSTANT_ZERO),
        Kind::Timestamp => Value::Timestamp(INSTANT_ZERO),
        _ => Value::Date(DATE_ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MY: Engine = Engine::Mysql;
    const PG: Engine = Engine::Postgres;

    fn dates(zero: &str, infinity: &str, minus_infinity: &str) -> Dates {
        Dates([zero, infinity, minus_infinity].map(|text| match text {
            "" => StandIn::Itself,
            text => StandIn::parse(text).unwrap_or_else(|| panic!("{text}")),
        }))
    }

    #[test]
    fn a_stand_in_is_printed_as_it_may_be_typed() {
        for text in ["quarantine", "null", "9999-12-31", "0001-01-01 23:59:59"] {
            let stand_in = StandIn::parse(text).expect(text);
            assert_eq!(StandIn::parse(&stand_in.to_string()), Some(stand_in), "{text}");
        }
        assert_eq!(
            dates("null", "9999-12-31", "").toml(),
            ["zero_date = \"null\"", "infinity = \"9999-12-31 00:00:00\""]
        );
    }

    #[test]
    fn a_stand_in_is_read_and_written_one_to_one() {
        let policy = dates("1000-01-01", "9999-12-31 23:59:59", "");
        let end = Value::DateTime((2_932_896 * 86_400 + 86_399) * 1_000_000);
        let thousand = Value::Date(days_from_civil(1000, 1, 1).expect("a day"));

        // MySQL has the zero date, and stores a date for infinity.
        for (column, canonical) in [
            (Value::Date(DATE_ZERO), thousand),
            (end, Value::DateTime(INSTANT_INFINITY)),
            (Value::Date(7), Value::Date(7)),
        ] {
            assert_eq!(policy.to_canonical(column, MY), Ok(Datum::Value(canonical)));
            assert_eq!(policy.to_column(canonical, MY), Ok(Datum::Value(column)));
        }
        // PostgreSQL the other way round.
        assert_eq!(policy.to_canonical(Value::DateTime(INSTANT_INFINITY), PG), Ok(Datum::Value(end)));
        assert_eq!(policy.to_column(Value::Date(DATE_ZERO), PG), Ok(Datum::Value(thousand)));
        // What somebody writes as a date of its own would not come back as such.
        assert!(policy.to_canonical(thousand, MY).is_err());
        assert!(policy.to_column(end, MY).is_err());
    }

    #[test]
    fn null_and_quarantine_are_said_and_without_a_word_values_stay() {
        let policy = dates("null", "quarantine", "");

        assert_eq!(policy.to_canonical(Value::Date(DATE_ZERO), MY), Ok(Datum::Null));
        assert_eq!(policy.null(Kind::DateTime, MY), Some(Value::DateTime(INSTANT_ZERO)));
        assert!(policy.to_canonical(Value::Date(DATE_INFINITY), PG).is_err());
        assert!(policy.to_column(Value::Date(DATE_INFINITY), MY).is_err());
        let minus = Value::Timestamp(INSTANT_MINUS_INFINITY);
        assert_eq!(policy.to_canonical(minus, PG), Ok(Datum::Value(minus)));
    }

    #[test]
    fn a_stand_in_is_a_date_that_exists() {
        for text in ["", "2023-02-29", "99-12-31", "9999-12-31T00:00:00", "9999-12-31 24:00:00", "infinity"] {
            assert_eq!(StandIn::parse(text), None, "{text}");
        }
    }
}
