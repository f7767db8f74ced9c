//! Values of MySQL and MariaDB columns as the binary protocol returns them: numbers as numbers
//! (a FLOAT as text would lose digits), times as fields.

use mysql_async::Value as Raw;

use crate::catalog::{Column, ColumnType};
use crate::error::{Error, Result};
use crate::value::{DATE_ZERO, Datum, INSTANT_ZERO, MICROS_PER_DAY, Value, days_from_mysql};

/// A value exactly as capture would have yielded it.
pub fn decode<'a>(column: &Column, raw: &'a Raw) -> Result<Datum<'a>> {
    let refused =
        |why: &str| Error::data(format!("the value of column {:?} ({}) {why}", column.name, column.type_name));
    let unexpected = || {
        Error::stop(
            format!("column {:?} ({}) came back as another type than the catalog says", column.name, column.type_name),
            "restart the agent, so that it reads the catalog again",
        )
    };
    let no_date = || refused("is no date that other systems can hold");
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| refused("is not valid UTF-8"));
    let value = match (&column.ty, raw) {
        (_, Raw::NULL) => return Ok(Datum::Null),
        (ColumnType::Bool, Raw::Int(v)) => Value::Bool(*v != 0),
        (ColumnType::Int { .. } | ColumnType::Year, Raw::Int(v)) => Value::Int(*v),
        (ColumnType::Int { .. } | ColumnType::Year, Raw::UInt(v)) => {
            i64::try_from(*v).map_or(Value::UInt(*v), Value::Int)
        }
        (ColumnType::Decimal { .. }, Raw::Bytes(v)) => Value::Decimal(text(v)?),
        (ColumnType::Float32, Raw::Float(v)) => Value::Float32(*v),
        (ColumnType::Float64, Raw::Double(v)) => Value::Float64(*v),
        (ColumnType::Char { .. }, Raw::Bytes(v)) => Value::Text(text(v)?.trim_end_matches(' ')),
        (ColumnType::Text { .. } | ColumnType::Enum { .. } | ColumnType::Set { .. }, Raw::Bytes(v)) => {
            Value::Text(text(v)?)
        }
        (ColumnType::Inet { .. }, Raw::Bytes(v)) => Value::Text(text(v)?),
        // Selected as digits: see `statement::selected`.
        (ColumnType::Bits { .. }, Raw::Bytes(v)) => Value::Bits(text(v)?),
        (ColumnType::Json, Raw::Bytes(v)) => Value::Json(text(v)?),
        (ColumnType::Binary { .. } | ColumnType::Bytes { .. } | ColumnType::Geometry, Raw::Bytes(v)) => Value::Bytes(v),
        (ColumnType::Uuid, Raw::Bytes(v)) => Value::Uuid(uuid(text(v)?).ok_or_else(unexpected)?),
        (ColumnType::Date, Raw::Date(0, 0, 0, ..)) => Value::Date(DATE_ZERO),
        (ColumnType::Date, Raw::Date(year, month, day, ..)) => {
            Value::Date(days_from_mysql((*year).into(), (*month).into(), (*day).into()).ok_or_else(no_date)?)
        }
        (ColumnType::DateTime { .. }, Raw::Date(..)) => Value::DateTime(instant(raw).ok_or_else(no_date)?),
        (ColumnType::Timestamp { .. }, Raw::Date(..)) => Value::Timestamp(instant(raw).ok_or_else(no_date)?),
        (ColumnType::Time { .. }, Raw::Time(negative, days, hours, minutes, seconds, micros)) => {
            let hours = i64::from(*days) * 24 + i64::from(*hours);
            let seconds = (hours * 60 + i64::from(*minutes)) * 60 + i64::from(*seconds);
            let total = seconds * 1_000_000 + i64::from(*micros);
            Value::Time(if *negative { -total } else { total })
        }
        _ => return Err(unexpected()),
    };
    Ok(Datum::Value(value))
}

fn instant(raw: &Raw) -> Option<i64> {
    let Raw::Date(year, month, day, hour, minute, second, micros) = raw else { return None };
    if *raw == Raw::Date(0, 0, 0, 0, 0, 0, 0) {
        return Some(INSTANT_ZERO);
    }
    let days = days_from_mysql((*year).into(), (*month).into(), (*day).into())?;
    let seconds = (i64::from(*hour) * 60 + i64::from(*minute)) * 60 + i64::from(*second);
    Some(i64::from(days) * MICROS_PER_DAY + seconds * 1_000_000 + i64::from(*micros))
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::column;

    #[test]
    fn times_and_numbers_keep_every_digit() {
        let cases = [
            (ColumnType::Int { bytes: 8, signed: false }, Raw::UInt(u64::MAX), Value::UInt(u64::MAX)),
            (ColumnType::Int { bytes: 8, signed: false }, Raw::UInt(7), Value::Int(7)),
            (ColumnType::Float32, Raw::Float(0.1), Value::Float32(0.1)),
            (ColumnType::Char { chars: 4 }, Raw::Bytes(b"a ".to_vec()), Value::Text("a")),
            (ColumnType::Date, Raw::Date(1, 1, 1, 0, 0, 0, 0), Value::Date(-719_162)),
            (ColumnType::DateTime { digits: 6 }, Raw::Date(1969, 12, 31, 23, 59, 59, 999_999), Value::DateTime(-1)),
            (ColumnType::Time { digits: 6 }, Raw::Time(true, 1, 0, 0, 0, 1), Value::Time(-86_400_000_001)),
            (ColumnType::Uuid, Raw::Bytes(b"01010101-0101-0101-0101-010101010101".to_vec()), Value::Uuid([1; 16])),
        ];
        for (ty, raw, value) in &cases {
            assert_eq!(decode(&column("c", ty.clone(), "t"), raw).unwrap(), Datum::Value(*value));
        }
    }

    #[test]
    fn zero_dates_and_partial_ones_are_values_and_those_of_the_year_0_are_refused_by_name() {
        let zero = Raw::Date(0, 0, 0, 0, 0, 0, 0);
        let digits = ColumnType::DateTime { digits: 0 };
        assert_eq!(
            decode(&column("d", ColumnType::Date, "date"), &zero).unwrap(),
            Datum::Value(Value::Date(DATE_ZERO))
        );
        let read = decode(&column("d", digits, "datetime"), &zero).unwrap();
        assert_eq!(read, Datum::Value(Value::DateTime(INSTANT_ZERO)));

        let partial = Raw::Date(2024, 0, 10, 12, 0, 0, 0);
        let read = decode(&column("d", ColumnType::Date, "date"), &partial).unwrap();
        assert_eq!(read, Datum::Value(Value::Date(days_from_mysql(2024, 0, 10).unwrap())));
        let read = decode(&column("d", ColumnType::DateTime { digits: 0 }, "datetime"), &partial).unwrap();
        let noon = i64::from(days_from_mysql(2024, 0, 10).unwrap()) * MICROS_PER_DAY + MICROS_PER_DAY / 2;
        assert_eq!(read, Datum::Value(Value::DateTime(noon)));

        let partial = Raw::Date(0, 0, 10, 0, 0, 0, 0);
        let error = decode(&column("joined", ColumnType::Date, "date"), &partial).unwrap_err();
        assert_eq!(error.recovery, crate::error::Recovery::Quarantine);
        assert!(error.message.contains("joined"));
    }
}
