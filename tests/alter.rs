//! Tables altered while both systems are written to: followed, or stopped before the first row
//! that would be misread, and gone on with after the fix that the message names.
//!
//! Each engine is once the one that is altered. At the end of each step the rows are compared
//! value by value.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use super::support::eventually;
use super::support::servers::{Kind, Rows, Session};
use super::support::world::{Entity, Type, World};

/// What a look every few seconds has to find, on a busy machine.
const LOOKED_AGAIN: Duration = Duration::from_secs(60);

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const PG15: (&str, Kind) = ("crm", Kind::Postgres15);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);

/// Writers that go on whatever the database answers: a column that is not there yet, a table
/// that has another name just now.
#[derive(Default)]
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// In each system its statements in turn; `{new}` is an id that nobody else writes, `{any}`
    /// one that was written before, by whomever, and `{n}` counts.
    fn start(world: &World, statements: &[(&str, &[&str])]) -> Load {
        let mut load = Load::default();
        for (system, statements) in statements {
            let index = world.systems.iter().position(|s| s.name == *system).unwrap() as u64;
            let db = &world[*system];
            let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
            let statements: Vec<String> = statements.iter().map(|s| (*s).to_owned()).collect();
            let (stop, done) = (load.stop.clone(), load.done.clone());
            load.writers.push(tokio::spawn(async move {
                let mut session = None;
                for n in done.fetch_add(1, Ordering::Relaxed) * 10_000.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if session.is_none() {
                        session = Session::open_as(&server, &user, server.port, Some(&name)).await.ok();
                    }
                    let Some(open) = &mut session else { continue };
                    let sql = &statements[(n % statements.len() as u64) as usize];
                    let ids = [("{new}", 2 * n + 1_000 + index), ("{any}", 1 + n % 20), ("{n}", n % 1000)];
                    let sql = ids.iter().fold(sql.clone(), |sql, (name, id)| sql.replace(name, &id.to_string()));
                    match open.try_execute(&sql).await {
                        Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => session = None,
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }));
        }
        load
    }

    /// So many more statements succeed.
    async fn pass(&self, count: u64) {
        let target = self.done.load(Ordering::Relaxed) + count;
        eventually(LOOKED_AGAIN, || async {
            let done = self.done.load(Ordering::Relaxed);
            if done >= target { Ok(()) } else { Err(format!("{done} of {target} statements")) }
        })
        .await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.await.unwrap();
        }
    }
}

async fn rows(world: &World, system: &str, select: &str) -> Rows {
    let mut rows = world[system].rows(select).await;
    rows.sort();
    rows
}

/// Everything is applied, and both selects, one per system, show the same.
async fn equal(world: &World, selects: [(&str, &str); 2]) {
    world.agent.wait_quiet().await;
    let [(a, of_a), (b, of_b)] = selects;
    let (of_a, of_b) = (rows(world, a, of_a).await, rows(world, b, of_b).await);
    assert!(!of_a.is_empty());
    let only = |these: &Rows, those: &Rows| {
        these.iter().filter(|row| !those.contains(row)).take(5).cloned().collect::<Vec<_>>()
    };
    assert!(of_a == of_b, "only in {a}: {:?}\nonly in {b}: {:?}", only(&of_a, &of_b), only(&of_b, &of_a));
}

fn state<'s>(status: &'s Value, system: &str) -> (&'s str, &'s str) {
    let system = status["systems"].as_array().unwrap().iter().find(|s| s["name"] == *system).unwrap();
    (system["state"].as_str().unwrap_or(""), system["error"].as_str().unwrap_or(""))
}

/// The system is stopped, and says this.
async fn stopped(world: &World, system: &str, says: &[&str]) {
    let check = |status: &Value| {
        let (state, error) = state(status, system);
        let missing = says.iter().find(|part| !error.contains(**part));
        match (state, missing) {
            ("stopped", None) => Ok(()),
            ("stopped", Some(part)) => Err(format!("no {part:?} in the error")),
            _ => Err("not stopped".into()),
        }
    };
    world.agent.until(LOOKED_AGAIN, check).await;
}

async fn new_columns_by_name(a: (&'static str, Kind), b: (&'static str, Kind)) {
    let note = Entity::new("note").key("id", Type::BigInt).field("text", Type::Varchar(40));
    let world = World::of(&[a, b]).entity(note).start().await;
    let (a, b) = (a.0, b.0);
    let all = "SELECT id, text, x, y FROM note";
    world[a].execute("INSERT INTO note (id, text) VALUES (1, 'before')").await;
    let insert = "INSERT INTO note (id, text) VALUES ({new}, 'n{n}')";
    let update = "UPDATE note SET text = 'u{n}' WHERE id = {any}";
    let load = Load::start(
        &world,
        &[
            (
                a,
                &[
                    insert,
                    update,
                    "INSERT INTO note (id, text, x) VALUES ({new}, 'x', {n})",
                    "UPDATE note SET x = {n} WHERE id = {any}",
                ],
            ),
            (
                b,
                &[
                    insert,
                    update,
                    "INSERT INTO note (id, text, y) VALUES ({new}, 'y', {n})",
                    "UPDATE note SET y = {n} WHERE id = {any}",
                ],
            ),
        ],
    );
    load.pass(30).await;

    // a has it first: its rows wait for b
    world[a].execute("ALTER TABLE note ADD COLUMN x int DEFAULT 7").await;
    load.pass(30).await;
    stopped(&world, a, &["column \"x\"", "goes on by itself", "ignore = [\"x\"]"]).await;
    world[b].execute("ALTER TABLE note ADD COLUMN x int DEFAULT 7").await;
    world
        .agent
        .until(LOOKED_AGAIN, |status| match state(status, a) {
            ("streaming", _) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;

    // the other way round, and while the agent is away
    load.pass(30).await;
    world[b].execute("ALTER TABLE note ADD COLUMN y int").await;
    load.pass(30).await;
    let mut world = world;
    world.agent.stop().await;
    load.pass(30).await;
    world.agent.start();
    stopped(&world, b, &["column \"y\""]).await;
    world[a].execute("ALTER TABLE note ADD COLUMN y int").await;
    world.agent.ready().await;
    load.pass(30).await;
    load.stop().await;

    equal(&world, [(a, all), (b, all)]).await;
    let given = "SELECT count(*) FROM note WHERE x <> 7 AND y IS NULL OR y IS NOT NULL";
    assert!(world[a].value(given).await.unwrap().parse::<u64>().unwrap() > 10);
    assert_eq!(
        world[b].value("SELECT x FROM note WHERE text = 'before' OR id = 1").await,
        world[a].value("SELECT x FROM note WHERE text = 'before' OR id = 1").await
    );
}

#[tokio::test]
async fn a_column_bound_by_name_that_postgres_gets_first_carries_every_value() {
    new_columns_by_name(PG15, MY).await;
}

#[tokio::test]
async fn a_column_bound_by_name_that_mysql_gets_first_carries_every_value() {
    new_columns_by_name(MY, MARIA).await;
}

#[tokio::test]
async fn a_column_bound_by_name_that_mariadb_gets_first_carries_every_value() {
    new_columns_by_name(MARIA, PG).await;
}
