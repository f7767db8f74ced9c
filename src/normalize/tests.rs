//! A scripted log through a whole normalizer: PostgreSQL `crm` (no filter), MySQL `shop`
//! (decimal price, `where`), and a target.

use std::fmt::Write as _;

use super::*;
use crate::catalog::{Column, ColumnType, ReplicaIdentity, Table, TableName};
use crate::change::Changes;
use crate::config::Config;
use crate::error::Recovery;
use crate::journal;
use crate::value::Value;

struct World {
    normalizer: Normalizer,
    status: Arc<Status>,
    journal: Journal,
    writer: journal::Writer,
    _dir: tempfile::TempDir,
}

fn column(name: &str, ty: ColumnType) -> Column {
    Column { nullable: name != "id", ..Column::new(name, ty, "") }
}

fn table(schema: &str, name: &str, key: &[&str]) -> Table {
    let key: Vec<String> = key.iter().map(|k| (*k).to_owned()).collect();
    Table {
        columns: vec![
            column("id", ColumnType::Decimal { limits: None }),
            column("name", ColumnType::Text { chars: None, bytes: None }),
            column("born", ColumnType::Text { chars: None, bytes: None }),
        ],
        unique_keys: vec![key.clone()],
        primary_key: key,
        replica_identity: (schema == "public").then_some(ReplicaIdentity::Full),
        ..Table::new(TableName { schema: schema.into(), name: name.into() })
    }
}

/// Table 0 is the contact with what `binding` adds, table 1 the keyless log.
fn world(binding: &str) -> World {
    let other_role = if binding.contains("\"target\"") { "source" } else { "both" };
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
name = "contact"
key = ["id"]
[entity.in.crm]
table = "contacts"
{binding}
[entity.in.crm.columns]
id = "id"
name = "name"
born = {{ column = "born", format = "%d/%m/%Y" }}
[entity.in.shop]
table = "contacts"
role = "{other_role}"
columns = {{ id = "id", name = "name" }}
[[entity]]
name = "log"
[entity.in.crm]
table = "log"
columns = {{ name = "name" }}
[entity.in.shop]
table = "log"
columns = {{ name = "name" }}
"#
    );
    let config = Config::from_str(&text, "t.toml").unwrap_or_else(|e| panic!("{e:?}"));
    let catalog = |schema: &str| {
        let tables = [table(schema, "contacts", &["id"]), table(schema, "log", &[])];
        tables.into_iter().map(|mut table| {
            table.columns[0].nullable = table.primary_key.is_empty();
            (table.name.clone(), Some(table))
        })
    };
    let catalogs = [catalog("public").collect(), catalog("shop").collect()];
    let model = resolve::resolve(&config, &catalogs).unwrap_or_else(|e| panic!("{e:?}"));
    let dir = tempfile::tempdir().unwrap();
    let (writer, journal, _) = journal::open(&journal::Options::new(dir.path(), 1 << 30)).unwrap();
    let status = Status::new(&config);
    let normalizer =
        Normalizer::new(SystemId(0), &model, journal.clone(), 3, 0, watch::channel(Vec::new()).1, status.clone());
    World { normalizer, status, journal, writer, _dir: dir }
}

fn at(index: u64) -> Position {
    Position::Memory { index }
}

fn marker(seq: Seq, journal: u128) -> Marker {
    let (origin, txid) = (String::new(), String::new());
    Marker { agent: "hq".into(), lane: 0, journal, epoch: 1, seq, part: 0, origin, txid }
}

