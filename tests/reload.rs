//! The file changes while the agent runs: what is added is set up and loaded, what cannot be
//! worked by is not taken, and nobody misses a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::support::agent::http_get;
use super::support::eventually;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

const LONG: Duration = Duration::from_secs(60);

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)).renamed()
}

fn note() -> Entity {
    Entity::new("note").key("id", Type::Int).field("words", Type::Text).option("load = \"first-run\"")
}

/// The configuration of the world without these systems and entities.
fn without(world: &World, systems: &[&str], entities: &[&str]) -> String {
    let mut config: toml::Table = std::fs::read_to_string(world.agent.config()).unwrap().parse().unwrap();
    let named = |item: &toml::Value, names: &[&str]| names.contains(&item["name"].as_str().unwrap());
    config["system"].as_array_mut().unwrap().retain(|system| !named(system, systems));
    let listed = config["entity"].as_array_mut().unwrap();
    listed.retain(|entity| !named(entity, entities));
    for entity in listed {
        entity["in"].as_table_mut().unwrap().retain(|system, _| !systems.contains(&system));
    }
    toml::to_string(&config).unwrap()
}

fn names(status: &serde_json::Value, of: &str) -> Vec<String> {
    status[of].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

/// The agent works by a file that has these systems and entities, and has loaded what was due.
async fn until_it_works_by(world: &World, systems: &[&str], entities: &[&str]) {
    eventually(LONG, async || {
        let status = world.agent.status().await?;
        let (has, ready) = ((names(&status, "systems"), names(&status, "entities")), world.agent.readiness().await?);
        match has == (systems.iter().map(|s| s.to_string()).collect(), entities.iter().map(|e| e.to_string()).collect())
        {
            true if ready.0 => Ok(()),
            _ => Err(format!("works by {has:?}, {}", ready.1)),
        }
    })
    .await;
}

/// A row after the other in two systems, and the port asked all the while.
fn life(world: &World, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<u64>> {
    let writers = ["crm", "shop"].into_iter().enumerate().map(|(of, system)| {
        let (server, database) = (world[system].server.clone(), world[system].name.clone());
        let (user, stop) = (world[system].application.clone(), stop.clone());
        let (table, id, name) = (
            world.table("contact", system),
            world.column("contact", "id", system),
            world.column("contact", "name", system),
        );
        tokio::spawn(async move {
            let mut session =
                super::support::servers::Session::open_as(&server, &user, server.port, Some(&database)).await.unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let key = 100_000 * (of as u64 + 1) + n;
                session.execute(&format!("INSERT INTO {table} ({id}, {name}) VALUES ({key}, 'row {n}')")).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            n
        })
    });
    let (port, stop) = (world.agent.port, stop.clone());
    let asked = tokio::spawn(async move {
        let mut times = 0;
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(http_get(port, "/live").await.map(|(code, _)| code), Ok(200));
            times += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        times
    });
    writers.chain([asked]).collect()
}

#[derive(PartialEq)]
enum By {
    Hangup,
    Restart,
}

async fn a_system_and_an_entity_are_added(by: By) {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = World::of(&systems).entity(contact()).entity(note()).build().await;
    let whole = std::fs::read_to_string(world.agent.config()).unwrap();
    std::fs::write(world.agent.config(), without(&world, &["erp"], &["note"])).unwrap();
    let fill = "INSERT INTO contact (id, name) SELECT n, concat('name ', n) FROM generate_series(1, 3000) AS s(n)";
    world["crm"].execute(fill).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready_within(LONG).await;
    world["crm"].execute("INSERT INTO note SELECT n, concat('words ', n) FROM generate_series(1, 2000) AS s(n)").await;
    world["erp"].execute("INSERT INTO note VALUES (1, 'words 1'), (2, 'other'), (5000, 'only here')").await;
    let stop = Arc::new(AtomicBool::new(false));
    let life = if by == By::Hangup { life(&world, &stop) } else { Vec::new() };
    let pid = world.agent.pid();

    std::fs::write(world.agent.config(), whole).unwrap();
    world["crm"].lend_ownership(true).await;
    match by {
        By::Hangup => world.agent.reload(),
        By::Restart => {
            world.agent.stop().await;
            world.agent.start();
        }
    }
    until_it_works_by(&world, &["crm", "shop", "erp"], &["contact", "note"]).await;

    stop.store(true, Ordering::Relaxed);
    for handle in life {
        assert!(handle.await.unwrap() > 0);
    }
    world["erp"].execute("UPDATE contact_erp SET name_erp = 'changed in erp' WHERE id_erp = 7").await;
    world.quiet().await;
    world.compare().await.unwrap();
    assert_eq!(by == By::Hangup, world.agent.pid() == pid);
    let name = |system: &str| {
        let (table, id, name) = (
            world.table("contact", system),
            world.column("contact", "id", system),
            world.column("contact", "name", system),
        );
        format!("SELECT {name} FROM {table} WHERE {id} = 7")
    };
    assert_eq!(world["crm"].value(&name("crm")).await.as_deref(), Some("changed in erp"));
    assert_eq!(world["shop"].value("SELECT words FROM note WHERE id = 5000").await.as_deref(), Some("only here"));
    assert_eq!(world["erp"].value("SELECT words FROM note WHERE id = 2").await.as_deref(), Some("words 2"));
}

#[tokio::test]
async fn a_system_and_an_entity_are_added_on_hangup_while_everybody_writes() {
    a_system_and_an_entity_are_added(By::Hangup).await;
}

#[tokio::test]
async fn a_system_and_an_entity_are_added_by_a_restart() {
    a_system_and_an_entity_are_added(By::Restart).await;
}

/// Its marker begins at the journal's head: what is older reaches it by the load alone.
#[tokio::test]
async fn an_added_system_gets_what_the_authority_had_not_applied_yet() {
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let mut world = World::of(&systems).entity(contact()).build().await;
    let whole = std::fs::read_to_string(world.agent.config()).unwrap();
    std::fs::write(world.agent.config(), without(&world, &["erp"], &[])).unwrap();
    world["crm"].execute("INSERT INTO contact VALUES (1, 'old')").await;
    world.setup().await;
    world.agent.start();
    world.agent.ready_within(LONG).await;
    world.agent.wait_quiet().await;
    let mut holder = world["crm"].session().await;
    holder.execute("BEGIN").await;
    holder.execute("SELECT * FROM contact WHERE id = 1 FOR UPDATE").await;
    let head = world.agent.status().await.unwrap()["journal"]["head"].as_u64();
    let mut writer = world["shop"].session().await;
    writer.execute("BEGIN").await;
    writer.execute("UPDATE contact_shop SET name_shop = 'new' WHERE id_shop = 1").await;
    writer.execute("INSERT INTO contact_shop VALUES (2, 'not there yet')").await;
    writer.execute("COMMIT").await;
    world
        .agent
        .until(LONG, |status| match status["journal"]["head"].as_u64() > head {
            true => Ok(()),
            false => Err("not journaled".into()),
        })
        .await;

    std::fs::write(world.agent.config(), whole).unwrap();
    world.agent.reload();
    eventually(LONG, async || match names(&world.agent.status().await?, "systems").len() {
        3 => Ok(()),
        _ => Err(String::from("erp is not there yet")),
    })
    .await;
    // It waits; a load that does not has read the table by then.
    world
        .agent
        .until(LONG, |status| match &status["loads"][0] {
            load if load["error"].as_str().is_some_and(|why| why.contains("until crm has")) => Ok(()),
            load if load["read"].as_u64() > Some(0) => Ok(()),
            load => Err(load.to_string()),
        })
        .await;
    holder.execute("COMMIT").await;

    until_it_works_by(&world, &["crm", "shop", "erp"], &["contact"]).await;
    world.quiet().await;
    world.compare().await.unwrap();
    let names = world["erp"].value("SELECT GROUP_CONCAT(name_erp ORDER BY id_erp) FROM contact_erp").await;
    assert_eq!(names.as_deref(), Some("new,not there yet"));
}

#[tokio::test]
async fn a_file_that_cannot_be_worked_by_is_not_taken() {
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact()).start().await;
    let good = std::fs::read_to_string(world.agent.config()).unwrap();
    let (pid, shop) = (world.agent.pid(), world.table("contact", "shop"));
    let broken = [
        (good.replace("[[entity]]", "[[entety]]"), "entety"),
        (good.replace("table = \"contact\"", "table = \"contacts\""), "contacts"),
        (good.replacen("data_dir", "# data_dir", 1), "data_dir"),
        (String::new(), "the file is not taken"),
    ];

    for (n, (text, said)) in broken.into_iter().enumerate() {
        assert_ne!(text, good);
        let heard = world.agent.log().matches("the file is not taken").count();
        std::fs::write(world.agent.config(), text).unwrap();
        world.agent.reload();
        eventually(LONG, async || match world.agent.log().matches("the file is not taken").count() > heard {
            true => Ok(()),
            false => Err(String::from("it says nothing of the file")),
        })
        .await;
        assert!(world.agent.log().contains(said), "{said}: {}", world.agent.log());
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({n}, 'goes on')")).await;
        eventually(LONG, async || match world["shop"].value(&format!("SELECT count(*) FROM {shop}")).await {
            Some(count) if count == (n + 1).to_string() => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    std::fs::write(world.agent.config(), good).unwrap();
    world.agent.reload();
    eventually(LONG, async || match world.agent.log().contains("the file is taken") {
        true => Ok(()),
        false => Err(String::from("not taken")),
    })
    .await;
    world.agent.ready().await;
    world.quiet().await;
    world.compare().await.unwrap();
    assert!(world.agent.is_running() && world.agent.pid() == pid);
}

/// All flows have ended before anybody looks whether they did, and why.
#[tokio::test]
async fn a_reload_on_a_busy_machine_does_not_end_the_agent() {
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact()).build().await;
    world.setup().await;
    world.agent.set_env("ANECHOIC_SLOW_AT", "turn-ends");
    world.agent.start();
    world.agent.ready().await;

    world.agent.reload();
    eventually(LONG, async || match world.agent.log().matches("INFO running").count() {
        2.. => Ok(()),
        _ => Err(String::from("the flows are not made anew")),
    })
    .await;

    world["crm"].execute("INSERT INTO contact VALUES (1, 'goes on')").await;
    world.quiet().await;
    world.compare().await.unwrap();
}

/// A restart would go on without it, by its tables as they were last seen, and so does a reload: but
/// only where these tell all that the file asks for.
#[tokio::test]
async fn a_system_that_is_away_keeps_no_file_from_being_taken() {
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)])
        .proxied("shop")
        .entity(contact())
        .entity(note().only(&["crm", "erp"]))
        .entity(Entity::new("unseen").key("id", Type::Int).only(&["crm", "shop"]))
        .build()
        .await;
    let whole = std::fs::read_to_string(world.agent.config()).unwrap();
    std::fs::write(world.agent.config(), without(&world, &[], &["note", "unseen"])).unwrap();
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    world["crm"].lend_ownership(true).await;
    world.proxy("shop").refuse();
    world.proxy("shop").cut();

    // What is bound there anew nobody has seen yet.
    std::fs::write(world.agent.config(), &whole).unwrap();
    let refused = world.agent.command(&["reload"]).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("cannot connect to"));
    // It says so until another file is taken.
    let refused = world.agent.run(&["status"]).await;
    assert!(refused.contains("the file was read again and is not taken"), "{refused}");
    std::fs::write(world.agent.config(), whole.replacen("[[system]]", "[[system]", 1)).unwrap();
    let glance = world.agent.command(&["status"]).await;
    let (said, told) = (String::from_utf8_lossy(&glance.stdout), String::from_utf8_lossy(&glance.stderr));
    assert!(said.contains("crm") && said.contains("running"), "{said}");
    assert_eq!(told.lines().filter(|line| line.contains("anechoic.toml:")).count(), 1, "{told}");
    // Nor is one that cannot be read, and the agent says that, too.
    let refused = world.agent.command(&["reload"]).await;
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("anechoic.toml:"), "{told}");
    assert_eq!(world.agent.log().matches("the file is not taken").count(), 2);

    std::fs::write(world.agent.config(), &whole).unwrap();
    std::fs::write(world.agent.config(), without(&world, &[], &["unseen"])).unwrap();
    world.agent.run(&["reload"]).await;
    let taken = std::time::Instant::now();
    world["crm"].execute("INSERT INTO note VALUES (1, 'while shop is away')").await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'while shop is away')").await;
    eventually(LONG, async || match world["erp"].value("SELECT words FROM note").await {
        Some(_) => Ok(()),
        None => Err("not there yet".to_owned()),
    })
    .await;
    assert!(taken.elapsed() < Duration::from_secs(8), "{:?}", taken.elapsed());
    assert!(!world.agent.run(&["status"]).await.contains("is not taken"));
    world.proxy("shop").pass();
    world.quiet().await;
}

