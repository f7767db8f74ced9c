//! The books balance: what was captured has one fate, what was addressed has one fate, whatever
//! went wrong meanwhile.

use super::support::agent::Agent;
use super::support::books::Books;
use super::support::servers::{Db, Kind, Rows};
use super::support::world::{Entity, Type, World};

const SYSTEMS: [&str; 3] = ["crm", "shop", "erp"];

/// Contacts live everywhere, though one of the shop's rules is its own. Orders are made in the
/// shop; `erp` has those of one country and works on them, `crm` is told.
async fn three() -> World {
    let contact =
        Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)).field("born", Type::Date);
    let order = Entity::new("order")
        .key("id", Type::Int)
        .field("country", Type::Varchar(2))
        .field("amount", Type::Int)
        .renamed()
        .option_in("crm", "role = \"target\"")
        .option_in("shop", "role = \"source\"")
        .option_in("erp", "where = \"country = 'DE'\"");
    World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)])
        .proxied("shop")
        .proxied("crm")
        .entity(contact)
        .entity(order)
        .ddl("shop", "ALTER TABLE contact ADD CONSTRAINT named CHECK (name <> 'forbidden')")
        .start()
        .await
}

/// Until all is applied that can be: what is in quarantine is no news here.
async fn settled(agent: &Agent) {
    let output = agent.command(&["wait", "--timeout", "120s"]).await;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("in quarantine") && !said.contains("not within"), "{said}");
}

/// Changes of every kind on keys of its own, 180 of them.
async fn contacts(db: &Db, base: u64) {
    let rows: Vec<String> = (base..base + 100).map(|id| format!("({id}, 'name', '2000-01-01')")).collect();
    db.execute(&format!("INSERT INTO contact VALUES {}", rows.join(", "))).await;
    db.execute(&format!("UPDATE contact SET name = 'many' WHERE id BETWEEN {base} AND {}", base + 49)).await;
    db.execute(&format!("DELETE FROM contact WHERE id BETWEEN {} AND {}", base + 50, base + 59)).await;
    for id in base..base + 20 {
        db.execute(&format!("UPDATE contact SET name = 'one' WHERE id = {id}")).await;
    }
}

/// 60 orders, then work on them on all sides.
async fn orders(world: &World) {
    let [crm, shop, erp] = SYSTEMS.map(|name| &world[name]);
    let rows: Vec<String> =
        (0..60).map(|id| format!("({id}, '{}', 1)", if id % 2 == 0 { "DE" } else { "FR" })).collect();
    shop.execute(&format!("INSERT INTO order_shop VALUES {}", rows.join(", "))).await;
    settled(&world.agent).await;
    // journaled: 30, 1 that leaves the filter, 1 that enters it
    erp.execute("UPDATE order_erp SET amount_erp = 2 WHERE country_erp = 'DE'").await;
    erp.execute("UPDATE order_erp SET country_erp = 'FR' WHERE id_erp = 2").await;
    erp.execute("INSERT INTO order_erp VALUES (1001, 'FR', 1), (1002, 'FR', 1), (1003, 'FR', 1)").await;
    erp.execute("UPDATE order_erp SET country_erp = 'DE' WHERE id_erp = 1001").await;
    // its own business, as the three before
    erp.execute("UPDATE order_erp SET amount_erp = 2 WHERE id_erp IN (1002, 1003)").await;
    erp.execute("DELETE FROM order_erp WHERE id_erp = 1003").await;
    // nobody else hears of it
    crm.execute("UPDATE \"order\" SET amount = 77 WHERE id IN (1, 3, 5)").await;
    settled(&world.agent).await;
    // leaves what erp has; is where erp has a row of its own
    shop.execute("UPDATE order_shop SET country_shop = 'FR' WHERE id_shop = 4").await;
    shop.execute("INSERT INTO order_shop VALUES (1002, 'DE', 5)").await;
    settled(&world.agent).await;
}

/// Changes that were for a system and not set aside, which is tried again now and then.
fn written(books: &Books, system: &str) -> u64 {
    books.get("apply_addressed_changes_total", system) - books.get("apply_held_changes_total", system)
}

async fn contacts_of(world: &World, system: &str) -> Rows {
    let mut rows = world.rows("contact", system).await;
    // in quarantine on their way into and out of the shop
    rows.retain(|row| !matches!(row[0].as_deref(), Some("9002" | "9003")));
    rows
}

async fn assert_same_contacts(world: &World) {
    let expected = contacts_of(world, "crm").await;
    for system in ["shop", "erp"] {
        assert_eq!(contacts_of(world, system).await, expected, "{system}");
    }
}

