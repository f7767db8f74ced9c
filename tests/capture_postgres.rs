//! The WAL of PostgreSQL as transactions, with the server as oracle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anechoic::capture::postgres::{self, PgCapture, publication_name, quoted, slot_name};
use anechoic::capture::{Capture, CaptureSpec, Commit, Sink, WantedColumn, WantedTable};
use anechoic::catalog::{self, ColumnType, TableName};
use anechoic::config::{ConnectConfig, TlsMode};
use anechoic::connect;
use anechoic::error::{Error, Recovery, Result};
use anechoic::position::{Lsn, Position};
use anechoic::value::{DATE_INFINITY, Datum, INSTANT_MINUS_INFINITY, MICROS_PER_DAY, Value};
use tokio::sync::watch;

use crate::support::recorded::{Recorded, image};
use crate::support::servers::{Db, Kind, Server};
use crate::support::{SOON, eventually, unique};

const KINDS: [Kind; 2] = [Kind::Postgres15, Kind::Postgres17];

/// A database, what is wanted of it, and where its capture starts.
struct Source {
    db: Db,
    spec: CaptureSpec,
    acknowledge: watch::Sender<Position>,
}

impl Source {
    /// Publishes the tables that `ddl` makes and the marker, and wants all their columns.
    async fn new(db: Db, ddl: &str, tables: &[&str]) -> Source {
        db.execute(ddl).await;
        let marker = TableName { schema: db.marker.clone(), name: "marker".into() };
        db.admin()
            .await
            .execute(&format!(
                "CREATE SCHEMA {} AUTHORIZATION {}; CREATE TABLE {} (agent text, lane int, journal text, epoch bigint, \
                 seq bigint NOT NULL, part bigint, origin text, txid text, applied_at timestamptz, format int, \
                 PRIMARY KEY (agent, lane)); ALTER TABLE {} OWNER TO {}",
                db.marker,
                db.application,
                quoted(&marker),
                quoted(&marker),
                db.application
            ))
            .await;
        let names: Vec<TableName> =
            tables.iter().map(|table| TableName { schema: "public".into(), name: (*table).to_owned() }).collect();
        let agent_id = format!("a{}", unique());
        let published: Vec<String> = names.iter().chain([&marker]).map(quoted).collect();
        db.admin()
            .await
            .execute(&format!(
                "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
                publication_name(&agent_id),
                published.join(", ")
            ))
            .await;
        let agent = connect::postgres::connect(&db.connect_config(), "test").await.unwrap();
        let found = catalog::postgres::read(&agent, &names).await.unwrap();
        let tables = found.into_iter().enumerate().map(|(id, table)| {
            let table = table.expect("just created");
            let supported = table.columns.iter().filter(|c| c.ty != ColumnType::Unsupported && !c.generated);
            WantedTable {
                id,
                name: table.name.clone(),
                columns: supported.map(|c| WantedColumn { name: c.name.clone(), ty: c.ty.clone() }).collect(),
                key: table.primary_key.clone(),
                now: None,
            }
        });
        let tables = tables.collect();
        let (start, identity) = postgres::create_position(&agent, &agent_id, &db.name).await.unwrap();
        let (acknowledge, acknowledged) = watch::channel(start.clone());
        let identity = Arc::from(identity);
        let spec = CaptureSpec {
            agent: agent_id,
            marker,
            tables,
            start,
            identity,
            prepared: Default::default(),
            without_origins: false,
            acknowledged,
        };
        Source { db, spec, acknowledge }
    }

    fn slot(&self) -> String {
        slot_name(&self.spec.agent, &self.db.name)
    }

    fn write_marker(&self, agent: &str, seq: u64) -> String {
        format!(
            "INSERT INTO {} AS m VALUES ('{agent}', 0, '{:032x}', 1, {seq}, 0, 'crm', 'tx', now(), 1) \
             ON CONFLICT (agent, lane) DO UPDATE SET seq = {seq}, applied_at = now();",
            quoted(&self.spec.marker),
            7
        )
    }

    async fn open(&self) -> Result<PgCapture> {
        // The walsender of the capture before needs a moment to go.
        let began = Instant::now();
        loop {
            match PgCapture::connect(&self.db.connect_config(), self.spec.clone()).await {
                Err(error) if error.recovery == Recovery::Retry && began.elapsed() < SOON => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => return result,
            }
        }
    }

    /// Reads from the start until everything committed before the call was read.
    async fn read(&self) -> Recorded {
        self.read_into(Recorded::default()).await
    }

    async fn read_into(&self, mut recorded: Recorded) -> Recorded {
        let end = self.end().await;
        let mut capture = self.open().await.unwrap_or_else(|error| panic!("{}", error.full()));
        follow(&mut capture, &mut recorded, &end).await;
        recorded
    }

    async fn end(&self) -> Position {
        let agent = connect::postgres::connect(&self.db.connect_config(), "test").await.unwrap();
        postgres::log_end(&agent).await.unwrap()
    }

    /// Reads until it fails.
    async fn read_to_error(&self) -> Error {
        let mut recorded = Recorded::default();
        let mut capture = match self.open().await {
            Ok(capture) => capture,
            Err(error) => return error,
        };
        until_error(&mut capture, &mut recorded).await
    }

    /// What the server keeps of us: confirmed LSN.
    async fn confirmed(&self) -> Lsn {
        let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        self.db.value(&sql).await.unwrap().parse().unwrap()
    }
}

async fn follow(capture: &mut PgCapture, recorded: &mut Recorded, end: &Position) {
    let began = Instant::now();
    while !recorded.position.as_ref().is_some_and(|position| position.reached(end)) {
        capture.read(recorded).await.unwrap_or_else(|error| panic!("{}", error.full()));
        assert!(began.elapsed() < SOON, "not at {end} but {:?}", recorded.position);
    }
}

