//! Every pair of column type and canonical kind, and the limits of each column.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::catalog::Column;
use crate::error::Recovery;
use crate::normalize::binding::{BoundColumn, Transform};
use crate::value::{Datum, Row, days_from_civil};

const MY: Engine = Engine::Mysql;
const PG: Engine = Engine::Postgres;
const TEXT: ColumnType = ColumnType::Text { chars: None, bytes: None };
const BYTES: ColumnType = ColumnType::Bytes { bytes: None };
const INT: ColumnType = ColumnType::Int { bytes: 8, signed: true };
const NUMERIC: ColumnType = ColumnType::Decimal { limits: None };
const MICROS: u8 = 6;

fn bound(engine: Engine, ty: ColumnType, kind: Kind, transform: Transform) -> BoundColumn {
    let column = Column::new("col", ty, "type");
    BoundColumn { field: 0, kind, column, transform, engine, label: Arc::from("field \"f\" of e (column \"col\")") }
}

/// canonical → column, as text for comparison; the reason where refused.
fn stored(column: &BoundColumn, value: Value<'_>) -> Result<String, String> {
    match column.to_column(Datum::Value(value), &mut Vec::new()) {
        Ok(Datum::Value(value)) => Ok(format!("{value:?}")),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert_eq!(error.recovery, Recovery::Quarantine);
            assert!(error.message.starts_with("field \"f\" of e (column \"col\"): "), "{error}");
            Err(error.message)
        }
    }
}

fn canonical(column: &BoundColumn, value: Value<'_>) -> Result<String, String> {
    let mut out = Vec::new();
    match column.to_canonical(Datum::Value(value), &mut out) {
        Ok(()) => Ok(format!("{:?}", Row(&out).get(0).value().expect("a value"))),
        Err(error) => {
            assert!(out.is_empty(), "nothing is appended where a value is refused");
            Err(error.message)
        }
    }
}

