//! Rows that were there before: copied once, while everybody goes on writing; filled systems
//! brought into step; goes on after a kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::support::servers::{Kind, Session};
use super::support::traffic::{Pace, Traffic, accounts, entities};
use super::support::world::{Entity, Type, World};
use super::support::{eventually, soak};

const LONG: Duration = Duration::from_secs(120);

fn contact() -> Entity {
    Entity::new("contact")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("born", Type::Date)
        .field("score", Type::Decimal(12, 2))
        .renamed()
}

/// `count` rows from `from` on, as one statement of that engine.
fn fill(world: &World, system: &str, from: u64, count: u64) -> String {
    let column = |field: &str| world.column("contact", field, system);
    let columns = ["id", "name", "born", "score"].map(column).join(", ");
    let table = world.table("contact", system);
    let series = match world[system].server.kind.is_postgres() {
        true => format!("SELECT n FROM generate_series({from}, {}) AS s(n)", from + count - 1),
        false if world[system].server.kind.is_mariadb() => {
            format!("SELECT seq AS n FROM seq_{from}_to_{}", from + count - 1)
        }
        false => format!(
            "WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {}) \
             SELECT /*+ SET_VAR(cte_max_recursion_depth=10000000) */ n FROM s",
            from + count - 1
        ),
    };
    format!("INSERT INTO {table} ({columns}) SELECT n, CONCAT('name ', n), '2000-02-29', n / 4.0 FROM ({series}) AS f")
}

async fn count(world: &World, system: &str) -> u64 {
    let table = world.table("contact", system);
    world[system].value(&format!("SELECT count(*) FROM {table}")).await.unwrap().parse().unwrap()
}

fn loads(status: &Value) -> Vec<Value> {
    status["loads"].as_array().cloned().unwrap_or_default()
}

/// The first start copies by itself what only the authority has.
async fn first_start_copies(source: Kind, target: Kind) {
    let rows = if soak() { 200_000 } else { 20_000 };
    let mut world = World::of(&[("crm", source), ("shop", target)]).entity(contact()).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, rows)).await;

    world.setup().await;
    world.agent.start();
    world.agent.ready_within(LONG).await;

    // Ready is said when they are there, not when they are on their way.
    assert_eq!(count(&world, "shop").await, rows);
    world.quiet().await;
    world.compare().await.unwrap();
    let load = &loads(&world.agent.status().await.unwrap())[0];
    assert_eq!((&load["state"], &load["read"], &load["copied"]), (&"done".into(), &rows.into(), &rows.into()));

    // not once more
    world.agent.stop().await;
    world.agent.start();
    world.agent.ready().await;
    assert!(loads(&world.agent.status().await.unwrap()).is_empty());
}

#[tokio::test]
async fn the_first_start_copies_from_postgresql_to_mysql() {
    first_start_copies(Kind::Postgres17, Kind::Mysql).await;
}

#[tokio::test]
async fn the_first_start_copies_from_mysql_to_postgresql() {
    first_start_copies(Kind::Mysql, Kind::Postgres15).await;
}

#[tokio::test]
async fn the_first_start_copies_from_mariadb_to_mariadb() {
    first_start_copies(Kind::Mariadb, Kind::Mariadb11).await;
}

#[tokio::test]
async fn rows_in_several_systems_are_left_alone_until_somebody_asks() {
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact()).build().await;
    for system in ["crm", "shop"] {
        world[system].execute(&fill(&world, system, 1, 3)).await;
    }

    world["crm"].lend_ownership(true).await;
    let said = world.agent.run(&["setup"]).await;
    world.agent.start();
    world.agent.ready().await;
    world.quiet().await;

    assert!(said.contains("contact: rows were there before, in more than one system"), "{said}");
    assert!(said.contains("anechoic load --dry-run contact"), "{said}");
    assert!(loads(&world.agent.status().await.unwrap()).is_empty());
}