async fn until_error(capture: &mut PgCapture, sink: &mut dyn Sink) -> Error {
    let began = Instant::now();
    loop {
        if let Err(error) = capture.read(sink).await {
            return error;
        }
        assert!(began.elapsed() < SOON, "no error");
    }
}

fn lsn(position: &Position) -> Lsn {
    match position {
        Position::Postgres { lsn } => *lsn,
        other => panic!("{other}"),
    }
}

async fn private(options: &[&str]) -> Db {
    let server = Arc::new(Server::private(Kind::Postgres17, options).await);
    Db::on(&server, &unique()).await
}

#[tokio::test]
async fn every_type_arrives_exact() {
    for kind in KINDS {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TYPE mood AS ENUM ('new', 'it''s ü'); CREATE DOMAIN email AS varchar(9) CHECK (VALUE LIKE '%@%'); \
             CREATE TABLE t (id int PRIMARY KEY, bo boolean, sm smallint, \
             bi bigint, nu numeric, nl numeric(12,4), re real, dp double precision, ch char(5), vc varchar(20), tx text, \
             by bytea, da date, ti time, dt timestamp, ts timestamptz, uu uuid, js json, jb jsonb, en mood, \
             ge int GENERATED ALWAYS AS (id - 1) STORED, pt point, \
             net inet, iv interval, ar int[], bi5 bit(5), dom email)",
            &["t"],
        )
        .await;
        let session = format!("ALTER ROLE {} SET TimeZone = 'Asia/Tokyo'", source.db.agent);
        source.db.admin().await.execute(&session).await;
        source
            .db
            .execute(
                "SET bytea_output = escape; SET DateStyle = 'German'; SET TimeZone = 'America/New_York'; INSERT INTO t \
                 VALUES (2147483647, true, -32768, -9223372036854775808, \
                 -12345678901234567890123456789012345678901234567890.000000000000000000000000000001, 7.5, 3.4028235e38, \
                 5e-324, 'ab', 'Zoë 🦊', '', '\\x00ff5c27', '0044-03-15 BC', '24:00', '1969-12-31 23:59:59.999999', \
                 '2024-02-29 12:00:00.000001+05:30', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"a\":1.00, \"a\":2}', \
                 '{\"b\": 1.00}', 'it''s ü', DEFAULT, '(1,2)', '10.0.0.1', \
                 '1 year 2 mons -3 days 04:05:06.7', '[0:1]={1,NULL}', '01010', 'a@b'); INSERT INTO t (id) VALUES (1)",
            )
            .await;

        let recorded = source.read().await;

        let uuid = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11_u128.to_be_bytes();
        let number = "-12345678901234567890123456789012345678901234567890.000000000000000000000000000001";
        let expected = [
            Value::Int(2_147_483_647),
            Value::Bool(true),
            Value::Int(-32_768),
            Value::Int(i64::MIN),
            Value::Decimal(number),
            Value::Decimal("7.5000"),
            Value::Float32(f32::MAX),
            Value::Float64(5e-324),
            Value::Text("ab"),
            Value::Text("Zoë 🦊"),
            Value::Text(""),
            Value::Bytes(b"\x00\xff\x5c\x27"),
            Value::Date(-735_160),
            Value::Time(MICROS_PER_DAY),
            Value::DateTime(-1),
            Value::Timestamp(1_709_188_200_000_001),
            Value::Uuid(uuid),
            Value::Json("{\"a\":1.00, \"a\":2}"),
            Value::Json("{\"b\": 1.00}"),
            Value::Text("it's ü"),
            Value::Text("(1,2)"),
            Value::Text("10.0.0.1"),
            Value::Text("P1Y2M-3DT4H5M6.7S"),
            Value::Array("[0:1]={1,NULL}"),
            Value::Bits("01010"),
            Value::Text("a@b"),
        ]
        .map(Datum::Value);
        let mut empty = [Datum::Null; 26];
        empty[0] = Datum::Value(Value::Int(1));
        let expected =
            ["begin".to_owned(), row("insert", None, &expected), row("insert", None, &empty), "commit".to_owned()];
        assert_eq!(recorded.lines, expected, "{}", kind.name());
    }
}

fn row(op: &str, before: Option<&[Datum<'_>]>, after: &[Datum<'_>]) -> String {
    format!("{op} 0 {} => {}", image(before), image(Some(after)))
}

/// NaN and the infinities are values; what is beyond ours is set aside with the rest of its row.
#[tokio::test]
async fn values_without_a_place_are_refused_by_column() {
    let source = Source::new(
        Db::new(Kind::Postgres17).await,
        "CREATE TABLE t (id int PRIMARY KEY, nu numeric, da date, ts timestamptz)",
        &["t"],
    )
    .await;
    source
        .db
        .execute(
            "INSERT INTO t VALUES (1, 'NaN', 'infinity', '-infinity'), (2, '-Infinity', NULL, '294276-12-31 00:00:00Z')",
        )
        .await;

    let lines = source.read().await.lines;

    let first =
        [Value::Int(1), Value::Decimal("NaN"), Value::Date(DATE_INFINITY), Value::Timestamp(INSTANT_MINUS_INFINITY)];
    assert_eq!(lines[1], row("insert", None, &first.map(Datum::Value)));
    assert!(lines[2].contains("refused: column \"ts\" holds a time beyond the year 294246"), "{}", lines[2]);
}

