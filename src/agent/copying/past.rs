//! What a system's rows should be, by the journal: the measure of what its users wrote while its
//! log was lost.
//!
//! The journal's order is not the order in which one system came to have things. What others
//! wrote is there when its marker says so, and its own writes were there when they were
//! committed: behind the marker that was their base. A row is what the last of these made it.
//!
//! Kept for the keys that have something in the journal which the system had not seen when its
//! new position was made; every other row is what the other systems have. On disk, because a
//! system may have been away for long.

use std::path::PathBuf;
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::change::{Body, Change, ChangeWriter, Changes, Entry, Fate, Op, Origin, Record, ResyncMark, overlay};
use crate::error::{Error, Result};
use crate::journal::{Journal, Reader};
use crate::position::Seq;
use crate::scan::Plan;
use crate::schema::{EntityId, Schema, Translation};
use crate::value::{Datum, Row, write_datum};

/// Own writes of one key that are told from its users' since.
const WAS_MAX: usize = 256;

/// A scanned row is what its capture made of it, byte by byte.
fn hash(row: Option<Row<'_>>) -> u64 {
    row.map_or(0, |row| xxhash_rust::xxh3::xxh3_64(row.0))
}

/// A row at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Image {
    #[default]
    Unknown,
    Absent,
    Row(Vec<u8>),
}

impl Image {
    pub fn row(&self) -> Option<Row<'_>> {
        match self {
            Image::Row(row) => Some(Row(row)),
            Image::Unknown | Image::Absent => None,
        }
    }

    /// A difference tells nothing where what it was added to is not known.
    fn of(row: Option<Row<'_>>) -> Self {
        let Some(row) = row else { return Image::Absent };
        let mut image = Vec::with_capacity(row.0.len());
        let known = |datum| if matches!(datum, Datum::Added(_)) { Datum::NotSent } else { datum };
        row.iter().for_each(|datum| write_datum(&mut image, known(datum)));
        Image::Row(image)
    }

    fn put(&self, out: &mut Vec<u8>) {
        let (tag, row): (u8, &[u8]) = match self {
            Image::Unknown => (0, &[]),
            Image::Absent => (1, &[]),
            Image::Row(row) => (2, row),
        };
        out.push(tag);
        out.extend_from_slice(&(row.len() as u32).to_le_bytes());
        out.extend_from_slice(row);
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (row, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        *bytes = rest;
        Some(match tag {
            0 => Image::Unknown,
            1 => Image::Absent,
            _ => Image::Row(row.to_vec()),
        })
    }
}

/// Whose the newest journaled version of a key is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Newest {
    #[default]
    Nobodys,
    /// Its applier brings it.
    Others,
    /// Its applier passes over it: it is the system's own.
    Own,
    /// A copied row, on its way.
    Copied,
}

/// What the journal knows of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// As the system has it, unless its users wrote since.
    pub is: Image,
    /// What its own writes made of it that may be missing there, by hash: a backup may be from
    /// between any two of them. The last ones, of a row that is written all the time.
    pub was: Vec<u64>,
    /// Before the first version that it has not seen.
    pub before: Image,
    pub newest: Newest,
    /// Of the version in `is`.
    pub seq: Seq,
    pub seq_is_own: bool,
}

impl Known {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.newest as u8, u8::from(self.seq_is_own)];
        out.extend_from_slice(&self.seq.to_le_bytes());
        [&self.is, &self.before].into_iter().for_each(|image| image.put(&mut out));
        self.was.iter().for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ([newest, own], rest) = bytes.split_first_chunk::<2>()?;
        let (seq, mut rest) = rest.split_first_chunk::<8>()?;
        let newest = match newest {
            0 => Newest::Nobodys,
            1 => Newest::Others,
            2 => Newest::Own,
            _ => Newest::Copied,
        };
        let (is, before) = (Image::take(&mut rest)?, Image::take(&mut rest)?);
        let (was, rest) = rest.as_chunks::<8>();
        let was = was.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        let seq = u64::from_le_bytes(*seq);
        rest.is_empty().then_some(Known { is, was, before, newest, seq, seq_is_own: *own != 0 })
    }

    /// The row is one that the system itself had, at some time that its tables may be from.
    pub fn was(&self, here: Option<Row<'_>>) -> bool {
        self.was.contains(&hash(here))
    }

    pub(super) fn wrote(&mut self, after: Option<Row<'_>>) {
        if self.was.len() >= WAS_MAX {
            self.was.remove(0);
        }
        self.was.push(hash(after));
    }

    /// The change of entry `seq` as the system has it by now. What its users wrote (`base`) is there
    /// from then on, what others wrote when its marker came to `seq`.
    fn happened(&mut self, seq: Seq, base: Option<Seq>, after: Option<Row<'_>>) {
        if self.seq > 0 && !self.seq_is_own && base.is_some_and(|base| base < self.seq) {
            return;
        }
        self.is = match (after, self.is.row()) {
            (Some(after), Some(is)) => Image::Row(overlay(is, after)),
            (after, _) => Image::of(after),
        };
        (self.seq, self.seq_is_own) = (seq, base.is_some());
    }
}

