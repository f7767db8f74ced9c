//! Questions put to the journal: what happened to a record, which changes met and how that ended, and
//! what taking back a transaction means.
//!
//! All of it reads, beside the writer; what follows from an answer is admitted by the arbiter
//! like everything else.

pub mod applied;
pub mod conflicts;
pub mod export;
pub mod history;
pub mod keys;
pub mod ledger;
pub mod operation;
pub mod resolve;
pub mod undo;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::{Body, Change, ChangeWriter, Changes, Entry, Origin};
use crate::control::{Image, image, text};
use crate::error::Result;
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;
use crate::schema::EntitySchema;
use crate::value::Datum;

/// One change of one entry, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub seq: Seq,
    /// Who wrote it: a system, or `agent`.
    pub origin: String,
    pub txid: String,
    pub committed_at: Option<String>,
    pub op: String,
    pub before: Option<Image>,
    pub after: Option<Image>,
}

impl Version {
    fn of(entry: &Entry, change: &Change<'_>) -> Version {
        let schema = entry.schema.entity(change.entity);
        Version {
            seq: entry.seq,
            origin: origin(&entry.origin),
            txid: entry.txid.to_string(),
            committed_at: timestamp(entry.committed_at),
            op: change.op.name().into(),
            before: change.before.map(|row| image(schema, row)),
            after: change.after.map(|row| image(schema, row)),
        }
    }
}

pub(crate) fn origin(origin: &Origin) -> String {
    origin.system().map_or_else(|| "agent".to_owned(), |name| name.to_string())
}

/// The key's values.
fn key_text(schema: &EntitySchema, change: &Change<'_>) -> String {
    let key = change.image().iter().take(schema.key_len).filter_map(Datum::value).map(text);
    key.collect::<Vec<_>>().join(", ")
}

/// Every change of an entry as its origin wrote it, in order, with its number.
pub(crate) fn each(
    journal: &Journal,
    entry: &Entry,
    found: &mut dyn FnMut(u64, &Change<'_>) -> Result<()>,
) -> Result<()> {
    let mut index = 0;
    let mut walk = |chunk: &[u8]| -> Result<()> {
        for change in Changes::new(chunk) {
            found(index, &change)?;
            index += 1;
        }
        Ok(())
    };
    match &entry.body {
        Body::Inline(bytes) => walk(bytes),
        Body::Spooled(spool) => {
            let mut chunks = journal.spool_chunks(spool)?;
            while let Some(chunk) = chunks.next()? {
                walk(&chunk)?;
            }
            Ok(())
        }
    }
}

/// Change number `index` of an entry, encoded.
fn change_at(journal: &Journal, entry: &Entry, index: u64) -> Result<Option<Bytes>> {
    let mut at = None;
    each(journal, entry, &mut |number, change| {
        if number == index {
            at = Some(encoded(change));
        }
        Ok(())
    })?;
    Ok(at)
}

fn encoded(change: &Change<'_>) -> Bytes {
    let mut out = ChangeWriter::default();
    out.push_change(change);
    out.take().into()
}

#[cfg(test)]
mod tests;
