//! The table that all stages are shown, in each system, and the stage that maps its rows.

use std::sync::Arc;

use anechoic::capture::{Begin, Commit, RowEvent, Sink, WantedColumn, WantedTable};
use anechoic::catalog::{Column, ColumnType, DecimalLimits, ReplicaIdentity, Table, TableName};
use anechoic::change::{Captured, Op};
use anechoic::config::Config;
use anechoic::journal;
use anechoic::normalize::resolve::{self, Model};
use anechoic::normalize::{Collected, Normalizer};
use anechoic::position::Position;
use anechoic::schema::SystemId;
use anechoic::status::Status;
use anechoic::value::{Datum, Value};
use tokio::sync::watch;

pub const ROWS: u64 = 1000;

/// How the first system binds two of its columns: as they are, or a date and a state spelled otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    Plain,
    Mapped,
}

impl Mapping {
    fn columns(self) -> [&'static str; 2] {
        match self {
            Mapping::Plain => [r#""born""#, r#""state""#],
            Mapping::Mapped => [
                r#"{ column = "born", format = "%d/%m/%Y" }"#,
                r#"{ column = "state", values = { new = "N", open = "O", done = "D" } }"#,
            ],
        }
    }
}

const TEXT: ColumnType = ColumnType::Text { chars: None, bytes: None };
const INT: ColumnType = ColumnType::Int { bytes: 8, signed: true };

/// Name and type; the date is text where its format is another one.
pub fn columns(mapped: bool) -> [(&'static str, ColumnType); 7] {
    [
        ("id", INT),
        ("name", TEXT),
        ("born", if mapped { TEXT } else { ColumnType::Date }),
        ("price", ColumnType::Decimal { limits: Some(DecimalLimits { precision: 12, scale: 2 }) }),
        ("count", ColumnType::Int { bytes: 4, signed: true }),
        ("state", TEXT),
        ("note", TEXT),
    ]
}

fn catalog(schema: &str, mapped: bool) -> Table {
    let column = |(name, ty): (&str, ColumnType)| Column { nullable: name != "id", ..Column::new(name, ty, "") };
    Table {
        columns: columns(mapped).into_iter().map(column).collect(),
        unique_keys: vec![vec!["id".into()]],
        primary_key: vec!["id".into()],
        replica_identity: (schema == "public").then_some(ReplicaIdentity::Full),
        ..Table::new(TableName { schema: schema.into(), name: "item".into() })
    }
}

pub fn wanted(schema: &str) -> WantedTable {
    let column = |(name, ty): (&str, ColumnType)| WantedColumn { name: name.into(), ty };
    WantedTable {
        id: 0,
        name: TableName { schema: schema.into(), name: "item".into() },
        columns: columns(false).into_iter().map(column).collect(),
        key: vec!["id".into()],
        now: None,
    }
}

/// Two systems that both write the table.
pub fn model(mapping: Mapping) -> (Config, Model) {
    let [born, state] = mapping.columns();
    let text = format!(
        r#"
[agent]
id = "hq"
[[system]]
name = "crm"
url = "postgresql://a@h/crm"
[[system]]
name = "shop"
url = "mysql://a@h/shop"
[[entity]]
name = "item"
key = ["id"]
[entity.in.crm]
table = "item"
[entity.in.crm.columns]
id = "id"
name = "name"
born = {born}
price = "price"
count = "count"
state = {state}
note = "note"
[entity.in.shop]
table = "item"
columns = {{ id = "id", name = "name", born = "born", price = "price", count = "count", state = "state", note = "note" }}
"#
    );
    let config = Config::from_str(&text, "stages.toml").expect("valid");
    let tables = [("public", mapping == Mapping::Mapped), ("shop", false)].map(|(schema, mapped)| {
        let table = catalog(schema, mapped);
        std::iter::once((table.name.clone(), Some(table))).collect()
    });
    let model = resolve::resolve(&config, &tables).unwrap_or_else(|e| panic!("{e:?}"));
    (config, model)
}

/// Row `n` as capture decodes it, texts in `texts`.
pub struct Texts {
    name: String,
    price: String,
    born: String,
    state: &'static str,
}

impl Texts {
    pub fn of(n: u64) -> Texts {
        Texts {
            name: name(n),
            price: price(n),
            born: format!("{:02}/{:02}/19{:02}", 1 + n % 28, 1 + n % 12, 10 + n % 90),
            state: ["N", "O", "D"][n as usize % 3],
        }
    }

    pub fn datums(&self, n: u64, mapped: bool) -> [Datum<'_>; 7] {
        let value = Datum::Value;
        [
            value(Value::Int(n as i64)),
            value(Value::Text(&self.name)),
            if mapped { value(Value::Text(&self.born)) } else { value(Value::Date(n as i32)) },
            value(Value::Decimal(&self.price)),
            value(Value::Int(n as i64 % 1000)),
            value(Value::Text(self.state)),
            if n.is_multiple_of(5) { Datum::Null } else { value(Value::Text(NOTE)) },
        ]
    }
}

pub const NOTE: &str = "delivered on the third attempt, signed by a neighbour";

pub fn name(n: u64) -> String {
    format!("Ada Lovelace {n}")
}

pub fn price(n: u64) -> String {
    format!("{}.{:02}", n * 7 % 10_000, n % 100)
}

/// A normalizer, and the rows of one transaction.
pub struct Stage {
    normalizer: Normalizer,
    mapped: bool,
    texts: Vec<Texts>,
    at: u64,
    _writer: journal::Writer,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub fn new(mapping: Mapping) -> Stage {
        let (config, model) = model(mapping);
        let dir = tempfile::tempdir().expect("a directory");
        let (writer, journal, _) = journal::open(&journal::Options::new(dir.path(), 1 << 30)).expect("a journal");
        let status = Status::new(&config);
        let normalizer =
            Normalizer::new(SystemId(0), &model, journal, 0, 0, watch::channel(Vec::new()).1, Arc::clone(&status));
        let texts = (1..=ROWS).map(Texts::of).collect();
        Stage { normalizer, mapped: mapping == Mapping::Mapped, texts, at: 0, _writer: writer, _dir: dir }
    }

    pub fn transaction(&mut self) -> Captured {
        self.at += 1;
        self.normalizer.begin(Begin { txid: "42" }).expect("taken");
        for (n, texts) in (1..).zip(&self.texts) {
            let after = texts.datums(n, self.mapped);
            let row = RowEvent { table: 0, op: Op::Insert, before: None, after: Some(&after), refused: None };
            self.normalizer.row(row).expect("taken");
        }
        let position = Position::Memory { index: self.at };
        self.normalizer.commit(Commit { position, txid: "42", committed_at: 5 }).expect("taken");
        match self.normalizer.drain().next() {
            Some(Collected::Transaction(captured)) => captured,
            other => panic!("{other:?}"),
        }
    }
}
