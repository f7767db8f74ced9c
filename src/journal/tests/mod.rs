//! What the journal promises, one file per promise: records come back (here), crashes and
//! damage, retention, the spool.

mod crash;
mod retain;
mod spool;

use std::collections::BTreeMap;
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
    Address, Body, ChangeWriter, ConflictId, Conflicted, Decision, Encoded, Entry, Images, LoadMark, LoadState, Op,
    Origin, Others, Outcome, Prepared, Quarantined, Record, Refused, Rule, Settled, Settlement, SpoolRef, Verdict,
};
use crate::error::Recovery;
use crate::load::{Classes, Counts};
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
        hops: 0,
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

/// Journals of before there were hops are read, and what has none is written as it was then.
#[test]
fn an_entry_without_hops_has_the_older_form() {
    let encoded = |hops| {
        let mut bytes = Vec::new();
        codec::put_record(&mut bytes, &Record::Entry(Entry { hops, ..entry(1, &change(1, "Ada")) }));
        bytes
    };
    let (older, newer) = (encoded(0), encoded(300));

    assert_eq!((older[4], newer[4]), (1, 10));
    assert_eq!(newer[5..7], [0xac, 2]);
    assert_eq!(newer[7..], older[5..]);
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

#[test]
fn a_reader_follows_while_the_writer_writes() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let follow = |from: Seq| {
        let journal = journal.clone();
        std::thread::spawn(move || {
            let mut reader = journal.reader(from).expect("reader");
            let mut read = Vec::new();
            while read.last() != Some(&400) {
                match reader.next().expect("readable") {
                    Some(Record::Entry(entry)) => {
                        assert!(entry.seq <= journal.head(), "{} is read before the head says so", entry.seq);
                        read.push(entry.seq);
                    }
                    Some(_) => {}
                    None => std::thread::yield_now(),
                }
            }
            read
        })
    };
    let followers = [follow(1), follow(1), follow(150)];

    for seq in 1..=400 {
        writer.append(&large(seq, 700 + (seq as usize * 37) % 3000)).expect("append");
        if seq % 3 == 0 || seq == 400 {
            writer.sync().expect("sync");
        }
    }

    for (follower, from) in followers.into_iter().zip([1, 1, 150]) {
        assert_eq!(follower.join().expect("no panic"), (from..=400).collect::<Vec<_>>());
    }
}

#[test]
fn positions_of_before_files_were_dated_are_read() {
    let binlog = BinlogPosition { file: "b.000007".into(), offset: 300, begun: 0 };
    let mysql = Position::Mysql { gtids: GtidSet::default(), binlog: binlog.clone(), server_uuid: String::new() };
    for (kind, position) in [(2, mysql), (3, Position::Mariadb { domains: BTreeMap::new(), binlog })] {
        let mut bytes = Vec::new();
        codec::put_position(&mut bytes, &position);
        assert_eq!((bytes.pop(), bytes[0]), (Some(0), kind + 3), "it ends with what was not there");
        bytes[0] = kind;

        let (bytes, mut names) = (Bytes::from(bytes), codec::Names::default());
        assert_eq!(codec::Decoder::new(&bytes, 0, &mut names, &|_| None).position().ok(), Some(position));
    }
}

/// A thread that was put aside between the two once let an entry be applied, and its marker come back
/// in the target's log, before the head was told of it: that system was taken for one from a backup.
#[test]
fn nothing_is_read_before_the_head_is_told_of_it() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let mut reader = journal.reader(1).expect("reader");
    let durable = journal.durable();
    let head = durable.borrow(); // nobody moves it now

    let writing = std::thread::spawn(move || {
        writer.append(&small(1)).expect("append");
        writer.sync().expect("sync")
    });
    let path = segments(dir.path()).pop().expect("a segment");
    let is_written = || fs::read(&path).expect("readable").windows(3).any(|bytes| bytes == b"Ada");
    while !is_written() {
        std::thread::yield_now();
    }
    let patience = std::time::Instant::now() + Duration::from_millis(200);
    while std::time::Instant::now() < patience {
        assert_eq!(reader.next().expect("readable"), None, "the head is at {}", *head);
        std::thread::yield_now();
    }
    drop(head);

    assert_eq!(writing.join().expect("no panic"), 1);
    assert_eq!((seqs(&rest(&mut reader)), journal.head()), (vec![1], 1));
}

