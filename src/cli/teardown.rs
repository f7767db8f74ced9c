//! `anechoic teardown`

use serde::Serialize;

use super::{Outcome, Print, print, print_json};
use crate::agent::decided;
use crate::config::Config;
use crate::control::Client;
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::setup::{Removed, exists, operator, remove};

#[derive(Serialize)]
struct Report {
    ok: bool,
    removed: Vec<String>,
    findings: Vec<Finding>,
}

pub(super) async fn teardown(config: &Config, options: &Print) -> Result<Outcome> {
    if Client::connect(&config.agent.data_dir).await?.is_some() {
        return Err(Error::stop("the agent runs: it would lose its place", "stop it first"));
    }
    let operator = if exists(config) { Some(operator(config)?) } else { None };
    let mut report = Report { ok: true, removed: vec![], findings: vec![] };
    for (id, system) in config.system_ids().zip(&config.systems) {
        match remove(config, id).await {
            Ok(Removed { done, left }) => {
                report.removed.extend(done.iter().map(|what| format!("{}: {what}", system.name)));
                report.findings.extend(left);
            }
            Err(error) => report.findings.push(Finding::of(&system.name, &error)),
        }
    }
    report.ok = !report.findings.iter().any(Finding::is_error);
    let bare = report.findings.is_empty();
    // Kept as it is while a system is not done: the next teardown needs no journal either way,
    // but a person who gives up halfway may still want to go back.
    if let (true, Some(operator)) = (report.ok, operator) {
        decided::forget(config)?;
        let place = operator.set_aside(config)?;
        report.removed.push(format!("the journal is set aside in {}", place.display()));
    }
    if options.json {
        print_json(&report);
    } else {
        report.removed.iter().for_each(|what| print(what));
        report.findings.iter().for_each(|finding| print(&finding.to_string()));
        match report.ok {
            true if bare => print("nothing is left in the systems"),
            true => print("nothing else is left in the systems"),
            false => print("not complete: mend the above and run teardown again"),
        }
    }
    Ok(if report.ok { Outcome::Done } else { Outcome::Found })
}
