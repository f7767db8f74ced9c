//! Others at work in the same systems: another installation, a server with the same number.

use std::collections::BTreeMap;

use super::Survey;
use crate::apply::sql::{backquoted_table, quoted_table};
use crate::config::{Config, Engine};
use crate::finding::Finding;

pub(super) fn findings(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let mut findings = other_agents(config, surveys);
    findings.extend(server_ids(config, surveys));
    findings
}

/// An installation that shares one system with this one hands changes on. One that shares two
/// sees in each what this one writes there, as if users had, and would bring it to the other.
fn other_agents(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let mut seen: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, survey) in surveys.iter().enumerate() {
        for agent in survey.iter().flat_map(|survey| &survey.other_agents) {
            seen.entry(agent).or_default().push(at);
        }
    }
    let mut findings = Vec::new();
    for (agent, systems) in seen.into_iter().filter(|(_, systems)| systems.len() > 1) {
        let names: Vec<&str> = systems.iter().map(|at| &*config.systems[*at].name).collect();
        for at in &systems {
            let system = &config.systems[*at];
            let what = format!(
                "another installation, {agent:?}, keeps {} in step as well: each takes the other's writes for users'",
                names.join(" and ")
            );
            let table = match system.engine {
                Engine::Postgres => quoted_table(&system.marker),
                Engine::Mysql => backquoted_table(&system.marker),
            };
            let mend = format!(
                "DELETE FROM {table} WHERE agent = '{agent}';\n-- where it is gone; else: anechoic teardown there"
            );
            findings.push(Finding::warning(&system.name, what).table(&system.marker).by_administrator(mend));
        }
    }
    findings
}

/// Servers tell replicas, and each other's events, apart by it.
fn server_ids(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let servers: Vec<(&str, &(u64, String))> = config
        .systems
        .iter()
        .zip(surveys)
        .filter_map(|(system, survey)| Some((&*system.name, survey.as_ref()?.server.as_ref()?)))
        .collect();
    let free = servers.iter().map(|(_, (id, _))| *id).max().unwrap_or(0) + 1;
    let mut findings = Vec::new();
    for (at, (system, (id, identity))) in servers.iter().enumerate() {
        let same = servers[..at].iter().find(|(_, (other, server))| other == id && server != identity);
        if let Some((other, _)) = same {
            let what = format!(
                "its server_id {id} is that of {other}, too: one that follows both, or one the other, drops changes"
            );
            let mend = format!("SET GLOBAL server_id = {free};\n# my.cnf, [mysqld]: server_id = {free}");
            findings.push(Finding::warning(system, what).by_administrator(mend));
        }
    }
    findings
}
