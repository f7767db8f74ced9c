//! A log position that is lost: its system stops and names the command, the others go on, and
//! the command brings it into step by difference. What was written unseen is found, in every
//! direction; afterwards all is quiet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::support::quarantine::until_held;
use super::support::servers::{Kind, Session};
use super::support::world::{Entity, Type, World};
use super::support::{eventually, soak};

const LONG: Duration = Duration::from_secs(120);

fn item() -> Entity {
    Entity::new("item").key("id", Type::Int).field("label", Type::Varchar(60)).field("price", Type::Int)
}

/// A third system that nothing happens to.
async fn world(crm: Kind, shop: Kind) -> World {
    world_with(crm, shop, &[]).await
}

async fn world_with(crm: Kind, shop: Kind, options: &[&str]) -> World {
    let systems = [("crm", crm), ("shop", shop), ("erp", Kind::Postgres17)];
    let world = World::of(&systems).private_with("shop", options).entity(item()).start().await;
    in_a_later_file(&world).await;
    world["crm"]
        .execute("INSERT INTO item VALUES (1,'one',1),(2,'two',2),(3,'three',3),(4,'four',4),(5,'five',5)")
        .await;
    world["shop"].execute("INSERT INTO item VALUES (6,'six',6),(7,'seven',7)").await;
    world.quiet().await;
    // shop's own writes are journaled, and no marker has come back to it since.
    world["shop"].execute("UPDATE item SET price = 77 WHERE id = 7").await;
    world.quiet().await;
    world
}

/// A log that has been written to for a while: one that is begun anew is not as far.
async fn in_a_later_file(world: &World) {
    if !world["shop"].server.kind.is_postgres() {
        let mut admin = world["shop"].admin().await;
        for _ in 0..3 {
            admin.execute("FLUSH BINARY LOGS").await;
        }
    }
}

/// While nobody reads shop's log.
async fn write_everywhere(world: &World) {
    let (shop, crm) = (&world["shop"], &world["crm"]);
    shop.execute("INSERT INTO item VALUES (10, 'only shop', 10)").await;
    shop.execute("UPDATE item SET label = 'shop wrote' WHERE id = 2").await;
    shop.execute("UPDATE item SET price = 7 WHERE id = 7").await; // back to what it was
    shop.execute("UPDATE item SET label = 'both, shop' WHERE id = 3").await;
    shop.execute("DELETE FROM item WHERE id = 5").await;
    shop.execute("UPDATE item SET id = 60 WHERE id = 6").await;
    crm.execute("INSERT INTO item VALUES (20, 'only crm', 20)").await;
    crm.execute("UPDATE item SET label = 'both, crm' WHERE id = 3").await;
    crm.execute("UPDATE item SET label = 'crm wrote' WHERE id = 1").await;
    world["erp"].execute("DELETE FROM item WHERE id = 4").await;
}

async fn label(world: &World, system: &str, id: u32) -> Option<String> {
    let rows = world[system].rows(&format!("SELECT label FROM item WHERE id = {id}")).await;
    rows.into_iter().next().and_then(|row| row[0].clone())
}

fn system<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["systems"].as_array().unwrap().iter().find(|system| system["name"] == name).unwrap()
}

/// The command that the stopped system prints, as it prints it.
async fn printed_command(world: &World, name: &str) -> Vec<String> {
    let stopped = |status: &Value| match system(status, name)["state"] == "stopped" {
        true => Ok(()),
        false => Err(format!("{name} is not stopped")),
    };
    let status = world.agent.until(LONG, stopped).await;
    let error = system(&status, name)["error"].as_str().unwrap().to_owned();
    let at = error.find("anechoic load --resync").unwrap_or_else(|| panic!("names no command: {error}"));
    let words: Vec<String> = error[at..].lines().next().unwrap().split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["anechoic", "load", "--resync", name], "{error}");
    words[1..].to_vec()
}

/// The others go on while it is stopped.
async fn others_flow(world: &World) {
    world["crm"].execute("INSERT INTO item VALUES (30, 'meanwhile', 30)").await;
    eventually(LONG, || async {
        label(world, "erp", 30).await.map(drop).ok_or_else(|| "crm's row is not in erp".to_owned())
    })
    .await;
}

