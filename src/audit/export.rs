//! All operations of a time, page by page: `anechoic audit`.

use serde::{Deserialize, Serialize};

use super::operation::{Operation, each_of};
use crate::change::{Change, Entry, Micros, Record};
use crate::error::Result;
use crate::journal::Journal;
use crate::position::Seq;

/// Operations of one page, about: it ends early where they are large.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;

/// `anechoic audit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSpec {
    /// Commit times.
    pub since: Option<Micros>,
    pub until: Option<Micros>,
    pub entity: Option<String>,
    /// Who wrote it; `agent` for what persons had the agent do.
    pub system: Option<String>,
    pub op: Option<String>,
    /// Where the page begins, as the one before it said.
    pub from: Cursor,
}

/// An entry, and one of its changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    pub seq: Seq,
    pub index: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub operations: Vec<Operation>,
    /// Where the next one begins; `None` at the journal's end.
    pub next: Option<Cursor>,
}

impl AuditSpec {
    fn chooses(&self, entry: &Entry) -> bool {
        let by = entry.origin.system().map_or("agent", |name| name);
        self.system.as_deref().is_none_or(|system| system == by)
            && self.since.is_none_or(|since| since <= entry.committed_at)
            && self.until.is_none_or(|until| entry.committed_at <= until)
    }

    fn wants(&self, entry: &Entry, change: &Change<'_>) -> bool {
        self.op.as_deref().is_none_or(|op| op == change.op.name())
            && self.entity.as_deref().is_none_or(|entity| entity == entry.schema.entity(change.entity).name)
    }
}

pub fn page(journal: &Journal, spec: &AuditSpec) -> Result<Page> {
    let from = spec.from.seq.max(journal.oldest());
    let mut page = Page { operations: Vec::new(), next: None };
    if from > journal.head() {
        return Ok(page);
    }
    let (mut reader, mut conflicts, mut bytes) = (journal.reader(from)?, Vec::new(), 0);
    while let Some(record) = reader.next()? {
        let entry = match record {
            Record::Conflict(conflict) => {
                conflicts.push(conflict);
                continue;
            }
            Record::Entry(entry) => entry,
            _ => continue,
        };
        let conflicts = std::mem::take(&mut conflicts);
        if !spec.chooses(&entry) {
            continue;
        }
        let begin = if entry.seq == spec.from.seq { spec.from.index } else { 0 };
        let wanted = |change: &Change<'_>| spec.wants(&entry, change);
        each_of(journal, &entry, &conflicts, begin, &wanted, &mut |operation| {
            bytes += operation.size();
            page.next = Some(Cursor { seq: operation.seq, index: operation.index + 1 });
            page.operations.push(operation);
            Ok(page.operations.len() < PAGE && bytes < PAGE_BYTES)
        })?;
        if page.operations.len() >= PAGE || bytes >= PAGE_BYTES {
            return Ok(page);
        }
    }
    page.next = None;
    Ok(page)
}
