use bytes::Bytes;

use super::*;
use crate::change::{Body, Captured, ChangeWriter, Decision, Entry, Op, Origin, Others, SpoolRef, Verdict};
use crate::normalize::binding::Role;
use crate::rules::{Merge, OnDelete, Policy, Rules};
use crate::schema::{EntityId, EntitySchema, Field, Schema};
use crate::value::{Datum, Kind, Value};

/// A spool of `chunks` chunks with `rows` updates each, of distinct keys.
struct Spooled {
    schema: Arc<Schema>,
    chunks: i64,
    rows: i64,
}

impl Bodies for Spooled {
    fn chunks(&self, _: &SpoolRef, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut writer = ChangeWriter::default();
        for chunk in 0..self.chunks {
            for row in 0..self.rows {
                let id = [Datum::Value(Value::Int(chunk * self.rows + row)), Datum::Null];
                writer.push(&self.schema, EntityId(0), Op::Update, Some(id.into_iter()), Some(id.into_iter()));
            }
            each(&writer.take())?;
        }
        Ok(())
    }

    fn committed_at(&self, _: Seq) -> Result<Option<Micros>> {
        Ok(None)
    }

    fn image(&self, _: Seq, _: u128) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

fn topology() -> Topology {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    let schema = Schema::new(vec![EntitySchema::new("stock", ["id", "count"].map(field).to_vec(), 1)]);
    let member = |system| Member { system: SystemId(system), role: Role::Both, fields: 0b11, inexact: 0 };
    Topology {
        systems: ["crm", "shop"].map(Arc::from).to_vec(),
        schema,
        entities: vec![EntityTopology { rules: Arc::default(), members: vec![member(0), member(1)] }],
    }
}

fn captured(topology: &Topology, system: u8, index: u64, base: Seq, changes: u64) -> Captured {
    Captured {
        system: SystemId(system),
        position: Position::Memory { index },
        base,
        txid: index.to_string().into(),
        committed_at: 0,
        hops: 0,
        schema: topology.schema.clone(),
        changes,
        body: Body::Spooled(SpoolRef { id: 0, bytes: 0 }),
        refused: Vec::new(),
    }
}

/// Bounded memory: slots are forgotten once all have seen them, and a large transaction's
/// decisions are one range.
#[test]
fn a_large_transaction_costs_slots_until_all_have_seen_it_and_one_decision() {
    let topology = topology();
    let spool = Spooled { schema: topology.schema.clone(), chunks: 20, rows: 1000 };
    let mut arbiter = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));

    let first = arbiter.captured(captured(&topology, 0, 1, 0, 20_000), &spool).unwrap();
    let lost = arbiter.captured(captured(&topology, 1, 1, 0, 20_000), &spool).unwrap();
    let before = arbiter.store.len();
    arbiter.passed(SystemId(1), Position::Memory { index: 2 }, 1, "".into()).unwrap();

    assert_eq!(first.counts[0].journaled.total(), 20_000);
    assert_eq!(lost.counts[0], Counts { rejected: 20_000, conflicts: 20_000, ..Counts::default() });
    let Some(Record::Entry(entry)) = lost.records.last() else { panic!("{:?}", lost.records) };
    let rejected = Decision { from: 0, to: 20_000, verdict: Verdict::Rejected { winner: 1 } };
    assert_eq!(entry.decisions, [rejected]);
    assert_eq!((before, arbiter.store.len()), (20_000, 0));
    assert_eq!(arbiter.needed_from(), 3);
}

#[test]
fn a_system_needs_nothing_that_is_not_for_it() {
    let topology = topology();
    let spool = Spooled { schema: topology.schema.clone(), chunks: 1, rows: 1 };
    let mut arbiter = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    for index in 1..=3 {
        arbiter.captured(captured(&topology, 0, index, 0, 1), &spool).unwrap();
    }

    assert_eq!((arbiter.applies_from(SystemId(0)), arbiter.applies_from(SystemId(1))), (4, 1));
    assert_eq!(arbiter.needed_from(), 1);

    arbiter.passed(SystemId(1), Position::Memory { index: 1 }, 3, "".into()).unwrap();
    arbiter.captured(captured(&topology, 1, 2, 3, 1), &spool).unwrap();

    assert_eq!((arbiter.applies_from(SystemId(0)), arbiter.applies_from(SystemId(1))), (4, 5));
}

