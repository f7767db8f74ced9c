//! The binlog of MySQL and MariaDB as transactions, with the server as oracle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anechoic::capture::mysql::{self, MyCapture};
use anechoic::capture::{Capture, CaptureSpec, Sink, TableNow, WantedColumn, WantedTable};
use anechoic::catalog::{self, ColumnType, TableName};
use anechoic::connect;
use anechoic::error::{Error, Recovery, Result};
use anechoic::position::Position;
use anechoic::value::{DATE_ZERO, Datum, INSTANT_ZERO, MICROS_PER_DAY, Value};

use crate::support::proxy::Proxy;
use crate::support::recorded::{Recorded, image};
use crate::support::servers::{Db, Kind, Server};
use crate::support::{SOON, unique};

pub const KINDS: [Kind; 3] = [Kind::Mysql, Kind::Mariadb, Kind::Mariadb11];

/// A database, what is wanted of it, and where its capture starts.
pub struct Source {
    pub db: Db,
    pub spec: CaptureSpec,
    // what `spec.acknowledged` listens to
    _acknowledge: tokio::sync::watch::Sender<Position>,
}

impl Source {
    /// Wants all columns of the tables that `ddl` makes, from now on.
    pub async fn new(db: Db, ddl: &str, tables: &[&str]) -> Source {
        db.execute(ddl).await;
        let mut agent = connect::mysql::connect(&db.connect_config()).await.unwrap();
        let names: Vec<TableName> =
            tables.iter().map(|table| TableName { schema: db.name.clone(), name: (*table).to_owned() }).collect();
        let found = catalog::mysql::read(&mut agent, &names).await.unwrap();
        let tables = found.into_iter().enumerate().map(|(id, table)| {
            let table = table.expect("just created");
            let supported = table.columns.iter().filter(|column| column.ty != ColumnType::Unsupported);
            WantedTable {
                id,
                name: table.name.clone(),
                columns: supported.map(|c| WantedColumn { name: c.name.clone(), ty: c.ty.clone() }).collect(),
                key: table.primary_key.clone(),
                now: None,
            }
        });
        let tables = tables.collect();
        let (start, identity) = mysql::create_position(&mut agent).await.unwrap();
        let (acknowledge, acknowledged) = tokio::sync::watch::channel(start.clone());
        let spec = CaptureSpec {
            agent: format!("agent_{}", unique()),
            marker: TableName { schema: db.marker.clone(), name: "marker".into() },
            tables,
            start,
            identity: Arc::from(identity),
            prepared: Default::default(),
            without_origins: false,
            acknowledged,
        };
        Source { db, spec, _acknowledge: acknowledge }
    }

    pub async fn create_marker(&self) {
        let mut agent = self.agent().await;
        let marker = &self.db.marker;
        agent.try_execute(&format!("CREATE DATABASE {marker}")).await.unwrap();
        agent
            .execute(&format!(
                "CREATE TABLE {marker}.marker (agent varchar(64), lane int, journal char(32), epoch bigint unsigned, \
                 seq bigint unsigned NOT NULL, part bigint unsigned, origin varchar(64), txid varchar(255), \
                 applied_at timestamp(6), format int, PRIMARY KEY (agent, lane)) CHARACTER SET utf8mb4"
            ))
            .await;
    }

    pub async fn agent(&self) -> crate::support::servers::Session {
        let db = &self.db;
        crate::support::servers::Session::open_as(&db.server, &db.agent, db.server.port, Some(&db.name)).await.unwrap()
    }

    pub fn write_marker(&self, agent: &str, seq: u64) -> String {
        format!(
            "INSERT INTO {}.marker VALUES ('{agent}', 0, '{:032x}', 1, {seq}, 0, 'crm', 'tx', now(6), 1) \
             ON DUPLICATE KEY UPDATE seq = {seq}, applied_at = now(6)",
            self.db.marker, 7
        )
    }

    pub async fn open(&self) -> Result<MyCapture> {
        MyCapture::connect(&self.db.connect_config(), self.spec.clone()).await
    }