/// What was written in it meanwhile nobody was told, so it is said, and what was compared before no
/// longer stands.
#[tokio::test]
async fn a_field_that_was_out_of_the_file_is_told_when_it_is_back() {
    let person = Entity::new("person").key("id", Type::Int).field("name", Type::Text).field("phone", Type::Text);
    let mut world =
        World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mariadb)]).entity(person.renamed()).start().await;
    world["crm"].execute("INSERT INTO person VALUES (1, 'Ada', '1'), (2, 'Bob', '2')").await;
    world.quiet().await;
    world.agent.run(&["verify"]).await;
    let said = world.agent.run(&["status"]).await;
    assert!(said.contains("person: same"), "{said}");
    let whole = std::fs::read_to_string(world.agent.config()).unwrap();
    let less: String = whole.lines().filter(|line| !line.contains("phone")).map(|line| format!("{line}\n")).collect();
    std::fs::write(world.agent.config(), less).unwrap();
    world["crm"].lend_ownership(true).await;
    world.agent.run(&["reload"]).await;
    until_it_works_by(&world, &["crm", "shop"], &["person"]).await;
    assert!(!world.agent.log().contains("not in the file before"), "{}", world.agent.log());
    world["crm"].execute("UPDATE person SET phone = '22' WHERE id = 2").await;
    world.agent.wait_quiet().await;

    std::fs::write(world.agent.config(), whole).unwrap();
    world.agent.run(&["reload"]).await;
    until_it_works_by(&world, &["crm", "shop"], &["person"]).await;

    for _ in 0..2 {
        let said = world.agent.run(&["status"]).await;
        assert!(!said.contains("person: same"), "{said}");
        world.agent.stop().await;
        world.agent.start();
        world.agent.ready().await;
    }
    let log = world.agent.log();
    assert_eq!(log.matches("field \"phone\" was not in the file before").count(), 1, "{log}");
    world.agent.run(&["verify", "person", "--repair"]).await;
    world.quiet().await;
    let said = world.agent.run(&["status"]).await;
    assert!(said.contains("person: repaired"), "{said}");
}

