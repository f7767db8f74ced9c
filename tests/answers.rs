//! Triggers of two systems that answer each other: a circle is cut, and a chain that ends is not.

use std::time::Duration;

use super::support::SOON;
use super::support::quarantine::until_held;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

/// Each row that comes in is answered with a row of another table, under a key that nobody had.
fn answer(kind: Kind, of: &str, with: &str, aside: bool) -> String {
    let insert = format!("INSERT INTO {with} VALUES (NEW.id + 1)");
    match (kind.is_postgres(), aside) {
        (true, aside) => {
            let guard = "IF current_setting('anechoic.applying', true) = 'on' THEN RETURN NEW; END IF;";
            let guard = if aside { guard } else { "" };
            format!(
                "CREATE OR REPLACE FUNCTION answer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {guard} {insert}; \
                 RETURN NEW; END $$; DROP TRIGGER IF EXISTS answer ON {of}; \
                 CREATE TRIGGER answer AFTER INSERT ON {of} FOR EACH ROW EXECUTE FUNCTION answer()"
            )
        }
        (false, aside) => {
            let guard = if aside { "IF @anechoic_applying IS NULL THEN" } else { "IF true THEN" };
            format!(
                "DROP TRIGGER IF EXISTS answer; \
                 CREATE TRIGGER answer AFTER INSERT ON {of} FOR EACH ROW BEGIN {guard} {insert}; END IF; END"
            )
        }
    }
}

async fn ids(world: &World, system: &str) -> Vec<i64> {
    let rows = world[system].rows("SELECT id FROM ping UNION ALL SELECT id FROM pong ORDER BY id").await;
    rows.into_iter().flatten().map(|id| id.unwrap().parse().unwrap()).collect()
}

/// Until the system that nobody may read on has said so, and all is at rest.
async fn stopped(world: &World, system: &str) -> String {
    let mut error = String::new();
    let status = world.agent.until(SOON, |status| {
        let systems = status["systems"].as_array().unwrap();
        let it = systems.iter().find(|it| it["name"] == system).unwrap();
        if it["state"] == "stopped" { Ok(()) } else { Err(format!("{system} is {}", it["state"])) }
    });
    for it in status.await["systems"].as_array().unwrap() {
        assert_eq!(it["state"] == "stopped", it["name"] == system, "{it}");
        error += it["error"].as_str().unwrap_or_default();
    }
    let before = ids(world, system).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // that nothing more comes is what is looked at
    assert_eq!(ids(world, system).await, before);
    error
}

