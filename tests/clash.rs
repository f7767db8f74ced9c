//! Records that cannot both be: systems that are each right write one value, unique in all of them, in two
//! records. One gives way everywhere, or a person is asked; nothing is lost, and all systems end equal.

use std::time::Duration;

use serde_json::Value;

use super::support::agent::Step;
use super::support::books::Books;
use super::support::quarantine::{self, settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
const NAMES: [&str; 3] = ["crm", "shop", "erp"];

/// Three systems, none of which takes an e-mail twice. `unique`: what is decided of it.
async fn world(unique: &str, options: &[&str]) -> World {
    let mut contact = Entity::new("contact")
        .key("id", Type::Int)
        .field("email", Type::Varchar(24))
        .field("name", Type::Varchar(60))
        .option(&format!("unique = {{ email = {unique} }}"));
    for option in options {
        contact = contact.option(option);
    }
    let mut world = World::of(&SYSTEMS).entity(contact);
    for name in NAMES {
        world = world.ddl(name, "ALTER TABLE contact ADD CONSTRAINT one_email UNIQUE (email)");
    }
    world.start().await
}

/// None of these has been seen by the others when the next is written.
async fn at_once(world: &World, writes: &[(&str, &str)]) {
    world.agent.pause();
    for (system, sql) in writes {
        world[*system].execute(sql).await;
    }
    world.agent.resume();
}

/// `id email name` of each, the same in every system.
async fn rows(world: &World) -> Vec<String> {
    let rows = world.rows("contact", "crm").await.into_iter();
    let mut rows: Vec<String> = rows
        .map(|row| row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".into())).collect::<Vec<_>>().join(" "))
        .collect();
    rows.sort();
    rows
}

/// Equal everywhere, and nothing is held.
#[track_caller]
fn parted(world: &World, expected: &[&str]) -> impl Future<Output = ()> {
    let expected: Vec<String> = expected.iter().map(|row| (*row).to_owned()).collect();
    eventually(SOON, move || {
        let expected = expected.clone();
        async move {
            settled(world).await;
            let held = quarantine::held(world).await;
            world.compare().await?;
            let rows = rows(world).await;
            match held.is_empty() && rows == expected {
                true => Ok(()),
                false => Err(format!("{rows:?} instead of {expected:?}, held: {held:?}")),
            }
        }
    })
}

/// Clashes, the oldest first.
async fn clashes(world: &World) -> Vec<Value> {
    let listed = world.agent.run(&["conflicts", "list", "--json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    listed.into_iter().filter(|conflict| conflict["rule"] == "unique").rev().collect()
}

fn told(clash: &Value) -> String {
    let text = |key: &str| clash[key].as_str().unwrap_or("?").to_owned();
    format!("{} of {} against {}: {}", text("key"), text("system"), text("against"), text("outcome"))
}

async fn open(world: &World) -> Vec<String> {
    let open = clashes(world).await.into_iter().filter(|clash| clash["open"] == true);
    open.map(|clash| clash["id"].as_str().unwrap().to_owned()).collect()
}

async fn the_open_one(world: &World) -> String {
    eventually(SOON, || async {
        let open = open(world).await;
        if open.len() == 1 { Ok(open[0].clone()) } else { Err(format!("{open:?} wait")) }
    })
    .await
}

const CRM: (&str, &str) = ("crm", "INSERT INTO contact VALUES (1, 'ada@x', 'of crm')");
const SHOP: (&str, &str) = ("shop", "INSERT INTO contact VALUES (2, 'ada@x', 'of shop')");
const ERP: (&str, &str) = ("erp", "INSERT INTO contact VALUES (3, 'ada@x', 'of erp')");

#[tokio::test]
async fn of_two_inserts_that_clash_one_is_rejected_everywhere_and_can_be_brought_back() {
    // Whoever commits first, and in whichever engine the loser is.
    for (authority, stays, goes) in [
        ("[\"crm\", \"shop\", \"erp\"]", "1 ada@x of crm", "2 of shop against crm: lost"),
        ("[\"shop\", \"erp\", \"crm\"]", "2 ada@x of shop", "1 of crm against shop: lost"),
    ] {
        let world = world("\"reject\"", &[&format!("authority = {authority}")]).await;

        at_once(&world, &[SHOP, CRM]).await;
        parted(&world, &[stays]).await;

        let decided = clashes(&world).await;
        assert_eq!(decided.iter().map(told).collect::<Vec<_>>(), [goes], "once, although two systems met it");
        let books = Books::read(&world.agent).await;
        books.assert_balanced(&NAMES);
        let status = world.agent.status().await.unwrap();
        assert_eq!(status["entities"][0]["waiting"], 0, "{status}");
        assert!(world.agent.metrics().await.contains("policy=\"unique\",outcome=\"lost\"} 1"));
        let id = decided[0]["id"].as_str().unwrap();
        let shown = world.agent.run(&["conflicts", "show", id]).await;
        assert!(shown.contains("of crm") && shown.contains("of shop") && shown.contains("cannot both be"), "{shown}");

        world.agent.run(&["conflicts", "resolve", id, "--set", "email=ada@y"]).await;
        let back = if stays.starts_with('1') { "2 ada@y of shop" } else { "1 ada@y of crm" };
        let mut both = [stays, back];
        both.sort_unstable();
        parted(&world, &both).await;
        let again = world.agent.command(&["conflicts", "resolve", id, "--set", "email=ada@z"]).await;
        assert_eq!(again.status.code(), Some(1), "{again:?}");
    }
}

#[tokio::test]
async fn an_update_that_clashes_gives_its_value_back_and_keeps_the_rest() {
    let world = world("\"reject\"", &[]).await;
    world["erp"].execute("INSERT INTO contact VALUES (1, 'a@x', 'a'), (2, 'b@x', 'b'), (3, 'c@x', 'c')").await;
    world.quiet().await;

    let shop = ("shop", "UPDATE contact SET email = 'new@x', name = 'b of shop' WHERE id = 2");
    let erp = ("erp", "UPDATE contact SET email = 'new@x', name = 'c of erp' WHERE id = 3");
    at_once(&world, &[erp, shop]).await;
    parted(&world, &["1 a@x a", "2 new@x b of shop", "3 c@x c of erp"]).await;

    // An insert against an update: which of them is the loser's decides what it loses.
    let crm = ("crm", "UPDATE contact SET email = 'z@x', name = 'a of crm' WHERE id = 1");
    at_once(&world, &[("shop", "INSERT INTO contact VALUES (4, 'z@x', 'd')"), crm]).await;
    parted(&world, &["1 z@x a of crm", "2 new@x b of shop", "3 c@x c of erp"]).await;
    let decided: Vec<String> = clashes(&world).await.iter().map(told).collect();
    assert_eq!(decided, ["3 of erp against shop: partly", "4 of shop against crm: lost"]);
}

#[tokio::test]
async fn a_record_that_is_renamed_has_its_new_name_in_its_own_system_too() {
    let world = world("{ policy = \"rename\", template = \"{value}-{system}-{key}\" }", &["scope = \"field\""]).await;

    at_once(&world, &[ERP, SHOP, CRM]).await;
    parted(&world, &["1 ada@x of crm", "2 ada@x-shop-2 of shop", "3 ada@x-erp-3 of erp"]).await;

    // No longer than the column: the value is cut.
    let long = "a-very-long-name@example"; // 24 characters
    let insert = |id, name| format!("INSERT INTO contact VALUES ({id}, '{long}', '{name}')");
    let (crm, erp) = (insert(5, "of crm"), insert(6, "of erp"));
    at_once(&world, &[("erp", &erp), ("crm", &crm)]).await;
    parted(
        &world,
        &[
            "1 ada@x of crm",
            "2 ada@x-shop-2 of shop",
            "3 ada@x-erp-3 of erp",
            &format!("5 {long} of crm"),
            "6 a-very-long-name@e-erp-6 of erp",
        ],
    )
    .await;
    let decided: Vec<String> = clashes(&world).await.iter().map(told).collect();
    assert_eq!(decided.len(), 3, "{decided:?}");
    assert!(decided.iter().all(|clash| clash.ends_with("renamed")), "{decided:?}");
    Books::read(&world.agent).await.assert_balanced(&NAMES);
}

#[tokio::test]
async fn of_a_chain_of_three_the_highest_authority_stays() {
    let world = world("\"reject\"", &[]).await;

    at_once(&world, &[ERP, SHOP, CRM]).await;
    parted(&world, &["1 ada@x of crm"]).await;

    let mut lost: Vec<String> = clashes(&world).await.iter().map(told).collect();
    lost.sort();
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(lost[0].starts_with("2 of shop") && lost[1].starts_with("3 of erp"), "{lost:?}");
    assert!(lost.iter().all(|clash| clash.ends_with("lost")), "{lost:?}");
}

#[tokio::test]
async fn the_later_one_stays_where_the_policy_says_so() {
    let world = world("\"reject\"", &["conflict = \"latest\""]).await;

    world.agent.pause();
    world["crm"].execute(CRM.1).await;
    // MariaDB tells whole seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    world["erp"].execute(ERP.1).await;
    world.agent.resume();

    parted(&world, &["3 ada@x of erp"]).await;
}

#[tokio::test]
async fn both_stay_as_they_are_until_a_person_decides() {
    let mut world = world("\"manual\"", &[]).await;
    at_once(&world, &[SHOP, CRM]).await;
    let id = the_open_one(&world).await;
    until_held(&world, 3).await;
    let status = world.agent.status().await.unwrap();
    assert_eq!(status["entities"][0]["waiting"], 1, "{status}");

    world.agent.restart_after_kill();
    world.agent.ready().await;
    assert_eq!(the_open_one(&world).await, id, "the same, and no other one");
    let wrong = world.agent.command(&["conflicts", "resolve", &id, "--take", "erp"]).await;
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    world.agent.run(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    parted(&world, &["2 ada@x of shop"]).await;
    assert_eq!(open(&world).await, [] as [String; 0]);

    // A person names another value, and one ends because somebody mends it.
    at_once(
        &world,
        &[
            ("crm", "INSERT INTO contact VALUES (5, 'b@x', 'b')"),
            ("erp", "INSERT INTO contact VALUES (6, 'b@x', 'bb')"),
        ],
    )
    .await;
    let id = the_open_one(&world).await;
    world.agent.run(&["conflicts", "resolve", &id, "--set", "email=bb@x"]).await;
    parted(&world, &["2 ada@x of shop", "5 b@x b", "6 bb@x bb"]).await;
    at_once(
        &world,
        &[
            ("crm", "INSERT INTO contact VALUES (7, 'c@x', 'c')"),
            ("erp", "INSERT INTO contact VALUES (8, 'c@x', 'cc')"),
        ],
    )
    .await;
    the_open_one(&world).await;
    world["erp"].execute("UPDATE contact SET email = 'cc@x' WHERE id = 8").await;
    parted(&world, &["2 ada@x of shop", "5 b@x b", "6 bb@x bb", "7 c@x c", "8 cc@x cc"]).await;
    assert_eq!(open(&world).await, [] as [String; 0]);
    let last = clashes(&world).await.pop().unwrap();
    assert_eq!(last["settled"], "superseded", "{last}");
    Books::read(&world.agent).await.assert_balanced(&NAMES);
}

/// Three systems, none of which takes one code of one vendor twice, with records 1 to 3 of code `c` of other vendors.
async fn parts(unique: &str, options: &[&str]) -> World {
    let mut part = Entity::new("contact") // as `rows` asks for it
        .key("id", Type::Int)
        .field("vendor", Type::Varchar(10))
        .field("code", Type::Varchar(20))
        .field("name", Type::Varchar(20))
        .option(&format!("unique = {unique}"));
    for option in options {
        part = part.option(option);
    }
    let mut world = World::of(&SYSTEMS).entity(part);
    for name in NAMES {
        world = world.ddl(name, "ALTER TABLE contact ADD CONSTRAINT one_code UNIQUE (vendor, code)");
    }
    let world = world.start().await;
    world["erp"].execute("INSERT INTO contact VALUES (1, 'u', 'c', 'a'), (2, 'v', 'c', 'b'), (3, 'w', 'c', 'c')").await;
    world.quiet().await;
    world
}

const CRM_MOVES: (&str, &str) = ("crm", "UPDATE contact SET vendor = 'x', name = 'of crm' WHERE id = 1");
const SHOP_MOVES: (&str, &str) = ("shop", "UPDATE contact SET vendor = 'x', name = 'of shop' WHERE id = 2");

/// Where a key has several columns, a change of any of them clashes; what has a policy may be another one, which
/// the change does not carry.
#[tokio::test]
async fn a_key_of_several_columns_is_renamed_in_the_one_that_has_the_template() {
    let renames = "{ code = { policy = \"rename\", template = \"{value}-{system}-{key}\" } }";
    for scope in ["scope = \"row\"", "scope = \"field\""] {
        let world = parts(renames, &[scope]).await;

        at_once(&world, &[SHOP_MOVES, CRM_MOVES]).await;
        parted(&world, &["1 x c of crm", "2 x c-shop-2 of shop", "3 w c c"]).await;

        // One column alone is nobody's.
        at_once(
            &world,
            &[
                ("erp", "INSERT INTO contact VALUES (4, 'y', 'c', 'd')"),
                ("crm", "INSERT INTO contact VALUES (5, 'y', 'd', 'e')"),
            ],
        )
        .await;
        let rest = ["3 w c c", "4 y c d", "5 y d e"];
        parted(&world, &[&["1 x c of crm", "2 x c-shop-2 of shop"], &rest[..]].concat()).await;
        let decided: Vec<String> = clashes(&world).await.iter().map(told).collect();
        assert_eq!(decided, ["2 of shop against crm: renamed"], "{scope}");
    }
}

#[tokio::test]
async fn of_a_key_of_several_columns_only_what_was_changed_is_given_back() {
    for scope in ["scope = \"row\"", "scope = \"field\""] {
        let world = parts("{ code = \"reject\" }", &[scope]).await;

        at_once(&world, &[SHOP_MOVES, CRM_MOVES]).await;
        parted(&world, &["1 x c of crm", "2 v c of shop", "3 w c c"]).await;

        let decided: Vec<String> = clashes(&world).await.iter().map(told).collect();
        assert_eq!(decided, ["2 of shop against crm: partly"], "{scope}");
    }
}

#[tokio::test]
async fn of_several_policies_for_one_key_the_first_in_the_file_decides() {
    let world = parts("{ vendor = \"manual\", code = \"reject\" }", &[]).await;

    at_once(&world, &[SHOP_MOVES, CRM_MOVES]).await;
    let id = the_open_one(&world).await;
    world.agent.run(&["conflicts", "resolve", &id, "--set", "code=d"]).await;

    let expected = match told(&clashes(&world).await[0]).starts_with('1') {
        true => ["1 x d of crm", "2 x c of shop", "3 w c c"],
        false => ["1 x c of crm", "2 x d of shop", "3 w c c"],
    };
    parted(&world, &expected).await;
}

/// Killed at every step around the decision, and with the conflict on disk and its entry not: it is
/// decided once in the end, and told once.
#[tokio::test]
async fn a_kill_around_the_decision_repeats_nothing() {
    let renames = "{ policy = \"rename\", template = \"{value}-{system}-{key}\" }";
    for (step, count) in [
        (Step::ConflictWritten, 1),
        (Step::BeforeJournalSync, 3),
        (Step::AfterJournalSync, 3),
        (Step::AfterJournalSync, 4),
        (Step::AfterTargetCommit, 3),
    ] {
        let mut world = world(renames, &[]).await;
        world.agent.stop().await;
        at_rest(&world, &[SHOP, CRM]).await;
        world.agent.kill_at(step, count);
        world.agent.start();
        world.agent.exited(Duration::from_secs(60)).await;
        world.agent.kill_nowhere();

        world.agent.start();
        world.agent.ready().await;
        parted(&world, &["1 ada@x of crm", "2 ada@x-shop-2 of shop"]).await;
        let decided: Vec<String> = clashes(&world).await.iter().map(told).collect();
        assert_eq!(decided, ["2 of shop against crm: renamed"], "{step:?} {count}");
    }
}

async fn at_rest(world: &World, writes: &[(&str, &str)]) {
    for (system, sql) in writes {
        world[*system].execute(sql).await;
    }
}

/// A unique index that the file says nothing about: `check` tells of it, and what clashes waits in
/// quarantine as ever.
#[tokio::test]
async fn what_nobody_decides_is_told_by_check_and_held() {
    let contact = Entity::new("contact").key("id", Type::Int).field("email", Type::Varchar(24));
    let world = World::of(&SYSTEMS[..2])
        .entity(contact)
        .ddl("crm", "ALTER TABLE contact ADD CONSTRAINT one_email UNIQUE (email)")
        .start()
        .await;
    let checked = world.agent.command(&["check"]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("keeps (email) unique") && said.contains("[entity.unique]"), "{said}");

    world.agent.pause();
    world["crm"].execute("INSERT INTO contact VALUES (1, 'ada@x')").await;
    world["shop"].execute("INSERT INTO contact VALUES (2, 'ada@x')").await;
    world.agent.resume();

    let held = until_held(&world, 1).await;
    assert!(held[0].system == "crm" && held[0].key == "2", "{held:?}");
    assert_eq!(clashes(&world).await, [] as [Value; 0]);
}