type Image = [Datum<'static>; 3];

fn row(id: &'static str, name: &'static str) -> Image {
    born(id, name, "29/02/2024")
}

fn born(id: &'static str, name: &'static str, born: &'static str) -> Image {
    [Datum::Value(Value::Decimal(id)), Datum::Value(Value::Text(name)), Datum::Value(Value::Text(born))]
}

impl World {
    /// So many entries.
    fn journaled(&mut self, entries: u64) {
        for seq in 1..=entries {
            let entry = crate::change::Entry {
                seq,
                origin: crate::change::Origin::Agent,
                position: None,
                base: 0,
                txid: "1".into(),
                committed_at: 0,
                hops: 0,
                to: crate::change::Address::Others,
                schema: Schema::new(Vec::new()),
                changes: 0,
                body: Body::Inline(Bytes::new()),
                decisions: Vec::new(),
                replacements: Bytes::new(),
            };
            self.writer.append(&Record::Entry(entry)).unwrap();
        }
        self.writer.sync().unwrap();
    }

    /// One transaction of these contacts (before, after), and what came of it.
    fn commit(&mut self, rows: &[(Option<Image>, Option<Image>)]) -> Vec<Collected> {
        self.try_commit(rows).unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_commit(&mut self, rows: &[(Option<Image>, Option<Image>)]) -> Result<Vec<Collected>> {
        self.normalizer.begin(Begin { txid: "42" })?;
        for (before, after) in rows {
            let op = match (before, after) {
                (None, Some(_)) => Op::Insert,
                (Some(_), None) => Op::Delete,
                _ => Op::Update,
            };
            self.normalizer.row(RowEvent {
                table: 0,
                op,
                before: before.as_ref().map(|image| &image[..]),
                after: after.as_ref().map(|image| &image[..]),
                refused: None,
            })?;
        }
        self.normalizer.commit(Commit { position: at(9), txid: "42", committed_at: 5 })?;
        Ok(self.normalizer.drain().collect())
    }

    /// What a single transaction became, as text: `update 1 Ada → 1 Bob`.
    fn told(&mut self, rows: &[(Option<Image>, Option<Image>)]) -> String {
        match self.commit(rows).as_slice() {
            [Collected::Transaction(captured)] => told(captured),
            [Collected::Passed { .. }] => "passed".into(),
            other => panic!("{other:?}"),
        }
    }

    fn books(&self) -> [u64; 4] {
        let capture = &self.status.systems[0].capture;
        [capture.changes.get(), capture.filtered.get(), capture.refused.get(), capture.drift.get()]
    }
}

fn told(captured: &Captured) -> String {
    let Body::Inline(body) = &captured.body else { panic!("spooled") };
    let image = |row: Option<Row<'_>>| {
        row.map(|row| match (row.get(0), row.get(1)) {
            (Datum::Value(Value::Decimal(id)), Datum::Value(Value::Text(name))) => format!("{id} {name}"),
            other => format!("{other:?}"),
        })
    };
    let mut text = Changes::new(body).fold(String::new(), |mut text, change| {
        let sep = if text.is_empty() { "" } else { ", " };
        let images: Vec<String> = [image(change.before), image(change.after)].into_iter().flatten().collect();
        write!(text, "{sep}{} {}", change.op.name(), images.join(" → ")).unwrap();
        text
    });
    if !captured.refused.is_empty() {
        write!(text, "; refused {}", captured.refused.len()).unwrap();
    }
    text
}

#[test]
fn rows_become_changes_of_whole_rows() {
    let mut world = world("");

    let said = world.told(&[
        (None, Some(row("1", "Ada"))),
        (Some(row("1", "Ada")), Some(row("1", "Bob"))),
        (Some(row("1", "Bob")), None),
    ]);

    assert_eq!(said, "insert 1 Ada, update 1 Ada → 1 Bob, delete 1 Bob");
    assert_eq!(world.books(), [3, 0, 0, 0]);
}

#[test]
fn a_transaction_knows_where_it_stands_and_what_its_writer_had_seen() {
    let mut world = world("");
    let ours = world.journal.id();
    world.journaled(12);
    world.normalizer.echo(&marker(12, ours), at(1)).unwrap();
    world.normalizer.echo(&marker(11, ours), at(2)).unwrap(); // another lane
    world.normalizer.passed(at(3)).unwrap();
    let collected = world.commit(&[(None, Some(row("1", "Ada")))]);

    let [Collected::Passed { position, base: 12, .. }, Collected::Transaction(captured)] = collected.as_slice() else {
        panic!("{collected:?}")
    };
    assert_eq!(*position, at(3));
    assert_eq!((captured.base, &captured.position, &*captured.txid), (12, &at(9), "42"));
    assert_eq!((captured.committed_at, captured.changes), (5, 1));
    assert_eq!(world.status.systems[0].capture.echoes.get(), 2);
    let stranger = world.normalizer.echo(&marker(13, 99), at(4)).unwrap_err();
    assert_eq!(stranger.recovery, Recovery::Stop);
    // Applied, and not in the journal: this one is older than what is there.
    let ahead = world.normalizer.echo(&marker(13, ours), at(4)).unwrap_err();
    assert!(ahead.is_lost() && ahead.hint.ends_with("anechoic load --resync crm"), "{ahead:?}");
}

#[test]
fn a_key_change_is_a_delete_and_an_insert() {
    let mut world = world("");

    let said = world.told(&[(Some(row("1", "Ada")), Some(row("2", "Ada")))]);

    assert_eq!(said, "delete 1 Ada, insert 2 Ada");
    assert_eq!(world.books()[0], 2);
    // The same number, written with another scale, is the same key.
    assert_eq!(world.told(&[(Some(row("2.0", "Ada")), Some(row("2", "Bob")))]), "update 2.0 Ada → 2 Bob");
}

/// Under a weak replica identity the log leaves an unchanged TOAST value out. The new key's
/// row would lack it for good.
#[test]
fn a_key_change_that_lacks_a_value_is_set_aside() {
    let mut world = world("");
    let mut after = row("2", "Ada");
    after[1] = Datum::NotSent;

    let collected = world.commit(&[(Some(row("1", "Ada")), Some(after))]);

    let [Collected::Transaction(captured)] = collected.as_slice() else { panic!() };
    assert_eq!(told(captured), "delete 1 Ada; refused 1");
    assert!(captured.refused[0].reason.contains("field \"name\""), "{}", captured.refused[0].reason);
}

#[test]
fn an_update_without_an_old_image_carries_what_the_log_has() {
    let mut world = world("");
    let mut after = row("1", "Ada");
    after[1] = Datum::NotSent;

    world.normalizer.begin(Begin { txid: "1" }).unwrap();
    let event = RowEvent { table: 0, op: Op::Update, before: None, after: Some(&after), refused: None };
    world.normalizer.row(event).unwrap();
    world.normalizer.commit(Commit { position: at(1), txid: "1", committed_at: 0 }).unwrap();
    let collected: Vec<_> = world.normalizer.drain().collect();

    let [Collected::Transaction(Captured { body: Body::Inline(body), .. })] = collected.as_slice() else { panic!() };
    let change = Changes::new(body).next().unwrap();
    assert!(change.op == Op::Update && change.before.is_none());
    assert_eq!(change.after.unwrap().get(1), Datum::NotSent);
}

#[test]
fn a_value_that_cannot_be_carried_sets_its_row_aside_and_nothing_else() {
    let mut world = world("");

    let collected = world.commit(&[(None, Some(born("1", "Ada", "yesterday"))), (None, Some(row("2", "Bob")))]);

    let [Collected::Transaction(captured)] = collected.as_slice() else { panic!() };
    assert_eq!(told(captured), "insert 2 Bob; refused 1");
    let refused = &captured.refused[0];
    assert_eq!(refused.position, Some(at(9)));
    assert!(refused.reason.contains("\"born\"") && !refused.reason.contains("yesterday"), "{}", refused.reason);
    let change = Changes::new(&refused.change).next().unwrap();
    assert_eq!(change.after.unwrap().get(0), Datum::Value(Value::Decimal("1")));
    assert_eq!(change.after.unwrap().get(2), Datum::NotSent);
    assert_eq!(world.books(), [2, 0, 1, 0]);
    // The row is mended: its old image alone does not hold it back.
    let said = world.told(&[(Some(born("1", "Ada", "yesterday")), Some(row("1", "Ada")))]);
    assert_eq!(said, "update 1 Ada → 1 Ada");
}

#[test]
fn what_capture_could_not_read_is_set_aside_with_its_reason() {
    let mut world = world("");
    let mut after = row("1", "Ada");
    after[2] = Datum::NotSent;

    world.normalizer.begin(Begin { txid: "1" }).unwrap();
    let refused = Some("column born: a zero date");
    world.normalizer.row(RowEvent { table: 0, op: Op::Insert, before: None, after: Some(&after), refused }).unwrap();
    world.normalizer.commit(Commit { position: at(1), txid: "1", committed_at: 0 }).unwrap();

    let collected: Vec<_> = world.normalizer.drain().collect();
    let [Collected::Transaction(captured)] = collected.as_slice() else { panic!() };
    assert_eq!((captured.changes, &*captured.refused[0].reason), (0, "column born: a zero date"));
}

#[test]
fn a_transaction_full_of_such_rows_stops_the_flow() {
    let mut world = world("");
    let rows = vec![(None, Some(born("1", "Ada", "yesterday"))); REFUSED_MAX + 1];
    assert_eq!(world.try_commit(&rows).unwrap_err().recovery, Recovery::Stop);
}

#[test]
fn rows_that_cross_a_sources_filter_come_and_go() {
    let mut world = world("role = \"source\"\nwhere = \"name like 'A%'\"");
    let (inside, outside) = (row("1", "Ada"), row("1", "Bob"));

    assert_eq!(world.told(&[(None, Some(outside))]), "passed");
    assert_eq!(world.told(&[(Some(outside), Some(outside))]), "passed");
    assert_eq!(world.told(&[(Some(outside), None)]), "passed");
    assert_eq!(world.told(&[(Some(outside), Some(inside))]), "insert 1 Ada");
    assert_eq!(world.told(&[(Some(inside), Some(inside))]), "update 1 Ada → 1 Ada");
    assert_eq!(world.told(&[(Some(inside), Some(outside))]), "delete 1 Ada");
    assert_eq!(world.told(&[(Some(inside), None)]), "delete 1 Ada");
    assert_eq!(world.told(&[(Some(row("1", "Ada")), Some(row("2", "Bob")))]), "delete 1 Ada");
    assert_eq!(world.told(&[(Some(row("1", "Bob")), Some(row("2", "Ada")))]), "insert 2 Ada");
    assert_eq!(world.books(), [9, 3, 0, 0]);
}

/// In a table that is also written, the row still belongs to the others.
#[test]
fn an_edit_that_leaves_the_own_filter_stays_an_update() {
    let mut world = world("where = \"name like 'A%'\"");

    assert_eq!(world.told(&[(Some(row("1", "Ada")), Some(row("1", "Bob")))]), "update 1 Ada → 1 Bob");
    assert_eq!(world.told(&[(Some(row("1", "Ada")), Some(row("2", "Bob")))]), "delete 1 Ada, insert 2 Bob");
    assert_eq!(world.told(&[(None, Some(row("1", "Bob")))]), "passed");
}

#[test]
fn local_writes_of_a_target_are_drift() {
    let mut world = world("role = \"target\"");

    assert_eq!(world.told(&[(None, Some(row("1", "Ada")))]), "passed");
    world.normalizer.truncate(0).unwrap();

    assert_eq!(world.books(), [1, 1, 0, 1]);
}

#[test]
fn an_entity_without_a_key_takes_inserts_alone() {
    let mut world = world("");
    let name = [Datum::Value(Value::Text("entry"))];
    let event = |op| RowEvent { table: 1, op, before: Some(&name[..]), after: Some(&name[..]), refused: None };

    world.normalizer.begin(Begin { txid: "1" }).unwrap();
    world.normalizer.row(RowEvent { before: None, ..event(Op::Insert) }).unwrap();

    for op in [Op::Update, Op::Delete] {
        let error = world.normalizer.row(event(op)).unwrap_err();
        assert!(error.recovery == Recovery::Stop && error.hint.contains("key ="), "{error:?}");
    }
}

#[test]
fn truncate_stops_and_says_what_to_do() {
    let error = world("").normalizer.truncate(0).unwrap_err();
    assert!(error.recovery == Recovery::Stop && error.hint.contains("anechoic load --resync"), "{}", error.hint);
}

#[test]
fn a_large_transaction_goes_to_the_spool_whole_and_in_order() {
    let mut world = world("");
    let rows: Vec<_> =
        (0..40_000).map(|_| (None, Some(row("1", "a name of some length, so that it adds up")))).collect();

    let collected = world.commit(&rows);

    let [Collected::Transaction(Captured { body: Body::Spooled(spooled), changes, .. })] = collected.as_slice() else {
        panic!("not spooled")
    };
    assert_eq!(*changes, 40_000);
    let mut chunks = world.journal.spool_chunks(spooled).unwrap();
    let (mut seen, mut count) = (0, 0);
    while let Some(chunk) = chunks.next().unwrap() {
        assert!(chunk.len() < CHUNK_BYTES + 1024);
        (seen, count) = (seen + Changes::new(&chunk).count(), count + 1);
    }
    assert!(seen == 40_000 && count > 2, "{seen} changes in {count} chunks");
    assert!(!world.normalizer.full(), "what is spooled does not wait in memory");
    // Cut off in the middle and read again: nothing of the first attempt remains.
    world.normalizer.begin(Begin { txid: "43" }).unwrap();
    assert_eq!(world.told(&[(None, Some(row("1", "Ada")))]), "insert 1 Ada");
}

#[test]
fn a_full_normalizer_asks_to_be_drained() {
    let mut world = world("");
    for _ in 0..WAITING_MAX {
        assert!(!world.normalizer.full());
        world.normalizer.begin(Begin { txid: "1" }).unwrap();
        let image = row("1", "Ada");
        let event = RowEvent { table: 0, op: Op::Insert, before: None, after: Some(&image), refused: None };
        world.normalizer.row(event).unwrap();
        world.normalizer.commit(Commit { position: at(1), txid: "1", committed_at: 0 }).unwrap();
    }
    assert!(world.normalizer.full());
    assert_eq!(world.normalizer.drain().count(), WAITING_MAX);
    assert!(!world.normalizer.full());
}

/// A connection that breaks leaves what was not taken; it is read, and counted, again.
#[test]
fn what_is_not_taken_is_not_counted() {
    let mut world = world("");
    let image = row("1", "Ada");
    world.normalizer.begin(Begin { txid: "1" }).unwrap();
    let event = RowEvent { table: 0, op: Op::Insert, before: None, after: Some(&image), refused: None };
    world.normalizer.row(event).unwrap();
    world.normalizer.commit(Commit { position: at(1), txid: "1", committed_at: 0 }).unwrap();
    assert_eq!(world.books(), [0; 4]);

    drop(world.normalizer.drain());

    assert_eq!(world.books(), [1, 0, 0, 0]);
}

/// A place that goes with an older base than what is there would make a conflict of what its users write
/// once they are heard.
#[test]
fn where_what_we_write_is_not_shown_a_place_is_told_only_with_the_marker_that_goes_with_it() {
    let mut world = world("");
    world.journaled(12);
    let (unshown, ours) = (Unshown::default(), world.journal.id());
    let mut normalizer = world.normalizer.unshown(Some(unshown.clone()));
    let told = |normalizer: &mut Normalizer, index| {
        normalizer.passed(at(index)).unwrap();
        normalizer.drain().map(|item| item.position().clone()).collect::<Vec<_>>()
    };

    // until there is an applier nobody knows
    assert_eq!(told(&mut normalizer, 1), []);
    unshown.reaches(3, 0);
    assert_eq!(told(&mut normalizer, 2), [at(2)]);
    unshown.reaches(12, 0);
    assert_eq!(told(&mut normalizer, 3), []);
    normalizer.echo(&marker(11, ours), at(4)).unwrap();
    assert_eq!(told(&mut normalizer, 5), [at(4)]);
    normalizer.echo(&marker(12, ours), at(6)).unwrap();
    assert_eq!(told(&mut normalizer, 7), [at(7)]);
    unshown.reaches(12, 1);
    assert_eq!(told(&mut normalizer, 8), []);
}
