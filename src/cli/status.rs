//! `anechoic status`: of the running agent, else of its journal.

use std::fmt::Write;

use super::{Outcome, Print, print, print_json};
use crate::config::Config;
use crate::control::{Answer, Client, Held, Request};
use crate::error::{Error, Result};
use crate::http::status::{CaptureReport, JournalReport, PairReport, Report, SystemReport, VerdictReport};
use crate::setup::{exists, operator};

pub(super) async fn status(config: &Config, options: &Print) -> Result<Outcome> {
    let (report, held) = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => running(&mut agent).await?,
        None => stopped(config)?,
    };
    if options.json {
        print_json(&report);
    } else {
        print(&human(&report, &held));
    }
    Ok(if report.state == "stopped" { Outcome::Found } else { Outcome::Done })
}

async fn running(agent: &mut Client) -> Result<(Report, Vec<Held>)> {
    match (agent.ask(&Request::Status).await?, agent.ask(&Request::Quarantine).await?) {
        (Answer::Status { report }, Answer::Quarantine { held }) => Ok((report, held)),
        _ => Err(Error::stop("the agent answered something else", "restart the agent after an upgrade")),
    }
}

/// What the journal says while no agent runs: how far each system was read.
fn stopped(config: &Config) -> Result<(Report, Vec<Held>)> {
    let mut report = Report {
        agent: config.agent.id.clone(),
        state: "stopped".into(),
        journal: JournalReport { head: 0, bytes: 0, error: None },
        systems: vec![],
        entities: vec![],
        loads: vec![],
        verified: vec![],
        verification: None,
    };
    if !exists(config) {
        return Ok((report, vec![]));
    }
    let operator = operator(config)?;
    report.journal = JournalReport { head: operator.journal.head(), bytes: operator.journal.bytes(), error: None };
    for system in &config.systems {
        let position = operator.recovered.positions.get(&system.name);
        report.systems.push(SystemReport {
            name: system.name.to_string(),
            kind: String::new(),
            version: String::new(),
            state: if position.is_some() { "stopped" } else { "not set up" }.into(),
            error: None,
            capture: CaptureReport {
                position: position.map_or_else(String::new, |p| p.position.to_string()),
                lag_seconds: None,
                transactions: 0,
                changes: 0,
                echoes: 0,
                side_effects: 0,
                rewritten: 0,
                filtered: 0,
                rejected: 0,
                quarantined: 0,
            },
            apply: None,
        });
    }
    let held = operator.recovered.quarantined.iter().map(Held::from).collect();
    Ok((report, held))
}

fn human(report: &Report, held: &[Held]) -> String {
    let mut text = format!(
        "agent {}: {}, journal head {}, {:.1} MiB\n",
        report.agent,
        report.state,
        report.journal.head,
        report.journal.bytes as f64 / f64::from(1 << 20)
    );
    for system in &report.systems {
        let server = format!("{} {}", system.kind, system.version);
        let _ =
            write!(text, "  {:<16} {:<20} {:<11} at {}", system.name, server, system.state, system.capture.position);
        if let Some(lag) = system.capture.lag_seconds {
            let _ = write!(text, ", {lag:.1} s behind, {} changes captured", system.capture.changes);
        }
        if let Some(apply) = &system.apply {
            let _ = write!(text, "; {} applied, {} pending", apply.changes, apply.pending);
        }
        text.push('\n');
        if let Some(error) = &system.error {
            let _ = writeln!(text, "      {error}");
        }
    }
    for entity in &report.entities {
        let waiting = match entity.waiting {
            0 => String::new(),
            waiting => format!(" ({waiting} wait for a person: anechoic conflicts --open)"),
        };
        let _ = writeln!(
            text,
            "  {:<16} {} applied, {} conflicts{waiting}, {} rejected, {} in quarantine",
            entity.name, entity.applied, entity.conflicts, entity.rejected, entity.quarantined
        );
    }
    for verdict in report.verification.iter().flat_map(|verification| &verification.entities) {
        text += &verified(verdict);
    }
    for held in held {
        let _ = writeln!(text, "  in quarantine: {} {} {}: {}", held.system, held.entity, held.key, held.reason);
    }
    text.trim_end().to_owned()
}

/// One line, and one for each system that differs.
fn verified(verdict: &VerdictReport) -> String {
    let VerdictReport { entity, against, at, outcome, error, systems, .. } = verdict;
    let at = at.as_deref().unwrap_or_default();
    let mut text = format!("  {entity:<16} {outcome}, compared with {against} at {at}");
    let _ = write!(text, "{}{}", if error.is_some() { ": " } else { "" }, error.as_deref().unwrap_or_default());
    for (system, pair) in systems.iter().filter(|(_, pair)| pair.different + pair.missing + pair.extra > 0) {
        let PairReport { different, missing, extra, .. } = pair;
        let _ = write!(text, "\n      {system}: {different} different, {missing} missing, {extra} only there");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::status::tests::{NOW, example};
    use crate::status::State;

    #[test]
    fn the_agent_at_a_glance() {
        let status = example();
        *status.systems[1].capture.state.lock().unwrap() = State::Retrying("connection refused".into());

        insta::assert_snapshot!(human(&Report::of(&status, NOW), &[]), @r#"
agent hq: running, journal head 1042, 70.0 MiB
  crm              postgresql 15.18     streaming   at 0/1A2B3C8, 0.0 s behind, 9120 changes captured; 5230 applied, 0 pending
  shop             mysql 9.7.0          retrying    at , 0.0 s behind, 0 changes captured; 0 applied, 2 pending
      connection refused
  contact          9120 applied, 3 conflicts (1 wait for a person: anechoic conflicts --open), 2 rejected, 0 in quarantine
"#);
    }
}
