//! `anechoic check`

use serde::Serialize;

use super::{CheckOptions, Outcome, print, print_json, tell_of_keyless};
use crate::agent::decided;
use crate::check::grants::{grants, owners};
use crate::check::{Preflight, preflight};
use crate::config::{Config, ConfigError};
use crate::error::Result;
use crate::finding::{Finding, Severity};
use crate::setup::orphans;

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    systems: Vec<Asked<'a>>,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct Asked<'a> {
    name: &'a str,
    /// `null` where it could not be asked.
    kind: Option<&'a str>,
    version: Option<&'a str>,
}

pub(super) async fn check(config: &Config, options: &CheckOptions) -> Result<Outcome> {
    if options.grants {
        all_grants(config).await;
        return Ok(Outcome::Done);
    }
    let (decided, unread) = decided::read(config);
    let preflight = preflight(config, &decided).await;
    let mut findings = preflight.report(config);
    findings.extend(orphans(config, &preflight.surveys));
    findings.extend(unread.map(|why| {
        let what =
            format!("what was decided of columns bound by name is not known ({why}): judged as at a first start");
        Finding::note("", what).mend("# as root: sudo anechoic check")
    }));
    let ok = !findings.iter().any(Finding::is_error);
    if options.json {
        print_json(&Report { ok, systems: asked(config, &preflight), findings: &findings });
    } else {
        human(config, &preflight, &findings);
        tell_of_keyless(config, &[]);
    }
    Ok(if ok { Outcome::Done } else { Outcome::Broken })
}

/// The file's mistakes, where JSON was asked for.
pub(super) fn mistaken(mistakes: &[ConfigError]) {
    let findings: Vec<Finding> = mistakes.iter().map(|mistake| Finding::error("", mistake.to_string())).collect();
    print_json(&Report { ok: false, systems: vec![], findings: &findings });
}

fn asked<'a>(config: &'a Config, preflight: &'a Preflight) -> Vec<Asked<'a>> {
    let systems = config.systems.iter().zip(&preflight.surveys);
    let asked = systems.map(|(system, survey)| Asked {
        name: &system.name,
        kind: survey.as_ref().map(|s| s.kind),
        version: survey.as_ref().map(|s| s.version.as_str()),
    });
    asked.collect()
}

fn human(config: &Config, preflight: &Preflight, findings: &[Finding]) {
    for system in asked(config, preflight) {
        match (system.kind, system.version) {
            (Some(kind), Some(version)) => print(&format!("{}: {kind} {version}", system.name)),
            _ => print(&format!("{}: not asked", system.name)),
        }
    }
    findings.iter().for_each(|finding| print(&format!("\n{finding}")));
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    match errors + warnings {
        0 => print("\nnothing is missing"),
        _ => print(&format!("\nerrors: {errors}, warnings: {warnings}, notes: {notes}")),
    }
    if errors > 0 {
        print("the grants of a role that suffices: anechoic check --grants");
    }
}

async fn all_grants(config: &Config) {
    for (id, system) in config.system_ids().zip(&config.systems) {
        print(&format!("-- {}\n{}\n", system.name, grants(config, id, &owners(config, id).await)));
    }
}
