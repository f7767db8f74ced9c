//! Follows the journal from any seq on, beside the writer.
//!
//! A reader owns its file descriptor and its place. It reads up to the durable end and no
//! further, so it needs no lock against the writer; dropping a segment that it is in leaves
//! its file alone.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::codec::{Decoder, Malformed, Names};
use super::disk::OnDisk;
use super::segment::{Bad, Cursor, FrameHead, HEADER, Kind, damaged_entry};
use super::state::State;
use super::{Mark, Place, Segment, Shared, Tip, too_old};
use crate::change::Record;
use crate::error::Result;
use crate::position::Seq;

/// Yields durable records in order, and `None` when it has caught up.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    cursor: Cursor,
    /// Of the next frame.
    offset: u64,
    number: u64,
    /// The seal was read: the next frame is in the next segment.
    sealed: bool,
    from: Seq,
    /// The last entry before what comes next.
    seq: Seq,
    frame: Bytes,
    frame_offset: u64,
    place: Place,
    at: usize,
    names: Names,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: Seq) -> Result<Reader> {
        let from = from.max(1);
        let segments = shared.segments();
        // The segment with the entry before `from`: what stands behind that entry counts too.
        let after = segments.partition_point(|segment| segment.header.prev_seq + 1 < from);
        let segment = segments[after.saturating_sub(1)].clone();
        if segment.header.prev_seq >= from {
            return Err(too_old(from, segment.header.prev_seq + 1));
        }
        // Opened while the list is held, so that it cannot be dropped in between.
        let file = segment.open()?;
        drop(segments);
        let start = Mark { prev_seq: segment.header.prev_seq, offset: HEADER, number: segment.header.first_frame };
        let mark = segment.mark_before(from - 1).unwrap_or(start);
        Ok(Reader::begin(shared, segment, file, mark, from))
    }

    pub(super) fn at(shared: Arc<Shared>, place: Place, from: Seq) -> Result<Reader> {
        let segments = shared.segments();
        let found = segments.iter().find(|segment| segment.header.number == place.segment).cloned();
        let oldest = segments.front().map_or(0, |segment| segment.header.prev_seq) + 1;
        let segment = found.ok_or_else(|| too_old(from, oldest))?;
        let file = segment.open()?;
        drop(segments);
        let mark = Mark { prev_seq: place.prev_seq, offset: place.offset, number: place.number };
        Ok(Reader::begin(shared, segment, file, mark, from))
    }

    pub(super) fn behind(shared: Arc<Shared>, tip: &Tip) -> Result<Option<Reader>> {
        let segments = shared.segments();
        let found = segments.iter().find(|segment| segment.header.number == tip.segment).cloned();
        let Some(segment) = found else { return Ok(None) };
        let file = segment.open()?;
        drop(segments);
        let end = segment.end.load(Ordering::Acquire);
        let mut cursor = Cursor::new(file, segment.key());
        let frame = cursor.frame(tip.offset, end).on_disk("read", &segment.path)?;
        let Some((head, _)) = frame.ok().filter(|(head, _)| head.crc == tip.crc && head.last_seq == tip.seq) else {
            return Ok(None);
        };
        // A seal is read: it says where to go on.
        let (offset, number) = match head.kind {
            Kind::Seal => (tip.offset, head.number),
            _ => (tip.offset + head.size(), head.number + 1),
        };
        let mark = Mark { prev_seq: tip.seq, offset, number };
        Ok(Some(Reader::begin(shared, segment, cursor.file, mark, tip.seq + 1)))
    }

    fn begin(shared: Arc<Shared>, segment: Arc<Segment>, file: File, mark: Mark, from: Seq) -> Reader {
        Reader {
            cursor: Cursor::new(file, segment.key()),
            offset: mark.offset,
            number: mark.number,
            seq: mark.prev_seq,
            shared,
            segment,
            sealed: false,
            from,
            frame: Bytes::new(),
            frame_offset: 0,
            place: Place { segment: 0, offset: 0, number: 0, prev_seq: 0 },
            at: 0,
            names: Names::default(),
        }
    }

    /// Of the frame that holds the record read last.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The last entry that was passed: what comes next is behind it.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    #[expect(clippy::should_implement_trait, reason = "fallible, and goes on after None: not an iterator")]
    pub fn next(&mut self) -> Result<Option<Record>> {
        loop {
            while self.at < self.frame.len() {
                if let Some(record) = self.next_in_frame()? {
                    return Ok(Some(record));
                }
            }
            if !self.next_frame()? {
                return Ok(None);
            }
        }
    }

    /// `None` for a record before the wanted ones.
    fn next_in_frame(&mut self) -> Result<Option<Record>> {
        loop {
            let shared = self.shared.clone();
            let known = |id| shared.schema(id);
            let mut decoder = Decoder::new(&self.frame, self.at, &mut self.names, &known);
            let is_entry = decoder.is_entry();
            let seq = self.seq + u64::from(is_entry);
            if seq + u64::from(!is_entry) < self.from {
                let len = decoder.record_len();
                self.at += len.map_err(|malformed| self.malformed(malformed))?;
                self.seq = seq;
                return Ok(None);
            }
            match decoder.record(seq) {
                Ok(record) => {
                    self.at = decoder.at();
                    self.seq = seq;
                    return Ok(Some(record));
                }
                Err(Malformed::Schema(id)) => self.find_schema(id)?,
                Err(malformed) => return Err(self.malformed(malformed)),
            }
        }
    }

    /// Loads the next frame that has something wanted in it; false when caught up.
    fn next_frame(&mut self) -> Result<bool> {
        loop {
            if self.sealed && !self.next_segment()? {
                return Ok(false);
            }
            let end = self.segment.end.load(Ordering::Acquire);
            if self.offset >= end {
                return Ok(false);
            }
            let head = self.cursor.head(self.offset, end).on_disk("read", &self.segment.path)?;
            let head = head.map_err(|bad| self.bad(bad))?;
            if head.number != self.number || head.prev_seq != self.seq {
                // Most likely its own header is what flipped.
                let frame = self.cursor.frame(self.offset, end).on_disk("read", &self.segment.path)?;
                return Err(self.bad(frame.err().unwrap_or(Bad::Order)));
            }
            if self.take_frame(head, end)? {
                return Ok(true);
            }
        }
    }

    /// Passes the frame at hand; true if its records are to be read.
    fn take_frame(&mut self, head: FrameHead, end: u64) -> Result<bool> {
        let skip = head.kind == Kind::Records && head.last_seq + 1 < self.from;
        self.segment.mark(Mark { prev_seq: self.seq, offset: self.offset, number: self.number });
        if !skip {
            let frame = self.cursor.frame(self.offset, end).on_disk("read", &self.segment.path)?;
            let (_, payload) = frame.map_err(|bad| self.bad(bad))?;
            match head.kind {
                Kind::Records => {
                    (self.frame, self.at, self.frame_offset) = (payload, 0, self.offset);
                    let segment = self.segment.header.number;
                    self.place = Place { segment, offset: self.offset, number: self.number, prev_seq: self.seq };
                }
                Kind::Schema | Kind::Checkpoint => self.learn(head.kind, &payload)?,
                Kind::Seal => self.sealed = true,
                Kind::Close => {}
            }
        } else {
            self.seq = head.last_seq;
        }
        self.offset += head.size();
        self.number += 1;
        Ok(!skip && head.kind == Kind::Records)
    }

    fn next_segment(&mut self) -> Result<bool> {
        let wanted = self.segment.header.number + 1;
        let segments = self.shared.segments();
        let Some(first) = segments.front().map(|segment| segment.header.number) else { return Ok(false) };
        if wanted < first {
            return Err(too_old(self.seq + 1, segments[0].header.prev_seq + 1));
        }
        let Some(segment) = segments.get((wanted - first) as usize).cloned() else { return Ok(false) };
        let file = segment.open()?;
        drop(segments);
        self.cursor = Cursor::new(file, segment.key());
        self.segment = segment;
        self.offset = HEADER;
        self.sealed = false;
        Ok(true)
    }

    fn learn(&self, kind: Kind, payload: &Bytes) -> Result<()> {
        let schemas = schemas_in(kind, payload).map_err(|malformed| self.malformed(malformed))?;
        schemas.into_iter().for_each(|schema| self.shared.learn_schema(schema));
        Ok(())
    }

    /// A reader that began in the middle of a segment has passed over its schemas.
    fn find_schema(&mut self, id: u64) -> Result<()> {
        let end = self.segment.end.load(Ordering::Acquire);
        let (mut offset, path) = (HEADER, self.segment.path.clone());
        while offset < self.offset {
            let head = self.cursor.head(offset, end).on_disk("read", &path)?.map_err(|bad| self.bad(bad))?;
            if matches!(head.kind, Kind::Schema | Kind::Checkpoint) {
                let frame = self.cursor.frame(offset, end).on_disk("read", &path)?;
                self.learn(head.kind, &frame.map_err(|bad| self.bad(bad))?.1)?;
            }
            offset += head.size();
        }
        match self.shared.schema(id) {
            Some(_) => Ok(()),
            None => Err(self.malformed(Malformed::Content("names a schema that its segment does not hold"))),
        }
    }

    fn bad(&self, bad: Bad) -> crate::error::Error {
        damaged_entry(&self.segment.path, self.offset, self.seq + 1, bad.text())
    }

    fn malformed(&self, malformed: Malformed) -> crate::error::Error {
        let text = match malformed {
            Malformed::Schema(id) => format!("schema {id:016x} is missing"),
            Malformed::Content(what) => format!("the record {what}"),
        };
        damaged_entry(&self.segment.path, self.frame_offset, self.seq + 1, &text)
    }
}

/// The schemas in a schema or checkpoint frame.
pub(super) fn schemas_in(
    kind: Kind,
    payload: &Bytes,
) -> std::result::Result<Vec<Arc<crate::schema::Schema>>, Malformed> {
    match kind {
        Kind::Checkpoint => Ok(State::decode(payload)?.1.into_values().collect()),
        _ => Ok(vec![Decoder::new(payload, 0, &mut Names::default(), &|_| None).schema()?]),
    }
}
