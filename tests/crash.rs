//! Exactly once, whatever ends the agent: SIGKILL at each named step and at random moments, with
//! writers at work in both systems. See `support::traffic` for what is written and checked.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rand::RngExt;

use super::support::agent::Step;
use super::support::servers::Kind;
use super::support::traffic::{Traffic, entities, open_accounts};
use super::support::world::World;
use super::support::{seeded, soak};

const PAUSE: Duration = Duration::from_millis(4);

/// Over three connections to each system, with batches that soon are full.
async fn world(other: (&str, Kind)) -> World {
    let apply = "apply = { connections = 3 }";
    let systems = World::of(&[("crm", Kind::Postgres17), other]);
    let mut world = entities(systems.system_option("crm", apply).system_option(other.0, apply)).build().await;
    world.agent.set_env("ANECHOIC_BATCH_CHANGES", "4");
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    open_accounts(&world).await;
    world
}

/// One kill at each step while one system is written to, then the same from the other.
async fn killed_at_each_step(name: &str, kind: Kind) {
    let mut world = world((name, kind)).await;
    let mut random = seeded();
    let mut traffic = Traffic::new();
    for written in ["crm", name] {
        traffic.start(&world, &[written], PAUSE);
        for step in Step::ALL {
            world.agent.kill();
            world.agent.kill_at(step, random.random_range(2..12));
            world.agent.start();
            let ended = world.agent.exited(super::support::SOON).await;
            assert_eq!(ended.signal(), Some(libc::SIGKILL), "{}", step.name());
            world.agent.kill_nowhere();
            world.agent.start();
            world.agent.ready().await;
            traffic.pass(20).await;
        }
        traffic.stop().await;
    }
    world.agent.wait_quiet().await;
    eprintln!("{name}: 8 kills at named steps: {}", traffic.check(&world).await);
}

/// Kills at random moments, the start included, while both systems are written to.
async fn killed_at_random(name: &str, kind: Kind) {
    let mut world = world((name, kind)).await;
    let mut random = seeded();
    let kills = if soak() { 50 } else { 10 };
    let mut traffic = Traffic::new();
    traffic.start(&world, &["crm", name], PAUSE);
    for _ in 0..kills {
        if random.random_bool(0.7) {
            world.agent.ready().await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..700))).await;
        world.agent.restart_after_kill();
    }
    world.agent.ready().await;
    traffic.pass(100).await;
    traffic.stop().await;
    world.agent.wait_quiet().await;
    eprintln!("{name}: {kills} kills at random: {}", traffic.check(&world).await);
}

#[tokio::test]
async fn postgresql_and_mysql_killed_at_each_step() {
    killed_at_each_step("shop", Kind::Mysql).await;
}

#[tokio::test]
async fn postgresql_and_mariadb_killed_at_each_step() {
    killed_at_each_step("erp", Kind::Mariadb).await;
}

#[tokio::test]
async fn postgresql_and_mysql_killed_at_random() {
    killed_at_random("shop", Kind::Mysql).await;
}

#[tokio::test]
async fn postgresql_and_mariadb_killed_at_random() {
    killed_at_random("erp", Kind::Mariadb).await;
}
