//! What is written: tables, what lies in them before, and a backlog in transactions of a size.
//! Every engine gets the same rows, made by the server itself.

use std::time::Duration;

use crate::common::{item, item_values, series};
use crate::support::servers::{Db, Kind, Session};
use crate::support::world::{Entity, Type};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Inserted rows in transactions of 1,000.
    Inserts,
    /// Transactions of one inserted row.
    Singles,
    /// TPC-B: three updates and an insert.
    Bank,
    /// Updates of few rows, ten in a transaction.
    Hot,
    /// A steady trickle of single rows: how long until each is seen.
    Steady,
    /// Rows of 20 KiB that do not compress well.
    Wide,
    /// `Bank` in both systems at once.
    TwoWay,
    /// `Bank` from one system to two.
    FanOut,
    /// One transaction.
    Huge,
}

use Workload::*;

impl Workload {
    pub const ALL: [Workload; 9] = [Inserts, Singles, Bank, Hot, Steady, Wide, TwoWay, FanOut, Huge];

    pub fn name(self) -> &'static str {
        ["W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9"][self as usize]
    }

    pub fn about(self) -> &'static str {
        match self {
            Inserts => "backlog of inserts, 1,000 rows a transaction",
            Singles => "backlog of single-row transactions",
            Bank => "backlog of TPC-B transactions",
            Hot => "backlog of updates of 1,000 rows, ten a transaction",
            Steady => "steady single-row transactions, commit to visible",
            Wide => "backlog of rows of 20 KiB, in MB/s",
            TwoWay => "TPC-B backlogs in both systems at once",
            FanOut => "TPC-B backlog for two targets",
            Huge => "one transaction",
        }
    }

    /// Transactions of the full size.
    fn full(self) -> u64 {
        match self {
            Inserts => 1_000,
            Singles => 200_000,
            Bank | TwoWay | FanOut => 100_000,
            Hot => 50_000,
            Steady => 30_000,
            Wide => 1_000,
            Huge => 1,
        }
    }

    /// At that scale. The one transaction becomes smaller instead.
    pub fn transactions(self, scale: f64) -> u64 {
        ((self.full() as f64 * scale) as u64).max(1)
    }

    /// Changes in each of them.
    pub fn rows(self, scale: f64) -> u64 {
        match self {
            Inserts => 1_000,
            Singles | Steady => 1,
            Bank | TwoWay | FanOut => 4,
            Hot => 10,
            Wide => 100,
            Huge => ((5_000_000.0 * scale) as u64).max(1),
        }
    }

    pub fn entities(self) -> Vec<Entity> {
        let mut entities = match self {
            Inserts | Singles | Steady | Huge => vec![item()],
            Bank | TwoWay | FanOut => bank(),
            Hot => vec![
                Entity::new("counter")
                    .key("id", Type::Int)
                    .field("n", Type::Int)
                    .field("note", Type::Varchar(60))
                    .field("changed", Type::DateTime),
            ],
            Wide => vec![Entity::new("wide").key("id", Type::Int).field("body", Type::Text)],
        };
        entities.push(Entity::new("done").key("id", Type::Int));
        entities
    }

    /// What is there before anybody looks.
    pub async fn before(self, db: &Db) {
        match self {
            Bank | TwoWay | FanOut => {
                let rows = [("branch", BRANCHES), ("teller", TELLERS), ("account", ACCOUNTS)];
                for (table, count) in rows {
                    let (series, filler) = (series(db.kind, count), "repeat('x', 84)");
                    let parent = if table == "branch" { "" } else { "n % 10 + 1, " };
                    db.execute(&format!("INSERT INTO {table} SELECT n, {parent}0, {filler} FROM {series}")).await;
                }
            }
            Hot => {
                let (series, moment) = (series(db.kind, HOT_ROWS), "timestamp '2024-01-01 00:00:00'");
                db.execute(&format!("INSERT INTO counter SELECT n, 0, 'nothing yet', {moment} FROM {series}")).await;
            }
            Inserts | Singles | Steady | Wide | Huge => {}
        }
    }

    /// Statements of transaction number `i`, an SQL expression that begins with 1. `side`: of two
    /// that write at once, each has rows of its own.
    fn statements(self, kind: Kind, side: u64, scale: f64) -> Vec<String> {
        let many = |count: u64, table: &str, values: &dyn Fn(&str) -> String| {
            let series = series(kind, count);
            vec![format!("INSERT INTO {table} SELECT {} FROM {series}", values(&format!("((i - 1) * {count} + n)")))]
        };
        match self {
            Inserts | Huge => many(self.rows(scale), "item", &|n| item_values(kind, n)),
            Singles | Steady => vec![format!("INSERT INTO item SELECT {}", item_values(kind, "i"))],
            Wide => many(self.rows(scale), "wide", &|n| match kind.is_postgres() {
                true => format!("{n}, (SELECT string_agg(md5(concat({n}, '-', piece)), '') FROM generate_series(1, 640) AS g(piece))"),
                false => {
                    let piece = |piece: u64| format!("repeat(sha2(concat({n}, '-{piece}'), 256), 5)");
                    format!("{n}, concat({})", (0..64).map(piece).collect::<Vec<_>>().join(", "))
                }
            }),
            Hot => (0..10)
                .map(|k| {
                    format!(
                        "UPDATE counter SET n = n + 1, note = concat('written in ', i), \
                         changed = timestamp '2024-01-01 00:00:00' + {} WHERE id = 1 + (i * 7919 + {k} * 101) % {HOT_ROWS}",
                        seconds(kind, "i")
                    )
                })
                .collect(),
            Bank | TwoWay | FanOut => {
                let pick = |count: u64, step: u64| {
                    format!("({} + (i * {step}) % {})", side * count / 2 + 1, count / 2)
                };
                let (account, teller, branch) = (pick(ACCOUNTS, 7919), pick(TELLERS, 13), pick(BRANCHES, 3));
                let delta = "(i * 37 % 9999 - 5000)";
                vec![
                    format!("UPDATE account SET balance = balance + {delta} WHERE id = {account}"),
                    format!("UPDATE teller SET balance = balance + {delta} WHERE id = {teller}"),
                    format!("UPDATE branch SET balance = balance + {delta} WHERE id = {branch}"),
                    format!(
                        "INSERT INTO history VALUES ({teller}, {branch}, {account}, {delta}, \
                         timestamp '2024-01-01 00:00:00' + {}, 'twenty-two characters.')",
                        seconds(kind, "i")
                    ),
                ]
            }
        }
    }

    /// Of content, in one row.
    pub fn row_bytes(self) -> Option<u64> {
        (self == Wide).then_some(20 << 10)
    }

    /// Commits the backlog, and behind it the row that tells that all is there. Not waited for
    /// the disk by each commit: that is not what is measured.
    pub async fn write(self, db: &Db, side: u64, scale: f64) {
        let statements = self.statements(db.kind, side, scale).join("; ");
        let (transactions, sentinel) = (self.transactions(scale), side + 1);
        let mut session = db.session().await;
        if db.kind.is_postgres() {
            session.execute("SET synchronous_commit = off").await;
            let block = format!(
                "DO $$ DECLARE i bigint; BEGIN FOR k IN 1..{transactions} LOOP i := k; {statements}; COMMIT; \
                 END LOOP; END $$"
            );
            session.execute(&block).await;
            session.execute("SET synchronous_commit = on").await;
            session.execute(&format!("INSERT INTO done VALUES ({sentinel})")).await;
            db.admin().await.execute("CHECKPOINT").await;
            return;
        }
        patient(db, false).await;
        session.execute("DROP PROCEDURE IF EXISTS backlog").await;
        let body = format!(
            "CREATE PROCEDURE backlog() BEGIN DECLARE i BIGINT DEFAULT 1; WHILE i <= {transactions} DO \
             START TRANSACTION; {statements}; COMMIT; SET i = i + 1; END WHILE; END"
        );
        session.execute(&body).await;
        session.execute("CALL backlog()").await;
        patient(db, true).await;
        session.execute(&format!("INSERT INTO done VALUES ({sentinel})")).await;
    }
}

