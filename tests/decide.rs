//! Conflicts that wait for a person: the version that is there stays, the other is kept with both
//! images, and what somebody decides goes to all systems through the journal.

use std::time::Duration;

use serde_json::Value;

use super::support::books::Books;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

/// Three systems that agree on contacts 1 to 4.
async fn four() -> World {
    let contact = Entity::new("contact")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("score", Type::Int)
        .option("conflict = \"manual\"");
    let world = World::of(&SYSTEMS).proxied("shop").proxied("erp").entity(contact).start().await;
    let rows: Vec<String> = (1..=4).map(|id| format!("({id}, 'name {id}', {id})")).collect();
    world["crm"].execute(&format!("INSERT INTO contact VALUES {}", rows.join(", "))).await;
    world.quiet().await;
    world
}

/// Both write without seeing each other; what the crm wrote is journaled first.
async fn meet(world: &World, crm: &str, shop: &str) {
    world.proxy("shop").stall();
    world["shop"].execute(shop).await;
    let head = world.agent.status().await.unwrap()["journal"]["head"].as_u64().unwrap();
    world["crm"].execute(crm).await;
    world
        .agent
        .until(Duration::from_secs(20), |status| match status["journal"]["head"].as_u64() > Some(head) {
            true => Ok(()),
            false => Err("not journaled".into()),
        })
        .await;
    world.proxy("shop").pass();
    world.quiet().await;
}

async fn open(world: &World) -> Vec<Value> {
    let listed = world.agent.run(&["conflicts", "list", "--open", "--json"]).await;
    serde_json::from_str(&listed).unwrap()
}

/// Its id.
async fn the_open_one(world: &World) -> String {
    let open = open(world).await;
    assert_eq!(open.len(), 1, "{open:?}");
    open[0]["id"].as_str().unwrap().to_owned()
}