    /// Hands everything that was committed before the call to `sink`.
    pub async fn read_to_end(&self, sink: &mut (impl Sink + AsRef<Recorded>)) {
        let end = self.end().await;
        let mut capture = self.open().await.unwrap_or_else(|error| panic!("{}", error.full()));
        let began = Instant::now();
        while !sink.as_ref().position.as_ref().is_some_and(|position| position.reached(&end)) {
            capture.read(sink).await.unwrap_or_else(|error| panic!("{}", error.full()));
            assert!(began.elapsed() < SOON, "not at {end} but {:?}", sink.as_ref().position);
        }
    }

    /// Reads from the start until everything committed before the call was read.
    pub async fn read(&self) -> Recorded {
        self.read_into(Recorded::default()).await
    }

    pub async fn read_into(&self, mut recorded: Recorded) -> Recorded {
        self.read_to_end(&mut recorded).await;
        recorded
    }

    pub async fn end(&self) -> Position {
        let mut agent = connect::mysql::connect(&self.db.connect_config()).await.unwrap();
        mysql::log_end(&mut agent).await.unwrap()
    }

    /// Reads until it fails.
    pub async fn read_to_error(&self) -> Error {
        let mut recorded = Recorded::default();
        let mut capture = match self.open().await {
            Ok(capture) => capture,
            Err(error) => return error,
        };
        let began = Instant::now();
        loop {
            if let Err(error) = capture.read(&mut recorded).await {
                return error;
            }
            assert!(began.elapsed() < SOON, "no error, but {:?}", recorded.lines);
        }
    }

    /// The tables as they are now, with what their logs are judged by.
    pub async fn look(&mut self) {
        let mut agent = connect::mysql::connect(&self.db.connect_config()).await.unwrap();
        let at = mysql::log_end(&mut agent).await.unwrap();
        let names: Vec<TableName> = self.spec.tables.iter().map(|table| table.name.clone()).collect();
        let found = catalog::mysql::read(&mut agent, &names).await.unwrap();
        for (wanted, table) in self.spec.tables.iter_mut().zip(found) {
            let shape = table.expect("created").columns;
            let columns = shape.iter().map(|column| column.name.clone()).collect();
            let now = TableNow { at: Some(at.clone()), columns, shape, ..TableNow::default() };
            wanted.now = Some(Arc::new(now));
        }
    }

    /// What was read is in the journal: go on from there.
    pub fn resume(&mut self, recorded: &Recorded) {
        self.spec.start = recorded.position.clone().unwrap();
        for line in &recorded.lines {
            match line.split_once(' ') {
                Some(("prepare", xid)) => drop(self.spec.prepared.insert(xid.into())),
                Some(("commit" | "rollback", xid)) => drop(self.spec.prepared.remove(xid)),
                _ => {}
            }
        }
    }
}

pub async fn private(kind: Kind, options: &[&str]) -> Db {
    let server = Arc::new(Server::private(kind, options).await);
    Db::on(&server, &unique()).await
}

