//! `anechoic setup`

use serde::Serialize;

use super::{Outcome, Print, print, print_json};
use crate::agent::decided::forget_published;
use crate::check::shared_markers;
use crate::config::Config;
use crate::error::Result;
use crate::finding::Finding;
use crate::setup::{decide_loads, ensure, operator};

#[derive(Serialize)]
struct Report {
    ok: bool,
    systems: Vec<SystemReport>,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct SystemReport {
    name: String,
    created: Vec<String>,
}

pub(super) async fn setup(config: &Config, options: &Print) -> Result<Outcome> {
    let mut operator = operator(config)?;
    let mut report = Report { ok: true, systems: vec![], findings: vec![] };
    report.findings = shared_markers(config).await;
    let systems = config.system_ids().zip(&config.systems);
    // A marker that two systems share must not be begun for the second one.
    let to_do = systems.filter(|(_, system)| !report.findings.iter().any(|f| *f.system == *system.name));
    for (id, system) in to_do.collect::<Vec<_>>() {
        let mut created = Vec::new();
        match ensure(config, id, operator.known(&system.name), None).await {
            Ok(ensured) => {
                if let Some(position) = &ensured.position {
                    forget_published(config, &system.name)?;
                    operator.note(&system.name, position)?;
                }
                created = ensured.done;
                report.findings.extend(ensured.findings);
            }
            Err(error) => report.findings.push(Finding::of(&system.name, &error)),
        }
        if !options.json {
            created.iter().for_each(|what| print(&format!("{}: {what}", system.name)));
        }
        report.systems.push(SystemReport { name: system.name.to_string(), created });
    }
    report.ok = !report.findings.iter().any(Finding::is_error);
    if report.ok {
        report.findings.extend(decide_loads(config, &mut operator).await?);
    }
    if options.json {
        print_json(&report);
    } else {
        report.findings.iter().for_each(|finding| print(&finding.to_string()));
        match report.ok {
            true => print("everything is there"),
            false => print("not complete: mend the above and run setup again"),
        }
    }
    Ok(if report.ok { Outcome::Done } else { Outcome::Found })
}
