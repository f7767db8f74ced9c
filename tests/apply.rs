//! The targets on real servers: what is written is what is read, by the entity's key only, and
//! nobody but the holder of lock and marker writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anechoic::apply::mysql::MyTarget;
use anechoic::apply::postgres::PgTarget;
use anechoic::apply::{TableRows, Target, TargetSpec, Write, is_fenced};
use anechoic::catalog::{ColumnType, Table, TableName};
use anechoic::config::Engine;
use anechoic::error::{Error, Recovery, Result};
use anechoic::marker::Marker;
use anechoic::normalize::binding::{Binding, BoundColumn, Role, Transform};
use anechoic::schema::{EntityId, SystemId};
use anechoic::value::{Datum, Row, Value, write_datum};

use crate::support::servers::{Db, Kind, Server};
use crate::support::unique;

enum AnyTarget {
    Postgres(Box<PgTarget>),
    Mysql(Box<MyTarget>),
}

macro_rules! either {
    ($self:ident, $target:ident => $call:expr) => {
        match $self {
            AnyTarget::Postgres($target) => $call,
            AnyTarget::Mysql($target) => $call,
        }
    };
}

impl AnyTarget {
    async fn open(&mut self) -> Result<Marker> {
        either!(self, t => t.open().await)
    }

    fn rows(&self) -> Vec<Marker> {
        either!(self, t => t.rows())
    }

    async fn join(&mut self, rows: Vec<Marker>) -> Result<()> {
        either!(self, t => t.join(rows).await)
    }

    async fn begin(&mut self, next: &Marker) -> Result<()> {
        either!(self, t => t.begin(next).await)
    }

    async fn write(&mut self, rows: &TableRows<'_>) -> Result<()> {
        either!(self, t => t.write(rows).await)
    }

    async fn write_alone(&mut self, rows: &TableRows<'_>) -> Result<()> {
        either!(self, t => t.write_alone(rows).await)
    }

    async fn read(&mut self, binding: &Binding, keys: &[Row<'_>]) -> Result<Vec<Option<Vec<u8>>>> {
        either!(self, t => t.read(binding, keys).await)
    }

    async fn commit(&mut self) -> Result<()> {
        either!(self, t => t.commit().await)
    }

    async fn rollback(&mut self) -> Result<()> {
        either!(self, t => t.rollback().await)
    }
}

impl AnyTarget {
    /// Rows that came in by COPY or LOAD DATA.
    fn copied(&self) -> u64 {
        match self {
            AnyTarget::Postgres(target) => target.copied_rows(),
            AnyTarget::Mysql(target) => target.copied_rows(),
        }
    }
}

/// One database with a marker, and a target that writes to it.
struct Bench {
    /// Before `db`: its connection must be gone when the database is dropped.
    target: AnyTarget,
    marker: Marker,
    db: Db,
}

fn spec(db: &Db, instance: u64, lane: u32) -> TargetSpec {
    TargetSpec {
        agent: "hq".into(),
        system: "crm".into(),
        lane,
        lanes: 2,
        marker: TableName { schema: db.marker.clone(), name: "marker".into() },
        journal: 7,
        instance,
    }
}

fn target(db: &Db, instance: u64) -> AnyTarget {
    target_of(db, instance, 0)
}

fn target_of(db: &Db, instance: u64, lane: u32) -> AnyTarget {
    let (connect, spec, patience) =
        (db.connect_config(), spec(db, instance, lane), Duration::from_secs(if instance == 1 { 20 } else { 1 }));
    if db.kind.is_postgres() {
        AnyTarget::Postgres(Box::new(PgTarget::new(connect, spec).lock_patience(patience)))
    } else {
        AnyTarget::Mysql(Box::new(MyTarget::new(connect, spec).lock_patience(patience)))
    }
}

async fn set_up_marker(db: &Db) {
    let spec = spec(db, 1, 0);
    let connect = db.connect_config();
    if db.kind.is_postgres() {
        let client = anechoic::connect::postgres::connect(&connect, "test").await.unwrap();
        for statement in anechoic::apply::postgres::marker_ddl(&spec.marker) {
            client.batch_execute(&statement).await.unwrap();
        }
    } else {
        use mysql_async::prelude::Queryable;
        let mut conn = anechoic::connect::mysql::connect(&connect).await.unwrap();
        for statement in anechoic::apply::mysql::marker_ddl(&spec.marker) {
            conn.query_drop(statement).await.unwrap();
        }
    }
}

async fn catalog(db: &Db, table: &str) -> Table {
    let schema = if db.kind.is_postgres() { "public" } else { &db.name };
    let names = [TableName { schema: schema.into(), name: table.into() }];
    let connect = db.connect_config();
    let found = if db.kind.is_postgres() {
        let client = anechoic::connect::postgres::connect(&connect, "test").await.unwrap();
        anechoic::catalog::postgres::read(&client, &names).await.unwrap()
    } else {
        let mut conn = anechoic::connect::mysql::connect(&connect).await.unwrap();
        anechoic::catalog::mysql::read(&mut conn, &names).await.unwrap()
    };
    found.into_iter().next().unwrap().expect("the table is there")
}

impl Bench {
    async fn new(kind: Kind) -> Bench {
        Bench::on(Db::new(kind).await).await
    }

    async fn on(db: Db) -> Bench {
        set_up_marker(&db).await;
        let mut target = target(&db, 1);
        let marker = target.open().await.unwrap();
        Bench { target, marker, db }
    }

    /// Makes a table and binds all of its columns in their order; the first `key_len` are the key.
    async fn table(&self, name: &str, ddl: &str, key_len: usize) -> Binding {
        self.db.execute(ddl).await;
        let table = catalog(&self.db, name).await;
        let bound = |(field, column): (usize, &anechoic::catalog::Column)| BoundColumn {
            field,
            kind: column.ty.kind().unwrap_or_else(|| panic!("{} {}", column.name, column.type_name)),
            column: column.clone(),
            transform: Transform::None,
            engine: if self.db.kind.is_postgres() { Engine::Postgres } else { Engine::Mysql },
            label: column.name.as_str().into(),
        };
        Binding {
            system: SystemId(0),
            entity: EntityId(name.bytes().map(u16::from).sum()),
            role: Role::Both,
            columns: table.columns.iter().enumerate().map(bound).collect(),
            table: Arc::new(table),
            key_len,
            filter: None,
            clash_keys: Vec::new(),
        }
    }

