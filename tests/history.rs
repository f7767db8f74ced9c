//! A history checker: people write a few records in two to four systems at once, while the agent stands
//! still, dies, or loses its connections, and servers die; then quiet. What the databases acknowledged is remembered, and
//! all of it must be accounted for.
//!
//! ```text
//! article   few keys, whatever anybody does to them     all systems hold the same rows
//! tally     differences alone                           the exact sum of all that was acknowledged
//! ledger    a row for each transaction, without a key   each once, everywhere
//! trail     what the journal says was done              each row that was written, once, with its images, and
//!                                                       what became of it; replayed, it is what the tables hold
//! marker    seen together with the ledger, all the time exactly the rows of the entries up to it
//! books     what the agent says it captured             journaled, filtered or rejected: nothing else
//! ```
//!
//! A schedule is a seed, which is printed: `ANECHOIC_SEED=n` runs that one alone. `ANECHOIC_SCHEDULES=n` sets how
//! many run in each world.

#![allow(clippy::print_stdout)] // seeds are printed

mod account;
mod watch;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use self::account::{Account, Acknowledged, Quiet};
use self::watch::{Watch, Watching};
use self::write::{Done, Planned, Random, TALLIES, write};
use super::support::books::Books;
use super::support::servers::Kind;
use super::support::soak;
use super::support::trail::operations;
use super::support::world::{Builder, Entity, Type, World};

/// The trail is read after so many schedules.
const TRAIL_EVERY: usize = 10;
/// By how much a commit may be told to be earlier than it was: MariaDB tells whole seconds.
const CLOCK: Duration = Duration::from_secs(2);

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
    account: Account,
    /// Since the trail was read.
    since: SystemTime,
    acknowledged: BTreeMap<u64, Acknowledged>,
    quiets: Vec<Quiet>,
    watching: Vec<Watching>,
    watches: Vec<Watch>,
    looks: usize,
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
        for system in &world.systems {
            system.db.show_marker().await;
        }
        let watching = world.systems.iter().map(|system| Watching::new(&system.db, &system.name)).collect();
        let partial = options.iter().any(|line| line.starts_with("merge") || *line == r#"scope = "field""#);
        let mut history = History {
            world,
            numbers: BTreeSet::new(),
            sums: [0; TALLIES as usize],
            next: 0,
            kills: 0,
            private,
            account: Account::of(partial),
            since: SystemTime::now(),
            acknowledged: BTreeMap::new(),
            quiets: Vec::new(),
            watching,
            watches: Vec::new(),
            looks: 0,
        };
        let (first, session) = (history.number(), history.world.systems[0].db.session().await);
        for done in write(session, vec![Planned::first(first)]).await.acknowledged {
            history.acknowledged(0, done, 0);
        }
        history.world.quiet().await;
        history
    }

    async fn schedule(&mut self, seed: u64) {
        let mut random = Random(seed);
        let count = self.world.systems.len();
        let first = self.next + 1;
        self.watching.iter().for_each(|watching| watching.begin(first));
        let mut writers = Vec::new();
        for system in 0..count {
            let count = 3 + random.below(8);
            let plans: Vec<Planned> = (0..count).map(|_| Planned::random(&mut random, self.number())).collect();
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
        for (system, writer) in writers.into_iter().enumerate() {
            let written = writer.await.expect("a writer ends");
            written.acknowledged.into_iter().for_each(|done| self.acknowledged(system, done, seed));
            unknown.extend(written.unknown.map(|done| (system, done)));
        }
        self.heal(fault).await;
        self.world.quiet().await;
        for (system, done) in unknown {
            let query = format!("SELECT count(*) FROM ledger WHERE n = {}", done.planned.number);
            if self.world.systems[0].db.value(&query).await.as_deref() == Some("1") {
                self.acknowledged(system, done, seed);
            }
        }
        self.watches.extend(self.watching.iter().map(|watching| watching.end(seed)));
        self.check(seed).await;
    }

    fn acknowledged(&mut self, system: usize, Done { planned, effects }: Done, seed: u64) {
        self.numbers.insert(planned.number);
        self.sums.iter_mut().zip(planned.added).for_each(|(sum, added)| *sum += added);
        let system = self.world.systems[system].name.clone();
        self.acknowledged.insert(planned.number, Acknowledged { system, effects, seed });
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

    async fn check(&mut self, seed: u64) {
        let first = &self.world.systems[0].name;
        let tally = self.world.by_key("tally", first).await;
        for (id, row) in &tally {
            let (id, found): (usize, i64) = (id.parse().unwrap(), row["pieces"].as_deref().unwrap().parse().unwrap());
            assert_eq!(found, self.sums[id], "seed {seed}: tally {id} is not the sum of what was acknowledged");
        }
        let mut ledger = Vec::new();
        for row in self.world.rows("ledger", first).await {
            ledger.push(row[0].as_deref().unwrap().parse::<u64>().unwrap());
        }
        ledger.sort_unstable();
        let expected: Vec<u64> = self.numbers.iter().copied().collect();
        assert_eq!(ledger, expected, "seed {seed}: not each acknowledged transaction once");
        let article = self.world.by_key("article", first).await;
        let head = self.world.agent.status().await.unwrap()["journal"]["head"].as_u64().unwrap();
        self.quiets.push(Quiet { head, seed, tables: vec![("tally", tally), ("article", article)] });
        if self.quiets.len() == TRAIL_EVERY {
            self.check_trail().await;
        }
    }

    /// What was acknowledged and seen since the last time, against what the agent says that it did.
    async fn check_trail(&mut self) {
        let since = humantime::format_rfc3339_micros(self.since - CLOCK).to_string();
        self.since = SystemTime::now();
        let told = operations(&self.world.agent.run(&["audit", "--since", &since]).await);
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let written = self.account.take(&told, acknowledged, &std::mem::take(&mut self.quiets));
        self.looks += self.watches.drain(..).map(|watch| watch.check(&written)).sum::<usize>();
    }

    async fn end(mut self, schedules: u64) {
        self.check_trail().await;
        let names: Vec<String> = self.world.systems.iter().map(|system| system.name.clone()).collect();
        let books = Books::read(&self.world.agent).await;
        books.assert_balanced(&names.iter().map(String::as_str).collect::<Vec<_>>());
        println!(
            "{schedules} schedules, {} transactions acknowledged, {} kills, {} conflicts since the last; {:?} in the \
             trail; {} different looks at markers",
            self.numbers.len(),
            self.kills,
            books.get("entity_conflicts_total", "article"),
            self.account.counts,
            self.looks,
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