#[tokio::test]
async fn old_images_say_what_the_identity_lets_them() {
    for kind in KINDS {
        let source = Source::new(
            Db::new(kind).await,
            "CREATE TABLE d (id int PRIMARY KEY, a int, big text); CREATE TABLE f (LIKE d INCLUDING ALL); \
             ALTER TABLE d ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER big SET STORAGE EXTERNAL; \
             ALTER TABLE f REPLICA IDENTITY FULL",
            &["d", "f"],
        )
        .await;
        for table in ["d", "f"] {
            for sql in [
                format!("INSERT INTO {table} VALUES (1, 10, repeat('x', 5000))"),
                format!("UPDATE {table} SET a = 11"),
                format!("UPDATE {table} SET id = 2, a = NULL"),
                format!("DELETE FROM {table}"),
            ] {
                source.db.execute(&sql).await;
            }
        }

        let recorded = source.read().await;

        let big = format!("Text({:?})", "x".repeat(5000));
        let rows: Vec<String> = recorded
            .lines
            .iter()
            .filter(|line| *line != "begin" && *line != "commit")
            .map(|line| line.replace(&big, "BIG"))
            .collect();
        assert_eq!(
            rows,
            [
                "insert 0 - => Int(1) Int(10) BIG",
                "update 0 - => Int(1) Int(11) not sent",
                "update 0 Int(1) not sent not sent => Int(2) NULL not sent",
                "delete 0 Int(2) not sent not sent => -",
                "insert 1 - => Int(1) Int(10) BIG",
                "update 1 Int(1) Int(10) BIG => Int(1) Int(11) BIG",
                "update 1 Int(1) Int(11) BIG => Int(2) NULL BIG",
                "delete 1 Int(2) NULL BIG => -",
            ],
            "{}",
            kind.name()
        );
    }
}

#[tokio::test]
async fn a_transaction_arrives_whole_and_what_nobody_wants_does_not() {
    let mut source = Source::new(
        Db::new(Kind::Postgres17).await,
        "CREATE TABLE a (id int PRIMARY KEY, secret text, name text); CREATE TABLE b (id int PRIMARY KEY); \
         CREATE TABLE c (id int PRIMARY KEY)",
        &["a", "b", "c"],
    )
    .await;
    source.spec.tables.remove(2);
    source.spec.tables[0].columns.retain(|column| column.name != "secret");
    source.spec.tables[0].columns.reverse();
    for sql in [
        "BEGIN; INSERT INTO c VALUES (1); INSERT INTO a VALUES (1, 's3cret', 'Ada'); SAVEPOINT s; INSERT INTO b VALUES \
         (9); ROLLBACK TO s; INSERT INTO b VALUES (2); COMMIT",
        "INSERT INTO c VALUES (2)",
        "BEGIN; INSERT INTO a VALUES (3); ROLLBACK",
        "TRUNCATE a, b, c",
    ] {
        source.db.execute(sql).await;
    }

    let recorded = source.read().await;

    assert_eq!(
        recorded.lines,
        [
            "begin",
            "insert 0 - => Text(\"Ada\") Int(1)",
            "insert 1 - => Int(2)",
            "commit",
            "begin",
            "truncate 0",
            "truncate 1",
            "commit"
        ]
    );
}

#[tokio::test]
async fn partitions_speak_for_their_root() {
    let source = Source::new(
        Db::new(Kind::Postgres17).await,
        "CREATE TABLE p (id int PRIMARY KEY, a int) PARTITION BY RANGE (id); \
         CREATE TABLE p1 (a int, id int NOT NULL); ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10); \
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
        &["p"],
    )
    .await;
    source.db.execute("INSERT INTO p VALUES (1, 2), (11, 12)").await;
    source.db.execute("UPDATE p SET id = 12 WHERE id = 1").await;

    let recorded = source.read().await;

    assert_eq!(
        recorded.lines,
        [
            "begin",
            "insert 0 - => Int(1) Int(2)",
            "insert 0 - => Int(11) Int(12)",
            "commit",
            "begin",
            "delete 0 Int(1) not sent => -",
            "insert 0 - => Int(12) Int(2)",
            "commit"
        ]
    );
}

/// Only our marker as the first row makes a transaction an echo.
#[tokio::test]
async fn an_echo_is_its_marker_alone() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let ours = source.spec.agent.clone();
    for sql in [
        format!("BEGIN; {} INSERT INTO t VALUES (1); TRUNCATE t; COMMIT", source.write_marker(&ours, 41)),
        format!("BEGIN; {} INSERT INTO t VALUES (2); COMMIT", source.write_marker(&ours, 42)),
        format!("BEGIN; {} INSERT INTO t VALUES (3); COMMIT", source.write_marker("somebody", 43)),
        format!("BEGIN; INSERT INTO t VALUES (4); {} COMMIT", source.write_marker(&ours, 44)),
        source.write_marker(&ours, 45),
        source.write_marker("somebody", 46),
        format!("DELETE FROM {}", quoted(&source.spec.marker)),
    ] {
        source.db.execute(&sql).await;
    }

    let recorded = source.read().await;

    assert_eq!(
        recorded.lines,
        [
            "echo 41",
            "echo 42",
            "begin",
            "insert 0 - => Int(3)",
            "commit",
            "begin",
            "insert 0 - => Int(4)",
            "commit",
            "echo 45"
        ]
    );
}

