//! Values of PostgreSQL columns in binary form: arrays as statement parameters, single values
//! as read back. No text detour where the binary form is exact and simpler.
//!
//! Decimal, text, JSON and enums travel as text and are cast in the statement, to the column's
//! type *without* its length: an explicit cast to varchar(3) cuts silently, an assignment to
//! such a column raises.

use crate::catalog::{Column, ColumnType};
use crate::error::{Error, Result};
use crate::value::{
    DATE_INFINITY, DATE_MINUS_INFINITY, DATE_ZERO, Datum, INSTANT_INFINITY, INSTANT_MINUS_INFINITY, INSTANT_ZERO,
    Value, is_partial,
};

/// PostgreSQL counts from 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * crate::value::MICROS_PER_DAY;

/// How a column's values travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Uuid,
    Bytea,
    Text,
}

impl Wire {
    pub fn of(column: &Column) -> Result<Wire> {
        Ok(match &column.ty {
            ColumnType::Bool => Wire::Bool,
            ColumnType::Int { bytes: 1 | 2, .. } => Wire::Int2,
            ColumnType::Int { bytes: 3 | 4, .. } => Wire::Int4,
            ColumnType::Int { .. } => Wire::Int8,
            ColumnType::Float32 => Wire::Float4,
            ColumnType::Float64 => Wire::Float8,
            ColumnType::Date => Wire::Date,
            ColumnType::Time { .. } => Wire::Time,
            ColumnType::DateTime { .. } => Wire::Timestamp,
            ColumnType::Timestamp { .. } => Wire::Timestamptz,
            ColumnType::Uuid => Wire::Uuid,
            ColumnType::Binary { .. } | ColumnType::Bytes { .. } => Wire::Bytea,
            ColumnType::Decimal { .. }
            | ColumnType::Char { .. }
            | ColumnType::Text { .. }
            | ColumnType::Json
            | ColumnType::Enum { .. }
            | ColumnType::Bits { .. }
            | ColumnType::Array { .. }
            | ColumnType::Verbatim => Wire::Text,
            ColumnType::Set { .. }
            | ColumnType::Year
            | ColumnType::Inet { .. }
            | ColumnType::Geometry
            | ColumnType::Unsupported => {
                return Err(Error::stop(
                    format!("column {:?} has the type {}, which cannot be carried yet", column.name, column.type_name),
                    "leave the column out of the binding",
                ));
            }
        })
    }

    /// Of the parameter's elements.
    pub fn sql_type(self) -> &'static str {
        match self {
            Wire::Bool => "boolean",
            Wire::Int2 => "smallint",
            Wire::Int4 => "integer",
            Wire::Int8 => "bigint",
            Wire::Float4 => "real",
            Wire::Float8 => "double precision",
            Wire::Date => "date",
            Wire::Time => "time",
            Wire::Timestamp => "timestamp",
            Wire::Timestamptz => "timestamptz",
            Wire::Uuid => "uuid",
            Wire::Bytea => "bytea",
            Wire::Text => "text",
        }
    }

    fn element_oid(self) -> u32 {
        match self {
            Wire::Bool => 16,
            Wire::Bytea => 17,
            Wire::Int8 => 20,
            Wire::Int2 => 21,
            Wire::Int4 => 23,
            Wire::Text => 25,
            Wire::Float4 => 700,
            Wire::Float8 => 701,
            Wire::Date => 1082,
            Wire::Time => 1083,
            Wire::Timestamp => 1114,
            Wire::Timestamptz => 1184,
            Wire::Uuid => 2950,
        }
    }
}

/// What an element is cast to before it meets the column; `None` where it already fits.
pub fn cast(column: &Column) -> Option<&str> {
    match &column.ty {
        ColumnType::Decimal { .. } => Some("numeric"),
        ColumnType::Char { .. } => Some("bpchar"),
        ColumnType::Text { .. } if matches!(&*column.type_name, "bpchar" | "character") => Some("bpchar"),
        ColumnType::Json => Some(if column.type_name == "json" { "json" } else { "jsonb" }),
        ColumnType::Enum { .. } | ColumnType::Verbatim | ColumnType::Array { .. } => Some(&column.type_name),
        ColumnType::Bits { .. } => Some("varbit"),
        _ => None,
    }
}

pub(super) const REASON_HEAD: &str = "anechoic: ";
pub(super) const REASON_TAIL: &str = ", and would be altered";

/// By the type's output function, as in the log: its cast to text may be another (inet).
fn written(expression: &str) -> String {
    format!("pg_catalog.format('%s', {expression})")
}