    fn next(&self) -> Marker {
        Marker { seq: self.marker.seq + 1, origin: "shop".into(), txid: "it's 1".into(), ..self.marker.clone() }
    }

    async fn begin(&mut self) {
        let next = self.next();
        self.target.begin(&next).await.unwrap();
    }

    /// One transaction; after an error it is rolled back.
    async fn apply(&mut self, writes: &[(&Binding, Write, u128, &[Vec<u8>])]) -> Result<()> {
        let next = self.next();
        self.target.begin(&next).await?;
        let mut result = Ok(());
        for (binding, write, carried, rows) in writes {
            let rows: Vec<Row<'_>> = rows.iter().map(|row| Row(row)).collect();
            let table = TableRows { binding, write: *write, rows: &rows, carried: *carried, added: 0, fresh: false };
            result = self.target.write(&table).await;
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            result = self.target.commit().await;
        }
        match &result {
            Ok(()) => self.marker = next,
            Err(_) => self.target.rollback().await?,
        }
        result
    }

    async fn upsert(&mut self, binding: &Binding, rows: &[Vec<u8>]) -> Result<()> {
        self.apply(&[(binding, Write::Upsert, u128::MAX, rows)]).await
    }

    /// Rows of a load, in one transaction.
    async fn fresh(&mut self, binding: &Binding, rows: &[Vec<u8>]) -> Result<()> {
        let next = self.next();
        self.target.begin(&next).await?;
        let rows: Vec<Row<'_>> = rows.iter().map(|row| Row(row)).collect();
        let table = TableRows { binding, write: Write::Upsert, rows: &rows, carried: u128::MAX, added: 0, fresh: true };
        let result = match self.target.write(&table).await {
            Ok(()) => self.target.commit().await,
            failed => failed,
        };
        match &result {
            Ok(()) => self.marker = next,
            Err(_) => self.target.rollback().await?,
        }
        result
    }

    async fn alone(&mut self, binding: &Binding, row: &[u8]) -> Result<()> {
        let rows = [Row(row)];
        self.target
            .write_alone(&TableRows {
                binding,
                write: Write::Upsert,
                rows: &rows,
                carried: u128::MAX,
                added: 0,
                fresh: false,
            })
            .await
    }

