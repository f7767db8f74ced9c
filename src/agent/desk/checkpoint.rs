//! When the index is checkpointed, and by whom: the desk copies what is in memory, behind a sync,
//! and a thread beside it writes that and what lies on disk.
//!
//! One is due when a restart would have to replay more than so much, and more than the index itself
//! takes: so less is written for it than was journaled meanwhile. The file gets its name when it is
//! on disk whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Desk;
use crate::admit::checkpoint::Checkpoint;
use crate::change::{Body, Record};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::journal::Tip;
use crate::position::Seq;

/// Of what a restart has to replay, at least.
const EVERY: u64 = 64 << 20;
/// What a slot takes in the file.
const SLOT_BYTES: u64 = 24;
/// Written before it is synced: the journal's own syncs must not wait for more.
const SYNC_EVERY: usize = 4 << 20;
/// Between attempts that failed.
const AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Checkpoints {
    path: PathBuf,
    /// A replay that is longer deserves one.
    pub every: u64,
    /// To be replayed by a restart.
    pub since: u64,
    writing: Option<JoinHandle<Result<()>>>,
    failed_at: Option<Instant>,
}

/// What replaying a record takes: about its bytes, without compression.
pub(super) fn weight(record: &Record) -> u64 {
    const RECORD: u64 = 64;
    match record {
        Record::Entry(entry) => match &entry.body {
            Body::Inline(bytes) => RECORD + bytes.len() as u64,
            Body::Spooled(spool) => RECORD + spool.bytes,
        },
        _ => RECORD,
    }
}

/// The file before it has its name.
pub(super) fn draft(path: &Path) -> PathBuf {
    path.with_extension("checkpoint.new")
}

impl Checkpoints {
    pub fn new(path: PathBuf) -> Self {
        let every = failpoint::checkpoint_every(EVERY);
        Checkpoints { path, every, since: 0, writing: None, failed_at: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes how the last one ended, if it has.
    fn look(&mut self, wait: bool) {
        let Some(writing) = self.writing.take_if(|writing| wait || writing.is_finished()) else { return };
        self.ended(writing.join().unwrap_or_else(|_| Err(Error::retry("its thread has panicked"))));
    }

    fn ended(&mut self, result: Result<()>) {
        self.failed_at = match result {
            Ok(()) => None,
            Err(error) => {
                let path = self.path.display();
                warn!(%path, error = %error.full(), "no index checkpoint: a restart replays the journal from before it");
                Some(Instant::now())
            }
        };
    }

    fn is_due(&mut self, slots: usize) -> bool {
        self.look(false);
        let rests = self.writing.is_none() && self.failed_at.is_none_or(|failed| failed.elapsed() >= AGAIN);
        rests && self.since >= self.every.max(slots as u64 * SLOT_BYTES)
    }
}

impl Desk {
    /// Behind a sync, every second or so.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<()> {
        if !self.checkpoints.is_due(self.arbiter.slots()) {
            return Ok(());
        }
        let Some(write) = self.checkpoint()? else { return Ok(()) };
        let thread = std::thread::Builder::new().name("index checkpoint".to_owned()).spawn(write);
        match thread {
            Ok(thread) => self.checkpoints.writing = Some(thread),
            Err(error) => self.checkpoints.ended(Err(Error::retry("no thread to write it").because(error))),
        }
        Ok(())
    }

    /// The last one, when nothing is taken in any more.
    pub(super) fn checkpoint_at_the_end(&mut self) -> Result<()> {
        self.checkpoints.look(true);
        if self.checkpoints.since > 0
            && let Some(write) = self.checkpoint()?
        {
            let written = write();
            self.checkpoints.ended(written);
        }
        Ok(())
    }

    /// Copies what is to be written, and says how; `None` where the journal has not all of it.
    pub(super) fn checkpoint(&mut self) -> Result<Option<impl FnOnce() -> Result<()> + Send + use<>>> {
        // Nothing that was told to the arbiter may be missing behind it.
        self.record_positions(true)?;
        self.commit()?;
        let began = Instant::now();
        let Some(tip) = self.writer.tip() else { return Ok(None) };
        let checkpoint = self.arbiter.checkpoint()?;
        let (journal, path) = (self.archive.journal.id(), self.checkpoints.path.clone());
        let copied_us = began.elapsed().as_micros() as u64;
        self.checkpoints.since = 0;
        Ok(Some(move || {
            let began = Instant::now();
            let slots = write(&path, checkpoint, journal, &tip)?;
            let (seq, elapsed_ms): (Seq, _) = (tip.seq, began.elapsed().as_millis() as u64);
            debug!(seq, slots, copied_us, elapsed_ms, "index checkpoint written");
            Ok(())
        }))
    }
}

/// Synced now and then, lest all of it is to be written when the journal wants to sync.
struct Paced {
    file: File,
    unsynced: usize,
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Returns how many slots it has.
pub(super) fn write(path: &Path, checkpoint: Checkpoint, journal: u128, tip: &Tip) -> Result<u64> {
    let draft = draft(path);
    let written = || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let mut out = BufWriter::with_capacity(1 << 20, Paced { file, unsynced: 0 });
        let slots = checkpoint.write(journal, tip, &mut out).map_err(io::Error::other)?;
        failpoint::pass("before-checkpoint-rename");
        fs::rename(&draft, path)?;
        failpoint::pass("after-checkpoint-rename");
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(slots)
    };
    written().map_err(|error: io::Error| {
        let _ = fs::remove_file(&draft);
        Error::retry(format!("cannot write {}", path.display())).because(error)
    })
}