async fn resync(world: &World, name: &str, options: &[&str]) {
    let command = printed_command(world, name).await;
    let words: Vec<&str> = command.iter().map(String::as_str).chain(options.iter().copied()).collect();
    world.agent.run(&words).await;
    world.quiet().await;
}

/// Nobody writes, so the agent does not either.
async fn is_silent(world: &World) {
    let count = |status: &Value| -> u64 {
        let systems = status["systems"].as_array().unwrap();
        systems.iter().map(|s| s["apply"]["transactions"].as_u64().unwrap()).sum()
    };
    let head = |status: &Value| status["journal"]["head"].as_u64().unwrap();
    let before = world.agent.status().await.unwrap();
    world.agent.wait_quiet().await;
    world.agent.wait_quiet().await;
    let after = world.agent.status().await.unwrap();
    assert_eq!((count(&before), head(&before)), (count(&after), head(&after)), "writes go on");
}

/// What the window's writes have to become, whoever lost its log.
async fn everybodys_writes_are_there(world: &World) {
    assert_eq!(label(world, "crm", 10).await.as_deref(), Some("only shop"));
    assert_eq!(label(world, "crm", 2).await.as_deref(), Some("shop wrote"));
    assert_eq!(label(world, "crm", 60).await.as_deref(), Some("six"));
    assert_eq!(label(world, "shop", 20).await.as_deref(), Some("only crm"));
    assert_eq!(label(world, "shop", 1).await.as_deref(), Some("crm wrote"));
    assert_eq!(label(world, "shop", 3).await.as_deref(), Some("both, crm"), "a conflict: the authority's");
    assert_eq!(label(world, "shop", 4).await, None, "deleted in erp");
    let price = world["crm"].value("SELECT price FROM item WHERE id = 7").await;
    assert_eq!(price.as_deref(), Some("7"), "put back to its older value by shop's users");
}

async fn goes_on(world: &World) {
    world["shop"].execute("INSERT INTO item VALUES (100, 'after', 100)").await;
    world["crm"].execute("UPDATE item SET label = 'after' WHERE id = 10").await;
    world.quiet().await;
    is_silent(world).await;
}

/// Its log goes, while nobody reads it.
async fn lose(world: &World, how: &str) {
    let mut admin = world["shop"].admin().await;
    match how {
        "slot dropped" => {
            const DROP: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                                WHERE slot_name LIKE 'anechoic%' AND active_pid IS NULL";
            eventually(LONG, || {
                let admin = world["shop"].admin();
                async move {
                    let mut admin = admin.await;
                    admin.try_rows(DROP).await?;
                    match admin.try_rows("SELECT 1 FROM pg_replication_slots").await?.len() {
                        0 => Ok(()),
                        _ => Err("the slot is still there".to_owned()),
                    }
                }
            })
            .await;
        }
        "slot invalidated" => {
            eventually(LONG, || {
                let admin = world["shop"].admin();
                async move {
                    let mut admin = admin.await;
                    admin
                        .try_execute("CREATE TABLE IF NOT EXISTS filler (x int); INSERT INTO filler VALUES (1)")
                        .await?;
                    admin.try_rows("SELECT pg_switch_wal()").await?;
                    admin.try_execute("CHECKPOINT").await?;
                    let lost = admin.try_rows("SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'").await?;
                    if lost.is_empty() { Err("the slot is still valid".to_owned()) } else { Ok(()) }
                }
            })
            .await;
        }
        "reset" if world["shop"].server.kind.is_mariadb() => admin.execute("RESET MASTER").await,
        "reset" => admin.execute("RESET BINARY LOGS AND GTIDS").await,
        "purged" => {
            admin.execute("FLUSH BINARY LOGS").await;
            let logs = admin.rows("SHOW BINARY LOGS").await;
            let last = logs.last().unwrap()[0].clone().unwrap();
            eventually(LONG, || {
                let admin = world["shop"].admin();
                let purge = format!("PURGE BINARY LOGS TO '{last}'");
                async move {
                    let mut admin = admin.await;
                    admin.try_execute(&purge).await?;
                    match admin.try_rows("SHOW BINARY LOGS").await?.len() {
                        1 => Ok(()),
                        more => Err(format!("{more} binary logs")),
                    }
                }
            })
            .await;
        }
        other => panic!("{other}"),
    }
}