#[tokio::test]
async fn a_restart_repeats_nothing_and_confirms_only_what_was_acknowledged() {
    let mut source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let start = lsn(&source.spec.start);
    source.db.execute("INSERT INTO t VALUES (1)").await;
    let middle = source.end().await;
    source.db.execute("INSERT INTO t VALUES (2)").await;

    // Read whole, nothing acknowledged: the server keeps everything.
    let first = source.read().await;
    assert_eq!(first.commits(), 2);
    assert_eq!(source.confirmed().await, start);

    // The journal has it up to the middle: the rest comes again, though the slot stands before.
    source.spec.start = middle.clone();
    let second = source.read().await;
    assert_eq!(second.lines, ["begin", "insert 0 - => Int(2)", "commit"]);

    // Acknowledged while nobody reads: the feedback has a task of its own.
    let capture = source.open().await.unwrap();
    source.acknowledge.send_replace(middle.clone());
    let (source, middle) = (&source, lsn(&middle));
    let began = Instant::now();
    eventually(SOON, async || match source.confirmed().await {
        confirmed if confirmed >= middle => Ok(()),
        confirmed => Err(format!("confirmed {confirmed}, not {middle}")),
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(3));
    drop(capture);
}

/// Reads until the sink has `limit` transactions that nobody took from it.
struct Narrow {
    recorded: Recorded,
    limit: usize,
}

impl Sink for Narrow {
    fn begin(&mut self, begin: anechoic::capture::Begin<'_>) -> Result<()> {
        self.recorded.begin(begin)
    }
    fn row(&mut self, row: anechoic::capture::RowEvent<'_>) -> Result<()> {
        self.recorded.row(row)
    }
    fn truncate(&mut self, table: usize) -> Result<()> {
        self.recorded.truncate(table)
    }
    fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        self.recorded.commit(commit)
    }
    fn prepare(&mut self, _: &str, _: Position) -> Result<()> {
        Ok(())
    }
    fn decide(&mut self, _: &str, _: bool, _: Commit<'_>) -> Result<()> {
        Ok(())
    }
    fn wants_echo(&mut self, marker: &anechoic::marker::Marker) -> Result<bool> {
        self.recorded.wants_echo(marker)
    }
    fn echo(&mut self, marker: &anechoic::marker::Marker, position: Position) -> Result<()> {
        self.recorded.echo(marker, position)
    }
    fn passed(&mut self, position: Position) -> Result<()> {
        self.recorded.passed(position)
    }
    fn full(&self) -> bool {
        self.recorded.commits() >= self.limit
    }
}

#[tokio::test]
async fn a_full_sink_gets_nothing_more_and_loses_nothing() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let inserts: Vec<String> = (0..300).map(|id| format!("BEGIN; INSERT INTO t VALUES ({id}); COMMIT;")).collect();
    source.db.execute(&inserts.concat()).await;
    let end = source.end().await;
    let mut capture = source.open().await.unwrap();
    let mut ids = Vec::new();
    let mut reads = 0;

    while ids.len() < 300 {
        let mut sink = Narrow { recorded: Recorded::default(), limit: 7 };
        capture.read(&mut sink).await.unwrap();
        assert!(sink.recorded.commits() <= 7);
        ids.extend(sink.recorded.lines.into_iter().filter(|line| line.starts_with("insert")));
        reads += 1;
        assert!(reads < 10_000);
    }

    let expected: Vec<String> = (0..300).map(|id| format!("insert 0 - => Int({id})")).collect();
    assert_eq!(ids, expected);
    follow(&mut capture, &mut Recorded::default(), &end).await;
}

/// One transaction of many rows goes through in pieces of the receive buffer, and one value
/// larger than that buffer as well.
#[tokio::test]
async fn large_transactions_and_values_pass() {
    let source =
        Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY, a text)", &["t"]).await;
    source.db.execute("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 200000) g").await;
    source.db.execute("INSERT INTO t VALUES (0, repeat('x', 3000000)); INSERT INTO t VALUES (-1)").await;

    let recorded = source.read_into(Recorded { quiet: true, ..Recorded::default() }).await;

    assert_eq!((recorded.rows, recorded.commits()), (200_002, 2));
}

/// Traffic in another database of the server must not hold WAL here.
#[tokio::test]
async fn foreign_traffic_moves_an_idle_slot() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let other = Db::on(&source.db.server, &unique()).await;
    let mut capture = source.open().await.unwrap();
    other
        .execute("CREATE TABLE x (a text); INSERT INTO x SELECT repeat('x', 100) FROM generate_series(1, 20000)")
        .await;
    let end = source.end().await;
    let mut recorded = Recorded::default();

    follow(&mut capture, &mut recorded, &end).await;
    source.acknowledge.send_replace(recorded.position.clone().unwrap());

    assert!(recorded.lines.is_empty());
    let end = lsn(&end);
    eventually(SOON, async || if source.confirmed().await >= end { Ok(()) } else { Err("not confirmed".into()) }).await;
    let agent = connect::postgres::connect(&source.db.connect_config(), "test").await.unwrap();
    let retained = postgres::retained(&agent, &source.spec.agent, &source.db.name).await.unwrap().unwrap();
    assert!(retained.active);
    assert_eq!(retained.wal_status.as_deref(), Some("reserved"));
}

/// What the agent cannot rely on is refused at the start, with what mends it.
#[tokio::test]
async fn a_start_that_would_lose_or_loop_is_refused() {
    let source = Source::new(
        Db::new(Kind::Postgres17).await,
        "CREATE TABLE t (id int PRIMARY KEY, a int); CREATE TABLE u (id int PRIMARY KEY)",
        &["t", "u"],
    )
    .await;
    let publication = publication_name(&source.spec.agent);
    let mut admin = source.db.admin().await;
    let changed = |change: &dyn Fn(&mut CaptureSpec)| {
        let mut spec = source.spec.clone();
        change(&mut spec);
        spec
    };
    let refused = async |spec: CaptureSpec, message: &str, hint: &str| {
        let error = PgCapture::connect(&source.db.connect_config(), spec).await.err().expect(message);
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.message.contains(message), "{} has no {message:?}", error.message);
        assert!(error.hint.contains(hint), "{} has no {hint:?}", error.hint);
    };
    let start = lsn(&source.spec.start);

    let spec = changed(&|spec| spec.identity = "1/1".into());
    refused(spec, "another server", "--resync").await;
    let spec = changed(&|spec| spec.identity = spec.identity.replace('/', "/9").into());
    refused(spec, "another timeline", "--resync").await;
    let spec = changed(&|spec| spec.start = Position::Postgres { lsn: Lsn(start.0 + (1 << 40)) });
    refused(spec, "the server's log ends at", "--resync").await;
    let spec = changed(&|spec| spec.start = Position::Postgres { lsn: Lsn(start.0 - 8) });
    refused(spec, "beyond our position", "--resync").await;
    let spec = changed(&|spec| spec.agent = "nobody".into());
    refused(spec, "does not exist", "--resync").await;
    admin.execute(&format!("ALTER PUBLICATION {publication} DROP TABLE u")).await;
    refused(source.spec.clone(), "public.u is not in publication", "ADD TABLE \"public\".\"u\"").await;
    admin.execute(&format!("ALTER PUBLICATION {publication} ADD TABLE u WHERE (id > 5)")).await;
    refused(source.spec.clone(), "filters the rows of table public.u", "DROP TABLE").await;
    admin.execute(&format!("ALTER PUBLICATION {publication} SET TABLE t, u")).await;
    refused(source.spec.clone(), "marker is not in publication", "ADD TABLE").await;
    let all = format!("ALTER PUBLICATION {publication} SET TABLE t, u, {}", quoted(&source.spec.marker));
    admin.execute(&all).await;
    admin.execute(&format!("ALTER PUBLICATION {publication} SET (publish = 'insert')")).await;
    refused(source.spec.clone(), "every kind of change", "SET (publish").await;
    admin.execute(&format!("DROP PUBLICATION {publication}")).await;
    refused(source.spec.clone(), "does not exist", "anechoic setup").await;
}

