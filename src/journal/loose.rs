//! Records that are kept outside the log: as bytes, with the schemas that they need.

use bytes::Bytes;

use super::codec::{Decoder, Malformed, Names, put_record, put_schema, put_u64, schema_of};
use super::state::Schemas;
use crate::change::Record;

/// Entries lose their seq.
pub fn pack(records: &[Record]) -> Vec<u8> {
    let schemas: Schemas = records.iter().filter_map(schema_of).map(|schema| (schema.id, schema.clone())).collect();
    let mut out = Vec::new();
    put_u64(&mut out, schemas.len() as u64);
    schemas.values().for_each(|schema| put_schema(&mut out, schema));
    put_u64(&mut out, records.len() as u64);
    records.iter().for_each(|record| put_record(&mut out, record));
    out
}

/// The error says what is wrong with the bytes.
pub fn unpack(bytes: &Bytes) -> Result<Vec<Record>, String> {
    unpacked(bytes).map_err(|malformed| match malformed {
        Malformed::Schema(id) => format!("schema {id:016x} is missing"),
        Malformed::Content(what) => format!("a record {what}"),
    })
}

fn unpacked(bytes: &Bytes) -> Result<Vec<Record>, Malformed> {
    let (mut names, mut schemas) = (Names::default(), Schemas::new());
    let mut decoder = Decoder::new(bytes, 0, &mut names, &|_| None);
    for _ in 0..decoder.count()? {
        let schema = decoder.schema()?;
        schemas.insert(schema.id, schema);
    }
    let at = decoder.at();
    let known = |id| schemas.get(&id).cloned();
    let mut decoder = Decoder::new(bytes, at, &mut names, &known);
    (0..decoder.count()?).map(|_| decoder.record(0)).collect()
}
