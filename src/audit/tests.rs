use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::conflicts::{ListSpec, list, list_by, show};
use super::export::{AuditSpec, page};
use super::resolve::{self, Choice};
use super::undo::{Plan, UndoSpec, meets, plan};
use crate::change::{
    Address, Body, ChangeWriter, Changes, ConflictId, Conflicted, Decision, Entry, Images, Op, Origin, Outcome, Record,
    Rule, Settled, Settlement, Verdict,
};
use crate::config::Config;
use crate::control::image;
use crate::error::Result;
use crate::journal::{Journal, Options, Writer, open};
use crate::position::Seq;
use crate::schema::{EntityId, EntitySchema, Field, Schema};
use crate::value::{Datum, Kind, Value};

const CONFIG: &str = r#"
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
merge = { stock = "add" }
[entity.in.crm]
table = "items"
[entity.in.shop]
table = "items"
"#;

fn schema() -> Arc<Schema> {
    let field = |name: &str, kind| Field { name: name.into(), kind };
    let fields = vec![field("id", Kind::Int), field("name", Kind::Text), field("stock", Kind::Int)];
    Schema::new(vec![EntitySchema::new("item", fields, 1)])
}

/// `name`, `stock`; `+n` and `-n` are differences, `·` is not carried.
type Fields<'a> = Option<(&'a str, &'a str)>;

fn change(key: i64, before: Fields<'_>, after: Fields<'_>) -> Bytes {
    let row = |(name, stock): (&'static str, &'static str)| {
        let name = if name == "·" { Datum::NotSent } else { Datum::Value(Value::Text(name)) };
        let stock = match stock.strip_prefix('+').or(stock.strip_prefix('-').map(|_| stock)) {
            Some(difference) => Datum::Added(difference),
            None if stock == "·" => Datum::NotSent,
            None => Datum::Value(Value::Int(stock.parse().unwrap())),
        };
        [Datum::Value(Value::Int(key)), name, stock].into_iter()
    };
    let leak = |fields: Fields<'_>| {
        fields.map(|(name, stock)| {
            (&*Box::leak(name.to_owned().into_boxed_str()), &*Box::leak(stock.to_owned().into_boxed_str()))
        })
    };
    let op = match (before, after) {
        (None, _) => Op::Insert,
        (_, None) => Op::Delete,
        _ => Op::Update,
    };
    let mut writer = ChangeWriter::default();
    writer.push(&schema(), EntityId(0), op, leak(before).map(row), leak(after).map(row));
    writer.take().into()
}

struct Book {
    _dir: tempfile::TempDir,
    writer: Writer,
    journal: Journal,
}

impl Book {
    fn new() -> Book {
        let dir = tempfile::tempdir().unwrap();
        let (writer, journal, _) = open(&Options::new(dir.path().join("journal"), 1 << 24)).unwrap();
        Book { _dir: dir, writer, journal }
    }

    fn write(&mut self, record: &Record) {
        self.writer.append(record).unwrap();
    }

    /// A transaction of that system, committed `seq` seconds after 1970.
    fn entry(&mut self, origin: &str, txid: &str, changes: &[Bytes], decisions: &[Decision]) -> Seq {
        self.entry_with(origin, txid, changes, decisions, Bytes::new())
    }

    fn entry_with(
        &mut self,
        origin: &str,
        txid: &str,
        changes: &[Bytes],
        decisions: &[Decision],
        replacements: Bytes,
    ) -> Seq {
        let seq = self.writer.head() + 1;
        self.write(&Record::Entry(Entry {
            seq,
            origin: if origin == "agent" { Origin::Agent } else { Origin::System(origin.into()) },
            position: None,
            base: 0,
            txid: txid.into(),
            committed_at: seq as i64 * 1_000_000,
            to: Address::Others,
            schema: schema(),
            changes: changes.len() as u64,
            body: Body::Inline(changes.concat().into()),
            decisions: decisions.to_vec(),
            replacements,
            hops: 0,
        }));
        seq
    }

