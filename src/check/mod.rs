//! Asks every server before the first row: what would lose data, loop, or cannot work, each
//! with the SQL or TOML that mends it. Writes nothing.
//!
//! Start-up asks the same questions by the same functions. A system that cannot be reached is
//! a finding and hides none about the others.
//!
//! ```text
//! survey (one system)    reach · missing · postgres · mysql: settings, rights, marker
//! together (all of them) normalize::resolve: types and keys · cascades · clocks · numbering ·
//!                        neighbours · sensitive
//! port                   the files that it needs
//! ```

mod answers;
mod cascades;
mod clocks;
pub mod grants;
mod missing;
pub mod mysql;
pub mod needs;
mod neighbours;
mod numbering;
mod port;
pub mod postgres;
pub mod privileges;
pub mod reach;
mod sensitive;

use futures_util::future::join_all;
use mysql_async::Conn;
use tokio_postgres::Client;

use self::needs::Needs;
use self::numbering::Numbering;
use crate::capture::mysql::identity;
use crate::capture::postgres::{application_name, publication_name, slot_name};
use crate::catalog::{self, ReplicaIdentity, Table, TableName};
use crate::config::{Config, ConnectConfig, Engine, SystemConfig};
use crate::connect::clock::Clock;
use crate::error::{RESYNC, Recovery, Result};
use crate::finding::Finding;
use crate::normalize::follow::Decided;
use crate::normalize::resolve::{Catalog, bound, resolve_after};
use crate::schema::SystemId;
use crate::setup::{self, Step};

/// What one system answered.
#[derive(Debug, Default)]
pub struct Survey {
    /// `postgresql`, `mysql` or `mariadb`.
    pub kind: &'static str,
    pub version: String,
    /// As the needs' tables, and as the steps leave them; `None` where there is none.
    pub tables: Vec<Option<Table>>,
    /// What `setup` cannot mend.
    pub findings: Vec<Finding>,
    /// What `setup` creates, or an administrator.
    pub steps: Vec<Step>,
    pub postgres: Option<postgres::Facts>,
    pub mysql: Option<mysql::Facts>,
    /// The server's, beside ours.
    pub clock: Option<Clock>,
    /// Of columns whose values the server makes.
    pub numbering: Vec<Numbering>,
    /// What foreign keys do to rows stands in the log.
    pub logs_cascades: bool,
    /// MySQL and MariaDB: its `server_id`, and which server it is.
    pub server: Option<(u64, String)>,
    /// Other installations that write into the marker's table.
    pub other_agents: Vec<String>,
    /// An agent of this id has written into it.
    pub own_marker: bool,
}

impl Survey {
    /// What keeps it from starting. What a running agent mends does not.
    pub fn errors(&self) -> Vec<Finding> {
        let bars = |finding: &&Finding| finding.is_error() && !finding.mend.contains(RESYNC);
        self.findings.iter().filter(bars).cloned().collect()
    }
}

/// What all systems answered.
#[derive(Debug)]
pub struct Preflight {
    /// By system; `None` where it could not be asked.
    pub surveys: Vec<Option<Survey>>,
    /// Those that did not answer, and may do so in time.
    pub away: Vec<SystemId>,
    /// Of all systems and of how they fit together; steps not counted.
    pub findings: Vec<Finding>,
}

impl Preflight {
    /// Everything that `check` reports: findings, and steps that are still to be done.
    pub fn report(&self, config: &Config) -> Vec<Finding> {
        let mut findings = self.findings.clone();
        for (survey, system) in self.surveys.iter().zip(&config.systems) {
            let steps = survey.iter().flat_map(|survey| &survey.steps);
            findings.extend(steps.map(|step| step.finding(&system.name)));
        }
        let order = |f: &Finding| config.systems.iter().position(|s| *s.name == *f.system);
        findings.sort_by_key(|f| (order(f), f.severity));
        findings
    }
}