#[tokio::test]
async fn a_slot_that_an_earlier_connection_still_holds_is_waited_for() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut ours = source.open().await.unwrap();
    ours.read(&mut Recorded::default()).await.unwrap();

    let error = PgCapture::connect(&source.db.connect_config(), source.spec.clone()).await.err().unwrap();
    assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
    drop(ours);
    drop(source.open().await.unwrap());
}

#[tokio::test]
async fn a_column_that_is_dropped_or_changed_stops_the_flow_before_its_row() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, a int, b varchar(10))";
    for (change, message) in [
        ("ALTER TABLE t DROP COLUMN a", "column \"a\" of public.t is not in the log"),
        ("ALTER TABLE t RENAME COLUMN a TO aa", "column \"a\" of public.t is not in the log"),
        ("ALTER TABLE t ALTER a TYPE text", "column \"a\" of public.t is text in the log"),
        ("ALTER TABLE t ALTER a TYPE bigint, ALTER b TYPE varchar(20), ADD c int", ""),
    ] {
        let source = Source::new(Db::new(Kind::Postgres17).await, ddl, &["t"]).await;
        source.db.execute("INSERT INTO t VALUES (1)").await;
        let before = source.end().await;
        source.db.execute(change).await;
        source.db.execute("INSERT INTO t VALUES (2)").await;
        if message.is_empty() {
            assert_eq!(source.read().await.commits(), 2, "{change}");
            continue;
        }

        let error = source.read_to_error().await;

        assert_eq!(error.recovery, Recovery::Stop, "{change}");
        assert!(error.message.contains(message), "{change}: {}", error.full());
        assert!(lsn(error.position.as_deref().unwrap()) <= lsn(&before), "{change}: the position stays before");
    }
}