const BRANCHES: u64 = 10;
const TELLERS: u64 = 100;
const ACCOUNTS: u64 = 100_000;
const HOT_ROWS: u64 = 1_000;

fn bank() -> Vec<Entity> {
    let balance = |name: &str| Entity::new(name).key("id", Type::Int);
    vec![
        balance("branch").field("balance", Type::BigInt).field("filler", Type::Varchar(88)),
        balance("teller").field("branch", Type::Int).field("balance", Type::BigInt).field("filler", Type::Varchar(84)),
        balance("account").field("branch", Type::Int).field("balance", Type::BigInt).field("filler", Type::Varchar(84)),
        Entity::new("history")
            .field("teller", Type::Int)
            .field("branch", Type::Int)
            .field("account", Type::Int)
            .field("delta", Type::Int)
            .field("moment", Type::DateTime)
            .field("filler", Type::Varchar(22)),
    ]
}

fn seconds(kind: Kind, n: &str) -> String {
    match kind.is_postgres() {
        true => format!("{n} * interval '1 second'"),
        false => format!("INTERVAL {n} SECOND"),
    }
}

/// Whether the server waits for its disk at each commit.
async fn patient(db: &Db, patient: bool) {
    let mut admin = db.admin().await;
    let (flush, sync) = if patient { (1, 1) } else { (2, 0) };
    admin.execute(&format!("SET GLOBAL innodb_flush_log_at_trx_commit = {flush}")).await;
    admin.execute(&format!("SET GLOBAL sync_binlog = {sync}")).await;
    if patient {
        admin.execute("FLUSH LOCAL ENGINE LOGS").await;
        admin.execute("FLUSH LOCAL BINARY LOGS").await;
    }
}

/// Whether the row behind the backlog of that side is there.
pub async fn is_done(session: &mut Session, side: u64) -> bool {
    !session.rows(&format!("SELECT id FROM done WHERE id = {}", side + 1)).await.is_empty()
}

pub const PATIENCE: Duration = Duration::from_secs(1800);