/// Three filled systems, of which some rows are missing, extra and different in known places.
#[tokio::test]
async fn filled_systems_are_counted_and_brought_into_step_and_nothing_is_deleted() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let rows = 10_000;
    let mut world = World::of(&systems).entity(contact()).build().await;
    let change = |system: &str, sql: &str| {
        let names = ["id", "name", "score"].map(|field| world.column("contact", field, system));
        let sql = sql.replace("TABLE", &world.table("contact", system));
        let sql = sql.replace("ID", &names[0]).replace("NAME", &names[1]).replace("SCORE", &names[2]);
        let db = &world[system];
        async move { db.execute(&sql).await }
    };
    for (system, _) in systems {
        world[system].execute(&fill(&world, system, 1, rows)).await;
    }
    change("crm", "DELETE FROM TABLE WHERE ID BETWEEN 101 AND 110").await; // 10 that only the others have
    change("shop", "DELETE FROM TABLE WHERE ID BETWEEN 201 AND 220").await;
    change("shop", "UPDATE TABLE SET NAME = 'of the shop' WHERE ID BETWEEN 301 AND 330").await;
    change("erp", "UPDATE TABLE SET SCORE = -1 WHERE ID BETWEEN 311 AND 312").await;
    change("erp", "DELETE FROM TABLE WHERE ID > 9990").await;
    world["erp"].execute(&fill(&world, "erp", 20_001, 5)).await; // 5 that only erp has
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;

    let counted: Vec<Value> = serde_json::from_str(&world.agent.run(&["load", "--dry-run", "--json"]).await).unwrap();
    let of = |system: &str, class: &str| counted[0]["systems"][system][class].as_u64().unwrap_or(0);
    assert_eq!((of("crm", "missing"), of("crm", "different")), (15, 0), "{counted:#?}");
    assert_eq!((of("shop", "missing"), of("shop", "different"), of("shop", "extra")), (20 + 5, 30, 10));
    assert_eq!((of("erp", "missing"), of("erp", "different"), of("erp", "extra")), (10, 2, 5));
    assert_eq!(counted[0]["systems"]["shop"]["fields"], serde_json::json!({ "name": 30 }));
    assert_eq!(count(&world, "crm").await, rows - 10);

    world.agent.run(&["load"]).await;
    world.quiet().await;

    world.compare().await.unwrap();
    assert_eq!(count(&world, "crm").await, rows + 5);
    let names = format!(
        "SELECT count(*) FROM {} WHERE {} = 'of the shop'",
        world.table("contact", "shop"),
        world.column("contact", "name", "shop")
    );
    assert_eq!(world["shop"].value(&names).await.as_deref(), Some("0"));

    // once more finds nothing to do, and writes nothing
    let again: Vec<Value> = serde_json::from_str(&world.agent.run(&["load", "--json"]).await).unwrap();
    assert_eq!(again[0]["copied"], 0, "{again:#?}");
}

#[tokio::test]
async fn only_missing_leaves_what_differs() {
    let mut world = World::of(&[("crm", Kind::Postgres17), ("erp", Kind::Mariadb)]).entity(contact()).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, 10)).await;
    world["erp"].execute(&fill(&world, "erp", 1, 5)).await;
    let (table, name) = (world.table("contact", "erp"), world.column("contact", "name", "erp"));
    world["erp"].execute(&format!("UPDATE {table} SET {name} = 'own'")).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;

    world.agent.run(&["load", "--only-missing"]).await;
    world.agent.wait_quiet().await;

    assert_eq!(count(&world, "erp").await, 10);
    let own = world["erp"].value(&format!("SELECT count(*) FROM {table} WHERE {name} = 'own'")).await;
    assert_eq!(own.as_deref(), Some("5"));
}

/// Killed behind a chunk, the load goes on there and not from the beginning.
#[tokio::test]
async fn a_load_goes_on_after_a_kill_where_it_was() {
    let rows = 30_000;
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact()).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, rows)).await;
    world.setup().await;
    world.agent.set_env("ANECHOIC_KILL_AT", "after-load-chunk:4");

    world.agent.start();
    eventually(LONG, || {
        std::future::ready(if world.agent.is_running() { Err("still running".to_owned()) } else { Ok(()) })
    })
    .await;
    world.agent.kill_nowhere();
    world.agent.restart_after_kill();
    world.agent.ready_within(LONG).await;
    world.quiet().await;

    world.compare().await.unwrap();
    let log = world.agent.log();
    let goes_on = log.lines().find(|line| line.contains("load goes on")).unwrap_or_else(|| panic!("{log}"));
    assert!(!goes_on.ends_with("rows=0"), "{goes_on}");
    let load = &loads(&world.agent.status().await.unwrap())[0];
    assert_eq!((&load["read"], &load["copied"]), (&rows.into(), &rows.into()), "{load:#}");
}

