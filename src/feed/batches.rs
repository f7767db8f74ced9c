//! What the journal has to tell, cut into requests. One thread reads on while others send.

use super::told::told;
use super::{Cursor, Spec};
use crate::audit::each;
use crate::change::{Entry, Fate, Micros, Origin, Record};
use crate::error::{Error, Result};
use crate::journal::{Journal, Reader};

/// What one request brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Names the request; the first and the last change in it.
    pub id: String,
    /// `None`: nothing of what was passed is wanted.
    pub body: Option<String>,
    pub changes: u64,
    /// Where the next one begins.
    pub until: Cursor,
    /// When the first of it was committed.
    pub committed_at: Micros,
}

pub struct Batches {
    journal: Journal,
    spec: Spec,
    reader: Option<Reader>,
    /// The next change to look at.
    at: Cursor,
    /// The first request ends here, however it would be cut now.
    until: Option<Cursor>,
    filling: Filling,
    /// Where the last one that was handed out ended.
    handed: Cursor,
}

#[derive(Default)]
struct Filling {
    changes: Vec<String>,
    bytes: usize,
    first: Cursor,
    last: Cursor,
    committed_at: Micros,
}

impl Batches {
    pub fn new(journal: Journal, spec: Spec, from: Cursor, until: Option<Cursor>) -> Self {
        let until = until.filter(|until| *until > from);
        Batches { journal, spec, reader: None, at: from, until, filling: Filling::default(), handed: from }
    }

    /// Hands out what there is, and returns at the journal's end. `out` says whether to go on.
    pub fn follow(&mut self, out: &mut dyn FnMut(Batch) -> bool) -> Result<()> {
        if self.journal.head() < self.at.seq {
            return Ok(());
        }
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.journal.reader(self.at.seq)?,
        };
        let mut goes_on = true;
        while goes_on && let Some(record) = reader.next()? {
            if let Record::Entry(entry) = record {
                goes_on = self.entry(&entry, out)?;
            }
        }
        self.reader = goes_on.then_some(reader);
        if goes_on {
            self.hand(out);
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, out: &mut dyn FnMut(Batch) -> bool) -> Result<bool> {
        let wanted = self.spec.copies || !matches!(entry.origin, Origin::Copied(_));
        let (begin, mut cursor, mut goes_on) = (if entry.seq == self.at.seq { self.at.index } else { 0 }, 0, true);
        if wanted {
            let journal = self.journal.clone();
            let walked = each(&journal, entry, &mut |index, change| {
                let fate = entry.fate(index, "", &mut cursor);
                if index < begin {
                    return Ok(());
                }
                let at = Cursor { seq: entry.seq, index };
                self.at = at;
                let replaced = match fate {
                    Fate::Skip => return Ok(()),
                    Fate::Apply => None,
                    Fate::Replace(with) => Some(with.change()),
                };
                let change = replaced.as_ref().unwrap_or(change);
                let schema = entry.schema.entity(change.entity);
                if schema.name != self.spec.entity || !self.spec.ops.contains(&change.op) {
                    return Ok(());
                }
                let text = told(&self.spec, entry, at, change);
                if self.ends_before(at, text.len()) && !self.hand(out) {
                    goes_on = false;
                    return Err(Error::retry("nobody wants more"));
                }
                self.filling.put(text, at, entry.committed_at);
                Ok(())
            });
            if goes_on {
                walked?;
            } else {
                return Ok(false);
            }
        }
        self.at = Cursor { seq: entry.seq + 1, index: 0 };
        if self.until.is_some_and(|until| until <= self.at) {
            return Ok(self.hand(out));
        }
        Ok(true)
    }

    /// The change at `at` is one too many for the request that is being made.
    fn ends_before(&self, at: Cursor, bytes: usize) -> bool {
        match self.until {
            Some(until) => until <= at,
            None if self.filling.changes.is_empty() => false,
            None => self.filling.changes.len() >= self.spec.batch || self.filling.bytes + bytes > self.spec.max_body,
        }
    }

    /// False: nobody wants more.
    fn hand(&mut self, out: &mut dyn FnMut(Batch) -> bool) -> bool {
        if self.at == self.handed && self.filling.changes.is_empty() {
            return true;
        }
        (self.until, self.handed) = (None, self.at);
        let Filling { changes, first, last, committed_at, .. } = std::mem::take(&mut self.filling);
        let Spec { journal, name, agent, .. } = &self.spec;
        let body = format!(
            "{{\"agent\":{},\"notify\":{},\"changes\":[{}]}}",
            serde_json::Value::from(agent.as_str()),
            serde_json::Value::from(name.as_str()),
            changes.join(",")
        );
        out(Batch {
            id: format!("{journal}.{name}.{}.{}-{}.{}", first.seq, first.index, last.seq, last.index),
            body: (!changes.is_empty()).then_some(body),
            changes: changes.len() as u64,
            until: self.at,
            committed_at,
        })
    }
}

impl Filling {
    fn put(&mut self, text: String, at: Cursor, committed_at: Micros) {
        if self.changes.is_empty() {
            (self.first, self.committed_at) = (at, committed_at);
        }
        self.last = at;
        self.bytes += text.len() + 1;
        self.changes.push(text);
    }
}
