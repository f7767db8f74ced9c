use super::super::table_map::tests::{table_map, wanted};
use super::*;
use crate::capture::{RowEvent, TableNow};
use crate::catalog::ColumnType;
use crate::error::Recovery;

#[derive(Default)]
struct Lines(Vec<String>);

impl Sink for Lines {
    fn begin(&mut self, begin: Begin<'_>) -> Result<()> {
        self.0.push(format!("begin {}", begin.txid));
        Ok(())
    }
    fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
        self.0.push(format!("{:?} {:?}", row.op, row.after.or(row.before).expect("an image")[0]));
        Ok(())
    }
    fn truncate(&mut self, table: usize) -> Result<()> {
        self.0.push(format!("truncate {table}"));
        Ok(())
    }
    fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        self.0.push(format!("commit {}", commit.position));
        Ok(())
    }
    fn prepare(&mut self, xid: &str, position: Position) -> Result<()> {
        self.0.push(format!("prepare {xid} {position}"));
        Ok(())
    }
    fn decide(&mut self, xid: &str, committed: bool, commit: Commit<'_>) -> Result<()> {
        self.0.push(format!("decide {xid} {committed} {}", commit.position));
        Ok(())
    }
    fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
        Ok(false)
    }
    fn echo(&mut self, marker: &Marker, position: Position) -> Result<()> {
        self.0.push(format!("echo {} {position}", marker.seq));
        Ok(())
    }
    fn passed(&mut self, position: Position) -> Result<()> {
        self.0.push(format!("passed {position}"));
        Ok(())
    }
    fn full(&self) -> bool {
        false
    }
}

fn reader(flavour: Flavour) -> Reader {
    let start = match flavour {
        Flavour::Mysql => Position::Mysql {
            gtids: "01010101-0101-0101-0101-010101010101:1-4".parse().expect("valid"),
            binlog: BinlogPosition { file: "b.000001".into(), offset: 4, begun: 0 },
            server_uuid: "u".into(),
        },
        Flavour::Mariadb => Position::Mariadb { domains: BTreeMap::new(), binlog: BinlogPosition::default() },
    };
    let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
    let table = wanted(&[("id", ColumnType::Int { bytes: 4, signed: true })]);
    Reader::new(flavour, "hq", &marker, &[table], &start, true).expect("of its kind")
}

fn gtid(number: u64) -> (u8, Vec<u8>) {
    (kind::GTID, [&[0][..], &[1; 16], &number.to_le_bytes(), &[2], &[0; 16], &[9, 0, 0, 0, 0, 0, 0]].concat())
}

fn mariadb_gtid(sequence: u64, flags: u8) -> (u8, Vec<u8>) {
    (kind::MARIADB_GTID, [&sequence.to_le_bytes()[..], &[0; 4], &[flags], &[0; 6]].concat())
}

fn query(text: &str) -> (u8, Vec<u8>) {
    (kind::QUERY, [&[0; 8][..], &[1], &[0; 4], b"d", &[0], text.as_bytes()].concat())
}

fn map(id: u64, table: &str) -> (u8, Vec<u8>) {
    (kind::TABLE_MAP, table_map(id, "d", table, &[(3, &[], "id")], &[1, 1, 0]))
}

fn insert(id: u64, value: u32) -> (u8, Vec<u8>) {
    let body = [&id.to_le_bytes()[..6], &[1, 0], &[2, 0], &[1], &[0xff], &[0], &value.to_le_bytes()].concat();
    (kind::WRITE_ROWS, body)
}