/// A server that is told to stop waits for our acknowledgement, for ever if need be.
#[tokio::test]
async fn a_server_can_be_shut_down_whatever_the_journal_does() {
    for acknowledges in [true, false] {
        let db = private(&[]).await;
        let source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let mut capture = source.open().await.unwrap();
        source.db.execute("INSERT INTO t VALUES (1)").await;
        let end = source.end().await;
        let mut recorded = Recorded::default();
        follow(&mut capture, &mut recorded, &end).await;
        let began = Instant::now();

        let acknowledge = source.acknowledge.clone();
        let stopping = source.db.server.stop();
        let reading = async move {
            loop {
                match capture.read(&mut recorded).await {
                    Ok(()) if acknowledges => {
                        acknowledge.send_replace(recorded.position.clone().unwrap());
                    }
                    Ok(()) => {}
                    Err(error) => return error,
                }
            }
        };
        let (error, ()) = tokio::join!(reading, stopping);

        assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_killed_server_is_an_error_that_is_retried_and_nothing_is_lost() {
    let db = private(&[]).await;
    let mut source = Source::new(db, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    source.db.execute("INSERT INTO t VALUES (1)").await;
    let recorded = source.read().await;
    source.spec.start = recorded.position.unwrap();
    let mut capture = source.open().await.unwrap();

    source.db.server.kill().await;
    let error = until_error(&mut capture, &mut Recorded::default()).await;
    drop(capture);
    source.db.server.start().await;
    source.db.execute("INSERT INTO t VALUES (2)").await;

    assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
    assert_eq!(source.read().await.lines, ["begin", "insert 0 - => Int(2)", "commit"]);
}

/// An open transaction keeps a slot from being made: whose it is must be said, not waited out.
#[tokio::test]
async fn a_slot_that_cannot_be_made_names_who_is_in_the_way() {
    let db = private(&[]).await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    db.admin().await.execute(&format!("CREATE PUBLICATION {} FOR TABLE t", publication_name("late"))).await;
    let mut blocker = db.session().await;
    blocker.execute("BEGIN; INSERT INTO t VALUES (1)").await;
    let pid = blocker.rows("SELECT pg_backend_pid()").await[0][0].clone().unwrap();
    let agent = connect::postgres::connect(&db.connect_config(), "test").await.unwrap();

    let error = postgres::create_position(&agent, "late", &db.name).await.unwrap_err();

    assert!(error.message.contains(&format!("pid {pid}")), "{}", error.full());
    assert!(error.hint.contains(&format!("pg_terminate_backend({pid})")));
    blocker.execute("COMMIT").await;
    postgres::create_position(&agent, "late", &db.name).await.unwrap();
}

/// Every sslmode for both kinds of session; SCRAM is bound to the TLS session by itself.
#[tokio::test]
async fn tls_is_as_strict_as_its_mode() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let ca = source.db.server.ca.clone();
    let with = |mode: TlsMode, ca_file: bool, name: Option<&str>| {
        let mut config = source.db.connect_config();
        config.tls.mode = mode;
        config.tls.ca_file = ca_file.then(|| ca.clone());
        config.tls.server_name = name.map(str::to_owned);
        config
    };
    let encrypted = async |config: &ConnectConfig| {
        let client = connect::postgres::connect(config, "test").await?;
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Ok::<bool, Error>(client.query_one(sql, &[]).await.unwrap().get(0))
    };

    for (config, expected) in [
        (with(TlsMode::Disable, false, None), false),
        (with(TlsMode::Prefer, false, None), true),
        (with(TlsMode::Require, false, None), true),
        (with(TlsMode::VerifyCa, true, Some("elsewhere.example")), true),
        (with(TlsMode::VerifyFull, true, None), true),
        (with(TlsMode::VerifyFull, true, Some("localhost")), true),
    ] {
        let what = format!("{:?}", config.tls);
        assert_eq!(encrypted(&config).await.expect(&what), expected, "{what}");
        let mut capture = PgCapture::connect(&config, source.spec.clone()).await.expect(&what);
        capture.read(&mut Recorded::default()).await.unwrap();
        drop(capture);
        drop(source.open().await.unwrap());
    }
    for config in [with(TlsMode::VerifyFull, true, Some("elsewhere.example")), with(TlsMode::VerifyCa, false, None)] {
        let error = encrypted(&config).await.unwrap_err();
        assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());
        assert!(error.full().contains("certificate"), "{}", error.full());
    }
}

#[tokio::test]
async fn a_unix_socket_an_md5_password_and_a_wrong_one() {
    let source = Source::new(Db::new(Kind::Postgres17).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut admin = source.db.admin().await;
    let directory = admin.rows("SHOW unix_socket_directories").await[0][0].clone().unwrap();
    let mut socket = source.db.connect_config();
    socket.host = directory;
    let mut wrong = source.db.connect_config();
    wrong.password = anechoic::config::PasswordSource::Inline("wrong".into());

    PgCapture::connect(&socket, source.spec.clone()).await.map_err(|e| e.full()).unwrap();
    drop(source.open().await.unwrap());
    let error = PgCapture::connect(&wrong, source.spec.clone()).await.err().unwrap();
    assert_eq!(
        (error.code.as_deref(), error.recovery),
        (Some("28P01"), Recovery::Retry),
        "a rotation may be on its way"
    );
    let password = crate::support::servers::PASSWORD.replace('\'', "''");
    let agent = &source.db.agent;
    admin.execute(&format!("SET password_encryption = md5; ALTER ROLE {agent} PASSWORD '{password}'")).await;

    drop(source.open().await.unwrap());
    let error = PgCapture::connect(&wrong, source.spec.clone()).await.err().unwrap();
    assert_eq!(error.code.as_deref(), Some("28P01"), "{}", error.full());
}

/// What the manual has beside plain tables and statements: quoted names, dropped columns, identities,
/// generated columns, savepoints, messages, two phases, tables outside of the log.
#[tokio::test]
async fn rarer_forms_are_ordinary_changes() {
    for kind in [Kind::Postgres15, Kind::Postgres17, Kind::Postgres18] {
        let server = Arc::new(Server::private(kind, &["-c", "max_prepared_transactions=5"]).await);
        let source = Source::new(
            Db::on(&server, &unique()).await,
            "CREATE TABLE \"T \"\"q\"\"\" (gone int, \"Id\" int PRIMARY KEY, gone_too text, \
             n int GENERATED ALWAYS AS IDENTITY, v text, g int GENERATED ALWAYS AS (\"Id\" * 2) STORED); \
             ALTER TABLE \"T \"\"q\"\"\" DROP gone, DROP gone_too; \
             CREATE TABLE i (a int, k int PRIMARY KEY, b text); CREATE UNIQUE INDEX ik ON i (k); \
             ALTER TABLE i ALTER b SET STORAGE EXTERNAL; ALTER TABLE i REPLICA IDENTITY USING INDEX ik; \
             CREATE TABLE child (k int REFERENCES i (k)); CREATE UNLOGGED TABLE aside (a int)",
            &["T \"q\"", "i"],
        )
        .await;
        for sql in [
            "BEGIN; SELECT pg_logical_emit_message(true, 'theirs', 'x'); INSERT INTO \"T \"\"q\"\"\" (\"Id\", v) VALUES \
             (1, 'a'); SAVEPOINT s; INSERT INTO \"T \"\"q\"\"\" (\"Id\") VALUES (2); ROLLBACK TO s; SAVEPOINT t; UPDATE \
             \"T \"\"q\"\"\" SET v = NULL; RELEASE t; INSERT INTO aside VALUES (1); CREATE TEMP TABLE own (a int); \
             INSERT INTO own VALUES (1); COMMIT",
            "SELECT pg_logical_emit_message(false, 'theirs', 'x')",
            "BEGIN; INSERT INTO i VALUES (1, 1, repeat('x', 5000)); PREPARE TRANSACTION 'p'",
            "BEGIN; INSERT INTO i VALUES (9, 9, ''); PREPARE TRANSACTION 'q'",
            "UPDATE \"T \"\"q\"\"\" SET v = 'between'",
            "COMMIT PREPARED 'p'",
            "ROLLBACK PREPARED 'q'",
            "UPDATE i SET k = 2",
            "DELETE FROM i",
            "TRUNCATE i RESTART IDENTITY CASCADE",
        ] {
            source.db.execute(sql).await;
        }

        let recorded = source.read().await;

        let big = format!("Text({:?})", "x".repeat(5000));
        let rows: Vec<String> = recorded
            .lines
            .iter()
            .filter(|line| *line != "begin" && *line != "commit")
            .map(|line| line.replace(&big, "BIG"))
            .collect();
        assert_eq!(
            rows,
            [
                "insert 0 - => Int(1) Int(1) Text(\"a\")",
                "update 0 - => Int(1) Int(1) NULL",
                "update 0 - => Int(1) Int(1) Text(\"between\")",
                "insert 1 - => Int(1) Int(1) BIG",
                "update 1 not sent Int(1) not sent => Int(1) Int(2) not sent",
                "delete 1 not sent Int(2) not sent => -",
                "truncate 1",
            ],
            "{}",
            kind.name()
        );
    }
}

/// The table's identity is told, the partition's is logged: an old row with NULL for what is not
/// there would be taken for the truth.
#[tokio::test]
async fn a_partition_whose_identity_is_weaker_than_its_tables_is_refused_when_the_stream_begins() {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY, a int NOT NULL, big text) PARTITION BY RANGE (id); \
               CREATE TABLE \"P 1\" PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE UNIQUE INDEX ia ON \"P 1\" (a)";
    for (weak, strong) in [
        ("ALTER TABLE p REPLICA IDENTITY FULL", "ALTER TABLE \"P 1\" REPLICA IDENTITY FULL"),
        ("ALTER TABLE \"P 1\" REPLICA IDENTITY USING INDEX ia", "ALTER TABLE \"P 1\" REPLICA IDENTITY FULL"),
        ("ALTER TABLE \"P 1\" REPLICA IDENTITY NOTHING", "ALTER TABLE \"P 1\" REPLICA IDENTITY DEFAULT"),
    ] {
        let source = Source::new(Db::new(Kind::Postgres15).await, &format!("{ddl}; {weak}"), &["p"]).await;

        let error = PgCapture::connect(&source.db.connect_config(), source.spec.clone()).await.err().expect(weak);

        assert_eq!(error.recovery, Recovery::Stop, "{weak}");
        assert!(error.message.contains("partition public.P 1 of public.p"), "{}", error.full());
        assert!(error.hint.contains("ALTER TABLE \"public\".\"P 1\" REPLICA IDENTITY FULL"), "{}", error.full());
        source.db.execute(strong).await;
        source.db.execute("INSERT INTO p VALUES (1, 1, 'x'); UPDATE p SET a = 2; DELETE FROM p").await;
        assert_eq!(source.read().await.rows, 3, "{weak}");
    }
}

/// Attached while the stream runs: whole inserts go on, and what the log holds only a part of stops
/// the flow before it is handed on.
#[tokio::test]
async fn a_partition_of_weaker_identity_that_is_attached_later_stops_the_flow_before_a_row_is_misread() {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY, a int, big text) PARTITION BY RANGE (id); \
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
               CREATE TABLE p2 (LIKE p INCLUDING ALL, UNIQUE (a)); ALTER TABLE p2 ALTER big SET STORAGE EXTERNAL, ALTER a SET NOT NULL; \
               ALTER TABLE p1 REPLICA IDENTITY FULL; ALTER TABLE p REPLICA IDENTITY FULL";
    let attach = "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)";
    let rows = "INSERT INTO p VALUES (11, 11, repeat('x', 5000)); UPDATE p SET a = 2 WHERE id = 1";
    let full = "ALTER TABLE p2 REPLICA IDENTITY FULL";
    let newest = Arc::new(Server::private(Kind::Postgres18, &[]).await);
    for (kind, before, change, misread) in [
        (Kind::Postgres17, attach, "DELETE FROM p WHERE id = 11", true),
        (Kind::Postgres15, attach, "UPDATE p SET id = 12 WHERE id = 11", true),
        (Kind::Postgres18, attach, "UPDATE p SET a = 12 WHERE id = 11", true),
        (Kind::Postgres18, attach, "DELETE FROM p WHERE id = 11", true),
        // The table became FULL after its partition was met.
        (Kind::Postgres17, "ALTER TABLE p REPLICA IDENTITY DEFAULT", "DELETE FROM p WHERE id = 11", true),
        (
            Kind::Postgres17,
            "ALTER TABLE p REPLICA IDENTITY DEFAULT; ALTER TABLE p2 REPLICA IDENTITY USING INDEX p2_a_key",
            "DELETE FROM p WHERE id = 11",
            true,
        ),
        (
            Kind::Postgres17,
            "ALTER TABLE p REPLICA IDENTITY DEFAULT; ALTER TABLE p2 REPLICA IDENTITY USING INDEX p2_a_key",
            "UPDATE p SET id = 12 WHERE id = 11",
            true,
        ),
        (Kind::Postgres17, "ALTER TABLE p REPLICA IDENTITY DEFAULT", "UPDATE p SET id = 12 WHERE id = 11", false),
        (Kind::Postgres17, full, "DELETE FROM p WHERE id = 11", false),
    ] {
        let db = if kind == Kind::Postgres18 { Db::on(&newest, &unique()).await } else { Db::new(kind).await };
        let source = Source::new(db, ddl, &["p"]).await;
        let mut capture = source.open().await.unwrap();
        let mut recorded = Recorded::default();
        source.db.execute("INSERT INTO p VALUES (1, 1, 'x'), (2, 2, NULL)").await;
        source.db.execute(before).await;
        if before != attach {
            source.db.execute(attach).await;
        }
        source.db.execute(rows).await;
        follow(&mut capture, &mut recorded, &source.end().await).await;
        assert_eq!(recorded.rows, 4, "{before}: inserts are whole");
        if before.contains("DEFAULT") && change.starts_with("DELETE") && !before.contains("INDEX") {
            source.db.execute("ALTER TABLE p REPLICA IDENTITY FULL").await;
            source.db.execute("DELETE FROM p WHERE id = 2").await;
        }
        source.db.execute(change).await;

        if !misread {
            follow(&mut capture, &mut recorded, &source.end().await).await;
            assert_eq!(recorded.rows, 5, "{before}: {change}");
            continue;
        }
        let error = until_error(&mut capture, &mut recorded).await;

        assert_eq!(error.recovery, Recovery::Stop, "{before}: {change}");
        assert!(error.message.contains("public.p2 of public.p"), "{before}: {change}: {}", error.full());
        assert!(error.hint.contains("ALTER TABLE \"public\".\"p2\" REPLICA IDENTITY FULL"), "{}", error.full());
        assert!(recorded.rows <= 5, "{before}: {change}: {:?}", recorded.lines);
    }
}

