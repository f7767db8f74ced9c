//! The one writer: buffers records, and makes a group of them durable with one write and one
//! fdatasync.
//!
//! Records become visible to readers when they are durable, never before. A full disk leaves
//! the buffered records where they are and the file as it was for everybody else; the next
//! `sync` tries again. A failed fdatasync closes the writer for good: what the kernel still
//! holds nobody knows.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::codec::{put_record, put_schema, schema_of};
use super::disk::{self, OnDisk};
use super::open::{Lock, Tail};
use super::retention::{Aged, Retained, expired};
use super::segment::{FRAME, FrameSpec, HEADER, Header, Kind, PAYLOAD_MAX, file_name, padded, put_frame};
use super::state::State;
use super::{Mark, Options, Segment, Shared, Tip, now};
use crate::change::{Micros, Record};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::position::Seq;
use crate::schema::Schema;

/// Records of one frame before compression; larger ones have a frame of their own.
const BLOCK: usize = 256 << 10;
/// A group that grows beyond this is synced without being asked.
const GROUP_MAX: usize = 8 << 20;
/// Dropped files that are kept to be written again: faster than new ones.
const SPARES_MAX: usize = 2;
/// A segment of very compressible records ends at this many times its size, since a restart
/// reads what it holds.
const RAW_TIMES: u64 = 4;
/// Room for the seal and the close frames that may stand behind the records.
const RESERVE: u64 = 4 * FRAME as u64;