/// Of contact 1, as every system has it.
async fn first(world: &World) -> Option<String> {
    let rows = world.rows("contact", "erp").await;
    let row = rows.into_iter().find(|row| row[0].as_deref() == Some("1"))?;
    Some(row[1..].iter().map(|value| value.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(" "))
}

const CRM: &str = "UPDATE contact SET name = 'of crm' WHERE id = 1";
const SHOP: &str = "UPDATE contact SET name = 'of shop', score = 10 WHERE id = 1";

#[tokio::test]
async fn what_is_there_stays_until_somebody_takes_the_other_version() {
    let mut world = four().await;
    meet(&world, CRM, SHOP).await;
    assert_eq!(first(&world).await.as_deref(), Some("of crm 1"));
    let id = the_open_one(&world).await;
    let shown = world.agent.run(&["conflicts", "show", &id]).await;
    for said in ["waits for a person", "name 1 -> of crm", "name 1 -> of shop"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    let status = world.agent.status().await.unwrap();
    assert_eq!(status["entities"][0]["waiting"], 1, "{status}");

    world.agent.stop().await;
    assert_eq!(the_open_one(&world).await, id, "of the journal alone");
    let alone = world.agent.command(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(alone.status.code() == Some(1) && said.contains("no agent runs"), "{said}");
    world.agent.start();
    world.agent.ready().await;
    assert_eq!(the_open_one(&world).await, id, "after a restart");
    let wrong = world.agent.command(&["conflicts", "resolve", &id, "--take", "erp"]).await;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(1) && said.contains("--take shop or --take crm"), "{said}");
    world.agent.run(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    world.quiet().await;

    assert_eq!(first(&world).await.as_deref(), Some("of shop 10"));
    assert_eq!(open(&world).await, [] as [Value; 0]);
    let shown = world.agent.run(&["conflicts", "show", &id]).await;
    assert!(shown.contains("resolved by entry"), "{shown}");
    assert_eq!(world.agent.status().await.unwrap()["entities"][0]["waiting"], 0);
    world.agent.restart_after_kill();
    world.agent.ready().await;
    world.quiet().await;
    assert_eq!(open(&world).await, [] as [Value; 0], "not resurrected");
}

#[tokio::test]
async fn values_of_a_persons_own_go_to_all_systems() {
    let world = four().await;
    meet(&world, CRM, SHOP).await;
    let id = the_open_one(&world).await;

    let mistaken = world.agent.command(&["conflicts", "resolve", &id, "--set", "nam=x"]).await;
    let said = String::from_utf8_lossy(&mistaken.stderr).into_owned();
    world.agent.run(&["conflicts", "resolve", &id, "--set", "name=it's both", "--set-null", "score"]).await;
    world.quiet().await;

    assert!(said.contains("nearest: \"name\""), "{said}");
    assert_eq!(first(&world).await.as_deref(), Some("it's both NULL"));
    Books::read(&world.agent).await.assert_balanced(&["crm", "shop", "erp"]);
}

#[tokio::test]
async fn a_person_may_leave_what_is_there() {
    let world = four().await;
    meet(&world, CRM, SHOP).await;
    let id = the_open_one(&world).await;
    let before = world.agent.status().await.unwrap()["journal"]["head"].clone();

    let said = world.agent.run(&["conflicts", "resolve", &id, "--take", "crm"]).await;
    world.quiet().await;

    assert!(said.contains("stays as it is"), "{said}");
    assert_eq!(first(&world).await.as_deref(), Some("of crm 1"));
    assert_eq!(open(&world).await, [] as [Value; 0]);
    assert_eq!(world.agent.status().await.unwrap()["journal"]["head"], before, "nothing was written");
}

#[tokio::test]
async fn a_change_by_who_saw_what_is_there_ends_it() {
    let mut world = four().await;
    meet(&world, CRM, SHOP).await;
    let id = the_open_one(&world).await;

    world["erp"].execute("UPDATE contact SET name = 'settled' WHERE id = 1").await;
    world.quiet().await;

    assert_eq!(first(&world).await.as_deref(), Some("settled 1"));
    assert_eq!(open(&world).await, [] as [Value; 0]);
    let shown = world.agent.run(&["conflicts", "show", &id]).await;
    assert!(shown.contains("superseded by entry"), "{shown}");
    world.agent.restart_after_kill();
    world.agent.ready().await;
    assert_eq!(open(&world).await, [] as [Value; 0], "not resurrected");
}

#[tokio::test]
async fn deletions_are_decided_like_any_change() {
    let world = four().await;
    meet(&world, CRM, "DELETE FROM contact WHERE id = 1").await;
    let id = the_open_one(&world).await;
    world.agent.run(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    world.quiet().await;
    assert_eq!(first(&world).await, None, "deleted everywhere");

    meet(&world, "DELETE FROM contact WHERE id = 2", "UPDATE contact SET name = 'back' WHERE id = 2").await;
    let id = the_open_one(&world).await;
    assert_eq!(world["erp"].rows("SELECT count(*) FROM contact WHERE id = 2").await[0][0].as_deref(), Some("0"));
    world.agent.run(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    world.quiet().await;

    let rows = world["crm"].rows("SELECT name, score FROM contact WHERE id = 2").await;
    assert_eq!(rows, [[Some("back".to_owned()), Some("2".to_owned())]]);
    assert_eq!(open(&world).await, [] as [Value; 0]);
}

/// Whoever could not be asked is named, and what was written there meanwhile loses, and is told.
#[tokio::test]
async fn what_a_system_that_was_away_wrote_loses_to_what_a_person_took_back() {
    let world = four().await;
    let bad = "UPDATE contact SET name = 'bad' WHERE id = 1 RETURNING pg_current_xact_id()::text";
    let bad = world["crm"].rows(bad).await[0][0].clone().unwrap();
    world.quiet().await;
    world.proxy("shop").stall();
    world["shop"].execute("UPDATE contact SET name = 'unseen' WHERE id = 1").await;

    let undone = world.agent.run(&["undo", "--tx", &bad]).await;
    world.proxy("shop").pass();
    world.quiet().await;

    assert!(undone.contains("shop: ") && undone.contains("may be lost"), "{undone}");
    assert_eq!(first(&world).await.as_deref(), Some("name 1 1"));
    let listed: Value = serde_json::from_str(&world.agent.run(&["conflicts", "--json"]).await).unwrap();
    let of = ["system", "against", "rule"].map(|field| listed[0][field].clone());
    assert_eq!(Value::from(of.to_vec()), serde_json::json!(["shop", "agent", "person"]), "{listed}");
}
