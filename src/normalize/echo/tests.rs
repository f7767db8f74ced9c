//! Entries as the journal has them, rows as the log shows them.

use super::*;
use crate::catalog::{Column, ColumnType, Table, TableName};
use crate::change::{ChangeWriter, Decision, Verdict};
use crate::config::Engine;
use crate::normalize::binding::{BoundColumn, Transform};
use crate::schema::{EntitySchema, Field, SystemId};
use crate::value::Kind;

const CONTACT: EntityId = EntityId(0);
const LOG: EntityId = EntityId(1);

fn schema() -> Arc<Schema> {
    let field = |name: &str, kind| Field { name: name.into(), kind };
    Schema::new(vec![
        EntitySchema::new(
            "contact",
            vec![
                field("id", Kind::Int),
                field("name", Kind::Text),
                field("score", Kind::Decimal),
                field("more", Kind::Json),
            ],
            1,
        ),
        EntitySchema::new("log", vec![field("line", Kind::Text), field("made", Kind::Int)], 0),
    ])
}

fn watch(side_effects: bool, keys_max: u64) -> Option<Watch> {
    let schema = schema();
    let bind = |entity: EntityId, side_effects| {
        let spec = schema.entity(entity);
        let bound = |(at, field): (usize, &Field)| BoundColumn {
            field: at,
            kind: field.kind,
            column: Column::new(&field.name, ColumnType::Unsupported, ""),
            transform: Transform::None,
            engine: Engine::Postgres,
            label: "".into(),
        };
        let name = TableName { schema: "public".into(), name: spec.name.clone() };
        let table = Table { side_effects, ..Table::new(name) };
        Arc::new(Binding {
            system: SystemId(0),
            entity,
            table: Arc::new(table),
            role: Role::Both,
            columns: spec.fields.iter().enumerate().map(bound).collect(),
            key_len: spec.key_len,
            filter: None,
            clash_keys: Vec::new(),
        })
    };
    let bindings = [bind(CONTACT, side_effects), bind(LOG, false)];
    Watch::new("crm".into(), schema.clone(), &bindings).map(|watch| watch.keys_max(keys_max))
}

