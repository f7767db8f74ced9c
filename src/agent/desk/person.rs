//! What people ask of the desk: which conflicts wait, and changes that they make through the agent.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::info;

use super::{Desk, Waiting};
use crate::admit::{Admitted, ByHand};
use crate::audit::resolve::{self, Choice};
use crate::audit::{conflicts, undo};
use crate::change::{Body, Changes, ConflictId, Conflicted, Micros, Quarantined, Record};
use crate::control::{OfHeld, Treated};
use crate::error::{Error, Result};
use crate::position::Seq;
use crate::schema::Schema;
use crate::status::now;

/// A body above this lies in the spool, in chunks of about that size.
const CHUNK_BYTES: usize = 1 << 20;

pub enum Person {
    /// Those that wait, the oldest first. Answered at once.
    Conflicts { reply: oneshot::Sender<Vec<Conflicted>> },
    /// Answered after the sync, with the entry that carries it; 0: none is needed.
    Resolve { choice: Choice, reply: oneshot::Sender<Result<Seq>> },
    /// Answered after the sync; `None`: one of the keys was changed since it was planned.
    Undo { undo: Undo, reply: oneshot::Sender<Result<Option<Seq>>> },
    /// What is in quarantine is tried again at once, or given up. Answered after the sync.
    Held { held: Vec<Quarantined>, what: OfHeld, reply: oneshot::Sender<Result<Treated>> },
}

/// What takes transactions back, as [`undo::plan`] made it.
pub struct Undo {
    pub txid: Arc<str>,
    pub schema: Arc<Schema>,
    pub body: Bytes,
    pub changes: u64,
    /// Sorted.
    pub keys: Vec<u128>,
    pub head: Seq,
}

/// Conflicts that are logged one by one each second; in a storm of them the rest is counted.
const TOLD_MAX: u32 = 50;

/// How many conflicts this second had.
#[derive(Debug, Default)]
pub(super) struct Told {
    second: i64,
    conflicts: u32,
}

impl Told {
    /// Whether one more is to be logged, and how many of the second before were not.
    fn tell(&mut self, second: i64) -> (bool, u32) {
        let mut untold = 0;
        if second != self.second {
            untold = self.conflicts.saturating_sub(TOLD_MAX);
            *self = Told { second, conflicts: 0 };
        }
        self.conflicts += 1;
        (self.conflicts <= TOLD_MAX, untold)
    }
}

impl Desk {
    /// Nothing of the rows is logged: `anechoic conflicts show` has them, by this id.
    pub(super) fn count_conflict(&mut self, conflict: &Conflicted) {
        let Conflicted { id, entity, system, rule, outcome, .. } = conflict;
        if let Some(entity) = self.status.entities.iter().find(|status| *status.name == **entity) {
            entity.decisions.add(*rule, *outcome);
        }
        let (tells, untold) = self.told.tell(now() / 1_000_000);
        if untold > 0 {
            info!(conflicts = untold, "more conflicts, which are not logged one by one");
        }
        if tells {
            let against = conflict.against_system.as_deref().unwrap_or("agent");
            info!(conflict = %id, %entity, %system, against, policy = rule.name(), outcome = outcome.name(), "conflict");
        }
    }

    pub(super) fn show_waiting(&self) {
        for entity in &self.status.entities {
            let waiting = self.arbiter.conflicts().filter(|conflict| *conflict.entity == *entity.name);
            entity.waiting.set(waiting.count() as i64);
        }
    }

