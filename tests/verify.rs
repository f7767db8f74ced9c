//! All systems are compared while everybody writes: what differs is found, what lags is not, and
//! the authority's rows mend it.

use std::time::Duration;

use serde_json::Value;

use super::support::servers::Kind;
use super::support::soak;
use super::support::traffic::{Traffic, accounts, entities};
use super::support::world::World;

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
    }

    // behind the agent's back
    for (system, sql) in [
        (
            "shop",
            "SET sql_log_bin = 0; UPDATE item SET label = 'planted' WHERE id = 11; DELETE FROM item WHERE id = 12",
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
    assert_eq!(counts(&found, "item", "shop")[1..], [1, 1, 0], "{found:#?}");
    assert_eq!(counts(&found, "item", "erp")[1..], [1, 0, 1], "{found:#?}");
    let item = &found.iter().find(|found| found["entity"] == "item").unwrap()["systems"];
    assert_eq!(item["shop"]["fields"], serde_json::json!({ "label": 1 }));
    assert_eq!(item["shop"]["samples"]["different"][0], "11: label = old 11 | label = planted");

    verify(&world, &["--repair"]).await;
    traffic.stop().await;
    world.agent.wait_quiet().await;
    let (code, found) = verify(&world, &[]).await;
    assert_eq!(code, 0, "{found:#?}");
    eprintln!("{}", traffic.check(&world).await);
}

#[tokio::test]
async fn without_an_agent_nothing_can_be_told() {
    let world = entities(World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])).build().await;

    assert_eq!(world.agent.command(&["verify"]).await.status.code(), Some(2));
}
