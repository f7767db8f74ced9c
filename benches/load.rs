//! How fast a load copies, beside the plain tools of the same servers in the same run.
//!
//! Servers of its own, as durable as users' are. Rows of seven mixed columns are copied by the
//! agent's first run (from its start until the last row is committed in the target, through the
//! journal, with both captures running), and by what an administrator would type:
//!
//! ```text
//! PostgreSQL ─▶ PostgreSQL    psql: COPY … TO STDOUT | psql: COPY … FROM STDIN
//! PostgreSQL ─▶ MySQL         mysql: LOAD DATA LOCAL INFILE of a file that was written before
//! MySQL ─▶ PostgreSQL         mysql --batch --quick: SELECT … | psql: COPY … FROM STDIN
//! ```
//!
//! | variable | default |
//! |---|---|
//! | `ANECHOIC_BENCH_ROWS` | 2000000 |
//! | `ANECHOIC_BENCH_ROUNDS` | 3 |
//! | `ANECHOIC_BENCH_WAYS` | all: `pg17-mysql mysql-pg17 pg17-pg17`, and more pairs of kinds |
//! | `ANECHOIC_TEST_BINARY` | the agent of this build |
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // prints figures; a bench that cannot go on panics

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{at_servers, client, item, item_values, kind, number, processor, series, shell, spread};
use support::servers::{Db, Kind, Server};
use support::world::World;

const REQUIRED_RATIO: f64 = 0.5;
const MEMORY_MAX: u64 = 150 << 20;
const PATIENCE: Duration = Duration::from_secs(1800);

async fn fill(db: &Db, rows: u64) {
    let (values, series) = (item_values(db.kind, "n"), series(db.kind, rows));
    db.execute(&format!("INSERT INTO item SELECT {values} FROM {series}")).await;
    settle(db).await;
}

/// What was written before is not to be waited for in what is measured.
async fn settle(db: &Db) {
    if db.kind.is_postgres() {
        db.execute("ANALYZE item").await;
        db.admin().await.execute("CHECKPOINT").await;
    } else {
        db.execute("ANALYZE TABLE item").await;
    }
}

/// The plain tool into a table of its own: how long it took, and the processor time of servers
/// and clients.
async fn plain(source: &Db, target: &Db, rows: u64) -> (Duration, Duration) {
    let spent = || at_servers(&[&source.server, &target.server]) + processor(|pid, _| pid == std::process::id());
    let before = spent();
    let took = copy(source, target, rows).await;
    (took, spent() - before)
}

async fn copy(source: &Db, target: &Db, rows: u64) -> Duration {
    const COLUMNS: &str = "id, name, price, made, changed, active, stock";
    let like = if target.kind.is_postgres() { "(LIKE item INCLUDING ALL)" } else { "LIKE item" };
    target.execute(&format!("CREATE TABLE plain {like}")).await;
    let took = match (source.kind.is_postgres(), target.kind.is_postgres()) {
        (true, true) => {
            let (out, into) =
                (client(source, "-c 'COPY item TO STDOUT'"), client(target, "-c 'COPY plain FROM STDIN'"));
            shell(&format!("{out} | {into}")).await
        }
        (false, true) => {
            let out = client(source, &format!("--batch --quick -N -e 'SELECT {COLUMNS} FROM item'"));
            let into = client(target, "-c \"COPY plain FROM STDIN (NULL 'NULL')\"");
            shell(&format!("{out} | {into}")).await
        }
        (postgres, false) => {
            let file = std::env::temp_dir().join(format!("anechoic-bench-{}", target.name));
            let out = match postgres {
                true => client(
                    source,
                    &format!("-c 'COPY (SELECT {} FROM item) TO STDOUT'", COLUMNS.replace("active", "active::int")),
                ),
                false => client(source, &format!("--batch --quick -N -e 'SELECT {COLUMNS} FROM item'")),
            };
            shell(&format!("{out} > {}", file.display())).await;
            let load = format!("LOAD DATA LOCAL INFILE '{}' INTO TABLE plain CHARACTER SET utf8mb4", file.display());
            let took = shell(&client(target, &format!("-e \"{load}\""))).await;
            std::fs::remove_file(&file).unwrap();
            took
        }
    };
    assert_eq!(target.value("SELECT count(*) FROM plain").await, Some(rows.to_string()));
    target.execute("DROP TABLE plain").await;
    settle(target).await;
    took
}

