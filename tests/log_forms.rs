//! The rarer forms of the binlog, each written by the server that has it.

use anechoic::capture::{Begin, Commit, RowEvent, Sink, TableNow};
use anechoic::error::{Recovery, Result};
use anechoic::marker::Marker;
use anechoic::position::Position;
use anechoic::value::{Datum, MICROS_PER_DAY, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::capture_mysql::{KINDS, Source, private};
use crate::support::recorded::{Recorded, image};
use crate::support::servers::{Db, Kind};
use crate::support::world::{Entity, Type, World};
use crate::support::{SOON, unique};

/// Large values by length and hash: as lines they would take more memory than the capture.
#[derive(Default)]
struct Hashes {
    recorded: Recorded,
    found: Vec<(i64, usize, u64)>,
}

impl AsRef<Recorded> for Hashes {
    fn as_ref(&self) -> &Recorded {
        &self.recorded
    }
}

impl Sink for Hashes {
    fn begin(&mut self, begin: Begin<'_>) -> Result<()> {
        self.recorded.begin(begin)
    }
    fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
        let [Datum::Value(Value::Int(id)), Datum::Value(Value::Bytes(bytes))] = row.after.or(row.before).unwrap()
        else {
            panic!("id and bytes");
        };
        self.found.push((*id, bytes.len(), xxh3_64(bytes)));
        Ok(())
    }
    fn truncate(&mut self, table: usize) -> Result<()> {
        self.recorded.truncate(table)
    }
    fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        self.recorded.commit(commit)
    }
    fn prepare(&mut self, xid: &str, position: Position) -> Result<()> {
        self.recorded.prepare(xid, position)
    }
    fn decide(&mut self, xid: &str, committed: bool, commit: Commit<'_>) -> Result<()> {
        self.recorded.decide(xid, committed, commit)
    }
    fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
        Ok(false)
    }
    fn echo(&mut self, marker: &Marker, position: Position) -> Result<()> {
        self.recorded.echo(marker, position)
    }
    fn passed(&mut self, position: Position) -> Result<()> {
        self.recorded.passed(position)
    }
    fn full(&self) -> bool {
        false
    }
}

/// A packet ends at 16 MiB; a row may be of any size that the server takes.
#[tokio::test]
async fn rows_larger_than_a_packet_arrive_exact() {
    for kind in KINDS {
        // A value must not fill the redo log.
        let redo = if kind == Kind::Mysql { "--innodb-redo-log-capacity=1G" } else { "--innodb-log-file-size=512M" };
        let db = private(kind, &["--max-allowed-packet=256M", redo]).await;
        let source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY, v longblob)", &["t"]).await;
        let sizes = [10usize, 17 << 20, (16 << 20) - 50, 40 << 20, 11];
        for (id, size) in sizes.iter().enumerate() {
            source.db.execute(&format!("INSERT INTO t VALUES ({id}, repeat(x'00ff61{id:02}27', {size} / 5))")).await;
        }
        source.db.execute("UPDATE t SET v = concat(v, 'x') WHERE id = 1").await;

        let mut hashes = Hashes::default();
        source.read_to_end(&mut hashes).await;

        let pattern = |id: usize, tail: &[u8]| {
            let unit = [0, 0xff, 0x61, u8::from_str_radix(&format!("{id:02}"), 16).unwrap(), 0x27];
            let whole = [&unit.repeat(sizes[id] / 5), tail].concat();
            (id as i64, whole.len(), xxh3_64(&whole))
        };
        let mut expected: Vec<_> = (0..sizes.len()).map(|id| pattern(id, &[])).collect();
        expected.push(pattern(1, b"x"));
        assert_eq!(hashes.found, expected, "{}", kind.name());
        assert_eq!(hashes.recorded.commits(), 6);
        // MariaDB 11 writes no positions into the events of a transaction.
        let place = |position: Position| match position {
            Position::Mysql { binlog, .. } | Position::Mariadb { binlog, .. } => (binlog.file, binlog.offset),
            other => panic!("{other}"),
        };
        assert_eq!(place(hashes.recorded.position.unwrap()), place(source.end().await), "{}", kind.name());
    }
}

