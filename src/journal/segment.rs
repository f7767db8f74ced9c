//! Segments and frames: what the journal's bytes on disk mean.
//!
//! ```text
//! segment = header (64 bytes), checkpoint frame, frame*, seal frame, unused space
//! frame   = header (56 bytes), payload, padding to 8 bytes
//! ```
//!
//! Header and checkpoint are on disk before the file gets its name, and a segment is sealed
//! before the next one appears. So only frames behind the checkpoint of the last segment can
//! be torn. Files are used again: the checksum is seeded with the segment's number, so that
//! frames of a file's earlier life are not taken for frames of this one.
//!
//! Frames carry `durable`, the last frame known to be synced when this one was written. A bad
//! frame before one that calls it durable is damage; any other bad frame at the end is what
//! a crash left of a write that nobody was told of.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::disk::OnDisk;
use crate::change::Micros;
use crate::error::{Error, Result};
use crate::marker::FORMAT;
use crate::position::Seq;

pub const HEADER: u64 = 64;
pub const FRAME: usize = 56;
/// Of one payload, stored or decompressed.
pub const PAYLOAD_MAX: usize = 1 << 30;
const HEADER_MAGIC: [u8; 8] = *b"anechoic";
const FRAME_MAGIC: u32 = 0x6d72_6661;
/// How much a cursor reads ahead.
const WINDOW: usize = 128 << 10;
static UNUSED: [u8; WINDOW] = [0; WINDOW];
/// Smaller payloads do not repay the decompression.
const COMPRESS_FROM: usize = 256;

pub fn file_name(number: u64) -> String {
    format!("{number:012}.seg")
}

pub fn file_number(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok()
}

/// The first 64 bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub journal: u128,
    pub number: u64,
    /// The last entry before this segment.
    pub prev_seq: Seq,
    /// The number of its checkpoint frame.
    pub first_frame: u64,
    pub created_at: Micros,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER as usize] {
        let mut out = [0; HEADER as usize];
        out[..8].copy_from_slice(&HEADER_MAGIC);
        out[12..14].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..32].copy_from_slice(&self.journal.to_le_bytes());
        out[32..40].copy_from_slice(&self.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.prev_seq.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_frame.to_le_bytes());
        out[56..64].copy_from_slice(&self.created_at.to_le_bytes());
        let crc = crc32fast::hash(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn read(file: &File, path: &Path) -> Result<Header> {
        let mut bytes = [0; HEADER as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(path, 0, "its header is cut short"));
            }
            done => done.on_disk("read", path)?,
        }
        if bytes[..8] != HEADER_MAGIC || u32_at(&bytes, 8) != crc32fast::hash(&bytes[12..]) {
            return Err(damaged(path, 0, "its header fails its checksum"));
        }
        let format = u16::from_le_bytes([bytes[12], bytes[13]]);
        if format != FORMAT {
            return Err(Error::stop(
                format!("journal segment {} is of format {format}, this version reads {FORMAT}", path.display()),
                "run the version of anechoic that wrote it",
            ));
        }
        Ok(Header {
            journal: u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")),
            number: u64_at(&bytes, 32),
            prev_seq: u64_at(&bytes, 40),
            first_frame: u64_at(&bytes, 48),
            created_at: u64_at(&bytes, 56) as i64,
        })
    }

    pub fn key(&self) -> Key {
        Key { segment: self.number as u32, seed: self.number as u32 ^ self.journal as u32 }
    }
}

/// What tells the frames of a segment from all others.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    segment: u32,
    seed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Records = 1,
    /// One schema that the records behind it need.
    Schema = 2,
    /// What is live at the start of the segment; the first frame, and only that.
    Checkpoint = 3,
    /// The last frame of a segment: the journal goes on in the next one.
    Seal = 4,
    /// Written when the agent ends in order: what stands before it was durable.
    Close = 5,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    pub kind: Kind,
    pub number: u64,
    /// The last frame known to be on disk when this one was written.
    pub durable: u64,
    /// The last entry before this frame, and the last one in it.
    pub prev_seq: Seq,
    pub last_seq: Seq,
    pub crc: u32,
    len: u32,
    raw_len: u32,
    lz4: bool,
}