#[test]
fn a_reader_that_begins_in_the_middle_finds_its_schemas() {
    let dir = TempDir::new().expect("dir");
    let wide = Options { segment_bytes: 8 << 20, ..options(dir.path()) };
    let (mut writer, journal, _) = open(&wide).expect("open");
    for seq in 1..=40 {
        let schema = schema_with(if seq % 2 == 0 { "city" } else { "town" });
        let Record::Entry(entry) = large(seq, 100_000) else { unreachable!("large makes entries") };
        writer.append(&Record::Entry(Entry { schema, ..entry })).expect("append");
        writer.sync().expect("sync");
    }
    drop((writer, journal));
    let (_writer, journal, _) = open(&wide).expect("open");
    journal.0.schemas.write().expect("lock").clear();

    let read = rest(&mut journal.reader(35).expect("reader"));

    assert_eq!(seqs(&read), (35..=40).collect::<Vec<_>>());
    let Record::Entry(first) = &read[0] else { panic!("an entry") };
    assert_eq!(first.schema, schema_with("town"));
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_segment_that_holds_it() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());

    writer.append(&small(1)).expect("append");
    writer.append(&large(2, 20 << 20)).expect("append");
    writer.append(&small(3)).expect("append");
    writer.sync().expect("sync");
    drop((writer, journal));
    let (_writer, journal, recovered) = opened(dir.path());

    assert_eq!(recovered.head, 3);
    assert_eq!(all(&journal), [small(1), large(2, 20 << 20), small(3)]);
}

#[test]
fn text_is_compressed() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let before = journal.bytes();

    for seq in 1..=1000 {
        writer.append(&small(seq)).expect("append");
    }
    writer.sync().expect("sync");

    let took = journal.bytes() - before;
    assert!(took < 40_000, "{took} bytes for 1000 small entries");
}

/// A restart reads the last segment: what it holds has a limit, not only its size on disk.
#[test]
fn very_compressible_records_do_not_make_a_restart_long() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());

    for seq in 1..=200 {
        writer.append(&Record::Entry(entry(seq, &vec![7; 10_000].into()))).expect("append");
        writer.sync().expect("sync");
    }

    assert!(segments(dir.path()).len() >= 7, "{:?}", segments(dir.path()));
    assert!(journal.bytes() < 150_000, "and unused space is given back: {}", journal.bytes());
    assert_eq!(seqs(&all(&journal)), (1..=200).collect::<Vec<_>>());
}

#[test]
fn entries_out_of_order_are_refused() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, _journal, _) = opened(dir.path());

    let error = writer.append(&small(2)).expect_err("refused");

    assert_eq!(error.recovery, Recovery::Stop);
    writer.append(&small(1)).expect("the right one is taken");
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_the_journal() {
    let dir = TempDir::new().expect("dir");
    let (writer, _journal, _) = opened(dir.path());

    let error = open(&options(dir.path())).expect_err("refused");

    assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
    drop(writer);
    opened(dir.path());
}

/// `anechoic history` in the moment in which the service starts.
#[test]
fn who_only_looks_into_the_journal_does_not_keep_the_agent_from_starting() {
    let dir = TempDir::new().expect("dir");
    let (writer, _journal, _) = opened(dir.path());
    let looking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(writer);
    });

    opened(dir.path());

    looking.join().expect("no panic");
}

#[test]
fn nobody_else_can_read_the_journal() {
    let dir = TempDir::new().expect("dir");
    let (_writer, journal, _) = opened(dir.path());
    let mut spool = journal.spool().create().expect("spool");
    spool.write(b"x").expect("write");
    spool.finish().expect("finish");

    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    let journal = dir.path().join("journal");
    assert_eq!((mode(&journal), mode(&journal.join("spool"))), (0o700, 0o700));
    assert_eq!((mode(&segments(dir.path())[0]), mode(&journal.join("spool/1"))), (0o600, 0o600));
}