/// Rows lost to an update that carries one field, and the agent was killed before it read them again:
/// their other fields were never copied.
#[tokio::test]
async fn rows_that_lost_before_a_kill_are_read_again_behind_it() {
    let rows = 30_000;
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
    let mut world = World::of(&systems).entity(contact().option(r#"scope = "field""#)).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, rows)).await;
    world.setup().await;
    world.agent.set_env("ANECHOIC_KILL_AT", "after-load-chunk:1");
    let (table, id, score) =
        (world.table("contact", "crm"), world.column("contact", "id", "crm"), world.column("contact", "score", "crm"));
    let mut session = world["crm"].session().await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let busy = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            session.execute(&format!("UPDATE {table} SET {score} = {score} + 1 WHERE {id} <= 20")).await;
        }
    });

    world.agent.start();
    eventually(LONG, || {
        std::future::ready(if world.agent.is_running() { Err("still running".to_owned()) } else { Ok(()) })
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    busy.await.unwrap();
    world.agent.kill_nowhere();
    world.agent.restart_after_kill();
    world.agent.ready_within(LONG).await;
    world.quiet().await;

    world.compare().await.unwrap();
    let load = &loads(&world.agent.status().await.unwrap())[0];
    assert!(load["lost"].as_u64().unwrap() >= 20, "the rows were not written while they were read: {load:#}");
    assert_eq!((&load["read"], &load["copied"]), (&rows.into(), &rows.into()), "{load:#}");
}

/// Adds to the score of row 7, again and again, until told to stop.
async fn adds(world: &World, system: &str, rest: Duration, stop: Arc<AtomicBool>) -> JoinHandle<u32> {
    let column = |field: &str| world.column("contact", field, system);
    let (table, id, score) = (world.table("contact", system), column("id"), column("score"));
    let sql = format!("UPDATE {table} SET {score} = {score} + 1 WHERE {id} = 7");
    let mut session = world[system].session().await;
    tokio::spawn(async move {
        let mut writes = 0;
        while !stop.load(Ordering::Relaxed) {
            session.execute(&sql).await;
            writes += 1;
            tokio::time::sleep(rest).await;
        }
        writes
    })
}

/// One field of a row is written without a pause, from before its load to after it, and the log tells
/// that field alone: what the load needs of the rest stands in the log's old images.
async fn a_row_that_is_written_without_a_pause(source: Kind, option: &str, rest_of_the_other: Option<Duration>) {
    for _ in 0..5 {
        if is_written_while_it_is_read(source, option, rest_of_the_other).await {
            return;
        }
    }
    panic!("the row was never written while it was read");
}

/// On a busy machine its writer may have had no turn just then; the rest holds all the same.
async fn is_written_while_it_is_read(source: Kind, option: &str, rest_of_the_other: Option<Duration>) -> bool {
    let rows = 2_000;
    let mut world =
        World::of(&[("crm", source), ("shop", Kind::Mariadb)]).entity(contact().option(option)).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, rows)).await;
    world.setup().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = vec![adds(&world, "crm", Duration::ZERO, stop.clone()).await];
    if let Some(rest) = rest_of_the_other {
        busy.push(adds(&world, "shop", rest, stop.clone()).await);
    }

    world.agent.start();
    world.agent.ready_within(LONG).await;
    let load = &loads(&world.agent.status().await.unwrap())[0];
    stop.store(true, Ordering::Relaxed);
    for busy in busy {
        assert!(busy.await.unwrap() > 0);
    }
    world.agent.wait_quiet().await;

    world.compare().await.unwrap();
    load["lost"].as_u64().unwrap() >= 1
}