#[tokio::test]
async fn every_type_arrives_exact() {
    for kind in KINDS {
        let uuid = if kind == Kind::Mysql { "binary(16)" } else { "uuid" };
        let source = Source::new(
            Db::new(kind).await,
            &format!(
                "CREATE TABLE t (id int PRIMARY KEY, ti tinyint, tu tinyint unsigned, flag tinyint(1), sm smallint, \
                 me mediumint, mu mediumint unsigned, bi bigint, bu bigint unsigned, \
                 de decimal(65,30), dn decimal(12,2), yr year, fl float, dou double, \
                 ch char(5), cl char(200), vc varchar(20), vl varchar(300) CHARACTER SET latin1, tx text, mt mediumtext, \
                 bn binary(4), vb varbinary(10), bl blob, da date, tm time(2), tn time, dt datetime(6), ds datetime, \
                 ts timestamp(3) NULL, us timestamp NULL, js json, en enum('new','it''s ü'), st set('a','b'), bt bit(10), \
                 uu {uuid}, ge int AS (id + 1) STORED, hi int INVISIBLE DEFAULT 5, asc1 varchar(9) CHARACTER SET ascii, \
                 u3 varchar(9) CHARACTER SET utf8mb3) CHARACTER SET utf8mb4"
            ),
            &["t"],
        )
        .await;
        let uuid = if kind == Kind::Mysql {
            "x'00112233445566778899aabbccddeeff'"
        } else {
            "'00112233-4455-6677-8899-aabbccddeeff'"
        };
        source
            .db
            .execute(&format!(
                "INSERT INTO t (id, ti, tu, flag, sm, me, mu, bi, bu, de, dn, yr, fl, dou, ch, cl, vc, vl, tx, mt, bn, vb, \
                 bl, da, tm, tn, dt, ds, ts, us, js, en, st, bt, uu, asc1, u3) VALUES \
                 (1, -128, 255, 1, -32768, -8388608, 16777215, -9223372036854775808, 18446744073709551615, \
                 -12345678901234567890123456789012345.123456789012345678901234567890, 0.10, 2024, 0.1, \
                 2.2250738585072014e-308, 'ab', repeat('é', 200), '🦊', 'é', '', 'm', x'0700', x'00ff', x'', \
                 '9999-12-31', '-838:59:58.99', '-00:00:01', '1000-01-01 00:00:00.000001', '9999-12-31 23:59:59', \
                 '2038-01-19 03:14:07.125', '1970-01-01 00:00:01', '{{\"b\": [1.0, 2e3, \"x\"], \"a\": null}}', 'it''s ü', \
                 'a,b', b'1000000001', {uuid}, 'x', 'ж')",
            ))
            .await;
        source.db.execute("INSERT INTO t (id) VALUES (2)").await;

        let recorded = source.read().await;

        let columns = &source.spec.tables[0].columns;
        assert_eq!(columns.len(), 39);
        let at = |name: &str| columns.iter().position(|c| c.name == name).unwrap();
        let row = &recorded.lines[1];
        let json = if kind == Kind::Mysql {
            r#"{"a": null, "b": [1.0, 2000.0, "x"]}"#
        } else {
            r#"{"b": [1.0, 2e3, "x"], "a": null}"#
        };
        let long = "é".repeat(200);
        let bytes16: Vec<u8> = (0..16).map(|i| i * 0x11).collect();
        let expected = [
            ("id", Value::Int(1)),
            ("ti", Value::Int(-128)),
            ("tu", Value::Int(255)),
            ("flag", Value::Int(1)),
            ("sm", Value::Int(-32768)),
            ("me", Value::Int(-8_388_608)),
            ("mu", Value::Int(16_777_215)),
            ("bi", Value::Int(i64::MIN)),
            ("bu", Value::UInt(u64::MAX)),
            ("de", Value::Decimal("-12345678901234567890123456789012345.123456789012345678901234567890")),
            ("dn", Value::Decimal("0.10")),
            ("yr", Value::Int(2024)),
            ("fl", Value::Float32(0.1)),
            ("dou", Value::Float64(2.225_073_858_507_201_4e-308)),
            ("ch", Value::Text("ab")),
            ("cl", Value::Text(&long)),
            ("vc", Value::Text("🦊")),
            ("vl", Value::Text("é")),
            ("tx", Value::Text("")),
            ("mt", Value::Text("m")),
            ("bn", Value::Bytes(&[7, 0, 0, 0])),
            ("vb", Value::Bytes(&[0, 255])),
            ("bl", Value::Bytes(&[])),
            ("da", Value::Date(2_932_896)),
            ("tm", Value::Time(-(838 * 3600 + 59 * 60 + 58) * 1_000_000 - 990_000)),
            ("tn", Value::Time(-1_000_000)),
            ("dt", Value::DateTime(-354_285 * MICROS_PER_DAY + 1)),
            ("ds", Value::DateTime(2_932_897 * MICROS_PER_DAY - 1_000_000)),
            ("ts", Value::Timestamp(2_147_483_647_125_000)),
            ("us", Value::Timestamp(1_000_000)),
            ("js", Value::Json(json)),
            ("en", Value::Text("it's ü")),
            ("st", Value::Text("a,b")),
            ("bt", Value::Bits("1000000001")),
            (
                "uu",
                if kind == Kind::Mysql {
                    Value::Bytes(&bytes16)
                } else {
                    Value::Uuid(bytes16.clone().try_into().unwrap())
                },
            ),
            ("ge", Value::Int(2)),
            ("hi", Value::Int(5)),
            ("asc1", Value::Text("x")),
            ("u3", Value::Text("ж")),
        ];
        let mut datums = vec![Datum::NotSent; expected.len()];
        for (name, value) in expected {
            datums[at(name)] = Datum::Value(value);
        }
        assert_eq!(*row, format!("insert 0 - => {}", image(Some(&datums))), "{}", kind.name());
        let mut empty = vec![Datum::Null; columns.len()];
        for (name, value) in [("id", 2), ("ge", 3), ("hi", 5)] {
            empty[at(name)] = Datum::Value(Value::Int(value));
        }
        assert_eq!(recorded.lines[4], format!("insert 0 - => {}", image(Some(&empty))), "{}", kind.name());
    }
}