#[test]
fn followers_wake_for_quarantine_but_not_for_positions() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let mut durable = journal.durable();
    let mut wakes = |record: Record| {
        writer.append(&record).expect("append");
        writer.sync().expect("sync");
        let woke = durable.has_changed().expect("open");
        durable.mark_unchanged();
        woke
    };

    assert!(wakes(small(1)));
    assert!(!wakes(position("crm", 1, 1)));
    assert!(wakes(Record::Quarantine(held("shop", 1, 1))));
}

fn any_position() -> impl Strategy<Value = Position> {
    let binlog = ("[a-z.0-9]{0,12}", any::<(u64, u32)>()).prop_map(|(file, (offset, begun))| BinlogPosition {
        file,
        offset,
        begun,
    });
    let source = (any::<[u8; 16]>(), "[a-z_]{0,8}").prop_map(|(uuid, tag)| GtidSource { uuid, tag });
    let ranges = prop::collection::vec((any::<u64>(), any::<u64>()), 0..4);
    let gtids = prop::collection::btree_map(source, ranges, 0..4).prop_map(|intervals| GtidSet { intervals });
    let gtid = (any::<u32>(), any::<u64>()).prop_map(|(server_id, sequence)| MariadbGtid { server_id, sequence });
    prop_oneof![
        any::<u64>().prop_map(|lsn| Position::Postgres { lsn: Lsn(lsn) }),
        (gtids, binlog.clone(), ".{0,10}").prop_map(|(gtids, binlog, server_uuid)| Position::Mysql {
            gtids,
            binlog,
            server_uuid
        }),
        (prop::collection::btree_map(any::<u32>(), gtid, 0..4), binlog)
            .prop_map(|(domains, binlog)| Position::Mariadb { domains, binlog }),
        any::<u64>().prop_map(|index| Position::Memory { index }),
    ]
}

fn any_name() -> impl Strategy<Value = Arc<str>> {
    ".{0,12}".prop_map(|name| name.into())
}

fn any_counts() -> impl Strategy<Value = Counts> {
    let name = || ".{0,9}";
    let fields = prop::collection::btree_map(name(), any::<u64>(), 0..3);
    let samples = prop::collection::btree_map(name(), prop::collection::vec(name(), 0..3), 0..3);
    let classes = (any::<[u64; 5]>(), fields, samples).prop_map(|(counts, fields, samples)| {
        let [equal, different, missing, extra, held] = counts;
        Classes { equal, different, missing, extra, held, fields, samples }
    });
    (any::<[u64; 5]>(), prop::collection::btree_map(name(), classes, 0..3)).prop_map(|(counts, systems)| {
        let [read, copied, lost, refused, deleted] = counts;
        Counts { read, copied, lost, refused, deleted, systems }
    })
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600).prop_map(Bytes::from),
        (any::<u8>(), 0..2000usize).prop_map(|(byte, len)| vec![byte; len].into()),
    ]
}

fn any_decision() -> impl Strategy<Value = Decision> {
    let others = prop_oneof![Just(Others::Nothing), Just(Others::Same), any::<u64>().prop_map(Others::Replaced)];
    let verdict = prop_oneof![
        Just(Verdict::Everywhere),
        any::<u64>().prop_map(|winner| Verdict::Rejected { winner }),
        (any::<u64>(), any::<bool>(), any::<Option<u64>>())
            .prop_map(|(offset, everywhere, winner)| { Verdict::Replaced { offset, everywhere, winner } }),
        (others, any::<u64>(), any::<Option<u64>>()).prop_map(|(others, own, winner)| Verdict::Split {
            others,
            own,
            winner
        }),
        (any::<u64>(), any::<u64>(), prop_oneof![Just(Origin::Agent), Just(Origin::System("shop".into()))])
            .prop_map(|(offset, winner, by)| Verdict::Redeleted { offset, winner, by }),
    ];
    (any::<u64>(), any::<u64>(), verdict).prop_map(|(from, to, verdict)| Decision { from, to, verdict })
}

fn any_schema() -> impl Strategy<Value = Arc<Schema>> {
    prop_oneof![Just(schema()), Just(schema_with("town"))]
}

