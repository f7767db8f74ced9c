//! What an agent promises when it leaves, comes back, or meets another one of its own id.

use std::path::Path;
use std::time::Duration;

use super::support::agent::{Agent, Step};
use super::support::servers::{Kind, PASSWORD};
use super::support::traffic::{Traffic, entities, open_accounts};
use super::support::world::{Entity, Type, World};
use super::support::{SOON, soak};

const PAUSE: Duration = Duration::from_millis(4);
const CRM: (&str, Kind) = ("crm", Kind::Postgres17);
const SHOP: (&str, Kind) = ("shop", Kind::Mysql);
const ERP: (&str, Kind) = ("erp", Kind::Mariadb);

#[tokio::test]
async fn sigterm_under_load_leaves_at_once_and_loses_nothing() {
    let mut world = entities(World::of(&[CRM, SHOP, ERP])).start().await;
    open_accounts(&world).await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "shop", "erp"], PAUSE);
    for _ in 0..3 {
        traffic.pass(100).await;
        let status = world.agent.stop().await; // within 10 s, or it panics
        assert_eq!(status.code(), Some(0));
        world.agent.start();
        world.agent.ready().await;
    }
    traffic.stop().await;
    world.agent.wait_quiet().await;
    eprintln!("3 stops: {}", traffic.check(&world).await);
}

#[tokio::test]
async fn sigterm_is_obeyed_while_a_target_does_not_answer() {
    let mut world = entities(World::of(&[CRM, SHOP, ERP]).proxied("crm").proxied("shop")).start().await;
    open_accounts(&world).await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "shop", "erp"], PAUSE);
    for system in ["crm", "shop"] {
        traffic.pass(50).await;
        world.proxy(system).stall();
        traffic.pass(200).await;
        let status = world.agent.stop().await;
        assert_eq!(status.code(), Some(0), "while {system} stalls");
        world.proxy(system).pass();
        world.agent.start();
        world.agent.ready().await;
    }
    traffic.stop().await;
    world.agent.wait_quiet().await;
    traffic.check(&world).await;
}

/// The log is read, and somebody holds the marker's row.
#[tokio::test]
async fn nobody_is_called_ready_before_its_applier_is_let_in() {
    let entity = Entity::new("item").key("id", Type::Int).option_in("crm", "role = \"source\"");
    let mut world = World::of(&[CRM, ERP]).private("erp").entity(entity).start().await;
    world.agent.stop().await;
    let (mut holder, mut looker) = (world["erp"].admin().await, world["erp"].admin().await);
    holder.execute("BEGIN").await;
    holder.execute(&format!("SELECT * FROM {}.marker FOR UPDATE", world["erp"].marker)).await;

    world.agent.start();
    let waits = "SELECT 1 FROM information_schema.processlist WHERE command = 'Query' AND time_ms > 200";
    let began = std::time::Instant::now();
    while looker.rows(waits).await.is_empty() {
        assert!(world.agent.is_running() && began.elapsed() < SOON, "{}", world.agent.log());
        let ready = world.agent.readiness().await.is_ok_and(|(ready, _)| ready);
        assert!(!ready, "{}", world.agent.log());
    }
    holder.execute("COMMIT").await;
    world.agent.ready().await;
}

/// An agent with the same configuration, its own port and its own data_dir.
fn twin(of: &Agent, marker: &str) -> Agent {
    let config = std::fs::read_to_string(of.config()).unwrap();
    let (_, systems) = config.split_once("\n\n").unwrap();
    let mut twin = Agent::new(&of.id, marker, systems);
    twin.set_env("ANECHOIC_TEST_PASSWORD", PASSWORD);
    twin
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The second one, with a copy of the first one's data_dir, waits for the lock, names its
/// holder and leaves; the first one is not disturbed.
#[tokio::test]
async fn a_second_agent_with_a_copied_data_dir_refuses() {
    let mut world = entities(World::of(&[CRM, SHOP, ERP])).start().await;
    open_accounts(&world).await;
    let mut second = twin(&world.agent, &format!("{}.marker", world["crm"].marker));
    world.agent.stop().await;
    copy(&world.agent.data_dir(), &second.data_dir());
    world.agent.start();
    world.agent.ready().await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "shop", "erp"], PAUSE);

    let patience = if soak() { 60 } else { 3 };
    second.set_env("ANECHOIC_LOCK_PATIENCE", &patience.to_string());
    let began = std::time::Instant::now();
    second.start();
    let status = second.exited(Duration::from_secs(patience + 30)).await;

    assert_eq!(status.code(), Some(1));
    assert!(began.elapsed() >= Duration::from_secs(patience), "{:?}", began.elapsed());
    let log = second.log();
    assert!(log.contains(&format!("another agent with id \"{}\" is at work in", second.id)), "{log}");
    assert!(log.contains("from 127.0.0.1"), "the holder is named: {log}");
    assert!(!log.contains("applying seq"), "nothing was applied: {log}");
    traffic.pass(50).await;
    traffic.stop().await;
    assert!(world.agent.is_running());
    world.agent.wait_quiet().await;
    traffic.check(&world).await;
}