/// Connects to every system at once and asks everything.
///
/// `decided`: of bindings by name, when the agent ran.
pub async fn preflight(config: &Config, decided: &Decided) -> Preflight {
    let answers = join_all(config.system_ids().map(|system| survey(config, system))).await;
    let (mut surveys, mut away, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    for (answer, (id, system)) in answers.into_iter().zip(config.system_ids().zip(&config.systems)) {
        match answer {
            Ok(survey) => {
                findings.extend(survey.findings.clone());
                surveys.push(Some(survey));
            }
            Err(error) => {
                findings.push(reach::finding(system, &error).await);
                away.extend((error.recovery != Recovery::Stop).then_some(id));
                surveys.push(None);
            }
        }
    }
    findings.extend(shared_markers(config).await);
    findings.extend(port::findings(config));
    let catalogs = catalogs(config, &surveys);
    findings.extend(fit(config, &surveys, &catalogs, decided));
    findings.extend(together(config, &surveys, &catalogs));
    Preflight { surveys, away, findings }
}

/// Two databases of one MySQL or MariaDB server share its log: with one marker for both, what
/// one has applied would count for the other. A server that does not answer is told of
/// elsewhere.
pub async fn shared_markers(config: &Config) -> Vec<Finding> {
    let marked = |system: &SystemId| {
        config.system(*system).engine == Engine::Mysql && Needs::of(config, *system).marker.is_some()
    };
    let systems: Vec<_> = config.system_ids().filter(marked).map(|system| config.system(system)).collect();
    let alike = |a: &SystemConfig| systems.iter().filter(|b| a.marker == b.marker).count() > 1;
    let suspects: Vec<&SystemConfig> = systems.iter().copied().filter(|system| alike(system)).collect();
    let servers = join_all(suspects.iter().map(|system| server(&system.connect))).await;
    let mut findings = Vec::new();
    for (at, (system, server)) in suspects.iter().zip(&servers).enumerate() {
        let mut before = suspects.iter().zip(&servers).take(at);
        let Some((other, _)) = before.find(|(b, of)| server.is_some() && *of == server && b.marker == system.marker)
        else {
            continue;
        };
        let TableName { schema, name } = &system.marker;
        let what = format!(
            "is on the same server as {:?}, and both have the marker {}: each would take the other's for its own",
            &*other.name, system.marker
        );
        let own = TableName { schema: schema.clone(), name: format!("{name}_{}", system.name) };
        let mend = format!("[[system]]\nname = {:?}\nmarker = {:?}", &*system.name, own.to_string());
        findings.push(Finding::error(&system.name, what).mend(mend));
    }
    findings
}

async fn server(config: &ConnectConfig) -> Option<String> {
    let mut conn = crate::connect::mysql::connect(config).await.ok()?;
    let (flavour, ..) = crate::connect::mysql::server(&mut conn).await.ok()?;
    let identity = identity(&mut conn, flavour).await.ok();
    let _ = conn.disconnect().await;
    identity
}

/// Of a system that could not be asked nothing is known.
pub fn catalogs(config: &Config, surveys: &[Option<Survey>]) -> Vec<Catalog> {
    let tables = |survey: &Option<Survey>| survey.as_ref().map_or_else(Vec::new, |survey| survey.tables.clone());
    let names = config.system_ids().map(|system| Needs::of(config, system).names());
    names.zip(surveys).map(|(names, survey)| names.into_iter().zip(tables(survey)).collect()).collect()
}

/// How the types and keys of the tables fit together. What is said of a system that could not be
/// asked, or of a table that its survey has missed, is known already.
fn fit(config: &Config, surveys: &[Option<Survey>], catalogs: &[Catalog], decided: &Decided) -> Vec<Finding> {
    let findings = match resolve_after(config, catalogs, decided) {
        Ok(model) => model.warnings,
        Err(findings) => findings,
    };
    let known = |finding: &Finding| {
        let Some(system) = config.systems.iter().position(|system| *system.name == *finding.system) else {
            return false;
        };
        let missing =
            |(name, table): (&TableName, &Option<Table>)| table.is_none() && name.to_string() == finding.table;
        surveys[system].is_none() || catalogs[system].iter().any(missing)
    };
    findings.into_iter().filter(|finding| !known(finding)).collect()
}

/// What only shows where systems are looked at side by side. `catalogs` may know more systems
/// than could be asked.
pub fn together(config: &Config, surveys: &[Option<Survey>], catalogs: &[Catalog]) -> Vec<Finding> {
    let bound = bound(config, catalogs);
    let mut findings = cascades::findings(config, surveys, &bound);
    findings.extend(numbering::findings(config, surveys, &bound));
    findings.extend(sensitive::findings(config, &bound));
    findings.extend(clocks::findings(config, surveys));
    findings.extend(clocks::whole_seconds(config, surveys));
    findings.extend(answers::findings(config, &bound));
    findings.extend(neighbours::findings(config, surveys));
    findings
}

/// Asks one system.
pub async fn survey(config: &Config, system: SystemId) -> Result<Survey> {
    let needs = Needs::of(config, system);
    let connect_config = &config.system(system).connect;
    match config.system(system).engine {
        Engine::Postgres => {
            let name = application_name(&config.agent.id);
            let client = crate::connect::postgres::connect(connect_config, &name).await?;
            postgres_survey(&client, config, system, &needs).await
        }
        Engine::Mysql => {
            let mut conn = crate::connect::mysql::connect(connect_config).await?;
            let survey = mysql_survey(&mut conn, config, system, &needs).await;
            let _ = conn.disconnect().await;
            survey
        }
    }
}

async fn postgres_survey(client: &Client, config: &Config, system: SystemId, needs: &Needs) -> Result<Survey> {
    let agent = config.agent.id.as_str();
    let publication = publication_name(agent);
    let slot = slot_name(agent, &config.system(system).connect.database);
    let facts = postgres::read(client, needs, &publication, &slot).await?;
    let mut tables = catalog::postgres::read(client, &needs.names()).await?;
    for ((need, table), facts) in needs.tables.iter().zip(&mut tables).zip(&facts.tables) {
        if let (Some(table), Some(facts)) = (table, facts)
            && !postgres::identity_suffices(need, facts)
        {
            // A step says so, and mends it.
            table.replica_identity = Some(ReplicaIdentity::Full);
        }
    }
    let mut findings = postgres::findings(&config.system(system).name, &facts, needs, &slot);
    findings.extend(missing::in_postgres(client, config, system, needs, &tables).await?);
    Ok(Survey {
        kind: "postgresql",
        version: facts.version.clone(),
        tables,
        findings,
        steps: setup::postgres::steps(&facts, needs, &publication),
        clock: Some(Clock::of_postgres(client).await?),
        numbering: Numbering::of_postgres(needs, &facts),
        logs_cascades: true,
        server: None,
        own_marker: facts.agents.iter().any(|of| *of == agent),
        other_agents: others(&facts.agents, agent),
        postgres: Some(facts),
        mysql: None,
    })
}

fn others(agents: &[String], agent: &str) -> Vec<String> {
    agents.iter().filter(|other| *other != agent).cloned().collect()
}

async fn mysql_survey(conn: &mut Conn, config: &Config, system: SystemId, needs: &Needs) -> Result<Survey> {
    let facts = mysql::read(conn, needs).await?;
    let tables = catalog::mysql::read(conn, &needs.names()).await?;
    let mut findings = mysql::findings(&config.system(system).name, &facts, needs, &tables);
    findings.extend(missing::in_mysql(conn, config, system, &facts, needs, &tables).await?);
    let identity = identity(conn, facts.flavour).await?;
    Ok(Survey {
        kind: facts.flavour.name(),
        version: facts.version.clone(),
        findings,
        steps: setup::mysql::steps(&facts, needs),
        clock: Some(Clock::of_mysql(conn).await?),
        numbering: Numbering::of_mysql(needs, &facts, &tables),
        logs_cascades: facts.logs_cascades(),
        server: facts.number("server_id").map(|id| (id, identity)),
        own_marker: facts.agents.contains(&config.agent.id),
        other_agents: others(&facts.agents, &config.agent.id),
        tables,
        postgres: None,
        mysql: Some(facts),
    })
}
