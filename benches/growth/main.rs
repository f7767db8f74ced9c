//! How throughput and memory grow with the number of tables, of systems, of waiting changes, and
//! with the width of a row: `make bench-growth`. Writes GROWTH.md and its plots anew.
//!
//! Servers of its own, as durable as users' are, PostgreSQL 17 to PostgreSQL 17. Each point is one
//! backlog of inserts that the agent finds at its start; a copy that is not what its source is
//! ends the bench.
//!
//! | variable | default |
//! |---|---|
//! | `ANECHOIC_BENCH_SCALE` | 1: the full sizes; smaller ones are printed, and the page stays as it is |
//! | `ANECHOIC_BENCH_ONLY` | all: `tables systems backlog width` |
//! | `ANECHOIC_TEST_BINARY` | the agent of this build |
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // prints figures; a bench that cannot go on panics

#[allow(dead_code)] // the other benches use the rest
#[path = "../common.rs"]
mod common;
mod page;
mod plot;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{item, item_values, series};
use support::servers::{Db, Kind, Server};
use support::world::{Entity, Type, World};

const KIND: Kind = Kind::Postgres17;
/// In one transaction of the backlog.
const ROWS: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(3600);

/// One backlog, and what it took.
pub struct Point {
    /// What grows: so many of it.
    pub at: u64,
    /// Written at the source; each target got as many.
    pub rows: u64,
    pub targets: u64,
    /// Of content, in all rows.
    pub bytes: u64,
    /// From the agent's start until it reads and writes.
    pub ready: Duration,
    /// From there until the last row is in every target.
    pub took: Duration,
    pub agent: Duration,
    /// The agent's at its highest, bytes.
    pub memory: u64,
}

impl Point {
    pub fn rows_per_second(&self) -> f64 {
        (self.rows * self.targets) as f64 / self.took.as_secs_f64()
    }

    pub fn megabytes_per_second(&self) -> f64 {
        (self.bytes * self.targets) as f64 / 1e6 / self.took.as_secs_f64()
    }
}

/// A backlog: of which tables, for how many targets.
struct Backlog {
    at: u64,
    tables: Vec<Entity>,
    targets: u64,
    transactions: u64,
    rows: u64,
    /// Of content, in one row; 0: the rows are items.
    width: u64,
}

impl Backlog {
    fn items(at: u64, rows: u64) -> Backlog {
        let transactions = (rows / ROWS).max(1);
        Backlog { at, tables: vec![item()], targets: 1, transactions, rows: ROWS, width: 0 }
    }

    async fn world(&self, servers: &[Arc<Server>; 2]) -> World {
        let names: Vec<String> = (0..=self.targets).map(|number| format!("s{number}")).collect();
        let systems: Vec<(&str, Kind)> = names.iter().map(|name| (name.as_str(), KIND)).collect();
        let mut builder = World::of(&systems);
        for (number, name) in names.iter().enumerate() {
            builder = builder.on(name, &servers[number.min(1)]);
        }
        for table in self.tables.iter().chain([&Entity::new("done").key("id", Type::Int)]) {
            let mut table = table.clone().option_in(&names[0], "role = \"source\"");
            for target in &names[1..] {
                table = table.option_in(target, "role = \"target\"");
            }
            builder = builder.entity(table);
        }
        builder.build().await
    }

    /// Transaction by transaction, each into the next of the tables.
    async fn write(&self, db: &Db) {
        let count = self.tables.len();
        let n = format!("((i - 1) * {} + n)", self.rows);
        let values = match self.width {
            0 => item_values(KIND, &n),
            width => {
                let pieces = width.div_ceil(32);
                format!(
                    "{n}, (SELECT left(string_agg(md5(concat({n}, '-', piece)), ''), {width}) \
                     FROM generate_series(1, {pieces}) AS g(piece))"
                )
            }
        };
        let insert = match count {
            1 => {
                let table = &self.tables[0].name;
                format!("INSERT INTO {table} SELECT {values} FROM {}", series(KIND, self.rows))
            }
            _ => format!(
                "EXECUTE format('INSERT INTO t%s SELECT {} FROM {}', \
                 (i - 1) % {count} + 1) USING i",
                values.replace('\'', "''").replace('%', "%%").replace("(i - 1)", "($1 - 1)"),
                series(KIND, self.rows)
            ),
        };
        let mut session = db.session().await;
        session.execute("SET synchronous_commit = off").await;
        let block = format!(
            "DO $$ DECLARE i bigint; BEGIN FOR k IN 1..{} LOOP i := k; {insert}; COMMIT; END LOOP; END $$",
            self.transactions
        );
        session.execute(&block).await;
        session.execute("SET synchronous_commit = on").await;
        session.execute("INSERT INTO done VALUES (1)").await;
        db.admin().await.execute("CHECKPOINT").await;
    }

