//! Opening a journal: the lock, the list of segments, and what the last of them says.
//!
//! A crash leaves at most an unacknowledged end behind. It is cut and overwritten with zeros,
//! lest a later, shorter write leave its rest standing as if it belonged there.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::codec::{Decoder, Malformed, Names};
use super::disk::{self, OnDisk};
use super::reader::schemas_in;
use super::segment::{self, Bad, Cursor, HEADER, Header, Kind, damaged, damaged_entry};
use super::spool::Spool;
use super::state::{PositionRecord, State};
use super::writer::{self, Writer};
use super::{Journal, Mark, Options, Segment, Shared, now};
use crate::change::{Conflicted, LoadMark, Prepared, Quarantined, ResyncMark};
use crate::error::{Error, Result};
use crate::position::Seq;
use crate::schema::Schema;

/// What the journal knew when it was opened.
#[derive(Debug, Clone)]
pub struct Recovered {
    pub id: u128,
    /// There was none before.
    pub created: bool,
    pub head: Seq,
    /// Per system, from its last position record or entry.
    pub positions: BTreeMap<Arc<str>, PositionRecord>,
    /// The live ones: the last of each system and key, unless released.
    pub quarantined: Vec<Quarantined>,
    /// Transactions that their systems have prepared and not yet decided.
    pub prepared: Vec<Prepared>,
    /// The newest mark of each entity and system that is, or was, loaded.
    pub loads: Vec<LoadMark>,
    /// Systems without a log position, or that are being compared behind a new one.
    pub resyncs: Vec<ResyncMark>,
    /// Those that wait for a person.
    pub conflicts: Vec<Conflicted>,
    /// Changes quarantined at capture, ever.
    pub refused: u64,
    pub torn: Option<Torn>,
}

/// The unacknowledged end of a write that a crash cut short. It is gone now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    pub file: PathBuf,
    pub offset: u64,
}

/// Opens the journal, or creates it in an empty directory. One process at a time.
pub fn open(options: &Options) -> Result<(Writer, Journal, Recovered)> {
    let dir = &options.dir;
    disk::create_dir(dir).on_disk("create", dir)?;
    let lock = lock(dir)?;
    let files = list(dir)?;
    let created = files.segments.is_empty();
    if created {
        let header = Header { journal: rand::random(), number: 1, prev_seq: 0, first_frame: 1, created_at: now() };
        let state = State::default();
        writer::create_segment(dir, None, header, &state.encode(), options.segment_bytes)?;
    }
    let paths = if created { list(dir)?.segments } else { files.segments };
    let segments = read_headers(paths)?;
    let last = segments.back().expect("there is at least the one just created").clone();
    let file = disk::open_rw(&last.path).on_disk("open", &last.path)?;
    let mut tail = recover(&last, &file)?;

    tail.state.drop_spools_before(segments[0].header.number);
    let spool = Spool::open(dir.join("spool"), options.compress, &tail.state.live_spools())?;
    disk::sync_dir(dir).on_disk("sync", dir)?;
    let id = last.header.journal;
    let recovered = Recovered {
        id,
        created,
        head: tail.head,
        positions: tail.state.positions.clone(),
        quarantined: tail.state.quarantined().cloned().collect(),
        prepared: tail.state.prepared().cloned().collect(),
        loads: tail.state.loads().cloned().collect(),
        resyncs: tail.state.resyncs().cloned().collect(),
        conflicts: tail.state.conflicts().cloned().collect(),
        refused: tail.state.refused,
        torn: tail.torn.clone(),
    };
    let shared = Arc::new(Shared {
        id,
        dir: dir.clone(),
        segments: RwLock::new(segments),
        schemas: RwLock::new(tail.schemas.iter().map(|(id, schema)| (*id, schema.clone())).collect()),
        durable: watch::Sender::new(tail.head),
        spool,
    });
    let writer = Writer::new(shared.clone(), options, lock, file, files.spares, tail)?;
    Ok((writer, Journal(shared), recovered))
}

/// A command that looks into the journal of an agent that does not run holds it for a moment, which
/// must not keep that agent from starting.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// One process at a time. Released in so many words: a process forked in the meantime may
/// still share the open file.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "journal lock not released");
        }
    }
}

fn lock(dir: &Path) -> Result<Lock> {
    let path = dir.join("LOCK");
    let mut file = disk::open_rw(&path).on_disk("open", &path)?;
    let began = Instant::now();
    let mut tried = file.try_lock();
    while matches!(tried, Err(TryLockError::WouldBlock)) && began.elapsed() < LOCK_WAIT {
        std::thread::sleep(Duration::from_millis(10));
        tried = file.try_lock();
    }
    match tried {
        Ok(()) => {
            file.set_len(0).on_disk("write", &path)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes()).on_disk("write", &path)?;
            Ok(Lock(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).on_disk("read", &path)?;
            let holder = holder.trim();
            Err(Error::stop(
                format!("the journal in {} is in use by process {holder}", dir.display()),
                "let that agent do it (commands find it by its control socket), or stop it first",
            ))
        }
        Err(TryLockError::Error(error)) => Err(error).on_disk("lock", &path),
    }
}

struct Files {
    segments: BTreeMap<u64, PathBuf>,
    spares: Vec<PathBuf>,
}

fn list(dir: &Path) -> Result<Files> {
    let mut files = Files { segments: BTreeMap::new(), spares: Vec::new() };
    for entry in fs::read_dir(dir).on_disk("read", dir)? {
        let path = entry.on_disk("read", dir)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) = segment::file_number(name) {
            files.segments.insert(number, path);
        } else if writer::is_spare(name) {
            files.spares.push(path);
        }
    }
    Ok(files)
}

