//! Bodies too large to hold: one file each, beside the order.
//!
//! A spool is written while its transaction is still running, synced before the entry that
//! refers to it is appended, and removed with the segment that holds that entry. That of a
//! prepared transaction is referred to by a record until the transaction is decided. One that
//! nothing refers to is what a crash or a rollback left, and goes when the journal is opened.
//!
//! ```text
//! file  = magic "anespool", chunk*, end
//! chunk = crc u32, stored len u32, raw len u32, compressed u32, payload
//! end   = a chunk of no bytes whose raw len is the number of chunks
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::disk::{self, OnDisk};
use super::segment::{damaged, put_compressed};
use crate::change::SpoolRef;
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"anespool";
const CHUNK: usize = 16;
/// One chunk; writers send about a MiB.
const CHUNK_MAX: usize = 1 << 30;

/// Where spools are made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    compress: bool,
    next: AtomicU64,
    /// Finished files and their sizes.
    files: Mutex<BTreeMap<u64, u64>>,
}

impl Spool {
    /// Opens the directory and removes every file that `live` does not name.
    pub(super) fn open(dir: PathBuf, compress: bool, live: &BTreeMap<u64, u64>) -> Result<Spool> {
        disk::create_dir(&dir).on_disk("create", &dir)?;
        let mut files = BTreeMap::new();
        let mut next = live.last_key_value().map_or(0, |(id, _)| *id) + 1;
        for entry in fs::read_dir(&dir).on_disk("read", &dir)? {
            let path = entry.on_disk("read", &dir)?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
            next = next.max(id.unwrap_or(0) + 1);
            match id.filter(|id| live.contains_key(id)) {
                Some(id) => drop(files.insert(id, path.metadata().on_disk("read", &path)?.len())),
                None => disk::remove(&path).on_disk("remove", &path)?,
            }
        }
        if let Some(id) = live.keys().find(|id| !files.contains_key(id)) {
            return Err(damaged(&dir.join(id.to_string()), 0, "the spool file is gone"));
        }
        Ok(Spool(Arc::new(Shared { dir, compress, next: AtomicU64::new(next), files: Mutex::new(files) })))
    }

    fn path(&self, id: u64) -> PathBuf {
        self.0.dir.join(id.to_string())
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.files.lock().expect("nobody panics while holding the list of spool files")
    }

    /// On disk, of finished spools.
    pub fn bytes(&self) -> u64 {
        self.files().values().sum()
    }

    /// On disk; 0 if there is no such file.
    pub(super) fn size(&self, id: u64) -> u64 {
        self.files().get(&id).copied().unwrap_or(0)
    }

    pub fn create(&self) -> Result<SpoolWriter> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(id);
        let file = disk::create_new(&path).on_disk("create spool file", &path)?;
        let writer = SpoolWriter {
            spool: self.clone(),
            id,
            path,
            file,
            stored: MAGIC.len() as u64,
            raw: 0,
            chunks: 0,
            scratch: Vec::new(),
            finished: false,
        };
        writer.put(&MAGIC, 0)?;
        Ok(writer)
    }

    pub fn read(&self, spool: &SpoolRef) -> Result<SpoolReader> {
        let path = self.path(spool.id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::stop(
                format!("spool file {} is gone", path.display()),
                "the journal no longer reaches back to it; run: anechoic load --resync SYSTEM",
            ),
            _ => Err::<(), _>(error).on_disk("open", &path).expect_err("made of an error"),
        })?;
        let mut reader = SpoolReader {
            path,
            file: BufReader::new(file),
            at: 0,
            raw: 0,
            chunks: 0,
            expected: spool.bytes,
            done: false,
        };
        let mut magic = [0; MAGIC.len()];
        reader.fill(&mut magic)?;
        match magic == MAGIC {
            true => Ok(reader),
            false => Err(damaged(&reader.path, 0, "it is no spool file")),
        }
    }

    /// Removes a spool that no entry will refer to (its transaction was not admitted).
    pub fn discard(&self, spool: &SpoolRef) -> Result<()> {
        self.remove(&[spool.id]).map(drop)
    }

    /// Returns the bytes freed.
    pub(super) fn remove(&self, ids: &[u64]) -> Result<u64> {
        let mut freed = 0;
        for id in ids {
            let path = self.path(*id);
            disk::remove(&path).on_disk("remove", &path)?;
            freed += self.files().remove(id).unwrap_or(0);
        }
        Ok(freed)
    }
}

