//! One change as others are told of it: JSON, the chosen fields only, none that is sensitive.

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::{Cursor, Spec};
use crate::audit::origin;
use crate::change::{Change, Entry};
use crate::control::mask::{MASKED, is_masked};
use crate::control::text;
use crate::http::status::timestamp;
use crate::schema::EntitySchema;
use crate::value::{Datum, Row, Value};

#[derive(Serialize)]
struct Told<'a> {
    /// The same however often it is told.
    id: String,
    seq: u64,
    index: u64,
    entity: &'a str,
    op: &'a str,
    key: Map<String, Json>,
    /// What it was, as far as the change tells; absent of an insert.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Map<String, Json>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Map<String, Json>>,
    origin: String,
    txid: &'a str,
    committed_at: Option<String>,
    /// Fields that are too large to be told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<String>,
}

/// `entry` is where it stands; `change` what it came to for those who are told.
pub fn told(spec: &Spec, entry: &Entry, at: Cursor, change: &Change<'_>) -> String {
    let schema = entry.schema.entity(change.entity);
    let (before, after) =
        (change.before.map(|row| fields(spec, schema, row)), change.after.map(|row| fields(spec, schema, row)));
    let keys = schema.fields.iter().zip(change.image().iter()).take(schema.key_len);
    let mut told = Told {
        id: format!("{}.{}.{}", spec.journal, at.seq, at.index),
        seq: at.seq,
        index: at.index,
        entity: &schema.name,
        op: change.op.name(),
        key: keys.filter_map(|(field, datum)| Some((field.name.clone(), json(schema, &field.name, datum)?))).collect(),
        before,
        after,
        origin: origin(&entry.origin),
        txid: &entry.txid,
        committed_at: timestamp(entry.committed_at),
        omitted: Vec::new(),
    };
    loop {
        let text = serde_json::to_string(&told).expect("values are plain data");
        if text.len() <= spec.max_body || !omit_largest(&mut told) {
            return text;
        }
    }
}

/// False: there is nothing left that could go.
fn omit_largest(told: &mut Told<'_>) -> bool {
    let images = || told.before.iter().chain(&told.after).flatten();
    let largest = images().max_by_key(|(_, value)| size(value)).map(|(name, _)| name.clone());
    let Some(name) = largest else { return false };
    for image in [&mut told.before, &mut told.after].into_iter().flatten() {
        image.remove(&name);
    }
    told.omitted.push(name);
    true
}

fn size(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        other => other.to_string().len(),
    }
}

/// Those of a row that it carries and that are chosen.
fn fields(spec: &Spec, schema: &EntitySchema, row: Row<'_>) -> Map<String, Json> {
    let chosen = |name: &str| match &spec.fields {
        Some(fields) => fields.iter().any(|field| field == name),
        None => !is_masked(&schema.name, name),
    };
    let fields = schema.fields.iter().zip(row.iter()).filter(|(field, _)| chosen(&field.name));
    fields.filter_map(|(field, datum)| Some((field.name.clone(), json(schema, &field.name, datum)?))).collect()
}

/// `None`: the change does not carry it.
fn json(schema: &EntitySchema, field: &str, datum: Datum<'_>) -> Option<Json> {
    Some(match datum {
        Datum::NotSent => return None,
        Datum::Null => Json::Null,
        _ if is_masked(&schema.name, field) => MASKED.into(),
        Datum::Added(difference) => Json::Object(Map::from_iter([("add".to_owned(), difference.to_string().into())])),
        Datum::Value(Value::Bool(value)) => value.into(),
        Datum::Value(Value::Int(value)) => value.into(),
        Datum::Value(Value::UInt(value)) => value.into(),
        Datum::Value(Value::Json(document)) => match serde_json::from_str::<Json>(document) {
            Ok(value) => value,
            Err(_) => document.into(),
        },
        Datum::Value(value) => text(value).into(),
    })
}