#[tokio::test]
async fn a_field_that_is_written_without_a_pause_in_postgresql_is_loaded_with_its_row() {
    a_row_that_is_written_without_a_pause(Kind::Postgres17, r#"scope = "field""#, None).await;
}

#[tokio::test]
async fn a_sum_that_is_written_without_a_pause_in_mysql_is_loaded_with_its_row() {
    a_row_that_is_written_without_a_pause(Kind::Mysql, r#"merge = { score = "add" }"#, None).await;
}

/// What the other system writes has to be seen by the one that is read, in between.
#[tokio::test]
async fn a_sum_that_two_systems_write_is_loaded_with_its_row() {
    let rest = Duration::from_millis(100);
    a_row_that_is_written_without_a_pause(Kind::Postgres17, r#"merge = { score = "add" }"#, Some(rest)).await;
}

/// A process of a server that goes no further, until this goes.
struct Stopped(i32);

impl Stopped {
    fn now(pid: i32) -> Stopped {
        // SAFETY: a signal to a process of a server that runs for this test alone.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0, "{}", std::io::Error::last_os_error());
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }
}

/// A row differed by one sale before anybody looked, and is alike when the load reads it: by a sale of the shop
/// that its log has not told yet, and that is still to come to the crm.
#[tokio::test]
async fn a_sum_that_is_alike_by_chance_is_loaded() {
    let stock = contact().option(r#"merge = { score = "add" }"#);
    let systems = [("crm", Kind::Mariadb), ("shop", Kind::Postgres17)];
    let mut world = World::of(&systems).private("shop").entity(stock).build().await;
    for system in ["crm", "shop"] {
        world[system].execute(&fill(&world, system, 1, 10)).await;
    }
    let at = |world: &World, system: &str| {
        let column = |field: &str| world.column("contact", field, system);
        (world.table("contact", system), column("score"), format!("{} = 7", column("id")))
    };
    let sell = |world: &World, system: &str| {
        let (table, score, seventh) = at(world, system);
        format!("UPDATE {table} SET {score} = {score} + 1 WHERE {seventh}")
    };
    world["crm"].execute(&sell(&world, "crm")).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE database = current_database() AND active";
    let held_up = Stopped::now(world["shop"].value(walsender).await.unwrap().parse().unwrap());
    world["shop"].execute(&sell(&world, "shop")).await;

    let asked = world.agent.run(&["load", "--json"]);
    let held_up_until_the_crms_rows_are_read = async {
        // What the shop alone has is read next, and waits for its log.
        let next = || match world.agent.log().contains("load begins from=shop") {
            true => Ok(()),
            false => Err("the rows of the crm are not read".to_owned()),
        };
        eventually(LONG, || std::future::ready(next())).await;
        drop(held_up);
    };
    let (said, ()) = tokio::join!(asked, held_up_until_the_crms_rows_are_read);
    world.agent.wait_quiet().await;

    let said: Vec<Value> = serde_json::from_str(&said).unwrap();
    assert_eq!(said[0]["systems"]["shop"]["equal"], 10, "the row was not alike: {said:#?}");
    world.compare().await.unwrap();
    for system in ["crm", "shop"] {
        let (table, score, seventh) = at(&world, system);
        let now = world[system].value(&format!("SELECT {score} FROM {table} WHERE {seventh}")).await;
        assert_eq!(now.as_deref(), Some("3.75"), "7 / 4 and two sales, in {system}");
    }
}

/// The crm deletes a row of which the shop has just sold something, so that the row lives, and comes back to the
/// crm alone with what it was worth there. The load found none meanwhile, and took it for gone.
async fn a_row_that_comes_back(restarted_before_the_load: bool) {
    let rows = 4_000;
    let stock = contact().option(r#"merge = { score = "add" }"#).option(r#"on_delete = "update_wins""#);
    // On a server where nobody else waits for its open transaction.
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mariadb)];
    let mut world = World::of(&systems).private("crm").entity(stock).build().await;
    for system in ["crm", "shop"] {
        world[system].execute(&fill(&world, system, 1, rows)).await;
    }
    let at = |world: &World, system: &str, id: u64| {
        let column = |field: &str| world.column("contact", field, system);
        (world.table("contact", system), column("score"), format!("{} = {id}", column("id")))
    };
    let (table, score, _) = at(&world, "shop", 0);
    world["shop"].execute(&format!("UPDATE {table} SET {score} = {score} + 100")).await;
    world["crm"].lend_ownership(true).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    let read = |status: &Value| loads(status).iter().filter_map(|load| load["read"].as_u64()).sum::<u64>();
    let begun = |status: &Value| if read(status) > 0 { Ok(()) } else { Err("nothing is read".to_owned()) };
    if !restarted_before_the_load {
        ask_for_a_slow_load(&world).await;
        world.agent.until(LONG, begun).await;
    }

    // Nothing of the shop comes to the crm from here on.
    let (table, _, first) = at(&world, "crm", 1);
    let mut holder = world["crm"].session().await;
    holder.execute("BEGIN").await;
    holder.execute(&format!("SELECT * FROM {table} WHERE {first} FOR UPDATE")).await;
    for id in [1, rows] {
        let (table, score, which) = at(&world, "shop", id);
        world["shop"].execute(&format!("UPDATE {table} SET {score} = {score} - 1 WHERE {which}")).await;
    }
    let captured = |system: usize, least: u64| {
        move |status: &Value| match &status["systems"][system]["capture"]["changes"] {
            changes if changes.as_u64() >= Some(least) => Ok(()),
            changes => Err(format!("{changes} changes are captured")),
        }
    };
    let status = world.agent.until(LONG, captured(1, 2)).await;
    assert!(read(&status) < rows - 1000, "the load was too fast to miss a row: {status:#}");
    let (table, _, last) = at(&world, "crm", rows);
    world["crm"].execute(&format!("DELETE FROM {table} WHERE {last}")).await;
    world.agent.until(LONG, captured(0, 1)).await;
    if restarted_before_the_load {
        world.agent.restart_after_kill();
        ask_for_a_slow_load(&world).await;
    }
    let waits = |status: &Value| match &loads(status)[..] {
        [load] if load["state"] == "waiting" && load["error"].is_string() || load["state"] == "done" => Ok(()),
        loads => Err(format!("{loads:?}")),
    };
    let status = world.agent.until(LONG, waits).await;
    holder.execute("COMMIT").await;
    let over = |status: &Value| match &loads(status)[0] {
        load if load["state"] == "done" => Ok(()),
        load => Err(load.to_string()),
    };
    world.agent.until(LONG, over).await;
    world.agent.wait_quiet().await;

    if !restarted_before_the_load {
        assert_eq!(loads(&status)[0]["read"], rows - 1, "the row was there when it was read: {status:#}");
    }
    world.compare().await.unwrap();
    let (table, score, last) = at(&world, "shop", rows);
    let left = world["shop"].value(&format!("SELECT {score} FROM {table} WHERE {last}")).await;
    assert_eq!(left.as_deref(), Some("999.00"));
}

/// The command only looks on; an agent that starts takes none at first, and a busy one hears of it late.
async fn ask_for_a_slow_load(world: &World) {
    eventually(LONG, || async {
        let asked = world.agent.command(&["load", "contact", "--max-rate", "200"]);
        let said = tokio::time::timeout(Duration::from_secs(1), asked).await;
        match loads(&world.agent.status().await?).is_empty() {
            true => Err(format!("nothing is loaded: {said:?}")),
            false => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_row_that_comes_back_behind_its_chunk_is_loaded() {
    a_row_that_comes_back(false).await;
}

/// Nobody but the journal knows any more that there is one on its way.
#[tokio::test]
async fn a_row_that_was_on_its_way_back_when_the_agent_was_killed_is_loaded() {
    a_row_that_comes_back(true).await;
}

/// A load that is tried again, here because the system that is read last lets nobody in for a while,
/// goes on where it was, and counts nothing twice.
#[tokio::test]
async fn a_load_that_is_tried_again_counts_each_row_once() {
    let rows = 2_000;
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let read_only = contact().option_in("erp", r#"role = "source""#);
    let mut world = World::of(&systems).entity(read_only).proxied("erp").build().await;
    for (system, from) in [("crm", 1), ("shop", 101), ("erp", 101)] {
        world[system].execute(&fill(&world, system, from, rows)).await;
    }
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;

    let asked = world.agent.command(&["load", "--max-rate", "2000", "--json"]);
    let refused = async {
        let begun = |status: &Value| match loads(status).first().and_then(|load| load["read"].as_u64()) {
            Some(read) if read > 0 => Ok(()),
            read => Err(format!("{read:?} rows read")),
        };
        world.agent.until(LONG, begun).await;
        world.proxy("erp").refuse();
        let tried = |status: &Value| match loads(status).first().is_some_and(|load| load["state"] == "retrying") {
            true => Ok(()),
            false => Err("not tried again".to_owned()),
        };
        world.agent.until(LONG, tried).await;
        world.proxy("erp").pass();
    };
    let (output, ()) = tokio::join!(asked, refused);
    world.agent.wait_quiet().await;

    let said = String::from_utf8(output.stdout).unwrap();
    let load = serde_json::from_str::<Vec<Value>>(&said).unwrap().remove(0);
    // The shop's rows are read when it has those that only the CRM had.
    assert_eq!((&load["read"], &load["copied"]), (&(3 * rows + 100).into(), &200.into()), "{load:#}");
    let of = |system: &str, class: &str| load["systems"][system][class].as_u64().unwrap_or(0);
    let shop = ["equal", "missing", "different", "extra"].map(|class| of("shop", class));
    assert_eq!((shop, of("crm", "missing")), ([rows - 100, 100, 0, 100], 100), "{load:#}");
    assert_eq!((count(&world, "crm").await, count(&world, "shop").await), (rows + 100, rows + 100));
}

/// Chunks are measured by rows that were narrow; they end where memory would.
#[tokio::test]
async fn rows_that_are_suddenly_wide_are_read_few_at_a_time() {
    let note = Entity::new("note").key("id", Type::Int).field("body", Type::Text);
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(note).build().await;
    let (narrow, wide) = (6_000, 64);
    world["crm"]
        .execute(&format!(
            "INSERT INTO note SELECT n, CASE WHEN n <= {narrow} THEN 'short' ELSE repeat('wide', 1 << 18) END \
             FROM generate_series(1, {narrow} + {wide}) AS s(n)"
        ))
        .await;

    world.setup().await;
    world.agent.start();
    world.agent.ready_within(LONG).await;

    let found = world["shop"].rows("SELECT count(*), sum(length(body)) FROM note").await;
    let bytes = narrow * 5 + wide * (4 << 18);
    assert_eq!(found, [[Some((narrow + wide).to_string()), Some(bytes.to_string())]]);
    let (_, peak) = world.agent.memory();
    assert!(peak < 150 << 20, "{} MiB", peak >> 20);
}

/// Killed while it looks for what only the shop has, and again while it copies: the load that goes
/// on deletes it still, and brings none of it into the authority.
#[tokio::test]
async fn a_load_that_deletes_goes_on_as_such_after_a_kill() {
    let rows = 3_000;
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact()).build().await;
    world["crm"].execute(&fill(&world, "crm", 1, rows)).await;
    world["shop"].execute(&fill(&world, "shop", 101, rows)).await;
    world.setup().await;
    for point in ["after-extra-page:2", "after-load-chunk:2"] {
        world.agent.set_env("ANECHOIC_KILL_AT", point);
        world.agent.start();
        if point.starts_with("after-extra") {
            world.agent.ready().await;
            let asked = world.agent.command(&["load", "--delete-extra"]).await;
            assert!(!asked.status.success());
        }
        eventually(LONG, || {
            std::future::ready(if world.agent.is_running() { Err("still running".to_owned()) } else { Ok(()) })
        })
        .await;
        world.agent.kill();
        world.agent.kill_nowhere();
    }
    world.agent.start();
    world.agent.ready_within(LONG).await;
    world.quiet().await;

    assert_eq!((count(&world, "crm").await, count(&world, "shop").await), (rows, rows));
    // and it says what all of it has come to
    let load = &loads(&world.agent.status().await.unwrap())[0];
    assert_eq!((&load["read"], &load["copied"], &load["deleted"]), (&(2 * rows).into(), &100.into(), &100.into()));
    let shop = ["equal", "missing", "different", "extra"].map(|class| load["systems"]["shop"][class].as_u64());
    assert_eq!(shop, [rows - 100, 100, 0, 100].map(Some), "{load:#}");
}

/// Somebody who changes and deletes rows that are being loaded, until told to stop.
fn meddle(world: &World, system: &str, rows: u64, mut random: StdRng, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let db = &world[system];
    let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
    tokio::spawn(async move {
        let mut session = None;
        while !stop.load(Ordering::Relaxed) {
            if session.is_none() {
                session = Session::open_as(&server, &user, server.port, Some(&name)).await.ok();
            }
            let Some(open) = &mut session else { continue };
            let id = random.random_range(1..=rows);
            let sql = match random.random_range(0..10) {
                0 => format!("DELETE FROM item WHERE id = {id}"),
                1..5 => format!("UPDATE item SET label = 'touched' WHERE id BETWEEN {id} AND {}", id + 3),
                5 => format!(
                    "INSERT INTO item SELECT {id}, 'made again', 1.5 WHERE NOT EXISTS (SELECT 1 FROM item WHERE id = {id})"
                ),
                _ => format!("UPDATE item SET price = price + 1 WHERE id = {id}"),
            };
            // A deadlock, or a server that is away: the next one will do.
            if open.try_execute(&sql).await.is_err() && open.try_execute("ROLLBACK").await.is_err() {
                session = None;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    })
}

/// Three filled systems, written to from before the load's start to after its end; in the middle
/// the agent is killed and the server that is read restarts.
async fn loads_while_everybody_writes(seed: u64) {
    eprintln!("ANECHOIC_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let rows = if soak() { 100_000 } else { 12_000 };
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = entities(World::of(&systems)).private("crm").build().await;
    let names = systems.map(|(name, _)| name);
    for (at, (system, kind)) in systems.iter().enumerate() {
        let (from, to, label) = [(1, rows, "old"), (1, rows / 3, "another"), (rows - 99, rows + 50, "extra")][at];
        let series = match kind {
            Kind::Postgres17 => format!("generate_series({from}, {to}) AS s(n)"),
            Kind::Mariadb => format!("(SELECT seq AS n FROM seq_{from}_to_{to}) AS s"),
            _ => format!(
                "(WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {to}) \
                 SELECT /*+ SET_VAR(cte_max_recursion_depth=1000000) */ n FROM s) AS s"
            ),
        };
        world[*system].execute(&format!("INSERT INTO item SELECT n, CONCAT('{label} ', n), n FROM {series}")).await;
        world[*system].execute(&accounts(&world)).await;
    }
    world.setup().await;
    let mut traffic = Traffic::new();
    let pace = if soak() { Pace::PerSecond(500) } else { Pace::Rest(Duration::from_millis(4)) };
    traffic.start(&world, &names, pace);
    let stop = Arc::new(AtomicBool::new(false));
    let meddlers = names.map(|name| meddle(&world, name, rows, StdRng::seed_from_u64(random.random()), stop.clone()));
    world.agent.start();
    world.agent.ready().await;

    // The command only looks on.
    let rate = (rows / 4).to_string();
    let words = ["load", "item", "account", "--parallel", "5", "--max-rate", &rate];
    let asked = world.agent.command(&words);
    assert!(tokio::time::timeout(Duration::from_secs(1), asked).await.is_err(), "over before it was seen");
    let some = rows * random.random_range(1..4) / 5;
    let read = |status: &Value| match loads(status).iter().filter_map(|load| load["read"].as_u64()).sum::<u64>() {
        read if read >= some => Ok(()),
        read => Err(format!("{read} of {some} rows read")),
    };
    world.agent.until(LONG, read).await;
    world.agent.restart_after_kill();
    world.agent.until(LONG, |status| if loads(status).is_empty() { Err("not resumed".into()) } else { Ok(()) }).await;
    world.server("crm").restart().await;
    let over = |status: &Value| match loads(status).iter().find(|load| load["state"] != "done") {
        None => Ok(()),
        Some(load) => Err(load.to_string()),
    };
    world.agent.until(2 * LONG, over).await;
    traffic.pass(50).await;
    traffic.stop().await;
    stop.store(true, Ordering::Relaxed);
    for meddler in meddlers {
        meddler.await.unwrap();
    }
    world.agent.wait_quiet().await;

    // By its own account, and by what the test reads itself.
    world.agent.run(&["verify"]).await;
    eprintln!("seed {seed}: {}", traffic.check(&world).await);
}

#[tokio::test]
async fn three_filled_systems_come_into_step_while_everybody_writes() {
    let seeds: Vec<u64> = match std::env::var("ANECHOIC_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..if soak() { 5 } else { 1 }).map(|_| rand::random()).collect(),
    };
    for seed in seeds {
        loads_while_everybody_writes(seed).await;
    }
}
