//! Asks every server before the first row: what would lose data, loop, or cannot work, each
//! with the SQL or TOML that mends it. Writes nothing.
//!
//! Start-up asks the same questions by the same functions. A system that cannot be reached is
//! a finding and hides none about the others.

pub mod grants;
pub mod mysql;
pub mod needs;
pub mod postgres;
pub mod privileges;

use futures_util::future::join_all;
use mysql_async::Conn;
use tokio_postgres::Client;

use self::needs::Needs;
use crate::capture::mysql::identity;
use crate::capture::postgres::{application_name, publication_name, slot_name};
use crate::catalog::{self, ReplicaIdentity, Table, TableName};
use crate::config::{Config, ConnectConfig, Engine, SystemConfig};
use crate::error::Result;
use crate::finding::Finding;
use crate::normalize::resolve::{Catalog, resolve};
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
}

/// What all systems answered.
#[derive(Debug)]
pub struct Preflight {
    /// By system; `None` where it could not be asked.
    pub surveys: Vec<Option<Survey>>,
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
pub async fn preflight(config: &Config) -> Preflight {
    let answers = join_all(config.system_ids().map(|system| survey(config, system))).await;
    let (mut surveys, mut findings) = (Vec::new(), Vec::new());
    for (answer, system) in answers.into_iter().zip(&config.systems) {
        match answer {
            Ok(survey) => {
                findings.extend(survey.findings.clone());
                surveys.push(Some(survey));
            }
            Err(error) => {
                findings.push(Finding::of(&system.name, &error));
                surveys.push(None);
            }
        }
    }
    findings.extend(shared_markers(config).await);
    findings.extend(fit(config, &surveys));
    Preflight { surveys, findings }
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

/// How the tables fit together. Of a system that could not be asked nothing is known, so
/// nothing is said.
fn fit(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let tables = |survey: &Option<Survey>| survey.as_ref().map_or_else(Vec::new, |survey| survey.tables.clone());
    let names = config.system_ids().map(|system| Needs::of(config, system).names());
    let catalogs: Vec<Catalog> =
        names.zip(surveys).map(|(names, survey)| names.into_iter().zip(tables(survey)).collect()).collect();
    let asked = |finding: &Finding| {
        let system = config.systems.iter().position(|system| *system.name == *finding.system);
        system.is_none_or(|system| surveys[system].is_some())
    };
    let findings = match resolve(config, &catalogs) {
        Ok(model) => model.warnings,
        Err(findings) => findings,
    };
    findings.into_iter().filter(asked).collect()
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

pub(crate) async fn postgres_survey(
    client: &Client,
    config: &Config,
    system: SystemId,
    needs: &Needs,
) -> Result<Survey> {
    let publication = publication_name(&config.agent.id);
    let slot = slot_name(&config.agent.id, &config.system(system).connect.database);
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
    Ok(Survey {
        kind: "postgresql",
        version: facts.version.clone(),
        tables,
        findings: postgres::findings(&config.system(system).name, &facts, needs, &slot),
        steps: setup::postgres::steps(&facts, needs, &publication),
        postgres: Some(facts),
        mysql: None,
    })
}

pub(crate) async fn mysql_survey(conn: &mut Conn, config: &Config, system: SystemId, needs: &Needs) -> Result<Survey> {
    let facts = mysql::read(conn, needs).await?;
    let tables = catalog::mysql::read(conn, &needs.names()).await?;
    Ok(Survey {
        kind: facts.flavour.name(),
        version: facts.version.clone(),
        findings: mysql::findings(&config.system(system).name, &facts, needs, &tables),
        steps: setup::mysql::steps(&facts, needs),
        tables,
        postgres: None,
        mysql: Some(facts),
    })
}
