//! Conflicts: systems change one record without having seen each other. The system listed first
//! wins, everywhere, and what lost is counted.

use std::time::Duration;

use super::support::books::Books;
use super::support::servers::{Db, Kind};
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
const KEYS: u64 = 20;

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)).field("score", Type::Int)
}

/// Three systems that agree on [`KEYS`] contacts.
async fn three() -> World {
    let world = World::of(&SYSTEMS).proxied("shop").proxied("erp").entity(contact()).start().await;
    world["crm"].execute(&rows("start")).await;
    world.quiet().await;
    world
}

fn rows(name: &str) -> String {
    let rows: Vec<String> = (0..KEYS).map(|id| format!("({id}, '{name}', 0)")).collect();
    format!("INSERT INTO contact (id, name, score) VALUES {}", rows.join(", "))
}

async fn names(world: &World, system: &str) -> Vec<Option<String>> {
    world.rows("contact", system).await.into_iter().map(|row| row[1].clone()).collect()
}

async fn update(world: &World, system: &str) {
    let one_by_one: Vec<String> = (0..KEYS)
        .map(|id| format!("UPDATE contact SET name = 'of {system}', score = score + 1 WHERE id = {id}"))
        .collect();
    world[system].execute(&one_by_one.join("; ")).await;
}

/// Whichever log is read first, each key is in conflict twice.
#[tokio::test]
async fn the_primary_wins_when_all_change_the_same_rows_while_the_agent_is_paused() {
    let world = three().await;

    world.agent.pause();
    for (system, _) in SYSTEMS.iter().rev() {
        update(&world, system).await;
    }
    world.agent.resume();
    world.quiet().await;

    assert_eq!(names(&world, "erp").await, vec![Some("of crm".to_owned()); KEYS as usize]);
    let books = Books::read(&world.agent).await;
    assert_eq!(books.get("entity_conflicts_total", "contact"), 2 * KEYS);
    books.assert_balanced(&["crm", "shop", "erp"]);
}

#[tokio::test]
async fn the_primary_wins_when_all_change_the_same_rows_while_the_agent_is_stopped() {
    let mut world = three().await;

    world.agent.stop().await;
    for (system, _) in SYSTEMS {
        update(&world, system).await;
    }
    world.agent.start();
    world.agent.ready().await;
    world.quiet().await;

    assert_eq!(names(&world, "shop").await, vec![Some("of crm".to_owned()); KEYS as usize]);
    assert_eq!(Books::read(&world.agent).await.get("entity_conflicts_total", "contact"), 2 * KEYS);
}

/// What the primary wrote is journaled before the others are heard: all of theirs is rejected.
#[tokio::test]
async fn what_comes_later_from_below_is_rejected_and_counted() {
    let world = three().await;
    let before = Books::read(&world.agent).await;

    for system in ["shop", "erp"] {
        world.proxy(system).stall();
        update(&world, system).await;
    }
    update(&world, "crm").await;
    let journaled = before.get("capture_journaled_changes_total", "crm") + KEYS;
    world
        .agent
        .until(Duration::from_secs(20), |status| match status["systems"][0]["capture"]["changes"].as_u64() {
            Some(captured) if captured == journaled => Ok(()),
            captured => Err(format!("{captured:?} of {journaled} captured")),
        })
        .await;
    for system in ["shop", "erp"] {
        world.proxy(system).pass();
    }
    world.quiet().await;

    assert_eq!(names(&world, "shop").await, vec![Some("of crm".to_owned()); KEYS as usize]);
    let books = Books::read(&world.agent).await;
    assert_eq!(books.since(&before, "capture_rejected_changes_total", "shop"), KEYS);
    assert_eq!(books.since(&before, "capture_rejected_changes_total", "erp"), KEYS);
    assert_eq!(books.get("entity_rejected_changes_total", "contact"), 2 * KEYS);
    books.assert_balanced(&["crm", "shop", "erp"]);
}

#[tokio::test]
async fn an_update_and_a_delete_of_one_row_end_as_the_primary_wants() {
    let world = three().await;

    world.agent.pause();
    world["crm"].execute("DELETE FROM contact WHERE id = 1").await;
    world["shop"].execute("UPDATE contact SET name = 'lost' WHERE id = 1").await;
    world["crm"].execute("UPDATE contact SET name = 'kept' WHERE id = 2").await;
    world["shop"].execute("DELETE FROM contact WHERE id = 2").await;
    world["erp"].execute("DELETE FROM contact WHERE id = 2").await;
    // neither is the primary's: the shop stands above erp
    world["shop"].execute("UPDATE contact SET name = 'kept' WHERE id = 3").await;
    world["erp"].execute("DELETE FROM contact WHERE id = 3").await;
    world["shop"].execute("DELETE FROM contact WHERE id = 4").await;
    world["erp"].execute("UPDATE contact SET name = 'lost' WHERE id = 4").await;
    // gone and come back
    world["crm"].execute("DELETE FROM contact WHERE id = 5; INSERT INTO contact VALUES (5, 'kept', 5)").await;
    world["erp"].execute("UPDATE contact SET id = 105 WHERE id = 5").await;
    world.agent.resume();
    world.quiet().await;

    let ids = ["1", "2", "3", "4", "5"].map(Some);
    let mut rows = world.rows("contact", "erp").await;
    rows.retain(|row| ids.contains(&row[0].as_deref()));
    let expected = [["2", "kept", "0"], ["3", "kept", "0"], ["5", "kept", "5"]];
    assert_eq!(rows, expected.map(|row| row.map(|value| Some(value.to_owned())).to_vec()));
}

