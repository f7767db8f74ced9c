//! `anechoic history`: of the running agent, else of its journal.

use std::fmt::Write;

use super::conflicts::{known_entity, something_else};
use super::{HistoryOptions, Outcome, print, print_json};
use crate::audit::history::{History, HistorySpec, Progress, Reached, Told, Version, history as tell};
use crate::audit::keys::KeyIndex;
use crate::audit::operation::{Instead, Met, Operation};
use crate::change::Quarantined;
use crate::config::Config;
use crate::control::{Answer, Client, Image, Request};
use crate::error::{Error, Result};
use crate::position::Seq;
use crate::setup::{Operator, operator};

pub(super) async fn history(config: &Config, options: HistoryOptions) -> Result<Outcome> {
    let HistoryOptions { entity, key, limit, json } = options;
    known_entity(config, Some(&entity))?;
    let spec = HistorySpec { entity, key, limit };
    let told = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::History(spec)).await? {
            Answer::History(told) => *told,
            _ => return Err(something_else()),
        },
        None => of_journal(config, &spec)?,
    };
    match json {
        true => print_json(&told),
        false => print(&human(&told)),
    }
    Ok(if told.versions.is_empty() { Outcome::Found } else { Outcome::Done })
}

/// What the journal knows of the systems while no agent runs.
struct Stopped<'a>(&'a Operator);

impl Progress for Stopped<'_> {
    /// What the system's own log has shown; it may have a little more.
    fn applied(&self, system: &str) -> Seq {
        self.0.recovered.positions.get(system).map_or(0, |position| position.base)
    }

    fn held(&self) -> Vec<Quarantined> {
        self.0.recovered.quarantined.clone()
    }
}

fn of_journal(config: &Config, spec: &HistorySpec) -> Result<History> {
    let operator = operator(config)?;
    let journal = &operator.journal;
    let Some(newest) = journal.entry(journal.head())? else {
        return Err(Error::stop("the journal has no transaction", "anechoic status"));
    };
    let index = KeyIndex::open(&config.agent.data_dir, journal);
    tell(journal, &index, config, &newest.schema, spec, &Stopped(&operator))
}

fn human(history: &History) -> String {
    let History { entity, key, versions, more, since } = history;
    let mut text = format!("{entity} {key}");
    if versions.is_empty() {
        let _ = write!(text, ": nothing in the journal");
    }
    if let Some(since) = since {
        let _ = write!(text, " (the journal begins {since})");
    }
    if *more {
        text.push_str("\n  … older ones: --limit");
    }
    for told in versions {
        text.push('\n');
        match told {
            Told::Version(version) => text += &one(version),
            Told::Quarantine { system, what, reason, at, .. } => {
                let colon = if reason.is_empty() { "" } else { ": " };
                let _ = write!(text, "  {:<27}  {system}: {what}{colon}{reason}", at.as_deref().unwrap_or_default());
            }
            Told::Refused { system, op, reason, txid, .. } => {
                let _ = write!(text, "  {:<27}  {system}: {op} of transaction {txid} cannot be carried: {reason}", "");
            }
        }
    }
    text
}

fn one(version: &Version) -> String {
    let Version { operation, systems } = version;
    let Operation { seq, index, at, origin, how, txid, op, decision, .. } = operation;
    let by = match how.as_str() {
        "written" => format!("by {origin}, transaction {txid}"),
        "copied" => format!("copied from {origin}"),
        how => format!("by a person: {how}"),
    };
    let by = if how == "retried" { "tried again".to_owned() } else { by };
    let mut text = format!("  {:<27}  {op} {by}, entry {seq}.{index}: {decision}", at.as_deref().unwrap_or_default());
    if let Some(lost) = operation.lost_to {
        let _ = write!(text, ", lost to entry {lost}");
    }
    if let Some(Met { id, rule, outcome, against_system, .. }) = &operation.conflict {
        let _ = write!(text, "; met {against_system}, {outcome} by {rule} (conflict {id})");
    }
    for line in changed(operation.before.as_ref(), operation.after.as_ref()) {
        let _ = write!(text, "\n      {line}");
    }
    if let Some(Instead { op, after }) = &operation.instead {
        let _ = write!(text, "\n      the others got a {op}:");
        for line in changed(None, after.as_ref()) {
            let _ = write!(text, "\n        {line}");
        }
    }
    let reached: Vec<String> = systems.iter().map(in_system).collect();
    if !reached.is_empty() {
        let _ = write!(text, "\n      {}", reached.join("; "));
    }
    text
}

fn in_system(reached: &Reached) -> String {
    let Reached { system, state, at } = reached;
    match (state.as_str(), at) {
        ("applied", Some(at)) => format!("{system} has it since {at}"),
        ("applied", None) => format!("{system} has it"),
        ("origin", _) => format!("{system} wrote it"),
        ("held", _) => format!("{system} refuses it: in quarantine"),
        _ => format!("{system} does not have it yet"),
    }
}

/// `field: before → after`, of what changed; of a new row all of it, of a deleted one nothing.
fn changed(before: Option<&Image>, after: Option<&Image>) -> Vec<String> {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".into());
    let Some(after) = after else { return Vec::new() };
    let line = |(field, value): (&String, &Option<String>)| match before.map(|before| before.get(field)) {
        None => Some(format!("{field}: {}", shown(value))),
        Some(Some(old)) if old == value => None,
        Some(Some(old)) => Some(format!("{field}: {} → {}", shown(old), shown(value))),
        Some(None) => Some(format!("{field}: → {}", shown(value))),
    };
    after.iter().filter_map(line).collect()
}
