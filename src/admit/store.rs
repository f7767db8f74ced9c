//! The index when it outgrows memory: while a target is down, every key that changes keeps its
//! slot, and the agent's memory must not grow with them (bounded memory).
//!
//! Slots are kept in memory up to a limit; beyond it whole shards of them move to disk, into
//! generations. A generation goes as a whole once every slot in it was seen by all systems,
//! so nothing is ever deleted row by row. Newer generations are asked first; small
//! installations never make one.
//!
//! ```text
//! put ─▶ memory ──some shards at a time──▶ generation 3   generation 2   generation 1 ─▶ dropped
//! get ─▶ memory ─▶ generation 3 ─▶ generation 2 ─▶ generation 1
//! ```
//!
//! What is on disk is derived and not synced: it is deleted at the start, and the checkpoint and the
//! journal give it back.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::index::{MemoryStore, Run, SHARDS, Slot, SlotStore, Slots};
use crate::error::{Error, Result};
use crate::position::Seq;

/// About 16 MiB, and half as much again while a shard moves.
const MEMORY_SLOTS: usize = 400_000;
/// A generation takes at least this many, and an eighth of what is on disk: few generations to
/// ask, and yet something to drop.
const GENERATION_SLOTS: usize = 1_000_000;
/// Shards that move together: an eighth of memory, a run of about a MiB.
const SPILLED: usize = SHARDS / 8;

/// Memory first, then disk.
pub struct DiskStore {
    dir: PathBuf,
    memory: MemoryStore,
    memory_max: usize,
    generation_min: usize,
    /// Opened when memory first overflows.
    database: Option<Database>,
    /// Oldest first.
    generations: Vec<Generation>,
    /// Generations ever made: the name of the next.
    made: u64,
    next_shard: usize,
    /// Slots on disk below this are as good as gone.
    floor: Seq,
    /// Held keys: their slots stay, and stay in memory.
    pinned: HashSet<u128>,
    /// With every [`Slots`] that reads generations.
    reading: Arc<()>,
}

struct Generation {
    keyspace: Keyspace,
    newest: Seq,
    slots: usize,
}

impl Generation {
    /// As a table of its own, past fjall's log and memtable: sorted runs need neither.
    fn write(&self, slots: &[(u128, Slot)]) -> fjall::Result<()> {
        let mut run = self.keyspace.start_ingestion()?;
        for (key, slot) in slots {
            run.write(key.to_be_bytes(), slot.0.to_le_bytes())?;
        }
        run.finish()
    }

    /// As it is now.
    fn run(&self, dir: &Path, floor: Seq) -> Run {
        let (dir, keyspace) = (dir.to_owned(), self.keyspace.clone());
        let slots = self.keyspace.iter().map(move |pair| {
            let _kept = &keyspace;
            let (key, slot) = pair.into_inner().map_err(|error| unreadable(&dir, error))?;
            let key = key.as_ref().try_into().map_err(|_| unreadable(&dir, "a key is not 16 bytes"))?;
            Ok((u128::from_be_bytes(key), decoded(&dir, &slot)?))
        });
        Box::new(slots.filter(move |found| found.as_ref().map_or(true, |(_, slot)| slot.seq() >= floor)))
    }
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStore")
            .field("dir", &self.dir)
            .field("memory", &self.memory.len())
            .field("generations", &self.generations.len())
            .finish_non_exhaustive()
    }
}