    async fn strings(&self, sql: &str) -> Vec<Vec<String>> {
        let rows = self.db.rows(sql).await;
        rows.into_iter().map(|row| row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".into())).collect()).collect()
    }
}

fn encoded(datums: &[Datum<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for datum in datums {
        write_datum(&mut out, *datum);
    }
    out
}

fn int(value: i64) -> Datum<'static> {
    Datum::Value(Value::Int(value))
}

fn text(value: &str) -> Datum<'_> {
    Datum::Value(Value::Text(value))
}

fn quarantined(result: Result<()>) -> Error {
    let error = result.expect_err("an error");
    assert_eq!(error.recovery, Recovery::Quarantine, "{}", error.full());
    error
}

const ONES: &str = "111111111111111111111111111111111111111111111111111111111111";
const ZEROS: &str = "000000000000000000000000000000000000000000000000000000000001";

/// POINT(10 20) in SRID 4326, and POINT(0 0) without one.
const POINT: &[u8] = b"\xe6\x10\0\0\x01\x01\0\0\0\0\0\0\0\0\0\x24\x40\0\0\0\0\0\0\x34\x40";
const ORIGIN: &[u8] = b"\0\0\0\0\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A value of each column's type, near a limit in even rows.
fn sample<'a>(ty: &ColumnType, n: usize, longest: &'a str) -> Value<'a> {
    let edge = n.is_multiple_of(2);
    match ty {
        ColumnType::Bool => Value::Bool(edge),
        ColumnType::Int { bytes: 8, signed: false } if edge => Value::UInt(u64::MAX),
        ColumnType::Int { bytes, signed: true } if edge => Value::Int(i64::MIN >> (64 - 8 * u32::from(*bytes))),
        ColumnType::Int { .. } => Value::Int(n as i64),
        ColumnType::Decimal { limits: None } if edge => Value::Decimal("-123456789012345678901234567890.123456789"),
        ColumnType::Decimal { .. } => Value::Decimal(if edge { "-9999999999.99" } else { "0.10" }),
        ColumnType::Float32 => Value::Float32(if edge { f32::MIN_POSITIVE } else { 16_777_217.0 / 3.0 }),
        ColumnType::Float64 => Value::Float64(if edge { -1.797_693_134_862_315_7e308 } else { 0.1 + 0.2 }),
        ColumnType::Char { .. } => Value::Text(if edge { "" } else { "é'\\" }),
        ColumnType::Text { .. } => Value::Text(if edge { longest } else { "Zoë 🦊 \" ' \\ \n\t%_{NULL}" }),
        ColumnType::Binary { .. } => Value::Bytes(if edge { &[0; 4] } else { b"\xff\x00'\\" }),
        ColumnType::Bytes { .. } => Value::Bytes(if edge { b"" } else { b"\x00\xff\\'\r\n\x1a" }),
        ColumnType::Date => Value::Date(if edge { -354_285 } else { 2_932_896 }),
        ColumnType::Time { .. } => Value::Time(if edge { 0 } else { 86_399_999_999 }),
        ColumnType::DateTime { .. } => Value::DateTime(if edge { -1 } else { 253_402_300_799_999_999 }),
        ColumnType::Timestamp { .. } => Value::Timestamp(if edge { 1_000_001 } else { 1_700_000_000_123_456 }),
        ColumnType::Uuid => Value::Uuid(if edge { [0xff; 16] } else { [1; 16] }),
        ColumnType::Json => Value::Json(if edge { "{}" } else { r#"{"a": "it's \\ \" 🦊"}"# }),
        ColumnType::Enum { .. } => Value::Text(if edge { "it's" } else { "ok" }),
        ColumnType::Set { .. } => Value::Text(if edge { "" } else { "a,it's" }),
        ColumnType::Bits { length, .. } => {
            let length = length.unwrap_or(60) as usize;
            Value::Bits(if edge { &ONES[..length] } else { &ZEROS[..length] })
        }
        ColumnType::Year => Value::Int(if edge { 0 } else { 2155 }),
        // An interval.
        ColumnType::Verbatim => Value::Text(if edge { "P1Y2M3DT-4H-5M-6.789S" } else { "PT0S" }),
        ColumnType::Array { .. } => Value::Array(if edge { r#"[0:2]={"a b",NULL,"\""}"# } else { "{{NULL},{x}}" }),
        ColumnType::Inet { v6: true } => Value::Text(if edge { "2001:db8::1" } else { "::" }),
        ColumnType::Inet { v6: false } => Value::Text(if edge { "255.255.255.255" } else { "10.0.0.0" }),
        ColumnType::Geometry => Value::Bytes(if edge { POINT } else { ORIGIN }),
        ColumnType::Unsupported => unreachable!("refused before"),
    }
}

fn all_types(kind: Kind) -> String {
    let postgres = "id integer PRIMARY KEY, b boolean, i2 smallint, i4 integer, i8 bigint, num numeric(12,2), \
        anynum numeric, f4 real, f8 double precision, c char(4), vc varchar(60), tx text, by bytea, d date, \
        t time, dt timestamp, ts timestamptz, u uuid, js json, jb jsonb, e mood, \
        bt bit(4), vb varbit, iv interval, ta text[]";
    let mysql = "id int PRIMARY KEY, b tinyint(1), i1 tinyint, i2 smallint, i3 mediumint, i4 int, i8 bigint, \
        u8 bigint unsigned, num decimal(12,2), f4 float, f8 double, c char(4), vc varchar(60), tx text, \
        bi binary(4), vb varbinary(60), bl blob, d date, t time(6), dt datetime(6), ts timestamp(6) NULL, js json, \
        e enum('ok','it''s'), s set('a','b','it''s'), bt bit(10), y year, \
        g geometry";
    match kind {
        _ if kind.is_postgres() => {
            format!("CREATE TYPE mood AS ENUM ('ok', 'it''s'); CREATE TABLE everything ({postgres})")
        }
        _ if kind.is_mariadb() => format!("CREATE TABLE everything ({mysql}, u uuid, a4 inet4, a6 inet6)"),
        _ => format!("CREATE TABLE everything ({mysql})"),
    }
}

/// As the server itself prints them, so that an error common to writing and reading shows.
fn printed(kind: Kind, ty: &ColumnType, value: Value<'_>) -> Option<String> {
    Some(match (ty, value) {
        (ColumnType::Bool, Value::Bool(v)) => if v { "t" } else { "f" }.to_owned(),
        (ColumnType::Verbatim, _) => return None, // intervals have several styles
        (ColumnType::Year, Value::Int(v)) => format!("{v:04}"),
        (_, Value::Array(v)) => v.to_owned(),
        (_, Value::Int(v)) => v.to_string(),
        (_, Value::UInt(v)) => v.to_string(),
        (_, Value::Decimal(v)) => v.to_owned(),
        (ColumnType::Char { chars }, Value::Text(v)) if kind.is_postgres() => {
            format!("{v}{}", " ".repeat(*chars as usize - v.chars().count()))
        }
        (_, Value::Text(v)) => v.to_owned(),
        (ColumnType::Date, Value::Date(v)) => if v == -354_285 { "1000-01-01" } else { "9999-12-31" }.to_owned(),
        (_, Value::DateTime(-1)) => "1969-12-31 23:59:59.999999".to_owned(),
        (_, Value::DateTime(_)) => "9999-12-31 23:59:59.999999".to_owned(),
        (_, Value::Timestamp(v)) => {
            let zone = if kind.is_postgres() { "+00" } else { "" };
            format!(
                "{}{zone}",
                if v == 1_000_001 { "1970-01-01 00:00:01.000001" } else { "2023-11-14 22:13:20.123456" }
            )
        }
        (_, Value::Time(v)) if v > 0 => "23:59:59.999999".to_owned(),
        (_, Value::Float64(v)) if v < 0.0 => "-1.7976931348623157e+308".to_owned(),
        (_, Value::Float64(_)) => "0.30000000000000004".to_owned(),
        (_, Value::Uuid(v)) => {
            let hex = format!("{:032x}", u128::from_be_bytes(v));
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }
        _ => return None,
    })
}

/// Insert, update and NULLs, in each form of statement: proposed, joined, one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_is_read_back_as_it_was_written() {
    let longest = "🦊".repeat(60);
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let mut binding = bench.table("everything", &all_types(kind), 1).await;
        let types: Vec<ColumnType> = binding.columns.iter().map(|c| c.column.ty.clone()).collect();
        let row = |id: usize, n: usize| -> Vec<Datum<'_>> {
            let rest = types[1..].iter().map(|ty| match n % 3 {
                2 => Datum::Null,
                n => Datum::Value(sample(ty, n, &longest)),
            });
            std::iter::once(int(id as i64)).chain(rest).collect()
        };
        for round in 0..3 {
            if round == 1 {
                // As far as the target knows: nothing may be proposed any more.
                let table = Table { triggers: true, ..(*binding.table).clone() };
                binding.table = Arc::new(table);
            }
            let rows: Vec<Vec<u8>> = (0..9).map(|id| encoded(&row(id, id + round))).collect();
            if round == 2 {
                bench.begin().await;
                for row in &rows {
                    bench.alone(&binding, row).await.unwrap();
                }
                bench.target.commit().await.unwrap();
                bench.marker = bench.next();
            } else {
                bench.upsert(&binding, &rows).await.unwrap();
            }
            let keys: Vec<Row<'_>> = rows.iter().map(|row| Row(row)).collect();
            bench.begin().await;
            let read = bench.target.read(&binding, &keys).await.unwrap();
            bench.target.rollback().await.unwrap();
            for (row, read) in rows.iter().zip(&read) {
                assert_eq!(Row(read.as_ref().unwrap()), Row(row), "{kind:?} round {round}");
            }
        }

        let session = if kind.is_postgres() { "SET timezone = 'UTC'" } else { "SET time_zone = '+00:00'" };
        bench.db.execute(session).await;
        for (at, bound) in binding.columns.iter().enumerate().skip(1) {
            let name = &bound.column.name;
            let shown = bench.strings(&format!("SELECT {name} FROM everything ORDER BY id")).await;
            for (id, shown) in shown.iter().enumerate() {
                let Datum::Value(value) = row(id, id + 2)[at] else {
                    assert_eq!(shown[0], "NULL", "{kind:?} {name}");
                    continue;
                };
                if let Some(expected) = printed(kind, &bound.column.ty, value) {
                    assert_eq!(shown[0].replace("e308", "e+308"), expected, "{kind:?} {name} of row {id}");
                }
            }
        }
    }
}

