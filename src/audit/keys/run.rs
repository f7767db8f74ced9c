//! One run of the key index on disk.
//!
//! ```text
//! header (64) · directory: per bucket its first item and the checksum of its items · places · items
//! ```
//!
//! A hash is 64 bits of the key's: the upper 11 choose the bucket, the next 32 are the item's. Items
//! of a bucket are sorted by that and by entry, which counts from the run's first.
//!
//! There are as many runs as the journal keeps half millions of keys, so that none of it stays in
//! memory or open.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Hit;
use crate::error::{Error, Result};
use crate::journal::Place;
use crate::position::Seq;

const MAGIC: [u8; 8] = *b"anechkey";
const FORMAT: u32 = 1;
const HEADER: usize = 64;
const BUCKET_BITS: u32 = 11;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// Of the directory.
const BUCKET: usize = 8;
const ITEM: usize = 8;
const PLACE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub hash: u64,
    pub seq: Seq,
}

pub fn hash_of(key_hash: u128) -> u64 {
    (key_hash >> 64) as u64
}

fn bucket(hash: u64) -> usize {
    (hash >> (64 - BUCKET_BITS)) as usize
}

fn print(hash: u64) -> u32 {
    (hash >> (32 - BUCKET_BITS)) as u32
}

#[derive(Debug)]
pub struct Run {
    pub path: PathBuf,
    /// First and last entry of which it has items.
    pub from: Seq,
    pub to: Seq,
    /// Everything up to there is in it or in those before it.
    pub complete: Seq,
    items: u32,
    places: u32,
    /// Of the journal, as its header has it.
    journal: u64,
}

fn folded(journal: u128) -> u64 {
    (journal >> 64) as u64 ^ journal as u64
}

impl Run {
    /// On disk, whole, before it has its name.
    pub fn write(dir: &Path, journal: u128, complete: Seq, items: &mut [Item], places: &[Place]) -> Result<Run> {
        items.sort_unstable();
        let from = items.iter().map(|item| item.seq).min().expect("a run has items");
        let to = items.iter().map(|item| item.seq).max().expect("a run has items");
        let complete = complete.max(from - 1);
        let (mut body, mut directory, mut head) = (Vec::with_capacity(items.len() * ITEM), Vec::new(), Vec::new());
        let mut rest = &*items;
        for number in 0..BUCKETS {
            let (first, start) = ((items.len() - rest.len()) as u32, body.len());
            let (these, others) = rest.split_at(rest.partition_point(|item| bucket(item.hash) <= number));
            for item in these {
                body.extend_from_slice(&print(item.hash).to_le_bytes());
                body.extend_from_slice(&((item.seq - from) as u32).to_le_bytes());
            }
            rest = others;
            directory.extend_from_slice(&first.to_le_bytes());
            directory.extend_from_slice(&crc32fast::hash(&body[start..]).to_le_bytes());
        }
        for place in places {
            for number in [place.segment, place.offset, place.number, place.prev_seq] {
                directory.extend_from_slice(&number.to_le_bytes());
            }
        }
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&(places.len() as u32).to_le_bytes());
        for number in [from, to, complete, items.len() as u64] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend_from_slice(&folded(journal).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        crc.update(&directory);
        head.extend_from_slice(&crc.finalize().to_le_bytes());
        head.resize(HEADER, 0);

        // Several may lie within one large entry.
        let named = |number: usize| dir.join(format!("{from:012}-{to:012}-{number}.run"));
        let path = (0..).map(named).find(|path| !path.exists()).expect("one is free");
        let write = || {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
            let fresh = path.with_extension("new");
            let options = File::options().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
            let mut out = BufWriter::new(options);
            [&head, &directory, &body].into_iter().try_for_each(|part| out.write_all(part))?;
            out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error: std::io::Error| {
            Error::retry(format!("cannot write the key index {}: {error}", path.display())).because(error)
        })?;
        Run::open(&path, journal).map_err(|why| Error::retry(format!("cannot read {}: {why}", path.display())))
    }

