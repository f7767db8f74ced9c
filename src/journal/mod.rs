//! The journal: one durable, total order of everything that was admitted.
//!
//! It is store-and-forward, audit trail and conflict window in one. What it promises:
//!
//! - What `sync` returned for is there after a kill, a power cut or a restart, whole and in
//!   order; readers never see what was not synced (no loss).
//! - Flipped bits are an error that names the place. Only the unacknowledged end of the last
//!   segment is ever cut.
//! - A restart reads one segment, whatever the retention: each begins with a checkpoint of the
//!   source positions and of what is still held.
//! - Retention drops whole segments, and none that somebody still needs.
//!
//! ```text
//! arbiter ─append, sync─▶ Writer ──▶ 000000000007.seg  000000000008.seg  spool/41
//!                           │             ▲ pread up to the durable end      ▲
//!                           └─durable()─▶ Reader (one per target, history)   └ large bodies
//! ```
//!
//! The directory belongs to one process at a time (LOCK). Stages know [`Writer`], [`Journal`],
//! [`Reader`] and [`Spool`], nothing of the files behind them.

mod codec;
mod disk;
mod loose;
mod open;
mod reader;
mod retention;
mod segment;
mod spool;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::change::{Entry, Micros, Record, SpoolRef};
use crate::error::{Error, Result};
use crate::position::Seq;
use crate::schema::Schema;
use disk::OnDisk;
use segment::{Header, Key};

pub use loose::{pack, unpack};
pub use open::{Recovered, Torn, open};
pub use reader::Reader;
pub use retention::Retained;
pub use spool::{Spool, SpoolReader, SpoolWriter};
pub use state::PositionRecord;
pub use writer::Writer;

#[derive(Debug, Clone)]
pub struct Options {
    /// `data_dir/journal`: created where absent, mode 0700.
    pub dir: PathBuf,
    /// Above this, what nobody needs goes before its time, and then capture pauses.
    pub max_size: u64,
    /// Size of a segment: the grain of retention.
    pub segment_bytes: u64,
    /// lz4, where it helps.
    pub compress: bool,
}

impl Options {
    /// Segments of 64 MiB, less where the whole may not be much larger than that.
    pub fn new(dir: impl Into<PathBuf>, max_size: u64) -> Self {
        let segment_bytes = (max_size / 16).clamp(1 << 20, 64 << 20);
        Options { dir: dir.into(), max_size, segment_bytes, compress: true }
    }
}

/// The reading side: cheap to clone, used by any number of followers beside the writer.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

/// What writer and readers share.
#[derive(Debug)]
struct Shared {
    id: u128,
    dir: PathBuf,
    /// Oldest first; the last is the one being written.
    segments: RwLock<VecDeque<Arc<Segment>>>,
    /// Every schema met so far, so that equal schemas are one allocation.
    schemas: RwLock<HashMap<u64, Arc<Schema>>>,
    durable: watch::Sender<Seq>,
    spool: Spool,
}

/// One file of the log. A reader inside keeps it from being used again.
#[derive(Debug)]
struct Segment {
    header: Header,
    path: PathBuf,
    /// Readers stop here (or at the seal): what is behind is not durable.
    end: AtomicU64,
    /// What it takes on disk; of the active one, what is written.
    bytes: AtomicU64,
    /// Sparse: where to begin looking for a seq. In order.
    marks: Mutex<Vec<Mark>>,
}

/// A frame, and the last entry before it.
#[derive(Debug, Clone, Copy)]
struct Mark {
    prev_seq: Seq,
    offset: u64,
    number: u64,
}

/// Where a frame of records stands, for whoever wants to come back to it without looking for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub segment: u64,
    pub offset: u64,
    pub number: u64,
    /// The last entry before the frame.
    pub prev_seq: Seq,
}

/// The last frame of what was durable at one moment: what covers the journal up to there names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    pub segment: u64,
    pub offset: u64,
    pub crc: u32,
    /// The last entry.
    pub seq: Seq,
}

/// Distance of two marks.
const MARK_EVERY: u64 = 256 << 10;

impl Segment {
    fn new(header: Header, path: PathBuf, end: u64) -> Arc<Self> {
        let (end, bytes) = (AtomicU64::new(end), AtomicU64::new(end));
        Arc::new(Segment { header, path, end, bytes, marks: Mutex::default() })
    }