const PEOPLE: &str = "CREATE TABLE people (id int PRIMARY KEY, name varchar(20) NOT NULL, email varchar(40) UNIQUE)";

/// FIELD: ON DUPLICATE KEY and REPLACE overwrite whoever has the same e-mail address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clash_on_another_unique_key_is_an_error_and_overwrites_nobody() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        let person = |id: i64, name, email| encoded(&[int(id), text(name), text(email)]);
        let first: Vec<_> = (1..=6).map(|id| encoded(&[int(id), text("Ada"), Datum::Null])).collect();
        bench.upsert(&people, &first).await.unwrap();
        bench.upsert(&people, &[person(1, "Ada", "a@x")]).await.unwrap();

        let many: Vec<_> = (10..20).map(|id| person(id, "Bob", "a@x")).collect();
        for clash in [&many[..], &many[..1]] {
            let error = quarantined(bench.upsert(&people, clash).await);
            assert!(!error.full().contains("a@x"), "values do not belong in messages: {}", error.full());
            assert!(error.message.contains("people"), "{}", error.message);
        }
        bench.begin().await;
        quarantined(bench.alone(&people, &many[0]).await);
        bench.alone(&people, &person(7, "Cid", "c@x")).await.unwrap();
        quarantined(bench.alone(&people, &many[1]).await);
        bench.target.commit().await.unwrap();

        assert_eq!(
            bench.strings("SELECT id, name, email FROM people WHERE email IS NOT NULL ORDER BY id").await,
            [["1", "Ada", "a@x"], ["7", "Cid", "c@x"]]
        );
    }
}

/// Many texts are one value to these types, and others would be rounded or cut: whatever the
/// server would hold in another form than it came is an error, and stays out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_would_alter_is_refused() {
    let array = Value::Array;
    let postgres = [
        ("inet", text("10.0.0.1"), text("10.0.0.1/32")),
        ("cidr", text("10.1.0.0/16"), text("10.1/16")),
        ("macaddr", text("08:00:2b:01:02:03"), text("08002b:010203")),
        ("int4range", text("[1,4)"), text("[1,3]")),
        ("interval(0)", text("PT1S"), text("PT1.4S")),
        ("interval", text("P1M"), text("30 days")),
        ("tsvector", text("'a' 'b'"), text("b a")),
        ("\"odd'type\"", text("(1,x)"), text("( 1,x)")),
        ("name", text("n"), text(&*Box::leak("n".repeat(64).into_boxed_str()))),
        ("timetz", text("12:00:00+02"), text("12:00+2")),
        ("numeric(5,2)[]", Datum::Value(array("{1.50,NULL}")), Datum::Value(array("{1.234}"))),
        ("varchar(3)[]", Datum::Value(array("{abc}")), Datum::Value(array("{abcd}"))),
        ("real[]", Datum::Value(array("{0.1}")), Datum::Value(array("{0.123456789}"))),
        ("integer[]", Datum::Value(array("{{1,2},{3,4}}")), Datum::Value(array("{{1,2},{3}}"))),
        ("bit(3)", Datum::Value(Value::Bits("101")), Datum::Value(Value::Bits("1010"))),
    ];
    let mysql = [
        ("varchar(9) character set latin1", text("€ü\u{81}"), text("😀")),
        ("enum('ä','b') character set latin1", text("ä"), text("c")),
        ("set('a','b')", text("a,b"), text("a,c")),
        ("bit(3)", Datum::Value(Value::Bits("101")), Datum::Value(Value::Bits("1010"))),
        ("year", int(0), int(1900)),
        ("point", Datum::Value(Value::Bytes(POINT)), Datum::Value(Value::Bytes(b"\0"))),
        ("timestamp null", Datum::Value(Value::Timestamp(i64::MIN + 1)), Datum::Value(Value::Timestamp(i64::MAX))),
    ];
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        if kind.is_postgres() {
            bench.db.execute("CREATE TYPE \"odd'type\" AS (n int, t text)").await;
        }
        let cases = if kind.is_postgres() { &postgres[..] } else { &mysql[..] };
        for (at, (ty, good, bad)) in cases.iter().enumerate() {
            let name = format!("t{}", "x".repeat(at));
            let table = bench.table(&name, &format!("CREATE TABLE {name} (id int PRIMARY KEY, v {ty})"), 1).await;
            bench.upsert(&table, &[encoded(&[int(1), *good])]).await.unwrap_or_else(|e| panic!("{ty}: {}", e.full()));

            let error = quarantined(bench.upsert(&table, &[encoded(&[int(1), *bad])]).await);
            bench.begin().await;
            quarantined(bench.alone(&table, &encoded(&[int(2), *bad])).await);
            let row = encoded(&[int(1), *good]);
            let read = bench.target.read(&table, &[Row(&row)]).await.unwrap();
            bench.target.rollback().await.unwrap();

            assert_eq!(Row(read[0].as_ref().unwrap()), Row(&row), "{kind:?} {ty}");
            assert!(!error.full().contains("10.0.0.1"), "values do not belong in messages: {}", error.full());
        }
    }
}