#[tokio::test]
async fn an_entity_that_was_out_of_the_file_is_compared_when_it_is_back() {
    let world =
        World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mariadb)]).entity(contact()).entity(note()).start().await;
    world["crm"].execute("INSERT INTO note VALUES (1, 'one'), (2, 'two')").await;
    world.quiet().await;
    let whole = std::fs::read_to_string(world.agent.config()).unwrap();
    std::fs::write(world.agent.config(), without(&world, &[], &["note"])).unwrap();
    world["crm"].lend_ownership(true).await;
    world.agent.reload();
    until_it_works_by(&world, &["crm", "shop"], &["contact"]).await;
    world["crm"].execute("UPDATE note SET words = 'changed meanwhile' WHERE id = 2").await;
    world["crm"].execute("INSERT INTO note VALUES (3, 'written meanwhile')").await;
    world.agent.wait_quiet().await;

    std::fs::write(world.agent.config(), whole).unwrap();
    world.agent.reload();
    until_it_works_by(&world, &["crm", "shop"], &["contact", "note"]).await;

    world.quiet().await;
    world.compare().await.unwrap();
    let words = world["shop"].value("SELECT group_concat(words ORDER BY id) FROM note").await;
    assert_eq!(words.as_deref(), Some("one,changed meanwhile,written meanwhile"));
}

#[tokio::test]
async fn a_system_that_is_taken_out_is_named_with_what_it_leaves_behind() {
    let world = World::of(&[("crm", Kind::Mariadb), ("shop", Kind::Mysql), ("erp", Kind::Postgres17)])
        .entity(contact())
        .start()
        .await;
    std::fs::write(world.agent.config(), without(&world, &["erp"], &[])).unwrap();

    world.agent.reload();
    until_it_works_by(&world, &["crm", "shop"], &["contact"]).await;

    let log = world.agent.log();
    let named = log.lines().find(|line| line.contains("no longer in the file")).unwrap_or_else(|| panic!("{log}"));
    let (_, sql) = named.split_once("SELECT ").unwrap();
    let sql = format!("SELECT {}", sql.split_once(" system=").map_or(sql, |(sql, _)| sql));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(world["erp"].value(slots).await.as_deref(), Some("1"));
    eventually(LONG, async || world["erp"].admin().await.try_execute(&sql).await).await;
    assert_eq!(world["erp"].value(slots).await.as_deref(), Some("0"));
}
