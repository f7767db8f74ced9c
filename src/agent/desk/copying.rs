//! What loads and resyncs lay on the desk: chunks of rows, and how far they are.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Desk, Waiting};
use crate::admit::{Copied, Copies, Lost};
use crate::agent::chunks::{self, Copying, Outcome, Read, Rows};
use crate::change::{Body, Captured, ChangeWriter, Changes, LoadMark, Record};
use crate::error::Result;
use crate::journal::PositionRecord;
use crate::status::now;

impl Desk {
    pub(super) fn copying(&mut self, copying: Copying) -> Result<()> {
        match copying {
            Copying::Open { chunk, system, entity, keys, reply } => {
                let base = self.arbiter.open_chunk(system);
                self.chunks.open(chunk, system, entity, keys, base);
                // A load that went away meanwhile gives it up.
                let _ = reply.send(self.systems[system.index()].at.position.clone());
                Ok(())
            }
            Copying::Rows { chunk, rows, mark, reply } => self.copied(chunk, rows, mark, reply),
            Copying::Written { chunk, txid, changes, running, reply } => {
                let outcome = self.written(chunk, txid, &changes, &running)?;
                self.waiting.push(Waiting::Copied(reply, outcome));
                Ok(())
            }
            Copying::Drop { chunk } => {
                self.close(chunk, &[]);
                Ok(())
            }
            Copying::Mark { mark, reply } => {
                self.append(vec![Record::Load(mark)])?;
                self.waiting.push(Waiting::Marked(reply));
                Ok(())
            }
            Copying::Resync { mark, reply } => {
                self.append(vec![Record::Resync(mark)])?;
                self.waiting.push(Waiting::Marked(reply));
                Ok(())
            }
        }
    }

    /// Nothing is applied in that system meanwhile, so its base is what all of these have seen.
    fn written(&mut self, chunk: u64, txid: Arc<str>, changes: &[u8], running: &[u32]) -> Result<Outcome> {
        let Some(Read { system, changed, .. }) = self.close(chunk, running) else { return Ok(Outcome::Again) };
        let mut kept = ChangeWriter::default();
        Changes::new(changes)
            .filter(|change| changed.get(change.key_hash).is_none())
            .for_each(|c| kept.push_change(&c));
        if kept.is_empty() {
            return Ok(Outcome::Taken { taken: 0, lost: Vec::new(), missed: Vec::new(), seq: 0 });
        }
        let taken = kept.count;
        let PositionRecord { position, base, .. } = self.systems[system.index()].at.clone();
        let captured = Captured {
            system,
            position,
            base,
            txid,
            committed_at: now(),
            hops: 0,
            schema: self.archive.schema.clone(),
            changes: taken,
            body: Body::Inline(kept.take().into()),
            refused: Vec::new(),
        };
        let capture = &self.status.systems[system.index()].capture;
        capture.transactions.add(1);
        capture.changes.add(taken);
        self.captured(system, captured, None)?;
        Ok(Outcome::Taken { taken, lost: Vec::new(), missed: Vec::new(), seq: self.arbiter.head() })
    }

    fn close(&mut self, chunk: u64, running: &[u32]) -> Option<Read> {
        let (base, read) = self.chunks.close(chunk, running)?;
        self.arbiter.close_chunk(base);
        read
    }

    fn copied(
        &mut self,
        chunk: u64,
        rows: Rows,
        mark: Option<Box<LoadMark>>,
        reply: oneshot::Sender<Outcome>,
    ) -> Result<()> {
        let read = self.close(chunk, &rows.running);
        let missed = match (&read, &mark) {
            (None, _) => None,
            // Of a table, from one key to the next.
            (Some(read), Some(_)) => self.arbiter.missed(read.system, read.entity, read.base)?,
            (Some(read), None) => Some(self.arbiter.not_gone(read.system, read.entity, read.base, rows.absent)?),
        };
        let Some((Read { system, base, changed, .. }, missed)) = read.zip(missed) else {
            self.waiting.push(Waiting::Copied(reply, Outcome::Again));
            return Ok(());
        };
        let (mut taken, mut lost, mut seq) = (0, Vec::new(), 0);
        let schema = self.archive.schema.clone();
        for (to, part) in rows.parts {
            self.bytes += part.len();
            let (txid, read_at) = (rows.txid.clone(), rows.read_at);
            let copied = Copied { system, base, txid, read_at, schema: schema.clone(), rows: part.clone(), to };
            let Copies { admitted, taken: of_part, lost: losers } = self.arbiter.copied(copied, &changed)?;
            taken += of_part;
            if !losers.is_empty() {
                let losers: HashMap<u128, bool> =
                    losers.into_iter().map(|Lost { key_hash, told }| (key_hash, told)).collect();
                for change in Changes::new(&part) {
                    if let Some(told) = losers.get(&change.key_hash) {
                        let key = change.key(schema.entity(change.entity).key_len);
                        lost.push((Bytes::copy_from_slice(key), *told));
                    }
                }
            }
            if of_part > 0 {
                seq = self.arbiter.head();
            }
            for (target, changes) in self.status.systems.iter().zip(&admitted.addressed) {
                target.apply.addressed.add(*changes);
            }
            self.append(admitted.records)?;
        }
        let name = self.systems[system.index()].name.clone();
        for (change, reason) in rows.refused {
            self.append(vec![Record::Refused(chunks::refused(&name, &schema, &rows.txid, change, reason))])?;
        }
        if let Some(mut mark) = mark {
            mark.counts.took(taken, lost.len(), rows.deletes);
            mark.lost.extend(lost.iter().filter(|(_, told)| !told).map(|(key, _)| key.clone()));
            mark.lost.extend(missed.iter().cloned());
            self.append(vec![Record::Load(*mark)])?;
        }
        self.waiting.push(Waiting::Copied(reply, Outcome::Taken { taken, lost, missed, seq }));
        Ok(())
    }
}