/// With compression on, large rows and small ones, and two transactions behind each other.
#[tokio::test]
async fn compressed_transactions_with_large_rows_arrive_exact() {
    let options = ["--max-allowed-packet=256M", "--binlog-transaction-compression=ON"];
    let db = private(Kind::Mysql, &options).await;
    let mut source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY, v longblob)", &["t"]).await;
    // One that compresses to little, and one that does not and takes several packets.
    source.db.execute("BEGIN; INSERT INTO t VALUES (1, repeat('a', 40000000)), (2, 'b'), (3, ''); COMMIT").await;
    source.db.execute("CREATE TABLE n (id int AUTO_INCREMENT PRIMARY KEY, v varbinary(1024)); INSERT INTO n (v) VALUES (random_bytes(1024))").await;
    for _ in 0..15 {
        source.db.execute("INSERT INTO n (v) SELECT random_bytes(1024) FROM n").await;
    }
    source.db.execute("INSERT INTO t SELECT 100 + id, v FROM n").await;
    source.db.execute("INSERT INTO t VALUES (4, 'after')").await;

    let mut hashes = Hashes::default();
    source.read_to_end(&mut hashes).await;

    let a = vec![b'a'; 40_000_000];
    for (at, (id, value)) in [(1, &a[..]), (2, b"b"), (3, b"")].into_iter().enumerate() {
        assert_eq!(hashes.found[at], (id, value.len(), xxh3_64(value)));
    }
    let rows = source.db.rows("SELECT id, hex(v) FROM t WHERE id > 4 ORDER BY id").await;
    assert_eq!(rows.len(), 32_768);
    for (row, found) in rows.iter().zip(&hashes.found[3..]) {
        let value: Vec<u8> = {
            let hex = row[1].as_deref().unwrap();
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        assert_eq!(*found, (row[0].as_deref().unwrap().parse().unwrap(), value.len(), xxh3_64(&value)));
    }
    assert_eq!(hashes.found.last(), Some(&(4, 5, xxh3_64(b"after"))));
    assert_eq!(hashes.recorded.commits(), 3);
    source.resume(&hashes.recorded);
    assert_eq!(source.read().await.lines, [""; 0], "nothing comes twice");
}

/// Compressed or not, tags or not: what was read is not sent again, from any file.
#[tokio::test]
async fn tagged_sets_resume_over_files_and_restarts() {
    let db = private(Kind::Mysql, &["--binlog-transaction-compression=ON"]).await;
    let mut source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut seen = Vec::new();
    for round in 0..4 {
        let mut admin = source.db.admin().await;
        for (at, tag) in ["", ":a", ":b_2", ":a"].iter().enumerate() {
            admin.execute(&format!("SET gtid_next = 'AUTOMATIC{tag}'")).await;
            admin.execute(&format!("INSERT INTO t VALUES ({})", round * 10 + at)).await;
        }
        admin.execute("SET gtid_next = 'AUTOMATIC'; FLUSH BINARY LOGS").await;
        let recorded = source.read().await;
        source.resume(&recorded);
        seen.extend(recorded.lines.into_iter().filter(|line| line.starts_with("insert")));
        if round == 1 {
            source.db.server.restart().await;
        }
    }

    let expected: Vec<String> =
        (0..4).flat_map(|r| (0..4).map(move |i| format!("insert 0 - => Int({})", r * 10 + i))).collect();
    assert_eq!(seen, expected);
    let text = source.spec.start.to_string();
    assert!(text.contains(":a:1-8") && text.contains(":b_2:1-4"), "{text}");
}

