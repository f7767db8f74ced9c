//! What a person tells the running agent: to pause and to go on, to try again or to give up what a
//! system refused, to read its file again.

use std::process::Output;

use super::support::quarantine::{held, list, settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn item() -> Entity {
    Entity::new("item").key("id", Type::Int).field("count", Type::Int)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn ids(world: &World, system: &str) -> Vec<String> {
    let mut ids: Vec<String> = world.rows("item", system).await.into_iter().flat_map(|row| row[0].clone()).collect();
    ids.sort();
    ids
}

async fn until_ids(world: &World, system: &str, expected: &[&str]) {
    eventually(SOON, || async {
        let ids = ids(world, system).await;
        if ids == expected { Ok(()) } else { Err(format!("{system} has {ids:?}")) }
    })
    .await;
}

async fn state(world: &World, system: &str) -> String {
    let status = world.agent.status().await.unwrap();
    let systems = status["systems"].as_array().unwrap();
    systems.iter().find(|s| s["name"] == system).unwrap()["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_paused_system_stands_still_until_it_is_resumed_and_the_others_go_on() {
    let world = World::of(&THREE).entity(item()).start().await;
    let mut all: Vec<String> = Vec::new();
    for (round, (paused, _)) in THREE.into_iter().enumerate() {
        let before = all.clone();
        let others: Vec<&str> = THREE.iter().map(|(name, _)| *name).filter(|name| *name != paused).collect();
        world.agent.run(&["pause", paused]).await;

        let (own, foreign) = (format!("{}", 10 * round + 1), format!("{}", 10 * round + 2));
        world[paused].execute(&format!("INSERT INTO item VALUES ({own}, 1)")).await;
        world[others[0]].execute(&format!("INSERT INTO item VALUES ({foreign}, 1)")).await;
        let mut there = [before.clone(), vec![foreign.clone()]].concat();
        there.sort();
        until_ids(&world, others[1], &there.iter().map(String::as_str).collect::<Vec<_>>()).await;

        let mut here = [before, vec![own.clone()]].concat();
        here.sort();
        assert_eq!(ids(&world, paused).await, here, "{paused}");
        assert_eq!(ids(&world, others[0]).await, there, "{paused}");
        assert_eq!(state(&world, paused).await, "paused");
        let (ready, reasons) = world.agent.readiness().await.unwrap();
        assert!(!ready && reasons.contains("paused"), "{reasons}");
        let waited = world.agent.command(&["wait", "--timeout", "5s"]).await;
        assert!(!waited.status.success() && said(&waited).contains(&format!("anechoic resume {paused}")));

        world.agent.run(&["resume", paused]).await;
        world.quiet().await;
        all.extend([own, foreign]);
        all.sort();
    }
    assert_eq!(ids(&world, "crm").await, all);
}

/// Where its log is read up to.
async fn place(world: &World, system: &str) -> String {
    let status = world.agent.status().await.unwrap();
    let systems = status["systems"].as_array().unwrap();
    systems.iter().find(|s| s["name"] == system).unwrap()["capture"]["position"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pause_is_obeyed_however_much_there_is_to_read() {
    let world = World::of(&THREE).entity(item()).start().await;
    world["crm"].execute("INSERT INTO item SELECT n, n FROM generate_series(1, 5000) n").await;
    world.quiet().await;
    for (system, _) in THREE {
        let (before, mut rounds) = (place(&world, system).await, 0);
        let flood = async {
            for round in 0..60 {
                world[system].execute(&format!("UPDATE item SET count = {round} WHERE id <= 5000")).await;
                rounds += 1;
            }
        };
        let paused = async {
            eventually(SOON, || async {
                if place(&world, system).await == before { Err("nothing is read yet".to_owned()) } else { Ok(()) }
            })
            .await;
            world.agent.run(&["pause", system]).await;
            let at = place(&world, system).await;
            tokio::time::sleep(std::time::Duration::from_millis(500)).await; // that it stands is what is looked at
            assert_eq!(place(&world, system).await, at, "{system}: it is read on");
        };
        tokio::join!(flood, paused);
        world.agent.run(&["resume", system]).await;
        world.quiet().await;
    }
}

/// Somebody holds a row that the last batch is to write.
#[tokio::test]
async fn a_pause_that_waits_for_the_last_batch_says_so_and_holds_all_the_same() {
    let world = World::of(&THREE).private("crm").entity(item()).start().await;
    world["crm"].execute("INSERT INTO item VALUES (1, 1)").await;
    world.quiet().await;
    let mut holder = world["crm"].session().await;
    holder.execute("BEGIN").await;
    holder.execute("SELECT * FROM item WHERE id = 1 FOR UPDATE").await;
    world["shop"].execute("UPDATE item SET count = 2 WHERE id = 1").await;
    eventually(SOON, || async {
        let waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        if world["crm"].admin().await.rows(waiting).await.is_empty() { Err("nobody waits".to_owned()) } else { Ok(()) }
    })
    .await;

    let paused = world.agent.command(&["pause", "crm"]).await;
    assert!(!paused.status.success() && said(&paused).contains("crm is paused, but"), "{}", said(&paused));
    assert_eq!(state(&world, "crm").await, "paused");
    holder.execute("COMMIT").await;
    world.agent.run(&["pause", "crm"]).await;
    world["shop"].execute("INSERT INTO item VALUES (2, 2)").await;
    until_ids(&world, "erp", &["1", "2"]).await;
    assert_eq!(ids(&world, "crm").await, ["1"]);
    world.agent.run(&["resume", "crm"]).await;
    world.quiet().await;
}

#[tokio::test]
async fn a_system_that_was_paused_is_so_after_a_restart_and_a_change_of_the_file() {
    let mut world = World::of(&THREE).entity(item()).start().await;
    world.agent.run(&["pause", "shop"]).await;
    world.agent.kill();
    world["crm"].execute("INSERT INTO item VALUES (1, 1)").await;

    world.agent.start();
    until_ids(&world, "erp", &["1"]).await;
    assert_eq!(state(&world, "shop").await, "paused");
    world.agent.run(&["reload"]).await;
    world["crm"].execute("INSERT INTO item VALUES (2, 1)").await;
    until_ids(&world, "erp", &["1", "2"]).await;
    assert_eq!((state(&world, "shop").await.as_str(), ids(&world, "shop").await.len()), ("paused", 0));

    world.agent.run(&["resume", "shop"]).await;
    world.quiet().await;
    assert_eq!(ids(&world, "shop").await, ["1", "2"]);
    let unknown = world.agent.command(&["pause", "shp"]).await;
    assert!(!unknown.status.success() && said(&unknown).contains("nearest: \"shop\""), "{}", said(&unknown));
}

#[tokio::test]
async fn what_a_system_refused_is_tried_again_or_given_up_when_a_person_says_so() {
    for [source, target] in [["crm", "shop"], ["shop", "crm"], ["crm", "erp"]] {
        let mut world = World::of(&THREE)
            .entity(item())
            .ddl(target, "ALTER TABLE item ADD CONSTRAINT positive CHECK (count >= 0)")
            .start()
            .await;
        world[source].execute("INSERT INTO item VALUES (1, -1), (2, -2), (3, 3)").await;
        until_held(&world, 2).await;
        let shown = world.agent.run(&["quarantine"]).await;
        assert!(shown.contains("positive") && !shown.contains("count"), "{shown}");
        assert!(world.agent.run(&["quarantine", "--values"]).await.contains("count = -2"));

        // refused once more, and it says how often
        world.agent.run(&["quarantine", "retry", target, "item", "1"]).await;
        eventually(SOON, || async {
            let attempts = list(&world).await?.iter().find(|held| held.key == "1").map(|held| held.attempts);
            if attempts == Some(2) { Ok(()) } else { Err(format!("{attempts:?} attempts")) }
        })
        .await;

        // given up: the row stays as it is there, also over a restart, until somebody changes it
        world.agent.run(&["quarantine", "drop", target, "item", "2"]).await;
        until_held(&world, 1).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        settled(&world).await;
        assert_eq!(held(&world).await, [format!("{target} item 1")]);
        assert_eq!(ids(&world, target).await, ["3"]);
        world[source].execute("UPDATE item SET count = 22 WHERE id = 2").await;
        until_ids(&world, target, &["2", "3"]).await;

        // mended where it was refused
        world[target].execute("ALTER TABLE item DROP CONSTRAINT positive").await;
        world.agent.run(&["quarantine", "retry", target, "--all"]).await;
        until_held(&world, 0).await;
        world.quiet().await;
        assert_eq!(ids(&world, target).await, ["1", "2", "3"]);
        let none = world.agent.command(&["quarantine", "retry", target, "item", "77"]).await;
        assert!(!none.status.success() && said(&none).contains("nothing like that"), "{}", said(&none));
    }
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_the_command_says_why() {
    let world = World::of(&THREE).entity(item()).start().await;
    let good = std::fs::read_to_string(world.agent.config()).unwrap();
    let head = world.agent.status().await.unwrap()["systems"].as_array().unwrap().len();

    // The command itself reads where the agent is from it.
    std::fs::write(world.agent.config(), good.replace("key = [\"id\"]", "key = [\"no_such_field\"]")).unwrap();
    let refused = world.agent.command(&["reload"]).await;

    assert!(!refused.status.success() && said(&refused).contains("no_such_field"), "{}", said(&refused));
    world["crm"].execute("INSERT INTO item VALUES (1, 1)").await;
    until_ids(&world, "erp", &["1"]).await;
    assert_eq!(world.agent.status().await.unwrap()["systems"].as_array().unwrap().len(), head);
    std::fs::write(world.agent.config(), good).unwrap();
    assert!(world.agent.run(&["reload"]).await.contains("the file is taken"));
    world.quiet().await;
}