#[tokio::test]
async fn a_transaction_arrives_whole_and_in_order() {
    for kind in KINDS {
        let mut source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE `Ord er` (`select` int PRIMARY KEY, `näme` varchar(9)); CREATE TABLE line (id int PRIMARY KEY); \
             CREATE TABLE other (id int PRIMARY KEY)",
            &["Ord er", "line"],
        )
        .await;
        source
            .db
            .execute(
                "BEGIN; INSERT INTO `Ord er` VALUES (1, 'a'), (2, 'b'); INSERT INTO other VALUES (1); \
                 INSERT INTO line VALUES (7); SAVEPOINT s; INSERT INTO line VALUES (8); ROLLBACK TO s; \
                 UPDATE `Ord er` SET `select` = 3 WHERE `select` = 1; DELETE FROM `Ord er` WHERE `select` = 2; COMMIT; \
                 INSERT INTO other VALUES (2); BEGIN; INSERT INTO line VALUES (9); ROLLBACK; \
                 CREATE TABLE noise (id int); TRUNCATE noise; TRUNCATE TABLE line; INSERT INTO line VALUES (10)",
            )
            .await;

        let recorded = source.read().await;

        let expected = [
            "begin",
            "insert 0 - => Int(1) Text(\"a\")",
            "insert 0 - => Int(2) Text(\"b\")",
            "insert 1 - => Int(7)",
            "update 0 Int(1) Text(\"a\") => Int(3) Text(\"a\")",
            "delete 0 Int(2) Text(\"b\") => -",
            "commit",
            "begin",
            "truncate 1",
            "commit",
            "begin",
            "insert 1 - => Int(10)",
            "commit",
        ];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
        source.resume(&recorded);
        assert_eq!(source.read().await.lines, [""; 0], "{}: nothing comes twice", kind.name());
    }
}

/// Our own writes come back as one word, whatever they contain; another installation's are
/// local changes here.
#[tokio::test]
async fn an_echo_is_known_by_its_first_row_and_skipped() {
    for kind in KINDS {
        let source = Source::new(Db::new(kind).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        source.create_marker().await;
        let mut agent = source.agent().await;
        let ours = source.spec.agent.clone();
        for (agent_id, seq) in [(ours.as_str(), 5u64), ("stranger", 6), (ours.as_str(), 7)] {
            let marker = source.write_marker(agent_id, seq);
            agent.execute(&format!("BEGIN; {marker}; INSERT INTO t VALUES ({seq}), ({seq} + 10); COMMIT")).await;
        }
        source.db.execute("INSERT INTO t VALUES (1)").await;

        let recorded = source.read().await;

        let expected = [
            "echo 5",
            "begin",
            "insert 0 - => Int(6)",
            "insert 0 - => Int(16)",
            "commit",
            "echo 7",
            "begin",
            "insert 0 - => Int(1)",
            "commit",
        ];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
    }
}

/// Files rotate, the server restarts, the capture goes on from where the journal is.
#[tokio::test]
async fn nothing_is_lost_or_doubled_over_rotations_restarts_and_crashes() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let mut source = Source::new(private(kind, &[]).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let mut seen = Vec::new();
        for round in 0..4 {
            let mut capture = source.open().await.unwrap();
            let mut recorded = Recorded::default();
            let mut admin = source.db.admin().await;
            for id in 0..5 {
                source.db.execute(&format!("INSERT INTO t VALUES ({})", round * 10 + id)).await;
                if id % 2 == 0 {
                    admin.execute("FLUSH BINARY LOGS").await;
                }
            }
            let began = Instant::now();
            while recorded.commits() < 5 {
                capture.read(&mut recorded).await.unwrap();
                assert!(began.elapsed() < SOON);
            }
            source.resume(&recorded);
            seen.extend(recorded.lines.into_iter().filter(|line| line.starts_with("insert")));
            match round {
                0 => source.db.server.restart().await,
                1 => {
                    source.db.server.kill().await;
                    source.db.server.start().await;
                }
                _ => continue,
            }
            assert!(source.db.try_rows("SELECT 1").await.is_err(), "the session died with the server");
            let error = loop {
                if let Err(error) = capture.read(&mut Recorded::default()).await {
                    break error;
                }
            };
            assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
        }
        let expected: Vec<String> =
            (0..4).flat_map(|r| (0..5).map(move |i| format!("insert 0 - => Int({})", r * 10 + i))).collect();
        assert_eq!(seen, expected, "{}", kind.name());
    }
}

