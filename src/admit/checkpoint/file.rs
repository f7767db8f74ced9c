//! A checkpoint as bytes.
//!
//! ```text
//! file    = "anxindex", format u16, section*
//! section = kind u8, len u32 (of the payload), crc u32 (of all else in it), payload
//! kinds   = head, held records, slots*, copied keys*, end
//! ```
//!
//! A file without its end was cut short; every byte is under a checksum.

use std::io::{self, Read, Write};
use std::vec::IntoIter;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{About, Checkpoint};
use crate::admit::Slot;
use crate::change::{Quarantined, Record};
use crate::error::{Error, Result};
use crate::journal::{Tip, pack, unpack};
use crate::marker::FORMAT;

const MAGIC: [u8; 8] = *b"anxindex";
/// Slots, or keys, of one section.
const BLOCK: usize = 8192;
/// No section is larger, but by its held records.
const SECTION_MAX: u32 = 1 << 30;
const SLOT: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Head = 1,
    Held = 2,
    Slots = 3,
    /// A version, and the keys of its list, or some of them.
    Copies = 4,
    End = 5,
}

/// What the head section says, as JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Of the journal that it covers, and up to where.
    journal: String,
    tip: Tip,
    about: About,
}

impl Checkpoint {
    /// Up to the tip of that journal. Returns how many slots it has.
    pub fn write(self, journal: u128, tip: &Tip, out: &mut dyn Write) -> Result<u64> {
        let Checkpoint { about, held, slots, copies } = self;
        let head = Head { journal: format!("{journal:032x}"), tip: *tip, about };
        out.write_all(&MAGIC).and_then(|()| out.write_all(&FORMAT.to_le_bytes())).map_err(unwritten)?;
        put(out, Kind::Head, &serde_json::to_vec(&head).map_err(unwritten)?)?;
        put(out, Kind::Held, &pack(&held.into_iter().map(Record::Quarantine).collect::<Vec<_>>()))?;
        let (mut block, mut count) = (Vec::with_capacity(BLOCK * SLOT), 0u64);
        for slot in slots.sorted() {
            let (key, slot) = slot?;
            block.extend_from_slice(&key.to_be_bytes());
            block.extend_from_slice(&slot.0.to_le_bytes());
            count += 1;
            if block.len() == BLOCK * SLOT {
                put(out, Kind::Slots, &block)?;
                block.clear();
            }
        }
        put(out, Kind::Slots, &block)?;
        for (version, keys) in copies {
            for keys in keys.chunks(BLOCK) {
                block.clear();
                block.extend_from_slice(&version.0.to_le_bytes());
                keys.iter().for_each(|key| block.extend_from_slice(&key.to_be_bytes()));
                put(out, Kind::Copies, &block)?;
            }
        }
        put(out, Kind::End, &count.to_le_bytes())?;
        out.flush().map_err(unwritten)?;
        Ok(count)
    }
}

fn put(out: &mut dyn Write, kind: Kind, payload: &[u8]) -> Result<()> {
    let len = (payload.len() as u32).to_le_bytes();
    let crc = checksum(kind as u8, len, payload).to_le_bytes();
    let parts = [&[kind as u8][..], &len, &crc, payload];
    parts.into_iter().try_for_each(|part| out.write_all(part)).map_err(unwritten)
}