/// Rows are found by keys of the rarer types, in each form of statement: written anew, read and
/// deleted, and no other row with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_type_find_their_rows() {
    let texts = |texts: [&'static str; 6]| texts.map(text);
    let bits = |digits: [&'static str; 6]| digits.map(|digits| Datum::Value(Value::Bits(digits)));
    let days = |days: [i32; 6]| days.map(|days| Datum::Value(Value::Date(days)));
    let instants = |micros: [i64; 6]| micros.map(|micros| Datum::Value(Value::DateTime(micros)));
    let postgres = [
        ("inet", texts(["10.0.0.1", "10.0.0.1/8", "::1", "::", "::ffff:1.2.3.4", "0.0.0.0"])),
        ("bit(4)", bits(["0101", "1010", "0000", "0001", "1000", "1111"])),
        ("varbit", bits(["01", "010", "", "0", "1", "0010"])),
        ("date", days([i32::MAX, i32::MIN, 0, 1, -1, 20_000])),
        ("numeric", ["NaN", "1.50", "-Infinity", "0", "1", "Infinity"].map(|text| Datum::Value(Value::Decimal(text)))),
        ("int4range", texts(["[1,4)", "empty", "(,)", "(,3)", "[3,)", "[2,3)"])),
    ];
    let mysql = [
        ("bit(10)", bits(["0000000001", "1000000000", "0000000000", "1111111111", "0100000000", "0011000001"])),
        ("year", [0, 1901, 2155, 1970, 2069, 2000].map(int)),
        ("set('a','b','c')", texts(["a,b", "", "a", "b", "c", "a,b,c"])),
        ("enum('ä','b','c','d','e','f') character set latin1", texts(["ä", "b", "c", "d", "e", "f"])),
        ("varchar(9) character set latin1 collate latin1_bin", texts(["ü€", "", "u", "U", "\u{81}", "x y"])),
        ("date", days([i32::MIN + 1, 0, 1, 2, 3, -719_162])),
        ("datetime(6)", instants([i64::MIN + 1, 0, 1, 2, 3, -1])),
    ];
    let mariadb = [
        ("inet6", texts(["::1", "2001:db8::1", "::", "::1.2.3.4", "::ffff:1.2.3.4", "2001:db8:0:1:1:1:1:1"])),
        ("inet4", texts(["10.0.0.1", "10.1.0.0", "0.0.0.0", "255.255.255.255", "1.2.3.4", "4.3.2.1"])),
    ];
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let mut cases = if kind.is_postgres() { postgres.to_vec() } else { mysql.to_vec() };
        if kind.is_mariadb() {
            cases.extend(mariadb);
        }
        for (at, (ty, keys)) in cases.iter().enumerate() {
            for triggers in [false, true] {
                let name = format!("k{}{}", "x".repeat(at), u8::from(triggers));
                let ddl = format!("CREATE TABLE {name} (k {ty} NOT NULL PRIMARY KEY, v int, w int)");
                let mut table = bench.table(&name, &ddl, 1).await;
                // as far as the target knows: then nothing is proposed, and rows are joined
                table.table = Arc::new(Table { triggers, ..(*table.table).clone() });
                let rows = |add: i64| -> Vec<Vec<u8>> {
                    let row = |(at, key): (usize, &Datum<'static>)| encoded(&[*key, int(at as i64 + add), int(0)]);
                    keys.iter().enumerate().map(row).collect()
                };
                for written in [&rows(0)[..4], &rows(10)[..], &rows(20)[3..4]] {
                    bench.upsert(&table, written).await.unwrap_or_else(|e| panic!("{kind:?} {ty}: {}", e.full()));
                }

                bench.begin().await;
                let wanted: Vec<Vec<u8>> = keys.iter().map(|key| encoded(&[*key])).collect();
                let wanted: Vec<Row<'_>> = wanted.iter().map(|key| Row(key)).collect();
                let read = bench.target.read(&table, &wanted).await.unwrap();
                bench.target.rollback().await.unwrap();
                let mut expected = rows(10);
                expected[3] = rows(20).swap_remove(3);
                let read: Vec<Vec<u8>> = read.into_iter().map(|row| row.unwrap()).collect();
                for (read, expected) in read.iter().zip(&expected) {
                    assert_eq!(Row(read), Row(expected), "{kind:?} {ty}");
                }

                let gone: Vec<Vec<u8>> = keys[..5].iter().map(|key| encoded(&[*key])).collect();
                bench.apply(&[(&table, Write::Delete, u128::MAX, &gone)]).await.unwrap();
                let left = bench.strings(&format!("SELECT v FROM {name}")).await;
                assert_eq!(left, [["15"]], "{kind:?} {ty}");
            }
        }
    }
}

/// A row that exists is updated without the columns that are not carried, though they are
/// NOT NULL and have no default; a row that does not exist cannot be made up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_rows_update_what_is_there_and_never_invent_the_rest() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        let whole: Vec<_> = (0..8).map(|id| encoded(&[int(id), text("Ada"), Datum::Null])).collect();
        bench.upsert(&people, &whole).await.unwrap();

        for ids in [0..8, 3..4] {
            let parts: Vec<_> =
                ids.clone().map(|id| encoded(&[int(id), Datum::NotSent, text(&format!("{id}@{}", ids.end))])).collect();
            bench.apply(&[(&people, Write::Upsert, 0b101, &parts)]).await.unwrap();
        }
        let unknown = [encoded(&[int(99), Datum::NotSent, text("99@x")])];
        quarantined(bench.apply(&[(&people, Write::Upsert, 0b101, &unknown)]).await);

        assert_eq!(bench.strings("SELECT count(*), min(name), max(id) FROM people").await, [["8", "Ada", "7"]]);
        assert_eq!(bench.strings("SELECT email FROM people WHERE id IN (2, 3) ORDER BY id").await, [["2@8"], ["3@4"]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_and_inserts_go_by_composite_keys_and_odd_names() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let name = r#"Große "Order`s"#;
        let ddl = if kind.is_postgres() {
            r#"CREATE TABLE "Große ""Order`s" ("select" varchar(20), "Preis" numeric(9,3), "größe" text,
               doubled numeric GENERATED ALWAYS AS ("Preis" * 2) STORED, PRIMARY KEY ("select", "Preis"))"#
        } else {
            r#"CREATE TABLE `Große "Order``s` (`select` varchar(20), `Preis` decimal(9,3), `größe` text,
               doubled decimal(10,3) AS (`Preis` * 2) STORED, PRIMARY KEY (`select`, `Preis`))"#
        };
        let binding = bench.table(name, ddl, 2).await;
        let row = |key: &str, price: &str, size: &str| {
            encoded(&[text(key), Datum::Value(Value::Decimal(price)), text(size), Datum::Null])
        };
        let rows: Vec<_> = (0..1200).map(|n| row(&format!("käufer '{n}"), &format!("{n}.250"), "L")).collect();
        bench.upsert(&binding, &rows).await.unwrap();
        bench.upsert(&binding, &rows[..600]).await.unwrap();
        bench.apply(&[(&binding, Write::Delete, 0, &rows[1..])]).await.unwrap();
        bench.apply(&[(&binding, Write::Delete, 0, &rows[..3])]).await.unwrap();
        bench.apply(&[(&binding, Write::Delete, 0, &rows[..1])]).await.unwrap();
        bench.upsert(&binding, &rows[5..6]).await.unwrap();

        let quote = if kind.is_postgres() { ("\"", r#""Große ""Order`s""#) } else { ("`", r#"`Große "Order``s`"#) };
        let sql = format!("SELECT {0}select{0}, {0}Preis{0}, {0}größe{0}, doubled FROM {1}", quote.0, quote.1);
        assert_eq!(bench.strings(&sql).await, [["käufer '5", "5.250", "L", "10.500"]]);
    }
}

/// Triggers see an insert where a row is new and an update where it is not, and can tell us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_fire_for_what_happens_and_can_stand_aside() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let ddl = if kind.is_postgres() {
            "CREATE TABLE trail (what text, applying text); CREATE TABLE things (id int PRIMARY KEY, n int);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               $$BEGIN INSERT INTO trail VALUES (TG_OP, current_setting('anechoic.applying', true)); RETURN NEW; END$$;
             CREATE TRIGGER note BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION note()"
        } else {
            "CREATE TABLE trail (what text, applying text); CREATE TABLE things (id int PRIMARY KEY, n int);
             CREATE TRIGGER i BEFORE INSERT ON things FOR EACH ROW INSERT INTO trail VALUES ('INSERT', @anechoic_applying);
             CREATE TRIGGER u BEFORE UPDATE ON things FOR EACH ROW INSERT INTO trail VALUES ('UPDATE', @anechoic_applying)"
        };
        // Where the log is on, MySQL lets only administrators make triggers.
        let ddl = if kind.is_postgres() {
            ddl
        } else {
            bench.db.admin().await.execute(ddl).await;
            "DO 0"
        };
        let things = bench.table("things", ddl, 1).await;
        for n in 0..2 {
            let rows: Vec<_> = (0..6).map(|id| encoded(&[int(id), int(n)])).collect();
            bench.upsert(&things, &rows).await.unwrap();
        }

        let on = if kind.is_postgres() { "on" } else { "1" };
        assert_eq!(
            bench.strings("SELECT what, applying, count(*) FROM trail GROUP BY what, applying ORDER BY what").await,
            [["INSERT", on, "6"], ["UPDATE", on, "6"]]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entities_without_a_key_are_appended_to() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let ledger = bench.table("ledger", "CREATE TABLE ledger (account int, amount int)", 0).await;
        let rows = vec![encoded(&[int(1), int(-5)]); 3];

        bench.apply(&[(&ledger, Write::Insert, u128::MAX, &rows)]).await.unwrap();

        assert_eq!(bench.strings("SELECT count(*), sum(amount) FROM ledger").await, [["3", "-15"]]);
    }
}