fn marker(agent: &str) -> [(u8, Vec<u8>); 2] {
    let columns: &[(u8, &[u8], &str)] = &[
        (15, &[200, 0], "agent"),
        (3, &[], "lane"),
        (254, &[0xfe, 128], "journal"),
        (8, &[], "epoch"),
        (8, &[], "seq"),
        (8, &[], "part"),
        (15, &[200, 0], "origin"),
        (15, &[200, 0], "txid"),
    ];
    let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let row = [
        &[0][..],
        &sized(agent),
        &0u32.to_le_bytes(),
        &sized("0f"),
        &1u64.to_le_bytes(),
        &77u64.to_le_bytes(),
        &0u64.to_le_bytes(),
        &sized("crm"),
        &sized("tx"),
    ];
    let mut body = [&7u64.to_le_bytes()[..6], &[1, 0], &[2, 0], &[8], &[0xff]].concat();
    row.iter().for_each(|part| body.extend(*part));
    [(kind::TABLE_MAP, table_map(7, "anechoic", "marker", columns, &[2, 1, 45])), (kind::WRITE_ROWS, body)]
}

fn xid() -> (u8, Vec<u8>) {
    (kind::XID, vec![0; 8])
}

fn feed(reader: &mut Reader, events: impl IntoIterator<Item = (u8, Vec<u8>)>) -> (Vec<String>, Result<()>) {
    let mut lines = Lines::default();
    for (kind, data) in events {
        let event = Event { kind, timestamp: 1, server_id: 3, log_pos: 0, flags: 0, data: &data };
        if let Err(error) = reader.event(event, &mut lines) {
            return (lines.0, Err(error));
        }
    }
    reader.pass(&mut lines).expect("lines take everything");
    (lines.0, Ok(()))
}

const UUID: &str = "01010101-0101-0101-0101-010101010101";

