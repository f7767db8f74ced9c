//! `anechoic conflicts`: of the running agent, else of its journal.

use std::fmt::Write;

use super::{ConflictsAction, ConflictsOptions, ListOptions, Outcome, ResolveOptions, ShowOptions, print, print_json};
use crate::audit::Version;
use crate::audit::conflicts::{Conflict, ListSpec, Shown, list, show};
use crate::audit::resolve::{Choice, Resolved};
use crate::config::{Config, nearest};
use crate::control::{Answer, Client, Image, Request};
use crate::error::{Error, Result};
use crate::setup::{Operator, exists, operator};

pub(super) async fn conflicts(config: &Config, options: ConflictsOptions) -> Result<Outcome> {
    match options.action {
        None => listed(config, options.list).await,
        Some(ConflictsAction::List(options)) => listed(config, options).await,
        Some(ConflictsAction::Show(options)) => shown(config, options).await,
        Some(ConflictsAction::Resolve(options)) => resolved(config, options).await,
    }
}

async fn listed(config: &Config, options: ListOptions) -> Result<Outcome> {
    let ListOptions { entity, open, limit, json } = options;
    known_entity(config, entity.as_deref())?;
    let spec = ListSpec { entity, open, limit };
    let conflicts = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::Conflicts(spec)).await? {
            Answer::Conflicts { conflicts } => conflicts,
            _ => return Err(something_else()),
        },
        None if !exists(config) => Vec::new(),
        None => {
            let Operator { journal, recovered, .. } = operator(config)?;
            list(&journal, &spec, &recovered.conflicts)?
        }
    };
    match json {
        true => print_json(&conflicts),
        false if conflicts.is_empty() => print("no conflicts"),
        false => print(&table(&conflicts)),
    }
    Ok(Outcome::Done)
}

async fn shown(config: &Config, options: ShowOptions) -> Result<Outcome> {
    let id = options.id;
    let shown = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::Conflict { id: id.to_string() }).await? {
            Answer::Conflict(shown) => *shown,
            _ => return Err(something_else()),
        },
        None => {
            let Operator { journal, recovered, .. } = operator(config)?;
            show(&journal, id, recovered.conflicts.iter().find(|open| open.id == id))?
        }
    };
    match options.json {
        true => print_json(&shown),
        false => print(&side_by_side(&shown)),
    }
    Ok(Outcome::Done)
}

async fn resolved(config: &Config, options: ResolveOptions) -> Result<Outcome> {
    let ResolveOptions { id, take, set, set_null, json } = options;
    let Some(mut agent) = Client::connect(&config.agent.data_dir).await? else {
        return Err(Error::stop(
            "no agent runs on this data_dir: what is decided has its place among what is written meanwhile",
            "anechoic run, then once more",
        ));
    };
    let set = set.into_iter().map(|(field, value)| (field, Some(value)));
    let set = set.chain(set_null.into_iter().map(|field| (field, None))).collect();
    let Answer::Resolved(resolved) = agent.ask(&Request::Resolve(Choice { id: id.to_string(), take, set })).await?
    else {
        return Err(something_else());
    };
    match (json, &resolved) {
        (true, resolved) => print_json(resolved),
        (false, Resolved { seq: 0, .. }) => print(&format!("conflict {id} is over: what is there stays as it is")),
        (false, Resolved { seq, .. }) => print(&format!("conflict {id} is over: entry {seq} goes to all systems")),
    }
    Ok(Outcome::Done)
}

