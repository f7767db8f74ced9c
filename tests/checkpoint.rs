//! A start from the checkpoint of the index, on real servers: short whatever is held, and never needed.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use super::support::agent::Step;
use super::support::quarantine::{held, settled, until_held};
use super::support::servers::Kind;
use super::support::traffic::{Traffic, entities, open_accounts};
use super::support::world::{Builder, Entity, Type, World};
use super::support::{SOON, soak};

const PAUSE: Duration = Duration::from_millis(20);
const CRM: (&str, Kind) = ("crm", Kind::Postgres17);
const SHOP: (&str, Kind) = ("shop", Kind::Mysql);
const ERP: (&str, Kind) = ("erp", Kind::Mariadb);

const BEHIND: &str = "journal replayed behind the index checkpoint";
const WITHOUT: &str = "the index checkpoint is done without";

fn file(world: &World) -> PathBuf {
    world.agent.data_dir().join("index.checkpoint")
}

/// A number that the last line with this text says.
fn said(world: &World, text: &str, field: &str) -> u64 {
    let log = world.agent.log();
    let line = log.lines().rfind(|line| line.contains(text)).unwrap_or_else(|| panic!("nobody said {text:?}"));
    let (_, rest) = line.split_once(&format!("{field}=")).unwrap_or_else(|| panic!("no {field} in {line}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// The second system wants amounts from 0.
fn holding(systems: &[(&str, Kind)]) -> Builder {
    let contact = Entity::new("contact").key("id", Type::Int).field("amount", Type::Int);
    let positive = "ALTER TABLE contact ADD CONSTRAINT positive CHECK (amount >= 0)";
    World::of(systems).entity(contact).ddl(systems[1].0, positive)
}

/// Checkpoints as fast as they go, and a kill before and behind the moment at which one counts: while the
/// agent works, and when it was told to leave.
async fn killed_while_it_is_written(name: &str, kind: Kind) {
    let mut world = entities(holding(&[CRM, (name, kind)])).start().await;
    open_accounts(&world).await;
    // While something is held, a checkpoint is never needless.
    world["crm"].execute("INSERT INTO contact VALUES (1, -1)").await;
    until_held(&world, 1).await;
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", name], PAUSE);
    world.agent.stop().await;
    world.agent.set_env("ANECHOIC_CHECKPOINT_EVERY", "1");
    for told_to_leave in [false, true] {
        for step in [Step::BeforeCheckpointRename, Step::AfterCheckpointRename] {
            if told_to_leave {
                world.agent.start();
                world.agent.ready().await;
                traffic.pass(30).await;
                world.agent.kill();
                world.agent.set_env("ANECHOIC_CHECKPOINT_EVERY", "1000000000");
                world.agent.kill_at(step, 1);
                world.agent.start();
                world.agent.ready().await;
                traffic.pass(30).await;
                assert_eq!(world.agent.stop().await.signal(), Some(libc::SIGKILL), "{}", step.name());
                world.agent.set_env("ANECHOIC_CHECKPOINT_EVERY", "1");
            } else {
                world.agent.kill_at(step, 2);
                world.agent.start();
                let ended = world.agent.exited(SOON).await;
                assert_eq!(ended.signal(), Some(libc::SIGKILL), "{}", step.name());
            }
            world.agent.kill_nowhere();
            let before = world.agent.log().matches(BEHIND).count();
            world.agent.start();
            world.agent.ready().await;
            traffic.pass(30).await;
            assert!(world.agent.log().matches(BEHIND).count() > before, "{}: it was not used", step.name());
            world.agent.stop().await;
        }
    }
    world.agent.start();
    world.agent.ready().await;
    traffic.stop().await;
    world[name].execute("INSERT INTO contact VALUES (1, 7)").await;
    world["crm"].execute("UPDATE contact SET amount = 5 WHERE id = 1").await;
    until_held(&world, 0).await;
    world.agent.wait_quiet().await;
    assert!(!world.agent.log().contains(WITHOUT), "none of them is anything but whole");
    eprintln!("{name}: 4 kills while it was written: {}", traffic.check(&world).await);
}

#[tokio::test]
async fn killed_while_the_index_is_checkpointed_with_mysql() {
    killed_while_it_is_written("shop", Kind::Mysql).await;
}

#[tokio::test]
async fn killed_while_the_index_is_checkpointed_with_mariadb() {
    killed_while_it_is_written("erp", Kind::Mariadb).await;
}

/// A key that is held for long made every start replay the whole journal. From the checkpoint it replays what
/// came since; without it, or with one whose bytes have flipped, the whole, and knows the same.
#[tokio::test]
async fn a_held_key_does_not_make_starts_long() {
    for target in [SHOP, ERP] {
        let mut world = holding(&[CRM, target]).start().await;
        world["crm"].execute("INSERT INTO contact VALUES (1, 1), (2, -1)").await;
        until_held(&world, 1).await;
        let (times, rows) = if soak() { (200, 5000) } else { (40, 2000) };
        for time in 1..=times {
            let (from, to) = (time * rows + 1, (time + 1) * rows);
            world["crm"]
                .execute(&format!("INSERT INTO contact SELECT n, n FROM generate_series({from}, {to}) n"))
                .await;
        }
        settled(&world).await;

        world.agent.stop().await;
        world.agent.start();
        world.agent.ready().await;
        let short = ["elapsed_ms", "head", "from"].map(|field| said(&world, BEHIND, field));
        world.agent.kill();
        std::fs::remove_file(file(&world)).unwrap();
        world.agent.start();
        world.agent.ready().await;
        let long = ["elapsed_ms", "head", "from"].map(|field| said(&world, "journal replayed ", field));
        eprintln!(
            "{}: {} rows, start {} ms from the checkpoint, {} ms without",
            target.0,
            times * rows,
            short[0],
            long[0]
        );
        assert!(short[2] + 10 > short[1] && long[2] == 1, "head and first entry replayed: {short:?}, {long:?}");

        world.agent.stop().await;
        let mut bytes = std::fs::read(file(&world)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(file(&world), bytes).unwrap();
        world.agent.start();
        world.agent.ready().await;
        assert!(world.agent.log().contains(WITHOUT) && world.agent.log().contains("it fails its checksum"));

        // What the holding system writes meanwhile has not seen what it holds; that wins, as the first system's.
        assert_eq!(held(&world).await, [format!("{} contact 2", target.0)]);
        world.agent.stop().await;
        world.agent.start();
        world.agent.ready().await;
        world[target.0].execute("INSERT INTO contact VALUES (2, 7)").await;
        world["crm"].execute("UPDATE contact SET amount = 5 WHERE id = 2").await;
        until_held(&world, 0).await;
        world.quiet().await;
        let sql = "SELECT amount FROM contact WHERE id = 2";
        assert_eq!(world[target.0].value(sql).await.as_deref(), Some("5"));
        assert_eq!(world["crm"].value(sql).await.as_deref(), Some("5"));
    }
}
