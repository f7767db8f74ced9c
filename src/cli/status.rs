//! `anechoic status`: of the running agent, else of its journal.

mod table;

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{Outcome, StatusOptions, nobody, print, print_json};
use crate::config::Config;
use crate::control::{Answer, Client, Held, Request};
use crate::error::{Error, Result};
use crate::http::status::{CaptureReport, JournalReport, Report, SystemReport};
use crate::setup::{exists, operator};

const EVERY: Duration = Duration::from_secs(1);

pub(super) async fn status(config: &Config, options: &StatusOptions) -> Result<Outcome> {
    if options.watch {
        return watch(&config.agent.data_dir).await;
    }
    let shown = match asked(&config.agent.data_dir).await? {
        Some(asked) => asked,
        None => stopped(config)?,
    };
    show(shown, options)
}

/// Of the agent that runs there, whatever the file says by now.
pub(super) async fn without_file(data_dir: &Path, options: &StatusOptions) -> Result<Outcome> {
    if options.watch {
        return watch(data_dir).await;
    }
    match asked(data_dir).await? {
        Some(asked) => show(asked, options),
        None => Err(nobody("no agent runs on this data_dir")),
    }
}

fn show((report, held): (Report, Vec<Held>), options: &StatusOptions) -> Result<Outcome> {
    match options.json {
        true => print_json(&report),
        false => print(&table::draw(&report, None, &held)),
    }
    Ok(if report.state == "stopped" { Outcome::Found } else { Outcome::Done })
}

/// Until Ctrl-C, whatever becomes of the agent meanwhile.
async fn watch(data_dir: &Path) -> Result<Outcome> {
    let mut before: Option<(Instant, Report)> = None;
    loop {
        let at = Instant::now();
        let drawn = match asked(data_dir).await {
            // The journal is left alone: an agent that starts just now needs its lock.
            Ok(None) => "no agent runs on this data_dir".to_owned(),
            Ok(Some((report, held))) => {
                let since = before.as_ref().map(|(then, report)| (report, at.duration_since(*then)));
                let drawn = table::draw(&report, since, &held);
                before = Some((at, report));
                drawn
            }
            Err(error) => error.full(),
        };
        // Over what was there, and the rest of each line and of the screen cleared: no flicker.
        print(&format!("\x1b[H{}\x1b[K\x1b[J", drawn.replace('\n', "\x1b[K\n")));
        tokio::time::sleep_until(at + EVERY).await;
    }
}

async fn asked(data_dir: &Path) -> Result<Option<(Report, Vec<Held>)>> {
    match Client::connect(data_dir).await? {
        Some(mut agent) => running(&mut agent).await.map(Some),
        None => Ok(None),
    }
}

async fn running(agent: &mut Client) -> Result<(Report, Vec<Held>)> {
    match (agent.ask(&Request::Status).await?, agent.ask(&Request::Quarantine).await?) {
        (Answer::Status { report }, Answer::Quarantine { held }) => Ok((*report, held)),
        _ => Err(Error::stop("the agent answered something else", "restart the agent after an upgrade")),
    }
}

/// What the journal says while no agent runs: how far each system was read.
fn stopped(config: &Config) -> Result<(Report, Vec<Held>)> {
    let mut report = Report {
        agent: config.agent.id.clone(),
        state: "stopped".into(),
        file_error: None,
        journal: JournalReport { head: 0, bytes: 0, error: None },
        systems: vec![],
        entities: vec![],
        alerts: vec![],
        notifications: vec![],
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
            paused: false,
            capture: CaptureReport {
                position: position.map_or_else(String::new, |p| p.position.to_string()),
                lag_seconds: None,
                lag_bytes: None,
                retained_bytes: None,
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