/// The element as the column takes it. Types that PostgreSQL alone has read many texts as one
/// value (`10.0.0.1/32` is `10.0.0.1`), round, or cut to their length: what would be written
/// back otherwise than it came is refused with an error that shows none of it.
pub fn assigned(column: &Column, element: &str) -> String {
    let Some(ty) = cast(column) else { return element.to_owned() };
    let same = match &column.ty {
        ColumnType::Verbatim => format!("{} = {element}", written(&format!("{element}::{ty}"))),
        ColumnType::Array { element: of } => match &**of {
            ColumnType::Decimal { limits: None } | ColumnType::Json => return format!("{element}::{ty}"),
            // 1.5 is 1.50.
            ColumnType::Decimal { .. } => format!("{element}::{ty} = {element}::numeric[]"),
            _ => format!("{} = {element}", written(&format!("{element}::{ty}"))),
        },
        _ => return format!("{element}::{ty}"),
    };
    let why = format!("{REASON_HEAD}the value is not as {ty} writes it{REASON_TAIL}").replace('\'', "''");
    // The text is no number, so that the cast fails with it; `left` keeps it from being cast
    // before there is a row.
    let fails = format!("('{why}' || left({element}, 0))::integer::text");
    format!("(CASE WHEN {element} IS NULL OR {same} THEN {element} ELSE {fails} END)::{ty}")
}

/// One parameter: a one-dimensional array in binary format, written element by element.
#[derive(Clone)]
pub struct Array {
    wire: Wire,
    count: i32,
    has_null: bool,
    elements: Vec<u8>,
}

/// The driver logs parameters at debug level: values must not show.
impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", self.wire.sql_type(), self.count)
    }
}

impl Array {
    pub fn new(wire: Wire) -> Self {
        Array { wire, count: 0, has_null: false, elements: Vec::new() }
    }

    pub fn bytes(&self) -> usize {
        self.elements.len()
    }

    pub fn push(&mut self, column: &Column, datum: Datum<'_>) -> Result<()> {
        self.count += 1;
        let value = match datum {
            Datum::Value(value) => value,
            Datum::Null => {
                self.has_null = true;
                self.elements.extend_from_slice(&(-1i32).to_be_bytes());
                return Ok(());
            }
            Datum::Added(difference) => Value::Decimal(difference),
            Datum::NotSent => return Err(refused(column, "was not sent")),
        };
        let start = self.elements.len();
        self.elements.extend_from_slice(&[0; 4]);
        encode(self.wire, column, value, &mut self.elements)?;
        let len = i32::try_from(self.elements.len() - start - 4)
            .map_err(|_| refused(column, "is longer than PostgreSQL takes"))?;
        self.elements[start..start + 4].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }
}

impl tokio_postgres::types::ToSql for Array {
    fn to_sql(
        &self,
        _: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        for number in [1, i32::from(self.has_null), self.wire.element_oid() as i32, self.count, 1] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.elements);
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        ty: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}

fn refused(column: &Column, why: &str) -> Error {
    Error::data(format!("the value for column {:?} ({}) {why}", column.name, column.type_name))
}