/// Why bytes are not the frame that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// No frame of this segment begins here.
    Missing,
    Checksum,
    /// A frame, but not the next one.
    Order,
    Compression,
}

impl Bad {
    pub fn text(self) -> &'static str {
        match self {
            Bad::Missing => "no frame begins where one should",
            Bad::Checksum => "the frame fails its checksum",
            Bad::Order => "the frame is not the one that should follow",
            Bad::Compression => "the frame cannot be decompressed",
        }
    }
}

impl FrameHead {
    /// On disk, padding included.
    pub fn size(&self) -> u64 {
        padded(FRAME + self.len as usize) as u64
    }

    pub fn parse(bytes: &[u8], key: Key) -> Option<FrameHead> {
        if u32_at(bytes, 4) != FRAME_MAGIC || u32_at(bytes, 20) != key.segment {
            return None;
        }
        Some(FrameHead {
            crc: u32_at(bytes, 0),
            len: u32_at(bytes, 8),
            raw_len: u32_at(bytes, 12),
            kind: match bytes[16] {
                1 => Kind::Records,
                2 => Kind::Schema,
                3 => Kind::Checkpoint,
                4 => Kind::Seal,
                5 => Kind::Close,
                _ => return None,
            },
            lz4: bytes[17] != 0,
            number: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            prev_seq: u64_at(bytes, 40),
            last_seq: u64_at(bytes, 48),
        })
    }

    fn verify(&self, frame: &[u8], key: Key) -> bool {
        checksum(&frame[4..FRAME + self.len as usize], key) == self.crc
    }
}