type Contact = (i64, &'static str, &'static str, &'static str);

fn push(writer: &mut ChangeWriter, op: Op, row: Contact) {
    let (id, name, score, more) = row;
    let datums = [Value::Int(id), Value::Text(name), Value::Decimal(score), Value::Json(more)].map(Datum::Value);
    let row = || Some(datums.into_iter());
    let (before, after) = match op {
        Op::Delete => (row(), None),
        Op::Insert | Op::Update => (None, row()),
    };
    writer.push(&schema(), CONTACT, op, before, after);
}

fn contacts(rows: &[(Op, Contact)]) -> Bytes {
    let mut writer = ChangeWriter::default();
    rows.iter().for_each(|(op, row)| push(&mut writer, *op, *row));
    writer.take().into()
}

fn logs(rows: &[(&'static str, Option<i64>)]) -> Bytes {
    let mut writer = ChangeWriter::default();
    for (line, made) in rows {
        let made = made.map_or(Datum::NotSent, |made| Datum::Value(Value::Int(made)));
        let row = [Datum::Value(Value::Text(line)), made].into_iter();
        writer.push(&schema(), LOG, Op::Insert, None::<std::iter::Empty<_>>, Some(row));
    }
    writer.take().into()
}

fn entry(seq: Seq, origin: &str, changes: u64, body: Body) -> Entry {
    Entry {
        seq,
        origin: Origin::System(origin.into()),
        position: None,
        base: 0,
        txid: "7".into(),
        committed_at: 0,
        hops: 0,
        to: Address::Others,
        schema: schema(),
        changes,
        body,
        decisions: Vec::new(),
        replacements: Bytes::new(),
    }
}

fn inline(seq: Seq, origin: &str, body: Bytes) -> Entry {
    entry(seq, origin, Changes::new(&body).count() as u64, Body::Inline(body))
}

/// What is left of the log's rows, and what was rewritten, as (entity, field).
fn sifted(watch: &Watch, entries: Vec<Entry>, spool: &[Bytes], log: &Bytes) -> (Vec<Bytes>, Vec<Rewritten>) {
    sifted_with(watch, entries, spool, log, &[])
}

fn sifted_with(
    watch: &Watch,
    entries: Vec<Entry>,
    spool: &[Bytes],
    log: &Bytes,
    held: &[u128],
) -> (Vec<Bytes>, Vec<Rewritten>) {
    let chunks = |_: &SpoolRef, each: &mut dyn FnMut(Bytes) -> Result<()>| spool.iter().cloned().try_for_each(each);
    let mut echo = Echo::new(9, held.iter().map(|key| (*key, Seq::MAX)).collect());
    entries.into_iter().for_each(|entry| echo.expect(watch, entry));
    assert!(echo.complete(watch, &chunks).unwrap());
    let mut left = Vec::new();
    let mut changes = Changes::new(log);
    while let Some(encoded) = changes.next_encoded() {
        left.push(log.slice_ref(encoded));
    }
    let ours = |echo: &mut Echo, bytes: &Bytes| echo.is_ours(watch, &Changes::new(bytes).next().unwrap());
    left.retain(|bytes| !ours(&mut echo, bytes));
    let mut found = HashMap::new();
    while echo.next_part(watch, &chunks, &mut found).unwrap() {
        left.retain(|bytes| !ours(&mut echo, bytes));
    }
    left.retain(|bytes| !echo.is_ours_after_all(&Changes::new(bytes).next().unwrap(), &mut found));
    let mut found: Vec<Rewritten> = found.into_keys().collect();
    found.sort_unstable();
    (left, found)
}

fn ids(left: &[Bytes]) -> Vec<i64> {
    let id = |bytes: &Bytes| match Changes::new(bytes).next().unwrap().image().get(0) {
        Datum::Value(Value::Int(id)) => id,
        other => panic!("{other:?}"),
    };
    left.iter().map(id).collect()
}

fn field(field: usize) -> Rewritten {
    Rewritten { entity: CONTACT, field: Some(field) }
}

#[test]
fn without_triggers_and_actions_no_echo_is_looked_at() {
    assert!(watch(false, 10).is_none());

    let watch = watch(true, 10).unwrap();
    let mut echo = Echo::new(3, HashMap::new());
    echo.expect(&watch, inline(3, "shop", logs(&[("x", None)])));
    assert!(!echo.complete(&watch, &|_, _| Ok(())).unwrap(), "only tables without triggers are written");
}

#[test]
fn rows_of_other_keys_are_side_effects_in_their_order() {
    let watch = watch(true, 10).unwrap();
    let applied = contacts(&[(Op::Insert, (1, "Ada", "1.0", "{}")), (Op::Delete, (2, "Bob", "2", "{}"))]);
    let log = contacts(&[
        (Op::Update, (7, "booked", "0", "{}")),
        (Op::Insert, (1, "Ada", "1.00", "{ }")),
        (Op::Delete, (2, "Bob", "2", "{}")),
        (Op::Delete, (3, "line", "2", "{}")),
    ]);

    let (left, rewritten) = sifted(&watch, vec![inline(4, "shop", applied)], &[], &log);

    assert_eq!(ids(&left), [7, 3]);
    assert_eq!(rewritten, [], "other spellings of the same values");
}

/// Of what is applied together the one that has come furthest counts, where it acts.
#[test]
fn hops_count_from_what_was_applied_to_tables_that_act() {
    let watch = watch(true, 10).unwrap();
    let row = |id| contacts(&[(Op::Insert, (id, "Ada", "1", "{}"))]);
    let hopped = |hops, entry| Entry { hops, ..entry };
    let hops = |entries: Vec<Entry>| {
        let mut echo = Echo::new(9, HashMap::new());
        entries.into_iter().for_each(|entry| echo.expect(&watch, entry));
        echo.hops()
    };

    assert_eq!(hops(vec![inline(4, "shop", row(1))]), 1);
    assert_eq!(hops(vec![hopped(5, inline(4, "shop", row(1))), hopped(2, inline(5, "shop", row(2)))]), 6);
    assert_eq!(hops(vec![inline(4, "shop", row(1)), hopped(5, inline(5, "shop", logs(&[("x", None)])))]), 1);
    assert_eq!(hops(vec![inline(4, "shop", row(1)), hopped(5, inline(5, "crm", row(2)))]), 1, "its own");
    let large = entry(4, "shop", 1000, Body::Spooled(SpoolRef { id: 1, bytes: 0 }));
    assert_eq!(hops(vec![hopped(3, large)]), 4, "it is not looked through for that");
}

/// Only what the applier of this system takes of the entries is ours.
#[test]
fn what_was_not_for_this_system_is_not_expected() {
    let watch = watch(true, 10).unwrap();
    let row = |id| contacts(&[(Op::Insert, (id, "Ada", "1", "{}"))]);
    let mut elsewhere = inline(5, "agent", row(2));
    elsewhere.to = Address::Only(vec!["shop".into()]);
    let mut rejected = inline(6, "shop", row(3));
    rejected.decisions = vec![Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 1 } }];
    let mut own = inline(7, "crm", contacts(&[(Op::Insert, (4, "a", "1", "{}")), (Op::Insert, (5, "a", "1", "{}"))]));
    own.decisions = vec![Decision { from: 1, to: 2, verdict: Verdict::Everywhere }];
    let log = contacts(&[1, 2, 3, 4, 5].map(|id| (Op::Insert, (id, "a", "1", "{}"))));

    let (left, _) = sifted(&watch, vec![inline(4, "shop", row(1)), elsewhere, rejected, own], &[], &log);

    assert_eq!(ids(&left), [2, 3, 4]);
}

#[test]
fn a_row_that_ends_otherwise_is_named_and_not_a_side_effect() {
    let watch = watch(true, 10).unwrap();
    let insert = |row| (Op::Insert, row);
    let applied = contacts(&[
        insert((1, "Ada", "1", r#"{"a":1.0,"b":[1]}"#)),
        insert((2, "Bob", "2", "{}")),
        insert((3, "Cyd", "3", "{}")),
        insert((4, "Dan", "4", "{}")),
        (Op::Delete, (5, "Eve", "5", "{}")),
    ]);
    let log = contacts(&[
        insert((1, "Ada", "1", r#"{"b": [1e0], "a": 1}"#)),
        insert((2, "Bob", "2.5", "{}")),
        // in two steps, and in the end as it was applied
        insert((3, "nobody", "3", "{}")),
        (Op::Update, (3, "Cyd", "3", "{}")),
        (Op::Delete, (4, "Dan", "4", "{}")),
        (Op::Delete, (5, "Eve", "5", "{}")),
        insert((5, "Eve", "5", "{}")),
    ]);

    let (left, rewritten) = sifted(&watch, vec![inline(4, "shop", applied)], &[], &log);

    assert_eq!(left.len(), 0);
    assert_eq!(rewritten, [Rewritten { entity: CONTACT, field: None }, field(2)]);
}

/// The deletion found nothing to delete: the row is the trigger's alone. Not where the log shows
/// the deletion.
#[test]
fn a_row_inserted_where_nothing_was_deleted_is_a_side_effect() {
    let watch = watch(true, 10).unwrap();
    let row = |op, name| (op, (5, name, "5", "{}"));
    let deleted = || contacts(&[row(Op::Insert, "Eve"), row(Op::Delete, "Eve")]);
    let sift = |log: &[(Op, Contact)]| {
        let (left, rewritten) = sifted(&watch, vec![inline(4, "shop", deleted())], &[], &contacts(log));
        (left.len(), rewritten.len())
    };

    assert_eq!(sift(&[row(Op::Insert, "new"), row(Op::Update, "newer")]), (2, 0));
    assert_eq!(sift(&[row(Op::Insert, "Eve"), row(Op::Delete, "Eve")]), (0, 0), "one change after the other");
    assert_eq!(sift(&[row(Op::Delete, "Eve"), row(Op::Insert, "new")]), (0, 1));
    assert_eq!(sift(&[row(Op::Update, "marked as deleted")]), (0, 1));
}

/// It may have been overtaken, and never written: then the row is the trigger's alone.
#[test]
fn a_retry_counts_only_with_its_own_image() {
    let watch = watch(true, 10).unwrap();
    let mut retry = inline(4, "agent", contacts(&[(Op::Insert, (1, "Ada", "1", "{}"))]));
    retry.origin = Origin::Agent;
    retry.to = Address::Only(vec!["crm".into()]);
    retry.txid = "retry".into();
    assert!(retry.is_retry());
    let log = contacts(&[(Op::Insert, (1, "Ada", "1", "{}")), (Op::Update, (1, "booked", "1", "{}"))]);

    let (left, rewritten) = sifted(&watch, vec![retry], &[], &log);

    assert_eq!((left.len(), rewritten.len()), (1, 0));
    assert_eq!(left[0], contacts(&[(Op::Update, (1, "booked", "1", "{}"))]));
}

/// What came for it was folded, not written: the row is a trigger's alone. But what was written
/// before a refusal is ours.
#[test]
fn of_a_held_key_only_what_came_for_it_is_ours() {
    let watch = watch(true, 10).unwrap();
    let row = |name| (Op::Update, (1, name, "1", "{}"));
    let applied = || contacts(&[row("first"), row("second")]);
    let key = Changes::new(&applied()).next().unwrap().key_hash;
    let log = contacts(&[row("on the way"), row("first"), row("booked")]);

    let (left, rewritten) = sifted_with(&watch, vec![inline(4, "shop", applied())], &[], &log, &[key]);

    assert_eq!(left, [contacts(&[row("booked")])]);
    assert_eq!(rewritten, []);
}

#[test]
fn rows_without_a_key_are_told_apart_by_what_they_hold() {
    let watch = watch(true, 10).unwrap();
    let entries = || {
        let touched = contacts(&[(Op::Insert, (1, "Ada", "1", "{}"))]);
        vec![inline(4, "shop", touched), inline(5, "shop", logs(&[("a", None), ("a", None), ("b", Some(1))]))]
    };

    let (left, rewritten) = sifted(
        &watch,
        entries(),
        &[],
        &logs(&[("a", Some(5)), ("of the trigger", Some(6)), ("b", Some(1)), ("a", None)]),
    );
    assert_eq!(left, [logs(&[("of the trigger", Some(6))])]);
    assert_eq!(rewritten, []);

    // one of the three came otherwise: the first that fits none stands for it
    let log = logs(&[("b", Some(2)), ("a", Some(5)), ("of the trigger", Some(6)), ("a", None)]);
    let (left, rewritten) = sifted(&watch, entries(), &[], &log);
    assert_eq!(left, [logs(&[("of the trigger", Some(6))])]);
    assert_eq!(rewritten, [Rewritten { entity: LOG, field: None }]);
}

/// In parts of some keys at a time, with hashes in place of images.
#[test]
fn a_large_transaction_is_sifted_part_by_part() {
    let row = |id: i64| (Op::Insert, (id, "applied", "1.5", "[1]"));
    let spool: Vec<Bytes> =
        (0..10).map(|chunk| contacts(&(0..100).map(|i| row(chunk * 100 + i)).collect::<Vec<_>>())).collect();
    let large = || entry(4, "shop", 1000, Body::Spooled(SpoolRef { id: 1, bytes: 0 }));
    let mut rows: Vec<(Op, Contact)> = Vec::new();
    for id in 0..1000 {
        rows.push((Op::Insert, (id, "applied", if id == 500 { "1.7" } else { "1.50" }, "[ 1 ]")));
        if id % 100 == 0 {
            rows.push((Op::Update, (5000 + id, "booked", "1", "{}")));
        }
    }
    let log = contacts(&rows);

    for keys_max in [1, 7, 300, 5000] {
        let watch = watch(true, keys_max).unwrap();
        let (left, rewritten) = sifted(&watch, vec![large()], &spool, &log);

        assert_eq!(ids(&left), (0..10).map(|i| 5000 + i * 100).collect::<Vec<_>>(), "{keys_max}");
        assert_eq!(rewritten, [field(2)], "{keys_max}");
    }
}