/// Entry 1 was committed at 10.
struct CommittedAt10;

impl Bodies for CommittedAt10 {
    fn committed_at(&self, seq: Seq) -> Result<Option<Micros>> {
        Ok((seq == 1).then_some(10))
    }

    fn chunks(&self, _: &SpoolRef, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        unreachable!("nothing is spooled here")
    }

    fn image(&self, _: Seq, _: u128) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

const NONE: Option<std::array::IntoIter<Datum<'_>, 2>> = None;

fn row(count: i64) -> std::array::IntoIter<Datum<'static>, 2> {
    [1, count].map(|value| Datum::Value(Value::Int(value))).into_iter()
}

/// The later one wins, field by field: shop deletes a row, and crm's transaction, committed before and not aware
/// of it, makes it again and changes it. Returns that topology, and the arbiter with what became of the latter.
fn deletion_told_again() -> (Topology, Arbiter, Entry) {
    let mut topology = topology();
    let rules = Rules { policy: Policy::Latest, by_field: true, ..Rules::default() };
    topology.entities[0].rules = Arc::new(rules);
    let schema = topology.schema.clone();
    let mut body = ChangeWriter::default();
    body.push(&schema, EntityId(0), Op::Delete, Some(row(5)), NONE);
    let deleted =
        Captured { committed_at: 10, body: Body::Inline(body.take().into()), ..captured(&topology, 1, 1, 0, 1) };
    body.push(&schema, EntityId(0), Op::Insert, NONE, Some(row(5)));
    body.push(&schema, EntityId(0), Op::Update, Some(row(5)), Some(row(6)));
    let made_again =
        Captured { committed_at: 5, body: Body::Inline(body.take().into()), ..captured(&topology, 0, 1, 0, 2) };
    let mut arbiter = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    arbiter.captured(deleted, &CommittedAt10).unwrap();
    let admitted = arbiter.captured(made_again, &CommittedAt10).unwrap();
    assert!(!admitted.records.iter().any(|record| matches!(record, Record::Quarantine(_))), "{admitted:?}");
    let entry = admitted.records.iter().find_map(|record| match record {
        Record::Entry(entry) => Some(entry.clone()),
        _ => None,
    });
    (topology, arbiter, entry.unwrap())
}

/// An insert lost to a later deletion, which is told again; what its transaction made of the row afterwards
/// must not meet that as something of unknown age.
#[test]
fn what_follows_a_lost_insert_in_its_transaction_loses_too() {
    let (.., entry) = deletion_told_again();

    let [told_again, lost] = &entry.decisions[..] else { panic!("{entry:?}") };
    let by = Origin::System("shop".into());
    assert_eq!(told_again.verdict, Verdict::Redeleted { offset: 0, winner: 1, by });
    assert_eq!(lost.verdict, Verdict::Rejected { winner: 2 });
}

/// A replay may begin behind the deletion itself. To make the row again is no conflict for who deleted it.
#[test]
fn a_deletion_that_is_told_again_is_still_of_who_deleted() {
    let (topology, live, entry) = deletion_told_again();
    let mut replayed = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    replayed.follow(SystemId(0), Position::Memory { index: 1 }, 1, "".into());
    replayed.follow(SystemId(1), Position::Memory { index: 1 }, 1, "".into());
    replayed.replay(&Record::Entry(entry), &CommittedAt10).unwrap();
    replayed.resume(2);

    for mut arbiter in [live, replayed] {
        let mut body = ChangeWriter::default();
        body.push(&topology.schema, EntityId(0), Op::Insert, NONE, Some(row(7)));
        let body = Body::Inline(body.take().into());
        let made = arbiter.captured(Captured { body, ..captured(&topology, 1, 2, 1, 1) }, &CommittedAt10).unwrap();

        assert_eq!((made.counts[0].conflicts, made.counts[0].journaled.total()), (0, 1), "{made:?}");
    }
}

