//! A history checker: people write a few records in two to four systems at once, while the agent stands
//! still, dies, or loses its connections, and servers die; then quiet. What the databases acknowledged is remembered, and
//! all of it must be accounted for.
//!
//! ```text
//! article   few keys, whatever anybody does to them     all systems hold the same rows
//! tally     differences alone                           the exact sum of all that was acknowledged
//! ledger    a row for each transaction, without a key   each once, everywhere
//! books     what the agent says it captured             journaled, filtered or rejected: nothing else
//! ```
//!
//! A schedule is a seed, which is printed: `ANECHOIC_SEED=n` runs that one alone. `ANECHOIC_SCHEDULES=n` sets how
//! many run in each world.

#![allow(clippy::print_stdout)] // seeds are printed

use std::collections::BTreeSet;
use std::time::Duration;

use super::support::books::Books;
use super::support::servers::{Kind, Session};
use super::support::soak;
use super::support::world::{Builder, Entity, Type, World};

const KEYS: u64 = 4;
const TALLIES: u64 = 2;

/// splitmix64: small, seeded, and the same everywhere.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One transaction, and what it means if it is acknowledged.
struct Planned {
    statements: Vec<String>,
    number: u64,
    /// By tally.
    added: [i64; TALLIES as usize],
    pause: Duration,
}

fn plan(random: &mut Random, number: u64) -> Planned {
    let mut planned = Planned {
        statements: vec![format!("INSERT INTO ledger (n) VALUES ({number})")],
        number,
        added: [0; TALLIES as usize],
        pause: Duration::from_millis(random.below(6)),
    };
    for _ in 0..1 + random.below(3) {
        let (key, value) = (random.below(KEYS), random.below(1000));
        let text = match random.below(10) {
            0..2 => format!(
                "INSERT INTO article (id, name, place, pieces, best) VALUES ({key}, 'i{value}', 'p', {value}, 0)"
            ),
            2..4 => format!("UPDATE article SET name = 'n{value}' WHERE id = {key}"),
            4 => format!("UPDATE article SET place = 'p{value}', best = {value} WHERE id = {key}"),
            5 => format!("UPDATE article SET pieces = pieces - {} WHERE id = {key}", value % 7),
            6 => format!("DELETE FROM article WHERE id = {key}"),
            7 => format!("UPDATE article SET id = {} WHERE id = {key}", (key + 1) % KEYS),
            _ => {
                let (tally, difference) = (random.below(TALLIES), random.below(201) as i64 - 100);
                planned.added[tally as usize] += difference;
                format!(
                    "UPDATE tally SET pieces = pieces + ({difference}), worth = worth + ({difference}.25) WHERE id = {tally}"
                )
            }
        };
        planned.statements.push(text);
    }
    planned
}

/// What became of plans.
#[derive(Default)]
struct Written {
    acknowledged: Vec<Planned>,
    /// The connection broke at its commit: the ledger tells.
    unknown: Option<Planned>,
}

/// Writes one plan after the other, as long as there is a server.
async fn write(mut session: Session, plans: Vec<Planned>) -> Written {
    let mut written = Written::default();
    for planned in plans {
        tokio::time::sleep(planned.pause).await;
        if session.try_execute("BEGIN").await.is_err() {
            return written;
        }
        let mut refused = false;
        for statement in &planned.statements {
            // A key that is there, a deadlock: the transaction is given up.
            refused = session.try_execute(statement).await.is_err();
            if refused {
                break;
            }
        }
        let done = !refused && session.try_execute("COMMIT").await.is_ok();
        if done {
            written.acknowledged.push(planned);
        } else if session.try_execute("ROLLBACK").await.is_err() {
            written.unknown = Some(planned);
            return written;
        }
    }
    written
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Paused,
    Killed,
    Cut(usize),
    Stalled(usize),
    /// A server, as by a power cut.
    Dead(usize),
}