/// Rows of an XA transaction are known when it is prepared and count when it is committed, also
/// to a capture that begins in between.
#[tokio::test]
async fn xa_transactions_count_when_they_are_committed() {
    for (kind, options) in [
        (Kind::Mysql, vec![]),
        (Kind::Mysql, vec!["--binlog-transaction-compression=ON"]),
        (Kind::Mariadb, vec![]),
        (Kind::Mariadb11, vec!["--log-bin-compress=ON", "--log-bin-compress-min-len=10"]),
    ] {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)";
        let mut source = Source::new(private(kind, &options).await, ddl, &["t"]).await;
        let (mut one, mut two) = (source.db.session().await, source.db.session().await);
        one.execute("XA START 'a', 'branch', 7; INSERT INTO t VALUES (1), (2)").await;
        two.execute("XA START 'it''s'; INSERT INTO t VALUES (3); XA END 'it''s'; XA PREPARE 'it''s'").await;
        one.execute("INSERT INTO other VALUES (1); XA END 'a', 'branch', 7; XA PREPARE 'a', 'branch', 7").await;
        two.execute("XA COMMIT 'it''s'; XA START 'd'; INSERT INTO other VALUES (2); XA END 'd'; XA PREPARE 'd'").await;
        source.db.execute("XA START 'p'; INSERT INTO t VALUES (4); XA END 'p'; XA COMMIT 'p' ONE PHASE").await;
        let first = source.read().await;
        source.resume(&first);
        one.execute("XA COMMIT 'a', 'branch', 7").await;
        two.execute(
            "XA ROLLBACK 'd'; XA START 'e'; INSERT INTO t VALUES (9); XA END 'e'; XA PREPARE 'e'; XA ROLLBACK 'e'",
        )
        .await;
        let second = source.read().await;
        source.resume(&second);

        let its = "X'69742773',X'',1";
        let expected = [
            "begin",
            "insert 0 - => Int(3)",
            &format!("prepare {its}"),
            "begin",
            "insert 0 - => Int(1)",
            "insert 0 - => Int(2)",
            "prepare X'61',X'6272616e6368',7",
            &format!("commit {its}"),
            "begin",
            "prepare X'64',X'',1",
            "begin",
            "insert 0 - => Int(4)",
            "commit",
        ];
        assert_eq!(first.lines, expected, "{}", kind.name());
        let expected = [
            "commit X'61',X'6272616e6368',7",
            "rollback X'64',X'',1",
            "begin",
            "insert 0 - => Int(9)",
            "prepare X'65',X'',1",
            "rollback X'65',X'',1",
        ];
        assert_eq!(second.lines, expected, "{}", kind.name());
        assert_eq!(source.read().await.lines, [""; 0], "{}", kind.name());

        // Prepared before the capture's position: its rows are in no place that will be read.
        one.execute("XA START 'x'; INSERT INTO t VALUES (10); XA END 'x'; XA PREPARE 'x'").await;
        source.spec.start = source.end().await;
        one.execute("XA COMMIT 'x'").await;
        let error = source.read_to_error().await;
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.full().contains("XA RECOVER"), "{}", error.full());
    }
}

/// Parts of documents make the whole ones that the server has.
#[tokio::test]
async fn json_documents_are_made_of_their_parts() {
    for compression in ["OFF", "ON"] {
        let compression = format!("--binlog-transaction-compression={compression}");
        let db = private(Kind::Mysql, &["--binlog-row-value-options=PARTIAL_JSON", &compression]).await;
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, a json, x varchar(20), other json, b json)";
        let mut source = Source::new(db, ddl, &["t"]).await;
        // One JSON column is not wanted: its bit counts all the same.
        source.spec.tables[0].columns.retain(|column| column.name != "other");
        let filler = "repeat('f', 200)";
        let document = format!(
            "json_object('n', 1.50, 'list', json_array(1, 'two', json_object('deep', true), 4), 'o', json_object('k', 'v'), \
             'sp ace', 'x', 'filler', {filler})"
        );
        source.db.execute(&format!("INSERT INTO t VALUES (1, {document}, 'x', {document}, {document})")).await;
        let changes = [
            "a = json_set(a, '$.n', 12345678901234567890)",
            "a = json_set(a, '$.n', cast(0.10 as decimal(10,2)), '$.fresh', 'né\\\\w\"', '$.zz', NULL)",
            "a = json_set(a, '$.list[2].deep', json_array()), other = json_set(other, '$.n', 3)",
            "other = json_remove(other, '$.o'), b = json_remove(b, '$.list[1]', '$.o.k')",
            "a = json_set(a, '$.list[9]', 'end'), b = json_set(b, '$.\"sp ace\"', json_object('y', 1))",
            "a = json_replace(a, '$.o[0]', 'wrapped')",
            "b = json_set(b, '$.n[1]', 'second')",
            "b = json_array_insert(b, '$.list[0]', 0)",
            "a = json_array_append(a, '$.list', 'appended')",
            "a = json_remove(a, '$.list[0]', '$.list[0]'), x = 'y', b = NULL",
            "b = json_object('whole', 1)",
            "a = json_set(a, '$.list[0].deep[0]', 1), id = 2",
        ];
        let mut expected = Vec::new();
        for change in changes {
            source.db.execute(&format!("UPDATE t SET {change}")).await;
            let row = source.db.rows("SELECT id, CAST(a AS CHAR), x, CAST(b AS CHAR) FROM t").await.remove(0);
            let json = |at: usize| row[at].as_deref().map_or(Datum::Null, |text| Datum::Value(Value::Json(text)));
            let id = row[0].as_deref().unwrap().parse().unwrap();
            let datums =
                [Datum::Value(Value::Int(id)), json(1), Datum::Value(Value::Text(row[2].as_deref().unwrap())), json(3)];
            expected.push(image(Some(&datums)));
        }
        let events = source.db.admin().await.rows("SHOW BINARY LOGS").await;
        assert!(!events.is_empty());

        let recorded = source.read().await;

        let after: Vec<&str> = recorded
            .lines
            .iter()
            .filter_map(|line| line.strip_prefix("update 0 ")?.split_once(" => ").map(|(_, after)| after))
            .collect();
        assert_eq!(after, expected, "{compression}");
    }
}

