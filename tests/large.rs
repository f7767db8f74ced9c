//! Transactions far larger than the agent's memory: applied as one, whole, and the memory
//! stays bounded; so it does while a target is away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::servers::{Db, Kind, Rows};
use crate::support::world::{Entity, Type, World};
use crate::support::{SOON, eventually};

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);

const MEMORY_MAX: u64 = 150 << 20;
/// Of the update and the delete.
const SOME: u64 = 100_000;

fn soak() -> bool {
    std::env::var_os("ANECHOIC_SOAK").is_some()
}

fn large() -> u64 {
    if soak() { 1_000_000 } else { 100_000 }
}

fn item() -> Entity {
    Entity::new("item")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("price", Type::Decimal(12, 2))
        .field("version", Type::Int)
}

/// One statement that makes rows `from..from + rows`.
fn insert(kind: Kind, from: u64, rows: u64) -> String {
    let (numbers, text) = match kind.is_postgres() {
        true => (format!("generate_series({from}, {}) AS s(n)", from + rows - 1), "'item ' || n || ' – größer'"),
        false => {
            let digit = |name: &str, factor: u64| {
                let values: Vec<String> = (0..10).map(|d| format!("SELECT {} AS {name}", d * factor)).collect();
                format!("({}) AS t{name}", values.join(" UNION ALL "))
            };
            let digits: Vec<String> =
                ["a", "b", "c", "d", "e", "f"].iter().zip(0..).map(|(name, at)| digit(name, 10u64.pow(at))).collect();
            let numbers = format!("(SELECT {from} + a + b + c + d + e + f AS n FROM {}) AS s", digits.join(", "));
            (format!("{numbers} WHERE n < {}", from + rows), "concat('item ', n, ' – größer')")
        }
    };
    format!("INSERT INTO item (id, name, price, version) SELECT n, {text}, n * 0.25, 0 FROM {numbers}")
}

/// What a reader of the target sees, over and over.
struct Reader {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeSet<String>>,
}

impl Reader {
    async fn start(db: &Db, sql: &'static str) -> Reader {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut session, stopped) = (db.session().await, stop.clone());
        let task = tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                seen.insert(session.rows(sql).await[0][0].clone().unwrap());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            seen.insert(session.rows(sql).await[0][0].clone().unwrap());
            seen
        });
        Reader { stop, task }
    }

    /// Nothing but the state before and the state after.
    async fn saw_only(self, before: u64, after: u64) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.task.await.unwrap();
        assert_eq!(seen, BTreeSet::from([before.to_string(), after.to_string()]));
    }
}

/// Value by value, in pieces that fit into this process.
async fn same(from: &Db, to: &Db, rows: u64) {
    async fn piece(db: &Db, first: u64) -> Rows {
        let end = first + 100_000;
        db.rows(&format!("SELECT id, name, price, version FROM item WHERE id >= {first} AND id < {end} ORDER BY id"))
            .await
    }
    let mut count = 0;
    for first in (0..=rows.max(large())).step_by(100_000) {
        let (expected, found) = (piece(from, first).await, piece(to, first).await);
        assert!(expected == found, "rows from {first} on differ: {} and {}", expected.len(), found.len());
        count += found.len() as u64;
    }
    assert_eq!(count, rows);
}

async fn one_transaction(from: (&'static str, Kind), to: (&'static str, Kind)) {
    transactions(from, to, World::of(&[from, to]).entity(item()).start().await).await;
}

async fn transactions(from: (&'static str, Kind), to: (&'static str, Kind), world: World) {
    let (source, target, rows) = (&world[from.0], &world[to.0], large());
    let step = async |what: &str, sql: &str, watched: &'static str, before: u64, after: u64| {
        let reader = Reader::start(target, watched).await;
        source.execute(sql).await;
        let committed = Instant::now();
        world.agent.run(&["wait", "--timeout", "600s"]).await;
        reader.saw_only(before, after).await;
        let (_, peak) = world.agent.memory();
        eprintln!(
            "{} to {}: {what} of {} rows applied {} ms after the commit; peak {} MiB",
            from.0,
            to.0,
            before.abs_diff(after),
            committed.elapsed().as_millis(),
            peak >> 20
        );
        assert!(peak < MEMORY_MAX, "{peak} bytes");
    };

    step("insert", &insert(from.1, 0, rows), "SELECT count(*) FROM item", 0, rows).await;
    same(source, target, rows).await;
    let update = format!("UPDATE item SET version = version + 1, price = price + 0.5 WHERE id < {SOME}");
    step("update", &update, "SELECT count(*) FROM item WHERE version = 1", 0, SOME).await;
    same(source, target, rows).await;
    let delete = format!("DELETE FROM item WHERE id < {SOME}");
    step("delete", &delete, "SELECT count(*) FROM item", rows, rows - SOME).await;
    same(source, target, rows - SOME).await;

    let status = world.agent.status().await.unwrap();
    assert_eq!(status["systems"][1]["apply"]["transactions"], 3, "{status}");
}

#[tokio::test]
async fn one_transaction_from_postgresql_to_mysql() {
    one_transaction(PG, MY).await;
}

#[tokio::test]
async fn one_transaction_from_mysql_to_postgresql() {
    one_transaction(MY, PG).await;
}

#[tokio::test]
async fn one_transaction_from_postgresql_to_mariadb() {
    one_transaction(PG, MARIA).await;
}

#[tokio::test]
async fn one_transaction_from_mariadb_to_postgresql() {
    one_transaction(MARIA, PG).await;
}

/// The log holds it as one compressed event, which is never unpacked as a whole.
#[tokio::test]
async fn one_compressed_transaction_from_mysql_to_postgresql() {
    let world = World::of(&[MY, PG]).private_with("shop", &["--binlog-transaction-compression=ON"]);
    transactions(MY, PG, world.entity(item()).start().await).await;
}

/// The same from MariaDB, whose log holds compressed rows.
#[tokio::test]
async fn one_compressed_transaction_from_mariadb_to_postgresql() {
    let options = ["--log-bin-compress=ON", "--log-bin-compress-min-len=10"];
    let world = World::of(&[MARIA, PG]).private_with("erp", &options);
    transactions(MARIA, PG, world.entity(item()).start().await).await;
}

/// The journal takes what a target that is away will need; memory does not.
#[tokio::test]
async fn a_target_that_is_away_costs_no_memory() {
    let world = World::of(&[PG, MY]).proxied("shop").entity(item()).start().await;
    let (crm, shop) = (&world["crm"], &world["shop"]);
    world.proxy("shop").refuse();

    for piece in 0..200 {
        crm.execute(&insert(Kind::Postgres17, piece * 1000, 1000)).await;
    }
    eventually(SOON, || async {
        let head = world.agent.status().await?["journal"]["head"].as_u64().unwrap_or_default();
        if head >= 200 { Ok(()) } else { Err(format!("the journal is at {head}")) }
    })
    .await;
    let (_, away) = world.agent.memory();
    world.proxy("shop").pass();
    world.agent.wait_quiet().await;
    let (_, back) = world.agent.memory();

    eprintln!("a target away for 200,000 rows: peak {} MiB, and {} MiB after it came back", away >> 20, back >> 20);
    assert!(back < MEMORY_MAX, "{back} bytes");
    same(crm, shop, 200_000).await;
}
