//! A COMMIT of which nobody knows what became: the connection to the target is cut before it
//! reached the server, while the server works on it, or after the answer. Exactly once all the
//! same, shown by a ledger without key.

use std::time::Duration;

use serde_json::Value;

use super::support::proxy::Cut;
use super::support::servers::Kind;
use super::support::traffic::{Traffic, entities, open_accounts};
use super::support::world::World;
use super::support::{SOON, soak};

/// One lone transaction for each cut, then cuts under load.
async fn commit_cut(source: (&str, Kind), target: (&str, Kind)) {
    let world = entities(World::of(&[source, target]).proxied(target.0)).start().await;
    open_accounts(&world).await;
    let proxy = world.proxy(target.0);
    let count = || async { world.rows("ledger", target.0).await.len() };
    let mut fired = 0;
    for (at, cut) in [Cut::Before, Cut::Sent, Cut::Answered].into_iter().enumerate() {
        proxy.cut_at("COMMIT", cut);
        world[source.0].execute(&format!("INSERT INTO ledger VALUES ('lone', {at}, 1), ('lone', {at}, 1)")).await;
        fired += 1;
        proxy.wait_until_fired(fired).await;
        world.agent.wait_quiet().await;
        assert_eq!(count().await, 2 * (at + 1), "after {cut:?}");
    }

    // the accounts, and three times two rows; each counted once though committed in the dark
    let rows = world.rows("account", target.0).await.len() as u64 + 6;
    let status = world.agent.status().await.unwrap();
    let apply = &status["systems"].as_array().unwrap().iter().find(|of| of["name"] == target.0).unwrap()["apply"];
    if source.0 == world.systems[0].name {
        assert_eq!((apply["transactions"].as_u64(), apply["changes"].as_u64()), (Some(4), Some(rows)), "{apply}");
    }

    let mut traffic = Traffic::new();
    traffic.start(&world, &[source.0, target.0], Duration::from_millis(4));
    for _ in 0..if soak() { 20 } else { 3 } {
        for cut in [Cut::Before, Cut::Sent, Cut::Answered] {
            // not the commit that raises the epoch after the last cut: one of rows
            let applied = applied(&world, target.0).await;
            world.agent.until(SOON, |status| more(status, target.0, applied)).await;
            proxy.cut_at("COMMIT", cut);
            fired += 1;
            proxy.wait_until_fired(fired).await;
        }
    }
    traffic.stop().await;
    world.agent.wait_quiet().await;
    eprintln!("{}: {fired} commits cut: {}", target.0, traffic.check(&world).await);
}

fn seq(status: &Value, system: &str) -> Option<u64> {
    let systems = status["systems"].as_array()?;
    systems.iter().find(|of| of["name"] == system)?["apply"]["seq"].as_u64()
}

async fn applied(world: &World, system: &str) -> u64 {
    seq(&world.agent.status().await.unwrap(), system).unwrap()
}

fn more(status: &Value, system: &str, than: u64) -> Result<(), String> {
    if seq(status, system) > Some(than) { Ok(()) } else { Err(format!("nothing applied since seq {than}")) }
}

#[tokio::test]
async fn unknown_outcome_in_postgresql() {
    commit_cut(("shop", Kind::Mysql), ("crm", Kind::Postgres17)).await;
}

#[tokio::test]
async fn unknown_outcome_in_mysql() {
    commit_cut(("crm", Kind::Postgres17), ("shop", Kind::Mysql)).await;
}

#[tokio::test]
async fn unknown_outcome_in_mariadb() {
    commit_cut(("crm", Kind::Postgres17), ("erp", Kind::Mariadb)).await;
}
