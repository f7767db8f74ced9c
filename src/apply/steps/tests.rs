use std::sync::Arc;

use super::*;
use crate::apply::Write;
use crate::catalog::{Column, ColumnType, Table, TableName};
use crate::change::{ChangeWriter, Decision, Op, Verdict};
use crate::config::Engine;
use crate::normalize::binding::{Binding, BoundColumn, Role, Transform};
use crate::normalize::filter::Filter;
use crate::schema::{EntityId, EntitySchema, Field, Schema, SystemId};
use crate::value::{Datum, Kind, Value, write_datum};

fn schema() -> Arc<Schema> {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    Schema::new(vec![EntitySchema::new("stock", ["id", "count"].map(field).to_vec(), 1)])
}

fn routes(filter: Option<&str>) -> Routes {
    let schema = schema();
    let spec = schema.entity(EntityId(0));
    let bigint = ColumnType::Int { bytes: 8, signed: true };
    let column = |field: usize| Column::new(&spec.fields[field].name, bigint.clone(), "bigint");
    let bound = |field| BoundColumn {
        field,
        kind: Kind::Int,
        column: column(field),
        transform: Transform::None,
        engine: Engine::Postgres,
        label: "".into(),
    };
    let table = Table {
        columns: (0..2).map(column).collect(),
        primary_key: vec!["id".into()],
        ..Table::new(TableName { schema: "public".into(), name: "stock".into() })
    };
    let binding = Binding {
        system: SystemId(1),
        entity: EntityId(0),
        table: Arc::new(table),
        role: Role::Both,
        columns: (0..2).map(bound).collect(),
        key_len: 1,
        filter: filter.map(|text| Filter::compile(text, spec).unwrap()),
        clash_keys: Vec::new(),
    };
    Routes::new(SystemId(1), "shop".into(), schema.clone(), &[Arc::new(binding)])
}

fn ints(id: i64, count: i64) -> impl Iterator<Item = Datum<'static>> {
    [id, count].into_iter().map(|v| Datum::Value(Value::Int(v)))
}

fn row(id: i64, count: i64) -> Vec<u8> {
    let mut out = Vec::new();
    ints(id, count).for_each(|datum| write_datum(&mut out, datum));
    out
}

/// An entry of the first system that updates these rows.
fn entry(seq: Seq, rows: &[(i64, i64)]) -> Record {
    let schema = schema();
    let mut body = ChangeWriter::default();
    for (id, count) in rows {
        body.push(&schema, EntityId(0), Op::Update, Some(ints(*id, 0)), Some(ints(*id, *count)));
    }
    Record::Entry(Entry {
        seq,
        origin: Origin::System("crm".into()),
        position: None,
        base: 0,
        txid: seq.to_string().into(),
        committed_at: 0,
        hops: 0,
        to: Address::Others,
        schema,
        changes: rows.len() as u64,
        body: Body::Inline(body.take().into()),
        decisions: Vec::new(),
        replacements: Bytes::new(),
    })
}

fn marker(seq: Seq) -> Marker {
    Marker {
        agent: "hq".into(),
        lane: 0,
        journal: 7,
        epoch: 1,
        seq,
        part: 0,
        origin: String::new(),
        txid: String::new(),
    }
}

fn opened(marker: Marker) -> Opened {
    Opened { marker, journal: 7, head: 100, seen: 0, from: 1, held: Vec::new() }
}

/// Steps that have opened at marker 5 and read these records.
fn reading(filter: Option<&str>, limits: Limits, records: Vec<Record>) -> Steps {
    let mut steps = Steps::new(routes(filter), limits);
    assert!(matches!(steps.next(0.0), Action::Open));
    steps.event(Event::Opened(Box::new(opened(marker(5)))), 0);
    assert!(matches!(steps.next(0.0), Action::Seek(6)));
    steps.event(Event::Done, 0);
    for record in records {
        assert!(matches!(steps.next(0.0), Action::Fetch));
        steps.event(Event::Fetched(Some(record)), 0);
    }
    steps
}

fn stops(steps: &mut Steps) -> Option<String> {
    match steps.next(0.0) {
        Action::Stop(error) => error.map(|e| e.full()),
        action => panic!("{action:?}"),
    }
}