#[tokio::test]
async fn of_three_inserts_of_one_key_the_primary_s_stays() {
    let world = World::of(&SYSTEMS).entity(contact()).start().await;

    world.agent.pause();
    for (system, _) in SYSTEMS.iter().rev() {
        world[system].execute(&rows(&format!("of {system}"))).await;
    }
    world["crm"].execute("DELETE FROM contact WHERE id = 0").await;
    world.agent.resume();
    world.quiet().await;

    assert_eq!(names(&world, "erp").await, vec![Some("of crm".to_owned()); KEYS as usize - 1]);
}

/// The shop has no phone numbers. What it brings back to life comes back whole.
#[tokio::test]
async fn an_update_revives_a_deleted_row_with_the_fields_it_does_not_have() {
    let contact = contact().field("phone", Type::Varchar(20));
    let world = World::of(&[("shop", Kind::Mysql), ("crm", Kind::Postgres17), ("erp", Kind::Mariadb)])
        .entity(contact)
        .ddl("shop", "ALTER TABLE contact DROP COLUMN phone")
        .start()
        .await;
    let row = "INSERT INTO contact VALUES (1, 'Ada', 1, '123'), (2, 'Bea', 1, '456')";
    world["crm"].execute(row).await;
    world.agent.wait_quiet().await;

    world.agent.pause();
    world["crm"].execute("DELETE FROM contact WHERE id = 1").await;
    world["shop"].execute("UPDATE contact SET name = 'Ida' WHERE id = 1").await;
    // not in one another's way: each has fields of its own
    world["erp"].execute("UPDATE contact SET phone = '789' WHERE id = 2").await;
    world["shop"].execute("UPDATE contact SET name = 'Eva' WHERE id = 2").await;
    world.agent.resume();
    world.agent.wait_quiet().await;

    let expected = [["1", "Ida", "1", "123"], ["2", "Eva", "1", "789"]];
    for system in ["crm", "erp"] {
        let rows = world[system].rows("SELECT id, name, score, phone FROM contact ORDER BY id").await;
        assert_eq!(rows, expected.map(|row| row.map(|value| Some(value.to_owned())).to_vec()), "{system}");
    }
    let rows = world["shop"].rows("SELECT id, name, score FROM contact ORDER BY id").await;
    assert_eq!(rows, expected.map(|row| row[..3].iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>()));
}

/// Some of everything, on few rows; the last digits of `random` choose.
async fn meddle(db: &Db, system: &str, mut random: u64) {
    for n in 0..150 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (id, what) = (random >> 40 & 15, random >> 33 & 7);
        let sql = match what {
            0 => format!("DELETE FROM contact WHERE id = {id}"),
            1 | 2 => format!("INSERT INTO contact VALUES ({id}, 'new of {system}', {n})"),
            3 => format!(
                "BEGIN; UPDATE contact SET score = {n} WHERE id = {id}; UPDATE contact SET name = '{system} {n}' \
                 WHERE id BETWEEN {id} AND {}; COMMIT",
                id + 3
            ),
            4 => format!("UPDATE contact SET id = {} WHERE id = {id}", (id + 5) % 16),
            _ => format!("UPDATE contact SET name = '{system} {n}', score = score + 1 WHERE id = {id}"),
        };
        // a key that exists, a deadlock: not every try has to succeed
        let _ = db.try_execute(&sql).await;
    }
}

#[tokio::test]
async fn all_agree_when_all_write_the_same_rows_at_once() {
    let world = three().await;
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");

    for round in 0..3 {
        let random = seed + round * 1000;
        if round == 2 {
            world.agent.pause();
        }
        tokio::join!(
            meddle(&world["crm"], "crm", random),
            meddle(&world["shop"], "shop", random + 1),
            meddle(&world["erp"], "erp", random + 2),
        );
        if round == 2 {
            world.agent.resume();
        }
        world.quiet().await;
    }

    let books = Books::read(&world.agent).await;
    let conflicts = books.get("entity_conflicts_total", "contact");
    eprintln!("{conflicts} conflicts");
    assert!(conflicts > 100, "{conflicts}");
    books.assert_balanced(&["crm", "shop", "erp"]);
}