fn any_entry() -> impl Strategy<Value = Record> {
    let origin =
        prop_oneof![Just(Origin::Agent), any_name().prop_map(Origin::System), any_name().prop_map(Origin::Copied)];
    let to = prop_oneof![Just(Address::Others), prop::collection::vec(any_name(), 0..4).prop_map(Address::Only)];
    let body = prop_oneof![
        any_bytes().prop_map(Body::Inline),
        (any::<u64>(), any::<u64>()).prop_map(|(id, bytes)| Body::Spooled(SpoolRef { id, bytes }))
    ];
    let decisions = prop::collection::vec(any_decision(), 0..5);
    let hops = prop_oneof![Just(0), any::<u32>()];
    let first = (origin, prop::option::of(any_position()), any::<u64>(), any_name(), any::<i64>(), hops);
    (first, to, any_schema(), any::<u64>(), body, decisions, any_bytes()).prop_map(
        |((origin, position, base, txid, committed_at, hops), to, schema, changes, body, decisions, replacements)| {
            Record::Entry(Entry {
                seq: 0,
                origin,
                position,
                base,
                txid,
                committed_at,
                hops,
                to,
                schema,
                changes,
                body,
                decisions,
                replacements,
            })
        },
    )
}

fn any_record() -> impl Strategy<Value = Record> {
    let quarantined = (any_name(), any_schema(), any::<[u64; 2]>(), ".{0,9}", any::<u32>(), any::<(i64, i64, bool)>())
        .prop_map(|(system, schema, seqs, text, attempts, (key, at, folded))| Quarantined {
            system,
            schema,
            held_seq: seqs[0],
            last_seq: seqs[1],
            change: change(key, &text),
            reason: text.clone(),
            code: text,
            attempts,
            at,
            folded,
        });
    let refused = (any_name(), prop::option::of(any_position()), any_name(), any_schema(), any_bytes(), ".{0,9}")
        .prop_map(|(system, position, txid, schema, change, reason)| Refused {
            system,
            position,
            txid,
            schema,
            change,
            reason,
        });
    let images = (any_schema(), any_bytes(), any_bytes(), any::<u128>())
        .prop_map(|(schema, change, current, fields)| Images { schema, change, current, fields });
    let outcome = (prop::sample::select(&Rule::ALL[..]), prop::sample::select(&Outcome::ALL[..]));
    let conflict = (any::<(u64, u64, u128)>(), any_name(), outcome, any::<(u64, i64)>(), prop::option::of(images))
        .prop_map(|((seq, index, key_hash), system, (rule, outcome), (against, at), images)| Conflicted {
            id: ConflictId { seq, index },
            entity: system.clone(),
            key_hash,
            against_system: Some(system.clone()).filter(|name| !name.is_empty()),
            system,
            against,
            rule,
            outcome,
            at,
            images,
        });
    let settled = any::<(u64, u64, bool, u64)>().prop_map(|(seq, index, resolved, by)| Settled {
        id: ConflictId { seq, index },
        how: if resolved { Settlement::Resolved } else { Settlement::Superseded },
        by,
    });
    let state = prop_oneof![Just(LoadState::Running), Just(LoadState::Done), Just(LoadState::Skipped)];
    let load = (any_name(), any_name(), state, any_schema(), prop::collection::vec(any_bytes(), 1..4), any_counts())
        .prop_flat_map(|mark| (Just(mark), any::<([bool; 3], i64)>()))
        .prop_map(|((entity, system, state, schema, mut lost, counts), (options, begun))| LoadMark {
            entity,
            bound: vec![system.clone(), "shop".into()],
            settled: vec![system.clone()],
            authority: system.clone(),
            system,
            only_missing: options[0],
            delete_extra: options[1],
            fresh: options[2],
            state,
            begun,
            schema,
            key: lost.pop().expect("at least one"),
            counts,
            lost,
        });
    prop_oneof![
        4 => any_entry(),
        1 => load.prop_map(Record::Load),
        2 => conflict.prop_map(Record::Conflict),
        1 => settled.prop_map(Record::Settled),
        1 => (any_name(), any_position(), any::<u64>(), any_name())
            .prop_map(|(system, position, base, identity)| Record::Position { system, position, base, identity }),
        1 => quarantined.prop_map(Record::Quarantine),
        1 => refused.prop_map(Record::Refused),
        1 => (any_name(), any_name(), any_position(), any::<u64>())
            .prop_map(|(system, xid, position, base)| Record::Decided { system, xid, position, base }),
        1 => any_prepared().prop_map(Record::Prepared),
        1 => (any_name(), any_name(), any::<u128>(), any::<u64>())
            .prop_map(|(system, entity, key_hash, by)| Record::Released { system, entity, key_hash, by }),
    ]
}