#[test]
fn a_marker_from_a_backup_stops_the_system_and_names_the_way_out() {
    let cases = [
        (Opened { journal: 8, ..opened(marker(5)) }, "another journal"),
        (Opened { head: 4, ..opened(marker(5)) }, "beyond the journal's head 4"),
        (Opened { seen: 6, ..opened(marker(5)) }, "its own log has shown 6"),
    ];
    for (opened, why) in cases {
        let mut steps = Steps::new(routes(None), Limits::default());
        steps.next(0.0);
        steps.event(Event::Opened(Box::new(opened)), 0);

        let said = stops(&mut steps).expect("an error");

        assert!(said.contains(why) && said.contains("anechoic load --resync shop"), "{said}");
    }
}

#[test]
fn entries_join_until_the_journal_is_used_up_and_move_the_marker_together() {
    let mut steps = reading(None, Limits::default(), vec![entry(6, &[(1, 10)]), entry(7, &[(1, 11), (2, 20)])]);
    steps.event(Event::Fetched(None), 0);

    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 7, .. })));
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Write { alone: false }));
    assert_eq!(steps.group().rows, [row(1, 11), row(2, 20)]);
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Commit));
    steps.event(Event::Done, 0);

    let progress = steps.take_progress();
    assert_eq!((progress.transactions, progress.applied, progress.coalesced, progress.held), (2, 2, 1, 0));
    assert_eq!(steps.passed(), 7);
}

#[test]
fn a_closed_batch_leaves_the_next_entry_for_the_one_after_it() {
    let limits = Limits { changes: 2, ..Limits::default() };
    let mut steps = reading(None, limits, vec![entry(6, &[(1, 10)]), entry(7, &[(1, 11), (2, 20)])]);

    assert!(matches!(steps.next(0.0), Action::Submit(Marker { seq: 6, .. })));
    steps.event(Event::Done, 0);
    steps.event(Event::Fetched(None), 0);
    assert!(matches!(steps.next(0.0), Action::Land));
    steps.event(Event::Done, 0);
    steps.event(Event::Fetched(None), 0);
    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 7, .. })));
}

/// Steps that have done all they can with these records before the first of them lands.
fn aloft(connections: usize, records: Vec<Record>) -> Steps {
    let limits = Limits { changes: 2, connections, ..Limits::default() };
    let mut steps = reading(None, limits, Vec::new());
    let mut records = records.into_iter();
    loop {
        match steps.next(0.0) {
            Action::Fetch => steps.event(Event::Fetched(records.next()), 0),
            Action::Submit(_) => {
                assert!(!steps.take_groups().is_empty());
                steps.event(Event::Done, 0);
            }
            Action::Land => return steps,
            action => panic!("{action:?}"),
        }
    }
}

/// A batch by itself, of keys of its own.
fn full(seq: Seq) -> Record {
    let key = seq as i64 * 10;
    entry(seq, &[(key, 1), (key + 1, 1), (key + 2, 1)])
}

#[test]
fn so_many_batches_are_under_way_as_there_are_connections() {
    for connections in [1, 2, 3] {
        assert_eq!(aloft(connections, (6..12).map(full).collect()).aloft(), connections);
    }
}

#[test]
fn batches_of_one_key_are_not_under_way_at_once() {
    let steps = aloft(3, vec![full(6), full(7), entry(8, &[(1, 1), (2, 1), (62, 2)])]);

    assert_eq!(steps.aloft(), 2);
}

/// With one connection they are not under way at once anyway.
#[test]
fn a_batch_of_the_same_key_is_prepared_while_the_last_one_commits() {
    let mut steps = aloft(1, vec![full(6), entry(7, &[(60, 2), (61, 2), (62, 2)])]);

    steps.event(Event::Done, 0);

    assert!(matches!(steps.next(0.0), Action::Submit(Marker { seq: 7, .. })));
}