/// A second writer that got past the lock (or the first one, back from the dead) moves the
/// marker; whoever expects it elsewhere writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_writer_that_knows_the_marker_commits() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        bench.upsert(&people, &[encoded(&[int(1), text("Ada"), Datum::Null])]).await.unwrap();
        let mut expected = bench.marker.clone();
        let marker = format!("{}.marker", bench.db.marker);

        bench.db.admin().await.execute(&format!("UPDATE {marker} SET epoch = epoch + 1")).await;
        let lost = bench.upsert(&people, &[encoded(&[int(2), text("Bob"), Datum::Null])]).await.unwrap_err();
        assert!(is_fenced(&lost) && lost.recovery == Recovery::Retry, "{}", lost.full());
        let lost = {
            bench.begin().await;
            let lost = bench.alone(&people, &encoded(&[int(2), text("Bob"), Datum::Null])).await.unwrap_err();
            bench.target.rollback().await.unwrap();
            lost
        };
        assert!(is_fenced(&lost), "{}", lost.full());

        bench.marker = bench.target.open().await.unwrap();
        expected.epoch += 2;
        assert_eq!(bench.marker, expected);
        bench.upsert(&people, &[encoded(&[int(3), text("Cid"), Datum::Null])]).await.unwrap();

        bench.db.admin().await.execute(&format!("DELETE FROM {marker}")).await;
        let lost = bench.upsert(&people, &[encoded(&[int(4), text("Dan"), Datum::Null])]).await.unwrap_err();
        assert!(is_fenced(&lost), "{}", lost.full());
        assert_eq!(bench.strings("SELECT id FROM people ORDER BY id").await, [["1"], ["3"]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_of_the_same_id_refuses_and_names_the_holder() {
    for kind in Kind::ENGINES {
        let bench = Bench::new(kind).await;

        let error = target(&bench.db, 2).open().await.unwrap_err();

        assert_eq!(error.recovery, Recovery::Stop);
        assert!(error.message.contains("\"hq\"") && error.message.contains("crm"), "{}", error.message);
        assert!(error.message.contains("127.0.0.1") || error.message.contains("localhost"), "{}", error.message);
    }
}

/// A cut that the server has not noticed must not lock ourselves out, nor leave rows locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_connection_left_behind_is_taken_over() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        bench.begin().await;
        bench.alone(&people, &encoded(&[int(1), text("Ada"), Datum::Null])).await.unwrap();

        let mut again = target(&bench.db, 1);
        let marker = again.open().await.unwrap();

        assert_eq!((marker.seq, marker.epoch), (0, bench.marker.epoch + 1));
        assert_eq!(bench.target.commit().await.unwrap_err().recovery, Recovery::Retry);
        assert_eq!(bench.strings("SELECT count(*) FROM people").await, [["0"]]);
    }
}

