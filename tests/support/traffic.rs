//! Applications at work: writers that remember what their database acknowledged.
//!
//! Each transaction adds to a ledger that has no key, so that nothing can repair a loss or hide
//! a doubling, and in the same breath updates a balance of the writer's own, a row that writers
//! of every system fight for, and items that come and go:
//!
//! ```text
//! ledger (no key)   writer, n, amount      once each, in every system
//! account           own: the sum of the writer's ledger; contested: whoever wins, the same everywhere
//! item              inserted, changed, moved to another key, deleted
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::servers::{Server, Session};
use super::world::{Builder, Entity, Type, World};

const WRITERS_MAX: usize = 16;
/// What they were late by is made up for: a server's restart, say.
const LATE_MAX: Duration = Duration::from_secs(10);
const CONTESTED: u64 = 5;
/// Ledger rows of every 25th transaction.
const MANY: u64 = 40;

/// What the writers write; to be given to a world.
pub fn entities(builder: Builder) -> Builder {
    let ledger =
        Entity::new("ledger").field("writer", Type::Varchar(30)).field("n", Type::BigInt).field("amount", Type::Int);
    let account =
        Entity::new("account").key("id", Type::Int).field("balance", Type::BigInt).field("note", Type::Varchar(60));
    let item =
        Entity::new("item").key("id", Type::BigInt).field("label", Type::Text).field("price", Type::Decimal(12, 2));
    builder.entity(ledger).entity(account).entity(item)
}

/// The accounts, made in the first system: once, before there is traffic.
pub async fn open_accounts(world: &World) {
    world.systems[0].db.execute(&accounts(world)).await;
    world.quiet().await;
}

/// The statement that makes them.
pub fn accounts(world: &World) -> String {
    let mut ids: Vec<u64> = (1..=CONTESTED).collect();
    ids.extend((0..world.systems.len()).flat_map(|system| (0..WRITERS_MAX).map(move |writer| own(system, writer))));
    let rows: Vec<String> = ids.iter().map(|id| format!("({id}, 0, NULL)")).collect();
    format!("INSERT INTO account VALUES {}", rows.join(","))
}

fn own(system: usize, writer: usize) -> u64 {
    100 * (system as u64 + 1) + writer as u64
}

/// How the writers of one system go about it.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Two of them, each resting so long after each transaction.
    Rest(Duration),
    /// So many transactions a second, all together; what was late is made up for.
    PerSecond(u32),
}

impl From<Duration> for Pace {
    fn from(rest: Duration) -> Pace {
        Pace::Rest(rest)
    }
}

impl Pace {
    fn writers(self) -> usize {
        match self {
            Pace::Rest(_) => 2,
            Pace::PerSecond(_) => WRITERS_MAX,
        }
    }

    /// When the next transaction of a writer is due whose last one was due then.
    fn next(self, last: Instant) -> Instant {
        let now = Instant::now();
        match self {
            Pace::Rest(rest) => now + rest,
            Pace::PerSecond(rate) => {
                let late = now.checked_sub(LATE_MAX).unwrap_or(now);
                (last + Duration::from_secs(1) * self.writers() as u32 / rate).max(late)
            }
        }
    }
}

/// What one writer knows.
#[derive(Debug, Default)]
struct Notes {
    name: String,
    system: usize,
    account: u64,
    /// Transactions that the database acknowledged, and those of which it said nothing.
    acknowledged: Vec<u64>,
    unknown: Vec<u64>,
}

/// Writers at work; [`stop`](Traffic::stop) them and check what became of it.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Notes>>,
    done: Vec<Notes>,
    count: Arc<AtomicU64>,
    began: Instant,
    round: u64,
    /// When the last round began, and how long those before it took, all together.
    started: Instant,
    at_work: Duration,
}

impl Traffic {
    pub fn new() -> Traffic {
        Traffic {
            stop: Arc::default(),
            writers: Vec::new(),
            done: Vec::new(),
            count: Arc::default(),
            began: Instant::now(),
            round: 0,
            started: Instant::now(),
            at_work: Duration::ZERO,
        }
    }