/// From one row on there are sixteen side effects; the seventeenth stays where it was made, until
/// somebody has mended the trigger of `mended`. A restart alone is good for as many again.
async fn circle_is_cut(other: Kind, mended: &str, restarted: bool) {
    let systems = [("crm", Kind::Postgres17), ("shop", other)];
    let ping = Entity::new("ping").key("id", Type::Int);
    // The eighth has to wait for somebody: that it was held makes the chain no shorter.
    let gates: Vec<String> = (1..100).filter(|id| *id != 8).map(|id| format!("({id})")).collect();
    let mut world = World::of(&systems)
        .entity(ping)
        .entity(Entity::new("pong").key("id", Type::Int))
        .ddl("shop", "CREATE TABLE gate (id int PRIMARY KEY)")
        .ddl("shop", &format!("INSERT INTO gate VALUES {}", gates.join(", ")))
        .ddl("shop", "ALTER TABLE pong ADD FOREIGN KEY (id) REFERENCES gate (id)")
        .build()
        .await;
    let tables = [("crm", Kind::Postgres17, "ping", "pong"), ("shop", other, "pong", "ping")];
    for (system, kind, of, with) in tables {
        world[system].admin().await.execute(&answer(kind, of, with, false)).await;
    }
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;

    world["crm"].execute("INSERT INTO ping VALUES (1)").await;
    until_held(&world, 1).await;
    world["shop"].execute("INSERT INTO gate VALUES (8)").await;

    let error = stopped(&world, "shop").await;
    for part in ["on", "pong (answer)", "into", "ping of shop", "@anechoic_applying IS NULL"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut last = 19;
    assert_eq!(ids(&world, "crm").await, (1..last).collect::<Vec<_>>());
    assert_eq!(ids(&world, "shop").await, (1..=last).collect::<Vec<_>>());
    if restarted {
        assert_eq!(world.agent.stop().await.code(), Some(0));
        world.agent.start();
        stopped(&world, "shop").await;
        last += 16;
        assert_eq!(ids(&world, "crm").await, (1..last).collect::<Vec<_>>());
        assert_eq!(ids(&world, "shop").await, (1..=last).collect::<Vec<_>>());
    }

    let (_, kind, of, with) = tables.into_iter().find(|(system, ..)| *system == mended).unwrap();
    world[mended].admin().await.execute(&answer(kind, of, with, true)).await;

    world.agent.ready().await;
    for _ in 0..3 {
        world.agent.wait_quiet().await;
    }
    world.quiet().await;
    last += i64::from(mended == "shop");
    for system in ["crm", "shop"] {
        assert_eq!(ids(&world, system).await, (1..=last).collect::<Vec<_>>(), "{system}");
    }
    world["crm"].execute("INSERT INTO ping VALUES (81)").await;
    for _ in 0..3 {
        world.agent.wait_quiet().await;
    }
    world.quiet().await;
    assert!(ids(&world, "shop").await.len() as i64 <= last + 4, "it has an end now");
}

#[tokio::test]
async fn a_circle_with_mysql_stops_and_goes_on_when_its_trigger_is_mended() {
    circle_is_cut(Kind::Mysql, "shop", false).await;
}

#[tokio::test]
async fn a_circle_with_mariadb_stops_again_after_a_restart_and_goes_on_when_the_other_trigger_is_mended() {
    circle_is_cut(Kind::Mariadb, "crm", true).await;
}

/// Three deep, from both sides at once: what is joined in one transaction must not add up.
#[tokio::test]
async fn chains_that_end_are_carried_however_much_is_written() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
    let line = Entity::new("line").key("id", Type::Int);
    let ledger = Entity::new("ledger").key("line", Type::Int).key("made_by", Type::Varchar(9));
    let audit =
        Entity::new("audit").key("line", Type::Int).key("made_by", Type::Varchar(9)).key("seen_by", Type::Varchar(9));
    let mut world = World::of(&systems).entity(line).entity(ledger).entity(audit).build().await;
    for (system, kind) in systems {
        let book = format!("INSERT INTO ledger VALUES (NEW.id, '{system}')");
        let note = format!("INSERT INTO audit VALUES (NEW.line, NEW.made_by, '{system}')");
        for (name, table, insert) in [("book", "line", book), ("note", "ledger", note)] {
            let sql = match kind.is_postgres() {
                true => format!(
                    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; RETURN NEW; END $$; \
                     CREATE TRIGGER {name} AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
                ),
                false => format!("CREATE TRIGGER {name} AFTER INSERT ON {table} FOR EACH ROW {insert}"),
            };
            world[system].admin().await.execute(&sql).await;
        }
    }
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;

    let write = async |system: &str, from: i64| {
        let mut session = world[system].session().await;
        for id in from..from + 600 {
            session.execute(&format!("INSERT INTO line VALUES ({id})")).await;
        }
    };
    tokio::join!(write("crm", 0), write("shop", 1000));

    // What an applied row sets off is written only then: a wait for each.
    for _ in 0..4 {
        world.agent.wait_quiet().await;
    }
    world.quiet().await;
    for (system, _) in systems {
        let count = async |table: &str| world[system].value(&format!("SELECT count(*) FROM {table}")).await.unwrap();
        assert_eq!([count("line").await, count("ledger").await, count("audit").await], ["1200", "2400", "4800"]);
    }
}