    /// What a person got wrong is told to that person; an error of this is the journal's.
    pub(super) fn person(&mut self, person: Person) -> Result<()> {
        match person {
            Person::Conflicts { reply } => {
                // Who went away meanwhile does not need the answer; so with all of these.
                let _ = reply.send(self.arbiter.conflicts().cloned().collect());
                Ok(())
            }
            Person::Resolve { choice, reply } => {
                match self.chosen(&choice) {
                    Ok((id, change)) => {
                        let seq = self.resolve(id, change)?;
                        self.waiting.push(Waiting::Resolved(reply, seq));
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
                Ok(())
            }
            Person::Undo { undo, reply } => {
                let seq = match self.is_current(&undo)? {
                    true => Some(self.undo(undo)?),
                    false => None,
                };
                self.waiting.push(Waiting::Undone(reply, seq));
                Ok(())
            }
            Person::Held { held, what, reply } => {
                let (mut treated, at) = (Treated::default(), now());
                for record in &held {
                    let records = match what {
                        OfHeld::Retry => self.arbiter.try_again(record, at),
                        OfHeld::Drop => self.arbiter.give_up(record),
                    };
                    *(if records.is_empty() { &mut treated.left } else { &mut treated.done }) += 1;
                    self.append(records)?;
                }
                self.waiting.push(Waiting::Treated(reply, treated));
                Ok(())
            }
        }
    }

    fn chosen(&self, choice: &Choice) -> Result<(ConflictId, Option<Bytes>)> {
        let id: ConflictId = choice.id.parse().map_err(|why: String| Error::stop(why, "anechoic conflicts list"))?;
        let none = || {
            let what = format!("no conflict {id} waits for a decision");
            Error::stop(what, "anechoic conflicts list --open")
        };
        if let Some(conflict) = self.arbiter.conflict(id) {
            return Ok((id, resolve::change(conflict, choice, &self.archive.schema)?));
        }
        let decided = conflicts::decided(&self.archive.journal, id).ok().flatten().ok_or_else(none)?;
        Ok((id, resolve::change(&decided, choice, &self.archive.schema)?))
    }

    fn resolve(&mut self, id: ConflictId, change: Option<Bytes>) -> Result<Seq> {
        let Some(change) = change else {
            let records = self.arbiter.keep(id);
            self.append(records)?;
            return Ok(0);
        };
        self.by_hand(ByHand {
            txid: format!("resolve {id}").into(),
            at: now(),
            schema: self.archive.schema.clone(),
            body: Body::Inline(change),
            changes: 1,
            resolves: Some(id),
        })
    }

    /// Nobody changed any of the keys behind the head that was read.
    fn is_current(&self, undo: &Undo) -> Result<bool> {
        let (journal, schema) = (&self.archive.journal, &self.archive.schema);
        if undo.schema.id != schema.id {
            return Ok(false);
        }
        let mut reader = journal.reader(undo.head + 1)?;
        while let Some(record) = reader.next()? {
            if let Record::Entry(entry) = record
                && undo::meets(journal, &entry, &undo.keys, schema)?
            {
                return Ok(false);
            }
        }
        for entry in self.archive.fresh.iter().filter(|entry| entry.seq > undo.head) {
            if undo::meets(journal, entry, &undo.keys, schema)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn undo(&mut self, undo: Undo) -> Result<Seq> {
        let Undo { txid, schema, body, changes, .. } = undo;
        let body = if body.len() > CHUNK_BYTES { self.spooled(&body)? } else { Body::Inline(body) };
        self.by_hand(ByHand { txid, at: now(), schema, body, changes, resolves: None })
    }

    fn spooled(&self, body: &[u8]) -> Result<Body> {
        let mut writer = self.archive.journal.spool().create()?;
        let (mut changes, mut chunk) = (Changes::new(body), Vec::new());
        while let Some(change) = changes.next_encoded() {
            if chunk.len() + change.len() > CHUNK_BYTES && !chunk.is_empty() {
                writer.write(&std::mem::take(&mut chunk))?;
            }
            chunk.extend_from_slice(change);
        }
        writer.write(&chunk)?;
        Ok(Body::Spooled(writer.finish()?))
    }

    fn by_hand(&mut self, by_hand: ByHand) -> Result<Seq> {
        let at = by_hand.at;
        let admitted = self.arbiter.by_hand(by_hand, &self.archive)?;
        self.by_agent(admitted, at)?;
        Ok(self.arbiter.head())
    }

    /// Counts and appends what the agent itself writes, in all systems.
    pub(super) fn by_agent(&mut self, admitted: Admitted, at: Micros) -> Result<()> {
        for (target, changes) in self.status.systems.iter().zip(&admitted.addressed) {
            target.apply.addressed.add(*changes);
        }
        let schema = self.archive.schema.clone();
        for (counts, entity) in admitted.counts.iter().zip(&schema.entities) {
            if let Some(status) = self.status.entities.iter().find(|status| status.name == entity.name) {
                status.conflicts.add(counts.conflicts);
                if counts.journaled.total() > 0 {
                    status.last_change.set(at.max(status.last_change.get()));
                }
            }
        }
        self.append(admitted.records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_conflicts_is_counted_and_not_logged_one_by_one() {
        let mut told = Told::default();

        let logged = (0..1000).filter(|_| told.tell(7).0).count();

        assert_eq!(logged, TOLD_MAX as usize);
        assert_eq!(told.tell(8), (true, 1000 - TOLD_MAX));
        assert_eq!(told.tell(9), (true, 0));
    }
}