    /// Writers in these systems.
    pub fn start(&mut self, world: &World, systems: &[&str], pace: impl Into<Pace>) {
        let pace = pace.into();
        self.stop = Arc::default();
        self.started = Instant::now();
        self.round += 1;
        for name in systems {
            let index = world.systems.iter().position(|system| system.name == *name).unwrap();
            let db = &world.systems[index].db;
            for writer in 0..pace.writers() {
                let client = Client {
                    server: db.server.clone(),
                    user: db.application.clone(),
                    database: db.name.clone(),
                    session: None,
                };
                let notes = Notes {
                    name: format!("{name}-{writer}-{}", self.round),
                    system: index,
                    account: own(index, writer),
                    ..Notes::default()
                };
                let first_item = (index as u64 * 100 + writer as u64 + 1) * 1_000_000_000 + self.round * 10_000_000;
                let (stop, count) = (self.stop.clone(), self.count.clone());
                self.writers.push(tokio::spawn(write(client, notes, first_item, pace, stop, count)));
            }
        }
    }

    /// Transactions acknowledged so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions are acknowledged.
    pub async fn pass(&self, transactions: u64) {
        let target = self.count() + transactions;
        super::eventually(super::SOON, || async {
            let count = self.count();
            if count >= target { Ok(()) } else { Err(format!("{count} of {target} transactions")) }
        })
        .await;
    }

    /// Writers finish the transaction in hand.
    pub async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            self.done.push(writer.await.unwrap());
        }
        self.at_work += self.started.elapsed();
    }

    /// What each system acknowledged in a second, of the time in which there were writers.
    fn rates(&self, world: &World) -> String {
        let rate = |system: usize| {
            let notes = self.done.iter().filter(|notes| notes.system == system);
            notes.map(|notes| notes.acknowledged.len()).sum::<usize>() as f64 / self.at_work.as_secs_f64()
        };
        let systems = world.systems.iter().enumerate();
        systems.map(|(at, system)| format!("{} {:.0}/s", system.name, rate(at))).collect::<Vec<_>>().join(", ")
    }

    /// After `stop` and quiet: all systems are equal, every acknowledged transaction is in each
    /// once, and balances are what the ledger says. Returns what was seen, for the test's output.
    pub async fn check(&self, world: &World) -> String {
        assert!(self.writers.is_empty(), "stop the writers first");
        if let Err(difference) = world.compare().await {
            panic!("the systems differ: {difference}");
        }
        let mut rows = 0;
        for system in &world.systems {
            let ledger = Ledger::read(world, &system.name).await;
            rows = ledger.rows;
            for notes in &self.done {
                ledger.check(&system.name, notes);
            }
            for (account, sum) in self.sums(&ledger) {
                let balance = system.db.value(&format!("SELECT balance FROM account WHERE id = {account}")).await;
                assert_eq!(balance, Some(sum.to_string()), "{}: account {account}", system.name);
            }
        }
        let unknown: usize = self.done.iter().map(|notes| notes.unknown.len()).sum();
        format!(
            "{} transactions ({unknown} unknown), {rows} ledger rows in {:.1} s: {}",
            self.count(),
            self.began.elapsed().as_secs_f64(),
            self.rates(world)
        )
    }

    fn sums(&self, ledger: &Ledger) -> BTreeMap<u64, i64> {
        let mut sums = BTreeMap::new();
        for notes in &self.done {
            *sums.entry(notes.account).or_default() += ledger.sums.get(&notes.name).copied().unwrap_or(0);
        }
        sums
    }
}

/// How often each transaction stands in one system's ledger, and what each writer's rows add to.
struct Ledger {
    counts: BTreeMap<(String, u64), u64>,
    sums: BTreeMap<String, i64>,
    rows: usize,
}

impl Ledger {
    async fn read(world: &World, system: &str) -> Ledger {
        let rows = world.rows("ledger", system).await;
        let mut ledger = Ledger { counts: BTreeMap::new(), sums: BTreeMap::new(), rows: rows.len() };
        for row in rows {
            let [Some(writer), Some(n), Some(amount)] = row.as_slice() else { panic!("{system}: {row:?}") };
            *ledger.counts.entry((writer.clone(), n.parse().unwrap())).or_default() += 1;
            *ledger.sums.entry(writer.clone()).or_default() += amount.parse::<i64>().unwrap();
        }
        ledger
    }