#[tokio::test]
async fn every_change_has_one_fate_whatever_happens_to_it() {
    let mut world = three().await;
    let [crm, shop, erp] = SYSTEMS.map(|name| &world[name]);

    tokio::join!(contacts(crm, 1000), contacts(shop, 2000), contacts(erp, 3000));
    orders(&world).await;
    let books = Books::read(&world.agent).await;
    assert_eq!(SYSTEMS.map(|s| books.get("capture_filtered_changes_total", s)), [3, 0, 6]);
    assert_eq!(SYSTEMS.map(|s| books.get("capture_drift_changes_total", s)), [3, 0, 0]);
    assert_eq!(SYSTEMS.map(|s| books.get("capture_journaled_changes_total", s)), [180, 180 + 62, 180 + 32]);
    assert_eq!(SYSTEMS.map(|s| written(&books, s)), [360 + 62 + 32, 360, 360 + 62 - 1]);
    books.assert_balanced(&SYSTEMS);
    let made = |system: &str, op: &str| {
        books.sample(&format!(
            "capture_entity_changes_total{{system=\"{system}\",entity=\"contact\",operation=\"{op}\"}}"
        ))
    };
    for system in SYSTEMS {
        assert_eq!(["insert", "update", "delete"].map(|op| made(system, op)), [100.0, 70.0, 10.0], "{system}");
        let deleted =
            format!("apply_entity_changes_total{{system=\"{system}\",entity=\"contact\",operation=\"delete\"}}");
        assert_eq!(books.sample(&deleted), 20.0, "{system}"); // the others'
        assert!(books.sum("apply_latency_seconds_count", system) > 0, "{system}");
        assert!(books.get("capture_bytes_total", system) > 100 * 20, "{system}");
        assert!(books.get("apply_bytes_total", system) > 200 * 20, "{system}");
    }

    // set aside in the shop: one is mended at its source, one stays; one cannot leave the shop
    crm.execute("INSERT INTO contact VALUES (9000, 'a', NULL), (9001, 'forbidden', NULL), (9002, 'forbidden', NULL)")
        .await;
    settled(&world.agent).await;
    crm.execute("UPDATE contact SET name = 'allowed' WHERE id = 9001").await;
    shop.execute("SET sql_mode = ''; INSERT INTO contact VALUES (9003, 'unborn', '0000-00-10')").await;
    settled(&world.agent).await;
    let books = Books::read(&world.agent).await;
    assert_eq!(written(&books, "shop"), 360 + 2); // 9000, and 9001 at last
    assert!(books.get("apply_held_changes_total", "shop") >= 3); // both, and what mended one
    assert_eq!(books.get("capture_quarantined_changes_total", "shop"), 1);
    books.assert_balanced(&SYSTEMS);

    // all three change the same keys, none having seen the others
    world.agent.pause();
    for (system, db) in [("crm", crm), ("shop", shop), ("erp", erp)] {
        db.execute(&format!("UPDATE contact SET name = 'from {system}' WHERE id BETWEEN 1000 AND 1049")).await;
    }
    world.agent.resume();
    settled(&world.agent).await;
    let books = Books::read(&world.agent).await;
    assert_eq!(books.get("entity_conflicts_total", "contact"), 100);
    assert_eq!(shop.value("SELECT count(*) FROM contact WHERE name = 'from crm'").await.as_deref(), Some("50"));
    books.assert_balanced(&SYSTEMS);

    // connections break under load
    let cuts = async {
        for _ in 0..5 {
            world.proxy("shop").cut();
            world.proxy("crm").cut();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await; // any moment will do
        }
    };
    tokio::join!(contacts(crm, 10_000), contacts(shop, 20_000), contacts(erp, 30_000), cuts);
    settled(&world.agent).await;
    let (books, before) = (Books::read(&world.agent).await, books);
    assert_eq!(SYSTEMS.map(|s| books.since(&before, "capture_changes_total", s)), [180; 3]);
    assert_eq!(SYSTEMS.map(|s| written(&books, s) - written(&before, s)), [360; 3]);
    books.assert_balanced(&SYSTEMS);
    assert_same_contacts(&world).await;

    let status = world.agent.status().await.unwrap();
    for system in status["systems"].as_array().unwrap() {
        let name = system["name"].as_str().unwrap();
        assert_eq!(system["capture"]["changes"], books.get("capture_changes_total", name), "{name}");
        assert_eq!(system["apply"]["changes"], books.get("apply_changes_total", name), "{name}");
        assert_eq!(system["apply"]["pending"], 0, "{name}");
    }
    // what it was behind when it last read is told until it reads again
    let behind = |status: &serde_json::Value| {
        let systems = status["systems"].as_array().unwrap();
        let behind = systems.iter().find(|system| system["capture"]["lag_seconds"] != 0.0);
        behind.map_or(Ok(()), |system| Err(format!("{} lags", system["name"])))
    };
    world.agent.until(super::support::SOON, behind).await;

    // what waits in the logs and in the journal while the agent is away
    world.proxy("crm").refuse();
    contacts(&world["shop"], 50_000).await;
    world
        .agent
        .until(super::support::SOON, |status| match &status["systems"][1]["capture"]["changes"] {
            n if *n == books.get("capture_changes_total", "shop") + 180 => Ok(()),
            n => Err(format!("{n} captured")),
        })
        .await;
    world.agent.stop().await;
    tokio::join!(contacts(&world["crm"], 60_000), contacts(&world["erp"], 70_000));
    world.proxy("crm").pass();
    world.agent.start();
    world.agent.ready().await;
    settled(&world.agent).await;
    let books = Books::read(&world.agent).await;
    assert_eq!(SYSTEMS.map(|s| books.get("capture_changes_total", s)), [180, 0, 180]);
    assert_eq!(written(&books, "crm"), 360);
    books.assert_balanced(&SYSTEMS);
    assert_same_contacts(&world).await;
}