pub(super) fn encode(wire: Wire, column: &Column, value: Value<'_>, out: &mut Vec<u8>) -> Result<()> {
    let out_of_range = || refused(column, "is out of range");
    match (wire, value) {
        (Wire::Bool, Value::Bool(v)) => out.push(u8::from(v)),
        (Wire::Int2, Value::Int(v)) => {
            out.extend_from_slice(&i16::try_from(v).map_err(|_| out_of_range())?.to_be_bytes());
        }
        (Wire::Int4, Value::Int(v)) => {
            out.extend_from_slice(&i32::try_from(v).map_err(|_| out_of_range())?.to_be_bytes());
        }
        (Wire::Int8, Value::Int(v)) => out.extend_from_slice(&v.to_be_bytes()),
        (Wire::Int2 | Wire::Int4 | Wire::Int8, Value::UInt(_)) => return Err(out_of_range()),
        (Wire::Float4, Value::Float32(v)) => out.extend_from_slice(&v.to_bits().to_be_bytes()),
        (Wire::Float8, Value::Float64(v)) => out.extend_from_slice(&v.to_bits().to_be_bytes()),
        (Wire::Date, Value::Date(v @ (DATE_INFINITY | DATE_MINUS_INFINITY))) => out.extend_from_slice(&v.to_be_bytes()),
        (Wire::Date, Value::Date(DATE_ZERO)) => return Err(out_of_range()),
        (Wire::Date, Value::Date(days)) if is_partial(days) => return Err(out_of_range()),
        (Wire::Date, Value::Date(v)) => {
            // The largest and smallest are PostgreSQL's infinities.
            let days = v.checked_sub(EPOCH_DAYS).filter(|d| *d != i32::MIN).ok_or_else(out_of_range)?;
            out.extend_from_slice(&days.to_be_bytes());
        }
        (Wire::Time, Value::Time(v)) if (0..=crate::value::MICROS_PER_DAY).contains(&v) => {
            out.extend_from_slice(&v.to_be_bytes());
        }
        (Wire::Time, Value::Time(_)) => return Err(out_of_range()),
        (Wire::Timestamp, Value::DateTime(v @ (INSTANT_INFINITY | INSTANT_MINUS_INFINITY)))
        | (Wire::Timestamptz, Value::Timestamp(v @ (INSTANT_INFINITY | INSTANT_MINUS_INFINITY))) => {
            out.extend_from_slice(&v.to_be_bytes());
        }
        (Wire::Timestamp, Value::DateTime(INSTANT_ZERO)) | (Wire::Timestamptz, Value::Timestamp(INSTANT_ZERO)) => {
            return Err(out_of_range());
        }
        (Wire::Timestamp, Value::DateTime(v)) | (Wire::Timestamptz, Value::Timestamp(v)) => {
            let micros = v.checked_sub(EPOCH_MICROS).filter(|m| *m != i64::MIN).ok_or_else(out_of_range)?;
            out.extend_from_slice(&micros.to_be_bytes());
        }
        (Wire::Uuid, Value::Uuid(v)) => out.extend_from_slice(&v),
        (Wire::Bytea, Value::Bytes(v)) => out.extend_from_slice(v),
        (Wire::Text, Value::Text(v) | Value::Decimal(v) | Value::Json(v) | Value::Bits(v) | Value::Array(v)) => {
            out.extend_from_slice(v.as_bytes());
        }
        (wire, _) => return Err(refused(column, &format!("is not of the kind that {} takes", wire.sql_type()))),
    }
    Ok(())
}

/// How a column is selected so that [`decode`] can read it.
pub fn select(column: &Column, expression: &str) -> Result<String> {
    Ok(match (Wire::of(column)?, &column.ty) {
        // NULL has no text; a composite of NULLs has, though it IS NULL.
        (_, ColumnType::Verbatim) => {
            format!("CASE WHEN pg_catalog.num_nulls({expression}) = 0 THEN {} END", written(expression))
        }
        (Wire::Text, _) => format!("{expression}::text"),
        _ => expression.to_owned(),
    })
}