impl DiskStore {
    /// `dir` is the store's own (`data_dir/index`): whatever is in it goes.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::with_limits(dir.into(), MEMORY_SLOTS, GENERATION_SLOTS)
    }

    fn with_limits(dir: PathBuf, memory_max: usize, generation_min: usize) -> Result<Self> {
        remove(&dir)?;
        remove(&beside(&dir))?;
        Ok(DiskStore {
            dir,
            memory: MemoryStore::default(),
            memory_max,
            generation_min,
            database: None,
            generations: Vec::new(),
            made: 0,
            next_shard: 0,
            floor: 0,
            pinned: HashSet::new(),
            reading: Arc::default(),
        })
    }

    fn on_disk(&self, key: u128) -> Result<Option<Slot>> {
        for generation in self.generations.iter().rev() {
            let found = generation.keyspace.get(key.to_be_bytes()).map_err(|error| unreadable(&self.dir, error))?;
            if let Some(bytes) = found {
                return Ok(Some(decoded(&self.dir, &bytes)?).filter(|slot| slot.seq() >= self.floor));
            }
        }
        Ok(None)
    }

    /// Moves shards to disk until memory is within its limit.
    ///
    /// Where the disk takes nothing, memory may grow to twice its limit before that is an error.
    fn spill(&mut self) -> Result<()> {
        for _ in 0..SHARDS / SPILLED {
            if self.memory.len() <= self.memory_max {
                break;
            }
            let shards = self.next_shard..self.next_shard + SPILLED;
            self.next_shard = shards.end % SHARDS;
            if let Err(error) = self.spill_shards(shards) {
                if self.memory.len() > 2 * self.memory_max {
                    return Err(error);
                }
                tracing::warn!(error = %error.full(), "index stays in memory");
                break;
            }
        }
        Ok(())
    }

    fn spill_shards(&mut self, shards: Range<usize>) -> Result<()> {
        let goes = |key: &u128, slot: &Slot| slot.seq() >= self.floor && !self.pinned.contains(key);
        let slots = shards.clone().flat_map(|shard| self.memory.slots_of(shard));
        let mut slots: Vec<(u128, Slot)> = slots.filter(|(key, slot)| goes(key, slot)).collect();
        slots.sort_unstable_by_key(|(key, _)| *key);
        let newest = slots.iter().map(|(_, slot)| slot.seq()).max().unwrap_or(0);
        if !slots.is_empty() {
            self.open_generation().map_err(|error| unwritable(&self.dir, error))?;
            let generation = self.generations.last_mut().expect("opened above");
            generation.write(&slots).map_err(|error| unwritable(&self.dir, error))?;
            generation.newest = generation.newest.max(newest);
            generation.slots += slots.len();
        }
        for shard in shards {
            self.memory.evict(shard, &self.pinned);
        }
        Ok(())
    }

    /// Makes sure that the last generation may take more.
    fn open_generation(&mut self) -> fjall::Result<()> {
        let total: usize = self.generations.iter().map(|generation| generation.slots).sum();
        let limit = self.generation_min.max(total / 8);
        if self.generations.last().is_some_and(|generation| generation.slots < limit) {
            return Ok(());
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => open(&self.dir)?,
        };
        let database = self.database.insert(database);
        let keyspace = database.keyspace(&format!("g{}", self.made + 1), keyspace_options)?;
        self.made += 1;
        self.generations.push(Generation { keyspace, newest: 0, slots: 0 });
        Ok(())
    }

    /// Held keys must outlive their generation: they move back into memory.
    fn pin(&mut self, pinned: &HashSet<u128>) -> Result<()> {
        self.pinned.retain(|key| pinned.contains(key));
        for key in pinned {
            if self.pinned.contains(key) {
                continue;
            }
            if self.memory.get(*key)?.is_none()
                && let Some(slot) = self.on_disk(*key)?
            {
                self.memory.put(*key, slot)?;
            }
            self.pinned.insert(*key);
        }
        Ok(())
    }

    fn drop_generations(&mut self) -> Result<()> {
        let Some(database) = &self.database else { return Ok(()) };
        // Somebody reads them elsewhere: they go the next time.
        if Arc::strong_count(&self.reading) > 1 {
            return Ok(());
        }
        let floor = self.floor;
        for gone in self.generations.extract_if(.., |generation| generation.newest < floor) {
            database.delete_keyspace(gone.keyspace).map_err(|error| unwritable(&self.dir, error))?;
        }
        if self.generations.is_empty() {
            // Its log and caches go with it.
            self.database = None;
            remove(&self.dir)?;
        }
        Ok(())
    }
}

impl SlotStore for DiskStore {
    fn get(&mut self, key: u128) -> Result<Option<Slot>> {
        match self.memory.get(key)? {
            None if !self.generations.is_empty() => self.on_disk(key),
            found => Ok(found),
        }
    }

    fn put(&mut self, key: u128, slot: Slot) -> Result<()> {
        self.memory.put(key, slot)?;
        match self.memory.len() > self.memory_max {
            true => self.spill(),
            false => Ok(()),
        }
    }

    fn forget_below(&mut self, floor: Seq, pinned: &HashSet<u128>) -> Result<()> {
        if !self.generations.is_empty() || !pinned.is_empty() || !self.pinned.is_empty() {
            self.pin(pinned)?;
        }
        self.floor = self.floor.max(floor);
        self.memory.forget_below(floor, pinned)?;
        self.drop_generations()
    }

    fn slots(&self, floor: Seq, pinned: &HashSet<u128>) -> Slots {
        let runs = self.generations.iter().rev().map(|generation| generation.run(&self.dir, floor)).collect();
        Slots { runs, reading: vec![self.reading.clone()], ..self.memory.slots(floor, pinned) }
    }

    /// In memory what it takes; the rest is a generation.
    fn fill(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        self.memory.fill(&mut sorted.take(self.memory_max))?;
        self.ingest(sorted)
    }

