use bytes::Bytes;

use super::*;
use crate::change::{Body, Captured, ChangeWriter, Decision, Op, SpoolRef, Verdict};
use crate::normalize::binding::Role;
use crate::rules::{Policy, Rules};
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

/// An insert lost to a later deletion, which is told again; what its transaction made of the row afterwards
/// must not meet that as something of unknown age.
#[test]
fn what_follows_a_lost_insert_in_its_transaction_loses_too() {
    let mut topology = topology();
    let rules = Rules { policy: Policy::Latest, by_field: true, ..Rules::default() };
    topology.entities[0].rules = Arc::new(rules);
    let schema = topology.schema.clone();
    let row = |count| [Datum::Value(Value::Int(1)), count].into_iter();
    let five = || row(Datum::Value(Value::Int(5)));
    let mut body = ChangeWriter::default();
    body.push(&schema, EntityId(0), Op::Delete, Some(five()), None::<std::array::IntoIter<Datum<'_>, 2>>);
    let deleted =
        Captured { committed_at: 10, body: Body::Inline(body.take().into()), ..captured(&topology, 1, 1, 0, 1) };
    body.push(&schema, EntityId(0), Op::Insert, None::<std::array::IntoIter<Datum<'_>, 2>>, Some(five()));
    body.push(&schema, EntityId(0), Op::Update, Some(five()), Some(row(Datum::Value(Value::Int(6)))));
    let made_again =
        Captured { committed_at: 5, body: Body::Inline(body.take().into()), ..captured(&topology, 0, 1, 0, 2) };
    let mut arbiter = Arbiter::new(topology, Box::new(MemoryStore::default()));
    struct At;
    impl Bodies for At {
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

    arbiter.captured(deleted, &At).unwrap();
    let admitted = arbiter.captured(made_again, &At).unwrap();

    assert!(!admitted.records.iter().any(|record| matches!(record, Record::Quarantine(_))), "{admitted:?}");
    let verdicts = admitted.records.iter().find_map(|record| match record {
        Record::Entry(entry) => {
            Some(entry.decisions.iter().map(|decision| decision.verdict.clone()).collect::<Vec<_>>())
        }
        _ => None,
    });
    let [told_again, lost] = &verdicts.unwrap()[..] else { panic!("{admitted:?}") };
    assert!(matches!(told_again, Verdict::Replaced { everywhere: true, winner: Some(1), .. }), "{told_again:?}");
    assert_eq!(*lost, Verdict::Rejected { winner: 2 });
}