/// Without the document before, what changed in it is nothing.
#[tokio::test]
async fn parts_of_json_without_a_before_image_stop() {
    let db = private(Kind::Mysql, &["--binlog-row-value-options=PARTIAL_JSON", "--binlog-row-image=MINIMAL"]).await;
    let source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY, a json)", &["t"]).await;
    source.db.execute("INSERT INTO t VALUES (1, json_object('a', 1, 'b', repeat('x', 100)))").await;
    source.db.execute("UPDATE t SET a = json_set(a, '$.a', 2)").await;

    let error = source.read_to_error().await;

    assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
    assert!(error.full().contains("binlog_row_image=FULL"), "{}", error.full());
}

/// LOAD DATA is rows like any others; tables without transactions are at once what they are, and
/// what is temporary is nobody's.
#[tokio::test]
async fn loads_other_engines_and_temporary_tables_are_rows_or_nothing() {
    for kind in KINDS {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE m (id int PRIMARY KEY) ENGINE=MyISAM; \
                   CREATE TABLE hidden (n int, id int AUTO_INCREMENT INVISIBLE PRIMARY KEY)";
        let mut source = Source::new(Db::new(kind).await, ddl, &["t", "m", "hidden"]).await;
        source.db.execute("INSERT INTO m VALUES (1), (2); UPDATE m SET id = 3 WHERE id = 2").await;
        source
            .db
            .execute("BEGIN; CREATE TEMPORARY TABLE tmp (id int); INSERT INTO tmp VALUES (1); INSERT INTO t VALUES (1); COMMIT")
            .await;
        source
            .db
            .execute(
                "BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; INSERT INTO t VALUES (3); INSERT INTO tmp SELECT id FROM t; \
                 ROLLBACK TO s; INSERT INTO t VALUES (4); COMMIT; BEGIN; INSERT INTO t VALUES (5); DROP TEMPORARY TABLE tmp; ROLLBACK",
            )
            .await;
        source.db.execute("INSERT INTO hidden (n) VALUES (7)").await;
        let file = std::env::temp_dir().join(format!("anechoic_{}", unique()));
        std::fs::write(&file, "10\n11\n").unwrap();
        let mut admin = source.db.admin().await;
        let name = &source.db.name;
        admin.execute(&format!("LOAD DATA INFILE '{}' INTO TABLE {name}.t", file.display())).await;
        std::fs::remove_file(file).unwrap();

        let recorded = source.read().await;
        source.resume(&recorded);
        let again = source.read().await;

        // What began anew took back what was not committed.
        let (mut rows, mut open) = (Vec::new(), Vec::new());
        for line in recorded.lines {
            match line.as_str() {
                "begin" => open.clear(),
                "commit" => rows.append(&mut open),
                _ => open.push(line),
            }
        }
        let expected = [
            "insert 1 - => Int(1)",
            "insert 1 - => Int(2)",
            "update 1 Int(2) => Int(3)",
            "insert 0 - => Int(1)",
            "insert 0 - => Int(2)",
            "insert 0 - => Int(4)",
            "insert 2 - => Int(7) Int(1)",
            "insert 0 - => Int(10)",
            "insert 0 - => Int(11)",
        ];
        assert_eq!(rows, expected, "{}", kind.name());
        assert_eq!(again.lines, [""; 0], "{}", kind.name());
    }
}

