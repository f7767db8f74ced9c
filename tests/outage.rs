//! Servers that are restarted, crash, or cannot be reached, while all systems are written to:
//! the agent says what is wrong, recovers alone, and nothing is lost or doubled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::books::Books;
use crate::support::proxy::Side;
use crate::support::servers::{Kind, Session};
use crate::support::world::{Entity, Type, World};
use crate::support::{SOON, eventually};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

/// How long a server is out of reach.
fn outage() -> Duration {
    Duration::from_secs(if std::env::var_os("ANECHOIC_SOAK").is_some() { 30 } else { 5 })
}

/// One that the agent reaches through a proxy, on a server of its own; the others are shared.
async fn world(private: &str, option: &str) -> World {
    World::of(&THREE)
        .private(private)
        .system_option(private, option)
        .proxied(private)
        .entity(Entity::new("account").key("id", Type::Int).field("value", Type::Int).renamed())
        // No key: what is applied twice is there twice.
        .entity(Entity::new("ledger").field("account", Type::Int).field("amount", Type::Int))
        .start()
        .await
}

/// Writes in one system until it is stopped: a new account, an older one that changes, a line
/// in the ledger, as one transaction.
struct Writer {
    system: &'static str,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(world: &World, system: &'static str, number: u64) -> Writer {
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (account, id, value) = (
            world.table("account", system),
            world.column("account", "id", system),
            world.column("account", "value", system),
        );
        let transaction = move |n: u64| {
            let key = number * 1_000_000 + n;
            let older = number * 1_000_000 + n / 2;
            format!(
                "BEGIN; INSERT INTO {account} ({id}, {value}) VALUES ({key}, 0); \
                 UPDATE {account} SET {value} = {value} + 1 WHERE {id} = {older}; \
                 INSERT INTO ledger (account, amount) VALUES ({key}, 1); COMMIT"
            )
        };
        let db = &world[system];
        let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
        let (count, stopped) = (written.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut session: Option<Session> = None;
            while !stopped.load(Ordering::Relaxed) {
                let done = match &mut session {
                    Some(session) => session.try_execute(&transaction(count.load(Ordering::Relaxed))).await,
                    None => match Session::open_as(&server, &user, server.port, Some(&name)).await {
                        Ok(fresh) => {
                            session = Some(fresh);
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                };
                match done {
                    Ok(()) => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    // The server went away after the commit and before its answer.
                    Err(error) if error.to_lowercase().contains("duplicate") => {
                        count.fetch_add(1, Ordering::Relaxed);
                        session = None;
                    }
                    Err(_) => session = None,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Writer { system, written, stop, task }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// It goes on: another 20 transactions.
    async fn goes_on(&self) {
        let goal = self.written() + 20;
        eventually(SOON, || async {
            if self.written() >= goal { Ok(()) } else { Err(format!("{} stands still", self.system)) }
        })
        .await;
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.written.load(Ordering::Relaxed)
    }
}

struct Trial {
    world: World,
    /// The one in trouble.
    system: &'static str,
    writers: Vec<Writer>,
}

impl Trial {
    async fn start(system: &'static str) -> Trial {
        Self::with(system, "").await
    }

    async fn with(system: &'static str, option: &str) -> Trial {
        let world = world(system, option).await;
        let writers = (1..).zip(THREE).map(|(number, (name, _))| Writer::start(&world, name, number)).collect();
        let trial = Trial { world, system, writers };
        trial.goes_on().await;
        trial
    }

    async fn goes_on(&self) {
        for writer in &self.writers {
            writer.goes_on().await;
        }
    }

    /// `/ready` says 503, and names the system.
    async fn noticed(&self) -> String {
        eventually(SOON, || async {
            let (ready, body) = self.world.agent.readiness().await?;
            let body_is: serde_json::Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
            let reasons = body_is["reasons"].as_array().cloned().unwrap_or_default();
            let named = reasons
                .iter()
                .any(|r| r["system"] == self.system && r["detail"].as_str().is_some_and(|d| !d.is_empty()));
            if !ready && named {
                Ok(body)
            } else {
                Err(format!("{} is in trouble, and /ready says {body}", self.system))
            }
        })
        .await
    }

    /// The other two are kept in step meanwhile.
    async fn others_flow(&self) {
        let others: Vec<&str> = THREE.iter().map(|(name, _)| *name).filter(|name| *name != self.system).collect();
        for (from, to) in [(others[0], others[1]), (others[1], others[0])] {
            let writer = self.writers.iter().find(|w| w.system == from).unwrap();
            let number = THREE.iter().position(|(name, _)| *name == from).unwrap() as u64 + 1;
            writer.goes_on().await;
            let last = number * 1_000_000 + writer.written() - 1;
            let query = format!(
                "SELECT count(*) FROM {} WHERE {} = {last}",
                self.world.table("account", to),
                self.world.column("account", "id", to)
            );
            eventually(SOON, || async {
                match self.world[to].try_rows(&query).await?[0][0].as_deref() {
                    Some("1") => Ok(()),
                    _ => Err(format!("{to} does not get what {from} writes while {} is away", self.system)),
                }
            })
            .await;
        }
    }

    async fn recovered(&mut self, from: &str) {
        let began = Instant::now();
        self.world.agent.ready_within(SOON).await;
        eprintln!("{}: ready {} ms after {from}", self.system, began.elapsed().as_millis());
        self.goes_on().await;
    }

    async fn restart(&mut self) {
        let began = Instant::now();
        self.world.server(self.system).stop().await;
        let stopped = began.elapsed();
        eprintln!("{}: stopped within {} ms", self.system, stopped.as_millis());
        // A walsender keeps its server up until we have acknowledged everything. MySQL takes ten
        // seconds for every idle session, whoever has it.
        let patience = if self.system == "crm" { 10 } else { 40 };
        assert!(stopped < Duration::from_secs(patience), "{} waits for us: {stopped:?}", self.system);
        self.noticed().await;
        self.others_flow().await;
        self.world.server(self.system).start().await;
        self.recovered("a restart").await;
    }

    async fn crash(&mut self) {
        self.world.server(self.system).kill().await;
        self.noticed().await;
        self.world.server(self.system).start().await;
        self.recovered("a crash").await;
    }

    async fn refuse(&mut self) {
        self.world.proxy(self.system).refuse();
        self.noticed().await;
        self.others_flow().await;
        tokio::time::sleep(outage()).await;
        self.noticed().await;
        self.world.proxy(self.system).pass();
        self.recovered("it refused connections").await;
    }

    /// Nobody is told anything: only a deadline notices.
    async fn stall(&mut self) {
        let began = Instant::now();
        self.world.proxy(self.system).stall();
        let said = self.noticed().await;
        eprintln!("{}: a stall was noticed after {} ms: {said}", self.system, began.elapsed().as_millis());
        self.others_flow().await;
        tokio::time::sleep(outage().saturating_sub(began.elapsed())).await;
        self.world.proxy(self.system).pass();
        self.recovered("a stall").await;
    }

    async fn cut(&mut self) {
        for _ in 0..5 {
            let before = self.world.proxy(self.system).connections();
            self.world.proxy(self.system).cut();
            eventually(SOON, || async {
                match self.world.proxy(self.system).connections() > before {
                    true => Ok(()),
                    false => Err(format!("no new connection to {}", self.system)),
                }
            })
            .await;
            tokio::time::sleep(outage() / 10).await;
        }
        self.recovered("cuts").await;
    }

    async fn half_close(&mut self, towards: Side) {
        self.world.proxy(self.system).half_close(towards);
        tokio::time::sleep(outage() / 2).await;
        self.recovered("a half-close").await;
    }

    async fn every_kind_of_trouble(mut self) {
        self.restart().await;
        self.crash().await;
        self.refuse().await;
        self.stall().await;
        self.cut().await;
        self.half_close(Side::Agent).await;
        self.half_close(Side::Server).await;
        self.end().await;
    }

    /// Everything that was committed anywhere is everywhere, once.
    async fn end(self) {
        let mut written = 0;
        for writer in self.writers {
            written += writer.stop().await;
        }
        // The session that the world keeps is from before the restarts.
        let _ = self.world[self.system].try_rows("SELECT 1").await;
        self.world.quiet().await;
        let ledger = self.world.rows("ledger", self.system).await;
        assert_eq!(ledger.len() as u64, written);
        assert_eq!(self.world.rows("account", self.system).await.len() as u64, written);
        Books::read(&self.world.agent).await.assert_balanced(&THREE.map(|(name, _)| name));
    }
}

#[tokio::test]
async fn postgresql_in_every_kind_of_trouble() {
    Trial::start("crm").await.every_kind_of_trouble().await;
}

/// What a crash takes back there is applied again, and counted once.
#[tokio::test]
async fn postgresql_crashes_where_commits_wait_for_no_disk() {
    let mut trial = Trial::with("crm", "synchronous_commit = false").await;
    for _ in 0..4 {
        trial.crash().await;
    }
    trial.end().await;
}

#[tokio::test]
async fn mysql_in_every_kind_of_trouble() {
    Trial::start("shop").await.every_kind_of_trouble().await;
}

#[tokio::test]
async fn mariadb_in_every_kind_of_trouble() {
    Trial::start("erp").await.every_kind_of_trouble().await;
}

/// PostgreSQL waits for us when it is stopped: whatever it sent, it wants to see acknowledged. So it
/// hears of that at once, whether rows came, others' writes only, or nothing.
#[tokio::test]
async fn a_postgres_that_is_stopped_does_not_wait_for_the_agent() {
    for kind in [Kind::Postgres15, Kind::Postgres17] {
        let world = World::of(&[("crm", kind), ("shop", Kind::Mariadb)])
            .private("crm")
            .entity(Entity::new("account").key("id", Type::Int).field("value", Type::Int))
            .ddl("crm", "CREATE TABLE other (id int)")
            .start()
            .await;
        let mut took = Vec::new();
        for round in 0..3 {
            let write = ["INSERT INTO account VALUES (1, 1)", "INSERT INTO other VALUES (1)", "SELECT 1"][round];
            world["crm"].execute(write).await;
            let echo = format!("INSERT INTO account VALUES ({}, 1)", 10 + round);
            world["shop"].execute(&echo).await;
            world.quiet().await;
            world["crm"].execute("INSERT INTO other VALUES (2)").await;
            let began = Instant::now();
            world.server("crm").stop().await;
            took.push(began.elapsed());
            world.server("crm").start().await;
            world.agent.wait_quiet().await;
        }
        println!("{}: {took:?}", kind.name());
        let log = world.agent.log();
        assert!(!log.contains("has not yet synced"), "{log}");
        assert!(took.iter().all(|took| *took < Duration::from_millis(1500)), "{took:?}");
    }
}