async fn end_of_log(world: &World) -> String {
    world["shop"].admin().await.rows("SHOW BINARY LOG STATUS").await[0][0].clone().unwrap()
}

/// Has shop begin a file, of which the agent reads no more than what every file begins with.
async fn at_a_files_start(world: &World) -> String {
    world["shop"].admin().await.execute("FLUSH BINARY LOGS").await;
    let file = end_of_log(world).await;
    let read = |status: &Value| match system(status, "shop")["capture"]["position"].as_str() {
        Some(position) if position.starts_with(&file) => Ok(()),
        position => Err(format!("read to {position:?}, not to {file}")),
    };
    world.agent.until(LONG, read).await;
    file
}

/// Lost while the agent is away; everybody writes before it is back.
async fn lost_and_found(kind: Kind, options: &[&str], how: &str) {
    let mut world = world_with(Kind::Mysql, kind, options).await;
    let file = if how == "reset and grown" { at_a_files_start(&world).await } else { String::new() };
    world.agent.stop().await;
    if how == "reset and grown" {
        lose(&world, "reset").await;
        write_everywhere(&world).await;
        let mut admin = world["shop"].admin().await;
        while end_of_log(&world).await != file {
            admin.execute("FLUSH BINARY LOGS").await;
        }
    } else if how == "purged" {
        // What is purged has to hold something that was not read.
        write_everywhere(&world).await;
        lose(&world, how).await;
    } else {
        lose(&world, how).await;
        write_everywhere(&world).await;
    }

    world.agent.start();
    printed_command(&world, "shop").await;
    others_flow(&world).await;
    assert_eq!(label(&world, "shop", 20).await, None, "nothing is applied where the log is lost");
    assert_eq!(label(&world, "shop", 3).await.as_deref(), Some("both, shop"));
    resync(&world, "shop", &[]).await;

    everybodys_writes_are_there(&world).await;
    assert_eq!(label(&world, "shop", 5).await.as_deref(), Some("five"), "without --delete-extra it is made again");
    goes_on(&world).await;
}

#[tokio::test]
async fn a_dropped_slot_is_made_anew_and_nothing_is_lost() {
    lost_and_found(Kind::Postgres17, &[], "slot dropped").await;
}

#[tokio::test]
async fn an_invalidated_slot_is_made_anew_and_nothing_is_lost() {
    lost_and_found(Kind::Postgres15, &["-c", "max_slot_wal_keep_size=1MB"], "slot invalidated").await;
}

#[tokio::test]
async fn binlogs_that_were_reset_are_read_anew_and_nothing_is_lost() {
    lost_and_found(Kind::Mysql, &[], "reset").await;
    lost_and_found(Kind::Mariadb, &[], "reset").await;
}

/// Without GTIDs only a file's name and offset lead into the log, and both are there again: nothing but
/// when the file was begun tells that what was written before that place was never read.
#[tokio::test]
async fn a_log_without_gtids_that_was_reset_and_has_grown_is_noticed() {
    let without = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];
    lost_and_found(Kind::Mysql, &without, "reset and grown").await;
}

#[tokio::test]
async fn purged_binlogs_are_read_anew_and_nothing_is_lost() {
    lost_and_found(Kind::Mysql, &[], "purged").await;
    lost_and_found(Kind::Mariadb11, &[], "purged").await;
}