    /// Past memory: a run of the newest generation.
    fn ingest(&mut self, sorted: &mut dyn Iterator<Item = Result<(u128, Slot)>>) -> Result<()> {
        let mut rest = sorted.peekable();
        if rest.peek().is_none() {
            return Ok(());
        }
        self.open_generation().map_err(|error| unwritable(&self.dir, error))?;
        let generation = self.generations.last_mut().expect("opened above");
        let mut run = generation.keyspace.start_ingestion().map_err(|error| unwritable(&self.dir, error))?;
        for slot in rest {
            let (key, slot) = slot?;
            run.write(key.to_be_bytes(), slot.0.to_le_bytes()).map_err(|error| unwritable(&self.dir, error))?;
            generation.newest = generation.newest.max(slot.seq());
            generation.slots += 1;
            // Memory is asked first.
            if self.pinned.contains(&key) || !self.memory.is_empty() && self.memory.get(key)?.is_some() {
                self.memory.put(key, slot)?;
            }
        }
        run.finish().map_err(|error| unwritable(&self.dir, error))
    }

    fn sibling(&self) -> Result<Box<dyn SlotStore>> {
        Ok(Box::new(Self::with_limits(beside(&self.dir), self.memory_max, self.generation_min)?))
    }

    /// A key that is in several generations counts several times.
    fn len(&self) -> usize {
        self.memory.len() + self.generations.iter().map(|generation| generation.slots).sum::<usize>()
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.generations.clear();
        self.database = None;
        if let Err(error) = remove(&self.dir) {
            tracing::debug!(error = %error.full(), "index directory left behind");
        }
    }
}

/// Where a sibling has its own.
fn beside(dir: &Path) -> PathBuf {
    dir.with_extension("copied")
}

fn open(dir: &Path) -> fjall::Result<Database> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    Database::builder(dir)
        .cache_size(8 << 20)
        .max_journaling_size(64 << 20)
        .worker_threads(1)
        .max_cached_files(Some(64))
        .open()
}

/// Without partitions a look-up reads whole filters: ten times slower, more with a small cache.
fn keyspace_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
}

fn decoded(dir: &Path, bytes: &[u8]) -> Result<Slot> {
    let bytes = bytes.try_into().map_err(|_| unreadable(dir, "a slot is not 8 bytes"))?;
    Ok(Slot(u64::from_le_bytes(bytes)))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::stop(
            format!("cannot remove {}", dir.display()),
            "give the agent's user rights on agent.data_dir",
        )
        .because(error)),
        _ => Ok(()),
    }
}

fn unwritable(dir: &Path, error: fjall::Error) -> Error {
    Error::retry(format!("cannot write the index in {}", dir.display()))
        .hint("free disk space under agent.data_dir; a restart builds the index anew")
        .because(error)
}