    async fn run(self, servers: &[Arc<Server>; 2]) -> Point {
        let mut world = self.world(servers).await;
        world.setup().await;
        world.agent.start();
        world.agent.ready_within(PATIENCE).await;
        world.agent.wait_quiet().await;
        world.agent.stop().await;
        self.write(&world.systems[0].db).await;

        let mut targets = Vec::new();
        for system in &world.systems[1..] {
            targets.push(system.db.session().await);
        }
        let first = self.tables[0].name.clone();
        let begun = Instant::now();
        world.agent.start();
        let mut ready = None;
        for session in &mut targets {
            while session.rows("SELECT id FROM done").await.is_empty() {
                assert!(world.agent.is_running() && begun.elapsed() < PATIENCE, "{}", world.agent.log());
                if ready.is_none() && !session.rows(&format!("SELECT 1 FROM {first} LIMIT 1")).await.is_empty() {
                    ready = Some(begun.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let all = begun.elapsed();
        let ready = ready.unwrap_or(all);
        let point = Point {
            at: self.at,
            rows: self.transactions * self.rows,
            targets: self.targets,
            bytes: self.transactions * self.rows * self.width,
            ready,
            took: (all - ready).max(Duration::from_millis(1)),
            agent: world.agent.processor_time(),
            memory: world.agent.memory().1,
        };
        world.agent.wait_quiet().await;
        for entity in &world.entities {
            let here = world.systems[0].db.rows(&entity.digest(&world.systems[0])).await;
            for system in &world.systems[1..] {
                assert_eq!(here, system.db.rows(&entity.digest(system)).await, "{} in {}", entity.name, system.name);
            }
        }
        world.agent.stop().await;
        for system in &world.systems {
            system.db.lend_ownership(true).await;
        }
        world.agent.run(&["teardown"]).await;
        for system in &world.systems {
            for entity in &world.entities {
                system.db.execute(&format!("DROP TABLE {}", world.table(&entity.name, &system.name))).await;
            }
        }
        for server in servers {
            server.admin().await.execute("CHECKPOINT").await;
        }
        point
    }
}

fn backlogs(what: &str, scale: f64) -> Vec<Backlog> {
    let table = |number: u64| {
        let mut table = item();
        table.name = format!("t{number}");
        table
    };
    let scaled = |rows: u64| (rows as f64 * scale) as u64;
    match what {
        "tables" => [1, 10, 100, 1000]
            .map(|count| Backlog {
                tables: (1..=count).map(table).collect(),
                ..Backlog::items(count, scaled(1_000_000))
            })
            .into(),
        "systems" => {
            [2, 4, 8].map(|count| Backlog { targets: count - 1, ..Backlog::items(count, scaled(500_000)) }).into()
        }
        "backlog" => [100_000, 1_000_000, 10_000_000].map(|rows| Backlog::items(scaled(rows), scaled(rows))).into(),
        "width" => [100, 1 << 10, 10 << 10, 100 << 10]
            .map(|width| {
                let rows = (scaled(200 << 20) / width).max(1);
                let wide = Entity::new("wide").key("id", Type::BigInt).field("body", Type::Text);
                let transactions = (rows / 100).max(1);
                Backlog { at: width, tables: vec![wide], targets: 1, transactions, rows: 100, width }
            })
            .into(),
        _ => panic!("ANECHOIC_BENCH_ONLY: there is no {what:?}"),
    }
}

async fn bench(scale: f64) -> Vec<(&'static str, Vec<Point>)> {
    let only = std::env::var("ANECHOIC_BENCH_ONLY").ok();
    let servers = [Arc::new(Server::durable(KIND).await), Arc::new(Server::durable(KIND).await)];
    let mut all = Vec::new();
    for what in ["tables", "systems", "backlog", "width"] {
        if only.as_ref().is_some_and(|only| !only.split_whitespace().any(|name| name == what)) {
            continue;
        }
        let mut points = Vec::new();
        for backlog in backlogs(what, scale) {
            let point = backlog.run(&servers).await;
            eprintln!(
                "  {what} {}: {:.0} rows/s; first row after {:.2} s; processor {:.2} s, {} MiB",
                point.at,
                point.rows_per_second(),
                point.ready.as_secs_f64(),
                point.agent.as_secs_f64(),
                point.memory >> 20
            );
            points.push(point);
        }
        all.push((what, points));
    }
    all
}

fn main() {
    let scale = std::env::var("ANECHOIC_BENCH_SCALE").map_or(1.0, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all = runtime.block_on(bench(scale));
    let page = page::page(&all);
    println!("{page}");
    if scale >= 1.0 && all.len() == 4 {
        page::write(&page, &all);
    }
}