/// A value in binary form, exactly as capture would have yielded it.
pub fn decode<'a>(column: &Column, raw: Option<&'a [u8]>) -> Result<Datum<'a>> {
    fn fixed<const N: usize>(column: &Column, raw: &[u8]) -> Result<[u8; N]> {
        raw.try_into().map_err(|_| {
            Error::stop(
                format!(
                    "column {:?} came back in {} bytes instead of {N}: its type has changed",
                    column.name,
                    raw.len()
                ),
                "restart the agent, so that it reads the catalog again",
            )
        })
    }
    let Some(raw) = raw else { return Ok(Datum::Null) };
    let beyond = || refused(column, "is beyond the year 294246");
    let instant =
        |wire, micros| if wire == Wire::Timestamp { Value::DateTime(micros) } else { Value::Timestamp(micros) };
    let text = || std::str::from_utf8(raw).map_err(|_| refused(column, "is not valid UTF-8"));
    let value = match Wire::of(column)? {
        Wire::Bool => Value::Bool(fixed::<1>(column, raw)? != [0]),
        Wire::Int2 => Value::Int(i16::from_be_bytes(fixed(column, raw)?).into()),
        Wire::Int4 => Value::Int(i32::from_be_bytes(fixed(column, raw)?).into()),
        Wire::Int8 => Value::Int(i64::from_be_bytes(fixed(column, raw)?)),
        Wire::Float4 => Value::Float32(f32::from_bits(u32::from_be_bytes(fixed(column, raw)?))),
        Wire::Float8 => Value::Float64(f64::from_bits(u64::from_be_bytes(fixed(column, raw)?))),
        Wire::Date => match i32::from_be_bytes(fixed(column, raw)?) {
            infinite @ (i32::MAX | i32::MIN) => Value::Date(infinite),
            days => Value::Date(days.checked_add(EPOCH_DAYS).ok_or_else(beyond)?),
        },
        Wire::Time => Value::Time(i64::from_be_bytes(fixed(column, raw)?)),
        wire @ (Wire::Timestamp | Wire::Timestamptz) => match i64::from_be_bytes(fixed(column, raw)?) {
            infinite @ (i64::MAX | i64::MIN) => instant(wire, infinite),
            micros => instant(
                wire,
                micros.checked_add(EPOCH_MICROS).filter(|micros| *micros != INSTANT_INFINITY).ok_or_else(beyond)?,
            ),
        },
        Wire::Uuid => Value::Uuid(fixed(column, raw)?),
        Wire::Bytea => Value::Bytes(raw),
        Wire::Text => match column.ty {
            ColumnType::Decimal { .. } => Value::Decimal(text()?),
            ColumnType::Bits { .. } => Value::Bits(text()?),
            ColumnType::Array { .. } => Value::Array(text()?),
            ColumnType::Json => Value::Json(text()?),
            _ => Value::Text(text()?),
        },
    };
    Ok(Datum::Value(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::column;

    #[test]
    fn each_type_reads_back_what_was_encoded() {
        let cases = [
            (ColumnType::Bool, Value::Bool(true)),
            (ColumnType::Int { bytes: 2, signed: true }, Value::Int(-32_768)),
            (ColumnType::Int { bytes: 4, signed: true }, Value::Int(i32::MAX.into())),
            (ColumnType::Int { bytes: 8, signed: true }, Value::Int(i64::MIN)),
            (ColumnType::Decimal { limits: None }, Value::Decimal("-12.50")),
            (ColumnType::Float32, Value::Float32(0.1)),
            (ColumnType::Float64, Value::Float64(-0.0)),
            (ColumnType::Text { chars: None, bytes: None }, Value::Text("😀 {\"}")),
            (ColumnType::Bytes { bytes: None }, Value::Bytes(&[0, 255, 92])),
            (ColumnType::Date, Value::Date(-719_162)),
            (ColumnType::Time { digits: 6 }, Value::Time(86_400_000_000)),
            (ColumnType::DateTime { digits: 6 }, Value::DateTime(-1)),
            (ColumnType::Timestamp { digits: 6 }, Value::Timestamp(1_700_000_000_123_456)),
            (ColumnType::Uuid, Value::Uuid([7; 16])),
            (ColumnType::Json, Value::Json("{\"a\": 1.0}")),
            (ColumnType::Decimal { limits: None }, Value::Decimal("NaN")),
            (ColumnType::Date, Value::Date(DATE_INFINITY)),
            (ColumnType::DateTime { digits: 6 }, Value::DateTime(INSTANT_MINUS_INFINITY)),
            (ColumnType::Timestamp { digits: 6 }, Value::Timestamp(INSTANT_INFINITY)),
            (ColumnType::Bits { length: None, varying: true }, Value::Bits("01")),
            (ColumnType::Array { element: Box::new(ColumnType::Bool) }, Value::Array("{t}")),
            (ColumnType::Verbatim, Value::Text("10.0.0.0/8")),
        ];
        for (ty, value) in cases {
            let column = column("c", ty, "t");
            let mut array = Array::new(Wire::of(&column).unwrap());
            array.push(&column, Datum::Value(value)).unwrap();

            assert_eq!(decode(&column, Some(&array.elements[4..])).unwrap(), Datum::Value(value));
        }
    }

    #[test]
    fn what_a_column_cannot_hold_is_refused_before_it_is_sent() {
        let small = column("n", ColumnType::Int { bytes: 2, signed: true }, "smallint");
        let time = column("t", ColumnType::Time { digits: 6 }, "time");
        let day = column("d", ColumnType::Date, "date");
        for (column, value) in [
            (&small, Value::Int(32_768)),
            (&small, Value::UInt(u64::MAX)),
            (&small, Value::Text("1")),
            (&time, Value::Time(-1)),
            (&day, Value::Date(DATE_ZERO)),
        ] {
            let error = Array::new(Wire::of(column).unwrap()).push(column, Datum::Value(value)).unwrap_err();
            assert_eq!(error.recovery, crate::error::Recovery::Quarantine);
        }
    }

    #[test]
    fn a_parameter_shows_no_values() {
        let text = column("c", ColumnType::Text { chars: None, bytes: None }, "text");
        let mut array = Array::new(Wire::Text);
        array.push(&text, Datum::Value(Value::Text("secret"))).unwrap();

        assert_eq!(format!("{array:?}"), "text[1]");
    }
}