/// Both ways, for each pair that `resolve` allows.
#[test]
fn each_pair_of_types_is_exact_both_ways() {
    let uuid = Value::Uuid(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x00\x11\x22\x33\x44\x55\x66\x77");
    for (ty, kind, in_column, in_journal) in [
        (ColumnType::Bool, Kind::Bool, Value::Bool(true), Value::Bool(true)),
        (ColumnType::Int { bytes: 1, signed: true }, Kind::Bool, Value::Int(1), Value::Bool(true)),
        (INT, Kind::Int, Value::Int(i64::MIN), Value::Int(i64::MIN)),
        (ColumnType::Int { bytes: 8, signed: false }, Kind::Int, Value::UInt(u64::MAX), Value::UInt(u64::MAX)),
        (INT, Kind::Decimal, Value::Int(-7), Value::Decimal("-7")),
        (
            ColumnType::Int { bytes: 8, signed: false },
            Kind::Decimal,
            Value::UInt(u64::MAX),
            Value::Decimal("18446744073709551615"),
        ),
        (NUMERIC, Kind::Decimal, Value::Decimal("-0.0010"), Value::Decimal("-0.0010")),
        (ColumnType::Float32, Kind::Float32, Value::Float32(0.1), Value::Float32(0.1)),
        (ColumnType::Float32, Kind::Float64, Value::Float32(0.1), Value::Float64(f64::from(0.1f32))),
        (ColumnType::Float64, Kind::Float64, Value::Float64(-0.0), Value::Float64(-0.0)),
        (TEXT, Kind::Text, Value::Text("é😀"), Value::Text("é😀")),
        (ColumnType::Char { chars: 4 }, Kind::Text, Value::Text("ab"), Value::Text("ab")),
        (ColumnType::Enum { labels: vec!["a".into()] }, Kind::Text, Value::Text("a"), Value::Text("a")),
        (BYTES, Kind::Bytes, Value::Bytes(&[0, 255]), Value::Bytes(&[0, 255])),
        (ColumnType::Binary { bytes: 2 }, Kind::Bytes, Value::Bytes(&[1, 0]), Value::Bytes(&[1, 0])),
        (ColumnType::Date, Kind::Date, Value::Date(-719_162), Value::Date(-719_162)),
        (ColumnType::Time { digits: MICROS }, Kind::Time, Value::Time(1), Value::Time(1)),
        (ColumnType::DateTime { digits: MICROS }, Kind::DateTime, Value::DateTime(1), Value::DateTime(1)),
        (ColumnType::DateTime { digits: MICROS }, Kind::Timestamp, Value::DateTime(1), Value::Timestamp(1)),
        (
            ColumnType::Timestamp { digits: MICROS },
            Kind::Timestamp,
            Value::Timestamp(1_000_001),
            Value::Timestamp(1_000_001),
        ),
        (ColumnType::Uuid, Kind::Uuid, uuid, uuid),
        (TEXT, Kind::Uuid, Value::Text("01234567-89ab-cdef-0011-223344556677"), uuid),
        (
            ColumnType::Binary { bytes: 16 },
            Kind::Uuid,
            Value::Bytes(b"\x01\x23\x45\x67\x89\xab\xcd\xef\x00\x11\x22\x33\x44\x55\x66\x77"),
            uuid,
        ),
        (ColumnType::Json, Kind::Json, Value::Json("{\"a\":1.0}"), Value::Json("{\"a\":1.0}")),
        (TEXT, Kind::Json, Value::Text("[1e400]"), Value::Json("[1e400]")),
        (bits(1, false), Kind::Bool, Value::Bits("1"), Value::Bool(true)),
        (bits(1, false), Kind::Bool, Value::Bits("0"), Value::Bool(false)),
        (TEXT, Kind::Bits, Value::Text("0101"), Value::Bits("0101")),
        (TEXT, Kind::Array, Value::Text("[0:0]={1}"), Value::Array("[0:0]={1}")),
        (ColumnType::Verbatim, Kind::Text, Value::Text("10.0.0.0/8"), Value::Text("10.0.0.0/8")),
        (ColumnType::Year, Kind::Int, Value::Int(0), Value::Int(0)),
    ] {
        for engine in [PG, MY] {
            let column = bound(engine, ty.clone(), kind, Transform::None);
            assert_eq!(canonical(&column, in_column), Ok(format!("{in_journal:?}")), "{ty:?} → {kind:?}");
            assert_eq!(stored(&column, in_journal), Ok(format!("{in_column:?}")), "{kind:?} → {ty:?}");
        }
    }
}

#[test]
fn null_and_not_sent_stay_apart() {
    let mut column = bound(PG, INT, Kind::Decimal, Transform::None);
    for datum in [Datum::Null, Datum::NotSent] {
        let mut out = Vec::new();
        column.to_canonical(datum, &mut out).unwrap();
        assert_eq!(Row(&out).get(0), datum);
        assert_eq!(column.to_column(datum, &mut Vec::new()).unwrap(), datum);
    }

    column.column.nullable = false;
    assert!(column.to_column(Datum::Null, &mut Vec::new()).is_err());
    assert!(column.to_column(Datum::NotSent, &mut Vec::new()).is_ok());
}

fn decimal(precision: u16, scale: u16) -> ColumnType {
    ColumnType::Decimal { limits: Some(DecimalLimits { precision, scale }) }
}

fn bits(length: u32, varying: bool) -> ColumnType {
    ColumnType::Bits { length: Some(length), varying }
}

fn set() -> ColumnType {
    ColumnType::Set { labels: vec!["a".into(), "b".into(), "c".into()] }
}

/// (engine, column, canonical kind, value, what the column gets or a part of the reason)
#[test]
fn a_column_takes_what_it_can_hold_and_refuses_the_rest() {
    let day = |y, m, d| i64::from(days_from_civil(y, m, d).unwrap()) * MICROS_PER_DAY;
    let text = |chars, bytes| ColumnType::Text { chars, bytes };
    let tiny = ColumnType::Int { bytes: 1, signed: true };
    let cases: Vec<(Engine, ColumnType, Value<'static>, Result<&str, &str>)> = vec![
        (MY, tiny.clone(), Value::Int(127), Ok("Int(127)")),
        (MY, tiny, Value::Int(128), Err("within -128 and 127")),
        (MY, ColumnType::Int { bytes: 3, signed: false }, Value::Int(16_777_215), Ok("Int(16777215)")),
        (MY, ColumnType::Int { bytes: 3, signed: false }, Value::Int(-1), Err("within 0 and 16777215")),
        (PG, INT, Value::UInt(1 << 63), Err("within")),
        (PG, decimal(4, 2), Value::Decimal("12.34"), Ok("Decimal(\"12.34\")")),
        (PG, decimal(4, 2), Value::Decimal("012.3400"), Ok("Decimal(\"012.34\")")),
        (PG, decimal(4, 2), Value::Decimal("12.345"), Err("rounded")),
        (PG, decimal(4, 2), Value::Decimal("123.4"), Err("more digits")),
        (PG, decimal(4, 0), Value::Decimal("-12.00"), Ok("Decimal(\"-12\")")),
        (PG, decimal(2, 2), Value::Decimal("0.99"), Ok("Decimal(\"0.99\")")),
        (MY, ColumnType::Float64, Value::Float64(f64::NAN), Err("do not exist in MySQL")),
        (MY, ColumnType::Float32, Value::Float32(f32::INFINITY), Err("do not exist in MySQL")),
        (PG, ColumnType::Float64, Value::Float64(f64::INFINITY), Ok("Float64(inf)")),
        (PG, text(Some(3), None), Value::Text("äöü"), Ok("Text(\"äöü\")")),
        (PG, text(Some(3), None), Value::Text("äöüß"), Err("4 characters into a column of at most 3")),
        (MY, text(None, Some(5)), Value::Text("äöü"), Err("6 bytes")),
        (PG, TEXT, Value::Text("a\0b"), Err("no zero byte")),
        (MY, TEXT, Value::Text("a\0b"), Ok("Text(\"a\\0b\")")),
        (MY, ColumnType::Char { chars: 3 }, Value::Text("a "), Err("lose the spaces")),
        (MY, ColumnType::Char { chars: 3 }, Value::Text("abcd"), Err("4 characters")),
        (MY, ColumnType::Enum { labels: vec!["new".into()] }, Value::Text("New"), Err("labels")),
        (MY, ColumnType::Binary { bytes: 2 }, Value::Bytes(&[1]), Err("exactly 2")),
        (MY, ColumnType::Bytes { bytes: Some(2) }, Value::Bytes(&[1, 2, 3]), Err("at most 2")),
        (MY, ColumnType::Date, Value::Date(days_from_civil(0, 12, 31).unwrap()), Err("beyond")),
        (PG, ColumnType::Date, Value::Date(days_from_civil(0, 12, 31).unwrap()), Ok("Date(-719163)")),
        (PG, ColumnType::Time { digits: 6 }, Value::Time(-1), Err("beyond")),
        (PG, ColumnType::Time { digits: 6 }, Value::Time(MICROS_PER_DAY), Ok("Time(86400000000)")),
        (MY, ColumnType::Time { digits: 6 }, Value::Time(-3_020_399_000_000), Ok("Time(-3020399000000)")),
        (MY, ColumnType::Time { digits: 6 }, Value::Time(3_020_399_000_001), Err("beyond")),
        (MY, ColumnType::DateTime { digits: 0 }, Value::DateTime(1_500_000), Err("0 fraction digits")),
        (MY, ColumnType::DateTime { digits: 1 }, Value::DateTime(1_500_000), Ok("DateTime(1500000)")),
        (PG, ColumnType::DateTime { digits: 3 }, Value::DateTime(-1), Err("3 fraction digits")),
        (MY, ColumnType::DateTime { digits: 6 }, Value::DateTime(day(10_000, 1, 1)), Err("beyond")),
        (MY, ColumnType::Timestamp { digits: 6 }, Value::Timestamp(999_999), Err("beyond")),
        (MY, ColumnType::Timestamp { digits: 6 }, Value::Timestamp(day(2107, 1, 1)), Err("beyond")),
        (PG, ColumnType::Timestamp { digits: 6 }, Value::Timestamp(i64::MAX), Ok("Timestamp(9223372036854775807)")),
        (PG, ColumnType::Timestamp { digits: 0 }, Value::Timestamp(i64::MIN), Ok("Timestamp(-9223372036854775808)")),
        (MY, ColumnType::Timestamp { digits: 6 }, Value::Timestamp(i64::MAX), Err("infinity does not exist")),
        (MY, ColumnType::DateTime { digits: 6 }, Value::DateTime(i64::MIN), Err("infinity does not exist")),
        (MY, ColumnType::Date, Value::Date(DATE_INFINITY), Err("infinity does not exist")),
        (PG, ColumnType::Date, Value::Date(DATE_MINUS_INFINITY), Ok("Date(-2147483648)")),
        (PG, ColumnType::Date, Value::Date(DATE_ZERO), Err("zero date")),
        (MY, ColumnType::Date, Value::Date(DATE_ZERO), Ok("Date(-2147483647)")),
        (PG, ColumnType::DateTime { digits: 0 }, Value::DateTime(INSTANT_ZERO), Err("zero date")),
        (MY, ColumnType::DateTime { digits: 0 }, Value::DateTime(INSTANT_ZERO), Ok("DateTime(-9223372036854775807)")),
        (
            MY,
            ColumnType::Timestamp { digits: 0 },
            Value::Timestamp(INSTANT_ZERO),
            Ok("Timestamp(-9223372036854775807)"),
        ),
        (PG, NUMERIC, Value::Decimal("-Infinity"), Ok("Decimal(\"-Infinity\")")),
        (PG, decimal(4, 2), Value::Decimal("NaN"), Ok("Decimal(\"NaN\")")),
        (PG, decimal(4, 2), Value::Decimal("Infinity"), Err("holds no Infinity")),
        (MY, decimal(4, 2), Value::Decimal("NaN"), Err("do not exist")),
        (MY, ColumnType::Year, Value::Int(0), Ok("Int(0)")),
        (MY, ColumnType::Year, Value::Int(2155), Ok("Int(2155)")),
        (MY, ColumnType::Year, Value::Int(70), Err("no year")),
        (MY, ColumnType::Year, Value::UInt(1 << 63), Err("no year")),
        (MY, bits(4, false), Value::Bits("0101"), Ok("Bits(\"0101\")")),
        (MY, bits(4, false), Value::Bits("101"), Err("3 binary digits into a column of 4")),
        (PG, bits(4, true), Value::Bits("101"), Ok("Bits(\"101\")")),
        (PG, bits(4, true), Value::Bits("10101"), Err("5 binary digits")),
        (MY, set(), Value::Text("a,c"), Ok("Text(\"a,c\")")),
        (MY, set(), Value::Text(""), Ok("Text(\"\")")),
        (MY, set(), Value::Text("c,a"), Err("in their order")),
        (MY, set(), Value::Text("a,a"), Err("each once")),
        (MY, set(), Value::Text("A"), Err("labels")),
        (MY, ColumnType::Inet { v6: true }, Value::Text("2001:db8::1"), Ok("Text(\"2001:db8::1\")")),
        (MY, ColumnType::Inet { v6: true }, Value::Text("2001:DB8::1"), Err("not an address")),
        (MY, ColumnType::Inet { v6: false }, Value::Text("10.0.0.01"), Err("not an address")),
    ];
    for (engine, ty, value, expected) in cases {
        let column = bound(engine, ty.clone(), kind_of(value), Transform::None);
        match (stored(&column, value), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{ty:?}"),
            (Err(got), Err(part)) => assert!(got.contains(part), "{ty:?}: {got}"),
            (got, _) => panic!("{ty:?} {value:?}: {got:?}"),
        }
    }
}

#[test]
fn what_has_no_exact_form_is_refused_without_showing_it() {
    for (ty, kind, value) in [
        (INT, Kind::Bool, Value::Int(42)),
        (TEXT, Kind::Uuid, Value::Text("hunter2")),
        (TEXT, Kind::Uuid, Value::Text("01234567-89ab-cdef-0011-22334455667ö")),
        (TEXT, Kind::Uuid, Value::Text("0123-4567-9ab-cdef-0011-223344556677")),
        (BYTES, Kind::Uuid, Value::Bytes(b"hunter2")),
        (TEXT, Kind::Json, Value::Text("{hunter2}")),
        (TEXT, Kind::Json, Value::Text("1 2")),
        (TEXT, Kind::Bits, Value::Text("hunter2")),
        (TEXT, Kind::Array, Value::Text("hunter2")),
        (bits(2, false), Kind::Bool, Value::Bits("10")),
        (NUMERIC, Kind::Int, Value::Decimal("NaN")),
    ] {
        let reason = canonical(&bound(PG, ty, kind, Transform::None), value).unwrap_err();
        assert!(!reason.contains("hunter2") && !reason.contains("42"), "{reason}");
    }
    for (ty, value) in [
        (INT, Value::Decimal("1.5")),
        (INT, Value::Decimal("18446744073709551616")),
        (ColumnType::Float32, Value::Float64(0.1)),
        (ColumnType::Float32, Value::Float64(1e300)),
    ] {
        assert!(stored(&bound(PG, ty, kind_of(value), Transform::None), value).is_err());
    }
}

#[test]
fn padding_is_no_part_of_a_char() {
    let column = bound(PG, ColumnType::Char { chars: 5 }, Kind::Text, Transform::None);
    assert_eq!(canonical(&column, Value::Text("ab   ")), Ok("Text(\"ab\")".into()));
}

#[test]
fn values_maps_are_read_both_ways_and_nothing_else_passes() {
    let pairs = [("active".to_owned(), "1".to_owned()), ("closed".to_owned(), "2".to_owned())];
    let map = ValueMap::new(&pairs, Kind::Text, Kind::Int).unwrap();
    let column = bound(MY, ColumnType::Int { bytes: 1, signed: true }, Kind::Text, Transform::Values(map));

    assert_eq!(canonical(&column, Value::Int(2)), Ok("Text(\"closed\")".into()));
    assert_eq!(stored(&column, Value::Text("active")), Ok("Int(1)".into()));
    assert!(canonical(&column, Value::Int(3)).unwrap_err().contains("not in the values map"));
    assert!(stored(&column, Value::Text("new")).unwrap_err().contains("not in the values map"));

    let yes_no = [("true".to_owned(), "Y".to_owned()), ("false".to_owned(), "N".to_owned())];
    let map = ValueMap::new(&yes_no, Kind::Bool, Kind::Text).unwrap();
    let column = bound(MY, ColumnType::Char { chars: 1 }, Kind::Bool, Transform::Values(map));
    assert_eq!(canonical(&column, Value::Text("N")), Ok("Bool(false)".into()));
    assert_eq!(stored(&column, Value::Bool(true)), Ok("Text(\"Y\")".into()));
    assert!(ValueMap::new(&yes_no, Kind::Int, Kind::Text).is_err());
}

#[test]
fn a_format_makes_dates_of_text() {
    let format = crate::normalize::format::Format::new("%d/%m/%Y").unwrap();
    let column = bound(MY, ColumnType::Char { chars: 10 }, Kind::Date, Transform::Format(format.clone()));
    assert_eq!(canonical(&column, Value::Text("29/02/2024")), Ok("Date(19782)".into()));
    assert_eq!(stored(&column, Value::Date(19_782)), Ok("Text(\"29/02/2024\")".into()));
    assert!(canonical(&column, Value::Text("2024-02-29")).is_err());

    let short = bound(MY, ColumnType::Char { chars: 8 }, Kind::Date, Transform::Format(format));
    assert!(stored(&short, Value::Date(19_782)).unwrap_err().contains("10 characters"));
}

fn round_trip(ty: &ColumnType, kind: Kind, value: Value<'_>) {
    for engine in [PG, MY] {
        let column = bound(engine, ty.clone(), kind, Transform::None);
        let mut scratch = Vec::new();
        let stored = column.to_column(Datum::Value(value), &mut scratch).expect("fits");
        let mut out = Vec::new();
        column.to_canonical(stored, &mut out).expect("comes back");
        assert_eq!(Row(&out).get(0), Datum::Value(value), "{ty:?}");
    }
}

proptest! {
    #[test]
    fn integers_survive(number: i64) {
        let text = number.to_string();
        round_trip(&INT, Kind::Int, Value::Int(number));
        round_trip(&INT, Kind::Decimal, Value::Decimal(&text));
    }

    #[test]
    fn floats_survive(number in proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO) {
        round_trip(&ColumnType::Float32, Kind::Float64, Value::Float64(number.into()));
    }

    #[test]
    fn uuids_survive(uuid: [u8; 16]) {
        round_trip(&ColumnType::Char { chars: 36 }, Kind::Uuid, Value::Uuid(uuid));
        round_trip(&ColumnType::Binary { bytes: 16 }, Kind::Uuid, Value::Uuid(uuid));
    }

    #[test]
    fn text_survives(text in "[^\\x00]{0,40}") {
        round_trip(&TEXT, Kind::Text, Value::Text(&text));
    }

    /// What fits is the same number; what does not is never cut.
    #[test]
    fn decimals_never_change(text in "-?[0-9]{1,12}(\\.[0-9]{1,8})?", precision in 1u16..12, scale in 0u16..6) {
        let limits = DecimalLimits { precision: precision.max(scale), scale };
        let ty = ColumnType::Decimal { limits: Some(limits) };
        if let Ok(Value::Decimal(stored)) = fits(Value::Decimal(&text), &ty, PG) {
            prop_assert!(crate::value::decimal_eq(stored, &text));
            let fraction = stored.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            prop_assert!(fraction <= usize::from(scale) && !stored.ends_with('.'));
        }
    }
}

/// MySQL would round them without a word, and send the rounded document back to nobody.
#[test]
fn numbers_in_json_that_mysql_would_round_are_refused() {
    let exact = [
        r#"{"a": [1, -2.50, 18446744073709551615, -9223372036854775808], "12345678901234567890123": "0.12345678901234567890123"}"#,
        "[1.7976931348623157e308, 5e-324, 0.30000000000000004, -1.5E+10, 1e22, 100000000000000000000000, 0.000, -0.0e5]",
        r#"["\\\"", 1]"#,
        "0.1",
    ];
    let rounded = [
        "12345678901234567890123",
        "[0.12345678901234567890123]",
        "1e400",
        "-9223372036854775809",
        "0.30000000000000003",
    ];

    for text in exact {
        assert_eq!(json_numbers_fit(text), Ok(()), "{text}");
    }
    for text in rounded {
        assert!(json_numbers_fit(text).is_err(), "{text}");
    }
}
