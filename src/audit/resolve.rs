//! What a person decided of a conflict that waits, as changes for all systems.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::{Change, ChangeWriter, Changes, Conflicted, Op, Outcome, Rule, given_way, overlay};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::normalize::typed::typed;
use crate::position::Seq;
use crate::schema::{EntitySchema, Schema, Translation};
use crate::value::{Datum, Row, write_datum};

/// `anechoic conflicts resolve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    pub id: String,
    /// Whose version stands; that which is there where absent.
    pub take: Option<String>,
    /// Field, value; `None` is NULL. On top of that version.
    pub set: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    pub id: String,
    /// The entry that carries it to all systems; 0: what is there stays as it is.
    pub seq: Seq,
}

/// One encoded change of `schema`; `None`: what is there stays as it is.
pub fn change(conflict: &Conflicted, choice: &Choice, schema: &Arc<Schema>) -> Result<Option<Bytes>> {
    let images = conflict.images.as_ref().ok_or_else(|| waits_not(conflict))?;
    let translation = Translation::between(&images.schema, schema);
    let translated = |bytes: &Bytes| match (&translation, Changes::new(bytes).next()) {
        (_, None) => Some(Bytes::new()),
        (None, Some(_)) => Some(bytes.clone()),
        (Some(translation), Some(change)) => {
            let mut out = ChangeWriter::default();
            translation.translate(&change, &mut out).then(|| out.take().into())
        }
    };
    let gone = || {
        let what = format!("entity {:?} has gone from the configuration, or has another key, since", conflict.entity);
        Error::stop(what, "write the row in one of the systems: that ends the conflict, too")
    };
    let (lost, current) = translated(&images.change).zip(translated(&images.current)).ok_or_else(gone)?;
    let lost = Changes::new(&lost).next().expect("a conflict has one change");
    let current = Changes::new(&current).next();
    let entity = schema.entity(lost.entity);
    let fields = match images.fields {
        // Whether there is a row at all.
        0 => u128::MAX,
        fields => waits_now(&images.schema, schema, &lost, fields),
    };

    if conflict.rule == Rule::Unique {
        return part(conflict, choice, schema, &lost, current.as_ref(), fields).map(Some);
    }
    let takes_lost = match choice.take.as_deref() {
        None => false,
        Some(name) if *name == *conflict.system => true,
        Some(name) if names_current(conflict, name) => false,
        Some(name) => return Err(neither(conflict, name)),
    };
    if !takes_lost && choice.set.is_empty() {
        return Ok(None);
    }
    let set = Set::new(entity, choice)?;
    let there = current.is_none_or(|current| current.op != Op::Delete);
    let before = current.and_then(|current| current.after).or(lost.before);
    let mut out = ChangeWriter::default();
    match (takes_lost, lost.op) {
        (true, Op::Delete) if choice.set.is_empty() => {
            out.push_change(&Change { op: Op::Delete, before, after: None, ..lost });
        }
        (true, Op::Delete) => {
            let hint = "anechoic conflicts resolve ID --take SYSTEM, or --set alone";
            return Err(Error::stop(format!("{} deleted the row: nothing can be set in it", conflict.system), hint));
        }
        (true, Op::Insert | Op::Update) if there => {
            let after = lost.after.expect("it is no delete");
            let taken = |field: usize| fields >> field & 1 == 1;
            let row = set.over(entity, |field| if taken(field) { after.get(field) } else { Datum::NotSent }, after);
            out.push_change(&Change { op: Op::Update, before, after: Some(Row(&row)), ..lost });
        }
        (false, _) if there => {
            let row = set.over(entity, |_| Datum::NotSent, lost.image());
            out.push_change(&Change { op: Op::Update, before, after: Some(Row(&row)), ..lost });
        }
        // The row is gone and comes back: as it was before the deletion, and as it was wanted.
        (_, _) => {
            let rows = [current.and_then(|current| current.before), lost.before, lost.after];
            let known = rows.into_iter().flatten().fold(Vec::new(), |under, over| overlay(Row(&under), over));
            let row = set.over(entity, |field| Row(&known).get(field), lost.image());
            out.push_change(&Change { op: Op::Insert, before: None, after: Some(Row(&row)), ..lost });
        }
    }
    Ok(Some(out.take().into()))
}