/// The slot is there, and what was written while the table was out is in no stream: not put back in
/// silence at a start, and noticed while the agent runs although it is back by then.
#[tokio::test]
async fn a_table_that_was_out_of_the_publication_is_brought_into_step() {
    let mut world = world(Kind::Mysql, Kind::Postgres17).await;
    let publication = format!("ALTER PUBLICATION anechoic_{}", world.agent.id);
    let (out, back) = (format!("{publication} DROP TABLE item"), format!("{publication} ADD TABLE item"));
    world.agent.stop().await;
    world["shop"].admin().await.execute(&out).await;
    write_everywhere(&world).await;
    world.agent.start();
    printed_command(&world, "shop").await;
    others_flow(&world).await;
    assert_eq!(label(&world, "shop", 20).await, None, "nothing is applied where the log has a gap");
    // Whoever has put it back meanwhile has mended half of it.
    world["shop"].admin().await.execute(&back).await;
    world.agent.stop().await;
    world.agent.start();
    resync(&world, "shop", &[]).await;
    everybodys_writes_are_there(&world).await;
    goes_on(&world).await;

    // While something is held, the tables are looked at every few seconds.
    world["crm"].execute("ALTER TABLE item MODIFY label varchar(200)").await;
    world["crm"].execute(&format!("INSERT INTO item VALUES (200, '{}', 1)", "x".repeat(100))).await;
    until_held(&world, 2).await;
    let unseen = "INSERT INTO item VALUES (201, 'unseen', 1); DELETE FROM item WHERE id = 100";
    world["shop"].admin().await.execute(&format!("{out}; {unseen}; {back}")).await;
    world["shop"].execute("INSERT INTO item VALUES (202, 'seen', 1)").await;
    printed_command(&world, "shop").await;
    world["crm"].execute("UPDATE item SET label = 'short' WHERE id = 200").await;
    resync(&world, "shop", &["--delete-extra"]).await;

    for id in [200, 201, 202] {
        assert_eq!(label(&world, "crm", id).await, label(&world, "shop", id).await, "{id}");
    }
    assert_eq!(label(&world, "crm", 201).await.as_deref(), Some("unseen"));
    assert_eq!(label(&world, "erp", 100).await, None);
    goes_on(&world).await;
}

/// TRUNCATE names no rows, so nobody is told of any. What it took away by mistake the others still
/// have; where it was meant, they lose it, too.
#[tokio::test]
async fn an_emptied_table_is_filled_again_or_emptied_everywhere() {
    for (crm, shop) in [(Kind::Mysql, Kind::Postgres17), (Kind::Postgres15, Kind::Mariadb)] {
        let world = world(crm, shop).await;
        let count = async |system: &str| world[system].value("SELECT count(*) FROM item").await;
        let before = count("crm").await;

        world["shop"].admin().await.execute(&empty(&world)).await;
        others_flow(&world).await;
        resync(&world, "shop", &[]).await;
        assert_eq!(count("shop").await, before.map(|rows| (rows.parse::<u32>().unwrap() + 1).to_string()));
        goes_on(&world).await;

        world["shop"].admin().await.execute(&empty(&world)).await;
        resync(&world, "shop", &["--delete-extra"]).await;
        assert_eq!(count("crm").await.as_deref(), Some("0"));
    }
}

/// By the table's owner, in its database.
fn empty(world: &World) -> String {
    match world["shop"].kind.is_postgres() {
        true => "TRUNCATE item".to_owned(),
        false => format!("TRUNCATE {}.item", world["shop"].name),
    }
}

#[tokio::test]
async fn what_was_deleted_unseen_goes_everywhere_where_that_is_asked_for() {
    let mut world = world(Kind::Mysql, Kind::Postgres17).await;
    world.agent.stop().await;
    lose(&world, "slot dropped").await;
    write_everywhere(&world).await;
    world.agent.start();

    resync(&world, "shop", &["--delete-extra"]).await;

    everybodys_writes_are_there(&world).await;
    assert_eq!((label(&world, "crm", 5).await, label(&world, "crm", 6).await), (None, None));
    goes_on(&world).await;
}