    fn undo(&mut self, spec: &UndoSpec) -> Result<Plan> {
        self.writer.sync().unwrap();
        let config = Config::from_str(CONFIG, "t").unwrap();
        plan(&self.journal, spec, &schema(), &config)
    }
}

fn tx(tx: &str) -> UndoSpec {
    UndoSpec { tx: Some(tx.into()), ..UndoSpec::default() }
}

/// The changes in words: `update 1 name=Ada stock=add -5`.
fn words(body: &Bytes) -> Vec<String> {
    let of = |change: crate::change::Change<'_>| {
        let mut image = image(schema().entity(EntityId(0)), change.image());
        let id = image.remove("id").flatten().unwrap();
        let fields: Vec<String> =
            image.iter().map(|(name, value)| format!(" {name}={}", value.as_deref().unwrap_or("NULL"))).collect();
        format!("{} {id}{}", change.op.name(), fields.concat())
    };
    Changes::new(body).map(of).collect()
}

#[test]
fn a_transaction_is_taken_back_by_what_leads_to_what_it_found() {
    let mut book = Book::new();
    book.entry("crm", "1", &[change(1, None, Some(("Ada", "5"))), change(2, None, Some(("Bob", "5")))], &[]);
    let bad = [
        change(1, Some(("Ada", "5")), Some(("gone", "5"))),
        change(1, Some(("gone", "5")), Some(("·", "-3"))),
        change(2, Some(("Bob", "5")), None),
        change(3, None, Some(("new", "1"))),
        change(4, None, Some(("short", "1"))),
        change(4, Some(("short", "1")), None),
        change(5, Some(("same", "1")), Some(("other", "1"))),
        change(5, Some(("other", "1")), Some(("same", "1"))),
    ];
    book.entry("shop", "2", &bad, &[]);

    let plan = book.undo(&tx("2")).unwrap();

    assert_eq!(
        words(&plan.body),
        ["delete 3 name=new stock=1", "insert 2 name=Bob stock=5", "update 1 name=Ada stock=add 3"]
    );
    assert_eq!(plan.changes, 3);
    assert_eq!(plan.undone.changed, 0);
    let counts = &plan.undone.entities[0];
    assert_eq!((counts.inserts, counts.updates, counts.deletes), (1, 1, 1));
    let sample = plan.undone.samples.iter().find(|sample| sample.op == "update").unwrap();
    assert_eq!(sample.then.as_ref().unwrap().get("name"), Some(&Some("Ada".to_owned())));
}

/// Rows by key: name, stock.
type Table = BTreeMap<i64, (String, i64)>;

/// As a system does with what it is sent.
fn apply(table: &mut Table, body: &Bytes) {
    for change in Changes::new(body) {
        let Datum::Value(Value::Int(key)) = change.image().get(0) else { panic!("a key") };
        let Some(after) = change.after else {
            table.remove(&key);
            continue;
        };
        let row = table.entry(key).or_default();
        if let Datum::Value(Value::Text(name)) = after.get(1) {
            row.0 = name.to_owned();
        }
        match after.get(2) {
            Datum::Value(Value::Int(stock)) => row.1 = stock,
            Datum::Added(difference) => row.1 += difference.parse::<i64>().unwrap(),
            _ => {}
        }
    }
}

