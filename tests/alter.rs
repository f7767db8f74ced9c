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
use super::support::quarantine::until_held;
use super::support::servers::{Kind, Rows, Session};
use super::support::world::{Entity, Type, World};

/// What a look every few seconds has to find, on a busy machine.
const LOOKED_AGAIN: Duration = Duration::from_secs(60);

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const PG15: (&str, Kind) = ("crm", Kind::Postgres15);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);

/// Each writer has numbers of its own.
static ROUND: AtomicU64 = AtomicU64::new(0);

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
            let db = &world[*system];
            let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
            let statements: Vec<String> = statements.iter().map(|s| (*s).to_owned()).collect();
            let (stop, done) = (load.stop.clone(), load.done.clone());
            load.writers.push(tokio::spawn(async move {
                let mut session = None;
                for n in ROUND.fetch_add(1, Ordering::Relaxed) * 10_000.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if session.is_none() {
                        session = Session::open_as(&server, &user, server.port, Some(&name)).await.ok();
                    }
                    let Some(open) = &mut session else { continue };
                    let sql = &statements[(n % statements.len() as u64) as usize];
                    let ids = [("{new}", n + 1_000), ("{any}", 1 + n % 20), ("{n}", n % 1000)];
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

async fn flowing(world: &World) {
    let check = |status: &Value| {
        let stands = world.systems.iter().find(|system| state(status, &system.name).0 != "streaming");
        stands.map_or(Ok(()), |system| Err(format!("{} does not stream", system.name)))
    };
    world.agent.until(LOOKED_AGAIN, check).await;
}

fn edit(world: &World, from: &str, to: &str) {
    let text = std::fs::read_to_string(world.agent.config()).unwrap();
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    std::fs::write(world.agent.config(), text.replace(from, to)).unwrap();
}

fn renewals(world: &World) -> usize {
    world.agent.log().matches("the flows are made anew").count()
}

/// `ALTER TABLE … MODIFY` or `ALTER COLUMN … TYPE`.
fn retype(kind: Kind, table: &str, column: &str, ty: &str) -> String {
    match kind.is_postgres() {
        true => format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {ty} USING {column}::{ty}"),
        false => format!("ALTER TABLE {table} MODIFY {column} {ty}"),
    }
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

/// `item`, by lists of columns: plain names in the first system, the second has its own.
async fn items(a: (&'static str, Kind), b: (&'static str, Kind)) -> World {
    let item = Entity::new("item")
        .key("id", Type::BigInt)
        .field("name", Type::Varchar(20))
        .field("qty", Type::Int)
        .field("state", Type::Enum(&["new", "old"]))
        .renamed();
    let mut world = World::of(&[a, b]).entity(item);
    if a.1.is_postgres() {
        world = world
            .ddl(a.0, "CREATE TYPE st AS ENUM ('new', 'old'); ALTER TABLE item ALTER state TYPE st USING state::st");
    }
    world.start().await
}

struct Items<'w> {
    world: &'w World,
    a: &'static str,
    b: &'static str,
}

impl Items<'_> {
    fn of_b(&self, sql: &str) -> String {
        ["item", "id", "name", "qty", "state"].iter().fold(sql.to_owned(), |sql, name| {
            let words = sql.split(' ').map(|word| {
                let bare = word.trim_matches(['(', ')', ',']);
                if bare == *name { word.replace(name, &format!("{name}_{}", self.b)) } else { word.to_owned() }
            });
            words.collect::<Vec<_>>().join(" ")
        })
    }

    fn load(&self) -> Load {
        self.load_named("name")
    }

    /// In the first system the name's column is called this.
    fn load_named(&self, name: &str) -> Load {
        let all = [
            "INSERT INTO item ( id, name, qty, state ) VALUES ({new}, 'n{n}', {n}, 'new')",
            "INSERT INTO item ( id, name, qty, state ) VALUES ({any}, 'n{n}', {n}, 'new')",
            "UPDATE item SET name = 'u{n}', state = 'old' WHERE id = {any}",
            "UPDATE item SET qty = qty + 1 WHERE id = {any}",
            "DELETE FROM item WHERE id = {any}",
        ];
        let of_a = all.map(|sql| sql.replace(" name", &format!(" {name}")));
        let of_b = all.map(|sql| self.of_b(sql));
        let text = |all: &'_ [String; 5]| all.iter().map(|sql| sql.clone().leak() as &str).collect::<Vec<_>>();
        Load::start(self.world, &[(self.a, &text(&of_a)), (self.b, &text(&of_b))])
    }

    async fn equal(&self) {
        self.equal_in("id, name, qty, state").await;
    }

    async fn equal_in(&self, columns: &str) {
        let of_a = format!("SELECT {columns} FROM item");
        let of_b = self.of_b(&format!("SELECT {} FROM item", columns.replace("title", "name")));
        equal(self.world, [(self.a, &of_a), (self.b, &of_b)]).await;
    }

    /// Altered amid writes; then both are equal. Returns how often the flows were made anew.
    async fn under_load(&self, a: &[String], b: &[String]) -> usize {
        let before = renewals(self.world);
        let load = self.load();
        load.pass(20).await;
        for sql in a {
            self.world[self.a].execute(sql).await;
            load.pass(20).await;
        }
        for sql in b {
            self.world[self.b].execute(&self.of_b(sql)).await;
            load.pass(20).await;
        }
        load.stop().await;
        self.equal().await;
        renewals(self.world) - before
    }
}

async fn followed(a: (&'static str, Kind), b: (&'static str, Kind)) {
    let world = items(a, b).await;
    let (of_a, of_b) = (a.1, b.1);
    let items = Items { world: &world, a: a.0, b: b.0 };
    let sql = |sql: &str| vec![sql.to_owned()];

    // what no binding names changes nothing
    let add = if of_a.is_postgres() { "" } else { " FIRST" };
    let renewed = items.under_load(&sql(&format!("ALTER TABLE item ADD COLUMN extra int DEFAULT 3{add}")), &[]).await;
    assert_eq!(renewed, 0, "added");
    let renewed = items.under_load(&sql("ALTER TABLE item DROP COLUMN extra"), &[]).await;
    assert_eq!(renewed, 0, "dropped");

    // another order, a default, NOT NULL
    if of_a.is_postgres() {
        items.under_load(&sql("ALTER TABLE item ALTER qty SET DEFAULT 1, ALTER qty SET NOT NULL"), &[]).await;
    } else {
        items.under_load(&sql("ALTER TABLE item MODIFY name varchar(20) AFTER state"), &[]).await;
        items.under_load(&sql("ALTER TABLE item MODIFY qty int NOT NULL DEFAULT 1"), &[]).await;
    }

    // wider: what the other has no room for yet is set aside until it has
    items.under_load(&[retype(of_a, "item", "name", "varchar(200)"), retype(of_a, "item", "qty", "bigint")], &[]).await;
    let long = "x".repeat(150);
    world[a.0].execute("DELETE FROM item WHERE id = 1").await;
    world[a.0].execute("INSERT INTO item (id, name, qty, state) VALUES (1, 'n', 5, 'new')").await;
    world[a.0].execute(&format!("UPDATE item SET name = '{long}', qty = 5000000000 WHERE id = 1")).await;
    until_held(&world, 1).await;
    for (column, ty) in [("name", "varchar(200)"), ("qty", "bigint")] {
        world[b.0].execute(&retype(of_b, &format!("item_{}", b.0), &format!("{column}_{}", b.0), ty)).await;
    }
    until_held(&world, 0).await;
    items.equal().await;

    // an enum extended at its end
    let labels = "enum('new','old','lost')";
    world[a.0]
        .execute(&if of_a.is_postgres() {
            "ALTER TYPE st ADD VALUE 'lost'".to_owned()
        } else {
            retype(of_a, "item", "state", labels)
        })
        .await;
    world[a.0].execute("UPDATE item SET state = 'lost' WHERE id = 1").await;
    if !of_b.is_postgres() {
        until_held(&world, 1).await;
        world[b.0].execute(&retype(of_b, &format!("item_{}", b.0), &format!("state_{}", b.0), labels)).await;
        until_held(&world, 0).await;
    }
    items.under_load(&[], &[]).await;

    // away and back: who writes meanwhile finds no table
    let load = items.load();
    load.pass(20).await;
    world[a.0].execute("ALTER TABLE item RENAME TO item_away").await;
    world[a.0].execute("DELETE FROM item_away WHERE id = 4").await;
    world[a.0].execute("INSERT INTO item_away (id, name, qty, state) VALUES (4, 'away', 4, 'new')").await;
    load.pass(20).await;
    world[a.0].execute("ALTER TABLE item_away RENAME TO item").await;
    load.pass(20).await;
    flowing(&world).await;
    load.stop().await;
    items.equal().await;

    // replaced by another table that has been kept equal to it
    let load = items.load();
    load.pass(20).await;
    replace(&world, a.0).await;
    load.pass(30).await;
    load.stop().await;
    flowing(&world).await;
    items.equal().await;
    world[a.0].execute("UPDATE item SET name = 'in the new one' WHERE id = 1").await;
    items.equal().await;
}

/// As tools do that alter tables online: a copy, kept up to date, takes the name in one step.
async fn replace(world: &World, system: &str) {
    let db = &world[system];
    let mut admin = db.admin().await;
    if db.kind.is_postgres() {
        db.execute("CREATE TABLE item_new (LIKE item INCLUDING ALL)").await;
        admin.execute("ALTER TABLE item_new REPLICA IDENTITY FULL").await;
        admin.execute(&format!("ALTER PUBLICATION anechoic_{} ADD TABLE item_new", world.agent.id)).await;
        admin
            .execute(
                "BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE; INSERT INTO item_new SELECT * FROM item; \
                 ALTER TABLE item RENAME TO item_old; ALTER TABLE item_new RENAME TO item; COMMIT",
            )
            .await;
        db.execute("DROP TABLE item_old").await;
        return;
    }
    admin.execute("CREATE TABLE item_new LIKE item").await;
    let put = "REPLACE INTO item_new (id, name, qty, state) VALUES (NEW.id, NEW.name, NEW.qty, NEW.state)";
    for (event, action) in [("INSERT", put), ("UPDATE", put), ("DELETE", "DELETE FROM item_new WHERE id = OLD.id")] {
        let trigger = format!("CREATE TRIGGER item_{event} AFTER {event} ON item FOR EACH ROW {action}");
        admin.execute(&trigger).await;
    }
    admin.execute("INSERT IGNORE INTO item_new SELECT * FROM item").await;
    admin.execute("RENAME TABLE item TO item_old, item_new TO item").await;
    admin.execute("DROP TABLE item_old").await;
}

#[tokio::test]
async fn what_can_be_followed_in_postgres_is_followed() {
    followed(PG, MY).await;
}

#[tokio::test]
async fn what_can_be_followed_in_mysql_is_followed() {
    followed(MY, MARIA).await;
}

#[tokio::test]
async fn what_can_be_followed_in_mariadb_is_followed() {
    followed(MARIA, PG15).await;
}

async fn stopped_and_mended(a: (&'static str, Kind), b: (&'static str, Kind)) {
    let mut world = items(a, b).await;
    let (a, of_a, b, of_b) = (a.0, a.1, b.0, b.1);

    // a bound column renamed: the file says what it was called; the second time while the agent is away
    let load = Items { world: &world, a, b }.load();
    load.pass(30).await;
    world[a].execute("ALTER TABLE item RENAME COLUMN name TO title").await;
    stopped(&world, a, &["no column \"name\"", "formerly"]).await;
    load.pass(30).await;
    load.stop().await;
    let load = Items { world: &world, a, b }.load_named("title");
    load.pass(30).await;
    world.agent.stop().await;
    edit(&world, "\"name\" = \"name\"", "name = { column = \"title\", formerly = [\"name\"] }");
    world.agent.start();
    world.agent.ready().await;
    load.pass(30).await;
    world.agent.stop().await;
    load.pass(30).await;
    world[a].execute("ALTER TABLE item RENAME COLUMN title TO name").await;
    load.stop().await;
    let load = Items { world: &world, a, b }.load();
    load.pass(30).await;
    edit(
        &world,
        "name = { column = \"title\", formerly = [\"name\"] }",
        "name = { column = \"name\", formerly = [\"title\"] }",
    );
    world.agent.start();
    world.agent.ready().await;
    load.pass(30).await;
    load.stop().await;
    Items { world: &world, a, b }.equal().await;

    // another type that has no exact form in common with the other's: until that is changed too
    let load = Items { world: &world, a, b }.load();
    load.pass(20).await;
    let ty = if of_a.is_postgres() { "text" } else { "varchar(30)" };
    world[a].execute(&retype(of_a, "item", "qty", ty)).await;
    load.pass(20).await;
    stopped(&world, a, &["no exact common form"]).await;
    let ty = if of_b.is_postgres() { "text" } else { "varchar(30)" };
    world[b].execute(&retype(of_b, &format!("item_{b}"), &format!("qty_{b}"), ty)).await;
    world.agent.ready().await;
    load.stop().await;
    world[a].execute("UPDATE item SET qty = '7 or more' WHERE id > 5").await;
    Items { world: &world, a, b }.equal().await;

    // a bound column dropped, and added again: it goes on with what rows have of it
    let load = Items { world: &world, a, b }.load();
    load.pass(20).await;
    world[a].execute("ALTER TABLE item DROP COLUMN name").await;
    world[a].execute("UPDATE item SET qty = 'x' WHERE id > 10").await;
    stopped(&world, a, &["no column \"name\""]).await;
    world[a].execute("ALTER TABLE item ADD COLUMN name varchar(20)").await;
    world.agent.ready().await;
    load.pass(20).await;
    load.stop().await;
    world.agent.wait_quiet().await;
    world[a].execute("UPDATE item SET name = 'again'").await;
    Items { world: &world, a, b }.equal().await;

    // dropped for good: taken out of the file
    let load = Items { world: &world, a, b }.load();
    load.pass(20).await;
    world[a].execute("ALTER TABLE item DROP COLUMN qty").await;
    world[a].execute("UPDATE item SET name = 'without' WHERE id > 10").await;
    stopped(&world, a, &["no column \"qty\""]).await;
    world.agent.stop().await;
    edit(&world, "\"qty\" = \"qty\"\n", "");
    world.agent.start();
    world.agent.ready().await;
    load.stop().await;
    Items { world: &world, a, b }.equal_in("id, name, state").await;

    // the table renamed for good: the file says what it was called when those rows were logged
    world.agent.stop().await;
    world[a].execute("UPDATE item SET name = 'before' WHERE id > 15").await;
    world[a].execute("ALTER TABLE item RENAME TO thing").await;
    world[a].execute("UPDATE thing SET name = 'after' WHERE id < 5").await;
    edit(&world, "table = \"item\"", "table = \"thing\"");
    world.agent.start();
    assert_ne!(world.agent.exited(LOOKED_AGAIN).await.code(), Some(0));
    assert!(world.agent.log().contains("formerly = ["), "the file has to say it");
    edit(&world, "table = \"thing\"", "table = \"thing\"\nformerly = [\"item\"]");
    world.agent.start();
    world.agent.ready().await;
    let of_b = format!("SELECT id_{b}, name_{b}, state_{b} FROM item_{b}");
    equal(&world, [(a, "SELECT id, name, state FROM thing"), (b, &of_b)]).await;
}

#[tokio::test]
async fn what_cannot_be_followed_in_postgres_stops_and_goes_on_after_the_named_fix() {
    stopped_and_mended(PG, MY).await;
}

#[tokio::test]
async fn what_cannot_be_followed_in_mysql_stops_and_goes_on_after_the_named_fix() {
    stopped_and_mended(MY, MARIA).await;
}

#[tokio::test]
async fn what_cannot_be_followed_in_mariadb_stops_and_goes_on_after_the_named_fix() {
    stopped_and_mended(MARIA, PG15).await;
}

/// A publication lists tables by identity: the new one is in nobody's stream, and to add it in
/// silence would hide what was written to it meanwhile.
#[tokio::test]
async fn a_table_replaced_by_one_that_is_not_published_is_told_of_before_anything_flows() {
    let mut world = items(PG, MY).await;
    let (a, b) = (PG.0, MY.0);
    world[a].execute("INSERT INTO item (id, name, qty, state) VALUES (1, 'a', 1, 'new')").await;
    Items { world: &world, a, b }.equal().await;
    world.agent.stop().await;
    world[a].execute("CREATE TABLE item_new (LIKE item INCLUDING ALL)").await;
    let swap = "BEGIN; INSERT INTO item_new SELECT * FROM item; ALTER TABLE item RENAME TO item_old; \
                ALTER TABLE item_new RENAME TO item; COMMIT";
    world[a].execute(swap).await;
    world[a].execute("INSERT INTO item (id, name, qty, state) VALUES (2, 'unseen', 2, 'new')").await;

    world.agent.start();
    assert_ne!(world.agent.exited(LOOKED_AGAIN).await.code(), Some(0));
    let log = world.agent.log();
    assert!(log.contains("was replaced by another one") && log.contains("REPLICA IDENTITY FULL;"), "{log}");

    world[a].execute("ALTER TABLE item REPLICA IDENTITY FULL").await;
    let publish = format!("ALTER PUBLICATION anechoic_{} ADD TABLE item", world.agent.id);
    world[a].admin().await.execute(&publish).await;
    world[a].execute("UPDATE item SET qty = qty").await;
    world.agent.start();
    world.agent.ready().await;
    Items { world: &world, a, b }.equal().await;
}

/// No log tells of rows that leave with their partition, or of an identity that is too weak: looking at
/// the tables does, and a row that would be misread stops the flow.
#[tokio::test]
async fn partitions_that_come_and_go_are_told_of_and_nothing_is_misread() {
    let note = Entity::new("note").key("id", Type::Int).field("text", Type::Varchar(40));
    let mut world = World::of(&[PG, MY])
        .entity(note)
        .ddl(
            PG.0,
            "DROP TABLE note; CREATE TABLE note (id int PRIMARY KEY, text varchar(40)) PARTITION BY RANGE (id); \
             CREATE TABLE note_1 PARTITION OF note FOR VALUES FROM (0) TO (10); \
             CREATE TABLE note_2 PARTITION OF note FOR VALUES FROM (10) TO (20); \
             CREATE TABLE note_3 (LIKE note INCLUDING ALL)",
        )
        .start()
        .await;
    let (a, b) = (PG.0, MY.0);
    let all = "SELECT id, text FROM note";
    world[a].execute("INSERT INTO note VALUES (1, 'a'), (11, 'b')").await;
    world[b].execute("UPDATE note SET text = 'c' WHERE id = 11").await;
    world[b].execute("INSERT INTO note VALUES (2, 'd'), (12, 'e')").await;
    equal(&world, [(a, all), (b, all)]).await;

    world.agent.stop().await;
    world[a].execute("ALTER TABLE note DETACH PARTITION note_2").await;
    world.agent.start();
    world.agent.ready().await;
    let log = world.agent.log();
    assert!(
        log.contains("partition public.note_2 was detached or dropped") && log.contains("anechoic verify"),
        "{log}"
    );
    let verified = world.agent.command(&["verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "the rows that left are different");
    world[b].execute("DELETE FROM note WHERE id >= 10").await;
    equal(&world, [(a, all), (b, all)]).await;

    world[a].execute("ALTER TABLE note ATTACH PARTITION note_3 FOR VALUES FROM (20) TO (30)").await;
    world[a].execute("INSERT INTO note VALUES (21, 'f')").await;
    equal(&world, [(a, all), (b, all)]).await;
    world[a].execute("UPDATE note SET text = 'g' WHERE id = 21").await;
    stopped(
        &world,
        a,
        &["partition public.note_3 of public.note", "ALTER TABLE \"public\".\"note_3\" REPLICA IDENTITY FULL"],
    )
    .await;
    assert_eq!(world[b].value("SELECT text FROM note WHERE id = 21").await.as_deref(), Some("f"));
    world.agent.stop().await;
    world.agent.start();
    assert_ne!(world.agent.exited(LOOKED_AGAIN).await.code(), Some(0));
    let log = world.agent.log();
    assert!(log.contains("ALTER TABLE \"public\".\"note_3\" REPLICA IDENTITY FULL;"), "{log}");
}

/// A bound table that is dropped takes its rows along without naming them: nothing of that is guessed
/// at elsewhere, and the system stands still, saying so.
async fn dropped(a: (&'static str, Kind), b: (&'static str, Kind)) {
    let mut world = items(a, b).await;
    let (of_a, a, b) = (a.1, a.0, b.0);
    world[a].execute("INSERT INTO item (id, name, qty, state) VALUES (1, 'a', 1, 'new'), (2, 'b', 2, 'old')").await;
    Items { world: &world, a, b }.equal().await;
    let create = match of_a.is_postgres() {
        true => "CREATE TABLE item (id bigint PRIMARY KEY, name varchar(20), qty int, state st)".to_owned(),
        false => world[a].rows("SHOW CREATE TABLE item").await[0][1].clone().unwrap(),
    };
    let of_b = |sql: &str| Items { world: &world, a, b }.of_b(sql);
    let count = of_b("SELECT count(*) FROM item");

    world[a].execute("DROP TABLE item").await;
    world[b].execute(&of_b("UPDATE item SET name = 'c' WHERE id = 1")).await;
    let says: &[&str] = if of_a.is_postgres() {
        &["there is no table public.item"]
    } else {
        &["TRUNCATE", "DROP TABLE", "load --resync"]
    };
    stopped(&world, a, says).await;
    assert_eq!(world[b].value(&count).await.as_deref(), Some("2"), "what was dropped there is kept here");

    // another one under the name
    world[a].execute(&create).await;
    world[a].execute("INSERT INTO item (id, name, qty, state) VALUES (7, 'unseen', 7, 'new')").await;
    if !of_a.is_postgres() {
        world.agent.stop().await;
        world.agent.start();
        stopped(&world, a, says).await;
        assert_eq!(world[b].value(&count).await.as_deref(), Some("2"));
        return;
    }
    stopped(&world, a, &["was replaced by another one", "ADD TABLE \"public\".\"item\""]).await;
    world[a].execute("ALTER TABLE item REPLICA IDENTITY FULL").await;
    let publish = format!("ALTER PUBLICATION anechoic_{} ADD TABLE item", world.agent.id);
    world[a].admin().await.execute(&publish).await;
    world[a].execute("UPDATE item SET qty = qty").await;
    flowing(&world).await;
    world[b].execute(&of_b("UPDATE item SET qty = 22 WHERE id = 2")).await;
    let both = of_b("SELECT id, name, qty, state FROM item");
    Items { world: &world, a, b }.equal().await;
    assert_eq!(rows(&world, b, &both).await.len(), 3, "1 and 2 were written since, 7 was said once more");
}

#[tokio::test]
async fn a_dropped_table_stops_postgres_until_another_one_is_published() {
    dropped(PG, MY).await;
}

#[tokio::test]
async fn a_dropped_table_stops_mysql() {
    dropped(MY, MARIA).await;
}

#[tokio::test]
async fn a_dropped_table_stops_mariadb() {
    dropped(MARIA, PG15).await;
}

/// What was carried by its name and is gone is an error to `run`, so it is one to `check`, which reads
/// what was decided, and writes nothing.
#[tokio::test]
async fn check_judges_tables_as_the_next_start_would() {
    let note = Entity::new("note").key("id", Type::Int).field("text", Type::Varchar(40)).field("x", Type::Int);
    let mut world = World::of(&[PG, MY]).entity(note).start().await;
    world.agent.stop().await;
    world[PG.0].execute("ALTER TABLE note DROP COLUMN x").await;
    let says = "column \"x\" is gone from the table and was carried until now";
    let decided = world.agent.data_dir().join("columns.json");
    let kept = std::fs::read(&decided).unwrap();

    let output = world.agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains(says), "{output:?}");
    assert_eq!(std::fs::read(&decided).unwrap(), kept);
    world.agent.start();
    assert_ne!(world.agent.exited(LOOKED_AGAIN).await.code(), Some(0));
    assert!(world.agent.log().contains(says), "{}", world.agent.log());

    std::fs::write(&decided, "half").unwrap();
    let output = world.agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("judged as at a first start"), "{output:?}");
    // What was decided went with the journal: that is said, and none is made.
    std::fs::remove_dir_all(world.agent.data_dir()).unwrap();
    let output = world.agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("anechoic teardown, then anechoic setup"), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(says), "{output:?}");
    assert!(!world.agent.data_dir().exists());
}

/// In PostgreSQL no log tells of it, and nobody else need write to it: the next look at the tables does.
#[tokio::test]
async fn a_dropped_table_of_postgres_is_told_of_without_a_write() {
    let world = items(PG, MY).await;
    let (a, b) = (PG.0, MY.0);
    // while something is held, the tables are looked at every few seconds
    world[a].execute("ALTER TABLE item ALTER name TYPE varchar(200)").await;
    let long = "x".repeat(150);
    world[a].execute(&format!("INSERT INTO item (id, name, qty, state) VALUES (1, '{long}', 1, 'new')")).await;
    until_held(&world, 1).await;

    world[a].execute("DROP TABLE item").await;

    stopped(&world, a, &["there is no table public.item"]).await;
    let count = Items { world: &world, a, b }.of_b("SELECT count(*) FROM item");
    assert_eq!(world[b].value(&count).await.as_deref(), Some("0"));
}
