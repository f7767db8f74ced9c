//! A live quarantine record, for people: the key, the reason, and both images in words.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::mask::{MASKED, is_masked};
use crate::change::{Changes, Quarantined};
use crate::http::status::timestamp;
use crate::position::Seq;
use crate::schema::EntitySchema;
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, DATE_ZERO, Datum, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO,
    MICROS_PER_DAY, Row, Value, civil_from_days,
};

/// Field → value; `None` is NULL. What the change does not carry is left out.
pub type Image = BTreeMap<String, Option<String>>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub system: String,
    pub entity: String,
    /// The key's values.
    pub key: String,
    pub op: String,
    pub before: Option<Image>,
    /// What the system does not hold.
    pub after: Option<Image>,
    pub held_seq: Seq,
    pub last_seq: Seq,
    pub reason: String,
    pub code: String,
    pub attempts: u32,
    pub at: Option<String>,
}

/// Which of those in quarantine are meant. Absent: whatever it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeldSpec {
    pub system: Option<String>,
    pub entity: Option<String>,
    /// As [`Held`] shows it.
    pub key: Option<String>,
}

impl HeldSpec {
    /// No one record is meant.
    pub fn all(&self) -> bool {
        self.key.is_none()
    }

    pub fn fits(&self, record: &Quarantined) -> bool {
        let shown = Held::from(record);
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        same(&self.system, &shown.system) && same(&self.entity, &shown.entity) && same(&self.key, &shown.key)
    }
}

/// What a person wants of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfHeld {
    Retry,
    Drop,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treated {
    /// Tried again, or given up.
    pub done: u64,
    /// Left as they are: being tried just now, or changed meanwhile.
    pub left: u64,
}

impl From<&Quarantined> for Held {
    fn from(record: &Quarantined) -> Self {
        let change = Changes::new(&record.change).next().expect("a quarantine record holds one change");
        let entity = record.schema.entity(change.entity);
        let key = change.image().iter().take(entity.key_len).filter_map(Datum::value).map(text);
        Held {
            system: record.system.to_string(),
            entity: entity.name.clone(),
            key: key.collect::<Vec<_>>().join(", "),
            op: change.op.name().into(),
            before: change.before.map(|row| image(entity, row)),
            after: change.after.map(|row| image(entity, row)),
            held_seq: record.held_seq,
            last_seq: record.last_seq,
            reason: record.reason.clone(),
            code: record.code.clone(),
            attempts: record.attempts,
            at: timestamp(record.at),
        }
    }
}

/// The fields that a row carries; differences as `add -5`.
pub fn image(entity: &EntitySchema, row: Row<'_>) -> Image {
    let shown = |field: &str, datum: Datum<'_>| match datum {
        Datum::NotSent => None,
        Datum::Null => Some(None),
        _ if is_masked(&entity.name, field) => Some(Some(MASKED.to_owned())),
        Datum::Value(value) => Some(Some(text(value))),
        Datum::Added(difference) => Some(Some(format!("add {difference}"))),
    };
    let fields = entity.fields.iter().zip(row.iter());
    fields.filter_map(|(field, datum)| Some((field.name.clone(), shown(&field.name, datum)?))).collect()
}

/// A value as people read it; never parsed again.
pub fn text(value: Value<'_>) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::UInt(value) => value.to_string(),
        Value::Decimal(value) | Value::Text(value) | Value::Json(value) | Value::Bits(value) | Value::Array(value) => {
            value.to_owned()
        }
        Value::Float32(value) => value.to_string(),
        Value::Float64(value) => value.to_string(),
        Value::Bytes(value) => hex("0x", value),
        Value::Date(DATE_ZERO) => "0000-00-00".into(),
        Value::Date(DATE_INFINITY) | Value::DateTime(INSTANT_INFINITY) | Value::Timestamp(INSTANT_INFINITY) => {
            "infinity".into()
        }
        Value::Date(DATE_MINUS_INFINITY)
        | Value::DateTime(INSTANT_MINUS_INFINITY)
        | Value::Timestamp(INSTANT_MINUS_INFINITY) => "-infinity".into(),
        Value::DateTime(INSTANT_ZERO) | Value::Timestamp(INSTANT_ZERO) => "0000-00-00T00:00:00".into(),
        Value::Date(days) => date(days.into()),
        Value::Time(micros) => clock(micros),
        Value::DateTime(micros) => instant(micros),
        Value::Timestamp(micros) => format!("{}Z", instant(micros)),
        Value::Uuid(value) => {
            let digits = hex("", &value);
            [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
        }
    }
}

fn hex(before: &str, bytes: &[u8]) -> String {
    bytes.iter().fold(before.to_owned(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}"); // a String takes everything
        out
    })
}

fn date(days: i64) -> String {
    match i32::try_from(days) {
        Ok(days) => {
            let (year, month, day) = civil_from_days(days);
            format!("{year:04}-{month:02}-{day:02}")
        }
        Err(_) => format!("day {days} of 1970"),
    }
}

fn clock(micros: i64) -> String {
    let (sign, micros) = (if micros < 0 { "-" } else { "" }, micros.unsigned_abs());
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    format!("{sign}{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn instant(micros: i64) -> String {
    format!("{}T{}", date(micros.div_euclid(MICROS_PER_DAY)), clock(micros.rem_euclid(MICROS_PER_DAY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_readable() {
        let shown = [
            Value::Bytes(&[0, 255]),
            Value::Date(-719_162),
            Value::Time(-1),
            Value::DateTime(-1),
            Value::Timestamp(1),
            Value::Uuid([1; 16]),
            Value::Text("Ada"),
            Value::Date(DATE_ZERO),
            Value::Timestamp(INSTANT_INFINITY),
        ]
        .map(text);

        assert_eq!(
            shown,
            [
                "0x00ff",
                "0001-01-01",
                "-00:00:00.000001",
                "1969-12-31T23:59:59.999999",
                "1970-01-01T00:00:00.000001Z",
                "01010101-0101-0101-0101-010101010101",
                "Ada",
                "0000-00-00",
                "infinity",
            ]
        );
    }
}
