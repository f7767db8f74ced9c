//! What becomes of two writes of one record that have not seen each other: every pair, under every
//! policy and scope, asked of the arbiter itself. The table of CONFLICTS.md is written by this.

use std::fmt::Write as _;
use std::sync::Arc;

use anechoic::admit::{Arbiter, Bodies, EntityTopology, Member, MemoryStore, Topology, image_in};
use anechoic::change::{
    Body, Captured, Change, ChangeWriter, Changes, Entry, Fate, Op, Outcome, Record, SpoolRef, fold,
};
use anechoic::error::Result;
use anechoic::normalize::binding::Role;
use anechoic::position::{Position, Seq};
use anechoic::rules::{Merge, OnDelete, Policy, Rules};
use anechoic::schema::{EntityId, EntitySchema, Field, Schema, SystemId};
use anechoic::value::{Datum, Kind, Row, Value, write_datum};
use bytes::Bytes;

const FIELDS: [&str; 5] = ["name", "place", "stock", "best", "tags"];

/// `None`: there is no row.
type Record5 = Option<[&'static str; 5]>;

const START: Record5 = Some(["-", "-", "10", "5", "{x}"]);

struct Pair {
    a: (&'static str, Record5),
    b: (&'static str, Record5),
    start: Record5,
}

fn pairs() -> Vec<Pair> {
    let pair = |a, b| Pair { a, b, start: START };
    let name = |v| Some([v, "-", "10", "5", "{x}"]);
    vec![
        pair(("name", name("A")), ("name", name("B"))),
        pair(("name", name("A")), ("place", Some(["-", "B", "10", "5", "{x}"]))),
        pair(("name", name("A")), ("deletes", None)),
        pair(("deletes", None), ("name", name("B"))),
        pair(("deletes", None), ("deletes", None)),
        Pair {
            a: ("inserts", Some(["A", "A", "3", "1", "{a}"])),
            b: ("inserts", Some(["B", "B", "4", "2", "{b}"])),
            start: None,
        },
        pair(("stock − 3", Some(["-", "-", "7", "5", "{x}"])), ("stock − 4", Some(["-", "-", "6", "5", "{x}"]))),
        pair(("name", name("A")), ("stock − 4", Some(["-", "-", "6", "5", "{x}"]))),
        pair(("stock = NULL", Some(["-", "-", "NULL", "5", "{x}"])), ("stock − 4", Some(["-", "-", "6", "5", "{x}"]))),
        pair(("deletes", None), ("stock − 4", Some(["-", "-", "6", "5", "{x}"]))),
        pair(("stock − 3", Some(["-", "-", "7", "5", "{x}"])), ("deletes", None)),
        pair(("best = 9", Some(["-", "-", "10", "9", "{x}"])), ("best = 7", Some(["-", "-", "10", "7", "{x}"]))),
        pair(
            ("adds tag a", Some(["-", "-", "10", "5", "{x,a}"])),
            ("adds tag b", Some(["-", "-", "10", "5", "{x,b}"])),
        ),
    ]
}

fn schema() -> Arc<Schema> {
    let kinds = [Kind::Int, Kind::Text, Kind::Text, Kind::Int, Kind::Int, Kind::Array];
    let names = ["id"].into_iter().chain(FIELDS);
    let fields = names.zip(kinds).map(|(name, kind)| Field { name: name.into(), kind }).collect();
    Schema::new(vec![EntitySchema::new("article", fields, 1)])
}

fn encoded(record: &[&'static str; 5]) -> Vec<u8> {
    let mut out = Vec::new();
    write_datum(&mut out, Datum::Value(Value::Int(1)));
    for (field, text) in record.iter().enumerate() {
        let datum = match (field, *text) {
            (_, "NULL") => Datum::Null,
            (2 | 3, number) => Datum::Value(Value::Int(number.parse().unwrap())),
            (4, array) => Datum::Value(Value::Array(array)),
            (_, text) => Datum::Value(Value::Text(text)),
        };
        write_datum(&mut out, datum);
    }
    out
}

/// As capture hands it on.
fn change(schema: &Schema, rules: &Rules, before: Record5, after: Record5) -> Bytes {
    let op = match (before, after) {
        (None, _) => Op::Insert,
        (_, None) => Op::Delete,
        _ => Op::Update,
    };
    let (before, after) = (before.as_ref().map(encoded), after.as_ref().map(encoded));
    let mut carried = Vec::new();
    let after = match (&before, after) {
        (Some(before), Some(after)) if rules.trims(op) => {
            assert!(rules.write_carried(1, Row(before), Row(&after), &mut carried));
            Some(carried)
        }
        (_, after) => after,
    };
    let mut writer = ChangeWriter::default();
    writer.begin(EntityId(0), op);
    writer.bytes.extend(before.unwrap_or_default());
    writer.end_before();
    writer.bytes.extend(after.unwrap_or_default());
    writer.finish(schema);
    writer.take().into()
}

struct Journal {
    schema: Arc<Schema>,
    entries: Vec<Entry>,
}

impl Bodies for Journal {
    fn committed_at(&self, seq: Seq) -> Result<Option<i64>> {
        Ok(self.entries.iter().find(|entry| entry.seq == seq).map(|entry| entry.committed_at))
    }

    fn chunks(&self, _: &SpoolRef, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        unreachable!("nothing is spooled here")
    }

    fn image(&self, seq: Seq, key_hash: u128) -> Result<Option<Bytes>> {
        let entry = self.entries.iter().find(|entry| entry.seq == seq);
        entry.map_or(Ok(None), |entry| image_in(entry, key_hash, &self.schema, self))
    }
}

/// What all systems end with, and whether something waits for a person.
fn outcome(pair: &Pair, rules: &Rules, first: u8) -> (Text5, bool) {
    let schema = schema();
    let rules = Arc::new(rules.clone());
    let member = |system| Member { system: SystemId(system), role: Role::Both, fields: 0b11_1111, inexact: 0 };
    let topology = Topology {
        systems: ["a", "b"].map(Arc::from).to_vec(),
        schema: schema.clone(),
        entities: vec![EntityTopology { rules: rules.clone(), members: vec![member(0), member(1)] }],
    };
    let mut arbiter = Arbiter::new(topology, Box::new(MemoryStore::default()));
    let mut journal = Journal { schema: schema.clone(), entries: Vec::new() };
    let mut waits = false;
    for system in [first, 1 - first] {
        let (at, after) = if system == 0 { (1, pair.a.1) } else { (2, pair.b.1) };
        let captured = Captured {
            system: SystemId(system),
            position: Position::Memory { index: 1 },
            base: 0,
            txid: "".into(),
            committed_at: at,
            hops: 0,
            schema: schema.clone(),
            changes: 1,
            body: Body::Inline(change(&schema, &rules, pair.start, after)),
            refused: Vec::new(),
        };
        for record in arbiter.captured(captured, &journal).unwrap().records {
            match record {
                Record::Entry(entry) => journal.entries.push(entry),
                Record::Conflict(conflict) => waits |= conflict.outcome == Outcome::Waiting,
                _ => {}
            }
        }
    }
    let mut row: Bytes = match pair.start {
        Some(_) => change(&schema, &Rules::default(), None, pair.start),
        None => Bytes::new(),
    };
    for entry in &journal.entries {
        let Body::Inline(body) = &entry.body else { unreachable!("nothing is spooled here") };
        let change: Change<'_> = Changes::new(body).next().unwrap();
        let change = match entry.fate(0, "", &mut 0) {
            Fate::Apply => change,
            Fate::Replace(other) => other.change(),
            Fate::Skip => continue,
        };
        row = if row.is_empty() {
            let mut writer = ChangeWriter::default();
            writer.push_change(&change);
            writer.take().into()
        } else {
            fold(&row, &change)
        };
    }
    let last = Changes::new(&row).next().unwrap();
    (last.after.map(|after| after.iter().skip(1).map(shown).collect()), waits)
}

type Text5 = Option<Vec<String>>;

fn shown(datum: Datum<'_>) -> String {
    match datum {
        Datum::Value(Value::Text(text) | Value::Array(text)) => text.to_owned(),
        Datum::Value(Value::Int(number)) => number.to_string(),
        _ => "NULL".to_owned(),
    }
}

/// What is there in the end, where it is not what was there before.
fn said(pair: &Pair, end: &Text5) -> String {
    let Some(end) = end else { return "deleted".to_owned() };
    let start = pair.start.unwrap_or(["", "", "", "", ""]);
    let changed = FIELDS.iter().zip(end).zip(start).filter(|((_, end), start)| *end != start);
    let changed: Vec<String> = match pair.start {
        None => return format!("the row of {}", end[0]),
        Some(_) => changed.map(|((field, end), _)| format!("{field} {end}")).collect(),
    };
    if changed.is_empty() { "as it was".to_owned() } else { changed.join(", ") }
}

fn cell(pair: &Pair, rules: &Rules) -> String {
    let [first, second] = [0, 1].map(|first| {
        let (end, waits) = outcome(pair, rules, first);
        format!("{}{}", said(pair, &end), if waits { " (other waits)" } else { "" })
    });
    if first == second { first } else { format!("{first}; or {second}") }
}

fn table() -> String {
    let mut out = String::new();
    let policies = [Policy::Authority, Policy::Latest, Policy::Manual];
    for (by_field, scope) in [(false, "row"), (true, "field")] {
        writeln!(
            out,
            "### Scope `{scope}`\n\n| A writes | B writes | authority | latest | manual | update_wins | delete_wins |"
        )
        .unwrap();
        writeln!(out, "|---|---|---|---|---|---|---|").unwrap();
        for pair in pairs() {
            let merges = vec![(3, Merge::Add), (4, Merge::Max), (5, Merge::Union)];
            let rules =
                |policy, on_delete| Rules { policy, by_field, on_delete, merges: merges.clone(), ..Rules::default() };
            let mut cells: Vec<String> = policies.iter().map(|policy| cell(&pair, &rules(*policy, None))).collect();
            for on_delete in [OnDelete::UpdateWins, OnDelete::DeleteWins] {
                cells.push(cell(&pair, &rules(Policy::Authority, Some(on_delete))));
            }
            writeln!(out, "| {} | {} | {} |", pair.a.0, pair.b.0, cells.join(" | ")).unwrap();
        }
        out.push('\n');
    }
    out
}

#[test]
fn every_pair_of_writes_ends_as_the_documentation_says() {
    const BEGIN: &str = "<!-- outcomes: written by tests/world/outcomes.rs -->\n";
    const END: &str = "<!-- end of outcomes -->";
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/CONFLICTS.md");
    let text = std::fs::read_to_string(page).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the page says where the table begins");
    let (written, tail) = rest.split_once(END).expect("the page says where the table ends");
    let table = table();

    if std::env::var_os("ANECHOIC_WRITE_OUTCOMES").is_some() {
        std::fs::write(page, format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
        return;
    }
    assert_eq!(written, table, "`make outcomes` writes the page anew: read what has changed");
}