struct History {
    world: World,
    /// Of all transactions so far.
    numbers: BTreeSet<u64>,
    sums: [i64; TALLIES as usize],
    next: u64,
    kills: u64,
    /// Its servers are its own: they may die.
    private: bool,
}

impl History {
    async fn new(systems: &[(&str, Kind)], options: &[&str], private: bool) -> History {
        let tally = Entity::new("tally")
            .key("id", Type::Int)
            .field("pieces", Type::BigInt)
            .field("worth", Type::Decimal(20, 2))
            .option(r#"merge = { pieces = "add", worth = "add" }"#);
        let article = Entity::new("article")
            .key("id", Type::Int)
            .field("name", Type::Varchar(40))
            .field("place", Type::Varchar(40))
            .field("pieces", Type::BigInt)
            .field("best", Type::Int);
        let article = options.iter().fold(article, |article, line| article.option(line));
        let ledger = Entity::new("ledger").field("n", Type::BigInt);
        let builder = World::of(systems).entity(tally).entity(article).entity(ledger);
        let own = |builder: Builder, name: &str| if private { builder.private(name) } else { builder };
        let world = systems.iter().fold(builder, |builder, (name, _)| own(builder.proxied(name), name)).start().await;
        let rows: Vec<String> = (0..TALLIES).map(|id| format!("({id}, 0, 0)")).collect();
        let first = &world.systems[0].db;
        first.execute(&format!("INSERT INTO tally (id, pieces, worth) VALUES {}", rows.join(", "))).await;
        world.quiet().await;
        History { world, numbers: BTreeSet::new(), sums: [0; TALLIES as usize], next: 0, kills: 0, private }
    }

    async fn schedule(&mut self, seed: u64) {
        let mut random = Random(seed);
        let count = self.world.systems.len();
        let mut writers = Vec::new();
        for system in 0..count {
            let plans: Vec<Planned> = (0..3 + random.below(8)).map(|_| plan(&mut random, self.number())).collect();
            let session = self.world.systems[system].db.session().await;
            writers.push(tokio::spawn(write(session, plans)));
        }
        let fault = match random.below(8) {
            3.. if self.private => Fault::Dead(random.below(count as u64) as usize),
            0..2 => Fault::Paused,
            2 => Fault::Killed,
            3..5 => Fault::Cut(random.below(count as u64) as usize),
            5 => Fault::Stalled(random.below(count as u64) as usize),
            _ => Fault::None,
        };
        tokio::time::sleep(Duration::from_millis(random.below(15))).await;
        self.strike(fault).await;
        let mut unknown = Vec::new();
        for writer in writers {
            let written = writer.await.expect("a writer ends");
            written.acknowledged.iter().for_each(|planned| self.acknowledged(planned));
            unknown.extend(written.unknown);
        }
        self.heal(fault).await;
        self.world.quiet().await;
        for planned in unknown {
            let query = format!("SELECT count(*) FROM ledger WHERE n = {}", planned.number);
            if self.world.systems[0].db.value(&query).await.as_deref() == Some("1") {
                self.acknowledged(&planned);
            }
        }
        self.check(seed).await;
    }

    fn acknowledged(&mut self, planned: &Planned) {
        self.numbers.insert(planned.number);
        self.sums.iter_mut().zip(planned.added).for_each(|(sum, added)| *sum += added);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    async fn strike(&mut self, fault: Fault) {
        let proxy = |at: usize| self.world.proxy(&self.world.systems[at].name);
        match fault {
            Fault::None => {}
            Fault::Paused => self.world.agent.pause(),
            Fault::Cut(at) => proxy(at).cut(),
            Fault::Stalled(at) => proxy(at).stall(),
            Fault::Dead(at) => {
                self.kills += 1;
                self.world.server(&self.world.systems[at].name).kill().await;
            }
            Fault::Killed => {
                self.kills += 1;
                self.world.agent.kill();
            }
        }
    }

    async fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::None => {}
            Fault::Paused => self.world.agent.resume(),
            Fault::Dead(at) => {
                let system = &self.world.systems[at];
                self.world.server(&system.name).start().await;
                // Of the session that died with it.
                let _ = system.db.try_rows("SELECT 1").await;
            }
            Fault::Cut(at) | Fault::Stalled(at) => self.world.proxy(&self.world.systems[at].name).pass(),
            Fault::Killed => {
                self.world.agent.restart_after_kill();
                self.world.agent.ready().await;
            }
        }
    }

