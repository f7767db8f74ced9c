//! What a target refuses: set aside there alone, with everything around it going on, and mended
//! by what comes later, in every engine.

use std::time::Duration;

use super::support::agent::Step;
use super::support::quarantine::{self, held, settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Builder, Entity, Type, World};
use super::support::{SOON, eventually};

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);
const THREE: [(&str, Kind); 3] = [PG, MY, MARIA];

/// Source, the target that refuses, and a third one that does not.
const ROLES: [[(&str, Kind); 3]; 3] = [[MY, PG, MARIA], [MARIA, MY, PG], [PG, MARIA, MY]];

/// Rows `(id, email, name, amount)`; `strict` wants amounts from 0, a name, and no email twice.
fn contacts(systems: &[(&str, Kind)], strict: &str) -> Builder {
    let contact = Entity::new("contact")
        .key("id", Type::Int)
        .field("email", Type::Varchar(60))
        .field("name", Type::Varchar(60))
        .field("amount", Type::Int)
        .stored(strict, "name", "varchar(60) NOT NULL");
    World::of(systems)
        .entity(contact)
        .ddl(strict, "ALTER TABLE contact ADD CONSTRAINT positive CHECK (amount >= 0)")
        .ddl(strict, "ALTER TABLE contact ADD CONSTRAINT one_email UNIQUE (email)")
}

/// `id email name amount` of each row.
async fn rows(world: &World, system: &str) -> Vec<String> {
    let rows = world.rows("contact", system).await;
    let mut rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".into())).collect()).collect();
    rows.sort_by_key(|row| row[0].parse::<i64>().unwrap());
    rows.into_iter().map(|row| row.join(" ")).collect()
}