#[test]
fn wanted_rows_make_a_transaction_and_others_only_move_the_position() {
    let mut reader = reader(Flavour::Mysql);

    let (lines, done) = feed(
        &mut reader,
        [
            gtid(5),
            query("BEGIN"),
            map(8, "x"),
            insert(8, 1),
            map(9, "t"),
            insert(9, 2),
            xid(),
            gtid(6),
            query("GRANT x"),
        ],
    );

    done.expect("understood");
    let expected = [
        format!("begin {UUID}:5"),
        "Insert Value(Int(2))".to_owned(),
        format!("commit {UUID}:1-5"),
        format!("passed {UUID}:1-6"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_the_journal_has_already_is_dropped_whole() {
    let mut reader = reader(Flavour::Mysql);

    let (lines, done) =
        feed(&mut reader, [gtid(4), query("BEGIN"), map(9, "t"), insert(9, 2), xid(), gtid(3), query("TRUNCATE t")]);

    done.expect("understood");
    assert_eq!(lines, [format!("passed {UUID}:1-4")]);
}

/// Known by the first row; a marker later in a transaction is not what an applier writes.
#[test]
fn an_echo_is_one_word_and_its_rows_stay_undecoded() {
    let rows = || [map(9, "t"), (kind::WRITE_ROWS, [&9u64.to_le_bytes()[..6], &[0xff; 9]].concat())];
    let mut reader = reader(Flavour::Mysql);

    let ours = [gtid(5), query("BEGIN")].into_iter().chain(marker("hq")).chain(rows()).chain([xid()]);
    let (lines, done) = feed(&mut reader, ours);
    done.expect("malformed rows were not looked at");
    assert_eq!(lines, [format!("echo 77 {UUID}:1-5")]);

    let strangers = [gtid(6), query("BEGIN")].into_iter().chain(marker("other")).chain(rows());
    let (_, decoded) = feed(&mut reader, strangers);
    assert_eq!(decoded.expect_err("these are decoded").recovery, Recovery::Stop);
}

#[test]
fn mariadb_transactions_have_no_begin() {
    let mut reader = reader(Flavour::Mariadb);

    let (lines, done) = feed(
        &mut reader,
        [
            mariadb_gtid(1, 0x29),
            query("CREATE TABLE t (id int)"),
            mariadb_gtid(2, 0x04),
            map(9, "t"),
            insert(9, 1),
            xid(),
            mariadb_gtid(3, 0x28),
            query("CREATE TABLE u SELECT 1"),
            map(8, "u"),
            insert(8, 1),
            query("COMMIT"),
            mariadb_gtid(4, 0x01),
            query("TRUNCATE `t`"),
        ],
    );

    done.expect("understood");
    let expected = ["begin 0-3-2", "Insert Value(Int(1))", "commit 0-3-2", "begin 0-3-4", "truncate 0", "commit 0-3-4"];
    assert_eq!(lines, expected);
}

fn xa_prepare(one_phase: u8, global: &[u8]) -> (u8, Vec<u8>) {
    let length = (global.len() as u32).to_le_bytes();
    (kind::XA_PREPARE, [&[one_phase][..], &1i32.to_le_bytes(), &length, &[0; 4], global].concat())
}

/// Rows of what is prepared are not committed; the decision has a place of its own in the order.
#[test]
fn prepared_rows_wait_for_their_decision() {
    let mut reader = reader(Flavour::Mysql);
    let start = |number, xid: &str| [gtid(number), query(&format!("XA START X'{xid}',X'',1"))];
    let end = |xid: &str| query(&format!("XA END X'{xid}',X'',1"));
    let mut events = Vec::new();
    events.extend(start(5, "61"));
    events.extend([map(9, "t"), insert(9, 1), end("61"), xa_prepare(0, b"a")]);
    events.extend(start(6, "62"));
    events.extend([map(8, "x"), insert(8, 1), end("62"), xa_prepare(0, b"b")]);
    events.extend(start(7, "63"));
    events.extend([map(9, "t"), insert(9, 3), end("63"), xa_prepare(1, b"c")]);
    events.extend([gtid(8), query("XA ROLLBACK X'62',X'',1"), gtid(9), query("XA COMMIT X'61',X'',1")]);

    let (lines, done) = feed(&mut reader, events);

    done.expect("understood");
    let expected = [
        format!("begin {UUID}:5"),
        "Insert Value(Int(1))".to_owned(),
        format!("prepare X'61',X'',1 {UUID}:1-5"),
        format!("begin {UUID}:6"),
        format!("prepare X'62',X'',1 {UUID}:1-6"),
        format!("begin {UUID}:7"),
        "Insert Value(Int(3))".to_owned(),
        format!("commit {UUID}:1-7"),
        format!("decide X'62',X'',1 false {UUID}:1-8"),
        format!("decide X'61',X'',1 true {UUID}:1-9"),
    ];
    assert_eq!(lines, expected);
    assert!(reader.prepared.is_empty());
}

/// Where temporary tables took part, a transaction that was rolled back is in the log.
#[test]
fn what_mariadb_logs_as_rolled_back_came_to_nothing() {
    let rolled_back = |flags| [mariadb_gtid(1, flags), map(9, "t"), insert(9, 1), query("ROLLBACK")];
    let (lines, done) = feed(&mut reader(Flavour::Mariadb), rolled_back(0x04));
    done.expect("understood");
    assert_eq!(lines, ["begin 0-3-1", "Insert Value(Int(1))", "passed 0-3-1"]);

    let (_, done) = feed(&mut reader(Flavour::Mariadb), rolled_back(0));
    assert!(done.expect_err("part of it may stay").full().contains("InnoDB"));
}

#[test]
fn what_is_not_understood_stops() {
    let image = (kind::WRITE_ROWS, [&9u64.to_le_bytes()[..6], &[1, 0], &[2, 0], &[1], &[0], &[0]].concat());
    for (events, says) in [
        (vec![gtid(5), query("BEGIN"), query("INSERT INTO t VALUES (1)")], "binlog_format=ROW"),
        (vec![gtid(5), query("BEGIN"), map(9, "t"), image], "binlog_row_image=FULL"),
        (vec![gtid(5), query("BEGIN"), map(9, "t"), insert(9, 1), query("ROLLBACK")], "InnoDB"),
        (vec![gtid(5), query("XA START X'61'"), map(9, "t"), insert(9, 1), (kind::XA_PREPARE, vec![0])], "xa prepare"),
        (vec![gtid(5), query("XA COMMIT X'61',X'',1")], "prepared before the log was read"),
        (vec![gtid(5), query("BEGIN"), gtid(6)], "no end"),
        (vec![(kind::INCIDENT, vec![1, 0])], "incident"),
        (vec![(99, vec![])], "not known"),
        (vec![gtid(5), query("BEGIN"), insert(9, 1)], "without a table map"),
        (vec![gtid(5), query("BEGIN"), (kind::EXECUTE_LOAD_QUERY, vec![])], "binlog_format=ROW"),
    ] {
        let (_, done) = feed(&mut reader(Flavour::Mysql), events);

        let error = done.expect_err(says);
        assert_eq!(error.recovery, Recovery::Stop);
        assert!(error.full().contains(says), "{}", error.full());
        let at = error.position.expect("where the last whole transaction ends");
        assert_eq!(at.to_string(), format!("{UUID}:1-4"));
    }
}

#[test]
fn events_that_the_log_marks_as_ignorable_are_passed_over() {
    let mut lines = Lines::default();
    let event = Event { kind: 200, timestamp: 0, server_id: 1, log_pos: 0, flags: IGNORABLE, data: &[] };

    reader(Flavour::Mysql).event(event, &mut lines).expect("ignorable");
}

#[test]
fn offsets_outgrow_the_32_bits_of_the_log() {
    let mut offset = 4;
    for low in [1000, u32::MAX, 500, 400] {
        offset = widen(offset, low);
    }
    assert_eq!(offset, (2 << 32) + 400);
}

proptest::proptest! {
    #[test]
    fn malformed_events_never_panic(
        kind in proptest::num::u8::ANY, at in 0usize..60, byte in proptest::num::u8::ANY, cut in 0usize..30,
    ) {
        let mut reader = reader(Flavour::Mysql);
        let good = [gtid(5), query("BEGIN"), map(9, "t"), insert(9, 1)];
        for (index, (own, data)) in good.iter().enumerate() {
            let mut events = good[..index].to_vec();
            let mut data = data.clone();
            let at = at % data.len();
            data[at] = byte;
            data.truncate(data.len().saturating_sub(cut));
            events.push((*own, data.clone()));
            let _ = feed(&mut reader, events);
            let _ = feed(&mut reader, [(kind, data)]);
        }
    }
}

/// Of a log that names no columns: whatever may leave a table with other columns is counted,
/// under its own name and under one that it has for a while.
#[test]
fn what_may_alter_a_table_is_counted_under_each_of_its_names() {
    let end = |gtids: &str| Position::Mysql {
        gtids: gtids.parse().expect("valid"),
        binlog: BinlogPosition::default(),
        server_uuid: "u".into(),
    };
    let until = end(&format!("{UUID}:1-20"));
    for (text, expected) in [
        ("ALTER TABLE t ADD x int", 1),
        ("ALTER TABLE `d`.`T2` ADD x int FIRST", 1),
        ("ALTER TABLE t2 ADD x int, RENAME TO t", 1),
        ("RENAME TABLE t TO t_old, t_new TO t", 1),
        ("DROP TABLE t", 1),
        ("CREATE OR REPLACE TABLE t (b int, a int)", 1),
        ("ALTER TABLE t3 ADD x int", 0),
        ("DROP TABLE t22, x", 0),
        ("TRUNCATE t", 0),
    ] {
        let mut reader = reader(Flavour::Mysql);
        let also = vec![(TableName { schema: "d".into(), name: "t2".into() }, until.clone())];
        reader.tables[0].now = Some(Arc::new(TableNow { at: Some(until.clone()), also, ..TableNow::default() }));
        let mut reader = reader.scanning();

        // The last of them lies behind the end: it is no longer the table's.
        let (_, done) = feed(&mut reader, [gtid(5), query(text), gtid(21), query("ALTER TABLE t2 ADD y int")]);

        done.expect(text);
        assert_eq!(reader.altered.behind, [false], "{text}");
        assert_eq!(reader.counted(), [expected], "{text}");
    }
}