/// Whatever the transactions did: what takes them back leads to what they found, with what others
/// added meanwhile.
#[test]
fn whatever_was_done_is_taken_back() {
    let seed = u64::from(std::process::id());
    for round in 0..60 {
        let mut random = seed * 1000 + round;
        let mut dice = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut book, mut table) = (Book::new(), Table::new());
        let begin: Vec<Bytes> = (1..=3).map(|key| change(key, None, Some(("first", "10")))).collect();
        begin.iter().for_each(|change| apply(&mut table, change));
        book.entry("crm", "1", &begin, &[]);
        let found = table.clone();
        let (mut sold, mut written) = (BTreeMap::new(), 0);
        for txid in ["2", "3", "4"] {
            let mut changes = Vec::new();
            for _ in 0..dice(6) {
                let (key, what) = (1 + dice(5) as i64, dice(5));
                let before = table.get(&key).cloned();
                let stock = before.as_ref().map_or_else(String::new, |row| row.1.to_string());
                let before = before.as_ref().map(|row| (row.0.as_str(), stock.as_str()));
                let (name, number) = (format!("name {}", dice(3)), dice(5).to_string());
                let difference = format!("{}{}", if dice(2) == 0 { "+" } else { "-" }, 1 + dice(4));
                let made = match (before, what) {
                    (None, _) => change(key, None, Some((&name, &number))),
                    (before, 0) => change(key, before, None),
                    (before, 1) => change(key, before, Some((&name, "·"))),
                    (before, 2) => change(key, before, Some((&name, &number))),
                    (before, _) => change(key, before, Some(("·", &difference))),
                };
                apply(&mut table, &made);
                changes.push(made);
            }
            written += changes.len();
            book.entry("shop", txid, &changes, &[]);
        }
        // Somebody else sells meanwhile, of what was there before and is there still.
        for key in 1..=3 {
            if dice(2) == 0 && table.contains_key(&key) {
                let sale = change(key, Some(("·", "·")), Some(("·", "-1")));
                apply(&mut table, &sale);
                book.entry("crm", "9", &[sale], &[]);
                sold.insert(key, 1);
            }
        }

        let spec = UndoSpec { system: Some("shop".into()), since: Some(0), ..UndoSpec::default() };
        if written == 0 {
            continue;
        }
        let undone = book.undo(&spec).unwrap();
        apply(&mut table, &undone.body);

        assert_eq!(undone.undone.changed, 0, "seed {seed}, round {round}");
        let mut expected = found;
        sold.iter().for_each(|(key, sold)| expected.get_mut(key).unwrap().1 -= sold);
        assert_eq!(table, expected, "seed {seed}, round {round}");
    }
}

/// The shop binds no stock, so its deletion does not tell it.
#[test]
fn a_deleted_row_comes_back_with_the_fields_of_others_where_the_journal_has_them() {
    let mut book = Book::new();
    book.entry("crm", "1", &[change(1, None, Some(("a", "5")))], &[]);
    book.entry("crm", "2", &[change(1, Some(("a", "5")), Some(("·", "-2")))], &[]);
    book.entry("shop", "3", &[change(1, Some(("b", "·")), None), change(2, Some(("c", "·")), None)], &[]);

    let plan = book.undo(&tx("3")).unwrap();

    assert_eq!(words(&plan.body), ["insert 2 name=c", "insert 1 name=b stock=3"]);
    assert_eq!(plan.undone.notes, ["1 rows come back without fields that the journal does not have"]);
}

/// Who plans reads beside the writer: what came meanwhile is looked at once more.
#[test]
fn a_plan_meets_what_was_written_behind_it() {
    let mut book = Book::new();
    book.entry("shop", "2", &[change(1, Some(("a", "1")), Some(("b", "1")))], &[]);
    let plan = book.undo(&tx("2")).unwrap();
    let mut met = |changes: &[Bytes], decisions: &[Decision]| {
        let seq = book.entry("crm", "9", changes, decisions);
        book.writer.sync().unwrap();
        let entry = book.journal.entry(seq).unwrap().unwrap();
        meets(&book.journal, &entry, &plan.keys, &schema()).unwrap()
    };
    let lost = [Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 1 } }];
    let same = change(1, Some(("b", "1")), Some(("c", "1")));

    assert!(!met(&[change(2, None, Some(("x", "1")))], &[]));
    assert!(!met(std::slice::from_ref(&same), &lost));
    assert!(met(&[change(2, Some(("x", "1")), None), same], &[]));
}

/// Several transactions are one net: what the first of them found.
#[test]
fn transactions_of_a_time_are_taken_back_together() {
    let mut book = Book::new();
    book.entry("shop", "1", &[change(1, None, Some(("Ada", "5")))], &[]);
    for (txid, from, to) in [("2", "Ada", "Bob"), ("3", "Bob", "Cy"), ("4", "Cy", "Di")] {
        book.entry("shop", txid, &[change(1, Some((from, "5")), Some((to, "5")))], &[]);
    }
    let since = |since: i64, until| UndoSpec {
        system: Some("shop".into()),
        since: Some(since * 1_000_000),
        until,
        ..UndoSpec::default()
    };

    let all = book.undo(&since(2, None)).unwrap();
    let middle = book.undo(&since(2, Some(3_000_000))).unwrap();

    assert_eq!(words(&all.body), ["update 1 name=Ada"]);
    assert_eq!(all.undone.transactions.len(), 3);
    assert_eq!((middle.changes, middle.undone.changed), (0, 1), "the last one built on them");
}

