//! A PostgreSQL system that is only written to: its server does not send back what we write, and yet
//! its log's place always goes with what was seen.

use std::time::Duration;

use super::support::books::Books;
use super::support::eventually;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("erp", Kind::Mariadb), ("shop", Kind::Postgres17)];

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(40))
}

const ECHOES: &str = "capture_echoes_total";

#[tokio::test]
async fn what_is_written_to_a_mere_target_is_not_sent_back() {
    let entity = contact().option_in("shop", r#"role = "target""#);
    let mut world = World::of(&SYSTEMS).entity(entity).start().await;
    let echoes = async |world: &World| Books::read(&world.agent).await.get(ECHOES, "shop");
    let before = echoes(&world).await;
    for id in 0..20 {
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({id}, 'of {id}')")).await;
        world.quiet().await;
    }

    // of each transaction the marker alone, which is shown behind it
    let shown = echoes(&world).await - before;
    assert!((1..=25).contains(&shown), "{shown} echoes of 20 transactions");
    let under = "SELECT count(*) FROM pg_replication_origin_status WHERE external_id LIKE '%/' || current_database() \
                 || '/%' AND local_lsn > '0/0'";
    assert_eq!(world["shop"].admin().await.rows(under).await, [[Some("1".to_owned())]]);
    // its users are heard, and its log is let go
    world["shop"].execute("UPDATE contact SET name = 'drift' WHERE id = 7").await;
    let end = world["shop"].admin().await.rows("SELECT pg_current_wal_flush_lsn()").await;
    let end = end[0][0].clone().unwrap();
    eventually(Duration::from_secs(30), || async {
        let passed = format!(
            "SELECT confirmed_flush_lsn >= '{end}', confirmed_flush_lsn FROM pg_replication_slots \
             WHERE database = current_database()"
        );
        match world["shop"].admin().await.rows(&passed).await[0].clone() {
            row if row[0].as_deref() == Some("t") => Ok(()),
            row => Err(format!("{row:?}, not {end}")),
        }
    })
    .await;
    let books = Books::read(&world.agent).await;
    assert_eq!(books.get("capture_drift_changes_total", "shop"), 1);

    let origins = "SELECT count(*) FROM pg_replication_origin WHERE roname LIKE '%/' || current_database() || '/%'";
    assert_eq!(world["shop"].value(origins).await.as_deref(), Some("1"));
    assert_eq!(world["crm"].value(origins).await.as_deref(), Some("0"));
    world.agent.stop().await;
    for system in &world.systems {
        system.db.lend_ownership(true).await;
    }
    world.agent.run(&["teardown"]).await;
    assert_eq!(world["shop"].value(origins).await.as_deref(), Some("0"));
}

/// What a user of it changes once it is more than a target is no conflict with what was there.
#[tokio::test]
async fn whoever_writes_there_later_has_seen_what_was_there() {
    for delay in [3, 90, 400] {
        let entity = contact().option_in("shop", r#"role = "target""#);
        let mut world = World::of(&SYSTEMS).entity(entity).start().await;
        world["crm"].execute("INSERT INTO contact VALUES (1, 'first')").await;
        world.quiet().await;
        let mut last = String::new();
        for n in 0..60 {
            last = format!("n{n}");
            world["crm"].execute(&format!("UPDATE contact SET name = '{last}' WHERE id = 1")).await;
        }
        let there = || async { world["shop"].value("SELECT name FROM contact").await };
        eventually(Duration::from_secs(20), || async {
            there().await.filter(|name| *name == last).map(drop).ok_or("not there".into())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        world.agent.kill();
        let config = std::fs::read_to_string(world.agent.config()).unwrap();
        std::fs::write(world.agent.config(), config.replace(r#"role = "target""#, r#"role = "both""#)).unwrap();
        world.setup().await;
        world["shop"].execute("UPDATE contact SET name = 'shop' WHERE id = 1").await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        world.quiet().await;

        for system in &world.systems {
            let name = system.db.value("SELECT name FROM contact").await;
            assert_eq!(name.as_deref(), Some("shop"), "{} after {delay} ms", system.name);
        }
        let books = Books::read(&world.agent).await;
        assert_eq!(books.get("entity_conflicts_total", "contact"), 0);
    }
}

/// Its rows are compared before anything is written there.
#[tokio::test]
async fn a_mere_target_whose_slot_is_gone_is_brought_back() {
    let entity = contact().option_in("shop", r#"role = "target""#);
    let mut world = World::of(&SYSTEMS).entity(entity).start().await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'first'), (2, 'second')").await;
    world.quiet().await;
    world.agent.stop().await;
    let slots =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    world["shop"].admin().await.rows(slots).await;
    world["crm"].execute("UPDATE contact SET name = 'meanwhile' WHERE id = 2").await;
    world.agent.start();
    let stopped = |status: &serde_json::Value| match status["systems"][2]["state"] == "stopped" {
        true => Ok(()),
        false => Err(format!("{}", status["systems"][2])),
    };
    world.agent.until(Duration::from_secs(60), stopped).await;

    // the server's log goes on meanwhile
    let mut other = world["shop"].session().await;
    other.execute("CREATE TABLE unbound (n int)").await;
    let busy = tokio::spawn(async move {
        loop {
            other.execute("INSERT INTO unbound VALUES (1)").await;
        }
    });
    world.agent.run(&["load", "--resync", "shop"]).await;
    world["crm"].execute("UPDATE contact SET name = 'later' WHERE id = 1").await;
    world.quiet().await;

    busy.abort();
    let rows = world["shop"].rows("SELECT name FROM contact ORDER BY id").await.concat();
    assert_eq!(rows, [Some("later".to_owned()), Some("meanwhile".to_owned())]);
}
