//! What was written while the agent was away is caught up with in batches, whatever the size of
//! the transactions. The figures are printed; `ANECHOIC_TEST_BINARY` names another build.

use std::time::{Duration, Instant};

use crate::support::servers::Kind;
use crate::support::world::{Entity, Type, World};

const MEMORY_MAX: u64 = 150 << 20;

/// Transactions, and rows in each.
fn shapes() -> [(u64, u64); 2] {
    if std::env::var_os("ANECHOIC_SOAK").is_some() { [(500, 1000), (100_000, 1)] } else { [(20, 1000), (2000, 1)] }
}

/// Written on the server, one transaction after the other.
fn backlog(kind: Kind, transactions: u64, rows: u64) -> [String; 2] {
    let last = transactions - 1;
    if kind.is_postgres() {
        let insert = "INSERT INTO item SELECT n, 'item ' || n, n * 0.25, now(), 'some words about it' \
                      FROM generate_series";
        return [
            "SELECT 1".to_owned(),
            format!(
                "DO $$ BEGIN FOR t IN 0..{last} LOOP {insert}(t * {rows}, t * {rows} + {rows} - 1) AS s(n); \
                 COMMIT; END LOOP; END $$"
            ),
        ];
    }
    let digit = |name: &str, factor: u64| {
        let values: Vec<String> = (0..10).map(|d| format!("SELECT {} AS {name}", d * factor)).collect();
        format!("({}) AS t{name}", values.join(" UNION ALL "))
    };
    let values = "concat('item ', n), n * 0.25, now(6), 'some words about it'";
    let insert = match rows {
        1 => format!("INSERT INTO item SELECT n, {values} FROM (SELECT t AS n) AS s"),
        _ => format!(
            "INSERT INTO item SELECT n, {values} FROM (SELECT t * {rows} + a + b + c AS n FROM {}, {}, {}) AS s",
            digit("a", 1),
            digit("b", 10),
            digit("c", 100)
        ),
    };
    [
        format!(
            "CREATE PROCEDURE backlog() BEGIN DECLARE t INT DEFAULT 0; WHILE t <= {last} DO {insert}; \
             SET t = t + 1; END WHILE; END"
        ),
        "CALL backlog()".to_owned(),
    ]
}

async fn caught_up(from: Kind, to: Kind) {
    for (transactions, rows) in shapes() {
        let item = Entity::new("item")
            .key("id", Type::Int)
            .field("name", Type::Varchar(60))
            .field("price", Type::Decimal(12, 2))
            .field("changed", Type::Timestamp)
            .field("note", Type::Text);
        let mut world = World::of(&[("from", from), ("to", to)]).entity(item).build().await;
        world.setup().await;
        for statement in backlog(from, transactions, rows) {
            world["from"].execute(&statement).await;
        }

        let began = Instant::now();
        world.agent.start();
        world.agent.ready_within(Duration::from_secs(60)).await;
        let ready = began.elapsed();
        world.agent.run(&["wait", "--timeout", "600s"]).await;
        let took = began.elapsed();

        let (used, (_, peak)) = (world.agent.processor_time(), world.agent.memory());
        let total = transactions * rows;
        let status = world.agent.status().await.unwrap();
        eprintln!(
            "{} to {}: {transactions} transactions of {rows} rows in {:.2} s (ready after {:.2} s): {:.0} rows/s, \
             {:.1} s of processor per million rows, peak {} MiB",
            from.name(),
            to.name(),
            took.as_secs_f64(),
            ready.as_secs_f64(),
            total as f64 / took.as_secs_f64(),
            used.as_secs_f64() * 1e6 / total as f64,
            peak >> 20
        );
        assert_eq!(status["systems"][1]["apply"]["transactions"], transactions, "{status}");
        assert!(peak < MEMORY_MAX, "{peak} bytes");
        world.compare().await.unwrap();
    }
}

#[tokio::test]
async fn a_backlog_from_postgresql_to_postgresql() {
    caught_up(Kind::Postgres17, Kind::Postgres15).await;
}

#[tokio::test]
async fn a_backlog_from_postgresql_to_mysql() {
    caught_up(Kind::Postgres17, Kind::Mysql).await;
}

#[tokio::test]
async fn a_backlog_from_mysql_to_postgresql() {
    caught_up(Kind::Mysql, Kind::Postgres17).await;
}

#[tokio::test]
async fn a_backlog_from_mariadb_to_mariadb() {
    caught_up(Kind::Mariadb, Kind::Mariadb11).await;
}