/// Tags came with MySQL 8.3; a set that has them must be asked for with them.
#[tokio::test]
async fn tagged_gtids_are_read_and_not_read_again() {
    let mut source = Source::new(Db::new(Kind::Mysql).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut admin = source.db.admin().await;
    admin.execute("SET gtid_next = 'AUTOMATIC:tag_a'").await;
    admin.execute("INSERT INTO t VALUES (1)").await;
    admin.execute("SET gtid_next = 'AUTOMATIC'").await;
    admin.execute("INSERT INTO t VALUES (2)").await;

    let first = source.read().await;
    source.resume(&first);
    admin.execute("SET gtid_next = 'AUTOMATIC:tag_a'").await;
    admin.execute("INSERT INTO t VALUES (3)").await;
    let second = source.read().await;

    assert!(first.position.unwrap().to_string().contains(":tag_a:"));
    assert_eq!(first.lines, ["begin", "insert 0 - => Int(1)", "commit", "begin", "insert 0 - => Int(2)", "commit"]);
    assert_eq!(second.lines, ["begin", "insert 0 - => Int(3)", "commit"]);
}

#[tokio::test]
async fn a_server_without_gtids_is_read_by_file_and_offset() {
    let db = private(Kind::Mysql, &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]).await;
    let mut source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    source.db.execute("INSERT INTO t VALUES (1)").await;
    let first = source.read().await;
    source.resume(&first);
    source.db.admin().await.execute("FLUSH BINARY LOGS").await;
    source.db.execute("INSERT INTO t VALUES (2)").await;
    let second = source.read().await;
    source.resume(&second);

    assert_eq!(first.lines, ["begin", "insert 0 - => Int(1)", "commit"]);
    assert_eq!(second.lines, ["begin", "insert 0 - => Int(2)", "commit"]);

    source.spec.identity = Arc::from("00000000-0000-0000-0000-000000000000");
    let error = source.read_to_error().await;
    assert_eq!(error.recovery, Recovery::Stop);
    assert!(error.full().contains("another server"), "{}", error.full());
}

/// The zero date is a value, and so is a date without a month; one without a year sets its row aside.
#[tokio::test]
async fn a_date_that_does_not_exist_refuses_its_row_only() {
    for kind in KINDS {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE t (id int PRIMARY KEY, d date, dt datetime, ts timestamp NULL)",
            &["t"],
        )
        .await;
        source
            .db
            .execute(
                "SET sql_mode = ''; INSERT INTO t VALUES (1, '0000-00-10', NULL, NULL), \
                 (2, '0000-00-00', '0000-00-00', '0000-00-00'), (3, '2024-00-10', NULL, NULL)",
            )
            .await;

        let recorded = source.read().await;

        assert!(
            recorded.lines[1].contains("refused: column \"d\" is a date that does not exist"),
            "{:?}",
            recorded.lines
        );
        let zero =
            [Value::Int(2), Value::Date(DATE_ZERO), Value::DateTime(INSTANT_ZERO), Value::Timestamp(INSTANT_ZERO)];
        assert_eq!(recorded.lines[2], format!("insert 0 - => {}", image(Some(&zero.map(Datum::Value)))));
        let partial = Value::Date(anechoic::value::days_from_mysql(2024, 0, 10).unwrap());
        let row = [Datum::Value(Value::Int(3)), Datum::Value(partial), Datum::Null, Datum::Null];
        assert_eq!(recorded.lines[3], format!("insert 0 - => {}", image(Some(&row))));
    }
}