    async fn check(&self, seed: u64) {
        let first = &self.world.systems[0].name;
        for row in self.world.rows("tally", first).await {
            let id: usize = row[0].as_deref().unwrap().parse().unwrap();
            let found: i64 = row[1].as_deref().unwrap().parse().unwrap();
            assert_eq!(found, self.sums[id], "seed {seed}: tally {id} is not the sum of what was acknowledged");
        }
        let mut ledger = Vec::new();
        for row in self.world.rows("ledger", first).await {
            ledger.push(row[0].as_deref().unwrap().parse::<u64>().unwrap());
        }
        ledger.sort_unstable();
        let expected: Vec<u64> = self.numbers.iter().copied().collect();
        assert_eq!(ledger, expected, "seed {seed}: not each acknowledged transaction once");
    }

    async fn end(self, schedules: u64) {
        let names: Vec<String> = self.world.systems.iter().map(|system| system.name.clone()).collect();
        let books = Books::read(&self.world.agent).await;
        books.assert_balanced(&names.iter().map(String::as_str).collect::<Vec<_>>());
        println!(
            "{schedules} schedules, {} transactions acknowledged, {} kills, {} conflicts since the last",
            self.numbers.len(),
            self.kills,
            books.get("entity_conflicts_total", "article")
        );
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn histories(systems: &[(&str, Kind)], options: &[&str]) {
    run(History::new(systems, options, false).await, if soak() { 500 } else { 40 }).await;
}

async fn run(mut history: History, count: u64) {
    let seeds: Vec<u64> = match from_env("ANECHOIC_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first: u64 = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
            let count = from_env("ANECHOIC_SCHEDULES").unwrap_or(count);
            (0..count).map(|n| first.wrapping_add(n)).collect()
        }
    };
    for seed in &seeds {
        println!("seed {seed}");
        history.schedule(*seed).await;
    }
    history.end(seeds.len() as u64).await;
}

const CRM: (&str, Kind) = ("crm", Kind::Postgres17);
const SHOP: (&str, Kind) = ("shop", Kind::Mysql);
const ERP: (&str, Kind) = ("erp", Kind::Mariadb11);
const HUB: (&str, Kind) = ("hub", Kind::Postgres15);

const MERGED: &str = r#"merge = { pieces = "add", best = "max" }"#;

#[tokio::test]
async fn of_two_systems_by_authority() {
    histories(&[CRM, ERP], &[]).await;
}

#[tokio::test]
async fn of_two_systems_by_the_latest_field() {
    histories(&[SHOP, CRM], &[r#"conflict = "latest""#, r#"scope = "field""#, MERGED]).await;
}

#[tokio::test]
async fn of_three_systems_by_authority_with_merged_fields() {
    histories(&[SHOP, CRM, ERP], &[r#"authority = ["erp", "crm", "shop"]"#, r#"on_delete = "update_wins""#, MERGED])
        .await;
}

#[tokio::test]
async fn of_three_systems_by_field_where_deletes_win() {
    histories(&[CRM, SHOP, ERP], &[r#"scope = "field""#, r#"on_delete = "delete_wins""#, MERGED]).await;
}

#[tokio::test]
#[ignore = "servers that come up again take their time: make soak"]
async fn of_two_systems_whose_servers_die() {
    let history = History::new(&[CRM, ERP], &[r#"conflict = "latest""#, MERGED], true).await;
    run(history, 100).await;
}

#[tokio::test]
async fn of_four_systems_where_a_person_decides() {
    histories(&[HUB, CRM, SHOP, ERP], &[r#"conflict = "manual""#, r#"merge = { pieces = "add" }"#]).await;
}