    fn check(&self, system: &str, notes: &Notes) {
        let count = |n: &u64| self.counts.get(&(notes.name.clone(), *n)).copied().unwrap_or(0);
        let wrong = |n: &&u64| count(n) != rows_of(**n);
        let lost: Vec<_> = notes.acknowledged.iter().filter(wrong).map(|n| (n, count(n))).collect();
        assert!(lost.is_empty(), "{system}: of {}, lost or doubled: {:?}", notes.name, &lost[..lost.len().min(10)]);
        let partly = notes.unknown.iter().find(|n| count(n) != 0 && count(n) != rows_of(**n));
        assert_eq!(partly, None, "{system}: {} is there in part or twice", notes.name);
        let written = self.counts.keys().filter(|(writer, _)| *writer == notes.name).count();
        let known = notes.acknowledged.len() + notes.unknown.len();
        assert!(written <= known, "{system}: {} wrote {known} transactions, {written} are there", notes.name);
    }
}

/// Ledger rows of transaction `n`.
fn rows_of(n: u64) -> u64 {
    if n.is_multiple_of(25) { MANY } else { 1 }
}

fn transaction(notes: &Notes, n: u64, first_item: u64) -> String {
    let (name, account) = (&notes.name, notes.account);
    let amount = (n * 7919 % 2001) as i64 - 1000;
    let ledger: Vec<String> = (0..rows_of(n)).map(|_| format!("('{name}', {n}, {amount})")).collect();
    let sum = amount * rows_of(n) as i64;
    let mut sql = format!(
        "BEGIN; INSERT INTO ledger VALUES {}; UPDATE account SET balance = balance + {sum}, note = 'at {n}' WHERE id = {account};",
        ledger.join(",")
    );
    let item = first_item + n;
    match n % 4 {
        0 => sql += &format!("UPDATE account SET note = '{name} {n}' WHERE id = {};", 1 + n / 4 % CONTESTED),
        1 => sql += &format!("INSERT INTO item VALUES ({item}, 'Łódź 😀 {n}', {n}.25);"),
        2 => sql += &format!("UPDATE item SET price = price + 1, label = NULL WHERE id = {};", item - 1),
        _ if n % 8 == 3 => sql += &format!("UPDATE item SET id = {item} WHERE id = {};", item - 2),
        _ => sql += &format!("DELETE FROM item WHERE id = {};", item - 2),
    }
    sql + "COMMIT"
}

struct Client {
    server: Arc<Server>,
    user: String,
    database: String,
    session: Option<Session>,
}

enum Done {
    Committed,
    RolledBack,
    Unknown,
}

impl Client {
    async fn run(&mut self, sql: &str) -> Done {
        if self.session.is_none() {
            let opened = Session::open_as(&self.server, &self.user, self.server.port, Some(&self.database)).await;
            let Ok(opened) = opened else { return Done::RolledBack };
            self.session = Some(opened);
        }
        let session = self.session.as_mut().unwrap();
        if session.try_execute(sql).await.is_ok() {
            return Done::Committed;
        }
        // a deadlock or a lost connection: one that still answers did not commit
        if session.try_execute("ROLLBACK").await.is_ok() {
            return Done::RolledBack;
        }
        self.session = None;
        Done::Unknown
    }
}

async fn write(
    mut client: Client,
    mut notes: Notes,
    first_item: u64,
    pace: Pace,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Notes {
    let (mut n, mut due) = (1, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        match client.run(&transaction(&notes, n, first_item)).await {
            Done::Committed => {
                notes.acknowledged.push(n);
                count.fetch_add(1, Ordering::Relaxed);
                n += 1;
            }
            Done::Unknown => {
                notes.unknown.push(n);
                n += 1;
            }
            Done::RolledBack => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        due = pace.next(due);
        sleep_until(due.into()).await;
    }
    notes
}