/// Compressed forms of the log, with a large row among small ones.
#[tokio::test]
async fn compressed_transactions_are_read() {
    for (kind, options) in [
        (Kind::Mysql, vec!["--binlog-transaction-compression=ON"]),
        (Kind::Mariadb, vec!["--log-bin-compress=ON", "--log-bin-compress-min-len=10"]),
    ] {
        let source =
            Source::new(private(kind, &options).await, "CREATE TABLE t (id int PRIMARY KEY, v mediumtext)", &["t"])
                .await;
        source.db.execute("BEGIN; INSERT INTO t VALUES (1, repeat('a', 1000000)), (2, repeat('b', 300)); COMMIT").await;
        source.db.execute("UPDATE t SET v = repeat('c', 300) WHERE id = 2; DELETE FROM t WHERE id = 1").await;
        // MariaDB compresses statements, too.
        source.db.execute("TRUNCATE TABLE t").await;

        let recorded = source.read().await;

        let sizes: Vec<String> =
            recorded.lines.iter().map(|l| format!("{} {}", &l[..6.min(l.len())], l.len())).collect();
        assert_eq!(
            sizes,
            [
                "begin 5",
                "insert 1000029",
                "insert 329",
                "commit 6",
                "begin 5",
                "update 643",
                "commit 6",
                "begin 5",
                "delete 1000029",
                "commit 6",
                "begin 5",
                "trunca 10",
                "commit 6"
            ],
            "{}",
            kind.name()
        );
        let mut admin = source.db.admin().await;
        admin.execute("SET SESSION binlog_format = STATEMENT").await;
        admin.execute("INSERT INTO t VALUES (1, 'a statement that is long enough to be compressed')").await;
        let error = source.read_to_error().await;
        assert!(error.full().contains("binlog_format=ROW"), "{}: {}", kind.name(), error.full());
    }
}

/// Stop rather than corrupt: what cannot be carried names the setting that mends it.
#[tokio::test]
async fn what_the_log_lacks_stops_and_names_the_setting() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let server = Arc::new(Server::private(kind, &[]).await);
        for (before, write, says) in [
            ("SET SESSION binlog_format = STATEMENT", "INSERT INTO t VALUES (1, 1)", "binlog_format=ROW"),
            (
                "SET SESSION binlog_row_image = MINIMAL",
                "INSERT INTO t VALUES (1, 1); UPDATE t SET n = 2",
                "binlog_row_image=FULL",
            ),
            ("ALTER TABLE t DROP n", "INSERT INTO t VALUES (1)", "is not in the log's table"),
            ("ALTER TABLE t MODIFY n text", "INSERT INTO t VALUES (1, 'x')", "another type"),
            ("SET GLOBAL binlog_row_metadata = MINIMAL", "INSERT INTO t VALUES (1, 1)", "binlog_row_metadata=FULL"),
        ] {
            let db = Db::on(&server, &unique()).await;
            let source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY, n int)", &["t"]).await;
            let mut admin = source.db.admin().await;
            admin.execute(before).await;
            admin.execute(write).await;

            let error = source.read_to_error().await;

            assert_eq!(error.recovery, Recovery::Stop, "{} {before}: {}", kind.name(), error.full());
            assert!(error.full().contains(says), "{} {before}: {}", kind.name(), error.full());
            assert!(error.position.is_some(), "{} {before}", kind.name());
        }
    }
}

/// The catalog shows now, the log shows then: a widened column stays exact, and a column may
/// move and be joined by others.
#[tokio::test]
async fn columns_are_found_by_name_after_the_table_was_altered() {
    for kind in KINDS {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE t (id int PRIMARY KEY, n int, v varchar(5)) CHARACTER SET utf8mb4",
            &["t"],
        )
        .await;
        source.db.execute("INSERT INTO t VALUES (1, 2, 'x')").await;
        source
            .db
            .execute(
                "ALTER TABLE t ADD extra varchar(9) FIRST, MODIFY n bigint unsigned AFTER v, MODIFY v varchar(300)",
            )
            .await;
        source.db.execute("INSERT INTO t (id, n, v) VALUES (2, 18446744073709551615, 'y')").await;

        let recorded = source.read().await;

        assert_eq!(recorded.lines[1], "insert 0 - => Int(1) Int(2) Text(\"x\")", "{}", kind.name());
        assert_eq!(recorded.lines[4], "insert 0 - => Int(2) UInt(18446744073709551615) Text(\"y\")", "{}", kind.name());
    }
}