    /// What is wrong with it, if anything but its items is.
    pub fn open(path: &Path, journal: u128) -> std::result::Result<Run, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        Run::read(&file, path, folded(journal)).map(|(run, _)| run)
    }

    /// With its directory and its places.
    fn read(file: &File, path: &Path, journal: u64) -> std::result::Result<(Run, Vec<u8>), String> {
        let mut head = [0; HEADER];
        file.read_exact_at(&mut head, 0).map_err(|error| error.to_string())?;
        if head[..8] != MAGIC || u32_at(&head, 8) != FORMAT {
            return Err("another format".into());
        }
        if u64_at(&head, 48) != journal {
            return Err("of another journal".into());
        }
        let places = u32_at(&head, 12);
        let mut bytes = vec![0; BUCKETS * BUCKET + places as usize * PLACE];
        file.read_exact_at(&mut bytes, HEADER as u64).map_err(|error| error.to_string())?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..56]);
        crc.update(&bytes);
        if crc.finalize() != u32_at(&head, 56) {
            return Err("fails its checksum".into());
        }
        let items = u32::try_from(u64_at(&head, 40)).map_err(|_| "too many items".to_owned())?;
        let (from, to, complete) = (u64_at(&head, 16), u64_at(&head, 24), u64_at(&head, 32));
        Ok((Run { path: path.to_owned(), from, to, complete, items, places, journal }, bytes))
    }

    /// The newest entries with this hash, newest first.
    pub fn find(&self, hash: u64, most: usize) -> std::result::Result<Vec<Hit>, String> {
        let file = File::open(&self.path).map_err(|error| error.to_string())?;
        let read =
            |at: usize, bytes: &mut [u8]| file.read_exact_at(bytes, at as u64).map_err(|error| error.to_string());
        // Where the bucket begins, its checksum, and where the next one begins.
        let mut entry = [0; BUCKET + 4];
        read(HEADER + bucket(hash) * BUCKET, &mut entry)?;
        let (first, crc) = (u32_at(&entry, 0), u32_at(&entry, 4));
        let end = if bucket(hash) + 1 < BUCKETS { u32_at(&entry, BUCKET) } else { self.items };
        let count = end.checked_sub(first).filter(|_| end <= self.items).ok_or("its directory is damaged")?;
        let items = HEADER + BUCKETS * BUCKET + self.places as usize * PLACE;
        let mut bytes = vec![0; count as usize * ITEM];
        read(items + first as usize * ITEM, &mut bytes)?;
        if crc32fast::hash(&bytes) != crc {
            return Err("a bucket fails its checksum".into());
        }
        let items: Vec<&[u8]> = bytes.chunks_exact(ITEM).collect();
        let from = items.partition_point(|item| u32_at(item, 0) < print(hash));
        let to = items.partition_point(|item| u32_at(item, 0) <= print(hash));
        if from == to {
            return Ok(Vec::new());
        }
        let (_, head) = Run::read(&file, &self.path, self.journal)?;
        let places: Vec<&[u8]> = head[BUCKETS * BUCKET..].chunks_exact(PLACE).collect();
        let hit = |item: &&[u8]| {
            let seq = self.from + u64::from(u32_at(item, 4));
            Hit { seq, place: place_before(&places, seq) }
        };
        Ok(items[from..to].iter().rev().take(most).map(hit).collect())
    }
}

/// The last place from which entry `seq` and what stands right before it are still ahead.
fn place_before(places: &[&[u8]], seq: Seq) -> Option<Place> {
    let behind = places.partition_point(|place| u64_at(place, 24) + 1 < seq);
    let at = places[behind.checked_sub(1)?];
    Some(Place { segment: u64_at(at, 0), offset: u64_at(at, 8), number: u64_at(at, 16), prev_seq: u64_at(at, 24) })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
