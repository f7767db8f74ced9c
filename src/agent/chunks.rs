//! Chunks that are being read from a system's tables, as the desk sees them: what that system's
//! log changes between a chunk's low watermark and its admission is newer than what was read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::admit::{Bodies, Changed};
use crate::change::{Captured, LoadMark, Micros, Refused, ResyncMark};
use crate::error::Result;
use crate::position::{Position, Seq};
use crate::schema::{EntityId, Schema, SystemId};

/// Transactions of which a snapshot may tell that it does not see them yet.
const RECENT_MAX: usize = 1 << 16;

/// What a load lays on the desk.
pub enum Copying {
    /// Answered at once with its low watermark (everything up to there was captured): nothing of
    /// it is durable.
    Open {
        chunk: u64,
        system: SystemId,
        entity: EntityId,
        /// Keys that have lost before.
        keys: HashSet<u128>,
        reply: oneshot::Sender<Position>,
    },
    /// The log of its system was captured past the high watermark. Answered after the sync.
    Rows {
        chunk: u64,
        rows: Rows,
        /// How far the load has come with them; what becomes of them is added.
        mark: Option<Box<LoadMark>>,
        reply: oneshot::Sender<Outcome>,
    },
    /// What a system's lost log would have told: as if it were captured now. Encoded changes of
    /// one entity; those of keys that its log has changed since the low watermark are left out.
    /// Answered after the sync.
    Written {
        chunk: u64,
        txid: Arc<str>,
        changes: Bytes,
        running: Vec<u32>,
        reply: oneshot::Sender<Outcome>,
    },
    Drop {
        chunk: u64,
    },
    /// Answered after the sync.
    Mark {
        mark: LoadMark,
        reply: oneshot::Sender<()>,
    },
    /// Answered after the sync.
    Resync {
        mark: ResyncMark,
        reply: oneshot::Sender<()>,
    },
}

/// What was read.
#[derive(Debug, Default)]
pub struct Rows {
    /// Names the load.
    pub txid: Arc<str>,
    pub read_at: Micros,
    /// Encoded inserts, by whom they are for; `None`: all others that bind the entity.
    pub parts: Vec<(Option<Vec<Arc<str>>>, Bytes)>,
    /// They are deletes, and counted as such.
    pub deletes: bool,
    /// Rows that have no canonical form.
    pub refused: Vec<(Bytes, String)>,
    /// Transactions that the snapshot did not see.
    pub running: Vec<u32>,
    /// Keys of rows that lost before, and were not there when they were read again.
    pub absent: Vec<(u128, Bytes)>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `seq` is of the last entry, 0 where none was journaled; `lost` are keys of rows that lost
    /// to something live, and whether that tells all of the row; `missed` those of rows that were not
    /// there and come back.
    Taken { taken: u64, lost: Vec<(Bytes, bool)>, missed: Vec<Bytes>, seq: Seq },
    /// The read missed a transaction that was captured before, or too much has changed meanwhile.
    Again,
}

struct Open {
    id: u64,
    system: SystemId,
    entity: EntityId,
    base: Seq,
    changed: Changed,
    /// How many transactions of the system were captured before.
    captured: u64,
}

/// The last transactions of a system that were captured.
#[derive(Default)]
struct Recent {
    ids: VecDeque<u32>,
    count: u64,
}

/// A chunk whose rows have come.
pub struct Read {
    pub system: SystemId,
    pub entity: EntityId,
    pub base: Seq,
    pub changed: Changed,
}

#[derive(Default)]
pub struct Chunks {
    open: Vec<Open>,
    recent: Vec<Recent>,
}

impl Chunks {
    pub fn new(systems: usize) -> Self {
        Chunks { recent: (0..systems).map(|_| Recent::default()).collect(), ..Chunks::default() }
    }

    pub fn open(&mut self, id: u64, system: SystemId, entity: EntityId, keys: HashSet<u128>, base: Seq) {
        let captured = self.recent[system.index()].count;
        self.open.push(Open { id, system, entity, base, changed: Changed::watching(keys), captured });
    }