/// Rows and marker as they were in a backup, as a restore leaves them; the log is another one.
async fn restored(kind: Kind) {
    let mut world = world(Kind::Mysql, kind).await;
    let marker = format!("{}.marker", world["shop"].marker);
    let mut admin = world["shop"].admin().await;
    admin.execute("CREATE TABLE saved_item AS SELECT * FROM item").await;
    admin.execute(&format!("CREATE TABLE saved_marker AS SELECT * FROM {marker}")).await;
    // after the backup, everybody's and its own
    world["shop"].execute("UPDATE item SET label = 'own, after' WHERE id = 6").await;
    world["crm"].execute("UPDATE item SET label = 'crm, after' WHERE id = 1").await;
    world["crm"].execute("INSERT INTO item VALUES (40, 'crm, after', 40)").await;
    world.quiet().await;
    world["shop"].execute("INSERT INTO item VALUES (50, 'own, after', 50)").await;
    world["shop"].execute("UPDATE item SET label = 'own, after crm' WHERE id = 1").await;
    world["shop"].execute("DELETE FROM item WHERE id = 7").await;
    world["shop"].execute("UPDATE item SET label = 'own, after' WHERE id = 2").await;
    world.quiet().await;
    world.agent.stop().await;

    admin.execute("DELETE FROM item").await;
    admin.execute("INSERT INTO item SELECT * FROM saved_item").await;
    admin.execute(&format!("DELETE FROM {marker}")).await;
    admin.execute(&format!("INSERT INTO {marker} SELECT * FROM saved_marker")).await;
    lose(&world, if kind.is_postgres() { "slot dropped" } else { "reset" }).await;
    // and somebody works with what was restored
    world["shop"].execute("INSERT INTO item VALUES (51, 'since', 51)").await;
    world["shop"].execute("UPDATE item SET label = 'since' WHERE id = 4").await;
    world["shop"].execute("UPDATE item SET label = 'since' WHERE id = 2").await;
    world.agent.start();
    resync(&world, "shop", &[]).await;

    let found = |id| label(&world, "shop", id);
    assert_eq!(found(6).await.as_deref(), Some("own, after"), "its own write comes back");
    assert_eq!(found(50).await.as_deref(), Some("own, after"), "and its own row");
    assert_eq!(found(1).await.as_deref(), Some("own, after crm"), "also on top of another's");
    assert_eq!(found(7).await, None, "what it deleted goes again");
    assert_eq!(found(40).await.as_deref(), Some("crm, after"));
    assert_eq!(label(&world, "crm", 51).await.as_deref(), Some("since"));
    assert_eq!(label(&world, "crm", 4).await.as_deref(), Some("since"));
    assert_eq!(label(&world, "crm", 2).await.as_deref(), Some("since"), "its newest write stands");
    goes_on(&world).await;
}

#[tokio::test]
async fn a_restored_backup_gets_back_what_was_written_after_it() {
    restored(Kind::Postgres17).await;
    restored(Kind::Mysql).await;
}

/// The journal is gone, and with it all that tells who had seen what: authority decides.
#[tokio::test]
async fn a_lost_data_dir_stops_all_and_each_is_brought_back() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = World::of(&systems).entity(item()).start().await;
    world["crm"].execute("INSERT INTO item VALUES (1,'one',1),(2,'two',2),(3,'three',3)").await;
    world.quiet().await;
    world.agent.stop().await;
    std::fs::remove_dir_all(world.agent.data_dir()).unwrap();
    world["shop"].execute("INSERT INTO item VALUES (10, 'only shop', 10)").await;
    world["crm"].execute("UPDATE item SET label = 'crm wrote' WHERE id = 1").await;
    world["erp"].execute("UPDATE item SET label = 'erp wrote' WHERE id = 2").await;
    world["erp"].execute("DELETE FROM item WHERE id = 3").await;

    world.agent.start();
    for (name, _) in systems {
        printed_command(&world, name).await;
    }
    for (name, _) in systems {
        let command = printed_command(&world, name).await;
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        world.agent.run(&words).await;
    }
    world.quiet().await;

    assert_eq!(label(&world, "erp", 10).await.as_deref(), Some("only shop"));
    assert_eq!(label(&world, "erp", 1).await.as_deref(), Some("crm wrote"));
    assert_eq!(label(&world, "erp", 2).await.as_deref(), Some("two"), "crm is the authority");
    assert_eq!(label(&world, "erp", 3).await.as_deref(), Some("three"), "nothing is deleted");
    goes_on(&world).await;
}