async fn has(world: &World, system: &str, expected: &str) {
    eventually(SOON, || async {
        let rows = rows(world, system).await;
        match rows.iter().any(|row| row == expected) {
            true => Ok(()),
            false => Err(format!("{system} has no {expected:?}: {rows:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn only_what_a_target_refuses_is_held_there_and_the_next_change_mends_it() {
    for [source, target, other] in ROLES {
        let world = contacts(&THREE, target.0).start().await;
        let (from, to) = (&world[source.0], target.0);
        from.execute("INSERT INTO contact VALUES (1, 'a@x', 'a', 1), (2, 'b@x', 'b', 2)").await;
        world.quiet().await;

        from.execute(
            "INSERT INTO contact VALUES (10, 'c@x', 'c', 1), (11, 'd@x', 'd', -1), (12, 'e@x', 'e', 1), \
             (13, 'f@x', NULL, 1), (14, 'a@x', 'thief', 1), (15, 'g@x', 'g', 1)",
        )
        .await;
        from.execute("UPDATE contact SET email = 'b@x' WHERE id = 1").await;
        from.execute("INSERT INTO contact VALUES (16, 'h@x', 'h', 1)").await;

        let list = until_held(&world, 4).await;
        settled(&world).await;
        assert!(list.iter().all(|h| h.system == to), "{list:?}");
        let reason = |key: &str| list.iter().find(|h| h.key == key).map(|h| h.reason.clone()).unwrap();
        assert!(reason("11").contains("positive"), "{list:?}");
        assert!(reason("13").contains("NOT NULL"), "{list:?}");
        assert!(reason("14").contains("one_email") && !reason("14").contains("a@x"), "{list:?}");
        let taken = list.iter().find(|h| h.key == "1").unwrap();
        let email = |image: &Option<_>| -> Option<String> {
            let image: &Option<std::collections::BTreeMap<String, Option<String>>> = image;
            image.as_ref().unwrap()["email"].clone()
        };
        assert_eq!((email(&taken.before).as_deref(), email(&taken.after).as_deref()), (Some("a@x"), Some("b@x")));
        // nobody's row was written over; the third system has all
        assert_eq!(
            rows(&world, to).await,
            ["1 a@x a 1", "2 b@x b 2", "10 c@x c 1", "12 e@x e 1", "15 g@x g 1", "16 h@x h 1"],
            "{to}"
        );
        assert_eq!(rows(&world, other.0).await, rows(&world, source.0).await);
        assert_eq!(rows(&world, other.0).await.len(), 9);

        // still wrong: folded onto it, and still held; then right
        from.execute("UPDATE contact SET amount = -2, name = 'dd' WHERE id = 11").await;
        eventually(SOON, || async {
            let list = quarantine::list(&world).await?;
            let after = list.iter().find(|h| h.key == "11").and_then(|h| h.after.clone()).unwrap_or_default();
            let is = after.get("amount").cloned().flatten();
            if is.as_deref() == Some("-2") { Ok(()) } else { Err(format!("{list:?}")) }
        })
        .await;
        from.execute("UPDATE contact SET amount = 7 WHERE id = 11").await;
        world[other.0].execute("UPDATE contact SET name = 'ff' WHERE id = 13").await;
        from.execute("DELETE FROM contact WHERE id = 14").await;
        from.execute("UPDATE contact SET email = 'z@x' WHERE id = 1").await;
        until_held(&world, 0).await;
        world.quiet().await;
        let now = rows(&world, to).await;
        for row in ["1 z@x a 1", "11 d@x dd 7", "13 f@x ff 1"] {
            assert!(now.contains(&row.to_owned()), "{now:?}");
        }
    }
}

/// Two rows exchange a unique value, with a row between them that is refused: that works in
/// source order alone.
#[tokio::test]
async fn the_rest_of_a_transaction_with_a_bad_row_is_applied_whole_and_in_source_order() {
    for [source, target, _] in ROLES {
        let world = contacts(&[source, target], target.0).start().await;
        let db = &world[source.0];
        db.execute("INSERT INTO contact VALUES (1, 'a', 'a', 1), (2, 'b', 'b', 1), (3, 'c', 'c', 1)").await;
        world.quiet().await;

        // without a bad row
        let swap = "UPDATE contact SET email = 'tmp' WHERE id = 1; UPDATE contact SET email = 'a' WHERE id = 2; \
                    UPDATE contact SET email = 'b' WHERE id = 1";
        let mut session = db.session().await;
        session.execute(&format!("BEGIN; {swap}; COMMIT")).await;
        world.quiet().await;
        assert_eq!(rows(&world, target.0).await, ["1 b a 1", "2 a b 1", "3 c c 1"]);
        assert_eq!(held(&world).await, Vec::<String>::new());

        // and with one in its middle
        let back = "UPDATE contact SET email = 'tmp' WHERE id = 1; UPDATE contact SET amount = -5 WHERE id = 3; \
                    UPDATE contact SET email = 'b' WHERE id = 2; INSERT INTO contact VALUES (4, 'd', 'd', 4); \
                    UPDATE contact SET email = 'a' WHERE id = 1; DELETE FROM contact WHERE id = 4; \
                    INSERT INTO contact VALUES (4, 'd', 'dd', 5)";
        session.execute(&format!("BEGIN; {back}; COMMIT")).await;
        let list = until_held(&world, 1).await;
        assert_eq!((list[0].key.as_str(), list[0].system.as_str()), ("3", target.0));
        has(&world, target.0, "1 a a 1").await;
        assert_eq!(rows(&world, target.0).await, ["1 a a 1", "2 b b 1", "3 c c 1", "4 d dd 5"]);
        // a key that is refused is held as a whole: what follows in the same transaction too
        session
            .execute(
                "BEGIN; UPDATE contact SET amount = -6 WHERE id = 3; UPDATE contact SET name = 'x' WHERE id = 1; \
                 UPDATE contact SET amount = 6 WHERE id = 3; COMMIT",
            )
            .await;
        until_held(&world, 0).await;
        world.quiet().await;
        assert_eq!(rows(&world, target.0).await, ["1 a x 1", "2 b b 1", "3 c c 6", "4 d dd 5"]);
    }
}

/// Too large for memory, so it comes in chunks; and a bad row in its middle.
#[tokio::test]
async fn a_large_transaction_with_a_bad_row() {
    for [source, target, _] in ROLES {
        let world = contacts(&[source, target], target.0).start().await;
        let mut session = world[source.0].session().await;
        session.execute("BEGIN").await;
        for part in 0..8 {
            let row = |i: i32| {
                let (id, amount) = (part * 500 + i, if part * 500 + i == 2222 { -1 } else { 1 });
                format!("({id}, 'e{id}', '{:050}', {amount})", id)
            };
            let values: Vec<String> = (0..500).map(row).collect();
            session.execute(&format!("INSERT INTO contact VALUES {}", values.join(","))).await;
        }
        for _ in 0..4 {
            session.execute("UPDATE contact SET name = concat('x', substr(name, 2))").await;
        }
        session.execute("COMMIT").await;

        let list = until_held(&world, 1).await;
        settled(&world).await;
        assert_eq!(list[0].key, "2222");
        assert_eq!(rows(&world, target.0).await.len(), 3999);
        session.execute("UPDATE contact SET amount = 3 WHERE id = 2222").await;
        until_held(&world, 0).await;
        world.quiet().await;
    }
}

/// The refused change came from the primary: while the target does not have it, what the target
/// itself does to that row was written without having seen it, and loses.
#[tokio::test]
async fn a_targets_own_change_of_a_held_key_loses_to_what_it_has_not_seen() {
    for strict in [MY, MARIA] {
        let world = contacts(&THREE, strict.0).start().await;
        world["crm"].execute("INSERT INTO contact VALUES (1, 'a', 'a', 1), (2, 'b', 'b', 1)").await;
        world.quiet().await;
        world["crm"].execute("UPDATE contact SET amount = -1 WHERE id = 1").await;
        until_held(&world, 1).await;
        settled(&world).await;

        world[strict.0].execute("UPDATE contact SET name = 'local' WHERE id = 1").await;
        world[strict.0].execute("UPDATE contact SET name = 'local' WHERE id = 2").await;
        has(&world, "crm", "2 b local 1").await;
        settled(&world).await;
        assert_eq!(rows(&world, "crm").await, ["1 a a -1", "2 b local 1"]);
        assert_eq!(rows(&world, strict.0).await, ["1 a local 1", "2 b local 1"]);
        let status = world.agent.status().await.unwrap();
        assert_eq!(status["entities"][0]["rejected"], 1, "{status}");

        world["crm"].execute("UPDATE contact SET amount = 5 WHERE id = 1").await;
        until_held(&world, 0).await;
        world.quiet().await;
        assert_eq!(rows(&world, strict.0).await, ["1 a a 5", "2 b local 1"]);
        // free again: what it does now it has seen
        world[strict.0].execute("UPDATE contact SET name = 'seen' WHERE id = 1").await;
        world.quiet().await;
        assert_eq!(rows(&world, "crm").await, ["1 a seen 5", "2 b local 1"]);
    }
}

/// The other way round: the primary holds what another system wrote; its own change wins
/// everywhere, and mends the hold.
#[tokio::test]
async fn the_primarys_own_change_of_a_key_that_it_holds_wins() {
    let world = contacts(&THREE, "crm").start().await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'a', 'a', 1)").await;
    world.quiet().await;
    world["shop"].execute("UPDATE contact SET amount = -1, name = 'b' WHERE id = 1").await;
    until_held(&world, 1).await;
    has(&world, "erp", "1 a b -1").await;

    world["crm"].execute("UPDATE contact SET amount = 3 WHERE id = 1").await;
    until_held(&world, 0).await;
    world.quiet().await;

    assert_eq!(rows(&world, "erp").await, ["1 a a 3"]);
}

fn family(systems: &[(&str, Kind)], strict: (&str, Kind)) -> Builder {
    World::of(systems)
        .entity(Entity::new("child").key("id", Type::Int).field("parent", Type::Int))
        .entity(Entity::new("parent").key("id", Type::Int).field("name", Type::Varchar(20)))
        .ddl(strict.0, "ALTER TABLE child ADD CONSTRAINT of_parent FOREIGN KEY (parent) REFERENCES parent (id)")
}

/// The child comes from one system and waits for its parent from another one: no change of the
/// child follows, the timer tries again.
#[tokio::test]
async fn a_child_before_its_parent_heals_by_itself() {
    for [first, strict, second] in ROLES {
        let world = family(&[first, strict, second], strict).start().await;

        world[first.0].execute("INSERT INTO child VALUES (1, 7), (2, NULL)").await;
        let list = until_held(&world, 1).await;
        assert!(list[0].system == strict.0 && list[0].key == "1" && list[0].reason.contains("of_parent"), "{list:?}");
        world[second.0].execute("INSERT INTO parent VALUES (7, 'late')").await;

        until_held(&world, 0).await;
        world.quiet().await;
        assert_eq!(world.rows("child", strict.0).await.len(), 2);
    }
}

/// Whatever the order in the source, which has no foreign key: nothing is ever refused.
#[tokio::test]
async fn parents_are_written_before_children_and_children_deleted_first() {
    for [source, strict, _] in ROLES {
        let mut world = family(&[source, strict], strict).start().await;
        let mut session = world[source.0].session().await;

        session
            .execute(
                "BEGIN; INSERT INTO child VALUES (1, 1), (2, 1), (3, 2); INSERT INTO parent VALUES (1, 'a'), (2, 'b'); \
                 COMMIT",
            )
            .await;
        world.quiet().await;
        session.execute("BEGIN; DELETE FROM parent WHERE id = 1; DELETE FROM child WHERE parent = 1; COMMIT").await;
        world.quiet().await;
        // moved to a new parent whose insert comes last; then the old one goes
        session
            .execute("BEGIN; UPDATE child SET parent = 9 WHERE id = 3; INSERT INTO parent VALUES (9, 'n'); COMMIT")
            .await;
        world.quiet().await;
        session.execute("DELETE FROM parent WHERE id = 2").await;
        world.quiet().await;
        // both at once, in the order that a foreign key would ask for
        session
            .execute(
                "BEGIN; INSERT INTO parent VALUES (10, 'm'); UPDATE child SET parent = 10 WHERE id = 3; \
                 DELETE FROM parent WHERE id = 9; COMMIT",
            )
            .await;
        world.quiet().await;
        // many transactions in one batch
        world.agent.stop().await;
        for key in 100..120 {
            session
                .execute(&format!(
                    "BEGIN; INSERT INTO child VALUES ({key}, {key}); INSERT INTO parent VALUES ({key}, 'p'); COMMIT"
                ))
                .await;
        }
        session.execute("BEGIN; DELETE FROM parent WHERE id < 110; DELETE FROM child WHERE parent < 110; COMMIT").await;
        world.agent.start();
        world.agent.ready().await;
        world.quiet().await;

        assert_eq!(world.rows("child", strict.0).await.len(), 10);
        let refused = format!("\"{}\"", strict.0);
        let log = world.agent.log();
        let aside: Vec<&str> = log.lines().filter(|l| l.contains("set aside")).collect();
        assert!(aside.is_empty(), "{refused}: {aside:?}");
    }
}

#[tokio::test]
async fn a_target_that_refuses_too_much_stops_and_goes_on_when_it_is_mended() {
    for [source, strict, other] in ROLES {
        let mut world = contacts(&THREE, strict.0).start().await;
        let value = |id: i32, amount: i32| format!("({id}, 'e{id}', 'n', {amount})");
        // a hundred are borne
        let few: Vec<String> = (0..100).map(|id| value(id, -1)).collect();
        world[source.0].execute(&format!("INSERT INTO contact VALUES {}", few.join(","))).await;
        until_held(&world, 100).await;
        world[source.0].execute(&format!("INSERT INTO contact VALUES {}", value(500, 1))).await;
        has(&world, strict.0, "500 e500 n 1").await;

        // one more of the last thousand is not
        world[source.0].execute(&format!("INSERT INTO contact VALUES {}, {}", value(501, 1), value(502, -1))).await;
        let status = world
            .agent
            .until(SOON, |status| {
                let system = status["systems"].as_array().unwrap().iter().find(|s| s["name"] == strict.0).unwrap();
                if system["state"] == "stopped" { Ok(()) } else { Err("not stopped".into()) }
            })
            .await;
        let system = status["systems"].as_array().unwrap().iter().find(|s| s["name"] == strict.0).unwrap();
        let said = system.to_string();
        assert!(said.contains("refused more than 100 of the last 1000 changes") && said.contains("positive"), "{said}");
        assert!(!world.agent.readiness().await.unwrap().0);
        assert_eq!(rows(&world, strict.0).await, ["500 e500 n 1"]);
        has(&world, other.0, "502 e502 n -1").await;
        // its own changes still leave it
        world[strict.0].execute("INSERT INTO contact VALUES (600, 'mine', 'n', 1)").await;
        has(&world, other.0, "600 mine n 1").await;

        world.agent.stop().await;
        let drop = if strict.1.is_postgres() || strict.1.is_mariadb() { "CONSTRAINT" } else { "CHECK" };
        world[strict.0].execute(&format!("ALTER TABLE contact DROP {drop} positive")).await;
        world.agent.start();
        world.agent.ready().await;
        until_held(&world, 0).await;
        world.quiet().await;
    }
}

/// kill -9 with keys held, and at each named step of the very batch that is refused.
#[tokio::test]
async fn holds_survive_any_death_of_the_agent() {
    for ([source, strict, _], step) in ROLES.into_iter().cycle().zip(Step::ALL) {
        let mut world = contacts(&[source, strict], strict.0).start().await;
        let db = &world[source.0];
        db.execute("INSERT INTO contact VALUES (1, 'a', 'a', 1), (2, 'b', 'b', 2)").await;
        world.agent.wait_quiet().await;
        world.agent.stop().await;
        let db = &world[source.0];
        db.execute("INSERT INTO contact VALUES (3, 'c', 'c', 3), (4, 'd', 'd', -4), (5, 'e', 'e', 5)").await;
        db.execute("UPDATE contact SET amount = -1 WHERE id = 1").await;
        world.agent.kill_at(step, 1);
        world.agent.start();
        world.agent.exited(SOON).await;
        world.agent.kill_nowhere();

        world.agent.start();
        world.agent.ready().await;
        until_held(&world, 2).await;
        settled(&world).await;
        assert_eq!(rows(&world, strict.0).await, ["1 a a 1", "2 b b 2", "3 c c 3", "5 e e 5"], "{step:?}");

        // again, with nothing under way
        world.agent.restart_after_kill();
        world.agent.ready().await;
        let list = until_held(&world, 2).await;
        assert!(list.iter().all(|h| h.reason.contains("positive")), "{list:?}");
        let key = |key: &str| list.iter().find(|h| h.key == key).unwrap().clone();
        assert_eq!(key("1").after.unwrap()["amount"].as_deref(), Some("-1"));

        // killed while the mending change is under way
        world.agent.stop().await;
        let db = &world[source.0];
        db.execute("UPDATE contact SET amount = 10 WHERE id = 1").await;
        db.execute("UPDATE contact SET amount = 40, name = 'dd' WHERE id = 4").await;
        // (where the timer's retry and the change meet in one batch, there is no second step)
        world.agent.kill_at(step, 2);
        world.agent.start();
        while world.agent.is_running() && !quarantine::list(&world).await.is_ok_and(|list| list.is_empty()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.agent.kill_nowhere();
        world.agent.restart_after_kill();
        world.agent.ready().await;
        until_held(&world, 0).await;
        world.quiet().await;
        assert_eq!(rows(&world, strict.0).await, ["1 a a 10", "2 b b 2", "3 c c 3", "4 d dd 40", "5 e e 5"]);

        world.agent.restart_after_kill();
        world.agent.ready().await;
        assert_eq!(held(&world).await, Vec::<String>::new());
    }
}