/// One spool while it is written. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub struct SpoolWriter {
    spool: Spool,
    id: u64,
    path: PathBuf,
    file: File,
    stored: u64,
    raw: u64,
    chunks: u32,
    scratch: Vec<u8>,
    finished: bool,
}

impl SpoolWriter {
    /// Appends one chunk: a run of whole changes, best about a MiB.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        if chunk.len() > CHUNK_MAX {
            return Err(Error::data(format!("a change of {} bytes is too large to carry", chunk.len())));
        }
        self.scratch.clear();
        let lz4 = self.spool.0.compress && put_compressed(&mut self.scratch, chunk);
        let scratch = std::mem::take(&mut self.scratch);
        let written = self.put_chunk(if lz4 { &scratch } else { chunk }, chunk.len() as u32, lz4);
        self.scratch = scratch;
        written?;
        self.raw += chunk.len() as u64;
        self.chunks += 1;
        Ok(())
    }

    fn put_chunk(&mut self, stored: &[u8], raw_len: u32, lz4: bool) -> Result<()> {
        let mut head = [0; CHUNK];
        head[4..8].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&raw_len.to_le_bytes());
        head[12..].copy_from_slice(&u32::from(lz4).to_le_bytes());
        let crc = chunk_checksum(&head, stored);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        self.put(&head, self.stored)?;
        self.put(stored, self.stored + CHUNK as u64)?;
        self.stored += (CHUNK + stored.len()) as u64;
        Ok(())
    }

    /// At an offset, so that a chunk for which there was no space can be tried again.
    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        disk::write_all_at(&self.file, bytes, offset).on_disk("write spool file", &self.path)
    }

    /// Makes the spool durable. An entry may refer to it now.
    pub fn finish(mut self) -> Result<SpoolRef> {
        self.put_chunk(&[], self.chunks, false)?;
        disk::sync_data(&self.file).on_disk("sync spool file", &self.path)?;
        disk::sync_dir(&self.spool.0.dir).on_disk("sync", &self.spool.0.dir)?;
        self.spool.files().insert(self.id, self.stored);
        self.finished = true;
        Ok(SpoolRef { id: self.id, bytes: self.raw })
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = disk::remove(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "spool file could not be removed");
        }
    }
}

/// Reads the chunks of a spool in the order in which they were written.
#[derive(Debug)]
pub struct SpoolReader {
    path: PathBuf,
    file: BufReader<File>,
    at: u64,
    raw: u64,
    chunks: u32,
    expected: u64,
    done: bool,
}

impl SpoolReader {
    #[expect(clippy::should_implement_trait, reason = "fallible and lending nothing: not an iterator of items")]
    pub fn next(&mut self) -> Result<Option<Bytes>> {
        if self.done {
            return Ok(None);
        }
        let offset = self.at;
        let mut head = [0; CHUNK];
        self.fill(&mut head)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (crc, len, raw_len, lz4) = (word(0), word(4) as usize, word(8), word(12) != 0);
        if len > CHUNK_MAX || raw_len as usize > CHUNK_MAX {
            return Err(damaged(&self.path, offset, "the chunk has no credible length"));
        }
        let mut stored = vec![0; len];
        self.fill(&mut stored)?;
        if chunk_checksum(&head, &stored) != crc {
            return Err(damaged(&self.path, offset, "the chunk fails its checksum"));
        }
        if len == 0 {
            return self.end(offset, raw_len);
        }
        self.chunks += 1;
        self.raw += u64::from(raw_len);
        if !lz4 {
            return Ok(Some(stored.into()));
        }
        let raw = lz4_flex::block::decompress(&stored, raw_len as usize)
            .map_err(|error| damaged(&self.path, offset, "the chunk cannot be decompressed").because(error))?;
        Ok(Some(raw.into()))
    }

    fn end(&mut self, offset: u64, chunks: u32) -> Result<Option<Bytes>> {
        self.done = true;
        match chunks == self.chunks && self.raw == self.expected {
            true => Ok(None),
            false => Err(damaged(&self.path, offset, "it does not hold what its entry refers to")),
        }
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        match self.file.read_exact(into) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(damaged(&self.path, self.at, "it ends too early"));
            }
            done => done.on_disk("read", &self.path)?,
        }
        self.at += into.len() as u64;
        Ok(())
    }
}

fn chunk_checksum(head: &[u8; CHUNK], stored: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[4..]);
    hasher.update(stored);
    hasher.finalize()
}
