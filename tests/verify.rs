//! All systems are compared while everybody writes: what differs is found, what lags is not, and
//! the authority's rows mend it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::support::servers::{Kind, Session};
use super::support::traffic::{Traffic, accounts, entities};
use super::support::world::World;
use super::support::{SOON, soak};

/// Exit code and what was printed.
async fn verify(world: &World, options: &[&str]) -> (i32, Vec<Value>) {
    let words: Vec<&str> = ["verify", "item", "account", "--json"].iter().chain(options).copied().collect();
    let output = world.agent.command(&words).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = serde_json::from_str(&said);
    (
        output.status.code().unwrap(),
        found.unwrap_or_else(|e| panic!("{e}: {said} {}", String::from_utf8_lossy(&output.stderr))),
    )
}

fn counts(found: &[Value], entity: &str, system: &str) -> [u64; 4] {
    let entity = found.iter().find(|found| found["entity"] == entity).unwrap();
    ["equal", "different", "missing", "extra"].map(|class| entity["systems"][system][class].as_u64().unwrap())
}

#[tokio::test]
async fn lag_is_no_difference_and_what_was_planted_is_found_and_repaired() {
    let rows: u64 = if soak() { 1_000_000 } else { 20_000 };
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = entities(World::of(&systems)).build().await;
    world["crm"]
        .execute(&format!("INSERT INTO item SELECT n, CONCAT('old ', n), n FROM generate_series(1, {rows}) AS s(n)"))
        .await;
    world["crm"].execute(&accounts(&world)).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready_within(Duration::from_secs(300)).await;
    world.quiet().await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "shop", "erp"], Duration::from_millis(3));

    // everything is equal, and nothing is at rest
    for _ in 0..if soak() { 10 } else { 3 } {
        let (code, found) = verify(&world, &[]).await;
        assert_eq!(code, 0, "{found:#?}");
        assert!(counts(&found, "item", "shop")[0] >= rows);
        let item = found.iter().find(|found| found["entity"] == "item").unwrap();
        eprintln!("{rows} rows of three systems in {} s", item["seconds"]);
    }

    // behind the agent's back
    for (system, sql) in [
        (
            "shop",
            "SET sql_log_bin = 0; UPDATE item SET label = 'planted' WHERE id = 11; DELETE FROM item WHERE id = 12; \
             UPDATE item SET label = 'old 14 ' WHERE id = 14",
        ),
        (
            "erp",
            "SET sql_log_bin = 0; INSERT INTO item VALUES (500000000, 'extra', 1); UPDATE item SET price = 13.01 WHERE id = 13",
        ),
    ] {
        let mut admin = world[system].admin().await;
        admin.execute(&format!("USE {}; {sql}", world[system].name)).await;
    }
    let (code, found) = verify(&world, &["--values"]).await;
    assert_eq!(code, 1);
    assert_eq!(counts(&found, "item", "shop")[1..], [2, 1, 0], "{found:#?}");
    assert_eq!(counts(&found, "item", "erp")[1..], [1, 0, 1], "{found:#?}");
    let item = &found.iter().find(|found| found["entity"] == "item").unwrap()["systems"];
    assert_eq!(item["shop"]["fields"], serde_json::json!({ "label": 2 }));
    let samples = item["shop"]["samples"]["different"].to_string();
    assert!(samples.contains("11: crm: label = old 11 | shop: label = planted"), "{samples}");

    let (code, found) = verify(&world, &["--repair"]).await;
    let lost: u64 = found.iter().map(|entity| entity["lost"].as_u64().unwrap()).sum();
    assert_eq!(code, i32::from(lost > 0), "all is mended: {found:#?}");
    traffic.stop().await;
    world.agent.wait_quiet().await;
    let (code, found) = verify(&world, &[]).await;
    assert_eq!(code, 0, "{found:#?}");
    let (_, highest) = world.agent.memory();
    eprintln!("{}; at most {} MiB of memory", traffic.check(&world).await, highest >> 20);
}

/// `every` and `max_rate` as the file spells them.
fn by_itself(every: &str, max_rate: &str) -> String {
    format!("[verify]\nevery = \"{every}\"\nmax_rate = {max_rate}\n")
}

/// The agent's configuration with another beginning of a line.
fn change_config(world: &World, from: &str, to: &str) {
    let text = std::fs::read_to_string(world.agent.config()).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(world.agent.config(), text.replace(from, to)).unwrap();
}

/// What the newest comparison of items came to.
fn verdict(status: &Value) -> Value {
    let entities = status["verification"]["entities"].as_array().cloned().unwrap_or_default();
    entities.into_iter().find(|entity| entity["entity"] == "item").unwrap_or_default()
}