#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    _lock: Lock,
    segment: Arc<Segment>,
    file: File,
    /// Of the file, allocated.
    len: u64,
    /// The durable end: where the next group goes.
    offset: u64,
    sealed: bool,
    /// Of this segment's records, before compression.
    raw_bytes: u64,
    /// Finished frames of this group, and the records of the next frame.
    pending: Vec<u8>,
    block: Vec<u8>,
    block_prev: Seq,
    marks: Vec<Mark>,
    scratch: Vec<u8>,
    /// The last entry appended.
    head: Seq,
    next_frame: u64,
    durable_frame: u64,
    /// Where the last frame stands, and its checksum.
    last: (u64, u32),
    state: State,
    /// Schemas that this segment holds.
    schemas: HashSet<u64>,
    /// Of the schema last asked for.
    schema_size: (u64, u64),
    spares: Vec<PathBuf>,
    segment_bytes: u64,
    max_size: u64,
    compress: bool,
    /// Followers have something to do: more than a position was appended.
    notify: bool,
    failed: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: &Options,
        lock: Lock,
        file: File,
        spares: Vec<PathBuf>,
        tail: Tail,
    ) -> Result<Self> {
        let segment = shared.segments().back().expect("a journal has a segment").clone();
        let mut writer = Writer {
            _lock: lock,
            segment,
            file,
            len: tail.len,
            offset: tail.offset,
            sealed: tail.sealed,
            raw_bytes: tail.raw_bytes,
            pending: Vec::new(),
            block: Vec::new(),
            block_prev: tail.head,
            marks: Vec::new(),
            scratch: Vec::new(),
            head: tail.head,
            next_frame: tail.next_frame,
            durable_frame: tail.next_frame - 1,
            last: tail.last,
            schemas: tail.schemas.keys().copied().collect(),
            state: tail.state,
            schema_size: (0, 0),
            spares,
            segment_bytes: options.segment_bytes,
            max_size: options.max_size,
            compress: options.compress,
            notify: false,
            failed: false,
            shared,
        };
        writer.drop_spares(SPARES_MAX)?;
        Ok(writer)
    }

    /// The last entry appended, durable or not.
    pub fn head(&self) -> Seq {
        self.head
    }

    /// Buffers a record; an entry's seq must be the next one. Where a segment or a group is
    /// full this syncs what was appended before. After an error the record is not in.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.usable()?;
        if let Record::Entry(entry) = record
            && entry.seq != self.head + 1
        {
            return Err(Error::stop(
                format!("entry {} does not follow entry {} in the journal", entry.seq, self.head),
                "this is a fault in anechoic: please report it",
            ));
        }
        let mut encoded = std::mem::take(&mut self.scratch);
        encoded.clear();
        put_record(&mut encoded, record);
        let done = self.append_encoded(record, &encoded);
        if encoded.capacity() <= 4 * BLOCK {
            self.scratch = encoded;
        }
        done
    }

    fn append_encoded(&mut self, record: &Record, encoded: &[u8]) -> Result<()> {
        if encoded.len() > PAYLOAD_MAX {
            return Err(Error::stop(
                format!("a record of {} bytes is too large for the journal", encoded.len()),
                "this is a fault in anechoic (large transactions are spooled): please report it",
            ));
        }
        if self.pending.len() + self.block.len() >= GROUP_MAX {
            self.sync()?;
        }
        self.make_room(schema_of(record), encoded.len())?;
        if let Some(schema) = schema_of(record)
            && !self.schemas.contains(&schema.id)
        {
            self.append_schema(schema);
        }
        if !self.block.is_empty() && self.block.len() + encoded.len() > BLOCK {
            self.close_block();
        }
        self.block.extend_from_slice(encoded);
        self.raw_bytes += encoded.len() as u64;
        if matches!(record, Record::Entry(_)) {
            self.head += 1;
        }
        let silent = matches!(record, Record::Position { .. } | Record::Prepared(_) | Record::Decided { .. });
        self.notify |= !silent;
        self.state.apply(record, self.segment.header.number);
        Ok(())
    }

    /// Goes on in a new segment if this one cannot take the record.
    fn make_room(&mut self, schema: Option<&Arc<Schema>>, len: usize) -> Result<()> {
        let schema_frame = schema.map_or(0, |schema| self.schema_frame(schema));
        let buffered = self.pending.len() as u64 + frame_size(self.block.len());
        let needed = schema_frame + frame_size(len) + RESERVE;
        let fits = self.offset + buffered + needed <= self.len && self.raw_bytes < RAW_TIMES * self.segment_bytes;
        match !self.sealed && fits {
            true => Ok(()),
            false => self.roll(needed),
        }
    }

    /// What a schema would take in a new segment; the same one is asked for again and again.
    fn schema_frame(&mut self, schema: &Schema) -> u64 {
        if self.schema_size.0 != schema.id {
            let mut bytes = Vec::new();
            put_schema(&mut bytes, schema);
            self.schema_size = (schema.id, frame_size(bytes.len()));
        }
        self.schema_size.1
    }

    fn append_schema(&mut self, schema: &Arc<Schema>) {
        self.close_block();
        let mut bytes = Vec::new();
        put_schema(&mut bytes, schema);
        self.put(Kind::Schema, self.head, &bytes);
        self.schemas.insert(schema.id);
        self.shared.learn_schema(schema.clone());
    }

    fn close_block(&mut self) {
        if !self.block.is_empty() {
            let block = std::mem::take(&mut self.block);
            self.put(Kind::Records, self.block_prev, &block);
            self.block = block;
            self.block.clear();
            self.block.shrink_to(4 * BLOCK);
        }
        self.block_prev = self.head;
    }

    fn put(&mut self, kind: Kind, prev_seq: Seq, payload: &[u8]) {
        let offset = self.offset + self.pending.len() as u64;
        self.marks.push(Mark { prev_seq, offset, number: self.next_frame });
        let spec =
            FrameSpec { kind, number: self.next_frame, durable: self.durable_frame, prev_seq, last_seq: self.head };
        let crc = put_frame(&mut self.pending, spec, payload, self.segment.key(), self.compress);
        self.last = (offset, crc);
        self.next_frame += 1;
    }

    /// Makes everything appended durable and visible, and returns the durable head.
    pub fn sync(&mut self) -> Result<Seq> {
        self.usable()?;
        self.close_block();
        if self.pending.is_empty() {
            return Ok(self.head);
        }
        failpoint::pass("before-journal-sync");
        let path = &self.segment.path;
        disk::write_all_at(&self.file, &self.pending, self.offset).on_disk("write journal segment", path)?;
        if let Err(error) = disk::sync_data(&self.file) {
            self.failed = true;
            return Err(Error::stop(
                format!("cannot sync journal segment {}", self.segment.path.display()),
                "check the disk, then start again: nothing that was acknowledged is lost",
            )
            .because(error));
        }
        failpoint::pass("after-journal-sync");
        self.publish();
        Ok(self.head)
    }

    fn publish(&mut self) {
        self.offset += self.pending.len() as u64;
        self.len = self.len.max(self.offset);
        self.pending.clear();
        self.pending.shrink_to(2 * GROUP_MAX);
        self.durable_frame = self.next_frame - 1;
        for mark in self.marks.drain(..) {
            self.segment.mark(mark);
        }
        self.segment.bytes.store(self.offset, Ordering::Relaxed);
        // At one moment for whoever asks for the head: what a reader has seen, and a target shows,
        // is never beyond it.
        self.shared.durable.send_if_modified(|head| {
            self.segment.end.store(self.offset, Ordering::Release);
            *head = self.head;
            std::mem::take(&mut self.notify)
        });
    }

    /// Where the journal ends, all of which is durable; `None` while something is not.
    pub fn tip(&self) -> Option<Tip> {
        let (offset, crc) = self.last;
        let synced = self.pending.is_empty() && self.block.is_empty();
        synced.then(|| Tip { segment: self.segment.header.number, offset, crc, seq: self.head })
    }

    /// Seals this segment and goes on in a new one with room for `needed` bytes.
    ///
    /// Everything appended so far is synced first, so the checkpoint says nothing that is not
    /// durable. If there is no space for the new segment, the next append tries again.
    fn roll(&mut self, needed: u64) -> Result<()> {
        self.sync()?;
        if !self.sealed {
            self.put(Kind::Seal, self.head, &[]);
            self.sealed = true;
        }
        self.sync()?;
        self.trim()?;
        let header = Header {
            journal: self.shared.id,
            number: self.segment.header.number + 1,
            prev_seq: self.head,
            first_frame: self.next_frame,
            created_at: now(),
        };
        let checkpoint = self.state.encode();
        let needed = HEADER + frame_size(checkpoint.len()) + needed;
        let spare = self.spares.last().cloned();
        let dir = self.shared.dir.clone();
        let created = create_segment(&dir, spare, header, &checkpoint, self.segment_bytes.max(needed))?;
        self.spares.pop();
        self.schemas = self.state.schemas().into_keys().collect();
        self.segment = Segment::new(header, created.path, created.offset);
        (self.file, self.len, self.offset) = (created.file, created.len, created.offset);
        self.next_frame += 1;
        self.durable_frame = self.next_frame - 1;
        self.last = (HEADER, created.crc);
        (self.sealed, self.raw_bytes) = (false, 0);
        let mut segments = self.shared.segments.write().expect("nobody panics while holding the segments");
        segments.push_back(self.segment.clone());
        Ok(())
    }

    /// Gives back what a sealed segment does not use, if it is much.
    fn trim(&mut self) -> Result<()> {
        if self.len - self.offset > self.segment_bytes / 8 {
            self.file.set_len(self.offset).on_disk("trim", &self.segment.path)?;
            self.len = self.offset;
        }
        self.segment.bytes.store(self.len, Ordering::Relaxed);
        Ok(())
    }

    /// Drops old segments, oldest first: those past `retention`, and younger ones while the
    /// journal is larger than it may be. Never one that holds an entry from `needed_from` on; one
    /// from `wanted_from` on only in the second case.
    pub fn retain(&mut self, needed_from: Seq, wanted_from: Seq, now: Micros, retention: Duration) -> Result<Retained> {
        self.usable()?;
        let total = self.shared.log_bytes() + self.shared.spool.bytes();
        let sealed = self.sealed_segments();
        let count = expired(&sealed, total, needed_from, wanted_from, now, retention, self.max_size);
        let mut left = total;
        if count > 0 {
            self.drop_oldest(count)?;
            left = self.shared.log_bytes() + self.shared.spool.bytes();
        }
        let full = left > self.max_size;
        if full {
            self.drop_spares(0)?;
        }
        Ok(Retained { freed: total.saturating_sub(left), full })
    }

    fn sealed_segments(&self) -> Vec<Aged> {
        let segments = self.shared.segments();
        let spooled = |number: u64| self.state.spools.iter().filter(move |(_, segment)| **segment == number);
        segments
            .iter()
            .zip(segments.iter().skip(1))
            .map(|(segment, next)| Aged {
                last_seq: next.header.prev_seq,
                newest: next.header.created_at,
                bytes: segment.bytes.load(Ordering::Relaxed)
                    + spooled(segment.header.number).map(|(id, _)| self.shared.spool.size(*id)).sum::<u64>(),
            })
            .collect()
    }

    fn drop_oldest(&mut self, count: usize) -> Result<()> {
        let dropped: Vec<Arc<Segment>> = {
            let mut segments = self.shared.segments.write().expect("nobody panics while holding the segments");
            segments.drain(..count).collect()
        };
        for segment in dropped {
            let number = segment.header.number;
            let path = segment.path.clone();
            // A reader still in it holds the segment; the file must not be written again then.
            if Arc::into_inner(segment).is_some() && self.spares.len() < SPARES_MAX {
                let spare = self.shared.dir.join(format!("{SPARE}{number}"));
                fs::rename(&path, &spare).on_disk("rename", &path)?;
                self.spares.push(spare);
            } else {
                disk::remove(&path).on_disk("remove", &path)?;
            }
        }
        disk::sync_dir(&self.shared.dir).on_disk("sync", &self.shared.dir)?;
        let oldest = self.shared.segments()[0].header.number;
        // Only now: an entry must never outlive the file that it refers to.
        let spools = self.state.drop_spools_before(oldest);
        self.shared.spool.remove(&spools)?;
        Ok(())
    }

    fn drop_spares(&mut self, keep: usize) -> Result<()> {
        for path in self.spares.drain(keep.min(self.spares.len())..) {
            disk::remove(&path).on_disk("remove", &path)?;
        }
        Ok(())
    }

    fn usable(&self) -> Result<()> {
        match self.failed {
            false => Ok(()),
            true => Err(Error::stop("the journal is closed after a failed sync", "check the disk, then start again")),
        }
    }

    /// Syncs and ends in order.
    pub fn close(mut self) -> Result<Seq> {
        self.sync()
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// As after a kill: nothing more is written.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self.failed = true;
    }
}