/// Neither has a log to tell what its users wrote, and the journal is still there.
#[tokio::test]
async fn two_lost_logs_are_brought_into_step_one_after_the_other() {
    let systems = [("crm", Kind::Mysql), ("shop", Kind::Postgres17)];
    let mut world = World::of(&systems).private("crm").private("shop").entity(item()).start().await;
    world["crm"].execute("INSERT INTO item VALUES (1,'one',1),(2,'two',2)").await;
    world.quiet().await;
    world.agent.stop().await;
    lose(&world, "slot dropped").await;
    world["crm"].admin().await.execute("RESET BINARY LOGS AND GTIDS").await;
    world["shop"].execute("INSERT INTO item VALUES (10, 'only shop', 10)").await;
    world["crm"].execute("INSERT INTO item VALUES (20, 'only crm', 20)").await;
    world["crm"].execute("UPDATE item SET label = 'crm wrote' WHERE id = 1").await;
    world["shop"].execute("UPDATE item SET label = 'shop wrote' WHERE id = 1").await;
    world.agent.start();
    let (first, second) = (printed_command(&world, "crm").await, printed_command(&world, "shop").await);

    let words: Vec<&str> = first.iter().map(String::as_str).collect();
    let asked = world.agent.command(&words);
    let waits = |status: &Value| match status["loads"][0]["error"].as_str() {
        Some(error) if error.contains("anechoic load --resync shop") => Ok(()),
        other => Err(format!("does not wait for shop: {other:?}")),
    };
    let both = async {
        world.agent.until(LONG, waits).await;
        world.agent.run(&second.iter().map(String::as_str).collect::<Vec<_>>()).await;
    };
    let (asked, ()) = tokio::join!(asked, both);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    world.quiet().await;

    assert_eq!(label(&world, "crm", 10).await.as_deref(), Some("only shop"));
    assert_eq!(label(&world, "shop", 20).await.as_deref(), Some("only crm"));
    assert_eq!(label(&world, "shop", 1).await.as_deref(), Some("crm wrote"), "the authority's");
    goes_on(&world).await;
}