async fn until_outcome(world: &World, outcome: &str) -> Value {
    let check = |status: &Value| match verdict(status)["outcome"] == outcome {
        true => Ok(()),
        false => Err(format!("not {outcome}")),
    };
    verdict(&world.agent.until(SOON, check).await)
}

#[tokio::test]
async fn systems_are_compared_by_themselves_and_what_differs_is_told_everywhere() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
    let mut world = entities(World::of(&systems)).toml(&by_itself("1h", "\"100000 rows/s\"")).start().await;
    world["crm"].execute("INSERT INTO item SELECT n, 'old', n FROM generate_series(1, 300) AS s(n)").await;
    world.quiet().await;

    // not at the start
    let status = world.agent.status().await.unwrap();
    assert_eq!(verdict(&status), Value::Null);
    assert!(status["verification"]["next"].is_string(), "{status}");

    world.agent.stop().await;
    change_config(&world, "every = \"1h\"", "every = \"1s\"");
    world.agent.start();
    world.agent.ready().await;
    let found = until_outcome(&world, "same").await;
    assert_eq!((&found["against"], &found["systems"]["shop"]["compared"]), (&"crm".into(), &300.into()), "{found}");

    let mut admin = world["shop"].admin().await;
    admin
        .execute("SET sql_log_bin = 0; UPDATE item SET label = 'planted' WHERE id = 3; DELETE FROM item WHERE id = 4")
        .await;
    let found = until_outcome(&world, "different").await;
    let pair = &found["systems"]["shop"];
    assert_eq!((&pair["different"], &pair["missing"], &pair["extra"]), (&1.into(), &1.into(), &0.into()), "{found}");
    let metrics = world.agent.metrics().await;
    for line in [
        "anechoic_verify_compared_rows{entity=\"item\",system=\"shop\",against=\"crm\"} 300",
        "anechoic_verify_missing_rows{entity=\"item\",system=\"shop\",against=\"crm\"} 1",
        "anechoic_verify_different_rows{entity=\"item\",system=\"shop\",against=\"crm\"} 1",
        "anechoic_verify_extra_rows{entity=\"item\",system=\"shop\",against=\"crm\"} 0",
        "anechoic_verify_outcome{entity=\"item\",outcome=\"different\"} 1",
        "anechoic_verify_outcome{entity=\"item\",outcome=\"same\"} 0",
        "anechoic_verify_last_run_time_seconds{entity=\"item\"} ",
        "anechoic_verify_duration_seconds{entity=\"item\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let log = world.agent.log();
    assert!(log.contains("anechoic verify --repair item") && !log.contains("planted"), "{log}");
    let glance = world.agent.run(&["status"]).await;
    assert!(
        glance.contains("different, compared with crm") && glance.contains("shop: 1 different, 1 missing"),
        "{glance}"
    );

    // whoever asks is served, whatever runs by itself
    verify(&world, &["--repair"]).await;
    world.agent.wait_quiet().await;
    let found = until_outcome(&world, "same").await;

    // known after a restart, which begins none
    change_config(&world, "every = \"1s\"", "every = \"1h\"");
    let known = verdict(&world.agent.status().await.unwrap());
    world.agent.stop().await;
    world.agent.start();
    world.agent.ready().await;
    let again = verdict(&world.agent.status().await.unwrap());
    assert_eq!(again["outcome"], found["outcome"], "{known} {again}");
    assert!(again["at"].as_str() >= known["at"].as_str(), "{known} {again}");
}

#[tokio::test]
async fn a_slow_comparison_makes_room_for_who_asks_and_ends_with_the_agent() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mariadb)];
    let mut world = entities(World::of(&systems)).toml(&by_itself("1s", "5")).start().await;
    world["crm"].execute("INSERT INTO item SELECT n, 'old', n FROM generate_series(1, 2000) AS s(n)").await;
    world.quiet().await;
    let comparing = |status: &Value| match status["verification"]["comparing"] == "item" {
        true => Ok(()),
        false => Err("not comparing".to_owned()),
    };
    world.agent.until(SOON, comparing).await;

    // four minutes, at five rows a second
    let (code, found) = verify(&world, &["--max-rate", "2000 rows/s"]).await;
    assert_eq!(code, 0, "{found:#?}");
    let item = found.iter().find(|found| found["entity"] == "item").unwrap();
    assert!(item["seconds"].as_f64().unwrap() >= 1.9, "4000 rows at 2000 a second: {item}");

    world.agent.until(SOON, comparing).await;
    world.agent.stop().await;
}

/// Somebody who goes on making rows in one system; the keys that were acknowledged.
fn insert_live(world: &World, system: &str, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    let db = &world[system];
    let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
    tokio::spawn(async move {
        let mut session = Session::open_as(&server, &user, server.port, Some(&name)).await.unwrap();
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            session.execute(&format!("INSERT INTO item VALUES ({}, 'live', 1)", 700_001 + made)).await;
            made += 1;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        made
    })
}