#[test]
fn what_others_changed_since_is_left_alone_and_named() {
    let mut book = Book::new();
    let bad: Vec<Bytes> = (1..=4).map(|key| change(key, Some(("good", "9")), Some(("bad", "5")))).collect();
    book.entry("shop", "2", &bad, &[]);
    let inserted = change(5, None, Some(("new", "1")));
    book.entry("shop", "2", &[inserted], &[]);
    book.entry("crm", "77", &[change(1, Some(("bad", "5")), Some(("mended", "5")))], &[]);
    book.entry(
        "crm",
        "78",
        &[change(2, Some(("bad", "5")), Some(("·", "-1"))), change(5, Some(("new", "1")), Some(("·", "-1")))],
        &[],
    );
    book.entry("agent", "resolve 1.0", &[change(3, Some(("bad", "5")), None)], &[]);
    let lost = [Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 1 } }];
    book.entry("crm", "79", &[change(4, Some(("good", "9")), Some(("lost", "9")))], &lost);

    let plan = book.undo(&tx("2")).unwrap();

    assert_eq!(words(&plan.body), ["update 4 name=good stock=add 4", "update 2 name=good stock=add 4"]);
    let changed: Vec<(&str, &str)> =
        plan.undone.changed_samples.iter().map(|changed| (changed.key.as_str(), changed.by.as_str())).collect();
    assert_eq!(changed, [("5", "crm"), ("3", "agent"), ("1", "crm")]);
}

#[test]
fn what_lost_a_conflict_has_nothing_to_be_taken_back() {
    let mut book = Book::new();
    let lost = [Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 1 } }];
    let changes = [change(1, Some(("a", "1")), Some(("b", "1"))), change(2, Some(("a", "1")), Some(("b", "1")))];
    book.entry("shop", "2", &changes, &lost);

    let plan = book.undo(&tx("2")).unwrap();

    assert_eq!(words(&plan.body), ["update 2 name=a"]);
    assert!(plan.undone.notes[0].starts_with("1 of their changes had lost a conflict"), "{:?}", plan.undone.notes);
}

/// What the others get instead is told beside it.
#[test]
fn of_a_delete_and_of_an_insert_that_is_answered_by_one_nothing_stands() {
    let mut book = Book::new();
    let (row, parts) = (Some(("a", "1")), [Some(("a", "·")), Some(("b", "1"))]);
    let restored = change(1, None, parts[0]);
    let deleted = change(2, row, None);
    let part = change(3, row, parts[0]);
    let at = |n: usize| [&restored, &deleted, &part][..n].iter().map(|change| change.len() as u64).sum::<u64>();
    let verdicts = [
        Verdict::Replaced { offset: at(0), everywhere: true, winner: Some(7) },
        Verdict::Redeleted { offset: at(1), winner: 8, by: Origin::System("crm".into()) },
        Verdict::Replaced { offset: at(2), everywhere: false, winner: Some(9) },
    ];
    let decisions = (0..).zip(verdicts).map(|(from, verdict)| Decision { from, to: from + 1, verdict });
    let changes = [change(1, row, None), change(2, None, row), change(3, row, parts[1])];
    book.entry_with("shop", "1", &changes, &decisions.collect::<Vec<_>>(), [restored, deleted, part].concat().into());
    book.writer.sync().unwrap();

    let told = page(&book.journal, &AuditSpec::default()).unwrap().operations;

    let told: Vec<String> = told
        .iter()
        .map(|told| {
            let instead = told.instead.as_ref().map_or("nothing", |instead| &instead.op);
            format!("{} {} to {:?}, {instead} instead", told.op, told.decision, told.lost_to.unwrap())
        })
        .collect();
    assert_eq!(
        told,
        [
            "delete rejected to 7, insert instead",
            "insert rejected to 8, delete instead",
            "update partly to 9, update instead"
        ]
    );
}