impl Drop for Writer {
    /// The last frames of an agent that ends in order are covered by one more, so that their
    /// damage cannot be mistaken for a torn write.
    fn drop(&mut self) {
        let unsynced = !self.pending.is_empty() || !self.block.is_empty();
        if self.failed || unsynced || self.sealed || self.offset + RESERVE / 2 > self.len {
            return;
        }
        self.put(Kind::Close, self.head, &[]);
        if let Err(error) = self.sync() {
            tracing::warn!(error = %error.full(), "journal not closed in order");
        }
    }
}

const SPARE: &str = "spare-";

pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with(SPARE)
}

fn frame_size(payload: usize) -> u64 {
    padded(FRAME + payload) as u64
}

pub(super) struct Created {
    path: PathBuf,
    file: File,
    len: u64,
    offset: u64,
    /// Of its checkpoint frame.
    crc: u32,
}

/// A segment gets its name when its header and checkpoint are on disk.
pub(super) fn create_segment(
    dir: &Path,
    spare: Option<PathBuf>,
    header: Header,
    checkpoint: &[u8],
    len: u64,
) -> Result<Created> {
    let (path, fresh) = (dir.join(file_name(header.number)), spare.is_none());
    let draft = spare.unwrap_or_else(|| dir.join(format!("{SPARE}new")));
    let mut bytes = header.encode().to_vec();
    let spec = FrameSpec {
        kind: Kind::Checkpoint,
        number: header.first_frame,
        durable: header.first_frame - 1,
        prev_seq: header.prev_seq,
        last_seq: header.prev_seq,
    };
    let crc = put_frame(&mut bytes, spec, checkpoint, header.key(), true);
    let write = || {
        let file = disk::open_rw(&draft)?;
        disk::preallocate(&file, len.max(bytes.len() as u64 + RESERVE))?;
        disk::write_all_at(&file, &bytes, 0)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        disk::sync_dir(dir)?;
        Ok(file)
    };
    let file = write().inspect_err(|_: &std::io::Error| {
        if fresh {
            let _ = disk::remove(&draft);
        }
    });
    let file = file.on_disk("create journal segment", &path)?;
    let len = file.metadata().on_disk("read", &path)?.len();
    Ok(Created { path, file, len, offset: bytes.len() as u64, crc })
}