/// Rows that only lower systems have go, those that somebody makes there meanwhile never do.
#[tokio::test]
async fn what_only_lower_systems_have_is_deleted_where_asked_and_nothing_that_is_live() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = entities(World::of(&systems)).build().await;
    let rows = if soak() { 100_000 } else { 2_000 };
    let ranges = |system: &str| match system {
        "crm" => vec![(1, rows)],
        "shop" => vec![(1, rows), (900_001, 900_050)],
        _ => vec![(1, rows - 10), (900_026, 900_080)],
    };
    for (system, kind) in systems {
        for (from, to) in ranges(system) {
            let series = match kind {
                Kind::Postgres17 => format!("generate_series({from}, {to}) AS s(n)"),
                Kind::Mariadb => format!("(SELECT seq AS n FROM seq_{from}_to_{to}) AS s"),
                _ => format!(
                    "(WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {to}) \
                     SELECT /*+ SET_VAR(cte_max_recursion_depth=1000000) */ n FROM s) AS s"
                ),
            };
            world[system].execute(&format!("INSERT INTO item SELECT n, 'old', n FROM {series}")).await;
        }
    }
    world["crm"].execute(&accounts(&world)).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    // Every row that goes in the shop, for however short a time.
    let mut admin = world["shop"].admin().await;
    admin.execute("CREATE TABLE gone (id bigint)").await;
    admin.execute("CREATE TRIGGER goes AFTER DELETE ON item FOR EACH ROW INSERT INTO gone VALUES (OLD.id)").await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "erp"], Duration::from_millis(4));
    let stop = Arc::new(AtomicBool::new(false));
    let live = insert_live(&world, "shop", stop.clone());

    let words = ["load", "item", "--delete-extra", "--json"];
    let load = async |more: &[&str]| -> Value {
        let said = world.agent.run(&words.iter().chain(more).copied().collect::<Vec<_>>()).await;
        serde_json::from_str::<Vec<Value>>(&said).unwrap().remove(0)
    };
    let dry = load(&["--dry-run"]).await;
    let of = |load: &Value, system: &str, class: &str| load["systems"][system][class].as_u64().unwrap_or(0);
    assert_eq!((of(&dry, "shop", "extra"), of(&dry, "erp", "extra"), &dry["deleted"]), (50, 55, &0.into()), "{dry:#}");
    let extra = "SELECT count(*) FROM item WHERE id BETWEEN 900001 AND 900080";
    assert_eq!(world["erp"].value(extra).await.as_deref(), Some("55"));

    let rate = (rows / 2).to_string();
    let loaded = load(&["--max-rate", &rate]).await;
    assert_eq!((of(&loaded, "shop", "extra"), of(&loaded, "erp", "extra")), (50, 55), "{loaded:#}");
    assert_eq!((&loaded["state"], &loaded["deleted"]), (&"done".into(), &(50 + 55).into()), "{loaded:#}");
    traffic.pass(20).await;
    stop.store(true, Ordering::Relaxed);
    let made = live.await.unwrap();
    traffic.stop().await;
    world.agent.wait_quiet().await;

    for (system, _) in systems {
        assert_eq!(world[system].value(extra).await.as_deref(), Some("0"), "{system}");
        let there = world[system].value("SELECT count(*) FROM item WHERE label = 'live'").await;
        assert_eq!(there, Some(made.to_string()), "{system}");
    }
    let gone = admin.rows("SELECT min(id), max(id), count(*) FROM gone WHERE id BETWEEN 700001 AND 900080").await;
    assert_eq!(gone[0], ["900001", "900050", "50"].map(|n| Some(n.to_owned())), "{made} were made live");
    eprintln!("{made} rows made live; {}", traffic.check(&world).await);
}

#[tokio::test]
async fn entities_without_a_key_are_named_as_what_is_neither_loaded_nor_compared() {
    let world = entities(World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])).start().await;

    for words in [&["verify"][..], &["load"], &["check"]] {
        let output = world.agent.command(words).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
        assert!(said.contains("ledger: has no key") && !said.contains("item: has no key"), "{words:?}: {said}");
    }
    for words in [["verify", "ledger"], ["load", "ledger"]] {
        let output = world.agent.command(&words).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("entity \"ledger\" has no key"), "{words:?}: {said}");
    }
}

#[tokio::test]
async fn without_an_agent_nothing_can_be_told() {
    let world = entities(World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])).build().await;

    assert_eq!(world.agent.command(&["verify"]).await.status.code(), Some(2));
}