#[test]
fn what_names_no_transaction_or_two_is_refused() {
    let mut book = Book::new();
    book.entry("shop", "2", &[change(1, None, Some(("a", "1")))], &[]);
    book.entry("crm", "2", &[change(2, None, Some(("a", "1")))], &[]);

    let two = book.undo(&tx("2")).unwrap_err();
    let none = book.undo(&tx("3")).unwrap_err();
    let one = book.undo(&UndoSpec { system: Some("crm".into()), ..tx("2") }).unwrap();

    assert!(two.message.contains("one of shop and of crm each"), "{}", two.message);
    assert!(none.message.contains("no transaction \"3\""), "{}", none.message);
    assert_eq!(words(&one.body), ["delete 2 name=a stock=1"]);
}

fn conflict(seq: Seq, outcome: Outcome, images: Option<Images>) -> Conflicted {
    let change = change(1, Some(("a", "1")), Some(("b", "1")));
    Conflicted {
        id: ConflictId { seq, index: 0 },
        entity: "item".into(),
        key_hash: Changes::new(&change).next().unwrap().key_hash,
        system: "shop".into(),
        against: 1,
        against_system: Some("crm".into()),
        rule: Rule::Manual,
        outcome,
        at: seq as i64,
        images,
    }
}

fn waiting(lost: Bytes, current: Bytes) -> Images {
    Images { schema: schema(), change: lost, current, fields: 0b010 }
}

fn waits(seq: Seq) -> Conflicted {
    let lost = change(1, Some(("a", "1")), Some(("b", "1")));
    let current = change(1, Some(("a", "1")), Some(("c", "1")));
    conflict(seq, Outcome::Waiting, Some(waiting(lost, current)))
}

#[test]
fn the_newest_conflicts_are_found_however_many_entries_lie_between() {
    let mut book = Book::new();
    let row = change(1, Some(("a", "1")), Some(("b", "1")));
    for seq in 1..=300 {
        if [3, 63, 64, 65, 299, 300].contains(&seq) {
            book.write(&Record::Conflict(if seq == 3 { waits(seq) } else { conflict(seq, Outcome::Lost, None) }));
        }
        book.entry("shop", "x", std::slice::from_ref(&row), &[]);
        if seq == 200 {
            let id = ConflictId { seq: 3, index: 0 };
            book.write(&Record::Settled(Settled { id, how: Settlement::Resolved, by: 200 }));
        }
    }
    book.writer.sync().unwrap();
    let listed = |limit: usize, entity: Option<&str>| {
        let spec = ListSpec { entity: entity.map(str::to_owned), open: false, limit };
        list_by(&book.journal, &spec, &[], 64).unwrap()
    };

    let ids: Vec<String> = listed(10, None).into_iter().map(|conflict| conflict.id).collect();
    assert_eq!(ids, ["300.0", "299.0", "65.0", "64.0", "63.0", "3.0"]);
    assert_eq!(listed(2, Some("item")).len(), 2);
    assert_eq!(listed(2, Some("order")), []);
    let oldest = listed(10, None).pop().unwrap();
    assert_eq!((oldest.open, oldest.settled.as_deref(), oldest.settled_by), (false, Some("resolved"), Some(200)));
    assert_eq!(oldest.key.as_deref(), Some("1"));
}

/// Written before its entry: a crash between the two left one that never was.
#[test]
fn a_conflict_of_an_entry_that_never_came_is_none() {
    let mut book = Book::new();
    let row = change(1, Some(("a", "1")), Some(("b", "1")));
    book.entry("crm", "x", std::slice::from_ref(&row), &[]);
    book.write(&Record::Conflict(conflict(2, Outcome::Lost, None)));
    book.writer.sync().unwrap();
    let spec = ListSpec { entity: None, open: false, limit: 10 };
    assert_eq!(list(&book.journal, &spec, &[]).unwrap(), []);

    book.write(&Record::Conflict(conflict(2, Outcome::Won, None)));
    book.entry("shop", "y", std::slice::from_ref(&row), &[]);
    book.writer.sync().unwrap();

    let listed = list(&book.journal, &spec, &[]).unwrap();
    assert_eq!(listed.iter().map(|conflict| conflict.outcome.as_str()).collect::<Vec<_>>(), ["won"]);
    assert_eq!(show(&book.journal, ConflictId { seq: 2, index: 0 }, None).unwrap().conflict.outcome, "won");
}