#[tokio::test]
async fn a_purged_log_stops_and_names_what_is_missing() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let source = Source::new(private(kind, &[]).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        source.db.execute("INSERT INTO t VALUES (1)").await;
        let mut admin = source.db.admin().await;
        let began = Instant::now();
        let first = admin.rows("SHOW BINARY LOGS").await[0][0].clone();
        // MariaDB keeps a file until InnoDB has made its transactions durable.
        while admin.rows("SHOW BINARY LOGS").await[0][0] == first {
            admin.execute("FLUSH BINARY LOGS").await;
            let files = admin.rows("SHOW BINARY LOGS").await;
            let last = files.last().unwrap()[0].clone().unwrap();
            admin.execute(&format!("PURGE BINARY LOGS TO '{last}'")).await;
            assert!(began.elapsed() < SOON, "{files:?}");
        }

        let error = source.read_to_error().await;

        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.full().contains("purged"), "{}", error.full());
        if kind == Kind::Mysql {
            let uuid = admin.rows("SELECT @@server_uuid").await[0][0].clone().unwrap();
            assert!(error.full().contains(&uuid), "{}", error.full());
        }
    }
}

#[tokio::test]
async fn the_marker_proves_itself_or_names_the_filter() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let seen = Source::new(Db::new(kind).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let name = unique();
        let server = Arc::new(Server::private(kind, &[&format!("--binlog-ignore-db=anechoic_{name}")]).await);
        let hidden = Source::new(Db::on(&server, &name).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let prove = async |source: &Source| {
            source.create_marker().await;
            let mut agent = source.agent().await;
            agent.execute(&format!("USE {}", source.db.marker)).await;
            let write = source.write_marker(&source.spec.agent, 1);
            mysql::prove_marker(&source.db.connect_config(), &source.spec.agent, &source.spec.marker, async || {
                agent.try_execute(&write).await.map_err(Error::retry)
            })
            .await
        };

        let (seen, hidden) = tokio::join!(prove(&seen), prove(&hidden));

        seen.unwrap();
        let error = hidden.unwrap_err();
        assert_eq!(error.recovery, Recovery::Stop);
        assert!(error.full().contains("binlog-ignore-db"), "{}", error.full());
    }
}

/// An idle log still moves the position, by heartbeats; silence is not mistaken for death.
#[tokio::test]
async fn foreign_traffic_moves_the_position_without_transactions() {
    for kind in KINDS {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
            &["t"],
        )
        .await;
        source.db.execute("INSERT INTO other VALUES (1)").await;

        let recorded = source.read().await;

        assert_eq!(recorded.lines, [""; 0]);
        assert_ne!(recorded.position, Some(source.spec.start.clone()));
    }
}

/// Memory does not grow with a transaction, and reading costs little.
#[tokio::test]
async fn a_large_transaction_streams_through() {
    let rows = if std::env::var_os("ANECHOIC_SOAK").is_some() { 1_000_000 } else { 100_000 };
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE t (id int PRIMARY KEY, n bigint, name varchar(64), amt decimal(12,2), ts datetime(6), flag tinyint, \
             note varchar(255)) CHARACTER SET utf8mb4; CREATE TABLE d (i int PRIMARY KEY); \
             INSERT INTO d VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9)",
            &["t"],
        )
        .await;
        let mut from = "d a".to_owned();
        let mut id = "a.i".to_owned();
        for (place, alias) in ["b", "c", "e", "f", "g"].iter().enumerate().take(if rows > 100_000 { 5 } else { 4 }) {
            from += &format!(", d {alias}");
            id += &format!(" + {alias}.i * {}", 10u32.pow(place as u32 + 1));
        }
        source
            .db
            .execute(&format!(
                "INSERT INTO t SELECT {id}, {id} * 1000, concat('name ', {id}), ({id}) / 100, now(6), 1, repeat('x', 40) FROM {from}"
            ))
            .await;
        let before = resident();
        let began = Instant::now();

        let recorded = source.read_into(Recorded { quiet: true, ..Recorded::default() }).await;

        let grown = resident().saturating_sub(before);
        eprintln!("{}: {rows} rows in {:?}, {grown} KiB", kind.name(), began.elapsed());
        assert_eq!((recorded.rows, recorded.commits()), (rows, 1));
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