struct Measured {
    took: Duration,
    memory: u64,
    agent: Duration,
    servers: Duration,
}

async fn load(world: &mut World, rows: u64) -> Measured {
    world.setup().await;
    let [source, target] = [&world.systems[0].db, &world.systems[1].db];
    let before = at_servers(&[&source.server, &target.server]);
    let begun = Instant::now();
    world.agent.start();
    loop {
        if let Ok(status) = world.agent.status().await {
            let head = &status["journal"]["head"];
            let over = status["loads"].as_array().is_some_and(|loads| !loads.is_empty() && loads[0]["state"] == "done");
            if over && status["systems"].as_array().unwrap()[1]["apply"]["seq"] == *head {
                break;
            }
        }
        assert!(begun.elapsed() < PATIENCE && world.agent.is_running(), "{}", world.agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    let servers = at_servers(&[&source.server, &target.server]) - before;
    let (agent, (_, memory)) = (world.agent.processor_time(), world.agent.memory());
    world.agent.wait_quiet().await;
    world.agent.stop().await;
    let sums = "SELECT count(*), sum(id), sum(price), sum(stock), max(name), max(changed) FROM item";
    let (here, there) = (source.rows(sums).await, target.rows(sums).await);
    assert_eq!(here[0][..4], there[0][..4]);
    assert_eq!(here[0][0], Some(rows.to_string()));
    Measured { took, memory, agent, servers }
}

async fn way(from: Kind, to: Kind, rows: u64, rounds: u64) -> bool {
    let [source, target] = [Arc::new(Server::durable(from).await), Arc::new(Server::durable(to).await)];
    println!("{} ─▶ {}, {rows} rows of seven columns", from.name(), to.name());
    let (mut ratios, mut memory) = (Vec::new(), 0);
    for round in 1..=rounds {
        let systems = [("crm", from), ("shop", to)];
        let builder = World::of(&systems).on("crm", &source).on("shop", &target);
        let mut world = builder.entity(item()).build().await;
        fill(&world["crm"], rows).await;
        // In turn, so that neither always finds what the other has left.
        let first = if round % 2 == 1 { Some(plain(&world["crm"], &world["shop"], rows).await) } else { None };
        let measured = load(&mut world, rows).await;
        let (by_plain, plain_processor) = match first {
            Some(took) => took,
            None => plain(&world["crm"], &world["shop"], rows).await,
        };
        for system in &world.systems {
            system.db.lend_ownership(true).await;
        }
        world.agent.run(&["teardown"]).await;
        for db in ["crm", "shop"] {
            world[db].execute("DROP TABLE item").await;
        }
        let rate = |took: Duration| rows as f64 / took.as_secs_f64();
        let per_row = |spent: Duration| spent.as_secs_f64() * 1e6 / rows as f64;
        let ratio = rate(measured.took) / rate(by_plain);
        println!(
            "  round {round}: agent {:>7.0} rows/s, plain {:>7.0} rows/s, ratio {ratio:.2}; processor per row: agent \
             {:.2} µs, its servers {:.2} µs, plain {:.2} µs; agent's peak memory {} MiB",
            rate(measured.took),
            rate(by_plain),
            per_row(measured.agent),
            per_row(measured.servers),
            per_row(plain_processor),
            measured.memory >> 20,
        );
        ratios.push(ratio);
        memory = memory.max(measured.memory);
    }
    let (least, median, most) = spread(ratios);
    let met = median >= REQUIRED_RATIO && memory < MEMORY_MAX;
    println!(
        "  ratio min {least:.2} median {median:.2} max {most:.2} (required {REQUIRED_RATIO}), memory {} MiB (below {}): {}",
        memory >> 20,
        MEMORY_MAX >> 20,
        if met { "met" } else { "NOT MET" }
    );
    met
}

fn main() {
    let (rows, rounds) = (number("ANECHOIC_BENCH_ROWS", 2_000_000), number("ANECHOIC_BENCH_ROUNDS", 3));
    let ways = std::env::var("ANECHOIC_BENCH_WAYS").unwrap_or_else(|_| "pg17-mysql mysql-pg17 pg17-pg17".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut met = true;
    for pair in ways.split_whitespace() {
        let (from, to) = pair.split_once('-').unwrap_or_else(|| panic!("{pair:?} is no pair of kinds"));
        met &= runtime.block_on(way(kind(from), kind(to), rows, rounds));
    }
    std::process::exit(i32::from(!met));
}