/// Each connection has a row of its own: the highest says how far the agent is, and whoever opens it anew shuts
/// all of them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_is_the_highest_of_all_connections() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        let mut second = target_of(&bench.db, 1, 1);
        second.join(bench.target.rows()).await.unwrap();
        let at = |seq| Marker { seq, ..bench.marker.clone() };
        bench.target.begin(&at(3)).await.unwrap();
        bench.target.commit().await.unwrap();
        second.begin(&at(5)).await.unwrap();
        second.commit().await.unwrap();

        let opened = bench.target.open().await.unwrap();

        assert_eq!((opened.seq, opened.lane), (5, 1), "{}", kind.name());
        second.begin(&at(6)).await.unwrap();
        let row = [encoded(&[int(1), text("Ada"), Datum::Null])];
        let rows: Vec<Row<'_>> = row.iter().map(|row| Row(row)).collect();
        let late =
            TableRows { binding: &people, write: Write::Upsert, rows: &rows, carried: 7, added: 0, fresh: false };
        let shut_out = match second.write(&late).await {
            Ok(()) => second.commit().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(is_fenced(&shut_out), "{}", shut_out.full());
        assert_eq!(bench.strings("SELECT count(*) FROM people").await, [["0"]]);
        second.join(bench.target.rows()).await.unwrap();
        second.begin(&at(6)).await.unwrap();
        second.commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_table_or_grant_stops_and_says_what_mends_it() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        let row = [encoded(&[int(1), text("Ada"), Datum::Null])];
        bench.db.execute("ALTER TABLE people RENAME TO persons").await;

        let error = bench.upsert(&people, &row).await.unwrap_err();

        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.hint.contains("create the table"), "{}", error.hint);
        bench.db.execute("ALTER TABLE persons RENAME TO people").await;
        bench.upsert(&people, &row).await.unwrap();
    }
}

/// PostgreSQL checks deferred constraints at COMMIT: the batch fails whole, the replay finds
/// the row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_constraint_is_found_by_the_second_replay() {
    let mut bench = Bench::new(Kind::Postgres17).await;
    bench.db.execute("CREATE TABLE parents (id int PRIMARY KEY)").await;
    let ddl = "CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)";
    let children = bench.table("children", ddl, 1).await;
    let (orphan, fine) = (encoded(&[int(1), int(9)]), encoded(&[int(2), Datum::Null]));

    quarantined(bench.upsert(&children, &[orphan.clone(), fine.clone()]).await);
    let mut refused = Vec::new();
    for _ in 0..2 {
        bench.begin().await;
        refused.clear();
        for (at, row) in [&orphan, &fine].into_iter().enumerate() {
            if let Err(error) = bench.alone(&children, row).await {
                quarantined(Err(error));
                refused.push(at);
            }
        }
        if let Err(error) = bench.target.commit().await {
            quarantined(Err(error));
            bench.target.rollback().await.unwrap();
        }
    }

    assert_eq!(refused, [0]);
    assert_eq!(bench.strings("SELECT id FROM children").await, [["2"]]);
}

/// More than one flight, and rows longer than the packets they share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_becomes_visible_whole() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let ddl = "CREATE TABLE big (id int PRIMARY KEY, a bigint, b varchar(64), c decimal(12,2))".to_owned();
        let big = bench.table("big", &ddl, 1).await;
        let rows: Vec<Vec<u8>> = (0..100_000)
            .map(|id| {
                let name = format!("customer number {id}");
                encoded(&[int(id), int(id * 7), text(&name), Datum::Value(Value::Decimal("1234.50"))])
            })
            .collect();
        let began = Instant::now();
        for what in ["insert", "update"] {
            let next = bench.next();
            bench.target.begin(&next).await.unwrap();
            for chunk in rows.chunks(1000) {
                let refs: Vec<Row<'_>> = chunk.iter().map(|row| Row(row)).collect();
                let table = TableRows {
                    binding: &big,
                    write: Write::Upsert,
                    rows: &refs,
                    carried: u128::MAX,
                    added: 0,
                    fresh: false,
                };
                bench.target.write(&table).await.unwrap();
            }
            let seen = if what == "insert" { "0" } else { "100000" };
            assert_eq!(bench.strings("SELECT count(*) FROM big").await, [[seen]]);
            bench.target.commit().await.unwrap();
            bench.marker = next;
        }
        eprintln!("{kind:?}: 100,000 rows inserted and updated in {:?}", began.elapsed());

        assert_eq!(bench.strings("SELECT count(*), sum(a) FROM big").await, [["100000", "34999650000"]]);
        let doc = bench.table("doc", "CREATE TABLE doc (id int PRIMARY KEY, body text NOT NULL)", 1).await;
        let long = "x".repeat(60_000);
        let docs: Vec<Vec<u8>> = (0..40).map(|id| encoded(&[int(id), text(&long)])).collect();
        bench.upsert(&doc, &docs).await.unwrap();
        assert_eq!(bench.strings("SELECT count(*), min(length(body)) FROM doc").await, [["40", "60000"]]);
    }
}