/// All segments in order, checked to be one chain of one journal.
fn read_headers(paths: BTreeMap<u64, PathBuf>) -> Result<VecDeque<Arc<Segment>>> {
    let mut segments: VecDeque<Arc<Segment>> = VecDeque::new();
    for (number, path) in paths {
        let file = File::open(&path).on_disk("open", &path)?;
        let header = Header::read(&file, &path)?;
        if header.number != number {
            return Err(damaged(&path, 0, &format!("it is segment {}", header.number)));
        }
        if let Some(previous) = segments.back().map(|segment| segment.header) {
            if header.journal != previous.journal {
                return Err(damaged(&path, 0, "it belongs to another journal"));
            }
            if previous.number + 1 != number || header.prev_seq < previous.prev_seq {
                let lost = format!("segment {} is missing before it", previous.number + 1);
                return Err(damaged(&path, 0, &lost));
            }
        }
        let len = file.metadata().on_disk("read", &path)?.len();
        segments.push_back(Segment::new(header, path, len));
    }
    Ok(segments)
}

/// Where the last segment ends, and what is known there.
pub(super) struct Tail {
    pub state: State,
    pub schemas: BTreeMap<u64, Arc<Schema>>,
    pub head: Seq,
    pub offset: u64,
    /// Of the last frame, with its checksum.
    pub last: (u64, u32),
    pub len: u64,
    pub next_frame: u64,
    pub sealed: bool,
    pub raw_bytes: u64,
    pub torn: Option<Torn>,
}

fn recover(segment: &Arc<Segment>, file: &File) -> Result<Tail> {
    let path = &segment.path;
    let len = file.metadata().on_disk("read", path)?.len();
    let mut cursor = Cursor::new(file.try_clone().on_disk("open", path)?, segment.key());
    let mut tail = Tail {
        state: State::default(),
        schemas: BTreeMap::new(),
        head: segment.header.prev_seq,
        offset: HEADER,
        last: (HEADER, 0),
        len,
        next_frame: segment.header.first_frame,
        sealed: false,
        raw_bytes: 0,
        torn: None,
    };
    let bad = loop {
        match cursor.frame(tail.offset, len).on_disk("read", path)? {
            Err(bad) => break bad,
            Ok((head, _)) if head.number != tail.next_frame || head.prev_seq != tail.head => break Bad::Order,
            Ok((head, payload)) => {
                let mark = Mark { prev_seq: tail.head, offset: tail.offset, number: tail.next_frame };
                take_frame(&mut tail, head.kind, &payload, segment)
                    .map_err(|what| damaged_entry(path, tail.offset, tail.head + 1, &what))?;
                segment.mark(mark);
                tail.head = head.last_seq;
                tail.last = (tail.offset, head.crc);
                tail.offset += head.size();
                tail.next_frame += 1;
            }
        }
    };
    if tail.next_frame == segment.header.first_frame {
        return Err(damaged(path, HEADER, "its checkpoint cannot be read"));
    }
    if !tail.sealed {
        cut(&mut tail, &mut cursor, path, bad)?;
    }
    // Found here means written, not synced: the kill may have come in between.
    disk::sync_data(file).on_disk("sync", path)?;
    segment.end.store(tail.offset, std::sync::atomic::Ordering::Release);
    segment.bytes.store(tail.offset, std::sync::atomic::Ordering::Relaxed);
    Ok(tail)
}

fn take_frame(tail: &mut Tail, kind: Kind, payload: &Bytes, segment: &Segment) -> std::result::Result<(), String> {
    let failed = |malformed| match malformed {
        Malformed::Schema(id) => format!("schema {id:016x} is missing"),
        Malformed::Content(what) => format!("the record {what}"),
    };
    match kind {
        Kind::Checkpoint => (tail.state, tail.schemas) = State::decode(payload).map_err(failed)?,
        Kind::Schema => {
            let schemas = schemas_in(kind, payload).map_err(failed)?;
            tail.schemas.extend(schemas.into_iter().map(|schema| (schema.id, schema)));
        }
        Kind::Seal => tail.sealed = true,
        Kind::Close => {}
        Kind::Records => {
            tail.raw_bytes += payload.len() as u64;
            let (mut at, mut seq) = (0, tail.head);
            let (mut names, schemas) = (Names::default(), &tail.schemas);
            let known = |id| schemas.get(&id).cloned();
            while at < payload.len() {
                let mut decoder = Decoder::new(payload, at, &mut names, &known);
                seq += u64::from(decoder.is_entry());
                let record = decoder.record(seq).map_err(failed)?;
                at = decoder.at();
                tail.state.apply(&record, segment.header.number);
            }
        }
    }
    Ok(())
}

/// Decides what the bytes behind the last good frame are, and makes them zeros.
fn cut(tail: &mut Tail, cursor: &mut Cursor, path: &Path, bad: Bad) -> Result<()> {
    let behind = cursor.search(tail.offset, tail.len).on_disk("read", path)?;
    if behind.durable >= tail.next_frame {
        return Err(damaged_entry(path, tail.offset, tail.head + 1, bad.text()));
    }
    if behind.clean {
        return Ok(());
    }
    if behind.frames > 0 || bad != Bad::Missing {
        tail.torn = Some(Torn { file: path.to_owned(), offset: tail.offset });
        tracing::warn!(path = %path.display(), offset = tail.offset, "unacknowledged end of the journal cut");
    }
    disk::zero(&cursor.file, tail.offset, tail.len).on_disk("write", path)?;
    disk::sync_data(&cursor.file).on_disk("sync", path)
}
