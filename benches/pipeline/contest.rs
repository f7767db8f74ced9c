//! One run of one workload: by the agent, or by what it is held against.
//!
//! ```text
//! tables, rows before ─▶ position taken, nobody runs ─▶ backlog written ─▶ ▶ started … last row seen ◀
//!                                                                                         └▶ compared
//! ```
//!
//! Each run has databases of its own, so that neither reads the other's log. A copy that is not
//! what its source is ends the bench.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{at_servers, client, shell};
use crate::latency;
use crate::native::Native;
use crate::support::agent::Agent;
use crate::support::servers::{Kind, PASSWORD, Server, Session};
use crate::support::world::World;
use crate::workload::{PATIENCE, Workload, is_done};

/// From one server to another.
#[derive(Debug, Clone)]
pub struct Way {
    pub from: Arc<Server>,
    pub to: Arc<Server>,
}

impl Way {
    pub fn kinds(&self) -> (Kind, Kind) {
        (self.from.kind, self.to.kind)
    }

    /// The first of them writes, or both do.
    async fn world(&self, workload: Workload) -> World {
        let mut systems = vec![("crm", self.from.kind), ("shop", self.to.kind)];
        if workload == Workload::FanOut {
            systems.push(("erp", self.to.kind));
        }
        let mut builder = World::of(&systems).on("crm", &self.from).on("shop", &self.to);
        if let Ok(connections) = std::env::var("ANECHOIC_BENCH_CONNECTIONS") {
            let apply = format!("apply = {{ connections = {connections} }}");
            builder = systems.iter().fold(builder, |builder, (system, _)| builder.system_option(system, &apply));
        }
        if workload == Workload::FanOut {
            builder = builder.on("erp", &self.to);
        }
        for mut entity in workload.entities() {
            if workload != Workload::TwoWay {
                entity = entity.option_in("crm", "role = \"source\"");
                for (target, _) in &systems[1..] {
                    entity = entity.option_in(target, "role = \"target\"");
                }
            }
            builder = builder.entity(entity);
        }
        builder.build().await
    }

    fn spent(&self) -> Duration {
        at_servers(&[&self.from, &self.to])
    }
}

/// What one run took.
#[derive(Debug, Default, Clone)]
pub struct Run {
    pub took: Duration,
    pub rows: u64,
    pub transactions: u64,
    /// Processor time of the agent or agents; of both servers.
    pub agent: Duration,
    pub servers: Duration,
    /// The agent's at its highest, bytes.
    pub memory: u64,
    /// From commit to visible, sorted.
    pub latencies: Vec<Duration>,
}

impl Run {
    fn of(workload: Workload, scale: f64, sides: u64) -> Run {
        let transactions = workload.transactions(scale) * sides;
        Run { rows: transactions * workload.rows(scale), transactions, ..Run::default() }
    }

    pub fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.took.as_secs_f64()
    }
}

pub async fn by_agent(way: &Way, workload: Workload, scale: f64) -> Run {
    let mut world = way.world(workload).await;
    begin(&mut world, workload).await;
    let mut agents = vec![std::mem::replace(&mut world.agent, Agent::new("none", "none.marker", ""))];
    let run = run(way, &world, &mut agents, workload, scale).await;
    world.agent = agents.remove(0);
    clean(way, world).await;
    run
}

/// A fan-out by as many agents as there are targets.
pub async fn by_agent_each(way: &Way, workload: Workload, scale: f64) -> Run {
    let world = way.world(workload).await;
    workload.before(&world["crm"]).await;
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let mut agents = Vec::new();
    for (number, other) in ["erp", "shop"].into_iter().enumerate() {
        let config = without(&config, other);
        let mut agent = Agent::new(&format!("{}_{number}", world.agent.id), &marker(&config), &body(&config));
        agent.set_env("ANECHOIC_TEST_PASSWORD", PASSWORD);
        set_up(&world, &agent).await;
        agent.start();
        agent.ready().await;
        agent.wait_quiet().await;
        agents.push(agent);
    }
    let run = run(way, &world, &mut agents, workload, scale).await;
    for agent in &agents {
        lend(&world, true).await;
        agent.run(&["teardown"]).await;
    }
    drop(agents);
    drop_tables(way, &world).await;
    run
}

pub async fn by_native(way: &Way, workload: Workload, scale: f64) -> Run {
    let world = way.world(workload).await;
    for system in &world.systems {
        workload.before(&system.db).await;
    }
    let native = Native::new(&world).await;
    let mut run = Run::of(workload, scale, 1);
    let mut target = native.session().await;
    if workload == Workload::Steady {
        native.start().await;
        let before = way.spent();
        latency::measure(&world["crm"], target, scale, &mut run).await;
        run.servers = way.spent() - before;
        target = native.session().await;
    } else {
        workload.write(&world["crm"], 0, scale).await;
        let (before, begun) = (way.spent(), Instant::now());
        native.start().await;
        until_done(&mut target, 0, begun, || ()).await;
        run.took = begun.elapsed();
        run.servers = way.spent() - before;
    }
    for entity in &world.entities {
        let here = world["crm"].rows(&entity.digest(&world.systems[0])).await;
        let there = target.rows(&entity.digest(&world.systems[1])).await;
        assert_eq!(here, there, "{} after the server's own replication", entity.name);
    }
    drop(target);
    native.remove().await;
    drop_tables(way, &world).await;
    run
}