pub(super) fn known_entity(config: &Config, name: Option<&str>) -> Result<()> {
    let names = || config.entities.iter().map(|entity| entity.name.as_str());
    match name {
        Some(name) if names().all(|known| known != name) => {
            let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
            let known = names().collect::<Vec<_>>().join(", ");
            Err(Error::stop(format!("there is no entity {name:?}{near}"), format!("one of: {known}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn something_else() -> Error {
    Error::stop("the agent answered something else", "restart the agent after an upgrade")
}

fn table(conflicts: &[Conflict]) -> String {
    let mut text = format!(
        "{:<12} {:<16} {:<20} {:<27} {:<12} {:<12} {:<12} {}",
        "ID", "ENTITY", "KEY", "AT", "FROM", "AGAINST", "RULE", "OUTCOME"
    );
    for conflict in conflicts {
        let Conflict { id, entity, system, against, rule, outcome, .. } = conflict;
        let (key, at) = (conflict.key.as_deref().unwrap_or("?"), conflict.at.as_deref().unwrap_or("?"));
        let settled = conflict.settled.as_deref().map_or_else(String::new, |how| format!(", {how}"));
        let _ = write!(
            text,
            "\n{id:<12} {entity:<16} {key:<20} {at:<27} {system:<12} {against:<12} {rule:<12} {outcome}{settled}"
        );
    }
    text
}

/// What both wrote, field by field.
fn side_by_side(shown: &Shown) -> String {
    let Shown { conflict, fields, waiting, change, against } = shown;
    let mut text = format!("conflict {}: {} {}", conflict.id, conflict.entity, conflict.key.as_deref().unwrap_or("?"));
    let _ = match conflict.rule.as_str() {
        "unique" => write!(text, "\n  {} and {} wrote records that cannot both be", conflict.system, conflict.against),
        _ => write!(text, "\n  {} had not seen what {} wrote", conflict.system, conflict.against),
    };
    let _ = write!(text, "\n  rule {}, outcome of {}: {}", conflict.rule, conflict.system, conflict.outcome);
    match (&conflict.settled, conflict.settled_by) {
        (Some(how), Some(0)) => drop(write!(text, "; {how}: what was there stayed")),
        (Some(how), Some(by)) => drop(write!(text, "; {how} by entry {by}")),
        _ if conflict.open => drop(write!(text, "; waits for a person")),
        _ => {}
    }
    let gone = || "?".to_owned();
    let of = |get: &dyn Fn(&Version) -> String| {
        (change.as_ref().map_or_else(gone, get), against.as_ref().map_or_else(gone, get))
    };
    let entry = |seq: u64| format!("entry {seq}");
    let mut rows = vec![
        ("", (conflict.system.clone(), conflict.against.clone())),
        ("", (change.as_ref().map_or_else(gone, |version| entry(version.seq)), entry(conflict.against_seq))),
        ("transaction", of(&|version| version.txid.clone())),
        ("committed", of(&|version| version.committed_at.clone().unwrap_or_else(gone))),
        ("operation", of(&|version| version.op.clone())),
    ];
    rows.extend(fields.iter().map(|field| (field.as_str(), of(&|version| written(version, field)))));
    let width = rows.iter().map(|(_, (left, _))| left.chars().count()).max().unwrap_or(0);
    for (name, (left, right)) in rows {
        let mark = if waiting.iter().any(|field| field == name) { "   waits" } else { "" };
        let _ = write!(text, "\n  {name:<18} {left:<width$}   {right}{mark}");
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// What a version made of a field.
fn written(version: &Version, field: &str) -> String {
    match (&version.before, &version.after) {
        (Some(before), Some(after)) if !after.contains_key(field) => value(before, field),
        (Some(before), Some(after)) if value(before, field) != value(after, field) => {
            format!("{} -> {}", value(before, field), value(after, field))
        }
        (_, Some(row)) | (Some(row), None) => value(row, field),
        (None, None) => String::new(),
    }
}

/// `·`: not carried.
pub(super) fn value(row: &Image, field: &str) -> String {
    match row.get(field) {
        None => "·".into(),
        Some(None) => "NULL".into(),
        Some(Some(value)) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Shown {
        let image = |name: &str, score: Option<&str>| -> Image {
            [("id", Some("7")), ("name", Some(name)), ("score", score)]
                .map(|(field, value)| (field.to_owned(), value.map(str::to_owned)))
                .into()
        };
        let version = |seq, origin: &str, txid: &str, before, after| Version {
            seq,
            origin: origin.into(),
            txid: txid.into(),
            committed_at: Some("2026-01-31T12:00:00.000001Z".into()),
            op: "update".into(),
            before: Some(before),
            after: Some(after),
        };
        Shown {
            conflict: Conflict {
                id: "1042.3".into(),
                entity: "contact".into(),
                key: Some("7".into()),
                system: "shop".into(),
                against: "crm".into(),
                against_seq: 1041,
                rule: "manual".into(),
                outcome: "waiting".into(),
                at: Some("2026-01-31T12:00:00.000001Z".into()),
                open: true,
                settled: None,
                settled_by: None,
            },
            fields: ["id", "name", "score"].map(str::to_owned).into(),
            waiting: vec!["name".into()],
            change: Some(version(1042, "shop", "4711:9", image("Ada", None), image("Ida", None))),
            against: Some(version(1041, "crm", "771", image("Ada", None), image("Eva", Some("5")))),
        }
    }

    #[test]
    fn both_versions_stand_side_by_side() {
        insta::assert_snapshot!(side_by_side(&example()), @"
        conflict 1042.3: contact 7
          shop had not seen what crm wrote
          rule manual, outcome of shop: waiting; waits for a person
                             shop                          crm
                             entry 1042                    entry 1041
          transaction        4711:9                        771
          committed          2026-01-31T12:00:00.000001Z   2026-01-31T12:00:00.000001Z
          operation          update                        update
          id                 7                             7
          name               Ada -> Ida                    Ada -> Eva   waits
          score              NULL                          NULL -> 5
        ");
    }

    #[test]
    fn the_list_has_a_line_for_each() {
        let settled = Conflict { open: false, settled: Some("resolved".into()), key: None, ..example().conflict };

        insta::assert_snapshot!(table(&[example().conflict, settled]), @"
        ID           ENTITY           KEY                  AT                          FROM         AGAINST      RULE         OUTCOME
        1042.3       contact          7                    2026-01-31T12:00:00.000001Z shop         crm          manual       waiting
        1042.3       contact          ?                    2026-01-31T12:00:00.000001Z shop         crm          manual       waiting, resolved
        ");
    }
}