/// A load's rows come in by COPY and LOAD DATA as the statements would have written them: every
/// type that is not left to the statements, and NULL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_load_are_what_statements_would_have_written() {
    let longest = "🦊".repeat(60);
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let mut binding = bench.table("everything", &all_types(kind), 1).await;
        binding.columns.retain(|bound| {
            let in_postgres = matches!(bound.column.ty, ColumnType::Bits { .. }) && kind.is_postgres();
            let never = [ColumnType::Verbatim, ColumnType::Geometry].contains(&bound.column.ty);
            !(in_postgres || never || matches!(bound.column.ty, ColumnType::Array { .. }))
        });
        binding.columns.iter_mut().enumerate().for_each(|(at, bound)| bound.field = at);
        let row = |id: usize| -> Vec<u8> {
            let rest = binding.columns[1..].iter().map(|bound| match id % 3 {
                2 => Datum::Null,
                n => Datum::Value(sample(&bound.column.ty, n, &longest)),
            });
            encoded(&std::iter::once(int(id as i64)).chain(rest).collect::<Vec<_>>())
        };
        let (by_load, by_statement): (Vec<_>, Vec<_>) =
            ((0..120).map(row).collect(), (1000..1120).map(|id| row(id - 1000 + 1002)).collect());

        bench.fresh(&binding, &by_load).await.unwrap();
        assert_eq!(bench.target.copied(), 120, "{kind:?}");
        bench.upsert(&binding, &by_statement).await.unwrap();

        let names: Vec<&str> = binding.columns[1..].iter().map(|bound| bound.column.name.as_str()).collect();
        let select = |ids: &str| format!("SELECT {} FROM everything WHERE id {ids} ORDER BY id", names.join(", "));
        assert_eq!(bench.strings(&select("< 120")).await, bench.strings(&select(">= 1002")).await, "{kind:?}");
        let keys: Vec<Row<'_>> = by_load.iter().map(|row| Row(row)).collect();
        bench.begin().await;
        let read = bench.target.read(&binding, &keys).await.unwrap();
        bench.target.rollback().await.unwrap();
        for (row, read) in by_load.iter().zip(&read) {
            assert_eq!(Row(read.as_ref().unwrap()), Row(row), "{kind:?}");
        }
    }
}

/// Rows that are there after all are updated, whatever was guessed; what a statement refuses is
/// refused, and nothing of it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_load_that_are_there_or_refused_end_as_statements_leave_them() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let people = bench.table("people", PEOPLE, 1).await;
        let rows = |from: i64, name: &'static str| -> Vec<Vec<u8>> {
            (from..from + 200).map(|id| encoded(&[int(id), text(name), Datum::Null])).collect()
        };
        bench.upsert(&people, &[encoded(&[int(150), text("old"), text("a@x")])]).await.unwrap();

        bench.fresh(&people, &rows(1, "new")).await.unwrap();
        assert_eq!(bench.target.copied(), 0, "{kind:?}: one of them was there");
        let counts = "SELECT count(*), count(email), count(CASE WHEN name = 'new' THEN 1 END) FROM people";
        assert_eq!(bench.strings(counts).await, [["200", "0", "200"]], "{kind:?}");
        // It waits before it tries again, then does.
        for (nth, from) in [1001, 2001, 3001].into_iter().enumerate() {
            bench.fresh(&people, &rows(from, "new")).await.unwrap();
            assert_eq!(bench.target.copied(), if nth < 2 { 0 } else { 200 }, "{kind:?}");
        }

        // a clash on another key, a value that is too long, one that is missing: not one of them comes in
        let mut clash = rows(5001, "Bob");
        clash[120] = encoded(&[int(5121), text("Bob"), text("b@x")]);
        clash[121] = encoded(&[int(5122), text("Bob"), text("b@x")]);
        let mut long = rows(6001, "Bob");
        long[120] = encoded(&[int(6121), text("a name that is longer than the column"), Datum::Null]);
        let mut missing = rows(7001, "Bob");
        missing[120] = encoded(&[int(7121), Datum::Null, Datum::Null]);
        for refused in [clash, long, missing] {
            bench.target = target(&bench.db, 1);
            bench.marker = bench.target.open().await.unwrap();
            quarantined(bench.fresh(&people, &refused).await);
        }
        assert_eq!(bench.strings("SELECT count(*) FROM people WHERE id > 5000").await, [["0"]], "{kind:?}");
    }
}

/// Where another key alone tells rows apart, or a trigger looks on, nothing is tried that a
/// statement would not do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_load_are_not_copied_where_nothing_would_notice_that_they_are_there() {
    for kind in Kind::ENGINES {
        let mut bench = Bench::new(kind).await;
        let ddl = "CREATE TABLE loose (id int NOT NULL, name varchar(20) NOT NULL)";
        let loose = bench.table("loose", ddl, 1).await;
        let rows: Vec<Vec<u8>> = (1..=200).map(|id| encoded(&[int(id), text("one")])).collect();

        for _ in 0..2 {
            bench.fresh(&loose, &rows).await.unwrap();
        }

        assert_eq!(bench.target.copied(), 0, "{kind:?}");
        assert_eq!(bench.strings("SELECT count(*) FROM loose").await, [["200"]], "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_load_come_in_by_statements_where_the_server_reads_no_local_files() {
    let server = Arc::new(Server::private(Kind::Mysql, &["--local-infile=OFF"]).await);
    let mut bench = Bench::on(Db::on(&server, &unique()).await).await;
    let people = bench.table("people", PEOPLE, 1).await;
    let rows: Vec<Vec<u8>> = (1..=200).map(|id| encoded(&[int(id), text("Ada"), Datum::Null])).collect();

    bench.fresh(&people, &rows).await.unwrap();

    assert_eq!(bench.target.copied(), 0);
    assert_eq!(bench.strings("SELECT count(*) FROM people").await, [["200"]]);
}