/// Of two records that cannot both be, the one that gives way: to the values that a person gives it, or
/// as by the policy `reject`. The one that lost, unless its writer's is taken.
fn part(
    conflict: &Conflicted,
    choice: &Choice,
    schema: &Arc<Schema>,
    lost: &Change<'_>,
    other: Option<&Change<'_>>,
    fields: u128,
) -> Result<Bytes> {
    let (id, system) = (conflict.id, &conflict.system);
    let takes_lost = match choice.take.as_deref() {
        None => false,
        Some(name) if *name == **system && names_current(conflict, name) => {
            let what = format!("{name} wrote both records of conflict {id}");
            return Err(Error::stop(what, format!("anechoic conflicts resolve {id} --set FIELD=VALUE")));
        }
        Some(name) if *name == **system => true,
        Some(name) if names_current(conflict, name) => false,
        Some(name) => return Err(neither(conflict, name)),
    };
    if !conflict.waits() && (choice.take.is_some() || choice.set.is_empty()) {
        let what = format!("conflict {id} was decided: the record of {system} {}", conflict.outcome.name());
        return Err(Error::stop(
            what,
            format!("anechoic conflicts resolve {id} --set FIELD=VALUE gives it other values"),
        ));
    }
    let loser = if takes_lost { other.unwrap_or(lost) } else { lost };
    let entity = schema.entity(loser.entity);
    if choice.set.is_empty() {
        let unknown = || {
            let what = format!("nobody knows what the record of conflict {id} was before");
            Error::stop(what, format!("anechoic conflicts resolve {id} --set FIELD=VALUE"))
        };
        return given_way(entity.key_len, loser, fields, |changed| changed).ok_or_else(unknown);
    }
    let set = Set::new(entity, choice)?;
    let there = loser.before.map_or_else(|| loser.image().0.to_vec(), |before| overlay(before, loser.image()));
    let mut out = ChangeWriter::default();
    if conflict.outcome == Outcome::Lost {
        let row = set.over(entity, |field| Row(&there).get(field), loser.image());
        out.push_change(&Change { op: Op::Insert, before: None, after: Some(Row(&row)), ..*loser });
    } else {
        let row = set.over(entity, |_| Datum::NotSent, loser.image());
        out.push_change(&Change { op: Op::Update, before: Some(Row(&there)), after: Some(Row(&row)), ..*loser });
    }
    Ok(out.take().into())
}

/// The fields that wait, by the numbers of now.
fn waits_now(then: &Schema, now: &Schema, lost: &Change<'_>, fields: u128) -> u128 {
    let now = now.entity(lost.entity);
    let Some(then) = then.find(&now.name).map(|id| then.entity(id)) else { return 0 };
    let waits = then.fields.iter().enumerate().filter(|(field, _)| fields >> field & 1 == 1);
    waits.filter_map(|(_, field)| now.field(&field.name)).fold(0, |set, field| set | 1 << field)
}

fn names_current(conflict: &Conflicted, name: &str) -> bool {
    match &conflict.against_system {
        Some(system) => **system == *name,
        None => name == "agent",
    }
}

fn neither(conflict: &Conflicted, name: &str) -> Error {
    let current = conflict.against_system.as_deref().unwrap_or("agent");
    let what =
        format!("{name:?} wrote neither version of conflict {}: {} and {current} did", conflict.id, conflict.system);
    Error::stop(what, format!("--take {} or --take {current}", conflict.system))
}

fn waits_not(conflict: &Conflicted) -> Error {
    let what = format!("conflict {} does not wait for anybody: {} decided it", conflict.id, conflict.rule.name());
    Error::stop(what, "write the row in one of the systems, or take the transaction back: anechoic undo --tx ID")
}

/// Values that a person gave.
struct Set(Vec<(usize, Vec<u8>)>);

impl Set {
    fn new(entity: &EntitySchema, choice: &Choice) -> Result<Set> {
        let mut set = Vec::new();
        for (name, value) in &choice.set {
            let names = || entity.fields[entity.key_len..].iter().map(|field| field.name.as_str());
            let Some(field) = entity.field(name) else {
                let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
                let what = format!("entity {:?} has no field {name:?}{near}", entity.name);
                return Err(Error::stop(what, format!("one of: {}", names().collect::<Vec<_>>().join(", "))));
            };
            if field < entity.key_len {
                let what = format!("field {name:?} is of the key: another key is another record");
                return Err(Error::stop(what, "set other fields"));
            }
            let (kind, mut scratch, mut datum) = (entity.fields[field].kind, Vec::new(), Vec::new());
            match value {
                None => write_datum(&mut datum, Datum::Null),
                Some(text) => match typed(text, kind, &mut scratch) {
                    Some(value) => write_datum(&mut datum, Datum::Value(value)),
                    None => {
                        let what = format!("{text:?} is no value of field {name:?}, which is of type {}", kind.name());
                        return Err(Error::stop(what, format!("--set {name}=…, as anechoic conflicts show prints it")));
                    }
                },
            }
            set.push((field, datum));
        }
        Ok(Set(set))
    }

    /// A row with the key of `keyed`, what was given, and `under` elsewhere.
    fn over<'d>(&self, entity: &EntitySchema, under: impl Fn(usize) -> Datum<'d>, keyed: Row<'d>) -> Vec<u8> {
        let mut out = Vec::new();
        for field in 0..entity.fields.len() {
            let given = self.0.iter().rev().find(|(of, _)| *of == field).map(|(_, datum)| datum);
            match given {
                Some(datum) => out.extend_from_slice(datum),
                None if field < entity.key_len => write_datum(&mut out, keyed.get(field)),
                None => write_datum(&mut out, under(field)),
            }
        }
        out
    }
}
