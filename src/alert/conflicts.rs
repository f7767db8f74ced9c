//! Conflicts as the journal tells them, each once: counters begin anew with the process, and would
//! not know of one that was met just before a kill.

use std::collections::BTreeMap;

use crate::change::{Conflicted, Record};
use crate::error::Result;
use crate::journal::{Journal, Reader};
use crate::position::Seq;

/// By entity: how many, and the newest in words.
pub type Met = BTreeMap<String, (u64, String)>;

/// Reads behind the last entry that was looked at.
#[derive(Debug)]
pub struct Conflicts {
    journal: Journal,
    reader: Option<Reader>,
    pub seq: Seq,
    /// Of the entry that comes next: they stand before it.
    next: Vec<Conflicted>,
}

impl Conflicts {
    pub fn behind(journal: Journal, seq: Seq) -> Self {
        Conflicts { journal, reader: None, seq, next: Vec::new() }
    }

    pub fn is_of(&self, journal: &Journal) -> bool {
        self.journal.is(journal)
    }

    /// What came since; `ends` cuts it short, and the rest comes next time.
    pub fn follow(&mut self, ends: &dyn Fn() -> bool) -> Result<Met> {
        let mut met = Met::new();
        if self.journal.head() <= self.seq {
            return Ok(met);
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => {
                let from = (self.seq + 1).max(self.journal.oldest());
                self.reader.insert(self.journal.reader(from)?)
            }
        };
        while let Some(record) = reader.next()? {
            match record {
                // What is logged again, so that its segment can go, was told long ago.
                Record::Conflict(conflict) if conflict.id.seq > self.seq => self.next.push(conflict),
                Record::Entry(entry) => {
                    for conflict in self.next.drain(..) {
                        let (count, text) = met.entry(conflict.entity.to_string()).or_default();
                        *count += 1;
                        *text = said(&conflict);
                    }
                    self.seq = entry.seq;
                    if ends() {
                        break;
                    }
                }
                _ => {}
            }
        }
        Ok(met)
    }
}

fn said(conflict: &Conflicted) -> String {
    let Conflicted { id, entity, system, rule, outcome, .. } = conflict;
    let against = conflict.against_system.as_ref().map_or("agent", |name| name);
    format!(
        "two systems changed one {entity} at once: what {system} wrote met what {against} had written; by {}: {} \
         (anechoic conflicts show {id})",
        rule.name(),
        outcome.name()
    )
}