    /// A transaction of that system is taken in.
    pub fn captured(&mut self, captured: &Captured, bodies: &dyn Bodies) -> Result<()> {
        if let Position::Postgres { .. } = captured.position
            && let Ok(id) = captured.txid.parse()
        {
            let recent = &mut self.recent[captured.system.index()];
            recent.ids.push_back(id);
            recent.count += 1;
            if recent.ids.len() > RECENT_MAX {
                recent.ids.pop_front();
            }
        }
        for open in self.open.iter_mut().filter(|open| open.system == captured.system) {
            open.changed.note(open.entity, captured, bodies)?;
        }
        Ok(())
    }

    /// Takes the chunk out; `None` where it has to be read again. Its base is returned either way.
    pub fn close(&mut self, chunk: u64, running: &[u32]) -> Option<(Seq, Option<Read>)> {
        let at = self.open.iter().position(|open| open.id == chunk)?;
        let Open { system, entity, base, changed, captured, .. } = self.open.swap_remove(at);
        let recent = &self.recent[system.index()];
        let before = recent.ids.len().saturating_sub((recent.count - captured) as usize);
        let missed = recent.ids.iter().take(before).any(|id| running.contains(id));
        let read = (!missed && !changed.is_full()).then_some(Read { system, entity, base, changed });
        Some((base, read))
    }
}

/// A row without canonical form, as its record.
pub fn refused(system: &Arc<str>, schema: &Arc<Schema>, txid: &Arc<str>, change: Bytes, reason: String) -> Refused {
    Refused { system: system.clone(), position: None, txid: txid.clone(), schema: schema.clone(), change, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Body, ChangeWriter, Op, SpoolRef};
    use crate::position::Lsn;
    use crate::schema::{EntitySchema, Field};
    use crate::value::{Datum, Kind, Value};

    struct Nothing;

    impl Bodies for Nothing {
        fn chunks(&self, _: &SpoolRef, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            Ok(())
        }

        fn committed_at(&self, _: Seq) -> Result<Option<Micros>> {
            Ok(None)
        }

        fn image(&self, _: Seq, _: u128) -> Result<Option<Bytes>> {
            Ok(None)
        }
    }

    fn captured(txid: &str, key: i64) -> Captured {
        let field = Field { name: "id".into(), kind: Kind::Int };
        let schema = Schema::new(vec![EntitySchema::new("contact", vec![field], 1)]);
        let mut writer = ChangeWriter::default();
        let row = [Datum::Value(Value::Int(key))].into_iter();
        writer.push(&schema, EntityId(0), Op::Insert, None::<std::iter::Empty<_>>, Some(row));
        Captured {
            system: SystemId(0),
            position: Position::Postgres { lsn: Lsn(1) },
            base: 0,
            txid: txid.into(),
            committed_at: 0,
            hops: 0,
            schema,
            changes: 1,
            body: Body::Inline(writer.take().into()),
            refused: Vec::new(),
        }
    }

    #[test]
    fn what_a_log_changes_while_a_chunk_is_read_is_known() {
        let mut chunks = Chunks::new(2);
        chunks.captured(&captured("7", 1), &Nothing).unwrap();
        let (mine, others) = (1, 2);
        chunks.open(mine, SystemId(0), EntityId(0), HashSet::new(), 5);
        chunks.open(others, SystemId(1), EntityId(0), HashSet::new(), 5);
        chunks.captured(&captured("8", 2), &Nothing).unwrap();

        let (base, read) = chunks.close(mine, &[8, 9]).unwrap();
        assert_eq!((base, read.unwrap().changed.len()), (5, 1));
        assert!(chunks.close(others, &[]).unwrap().1.unwrap().changed.is_empty());
        assert!(chunks.close(mine, &[]).is_none());
    }

    #[test]
    fn a_read_that_missed_what_was_captured_before_is_repeated() {
        let mut chunks = Chunks::new(1);
        chunks.captured(&captured("7", 1), &Nothing).unwrap();
        let chunk = 1;
        chunks.open(chunk, SystemId(0), EntityId(0), HashSet::new(), 5);
        chunks.captured(&captured("8", 2), &Nothing).unwrap();

        assert!(chunks.close(chunk, &[7]).unwrap().1.is_none());
    }
}