/// A transaction of several chunks wrote one field of a row before another was refused: what its system makes
/// of the first afterwards has seen it, and nothing would write it there again.
#[test]
fn of_a_held_key_what_its_system_has_counts_as_seen() {
    let mut topology = topology();
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    topology.schema = Schema::new(vec![EntitySchema::new("stock", ["id", "count", "place"].map(field).to_vec(), 1)]);
    topology.entities[0].members.iter_mut().for_each(|member| member.fields = 0b111);
    topology.entities[0].rules = Arc::new(Rules { by_field: true, ..Rules::default() });
    let schema = topology.schema.clone();
    let update = |count: Option<i64>, place: Option<i64>| {
        let datum = |value: Option<i64>| value.map_or(Datum::NotSent, |value| Datum::Value(Value::Int(value)));
        let mut body = ChangeWriter::default();
        let row = || [datum(Some(1)), datum(count), datum(place)].into_iter();
        body.push(&schema, EntityId(0), Op::Update, Some(row()), Some(row()));
        Bytes::from(body.take())
    };
    let write = |system, index, base, rows| Captured {
        body: Body::Inline(rows),
        ..captured(&topology, system, index, base, 1)
    };
    let spool = Spooled { schema: schema.clone(), chunks: 0, rows: 0 };
    let mut arbiter = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    arbiter.captured(write(0, 1, 0, update(Some(5), Some(5))), &spool).unwrap();
    let refused = Quarantined {
        system: "shop".into(),
        schema: schema.clone(),
        held_seq: 1,
        last_seq: 1,
        change: update(Some(5), None),
        reason: "above the limit".to_owned(),
        code: "23514".to_owned(),
        attempts: 1,
        at: 0,
        folded: false,
    };
    arbiter.quarantined(&refused, 0).unwrap();

    let place = arbiter.captured(write(1, 1, 1, update(None, Some(6))), &spool).unwrap();
    let count = arbiter.captured(write(1, 2, 1, update(Some(6), None)), &spool).unwrap();

    let journaled = |admitted: &Admitted| (admitted.counts[0].journaled.total(), admitted.counts[0].rejected);
    assert_eq!((journaled(&place), journaled(&count)), ((1, 0), (0, 1)));
}

/// Where a row lives on after a delete that lost, its origin alone gets a sum back. What that system does to
/// the row before then has not seen it: where it deletes the row once more, the delete follows that sum.
#[test]
fn a_delete_goes_behind_the_sum_that_its_own_system_gets_back() {
    let mut topology = topology();
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    topology.schema = Schema::new(vec![EntitySchema::new("stock", ["id", "count", "place"].map(field).to_vec(), 1)]);
    topology.entities[0].members.iter_mut().for_each(|member| member.fields = 0b111);
    let rules = Rules { on_delete: Some(OnDelete::UpdateWins), merges: vec![(1, Merge::Add)], ..Rules::default() };
    topology.entities[0].rules = Arc::new(rules);
    let schema = topology.schema.clone();
    let whole = || [1, 9, 1].map(|value| Datum::Value(Value::Int(value))).into_iter();
    let none = || None::<std::array::IntoIter<Datum<'_>, 3>>;
    let one = |op, before, after| {
        let mut body = ChangeWriter::default();
        body.push(&schema, EntityId(0), op, before, after);
        Bytes::from(body.take())
    };
    let add = || {
        let after = [Datum::Value(Value::Int(1)), Datum::Added("3"), Datum::NotSent].into_iter();
        one(Op::Update, Some(whole()), Some(after))
    };
    let delete = || one(Op::Delete, Some(whole()), none());
    let write = |system, index, base, rows| Captured {
        body: Body::Inline(rows),
        ..captured(&topology, system, index, base, 1)
    };
    let spool = Spooled { schema: schema.clone(), chunks: 0, rows: 0 };
    let mut live = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    let mut records = Vec::new();
    for (system, index, rows) in [(0, 1, add()), (1, 1, add()), (0, 2, delete()), (1, 2, delete())] {
        records.extend(live.captured(write(system, index, 0, rows), &spool).unwrap().records);
    }
    let Some(Record::Entry(lost)) = records.last() else { panic!("{records:?}") };
    let verdict = &lost.decisions[0].verdict;
    assert!(matches!(verdict, Verdict::Split { others: Others::Nothing, .. }), "{verdict:?}");
    let mut replayed = Arbiter::new(topology.clone(), Box::new(MemoryStore::default()));
    records.iter().for_each(|record| replayed.replay(record, &spool).unwrap());
    replayed.resume(4);

    for mut arbiter in [live, replayed] {
        let again = arbiter.captured(write(1, 3, 3, delete()), &spool).unwrap();

        let Some(Record::Entry(entry)) = again.records.last() else { panic!("{again:?}") };
        assert_eq!(entry.decisions, [Decision { from: 0, to: 1, verdict: Verdict::Everywhere }]);
    }
}