fn any_prepared() -> impl Strategy<Value = Prepared> {
    let refused = prop::collection::vec((any_name(), any_bytes(), ".{0,9}"), 0..3);
    (any_name(), any_name(), any_position(), any::<[u64; 2]>(), any_schema(), refused).prop_map(
        |(system, xid, position, [base, changes], schema, refused)| {
            let refused = refused.into_iter().map(|(txid, change, reason)| Refused {
                system: system.clone(),
                position: Some(position.clone()),
                txid,
                schema: schema.clone(),
                change,
                reason,
            });
            let refused = refused.collect();
            // Files of the spool are another test's business.
            Prepared { system, xid, position, base, schema, changes, spool: None, refused }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any records, synced in any groups, over several segments, read before and after a restart.
    #[test]
    fn any_record_survives_a_restart(mut records in prop::collection::vec((any_record(), any::<bool>()), 1..60)) {
        let dir = TempDir::new().expect("dir");
        let tiny = Options { segment_bytes: 4 << 10, ..options(dir.path()) };
        let (mut writer, journal, _) = open(&tiny).expect("open");
        let mut seq = 0;
        for (record, sync) in &mut records {
            if let Record::Entry(entry) = record {
                seq += 1;
                entry.seq = seq;
                // Files of the spool are another test's business.
                if matches!(entry.body, Body::Spooled(_)) {
                    entry.body = Body::Inline(Bytes::new());
                }
            }
            writer.append(record).expect("append");
            if *sync {
                writer.sync().expect("sync");
            }
        }
        writer.sync().expect("sync");
        let records: Vec<Record> = records.into_iter().map(|(record, _)| record).collect();
        prop_assert_eq!(&all(&journal), &records);
        let prepared: Vec<Prepared> = writer.state().prepared().cloned().collect();
        let state = (writer.state().positions.clone(), writer.state().quarantined().cloned().collect::<Vec<_>>());
        let conflicts: Vec<Conflicted> = writer.state().conflicts().cloned().collect();
        drop((writer, journal));

        let (_writer, journal, recovered) = open(&tiny).expect("open");

        prop_assert_eq!(all(&journal), records);
        prop_assert_eq!((recovered.positions, recovered.quarantined), state);
        prop_assert_eq!(recovered.prepared, prepared);
        prop_assert_eq!(recovered.conflicts, conflicts);
    }

    #[test]
    fn malformed_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let schema = schema();
        let known = |_| Some(schema.clone());
        let mut names = codec::Names::default();
        let _ = codec::Decoder::new(&bytes, 0, &mut names, &known).record(1);
        let _ = state::State::decode(&bytes);
    }

    #[test]
    fn damaged_records_are_an_error_and_no_panic(record in any_record(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = Vec::new();
        codec::put_record(&mut bytes, &record);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let schema = schema();
        let known = |_| Some(schema.clone());
        let mut names = codec::Names::default();
        let _ = codec::Decoder::new(&bytes.into(), 0, &mut names, &known).record(1);
    }

    #[test]
    fn a_spooled_body_is_named_as_it_was(id: u64, bytes: u64) {
        let record = Record::Entry(Entry { body: Body::Spooled(SpoolRef { id, bytes }), ..entry(1, &Bytes::new()) });
        let mut encoded = Vec::new();
        codec::put_record(&mut encoded, &record);
        let schema = schema();
        let known = |_| Some(schema.clone());
        let mut names = codec::Names::default();
        let decoded = codec::Decoder::new(&encoded.into(), 0, &mut names, &known).record(1);
        prop_assert_eq!(decoded, Ok(record));
    }
}