pub struct Past {
    name: Arc<str>,
    mark: ResyncMark,
    /// By entity: those that the system writes.
    plans: Vec<Option<Plan>>,
    schema: Arc<Schema>,
    journal: Journal,
    /// Behind what was taken in.
    reader: Option<Reader>,
    dir: PathBuf,
    store: Option<(Database, Keyspace)>,
    translation: Option<(u64, Option<Translation>)>,
}

impl Past {
    /// Reads what the journal has. Takes its time.
    pub fn open(
        mark: &ResyncMark,
        plans: Vec<Option<Plan>>,
        schema: Arc<Schema>,
        journal: Journal,
        dir: PathBuf,
    ) -> Result<Self> {
        let (name, mark) = (mark.system.clone(), mark.clone());
        let mut past = Past { name, mark, plans, schema, journal, reader: None, dir, store: None, translation: None };
        past.forget()?;
        let oldest = past.journal.oldest();
        let receives = |plan: &Plan| plan.binding.role.receives();
        let all_receive = past.plans.iter().flatten().all(receives);
        let from = if all_receive { (past.mark.marker + 1).max(oldest) } else { oldest };
        let mut reader = past.journal.reader(from)?;
        while let Some(record) = reader.next()? {
            if let Record::Entry(entry) = record {
                past.note(&entry)?;
            }
        }
        let end = reader.seq();
        past.reader = Some(reader);
        if past.store.is_some() {
            let mut reader = past.journal.reader(oldest)?;
            while reader.seq() < end
                && let Some(record) = reader.next()?
            {
                if let Record::Entry(entry) = record {
                    past.happened(&entry)?;
                }
            }
        }
        Ok(past)
    }