/// psql: COPY … TO STDOUT | psql: COPY … FROM STDIN
pub async fn by_pipe(way: &Way, workload: Workload, scale: f64) -> Run {
    let world = way.world(workload).await;
    workload.write(&world["crm"], 0, scale).await;
    let mut run = Run::of(workload, scale, 1);
    let (out, into) =
        (client(&world["crm"], "-c 'COPY wide TO STDOUT'"), client(&world["shop"], "-c 'COPY wide FROM STDIN'"));
    let before = way.spent();
    run.took = shell(&format!("{out} | {into}")).await;
    run.servers = way.spent() - before;
    drop_tables(way, &world).await;
    run
}

/// Until the agent has what was there before.
async fn begin(world: &mut World, workload: Workload) {
    workload.before(&world.systems[0].db).await;
    set_up(world, &world.agent).await;
    world.agent.start();
    world.agent.ready().await;
    world.agent.wait_quiet().await;
    compare(world).await;
}

async fn run(way: &Way, world: &World, agents: &mut [Agent], workload: Workload, scale: f64) -> Run {
    let sides = if workload == Workload::TwoWay { 2 } else { 1 };
    let mut run = Run::of(workload, scale, sides);
    if workload == Workload::Steady {
        let (before, spent) = (way.spent(), processor_time(agents));
        latency::measure(&world["crm"], world["shop"].session().await, scale, &mut run).await;
        (run.servers, run.agent) = (way.spent() - before, processor_time(agents) - spent);
    } else {
        for agent in &mut *agents {
            agent.stop().await;
        }
        for (side, system) in world.systems[..sides as usize].iter().enumerate() {
            workload.write(&system.db, side as u64, scale).await;
        }
        // Where rows of that side are to be seen.
        let mut sought = Vec::new();
        for (at, system) in world.systems.iter().enumerate() {
            match at {
                0 if sides == 2 => sought.push((1, system.db.session().await)),
                0 => {}
                _ => sought.push((0, system.db.session().await)),
            }
        }
        let (before, begun) = (way.spent(), Instant::now());
        agents.iter_mut().for_each(Agent::start);
        for (side, session) in &mut sought {
            until_done(session, *side, begun, || {
                for agent in &mut *agents {
                    assert!(agent.is_running(), "{}", agent.log());
                }
            })
            .await;
        }
        run.took = begun.elapsed();
        (run.servers, run.agent) = (way.spent() - before, processor_time(agents));
    }
    run.memory = agents.iter().map(|agent| agent.memory().1).sum();
    for agent in &mut *agents {
        agent.wait_quiet().await;
    }
    compare(world).await;
    for agent in agents {
        agent.stop().await;
    }
    run
}

async fn until_done(session: &mut Session, side: u64, begun: Instant, mut meanwhile: impl FnMut()) {
    while !is_done(session, side).await {
        assert!(begun.elapsed() < PATIENCE, "not there after {PATIENCE:?}");
        meanwhile();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn processor_time(agents: &[Agent]) -> Duration {
    agents.iter().map(Agent::processor_time).sum()
}

async fn compare(world: &World) {
    for entity in &world.entities {
        let mut digests = Vec::new();
        for system in &world.systems {
            digests.push(system.db.rows(&entity.digest(system)).await);
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{} after the agent: {digests:?}", entity.name);
    }
}

async fn lend(world: &World, lend: bool) {
    for system in &world.systems {
        system.db.lend_ownership(lend).await;
    }
}

async fn set_up(world: &World, agent: &Agent) {
    lend(world, true).await;
    agent.run(&["setup"]).await;
    lend(world, false).await;
}

async fn clean(way: &Way, world: World) {
    lend(&world, true).await;
    world.agent.run(&["teardown"]).await;
    drop_tables(way, &world).await;
}

/// Gives the disk back.
async fn drop_tables(way: &Way, world: &World) {
    for system in &world.systems {
        for entity in &world.entities {
            system.db.execute(&format!("DROP TABLE {}", world.table(&entity.name, &system.name))).await;
        }
    }
    for server in [&way.from, &way.to] {
        let sql = if server.kind.is_postgres() { "CHECKPOINT" } else { "PURGE BINARY LOGS BEFORE NOW()" };
        server.admin().await.execute(sql).await;
    }
}

/// A configuration's parts: each begins with a line in brackets.
fn parts(config: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in config.lines() {
        match parts.last_mut() {
            Some(part) if !line.starts_with('[') => *part += &format!("{line}\n"),
            _ => parts.push(format!("{line}\n")),
        }
    }
    parts
}

fn without(config: &str, system: &str) -> String {
    let own = [format!("[[system]]\nname = {system:?}\n"), format!("[entity.in.{system}]\n")];
    let keep = |part: &String| !own.iter().any(|begin| part.starts_with(begin));
    parts(config).into_iter().filter(keep).collect()
}

/// All but `[agent]`.
fn body(config: &str) -> String {
    parts(config).into_iter().skip(1).collect()
}

fn marker(config: &str) -> String {
    let line = config.lines().find_map(|line| line.strip_prefix("marker = \"")).unwrap();
    line.trim_end_matches('"').to_owned()
}
