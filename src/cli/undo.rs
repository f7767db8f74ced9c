//! `anechoic undo`: the running agent takes transactions back; without one, what that would be.

use std::fmt::Write;

use super::conflicts::{known_entity, something_else, value};
use super::{Outcome, UndoOptions, print, print_json};
use crate::audit::undo::{Sample, UndoSpec, Undone, plan};
use crate::config::{Config, nearest};
use crate::control::{Answer, Client, Request};
use crate::error::{Error, Result};
use crate::setup::{Operator, operator};

pub(super) async fn undo(config: &Config, options: UndoOptions) -> Result<Outcome> {
    let UndoOptions { tx, system, since, until, entity, dry_run, skip_changed, json } = options;
    known_entity(config, entity.as_deref())?;
    known_system(config, system.as_deref())?;
    let spec = UndoSpec { tx, system, since, until, entity, dry_run, skip_changed };
    let undone = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::Undo(spec)).await? {
            Answer::Undone(undone) => *undone,
            _ => return Err(something_else()),
        },
        None if dry_run => would(config, &spec)?,
        None => {
            return Err(Error::stop(
                "no agent runs on this data_dir: what is taken back has its place among what is written meanwhile",
                "anechoic run, then once more; --dry-run works without",
            ));
        }
    };
    let refused = undone.changed > 0 && !skip_changed;
    match json {
        true => print_json(&undone),
        false => print(&human(&undone, refused, dry_run)),
    }
    Ok(if refused { Outcome::Found } else { Outcome::Done })
}

/// By the journal alone, as the newest entry names entities and fields.
fn would(config: &Config, spec: &UndoSpec) -> Result<Undone> {
    let Operator { journal, .. } = operator(config)?;
    let Some(newest) = journal.entry(journal.head())? else {
        return Err(Error::stop("the journal has no transaction", "anechoic status"));
    };
    let mut undone = plan(&journal, spec, &newest.schema, config)?.undone;
    undone.notes.push("no agent runs: what the systems hold that was not captured yet is not known".into());
    Ok(undone)
}

fn known_system(config: &Config, name: Option<&str>) -> Result<()> {
    let names = || config.systems.iter().map(|system| &*system.name);
    match name {
        Some(name) if names().all(|known| known != name) => {
            let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
            let known = names().collect::<Vec<_>>().join(", ");
            Err(Error::stop(format!("there is no system {name:?}{near}"), format!("one of: {known}")))
        }
        _ => Ok(()),
    }
}

fn human(undone: &Undone, refused: bool, dry_run: bool) -> String {
    let mut text = match (refused, dry_run, undone.seq) {
        (true, ..) => "nothing was taken back: rows were changed by others since".to_owned(),
        (_, true, _) => "would be taken back:".to_owned(),
        (_, _, 0) => "nothing was to be taken back: the rows are as they were".to_owned(),
        (_, _, seq) => format!("taken back by entry {seq}, which goes to all systems:"),
    };
    for transaction in &undone.transactions {
        let at = transaction.committed_at.as_deref().unwrap_or("?");
        let _ = write!(
            text,
            "\n  transaction {} of {} (entry {}, {at}): {} changes",
            transaction.txid, transaction.system, transaction.seq, transaction.changes
        );
    }
    for counts in &undone.entities {
        let (inserts, updates, deletes) = (counts.inserts, counts.updates, counts.deletes);
        let _ = write!(text, "\n  {}: {inserts} inserted, {updates} updated, {deletes} deleted", counts.entity);
    }
    for sample in &undone.samples {
        let _ = write!(text, "\n    {} {}: {}", sample.entity, sample.key, changes(sample));
    }
    if undone.changed > 0 {
        let what = if refused { "keep all from being taken back; --skip-changed leaves them" } else { "are left" };
        let _ = write!(text, "\n  {} rows were changed since, and {what} alone:", undone.changed);
    }
    for changed in &undone.changed_samples {
        let _ = write!(text, "\n    {} {}: by {} in entry {}", changed.entity, changed.key, changed.by, changed.seq);
    }
    for note in &undone.notes {
        let _ = write!(text, "\n  {note}");
    }
    text
}

fn changes(sample: &Sample) -> String {
    let (Some(now), Some(then)) = (&sample.now, &sample.then) else { return sample.op.clone() };
    let fields = then.keys().map(|field| format!("{field} {} -> {}", value(now, field), value(then, field)));
    fields.collect::<Vec<_>>().join(", ")
}