#[test]
fn a_conflict_shows_who_wrote_what() {
    let mut book = Book::new();
    book.entry("crm", "77", &[change(1, Some(("a", "1")), Some(("c", "1")))], &[]);
    book.write(&Record::Conflict(waits(2)));
    let lost = [Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 1 } }];
    book.entry("shop", "78", &[change(1, Some(("a", "1")), Some(("b", "1")))], &lost);
    book.writer.sync().unwrap();
    let id = ConflictId { seq: 2, index: 0 };

    let shown = show(&book.journal, id, Some(&waits(2))).unwrap();

    let side = |version: &Option<super::Version>| {
        let version = version.clone().unwrap();
        let name = |image: Option<BTreeMap<String, Option<String>>>| image.unwrap()["name"].clone().unwrap();
        (version.origin, version.txid, name(version.before), name(version.after))
    };
    assert_eq!(side(&shown.change), ("shop".into(), "78".into(), "a".into(), "b".into()));
    assert_eq!(side(&shown.against), ("crm".into(), "77".into(), "a".into(), "c".into()));
    assert_eq!((shown.waiting, shown.conflict.open), (vec!["name".to_owned()], true));
    let unknown = show(&book.journal, ConflictId { seq: 1, index: 0 }, None).unwrap_err();
    assert!(unknown.message.contains("no conflict 1.0"), "{}", unknown.message);
}

#[test]
fn a_decision_becomes_one_change_for_all() {
    let updated = |name| change(1, Some(("a", "1")), Some((name, "1")));
    let deleted = || change(1, Some(("a", "1")), None);
    let decide = |lost: Bytes, current: Bytes, take: Option<&str>, set: &[(&str, Option<&str>)]| {
        let conflict = conflict(2, Outcome::Waiting, Some(waiting(lost, current)));
        let set = set.iter().map(|(field, value)| ((*field).to_owned(), value.map(str::to_owned))).collect();
        let choice = Choice { id: "2.0".into(), take: take.map(str::to_owned), set };
        resolve::change(&conflict, &choice, &schema())
            .map(|change| change.map_or_else(|| "stays".to_owned(), |change| words(&change).concat()))
            .unwrap_or_else(|error| error.message)
    };

    assert_eq!(decide(updated("b"), updated("c"), Some("crm"), &[]), "stays");
    assert_eq!(decide(updated("b"), updated("c"), Some("shop"), &[]), "update 1 name=b");
    assert_eq!(decide(updated("b"), updated("c"), None, &[("stock", Some("7"))]), "update 1 stock=7");
    assert_eq!(decide(updated("b"), updated("c"), Some("shop"), &[("stock", None)]), "update 1 name=b stock=NULL");
    assert_eq!(decide(updated("b"), deleted(), Some("shop"), &[]), "insert 1 name=b stock=1");
    assert_eq!(decide(updated("b"), deleted(), Some("crm"), &[]), "stays");
    assert_eq!(decide(deleted(), updated("c"), Some("shop"), &[]), "delete 1 name=c stock=1");
    assert_eq!(decide(updated("b"), Bytes::new(), Some("shop"), &[]), "update 1 name=b");
    assert!(decide(updated("b"), updated("c"), Some("erp"), &[]).contains("\"erp\" wrote neither version"));
    assert!(decide(updated("b"), updated("c"), None, &[("stok", Some("7"))]).contains("nearest: \"stock\""));
    assert!(decide(updated("b"), updated("c"), None, &[("stock", Some("x"))]).contains("no value of field \"stock\""));
    assert!(decide(updated("b"), updated("c"), None, &[("id", Some("2"))]).contains("is of the key"));
}