#[test]
fn a_batch_that_is_not_full_waits_for_more_until_none_is_under_way() {
    let mut steps = aloft(3, vec![full(6), entry(7, &[(3, 1)])]);

    steps.event(Event::Done, 0);
    for record in [Some(entry(8, &[(4, 1)])), None] {
        assert!(matches!(steps.next(0.0), Action::Fetch));
        steps.event(Event::Fetched(record), 0);
    }

    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 8, .. })));
}

#[test]
fn what_was_refused_in_its_turn_is_written_alone_and_the_rest_again() {
    let mut steps = aloft(3, vec![full(6), full(7), full(8)]);
    steps.event(Event::Done, 0);
    assert_eq!(steps.passed(), 6);
    steps.event(Event::Fetched(None), 0);
    assert!(matches!(steps.next(0.0), Action::Land));

    steps.event(Event::Failed(Error::data("a check").code("23514")), 0);

    assert!(matches!(steps.next(0.0), Action::Seek(7)));
    steps.event(Event::Done, 0);
    let mut again = [full(7), full(8)].into_iter();
    let mut begun = Vec::new();
    while steps.passed() < 8 {
        let event = match steps.next(0.0) {
            Action::Fetch => Event::Fetched(again.next()),
            Action::Begin(marker) => {
                begun.push(("alone", marker.seq));
                Event::Done
            }
            Action::Submit(marker) => {
                begun.push(("aloft", marker.seq));
                Event::Done
            }
            _ => Event::Done,
        };
        steps.event(event, 0);
    }
    assert_eq!(begun, [("alone", 7), ("aloft", 8)]);
    assert_eq!(steps.take_progress().applied, 9);
}

/// After a lost connection the marker says which of them are in the target; the others are read again.
#[test]
fn what_was_under_way_when_the_connection_was_lost_is_counted_by_the_marker() {
    let mut steps = aloft(3, vec![full(6), full(7), full(8)]);

    steps.event(Event::Failed(Error::retry("cut")), 0);
    assert!(matches!(steps.next(0.0), Action::Pause(_)));
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Open));
    steps.event(Event::Opened(Box::new(opened(marker(7)))), 0);

    let progress = steps.take_progress();
    assert_eq!((progress.commits, progress.applied), (2, 6));
    assert!(matches!(steps.next(0.0), Action::Seek(8)));
}

#[test]
fn what_is_under_way_at_the_end_lands_and_nothing_more_begins() {
    let mut steps = aloft(2, (6..9).map(full).collect());

    steps.finish();
    for seq in [6, 7] {
        assert!(matches!(steps.next(0.0), Action::Land));
        steps.event(Event::Done, 0);
        assert_eq!(steps.passed(), seq);
    }

    assert!(matches!(steps.next(0.0), Action::Stop(None)));
}

#[test]
fn an_entry_that_is_larger_than_a_batch_is_not_prepared_beside_another() {
    let limits = Limits { bytes: 100, connections: 3, ..Limits::default() };
    let rows: Vec<(i64, i64)> = (0..20).map(|key| (key, 1)).collect();
    let mut steps = reading(None, limits, vec![entry(6, &rows)]);

    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 6, .. })));
}

#[test]
fn a_batch_of_a_filtered_table_waits_until_nothing_is_under_way() {
    let limits = Limits { changes: 2, connections: 2, ..Limits::default() };
    let mut steps = reading(Some("count > 0"), limits, vec![full(6)]);

    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 6, .. })));
}

/// What follows from a side effect far from its beginning is its own, and not of what it is joined with.
#[test]
fn a_side_effect_that_many_led_to_is_applied_alone() {
    let hopped = |seq, hops| {
        let Record::Entry(entry) = entry(seq, &[(seq as i64, 1)]) else { unreachable!("made as an entry") };
        Record::Entry(Entry { hops, ..entry })
    };
    let entries = [(6, 0), (7, HOPS_JOINED), (8, HOPS_JOINED + 1), (9, HOPS_JOINED + 1), (10, 0)];
    let mut entries = entries.into_iter().map(|(seq, hops)| hopped(seq, hops));
    let mut steps = reading(None, Limits::default(), Vec::new());
    let mut markers = Vec::new();
    while steps.passed() < 10 {
        let event = match steps.next(0.0) {
            Action::Fetch => Event::Fetched(entries.next()),
            Action::Begin(marker) | Action::Submit(marker) => {
                markers.push(marker.seq);
                Event::Done
            }
            _ => Event::Done,
        };
        steps.event(event, 0);
    }

    assert_eq!(markers, [7, 8, 9, 10]);
}