/// Killed at each step of it, the agent goes on by itself.
#[tokio::test]
async fn a_kill_in_the_middle_leaves_something_that_a_restart_finishes() {
    for step in ["before-resync-position", "after-resync-position", "after-resync-page", "after-resync-entity"] {
        eprintln!("killed at {step}");
        let mut world = world(Kind::Mysql, Kind::Postgres17).await;
        world.agent.stop().await;
        lose(&world, "slot dropped").await;
        write_everywhere(&world).await;
        world.agent.set_env("ANECHOIC_KILL_AT", step);
        world.agent.start();

        let command = printed_command(&world, "shop").await;
        let asked = world.agent.command(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(!asked.status.success(), "the agent was to be killed");
        eventually(LONG, || {
            std::future::ready(if world.agent.is_running() { Err("still running".to_owned()) } else { Ok(()) })
        })
        .await;
        world["shop"].execute("UPDATE item SET label = 'shop wrote' WHERE id = 2").await;
        world.agent.kill_nowhere();
        world.agent.restart_after_kill();
        world.agent.ready_within(LONG).await;
        world.quiet().await;

        everybodys_writes_are_there(&world).await;
        goes_on(&world).await;
    }
}

const CONTESTED: std::ops::Range<u32> = 9000..9010;

/// Somebody who writes rows that are his alone, and knows what became of them, and some that all
/// fight for.
fn write_on(
    world: &World,
    name: &str,
    first: u32,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
) -> JoinHandle<BTreeMap<u32, Option<String>>> {
    let db = &world[name];
    let (server, user, database, name) = (db.server.clone(), db.application.clone(), db.name.clone(), name.to_owned());
    tokio::spawn(async move {
        let mut session = Session::open_as(&server, &user, server.port, Some(&database)).await.unwrap();
        let mut rows: BTreeMap<u32, Option<String>> = BTreeMap::new();
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (id, text) = (first + random.random_range(0..60), format!("{name} {n}"));
            let there = rows.get(&id).is_some_and(Option::is_some);
            let (sql, after) = match (there, random.random_range(0..10)) {
                (true, 0..2) => (format!("DELETE FROM item WHERE id = {id}"), None),
                (true, _) => (format!("UPDATE item SET label = '{text}' WHERE id = {id}"), Some(text)),
                (false, _) => (format!("INSERT INTO item VALUES ({id}, '{text}', {n})"), Some(text)),
            };
            session.try_execute(&sql).await.unwrap_or_else(|error| panic!("{name}: {sql}: {error}"));
            rows.insert(id, after);
            let (contested, label) = (random.random_range(CONTESTED), format!("{name} {n}"));
            let sql = match random.random_range(0..8) {
                0 => format!("DELETE FROM item WHERE id = {contested}"),
                1 => format!(
                    "INSERT INTO item SELECT {contested}, '{label}', 1 WHERE NOT EXISTS (SELECT 1 FROM item WHERE id = {contested})"
                ),
                _ => format!("UPDATE item SET label = '{label}' WHERE id = {contested}"),
            };
            // A deadlock, or a row that has just come: the next one will do.
            let _ = session.try_execute(&sql).await;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        rows
    })
}

/// Everybody writes, from before the loss to after the resync; what only one writes is in the end
/// what he wrote last, in every system.
async fn everybody_writes_all_the_while(seed: u64, shop: Kind) {
    eprintln!("ANECHOIC_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let systems = [("crm", Kind::Postgres17), ("shop", shop), ("erp", Kind::Mariadb)];
    let mut world = World::of(&systems).private("shop").entity(item()).start().await;
    in_a_later_file(&world).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [("crm", 1000), ("shop", 2000), ("erp", 3000)]
        .map(|(name, first)| write_on(&world, name, first, StdRng::seed_from_u64(random.random()), stop.clone()))
        .into();
    let head = |at_least: u64| {
        move |status: &Value| match status["journal"]["head"].as_u64().unwrap() {
            head if head >= at_least => Ok(()),
            head => Err(format!("{head} of {at_least} entries")),
        }
    };
    world.agent.until(LONG, head(150)).await;
    let flushed = world.agent.until(LONG, head(0)).await["journal"]["head"].as_u64().unwrap();
    world.agent.until(LONG, head(flushed + 50)).await;
    world.agent.stop().await;
    lose(&world, if shop.is_postgres() { "slot dropped" } else { "reset" }).await;
    tokio::time::sleep(Duration::from_millis(random.random_range(200..900))).await; // unseen writes
    if random.random_range(0..2) == 0 {
        let at = ["before-resync-position", "after-resync-position", "after-resync-page:1", "after-resync-entity"];
        world.agent.set_env("ANECHOIC_KILL_AT", at[random.random_range(0..at.len())]);
    }
    world.agent.start();
    let command = printed_command(&world, "shop").await;
    let words: Vec<&str> = command.iter().map(String::as_str).chain(["--delete-extra"]).collect();
    let asked = world.agent.command(&words).await;
    if !asked.status.success() {
        eventually(LONG, || {
            std::future::ready(if world.agent.is_running() { Err("still running".to_owned()) } else { Ok(()) })
        })
        .await;
        world.agent.kill_nowhere();
        world.agent.restart_after_kill();
    }
    let over = |status: &Value| match system(status, "shop")["state"] == "streaming"
        && status["loads"].as_array().is_none_or(|loads| loads.iter().all(|load| load["state"] == "done"))
    {
        true => Ok(()),
        false => Err("the resync is not over".to_owned()),
    };
    let status = world.agent.until(LONG, over).await;
    world.agent.until(LONG, head(status["journal"]["head"].as_u64().unwrap() + 60)).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = BTreeMap::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    world.quiet().await;

    let there: BTreeMap<u32, Option<String>> = world["erp"]
        .rows("SELECT id, label FROM item WHERE id < 9000")
        .await
        .into_iter()
        .map(|row| (row[0].as_deref().unwrap().parse().unwrap(), row[1].clone()))
        .collect();
    for (id, label) in &written {
        assert_eq!(there.get(id).cloned().flatten(), *label, "row {id}, seed {seed}");
    }
    assert_eq!(there.len(), written.values().flatten().count(), "seed {seed}");
    is_silent(&world).await;
}

#[tokio::test]
async fn everybody_writes_while_a_log_is_lost_and_found() {
    let seeds: Vec<u64> = match std::env::var("ANECHOIC_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..if soak() { 10 } else { 2 }).map(|_| rand::random()).collect(),
    };
    for (seed, shop) in seeds.into_iter().zip([Kind::Postgres17, Kind::Mysql].into_iter().cycle()) {
        everybody_writes_all_the_while(seed, shop).await;
    }
}