/// Resident memory in KiB. Other tests of this process share it: shown, not judged.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_role_without_the_grant_is_told_which() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let source = Source::new(Db::new(kind).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let mut admin = source.db.admin().await;
        admin.execute(&format!("REVOKE REPLICATION SLAVE ON *.* FROM {}@'%'", source.db.agent)).await;

        let error = source.read_to_error().await;

        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.full().contains("GRANT REPLICATION SLAVE"), "{}", error.full());
    }
}

/// TLS: what is verified is the mode's affair; the certificate of the fixture bears localhost.
#[tokio::test]
async fn tls_modes_verify_what_they_promise() {
    use anechoic::config::{TlsConfig, TlsMode};
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let db = Db::new(kind).await;
        let ca = Some(db.server.ca.clone());
        let other = Some("other.example".to_owned());
        for (mode, ca_file, server_name, works, encrypted) in [
            (TlsMode::Disable, None, None, true, false),
            (TlsMode::Prefer, None, None, true, true),
            (TlsMode::Require, None, None, true, true),
            (TlsMode::VerifyCa, ca.clone(), other.clone(), true, true),
            (TlsMode::VerifyFull, ca.clone(), None, true, true),
            (TlsMode::VerifyFull, ca.clone(), other, false, true),
            (TlsMode::VerifyCa, None, None, false, true),
        ] {
            let mut config = db.connect_config();
            config.tls = TlsConfig { ca_file, server_name, ..TlsConfig::new(mode) };

            match connect::mysql::connect(&config).await {
                Ok(mut conn) => {
                    use mysql_async::prelude::Queryable;
                    let cipher: Option<(String, String)> =
                        conn.query_first("SHOW STATUS LIKE 'Ssl_cipher'").await.unwrap();
                    assert!(works, "{} {mode:?}", kind.name());
                    assert_eq!(!cipher.unwrap().1.is_empty(), encrypted, "{} {mode:?}", kind.name());
                }
                Err(error) => assert!(!works, "{} {mode:?}: {}", kind.name(), error.full()),
            }
        }
    }
}

/// An idle server sends heartbeats; a peer that is gone without a word sends nothing.
#[tokio::test]
async fn an_idle_log_is_waited_for_and_a_silent_one_is_given_up() {
    let read = async |kind: Kind| {
        let source = Source::new(Db::new(kind).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let proxy = Proxy::new(source.db.server.port).await;
        let mut config = source.db.connect_config();
        config.port = proxy.port();
        let mut capture = MyCapture::connect(&config, source.spec.clone()).await.unwrap();
        let mut recorded = Recorded::default();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(18) {
            capture.read(&mut recorded).await.unwrap();
        }
        proxy.stall();
        let began = Instant::now();
        let error = loop {
            if let Err(error) = capture.read(&mut recorded).await {
                break error;
            }
        };
        assert_eq!(error.recovery, Recovery::Retry);
        assert!(error.full().contains("silent"), "{}", error.full());
        assert!(began.elapsed() < Duration::from_secs(30));
    };

    tokio::join!(read(Kind::Mysql), read(Kind::Mariadb), read(Kind::Mariadb11));
}

/// Two readers with one server id push each other out: each is told, and comes back with another id.
#[tokio::test]
async fn a_second_reader_with_our_server_id_is_told_apart() {
    for kind in [Kind::Mysql, Kind::Mariadb11] {
        let source = Source::new(Db::new(kind).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let mut first = source.open().await.unwrap();
        first.read(&mut Recorded::default()).await.unwrap();

        let mut second = source.open().await.unwrap();
        second.read(&mut Recorded::default()).await.unwrap();
        let began = Instant::now();
        let error = loop {
            if let Err(error) = first.read(&mut Recorded::default()).await {
                break error;
            }
            assert!(began.elapsed() < SOON);
        };

        assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
        assert!(error.full().contains("server id"), "{}: {}", kind.name(), error.full());
        let mut third = source.open().await.unwrap();
        third.read(&mut Recorded::default()).await.unwrap();
        second.read(&mut Recorded::default()).await.unwrap();
    }
}