#[test]
fn an_entry_of_our_own_or_rejected_needs_no_marker() {
    let own = |decisions| {
        let Record::Entry(entry) = entry(6, &[(1, 10)]) else { unreachable!("made as an entry") };
        Record::Entry(Entry { origin: Origin::System("shop".into()), decisions, ..entry })
    };
    let rejected = vec![Decision { from: 0, to: 1, verdict: Verdict::Rejected { winner: 5 } }];
    for record in [own(Vec::new()), own(rejected)] {
        let mut steps = reading(None, Limits::default(), vec![record]);

        steps.event(Event::Fetched(None), 0);

        assert!(matches!(steps.next(0.0), Action::Wait));
        assert_eq!(steps.passed(), 6);
    }
}

#[test]
fn what_comes_in_masses_waits_for_more_and_not_for_long() {
    let few: Vec<Record> = (6..12).map(|seq| entry(seq, &[(seq as i64, 1)])).collect();
    let changes: Vec<(i64, i64)> = (0..100).map(|key| (key, 1)).collect();
    let many: Vec<Record> = (6..16).map(|seq| entry(seq, &changes)).collect();

    let mut steps = reading(None, Limits::default(), few);
    steps.event(Event::Fetched(None), 1_000_000);
    assert!(matches!(steps.next(0.0), Action::Begin(_)), "a few are written at once");

    let mut steps = reading(None, Limits::default(), many);
    steps.event(Event::Fetched(None), 1_000_000);
    assert!(matches!(steps.next(0.0), Action::Gather(time) if time == GATHERED_FOR));
    steps.event(Event::Done, 1_005_000);
    steps.event(Event::Fetched(Some(entry(16, &changes))), 1_005_000);
    steps.event(Event::Fetched(None), 1_005_000);
    assert!(matches!(steps.next(0.0), Action::Gather(time) if time == Duration::from_millis(15)));
    steps.event(Event::Done, 1_020_000);
    steps.event(Event::Fetched(None), 1_020_000);
    assert!(matches!(steps.next(0.0), Action::Begin(marker) if marker.seq == 16));
}

/// The commit was cut; the marker says that it had happened.
#[test]
fn an_unknown_commit_is_told_by_the_marker() {
    let mut steps = reading(None, Limits::default(), vec![entry(6, &[(1, 10)])]);
    steps.event(Event::Fetched(None), 0);
    steps.next(0.0);
    steps.event(Event::Done, 0);
    steps.next(0.0);
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Commit));
    steps.event(Event::Failed(Error::retry("cut")), 0);
    assert!(matches!(steps.next(0.0), Action::Pause(_)));
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Open));

    steps.event(Event::Opened(Box::new(opened(marker(6)))), 0);

    assert!(matches!(steps.next(0.0), Action::Seek(7)));
}

#[test]
fn too_many_refusals_stop_the_system_before_anything_is_set_aside() {
    let rows: Vec<(i64, i64)> = (0..10).map(|i| (i, i)).collect();
    let limits = Limits { refused: 5, ..Limits::default() };
    let mut steps = reading(None, limits, vec![entry(6, &rows)]);
    steps.event(Event::Fetched(None), 0);
    let said = loop {
        let event = match steps.next(0.0) {
            Action::Write { .. } => Event::Failed(Error::data("refused").code("23505")),
            Action::Stop(error) => break error.expect("an error").full(),
            Action::Quarantine(..) | Action::Holder | Action::Commit => panic!("nothing is set aside"),
            _ => Event::Done,
        };
        steps.event(event, 0);
    };

    assert!(said.contains("more than 5 of the last 1000 changes"), "{said}");
}