fn checksum(bytes: &[u8], key: Key) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(key.seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// What a writer says of a frame; lengths and checksum follow from the payload.
#[derive(Debug, Clone, Copy)]
pub struct FrameSpec {
    pub kind: Kind,
    pub number: u64,
    pub durable: u64,
    pub prev_seq: Seq,
    pub last_seq: Seq,
}

/// Appends a frame to `out`, compressed where that saves an eighth or more. Returns its checksum.
pub fn put_frame(out: &mut Vec<u8>, spec: FrameSpec, payload: &[u8], key: Key, compress: bool) -> u32 {
    let start = out.len();
    out.resize(start + FRAME, 0);
    let lz4 = compress && payload.len() > COMPRESS_FROM && put_compressed(out, payload);
    if !lz4 {
        out.extend_from_slice(payload);
    }
    let end = out.len();
    let head = &mut out[start..start + FRAME];
    head[4..8].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    head[8..12].copy_from_slice(&((end - start - FRAME) as u32).to_le_bytes());
    head[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[16] = spec.kind as u8;
    head[17] = u8::from(lz4);
    head[20..24].copy_from_slice(&key.segment.to_le_bytes());
    head[24..32].copy_from_slice(&spec.number.to_le_bytes());
    head[32..40].copy_from_slice(&spec.durable.to_le_bytes());
    head[40..48].copy_from_slice(&spec.prev_seq.to_le_bytes());
    head[48..56].copy_from_slice(&spec.last_seq.to_le_bytes());
    let crc = checksum(&out[start + 4..end], key);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + padded(end - start), 0);
    crc
}

/// False, and nothing appended, where compression does not pay.
pub fn put_compressed(out: &mut Vec<u8>, payload: &[u8]) -> bool {
    let start = out.len();
    out.resize(start + lz4_flex::block::get_maximum_output_size(payload.len()), 0);
    let len = lz4_flex::block::compress_into(payload, &mut out[start..]).unwrap_or(usize::MAX);
    let pays = len < payload.len() - payload.len() / 8;
    out.truncate(if pays { start + len } else { start });
    pays
}

pub fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Acknowledged bytes that cannot be read.
pub fn damaged(path: &Path, offset: u64, what: &str) -> Error {
    Error::stop(
        format!("the journal is damaged in {} at offset {offset}: {what}", path.display()),
        "check the disk; restore agent.data_dir from a copy, or move it away, start the agent and run, for each system: anechoic load --resync SYSTEM",
    )
}

/// [`damaged`], naming the first entry that is lost with it.
pub fn damaged_entry(path: &Path, offset: u64, seq: Seq, what: &str) -> Error {
    damaged(path, offset, &format!("entry {seq} or what was written beside it: {what}"))
}

/// Reads frames of one segment by pread, a window at a time.
#[derive(Debug)]
pub struct Cursor {
    pub file: File,
    key: Key,
    window: Vec<u8>,
    start: u64,
}

/// `Err` is the disk's; the inner one is the bytes'.
pub type Read<T> = io::Result<std::result::Result<T, Bad>>;

impl Cursor {
    pub fn new(file: File, key: Key) -> Self {
        Cursor { file, key, window: Vec::new(), start: 0 }
    }

    /// `len` bytes at `offset`; all of it lies before `end`, as does whatever is read ahead.
    fn bytes(&mut self, offset: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        let held = offset >= self.start && offset + len as u64 <= self.start + self.window.len() as u64;
        if !held {
            let ahead = (end - offset).min(WINDOW as u64) as usize;
            let wanted = len.max(ahead);
            if self.window.capacity() > 8 * WINDOW && wanted <= WINDOW {
                self.window = Vec::new();
            }
            self.start = offset;
            self.window.resize(wanted, 0);
            if let Err(error) = self.file.read_exact_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let from = (offset - self.start) as usize;
        Ok(&self.window[from..from + len])
    }

    /// The frame header at `offset`, of which nothing is verified but where it belongs.
    pub fn head(&mut self, offset: u64, end: u64) -> Read<FrameHead> {
        if end.saturating_sub(offset) < FRAME as u64 {
            return Ok(Err(Bad::Missing));
        }
        let key = self.key;
        let head = FrameHead::parse(self.bytes(offset, FRAME, end)?, key);
        Ok(head.filter(|h| h.size() <= end - offset && h.raw_len as usize <= PAYLOAD_MAX).ok_or(Bad::Missing))
    }

    /// The frame at `offset`, verified and decompressed.
    pub fn frame(&mut self, offset: u64, end: u64) -> Read<(FrameHead, Bytes)> {
        let head = match self.head(offset, end)? {
            Ok(head) => head,
            Err(bad) => return Ok(Err(bad)),
        };
        let key = self.key;
        let frame = self.bytes(offset, FRAME + head.len as usize, end)?;
        if !head.verify(frame, key) {
            return Ok(Err(Bad::Checksum));
        }
        let stored = &frame[FRAME..];
        if !head.lz4 {
            return Ok(Ok((head, Bytes::copy_from_slice(stored))));
        }
        match lz4_flex::block::decompress(stored, head.raw_len as usize) {
            Ok(raw) if raw.len() == head.raw_len as usize => Ok(Ok((head, raw.into()))),
            _ => Ok(Err(Bad::Compression)),
        }
    }

    /// Looks behind a bad frame for what it was: the last frame called durable by any valid
    /// frame of this segment, and whether there is anything but zeros.
    pub fn search(&mut self, from: u64, end: u64) -> io::Result<Behind> {
        let mut behind = Behind::default();
        let mut offset = from.next_multiple_of(8);
        while offset < end {
            let len = (end - offset).min(WINDOW as u64) as usize;
            let window = self.bytes(offset, len, end)?;
            // Nearly all of it, mostly: compared at once, and not byte by byte.
            if *window == UNUSED[..len] {
                offset += len as u64;
                continue;
            }
            behind.clean = false;
            let mut candidates = Vec::new();
            for at in (0..len).step_by(8) {
                if at + 8 <= len && u32_at(window, at + 4) == FRAME_MAGIC {
                    candidates.push(offset + at as u64);
                }
            }
            for candidate in candidates {
                if let Ok((head, _)) = self.frame(candidate, end)? {
                    behind.frames += 1;
                    behind.durable = behind.durable.max(head.durable);
                }
            }
            offset += len as u64;
        }
        Ok(behind)
    }
}

/// What [`Cursor::search`] found.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    pub clean: bool,
    pub frames: u64,
    pub durable: u64,
}

impl Default for Behind {
    fn default() -> Self {
        Behind { clean: true, frames: 0, durable: 0 }
    }
}
