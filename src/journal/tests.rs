#![allow(unused)]
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::disk::fault::{self, Fault};
use super::*;
use crate::change::{
    Address, Body, ChangeWriter, Decision, Encoded, Entry, Op, Origin, Quarantined, Record, Refused, SpoolRef, Verdict,
};
use crate::error::Recovery;
use crate::position::{BinlogPosition, GtidSet, GtidSource, Lsn, MariadbGtid, Position};
use crate::schema::{EntityId, EntitySchema, Field};
use crate::value::{Datum, Kind, Value};

fn schema_with(extra: &str) -> Arc<Schema> {
    let field = |name: &str, kind| Field { name: name.into(), kind };
    let fields = vec![field("id", Kind::Int), field("name", Kind::Text), field(extra, Kind::Text)];
    Schema::new(vec![EntitySchema::new("contact", fields, 1)])
}

fn schema() -> Arc<Schema> {
    schema_with("city")
}

fn change(key: i64, text: &str) -> Bytes {
    let mut writer = ChangeWriter::default();
    let row = [Datum::Value(Value::Int(key)), Datum::Value(Value::Text(text)), Datum::Null].into_iter();
    let none = None::<std::array::IntoIter<Datum<'_>, 3>>;
    writer.push(&schema(), EntityId(0), Op::Insert, none, Some(row));
    writer.take().into()
}

fn entry(seq: Seq, body: &Bytes) -> Entry {
    Entry {
        seq,
        origin: Origin::System("crm".into()),
        position: Some(Position::Postgres { lsn: Lsn(seq * 100) }),
        base: seq / 2,
        txid: format!("{seq}").into(),
        committed_at: 1_700_000_000_000_000 + seq as i64,
        to: Address::Others,
        schema: schema(),
        changes: 1,
        body: Body::Inline(body.clone()),
        decisions: Vec::new(),
        replacements: Bytes::new(),
    }
}

fn small(seq: Seq) -> Record {
    Record::Entry(entry(seq, &change(seq as i64, "Ada")))
}

/// Does not compress.
fn noise(seq: Seq, len: usize) -> Bytes {
    let mut state = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| step()).collect()
}

fn large(seq: Seq, len: usize) -> Record {
    Record::Entry(entry(seq, &noise(seq, len)))
}

fn held(system: &str, key: i64, seq: Seq) -> Quarantined {
    Quarantined {
        system: system.into(),
        schema: schema(),
        held_seq: seq,
        last_seq: seq,
        change: change(key, "held"),
        reason: "duplicate key".into(),
        code: "23505".into(),
        attempts: 1,
        at: 5,
        folded: false,
    }
}

fn released(held: &Quarantined, by: Seq) -> Record {
    let change = Encoded(&held.change).change();
    Record::Released { system: held.system.clone(), entity: "contact".into(), key_hash: change.key_hash, by }
}

fn position(system: &str, index: u64, base: Seq) -> Record {
    let identity = format!("server of {system}").into();
    Record::Position { system: system.into(), position: Position::Memory { index }, base, identity }
}

fn options(dir: &Path) -> Options {
    Options { dir: dir.join("journal"), max_size: 1 << 40, segment_bytes: 64 << 10, compress: true }
}

fn opened(dir: &Path) -> (Writer, Journal, Recovered) {
    open(&options(dir)).expect("the journal opens")
}

fn rest(reader: &mut Reader) -> Vec<Record> {
    std::iter::from_fn(|| reader.next().expect("readable")).collect()
}

fn all(journal: &Journal) -> Vec<Record> {
    rest(&mut journal.reader(journal.oldest()).expect("reader"))
}

fn seqs(records: &[Record]) -> Vec<Seq> {
    let seq = |record: &Record| match record {
        Record::Entry(entry) => Some(entry.seq),
        _ => None,
    };
    records.iter().filter_map(seq).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("journal")).expect("dir").map(|e| e.expect("e").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    paths.sort();
    paths
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).expect("read");
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).expect("write");
}

/// The end of what is written in a segment without close or seal.
fn written(journal: &Journal) -> usize {
    journal.0.segments().back().expect("segment").end.load(Ordering::Relaxed) as usize
}

#[test]
fn records_come_back_as_they_were_appended() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, recovered) = opened(dir.path());
    let records = vec![position("crm", 1, 0), small(1), Record::Quarantine(held("shop", 1, 1)), small(2)];

    records.iter().for_each(|record| writer.append(record).expect("append"));
    let mut reader = journal.reader(1).expect("reader");
    let before_sync = reader.next().expect("read");
    let durable = writer.sync().expect("sync");

    assert!(recovered.created && recovered.head == 0);
    assert_eq!(before_sync, None);
    assert_eq!((durable, journal.head(), *journal.durable().borrow()), (2, 2, 2));
    assert_eq!(rest(&mut reader), records);
    assert_eq!(journal.entry(2).expect("entry").map(Record::Entry), Some(records[3].clone()));
    assert_eq!(journal.entry(3).expect("entry"), None);
}

#[test]
fn a_restart_knows_what_is_live() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, first) = opened(dir.path());
    let (kept, gone) = (held("shop", 1, 1), held("shop", 2, 1));
    for record in [position("crm", 1, 0), position("shop", 7, 3), small(1), Record::Quarantine(kept.clone())] {
        writer.append(&record).expect("append");
    }
    writer.append(&Record::Quarantine(gone.clone())).expect("append");
    writer.append(&released(&gone, 1)).expect("append");
    writer.sync().expect("sync");
    writer.append(&small(2)).expect("append");
    drop((writer, journal));

    let (_writer, journal, recovered) = opened(dir.path());

    assert_eq!((recovered.id, recovered.created, recovered.head), (first.id, false, 1));
    assert_eq!(journal.head(), 1);
    let crm = &recovered.positions["crm"];
    assert_eq!((&crm.position, crm.base), (&Position::Postgres { lsn: Lsn(100) }, 0));
    assert_eq!(&*crm.identity, "server of crm");
    assert_eq!(recovered.positions["shop"].base, 3);
    assert_eq!(recovered.quarantined, [kept]);
}

#[test]
fn many_segments_read_as_one_journal_and_a_restart_reads_only_the_last() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    writer.append(&position("quiet", 9, 4)).expect("append");
    writer.append(&Record::Quarantine(held("shop", 1, 1))).expect("append");
    for seq in 1..=200 {
        writer.append(&large(seq, 3000)).expect("append");
        writer.sync().expect("sync");
    }
    assert_eq!(seqs(&all(&journal)), (1..=200).collect::<Vec<_>>());
    for from in [1, 2, 20, 21, 22, 100, 199, 200, 201] {
        let read = rest(&mut journal.reader(from).expect("reader"));
        assert_eq!(seqs(&read), (from..=200).collect::<Vec<_>>(), "from {from}");
    }
    drop((writer, journal));
    let files = segments(dir.path());
    assert!(files.len() > 5, "{files:?}");

    let (_writer, journal, recovered) = opened(dir.path());

    assert_eq!((recovered.head, recovered.quarantined.len()), (200, 1));
    assert_eq!(recovered.positions["quiet"].base, 4);
    assert_eq!(journal.entry(57).expect("entry").map(|e| e.seq), Some(57));
    assert_eq!(seqs(&all(&journal)), (1..=200).collect::<Vec<_>>());
}