#[test]
fn a_filter_decides_by_what_is_there() {
    let rows = [(1, 10), (2, 10), (3, 1), (4, 1), (5, 1)];
    let mut steps = reading(Some("count > 5"), Limits::default(), vec![entry(6, &rows)]);
    steps.event(Event::Fetched(None), 0);
    steps.next(0.0);
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Read));

    // Nothing there; ours; ours and leaves; not ours; nothing there.
    let there = vec![None, Some(row(2, 9)), Some(row(3, 9)), Some(row(4, 2)), None];
    steps.event(Event::Rows(there), 0);

    assert!(matches!(steps.next(0.0), Action::Write { alone: false }));
    assert_eq!((steps.group().write, steps.group().rows.clone()), (Write::Delete, vec![row(3, 1).into()]));
    steps.event(Event::Done, 0);
    assert!(matches!(steps.next(0.0), Action::Read));
    steps.event(Event::Rows(vec![None, Some(row(2, 9))]), 0);
    assert!(matches!(steps.next(0.0), Action::Write { alone: false }));
    assert_eq!(
        (steps.group().write, steps.group().rows.clone()),
        (Write::Upsert, vec![row(1, 10).into(), row(2, 10).into()])
    );
}

#[test]
fn a_row_outside_the_filter_is_never_written_but_set_aside() {
    let mut steps = reading(Some("count > 5"), Limits::default(), vec![entry(6, &[(1, 10)])]);
    steps.event(Event::Fetched(None), 0);
    let mut replayed = false;
    let records = loop {
        let event = match steps.next(0.0) {
            Action::Read => Event::Rows(vec![Some(row(1, 2))]),
            Action::Rollback => {
                replayed = true;
                Event::Done
            }
            Action::Quarantine(records, _) => break records,
            Action::Write { .. } | Action::Commit => panic!("not written"),
            _ => Event::Done,
        };
        steps.event(event, 0);
    };

    assert!(replayed);
    assert_eq!((records[0].held_seq, records[0].last_seq, records[0].folded), (6, 6, false));
    assert!(records[0].reason.contains("outside the filter"), "{}", records[0].reason);
}

/// What the arbiter has set aside for the shop, up to entry `last`.
fn set_aside(held: Seq, last: Seq, id: i64) -> Record {
    let mut change = ChangeWriter::default();
    change.push(&schema(), EntityId(0), Op::Update, Some(ints(id, 0)), Some(ints(id, 1)));
    Record::Quarantine(Quarantined {
        system: "shop".into(),
        schema: schema(),
        held_seq: held,
        last_seq: last,
        change: change.take().into(),
        reason: "refused".into(),
        code: "23514".into(),
        attempts: 1,
        at: 0,
        folded: false,
    })
}

fn given_up(id: i64, by: Seq) -> Record {
    let Record::Entry(entry) = entry(1, &[(id, 0)]) else { unreachable!() };
    let Body::Inline(body) = &entry.body else { unreachable!() };
    let key_hash = Changes::new(body).next().unwrap().key_hash;
    Record::Released { system: "shop".into(), entity: "stock".into(), key_hash, by }
}

#[test]
fn what_a_person_gave_up_is_written_again_with_the_next_change_of_its_key() {
    let records = vec![set_aside(6, 6, 1), entry(6, &[(1, 1)]), given_up(1, 6), entry(7, &[(1, 2)])];
    let mut steps = reading(None, Limits::default(), records);
    steps.event(Event::Fetched(None), 0);

    assert!(matches!(steps.next(0.0), Action::Begin(Marker { seq: 7, .. })));
    steps.event(Event::Done, 0);

    assert!(matches!(steps.next(0.0), Action::Write { .. }));
    assert_eq!(steps.group().rows, [row(1, 2)]);
}

/// The person saw an older version of it: what came since is not given up.
#[test]
fn what_was_folded_onto_a_held_key_since_stays_held() {
    let records = vec![set_aside(6, 9, 1), given_up(1, 8), entry(10, &[(1, 2)])];
    let mut steps = reading(None, Limits::default(), records);
    steps.event(Event::Fetched(None), 0);
    steps.next(0.0);
    steps.event(Event::Done, 0);

    assert!(matches!(steps.next(0.0), Action::Quarantine(records, _) if records[0].last_seq == 10));
}