fn unreadable(dir: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::stop(format!("cannot read the index in {}", dir.display()), "restart: it is built anew from the journal")
        .because(error)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::process::Command;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::schema::SystemId;

    fn key(n: u64) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes())
    }

    fn slot(seq: Seq) -> Slot {
        Slot::new(seq, SystemId((seq % 3) as u8), seq.is_multiple_of(5), seq.is_multiple_of(7))
    }

    #[test]
    fn a_small_index_never_touches_the_disk() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("index");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("left over"), "x").unwrap();
        let mut store = DiskStore::new(&path).unwrap();

        for n in 1..=1000 {
            store.put(key(n), slot(n)).unwrap();
        }

        assert_eq!((store.len(), store.get(key(7)).unwrap()), (1000, Some(slot(7))));
        assert!(!path.exists());
    }

    #[test]
    fn what_does_not_fit_is_found_on_disk_and_goes_when_all_have_seen_it() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("index");
        let mut store = DiskStore::with_limits(path.clone(), 8000, 5000).unwrap();
        for n in 1..=50_000 {
            store.put(key(n), slot(n)).unwrap();
        }
        assert!(store.memory.len() <= 8000 && store.generations.len() > 3, "{store:?}");
        for n in (1..=50_000).step_by(97) {
            assert_eq!(store.get(key(n)).unwrap(), Some(slot(n)));
        }
        assert_eq!(store.get(key(50_001)).unwrap(), None);

        let held = HashSet::from([key(11)]);
        store.forget_below(30_001, &held).unwrap();
        let some = store.generations.len();
        let read = [11, 12, 30_000, 30_001, 49_999].map(|n| store.get(key(n)).unwrap().map(Slot::seq));
        store.forget_below(50_001, &held).unwrap();

        assert_eq!(read, [Some(11), None, None, Some(30_001), Some(49_999)]);
        assert!((1..9).contains(&some), "{some}");
        assert_eq!(store.get(key(11)).unwrap(), Some(slot(11)));
        assert!(store.generations.is_empty() && !path.exists());
        for n in 60_000..80_000 {
            store.put(key(n), slot(n)).unwrap();
        }
        assert_eq!(store.get(key(60_000)).unwrap(), Some(slot(60_000)), "and overflows again");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u64),
        Ingest(Vec<u64>),
        Forget { back: u64, held: Vec<u64> },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            60 => (0..300u64).prop_map(Step::Put),
            2 => prop::collection::vec(0..300u64, 1..60).prop_map(Step::Ingest),
            1 => (0..200u64, prop::collection::vec(0..300u64, 0..4))
                .prop_map(|(back, held)| Step::Forget { back, held }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]

        /// The latest slot or, once all have seen it, perhaps none; never an older one. So does one that
        /// was filled with what this has, whatever this one did meanwhile.
        #[test]
        fn it_answers_as_a_map_would(steps in prop::collection::vec(any_step(), 200..900)) {
            let dir = TempDir::new().unwrap();
            let mut store = DiskStore::with_limits(dir.path().join("index"), 64, 100).unwrap();
            let mut model: HashMap<u64, Slot> = HashMap::new();
            let (mut seq, mut floor, mut held) = (0, 0, Vec::new());
            for step in steps {
                match step {
                    Step::Put(n) => {
                        seq += 1;
                        store.put(key(n), slot(seq)).unwrap();
                        model.insert(n, slot(seq));
                    }
                    Step::Ingest(mut keys) => {
                        seq += 1;
                        keys.sort_unstable_by_key(|n| key(*n));
                        keys.dedup();
                        store.ingest(&mut keys.iter().map(|n| Ok((key(*n), slot(seq))))).unwrap();
                        model.extend(keys.iter().map(|n| (*n, slot(seq))));
                    }
                    Step::Forget { back, held: now_held } => {
                        // What was forgotten before it was held is gone.
                        model.retain(|n, slot| slot.seq() >= floor || held.contains(n));
                        floor = floor.max(seq.saturating_sub(back));
                        held = now_held;
                        store.forget_below(floor, &held.iter().map(|n| key(*n)).collect()).unwrap();
                        model.retain(|n, slot| slot.seq() >= floor || held.contains(n));
                    }
                }
            }
            let slots = store.slots(floor, &held.iter().map(|n| key(*n)).collect());
            // Where nobody needs one, what is left of it is one that all have seen.
            let agrees = |n: u64, found: Option<Slot>| match model.get(&n) {
                Some(slot) => found == Some(*slot),
                None => found.is_none_or(|slot| slot.seq() < floor),
            };
            for n in 0..300 {
                let found = store.get(key(n)).unwrap();
                prop_assert!(agrees(n, found), "{n}: {found:?} for {:?} above {floor}", model.get(&n));
            }
            for n in 0..300 {
                store.put(key(n), slot(seq + 1 + n)).unwrap();
            }
            store.forget_below(seq + 200, &HashSet::new()).unwrap();
            let sorted: Vec<_> = slots.sorted().map(|slot| slot.unwrap()).collect();
            prop_assert!(sorted.is_sorted_by(|(a, _), (b, _)| a < b));
            let mut filled = DiskStore::with_limits(dir.path().join("filled"), 64, 100).unwrap();
            filled.fill(&mut sorted.into_iter().map(Ok)).unwrap();
            for n in 0..300 {
                let found = filled.get(key(n)).unwrap();
                prop_assert!(agrees(n, found), "{n}: filled with {found:?} for {:?} above {floor}", model.get(&n));
            }
        }
    }

    /// Not a test by itself: the process whose memory the next test measures.
    #[test]
    fn keeps_millions_of_keys() {
        let Some(dir) = std::env::var_os("ANECHOIC_TEST_INDEX") else { return };
        let mut store = DiskStore::new(Path::new(&dir).join("index")).unwrap();
        let rss = |what: &str| {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with(what)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
        };
        let before = rss("VmRSS");
        let begun = std::time::Instant::now();
        for n in 1..=2_000_000 {
            store.put(key(n % 1_500_000), slot(n)).unwrap();
        }
        let put = begun.elapsed();
        for n in (1..1_500_000).step_by(31) {
            let latest = if n <= 500_000 { n + 1_500_000 } else { n };
            assert_eq!(store.get(key(n)).unwrap(), Some(slot(latest)));
        }
        println!("\npeak {} put {put:?} get {:?}", rss("VmHWM") - before, begun.elapsed() - put);
    }

    #[test]
    fn memory_does_not_grow_with_the_keys() {
        let dir = TempDir::new().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "admit::store::tests::keeps_millions_of_keys", "--nocapture"])
            .env("ANECHOIC_TEST_INDEX", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let peak = text.lines().find_map(|line| line.strip_prefix("peak ")).expect(&text);
        println!("{peak}");
        let peak: u64 = peak.split(' ').next().unwrap().parse().unwrap();

        assert!(peak < 90, "{peak} MiB for a million and a half keys");
    }
}