fn checksum(kind: u8, len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    [&[kind][..], &len, payload].into_iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn unwritten(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::retry("the index checkpoint cannot be written").because(error)
}

/// Something is wrong with the bytes.
fn wrong(what: impl Into<String>) -> Error {
    Error::retry(what)
}

/// A checkpoint that is read from its beginning.
pub struct Saved<R> {
    reader: R,
    /// In hexadecimal.
    pub journal: String,
    pub tip: Tip,
    pub about: About,
    pub held: Vec<Quarantined>,
    /// Read, and not of the kind that was asked for.
    next: Option<(Kind, Vec<u8>)>,
}

/// Reads all of it, and says what is wrong: behind it nothing but the disk can fail.
pub fn verify(reader: impl Read) -> Result<()> {
    let mut saved = Saved::open(reader)?;
    let (mut last, mut count) = (None, 0u64);
    for slot in saved.slots() {
        let (key, _) = slot?;
        if last.replace(key).is_some_and(|last| last >= key) {
            return Err(wrong("its slots are not in order"));
        }
        count += 1;
    }
    while saved.copies()?.is_some() {}
    let end = saved.section(Kind::End)?.ok_or_else(|| wrong("it has a section that does not belong there"))?;
    match end == count.to_le_bytes() {
        true => Ok(()),
        false => Err(wrong("it has other slots than it says")),
    }
}

impl<R: Read> Saved<R> {
    pub fn open(mut reader: R) -> Result<Self> {
        let mut start = [0; 10];
        reader.read_exact(&mut start).map_err(short)?;
        let format = u16::from_le_bytes([start[8], start[9]]);
        if start[..8] != MAGIC {
            return Err(wrong("it is no index checkpoint"));
        }
        if format != FORMAT {
            return Err(wrong(format!("it is of format {format}, this version reads {FORMAT}")));
        }
        let head = read(&mut reader)?;
        let held = read(&mut reader)?;
        let ((Kind::Head, head), (Kind::Held, held)) = (head, held) else {
            return Err(wrong("it does not begin with what it is about"));
        };
        let Head { journal, tip, about } = serde_json::from_slice(&head).map_err(|error| wrong(error.to_string()))?;
        let held = unpack(&Bytes::from(held)).map_err(wrong)?.into_iter().map(|record| match record {
            Record::Quarantine(quarantined) => Ok(quarantined),
            _ => Err(wrong("a record of it is not of a held key")),
        });
        let held = held.collect::<Result<Vec<_>>>()?;
        Ok(Saved { reader, journal, tip, about, held, next: None })
    }

    /// The next section, if it is of that kind.
    fn section(&mut self, kind: Kind) -> Result<Option<Vec<u8>>> {
        let next = match self.next.take() {
            Some(next) => next,
            None => read(&mut self.reader)?,
        };
        if next.0 == kind {
            return Ok(Some(next.1));
        }
        self.next = Some(next);
        Ok(None)
    }

    pub(super) fn slots(&mut self) -> impl Iterator<Item = Result<(u128, Slot)>> {
        let mut block: IntoIter<(u128, Slot)> = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(slot) = block.next() {
                    return Some(Ok(slot));
                }
                match self.section(Kind::Slots) {
                    Ok(Some(bytes)) => {
                        let slots = bytes.chunks_exact(SLOT).map(|slot| (key(&slot[..16]), version(&slot[16..])));
                        block = slots.collect::<Vec<_>>().into_iter();
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }

    /// The keys of one version, or some of them.
    pub(super) fn copies(&mut self) -> Result<Option<(Slot, Vec<u128>)>> {
        let Some(bytes) = self.section(Kind::Copies)? else { return Ok(None) };
        let (of, keys) = bytes.split_at_checked(8).ok_or_else(|| wrong("a list of copied keys is too short"))?;
        Ok(Some((version(of), keys.chunks_exact(16).map(key).collect())))
    }
}

fn key(bytes: &[u8]) -> u128 {
    u128::from_be_bytes(bytes.try_into().expect("sixteen bytes"))
}

fn version(bytes: &[u8]) -> Slot {
    Slot(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

fn read(reader: &mut impl Read) -> Result<(Kind, Vec<u8>)> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).map_err(short)?;
    let len: [u8; 4] = head[1..5].try_into().expect("four bytes");
    let kind = match head[0] {
        1 => Kind::Head,
        2 => Kind::Held,
        3 => Kind::Slots,
        4 => Kind::Copies,
        5 => Kind::End,
        other => return Err(wrong(format!("it has a section of kind {other}"))),
    };
    let size = u32::from_le_bytes(len);
    let mut payload = Vec::new();
    // As far as it goes: a length that flipped must not take all memory.
    let read = reader.take(size.into()).read_to_end(&mut payload).map_err(short)?;
    if read < size as usize || size > SECTION_MAX {
        return Err(wrong("it is cut short"));
    }
    if checksum(head[0], len, &payload).to_le_bytes() != head[5..9] {
        return Err(wrong("it fails its checksum"));
    }
    Ok((kind, payload))
}

fn short(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("it is cut short"),
        _ => wrong("it cannot be read").because(error),
    }
}