    fn key(&self) -> Key {
        self.header.key()
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).on_disk("open", &self.path)
    }

    fn mark(&self, mark: Mark) {
        let mut marks = self.marks.lock().expect("nobody panics while holding the marks");
        if marks.last().map_or(segment::HEADER, |last| last.offset) + MARK_EVERY <= mark.offset {
            marks.push(mark);
        }
    }

    /// The last mark from which entry `seq` is still ahead.
    fn mark_before(&self, seq: Seq) -> Option<Mark> {
        let marks = self.marks.lock().expect("nobody panics while holding the marks");
        let behind = marks.partition_point(|mark| mark.prev_seq < seq);
        behind.checked_sub(1).map(|i| marks[i])
    }
}

impl Shared {
    fn segments(&self) -> std::sync::RwLockReadGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.read().expect("nobody panics while holding the segments")
    }

    fn schema(&self, id: u64) -> Option<Arc<Schema>> {
        self.schemas.read().expect("nobody panics while holding the schemas").get(&id).cloned()
    }

    fn learn_schema(&self, schema: Arc<Schema>) {
        self.schemas.write().expect("nobody panics while holding the schemas").entry(schema.id).or_insert(schema);
    }

    fn log_bytes(&self) -> u64 {
        self.segments().iter().map(|s| s.bytes.load(Ordering::Relaxed)).sum()
    }
}

impl Journal {
    /// Identity of this journal: markers name it, so that the seqs of another are not mistaken.
    pub fn id(&self) -> u128 {
        self.0.id
    }

    /// Whether both read what one writer writes; one that was opened anew is another.
    pub fn is(&self, other: &Journal) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The last durable entry; 0 before the first.
    pub fn head(&self) -> Seq {
        *self.0.durable.borrow()
    }

    /// Follows the head. Also wakes when records other than entries (quarantine, release)
    /// became durable and the head did not move.
    pub fn durable(&self) -> watch::Receiver<Seq> {
        self.0.durable.subscribe()
    }

    /// The oldest entry that is still here; `head() + 1` if there is none.
    pub fn oldest(&self) -> Seq {
        self.0.segments().front().map_or(0, |segment| segment.header.prev_seq) + 1
    }

    /// Reads from entry `from` on, and what was written between it and the entry before.
    pub fn reader(&self, from: Seq) -> Result<Reader> {
        Reader::new(self.0.clone(), from)
    }

    /// The same, from a place before it that was noted when it was passed.
    pub fn reader_at(&self, place: Place, from: Seq) -> Result<Reader> {
        Reader::at(self.0.clone(), place, from)
    }

    /// Everything behind a tip. `None`: the journal has no such frame, because it does not reach back or
    /// forward to it, or because it is another one by now.
    pub fn reader_behind(&self, tip: &Tip) -> Result<Option<Reader>> {
        Reader::behind(self.0.clone(), tip)
    }

    /// One entry; `None` if the journal does not reach back or forward to it.
    pub fn entry(&self, seq: Seq) -> Result<Option<Entry>> {
        if seq == 0 || seq > self.head() || seq < self.oldest() {
            return Ok(None);
        }
        let mut reader = match self.reader(seq) {
            Err(_) if seq < self.oldest() => return Ok(None),
            reader => reader?,
        };
        loop {
            match reader.next()? {
                Some(Record::Entry(entry)) => return Ok(Some(entry)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// What it takes on disk: log and spool.
    pub fn bytes(&self) -> u64 {
        self.0.log_bytes() + self.0.spool.bytes()
    }

    pub fn spool(&self) -> Spool {
        self.0.spool.clone()
    }

    /// The chunks of a spooled body.
    pub fn spool_chunks(&self, spool: &SpoolRef) -> Result<SpoolReader> {
        self.0.spool.read(spool)
    }
}

fn now() -> Micros {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as Micros)
}

fn too_old(from: Seq, oldest: Seq) -> Error {
    Error::stop(
        format!("the journal no longer holds entry {from}; it begins at {oldest}"),
        "copy the rows anew: anechoic load --resync SYSTEM",
    )
}