/// What a table of MariaDB keeps of its past, and what a sequence counts, nobody wrote.
#[tokio::test]
async fn sequences_and_rows_of_the_past_are_no_ones_writes() {
    for kind in [Kind::Mariadb, Kind::Mariadb11] {
        let ddl = "CREATE SEQUENCE s; CREATE TABLE past (id int PRIMARY KEY) WITH SYSTEM VERSIONING; \
                   CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval(s)); CREATE TABLE later (id int PRIMARY KEY)";
        let source = Source::new(Db::new(kind).await, ddl, &["t", "later"]).await;
        source
            .db
            .execute("INSERT INTO past VALUES (1); UPDATE past SET id = 2; DELETE FROM past; SELECT nextval(s)")
            .await;
        source.db.execute("INSERT INTO t VALUES (); INSERT INTO t VALUES (100)").await;

        let recorded = source.read().await;
        source
            .db
            .execute("INSERT INTO later VALUES (1); ALTER TABLE later ADD SYSTEM VERSIONING; UPDATE later SET id = 2")
            .await;
        let error = source.read_to_error().await;

        let expected = ["begin", "insert 0 - => Int(2)", "commit", "begin", "insert 0 - => Int(100)", "commit"];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.full().contains("DROP SYSTEM VERSIONING"), "{}", error.full());
    }
}

/// Columns that the server computes are in every image but MariaDB 11's of updates: there they
/// are missing, and nothing is made up.
#[tokio::test]
async fn generated_columns_are_exact_or_their_binding_is_refused() {
    for kind in KINDS {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, n int, v int AS (n * 2) VIRTUAL, s int AS (n + 1) STORED)";
        let mut source = Source::new(Db::new(kind).await, ddl, &["t"]).await;
        source.db.execute("INSERT INTO t (id, n) VALUES (1, 10); UPDATE t SET n = 20; DELETE FROM t").await;

        if kind == Kind::Mariadb11 {
            let error = source.read_to_error().await;
            assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
            assert!(error.full().contains("generated columns"), "{}", error.full());
            source.spec.tables[0].columns.truncate(2);
        }
        let recorded = source.read().await;

        let tail = |values: &str| if kind == Kind::Mariadb11 { String::new() } else { values.to_owned() };
        let (before, after) = (tail(" Int(20) Int(11)"), tail(" Int(40) Int(21)"));
        let expected = [
            "begin".to_owned(),
            format!("insert 0 - => Int(1) Int(10){before}"),
            "commit".into(),
            "begin".into(),
            format!("update 0 Int(1) Int(10){before} => Int(1) Int(20){after}"),
            "commit".into(),
            "begin".into(),
            format!("delete 0 Int(1) Int(20){after} => -"),
            "commit".into(),
        ];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
    }
}

