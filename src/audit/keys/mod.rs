//! Which entries have a change of a key: an index beside the journal, made by following it.
//!
//! ```text
//! journal   1 ────────────────── 40,000 ─────────────── 81,000 ─────── head
//! index     keys/1-40000-0.run   keys/40001-81000-0.run  tail (memory)  not yet: read
//! ```
//!
//! A run holds a fixed number of keys, sorted by hash in buckets, so that a look-up reads one
//! bucket of each run; it also holds where frames of the journal begin, here and there, so that the
//! entries that are found are read without looking for them. Derived: whatever is missing or damaged
//! is made again from the journal, and what is not indexed yet is read.

mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use tracing::{debug, warn};

use self::run::{Item, Run};
use super::each;
use crate::change::{Body, Changes, Record};
use crate::error::Result;
use crate::journal::{Journal, Place, Reader};
use crate::position::Seq;

/// Keys of one run: 4 MiB on disk, twice that in memory while it is the tail.
const RUN_KEYS: usize = 1 << 19;
/// Distance of the frames whose places are kept: about what is read in vain for one entry. With small
/// transactions there are as many frames as keys.
const PLACE_EVERY: u64 = 16 << 10;

#[derive(Debug, Clone)]
pub struct KeyIndex(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    journal: Journal,
    run_keys: usize,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    runs: Vec<Arc<Run>>,
    tail: Tail,
}

/// What the next run is made of.
#[derive(Debug, Default)]
struct Tail {
    items: Vec<Item>,
    places: Vec<Place>,
    /// Everything up to there is indexed, here or in runs.
    complete: Seq,
    /// The last item, so that the changes of one key in one entry are one item.
    last: Option<(u64, Seq)>,
}

/// An entry that has the key (or, beside it, a record that tells of the key), and where to begin
/// reading for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    pub seq: Seq,
    pub place: Option<Place>,
}

impl KeyIndex {
    /// What is there of it; [`follow`](Self::follow) brings it up to the journal's head.
    pub fn open(data_dir: &Path, journal: &Journal) -> Self {
        Self::open_with(data_dir, journal, RUN_KEYS)
    }