/// One with an empty data_dir finds that the systems belong to another journal.
#[tokio::test]
async fn a_second_agent_with_an_empty_data_dir_refuses_at_once() {
    for systems in [[CRM, SHOP], [SHOP, ERP]] {
        let world = entities(World::of(&systems)).start().await;
        open_accounts(&world).await;
        let mut second = twin(&world.agent, &format!("{}.marker", world[systems[0].0].marker));

        second.start();
        let status = second.exited(SOON).await;

        assert_eq!(status.code(), Some(1));
        let log = second.log();
        assert!(log.contains("another agent with id") || log.contains("another installation has this id"), "{log}");
        world[systems[0].0].execute("INSERT INTO ledger VALUES ('still', 1, 1)").await;
        world.quiet().await;
    }
}

/// `other` writes a row without having seen what the first system wrote to it; its log is read
/// that far only after the winner was applied there and the agent killed. What `other` had seen
/// must come from the journal then: by the marker in its table, it would have seen the winner.
async fn conflict_across_a_restart(other: (&str, Kind)) {
    let mut world = World::of(&[CRM, other])
        .entity(Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)))
        .ddl(other.0, "CREATE TABLE unbound (id integer, filler varchar(300))")
        .start()
        .await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'before'), (2, 'before')").await;
    world.quiet().await;
    world.agent.stop().await;

    let filler = vec!["(1, repeat('x', 300))"; 500].join(",");
    for _ in 0..40 {
        world[other.0].execute(&format!("INSERT INTO unbound VALUES {filler}")).await;
    }
    world[other.0].execute("UPDATE contact SET name = 'loses' WHERE id = 1; DELETE FROM contact WHERE id = 2").await;
    world["crm"].execute("UPDATE contact SET name = 'wins'").await;
    world.agent.kill_at(Step::AfterTargetCommit, 1);
    world.agent.start();
    world.agent.exited(SOON).await;
    world.agent.kill_nowhere();
    world.agent.start();
    world.agent.ready().await;
    world.quiet().await;

    let rows = world.rows("contact", other.0).await;
    let wins = ["1", "2"].map(|id| vec![Some(id.to_owned()), Some("wins".to_owned())]);
    assert_eq!(rows, wins);
}

#[tokio::test]
async fn a_conflict_across_a_restart_with_mysql() {
    conflict_across_a_restart(SHOP).await;
}

#[tokio::test]
async fn a_conflict_across_a_restart_with_mariadb() {
    conflict_across_a_restart(ERP).await;
}

#[tokio::test]
async fn a_conflict_across_a_restart_with_postgresql() {
    conflict_across_a_restart(("hub", Kind::Postgres15)).await;
}

/// Started while one of three systems is down: the others flow, and it catches up later.
async fn started_without(down: &str) {
    let mut world = entities(World::of(&[CRM, SHOP, ERP]).proxied(down)).start().await;
    open_accounts(&world).await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", "shop", "erp"], PAUSE);
    traffic.pass(50).await;
    world.proxy(down).refuse();
    world.agent.kill();
    world.agent.start();

    let up: Vec<&str> = ["crm", "shop", "erp"].into_iter().filter(|system| *system != down).collect();
    world[up[0]].execute("INSERT INTO ledger VALUES ('meanwhile', 1, 1)").await;
    super::support::eventually(SOON, || async {
        let sql = "SELECT count(*) FROM ledger WHERE writer = 'meanwhile'";
        match world[up[1]].value(sql).await.as_deref() {
            Some("1") => Ok(()),
            _ => Err(format!("nothing flows from {} to {}", up[0], up[1])),
        }
    })
    .await;
    let (ready, reasons) = world.agent.readiness().await.unwrap();
    assert!(!ready && reasons.contains(down), "{reasons}");
    traffic.stop().await;
    world.proxy(down).pass();
    world.agent.ready().await;
    world.agent.wait_quiet().await;
    eprintln!("without {down}: {}", traffic.check(&world).await);
}

#[tokio::test]
async fn started_while_postgresql_is_down() {
    started_without("crm").await;
}

#[tokio::test]
async fn started_while_mysql_is_down() {
    started_without("shop").await;
}

#[tokio::test]
async fn started_while_mariadb_is_down() {
    started_without("erp").await;
}

/// A capture that connects anew begins behind echoes that the journal need not have heard of yet. What it
/// begins from the server takes for received: a death right after that must not find it ahead of the journal.
#[tokio::test]
async fn a_death_right_after_a_new_connection_finds_the_log_where_the_journal_left_it() {
    let entity = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60));
    let mut world = World::of(&[CRM, ERP]).proxied("crm").entity(entity).start().await;
    for id in 1..=3 {
        world["erp"].execute(&format!("INSERT INTO contact VALUES ({id}, 'of erp')")).await;
        world.agent.wait_quiet().await;
        let streams = |world: &World| world.agent.log().matches("capture{system=crm}: capture streams").count();
        let before = streams(&world);

        world.proxy("crm").cut();
        world.proxy("crm").pass();
        super::support::eventually(SOON, || async {
            if streams(&world) > before { Ok(()) } else { Err("not connected anew".to_owned()) }
        })
        .await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
    }
    world.quiet().await;
}