    /// Takes in what was journaled since.
    pub fn follow(&mut self) -> Result<()> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        while let Some(record) = reader.next()? {
            if let Record::Entry(entry) = record {
                self.note(&entry)?;
                self.happened(&entry)?;
            }
        }
        self.reader = Some(reader);
        Ok(())
    }

    /// `None`: there is nothing that the system had not seen.
    pub fn known(&self, key_hash: u128) -> Result<Option<Known>> {
        let Some((_, keyspace)) = &self.store else { return Ok(None) };
        let found = keyspace.get(key_hash.to_be_bytes()).map_err(|error| self.broken(error))?;
        let known = found.map(|bytes| Known::decode(&bytes).ok_or_else(|| self.broken("it is not as it was written")));
        known.transpose()
    }

    fn put(&mut self, key_hash: u128, known: &Known) -> Result<()> {
        if self.store.is_none() {
            let opened = open(&self.dir).map_err(|error| self.broken(error))?;
            self.store = Some(opened);
        }
        let (_, keyspace) = self.store.as_ref().expect("opened above");
        keyspace.insert(key_hash.to_be_bytes(), known.encode()).map_err(|error| self.broken(error))
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::retry(format!("{} cannot be used", self.dir.display())).because(error)
    }

    /// The system wrote it before its position was lost, and may lack it: its tables are older.
    fn may_lack(&self, entry: &Entry) -> bool {
        self.mark.restored && entry.base >= self.mark.marker && entry.seq <= self.mark.head
    }

    /// Keys with versions that the system had not seen.
    fn note(&mut self, entry: &Entry) -> Result<()> {
        let (own, unseen) = (self.is_own(entry), entry.seq > self.mark.marker);
        let lacks = own && self.may_lack(entry);
        self.each(entry, &mut |past, change, fate| {
            let Some(plan) = past.plan(change.entity) else { return Ok(()) };
            let receives = plan.binding.role.receives();
            if (!unseen && receives) || (!own && (!receives || fate == Mine::Nothing)) {
                return Ok(());
            }
            let mut known = past.known(change.key_hash)?.unwrap_or_default();
            if lacks {
                known.wrote(past.image(change).row());
            }
            let told = !entry.is_copy() && entry.origin != Origin::Agent;
            if known.before == Image::Unknown && told && (lacks || !own) {
                known.before = match change.op {
                    Op::Insert => Image::Absent,
                    Op::Update | Op::Delete => change.before.map_or(Image::Unknown, |row| Image::Row(row.0.to_vec())),
                };
            }
            known.newest = match fate {
                _ if entry.is_copy() => Newest::Copied,
                Mine::Own => Newest::Own,
                Mine::Rejected => known.newest,
                _ => Newest::Others,
            };
            past.put(change.key_hash, &known)
        })
    }

    /// What the system has of an entry, for the keys that were noted.
    fn happened(&mut self, entry: &Entry) -> Result<()> {
        let own = self.is_own(entry);
        let is_there = if own { !self.may_lack(entry) } else { entry.seq <= self.mark.marker };
        if !is_there {
            return Ok(());
        }
        self.each(entry, &mut |past, change, fate| {
            let receives = past.plan(change.entity).is_some_and(|plan| plan.binding.role.receives());
            if !own && (!receives || fate == Mine::Nothing) {
                return Ok(());
            }
            let Some(mut known) = past.known(change.key_hash)? else { return Ok(()) };
            let after = past.image(change);
            let came_back = fate == Mine::Comes && entry.seq <= past.mark.marker;
            known.happened(entry.seq, (own && !came_back).then_some(entry.base), after.row());
            past.put(change.key_hash, &known)
        })
    }

    fn is_own(&self, entry: &Entry) -> bool {
        matches!(&entry.origin, Origin::System(name) if *name == self.name)
    }

    fn plan(&self, entity: EntityId) -> Option<&Plan> {
        self.plans.get(entity.index())?.as_ref()
    }

    /// What the change leaves in the system's table, as far as its binding goes.
    fn image(&self, change: &Change<'_>) -> Image {
        let belongs = |row: &Row<'_>| self.plan(change.entity).is_none_or(|plan| plan.belongs(*row));
        Image::of(change.after.filter(|_| change.op != Op::Delete).filter(belongs))
    }

    /// Every change of an entry in the present schema, with what it is to the system: as its users
    /// wrote it, or as its applier is to write it.
    fn each(&mut self, entry: &Entry, found: &mut dyn FnMut(&mut Self, &Change<'_>, Mine) -> Result<()>) -> Result<()> {
        let own = self.is_own(entry);
        // As the applier wrote it; what is its own and did not come is as its users wrote it.
        let came = !own || entry.seq <= self.mark.marker;
        if self.translation.as_ref().is_none_or(|(id, _)| *id != entry.schema.id) {
            self.translation = Some((entry.schema.id, Translation::between(&entry.schema, &self.schema)));
        }
        let (mut index, mut others, mut here, mut scratch) = (0, 0, 0, ChangeWriter::default());
        let mut chunk = |past: &mut Self, chunk: &[u8]| {
            for change in Changes::new(chunk) {
                let for_others = entry.fate(index, "", &mut others);
                let for_it = entry.fate(index, &past.name, &mut here);
                index += 1;
                let (change, mine) = match (for_others, for_it) {
                    (_, Fate::Apply) => (change, Mine::Comes),
                    (_, Fate::Replace(with)) if came => (with.change(), Mine::Comes),
                    (_, Fate::Replace(_)) => (change, Mine::Comes),
                    (Fate::Skip, Fate::Skip) if own => (change, Mine::Rejected),
                    (_, Fate::Skip) if own => (change, Mine::Own),
                    (_, Fate::Skip) => (change, Mine::Nothing),
                };
                scratch.bytes.clear();
                let translated = match &past.translation {
                    Some((_, Some(translation))) => {
                        if !translation.translate(&change, &mut scratch) {
                            continue;
                        }
                        Changes::new(&scratch.bytes).next().expect("just written")
                    }
                    _ => change,
                };
                found(past, &translated, mine)?;
            }
            Ok(())
        };
        match &entry.body {
            Body::Inline(bytes) => chunk(self, bytes),
            Body::Spooled(spool) => {
                let mut chunks = self.journal.spool_chunks(spool)?;
                while let Some(bytes) = chunks.next()? {
                    chunk(self, &bytes)?;
                }
                Ok(())
            }
        }
    }

    fn forget(&mut self) -> Result<()> {
        self.store = None;
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.broken(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        if let Err(error) = self.forget() {
            tracing::debug!(error = %error.full(), "left behind");
        }
    }
}

/// What a change is to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mine {
    /// It wrote it, and the others have it.
    Own,
    /// It wrote it, and lost.
    Rejected,
    /// Its applier writes it, whoever wrote it first.
    Comes,
    Nothing,
}

fn open(dir: &PathBuf) -> fjall::Result<(Database, Keyspace)> {
    std::fs::create_dir_all(dir)?;
    let database = Database::builder(dir).cache_size(8 << 20).worker_threads(1).open()?;
    let keyspace = database.keyspace("keys", KeyspaceCreateOptions::default)?;
    Ok((database, keyspace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{Datum, Value, write_datum};

    #[test]
    fn what_is_kept_reads_back() {
        let known = Known {
            is: Image::Row(vec![1, 2, 3]),
            was: vec![1, 2],
            before: Image::Unknown,
            newest: Newest::Copied,
            seq: 7,
            seq_is_own: true,
        };

        assert_eq!(Known::decode(&known.encode()), Some(known.clone()));
        assert_eq!(Known::decode(&known.encode()[..5]), None);
    }

    /// S wrote k (entry 5, having seen 3) before it received entry 4: what 4 made of it is there.
    #[test]
    fn a_systems_own_order_decides_not_the_journals() {
        let row = |n: i64| {
            let mut row = Vec::new();
            write_datum(&mut row, Datum::Value(Value::Int(n)));
            row
        };
        let mut known = Known::default();

        known.happened(4, None, Some(Row(&row(4))));
        known.happened(5, Some(3), Some(Row(&row(5))));
        assert_eq!(known.is, Image::Row(row(4)));

        known.happened(6, Some(4), Some(Row(&row(6))));
        assert_eq!((known.is.clone(), known.seq), (Image::Row(row(6)), 6));
        known.happened(7, Some(4), None);
        assert_eq!(known.is, Image::Absent);
    }
}