/// A log that names no columns is read by the catalog where the log shows that nothing was
/// altered in between, and else not at all.
#[tokio::test]
async fn a_log_without_names_is_read_by_the_catalog_or_not_at_all() {
    for kind in KINDS {
        let db = private(kind, &["--binlog-row-metadata=MINIMAL"]).await;
        let ddl = "CREATE TABLE t (id int unsigned PRIMARY KEY, e enum('a','b','c') CHARACTER SET latin1, s set('x','y','z'), \
                   d decimal(10,3) NOT NULL, u bigint unsigned, l varchar(20) CHARACTER SET latin1, b binary(4), t mediumtext, \
                   at datetime(3), j json, a int, c int) CHARACTER SET utf8mb4; CREATE TABLE other (id int PRIMARY KEY)";
        let mut source = Source::new(db, ddl, &["t"]).await;
        source.create_marker().await;
        let insert = |id: u64| {
            format!(
                "INSERT INTO t VALUES ({id}, 'c', 'x,z', -1.500, 18446744073709551615, 'é', x'0100', '🦊', \
                 '2024-02-29 12:00:00.125', '[1]', 1, 2)"
            )
        };
        let row = |id: i64| {
            let values = [
                Value::Int(id),
                Value::Text("c"),
                Value::Text("x,z"),
                Value::Decimal("-1.500"),
                Value::UInt(u64::MAX),
                Value::Text("é"),
                Value::Bytes(&[1, 0, 0, 0]),
                Value::Text("🦊"),
                Value::DateTime(19_782 * MICROS_PER_DAY + 43_200_125_000),
                Value::Json("[1]"),
                Value::Int(1),
                Value::Int(2),
            ];
            format!("insert 0 - => {}", image(Some(&values.map(Datum::Value))))
        };
        // Before the catalog is looked at, beside what alters other tables; and after.
        source.db.execute(&format!("{}; ALTER TABLE other ADD x int", insert(1))).await;
        let mut agent = source.agent().await;
        let marker = source.write_marker(&source.spec.agent, 9);
        agent.execute(&format!("BEGIN; {marker}; {}; COMMIT", insert(2))).await;
        source.look().await;
        source.db.execute(&insert(3)).await;

        let recorded = source.read().await;

        let expected = ["begin", &row(1), "commit", "echo 9", "begin", &row(3), "commit"];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
        source.resume(&recorded);

        // Altered behind the catalog: it has to be looked at again, and then all is well.
        source.db.execute(&format!("ALTER TABLE t RENAME COLUMN a TO tmp, RENAME COLUMN c TO a; {}", insert(4))).await;
        let error = source.read_to_error().await;
        assert!(anechoic::capture::is_unseen(&error), "{}: {}", kind.name(), error.full());
        source.db.execute("ALTER TABLE t RENAME COLUMN a TO c, RENAME COLUMN tmp TO a").await;
        source.look().await;
        // Two of the same type have changed places since that row: which is which, nothing says.
        let error = source.read_to_error().await;
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.full().contains("was altered since these rows were logged"), "{}", error.full());
        source.spec.start = source.end().await;
        source.db.execute(&insert(5)).await;
        let recorded = source.read().await;
        assert_eq!(recorded.lines, ["begin", &row(5), "commit"], "{}", kind.name());

        // Altered since the catalog was read, and before the reader's start.
        source.db.execute("ALTER TABLE t RENAME COLUMN a TO tmp, RENAME COLUMN c TO a").await;
        source.spec.start = source.end().await;
        source.db.execute(&insert(6)).await;
        let error = source.read_to_error().await;
        assert!(anechoic::capture::is_unseen(&error), "{}: {}", kind.name(), error.full());
        source.db.execute("ALTER TABLE t RENAME COLUMN a TO c, RENAME COLUMN tmp TO a").await;
        source.look().await;
        source.spec.start = source.end().await;
        source.db.execute(&insert(7)).await;
        assert_eq!(source.read().await.lines, ["begin", &row(7), "commit"], "{}", kind.name());

        // A catalog that is not the log's is noticed by any of its columns.
        for wrong in [
            |now: &mut TableNow| drop(now.shape.pop()),
            |now: &mut TableNow| now.shape[3].type_name = "decimal(10,2)".into(),
            |now: &mut TableNow| now.shape[4].type_name = "bigint(20)".into(),
            |now: &mut TableNow| now.shape[8].type_name = "datetime".into(),
            |now: &mut TableNow| now.shape[10].nullable = false,
            |now: &mut TableNow| now.shape.swap(5, 6),
        ] {
            let right = source.spec.tables[0].now.clone();
            let mut now = (*right.clone().unwrap()).clone();
            wrong(&mut now);
            source.spec.tables[0].now = Some(now.into());
            let error = source.read_to_error().await;
            assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
            assert!(error.full().contains("binlog_row_metadata=FULL"), "{}", error.full());
            source.spec.tables[0].now = right;
        }
    }
}

/// The same through a whole agent: echoes are known, and an ALTER while it runs is followed.
#[tokio::test]
async fn systems_whose_logs_name_no_columns_stay_in_step() {
    let options = ["--binlog-row-metadata=MINIMAL"];
    let world = World::of(&[("crm", Kind::Mariadb), ("shop", Kind::Mysql)])
        .private_with("crm", &options)
        .private_with("shop", &options)
        .entity(Entity::new("item").key("id", Type::Int).field("name", Type::Text))
        .start()
        .await;
    world["crm"].execute("INSERT INTO item VALUES (1, 'from crm')").await;
    world["shop"].execute("INSERT INTO item VALUES (2, 'from shop')").await;
    world.quiet().await;

    for system in ["crm", "shop"] {
        world[system].execute("ALTER TABLE item ADD note int FIRST").await;
        world[system].execute(&format!("INSERT INTO item (id, name) VALUES ({}, 'later')", system.len() + 10)).await;
    }
    // Whoever saw the first column before there was the second stands still for a moment.
    world.converged(SOON).await;
    world.quiet().await;

    for system in ["crm", "shop"] {
        let rows = world[system].rows("SELECT id, name FROM item ORDER BY id").await;
        let found: Vec<String> =
            rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(found, ["1 from crm", "2 from shop", "13 later", "14 later"], "{system}");
    }
}