/// Under their own names the rows of partitions would be nobody's.
#[tokio::test]
async fn partitions_that_are_published_by_themselves_are_refused() {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)";
    let source = Source::new(Db::new(Kind::Postgres17).await, ddl, &["p"]).await;
    let publication = publication_name(&source.spec.agent);
    let leaves = format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = false)");
    source.db.admin().await.execute(&leaves).await;

    let error = PgCapture::connect(&source.db.connect_config(), source.spec.clone()).await.err().unwrap();

    assert_eq!(error.recovery, Recovery::Stop);
    assert!(error.hint.contains("SET (publish_via_partition_root = true)"), "{}", error.full());
}

/// Without its publication nothing of ours is in the stream. Up to version 17 that is an error, and from
/// 18 on a warning beside a stream that goes on.
#[tokio::test]
async fn a_publication_that_is_dropped_under_the_stream_stops_the_flow() {
    for kind in [Kind::Postgres17, Kind::Postgres18] {
        let server = Arc::new(Server::private(kind, &[]).await);
        let source = Source::new(Db::on(&server, &unique()).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
        let publication = publication_name(&source.spec.agent);
        let mut recorded = Recorded::default();
        let mut capture = source.open().await.unwrap();
        source
            .db
            .admin()
            .await
            .execute(&format!("ALTER ROLE {} SET client_min_messages = error", source.db.agent))
            .await;
        source.db.execute("INSERT INTO t VALUES (1)").await;
        follow(&mut capture, &mut recorded, &source.end().await).await;
        source.db.admin().await.execute(&format!("DROP PUBLICATION {publication}")).await;
        source.db.execute("INSERT INTO t VALUES (2)").await;

        let error = until_error(&mut capture, &mut recorded).await;

        assert_eq!(error.recovery, Recovery::Stop, "{}: {}", kind.name(), error.full());
        assert!(error.full().contains("publication") && error.hint.contains("anechoic setup"), "{}", error.full());
        drop(capture);
        let again = format!("CREATE PUBLICATION {publication} FOR TABLE t, {}", quoted(&source.spec.marker));
        source.db.admin().await.execute(&again).await;
        source.db.execute("INSERT INTO t VALUES (3)").await;
        let error = source.read_to_error().await;
        assert_eq!(error.recovery, Recovery::Stop, "{}: {}", kind.name(), error.full());
    }
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_as_idle_says_so_with_the_way_out() {
    let server = Arc::new(Server::private(Kind::Postgres18, &["-c", "idle_replication_slot_timeout=1s"]).await);
    let source = Source::new(Db::on(&server, &unique()).await, "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let reason = format!("SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = '{}'", source.slot());
    eventually(SOON, || async {
        source.db.admin().await.execute("CHECKPOINT").await;
        let reason = source.db.value(&reason).await;
        if reason.as_deref() == Some("idle_timeout") { Ok(()) } else { Err(format!("{reason:?}")) }
    })
    .await;

    let of_stream = PgCapture::connect(&source.db.connect_config(), source.spec.clone()).await.err().unwrap();
    let agent = connect::postgres::connect(&source.db.connect_config(), "test").await.unwrap();
    let of_setup = postgres::create_position(&agent, &source.spec.agent, &source.db.name).await.unwrap_err();

    for error in [of_stream, of_setup] {
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
        assert!(error.message.contains("(idle_timeout)"), "{}", error.full());
        assert!(error.hint.contains("SET idle_replication_slot_timeout = 0"), "{}", error.full());
    }
}

/// Version 18 can publish what the server computes; who wrote the row did not, so nothing of it is
/// handed on, and virtual columns are in no log.
#[tokio::test]
async fn generated_columns_are_passed_over_whether_they_are_published_or_not() {
    let newest = Arc::new(Server::private(Kind::Postgres18, &[]).await);
    let stored = "publish_generated_columns = stored";
    let mut told = Vec::new();
    for (kind, option, full) in [
        (Kind::Postgres17, None, true),
        (Kind::Postgres18, Some(stored), true),
        (Kind::Postgres17, None, false),
        (Kind::Postgres18, None, false),
        (Kind::Postgres18, Some(stored), false),
    ] {
        let db = if kind == Kind::Postgres18 { Db::on(&newest, &unique()).await } else { Db::new(kind).await };
        let mut ddl =
            "CREATE TABLE t (id int PRIMARY KEY, s int GENERATED ALWAYS AS (a * 2) STORED, a int, b text)".to_owned();
        if full {
            ddl += "; ALTER TABLE t REPLICA IDENTITY FULL";
        } else if kind == Kind::Postgres18 {
            ddl += "; ALTER TABLE t ADD v int GENERATED ALWAYS AS (a * 3) VIRTUAL";
        }
        let source = Source::new(db, &ddl, &["t"]).await;
        if let Some(option) = option {
            let sql = format!("ALTER PUBLICATION {} SET ({option})", publication_name(&source.spec.agent));
            source.db.admin().await.execute(&sql).await;
        }
        source.db.execute("INSERT INTO t (id, a, b) VALUES (1, 1, 'x'); UPDATE t SET a = 2; DELETE FROM t").await;

        told.push(source.read().await.lines);
    }
    assert!(
        told[0].iter().any(|line| line == "update 0 Int(1) Int(1) Text(\"x\") => Int(1) Int(2) Text(\"x\")"),
        "{told:?}"
    );
    assert_eq!(told[0], told[1]);
    assert!(told[3..].iter().all(|lines| *lines == told[2]), "{told:#?}");
}