    fn open_with(data_dir: &Path, journal: &Journal, run_keys: usize) -> Self {
        let dir = data_dir.join("keys");
        let mut runs = Vec::new();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "run") {
                let _ = fs::remove_file(&path); // begun and not finished
                continue;
            }
            match Run::open(&path, journal.id()) {
                Ok(run) => runs.push(Arc::new(run)),
                Err(why) => {
                    debug!(path = %path.display(), why, "a run of the key index is made again");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        runs.sort_by_key(|run| (run.from, run.to));
        // A gap, or an end that the journal does not have: what is behind it is made again.
        let mut next = journal.oldest();
        let mut kept = Vec::new();
        for run in runs {
            let connects = run.from <= next && run.to <= journal.head();
            if connects && run.to >= journal.oldest() {
                next = next.max(run.complete + 1);
                kept.push(run);
            } else {
                let _ = fs::remove_file(&run.path);
            }
        }
        let tail = Tail { complete: next - 1, ..Tail::default() };
        let inner = RwLock::new(Inner { runs: kept, tail });
        KeyIndex(Arc::new(Shared { dir, journal: journal.clone(), run_keys, inner }))
    }

    /// Everything up to there is in it.
    pub fn complete(&self) -> Seq {
        self.inner().tail.complete
    }

    fn inner(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.0.inner.read().expect("nobody panics while holding the index")
    }

    /// Takes in one record, which `reader` has just read. Call it with all of them, in order, from
    /// [`complete`](Self::complete) + 1 on.
    pub fn take(&self, reader: &Reader, record: &Record) -> Result<()> {
        let at = reader.seq();
        match record {
            Record::Entry(entry) => {
                self.add_all(entry.seq, reader.place(), |add| match &entry.body {
                    Body::Inline(bytes) => {
                        Changes::new(bytes).for_each(|change| add(change.key_hash));
                        Ok(())
                    }
                    Body::Spooled(_) => each(&self.0.journal, entry, &mut |_, change| {
                        add(change.key_hash);
                        Ok(())
                    }),
                })?;
                self.0.inner.write().expect("nobody panics while holding the index").tail.complete = entry.seq;
            }
            // They stand behind entry `at`: found by reading for the one after it.
            Record::Quarantine(held) => self.add_encoded(at + 1, reader.place(), &held.change)?,
            Record::Refused(refused) => self.add_encoded(at + 1, reader.place(), &refused.change)?,
            Record::Released { key_hash, .. } => {
                let key_hash = *key_hash;
                self.add_all(at + 1, reader.place(), |add| {
                    add(key_hash);
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    }

    fn add_encoded(&self, seq: Seq, place: Place, change: &[u8]) -> Result<()> {
        self.add_all(seq, place, |add| {
            Changes::new(change).for_each(|change| add(change.key_hash));
            Ok(())
        })
    }

    fn add_all(&self, seq: Seq, place: Place, work: impl FnOnce(&mut dyn FnMut(u128)) -> Result<()>) -> Result<()> {
        let mut inner = self.0.inner.write().expect("nobody panics while holding the index");
        let near = |last: &Place| last.segment == place.segment && place.offset < last.offset + PLACE_EVERY;
        if !inner.tail.places.last().is_some_and(near) {
            inner.tail.places.push(place);
        }
        let mut failed = Ok(());
        work(&mut |key_hash| {
            let hash = run::hash_of(key_hash);
            // Rows without a key are found by nobody.
            if key_hash == 0 || inner.tail.last == Some((hash, seq)) {
                return;
            }
            inner.tail.last = Some((hash, seq));
            inner.tail.items.push(Item { hash, seq });
            if inner.tail.items.len() >= self.0.run_keys
                && let Err(error) = self.seal(&mut inner)
            {
                failed = Err(error);
            }
        })?;
        failed
    }

    /// The tail becomes a run. One of a large entry may end within it.
    fn seal(&self, inner: &mut Inner) -> Result<()> {
        let tail = &mut inner.tail;
        let run = Run::write(&self.0.dir, self.0.journal.id(), tail.complete, &mut tail.items, &tail.places)?;
        let place = tail.places.pop();
        (tail.items, tail.places, tail.last) = (Vec::new(), place.into_iter().collect(), None);
        inner.runs.push(Arc::new(run));
        self.forget(inner);
        Ok(())
    }

    /// Runs of what the journal no longer has.
    fn forget(&self, inner: &mut Inner) {
        let oldest = self.0.journal.oldest();
        inner.runs.retain(|run| {
            if run.to < oldest {
                let _ = fs::remove_file(&run.path);
            }
            run.to >= oldest
        });
    }

    /// Brings it up to the journal's head. Where the journal has dropped what was still to be
    /// indexed, it goes on behind that.
    pub fn follow(&self, ends: &dyn Fn() -> bool) -> Result<()> {
        let from = (self.complete() + 1).max(self.0.journal.oldest());
        let mut reader = self.0.journal.reader(from)?;
        while let Some(record) = reader.next()? {
            self.take(&reader, &record)?;
            if ends() {
                break;
            }
        }
        Ok(())
    }

    /// The entries that may have this key, newest first, at most so many; and up to which entry
    /// the index was asked: what is behind that has to be read.
    pub fn find(&self, key_hash: u128, most: usize) -> (Vec<Hit>, Seq) {
        let hash = run::hash_of(key_hash);
        let (runs, mut hits, complete) = {
            let inner = self.inner();
            let tail = inner.tail.items.iter().rev().filter(|item| item.hash == hash);
            let hits: Vec<Hit> = tail.take(most).map(|item| Hit { seq: item.seq, place: None }).collect();
            (inner.runs.clone(), hits, inner.tail.complete)
        };
        let oldest = self.0.journal.oldest();
        for run in runs.iter().rev() {
            if hits.len() >= most {
                break;
            }
            match run.find(hash, most - hits.len()) {
                Ok(found) => hits.extend(found),
                // Forgotten meanwhile.
                Err(_) if run.to < self.0.journal.oldest() => {}
                Err(why) => {
                    warn!(path = %run.path.display(), why, "a run of the key index is damaged: it is made again at the next start");
                    let _ = fs::remove_file(&run.path);
                    let entries = (run.from..=run.to).rev().map(|seq| Hit { seq, place: None });
                    hits.extend(entries.take(most - hits.len()));
                }
            }
        }
        hits.dedup_by_key(|hit| hit.seq);
        hits.retain(|hit| hit.seq >= oldest);
        (hits, complete)
    }
}

#[cfg(test)]
mod tests;
