//! Loads in the simulation: rows that were there before, read in chunks while everybody writes.

use std::collections::{BTreeMap, BTreeSet};

use anechoic::admit::{Changed, Copied};
use anechoic::change::{ChangeWriter, Op};
use anechoic::position::Seq;
use anechoic::schema::SystemId;
use anechoic::value::{Row, write_datum};
use bytes::Bytes;

use super::model::{CONTACT, Contact, Local, Logged, datum, number};
use super::run::World;

/// The first system is the authority: what it has is copied.
const SOURCE: usize = 0;

/// How far a load is. A crash leaves it where the journal has it.
#[derive(Clone, Default)]
pub struct Mark {
    /// The table was read to its end.
    ended: bool,
    /// Rows that lost, and are to be read again.
    lost: BTreeSet<i64>,
    pub done: bool,
}

/// A chunk under way: all keys, for there are few, or those that lost before.
pub struct Chunk {
    keys: Option<BTreeSet<i64>>,
    /// Low watermark: what its log had been read to, and the base there.
    at: usize,
    base: Seq,
    /// What was read, and how long the log was then: the high watermark.
    read: Option<(BTreeMap<i64, Contact>, usize)>,
}

impl World {
    /// Rows that nobody's log knows of: the authority has some, the others some of these.
    pub fn fill(&mut self) {
        for key in 0..self.keys as i64 {
            if self.random.percent(30) {
                continue;
            }
            for system in 0..self.systems.len() {
                if system == SOURCE || self.random.percent(40) {
                    self.value += 10;
                    let value = self.value;
                    self.systems[system].rows.insert(key, std::array::from_fn(|field| Some(value + field as i64)));
                }
            }
        }
    }

    /// The load goes on from its last mark that was synced.
    pub fn resume_load(&mut self) {
        self.marks.retain(|(at, _)| *at <= self.log.durable);
        self.mark = self.marks.last().map(|(_, mark)| mark.clone()).unwrap_or_default();
        (self.chunk, self.load_from) = (None, None);
    }

    pub fn is_loaded(&self) -> bool {
        !self.loads || self.mark.done
    }

    /// The next step of the load: low watermark, read, high watermark passed and admitted.
    pub fn load(&mut self) -> Result<(), String> {
        if self.mark.done {
            if self.loads_again {
                (self.mark, self.load_from) = (Mark::default(), None);
            }
            return Ok(());
        }
        match self.chunk.take() {
            None => {
                // As the agent has it: its source has first what was journaled before.
                let from = *self.load_from.get_or_insert(self.arbiter.head());
                if self.appliers[SOURCE].as_ref().is_some_and(|applier| applier.passed() < from) {
                    return Ok(());
                }
                let keys = self.mark.ended.then(|| self.mark.lost.clone());
                let base = self.arbiter.open_chunk(SystemId(SOURCE as u8));
                self.chunk = Some(Chunk { keys, at: self.captures[SOURCE].at, base, read: None });
            }
            Some(Chunk { keys, at, base, read: None }) => {
                let system = &self.systems[SOURCE];
                let mut rows = system.rows.clone();
                rows.retain(|key, _| keys.as_ref().is_none_or(|keys| keys.contains(key)));
                self.chunk = Some(Chunk { keys, at, base, read: Some((rows, system.log.len())) });
            }
            Some(Chunk { keys, at, base, read: Some((rows, until)) }) => match self.captures[SOURCE].at >= until {
                true => self.admit_chunk(keys.as_ref(), at, base, &rows)?,
                false => self.chunk = Some(Chunk { keys, at, base, read: Some((rows, until)) }),
            },
        }
        Ok(())
    }

    fn admit_chunk(
        &mut self,
        keys: Option<&BTreeSet<i64>>,
        at: usize,
        base: Seq,
        rows: &BTreeMap<i64, Contact>,
    ) -> Result<(), String> {
        let mut writer = ChangeWriter::default();
        let fields = self.systems[SOURCE].fields;
        for (key, row) in rows {
            let change = Local::Contact { op: Op::Insert, key: *key, before: None, after: Some(*row) };
            self.encode(&mut writer, fields, &change);
        }
        let copied = Copied {
            system: SystemId(SOURCE as u8),
            base,
            txid: "load".into(),
            read_at: self.now,
            schema: self.schema.clone(),
            rows: writer.take().into(),
            to: None,
        };
        let changed = self.changed(keys, at, base);
        let copies = self.arbiter.copied(copied, &changed).map_err(|e| e.full())?;
        let missed = self.missed(keys, base, rows).map_err(|e| e.full())?;
        self.arbiter.close_chunk(base);
        if std::env::var("ANECHOIC_TRACE").is_ok() {
            let (taken, lost) = (copies.taken, &copies.lost);
            println!("chunk at {at} base {base} of {keys:?}: {rows:?} taken {taken} lost {lost:?} missed {missed:?}");
        }
        self.tally.copied += copies.taken;
        self.tally.lost += copies.lost.len() as u64;
        self.tally.missed += missed.len() as u64;
        self.log.append(copies.admitted.records);
        // What told all of a row makes another try needless.
        let again = |key: &i64| copies.lost.iter().any(|lost| !lost.told && lost.key_hash == self.hash(*key));
        let lost: BTreeSet<i64> = (0..self.keys as i64).filter(again).chain(missed).collect();
        // Only the ends of the table and of the load are noted.
        let noted = keys.is_none() || lost.is_empty();
        self.mark = Mark { ended: true, done: lost.is_empty(), lost };
        if noted {
            self.marks.push((self.log.records.len(), self.mark.clone()));
        }
        Ok(())
    }

    /// Keys of rows that were not there, and are not gone.
    fn missed(
        &mut self,
        keys: Option<&BTreeSet<i64>>,
        base: Seq,
        rows: &BTreeMap<i64, Contact>,
    ) -> anechoic::error::Result<Vec<i64>> {
        let source = SystemId(SOURCE as u8);
        let missed = match keys {
            None => self.arbiter.missed(source, CONTACT, base)?.expect("there are few keys"),
            Some(keys) => {
                let encoded = |key: &i64| {
                    let mut row = Vec::new();
                    write_datum(&mut row, datum(Some(*key), false));
                    (self.hash(*key), Bytes::from(row))
                };
                let absent = keys.iter().filter(|key| !rows.contains_key(key)).map(encoded).collect();
                self.arbiter.not_gone(source, CONTACT, base, absent)?
            }
        };
        Ok(missed.iter().map(|key| number(Row(key).get(0)).expect("keys are numbers")).collect())
    }

    /// What the authority's own log has told behind `at`, where it had this base.
    fn changed(&self, watched: Option<&BTreeSet<i64>>, at: usize, mut base: Seq) -> Changed {
        let source = &self.systems[SOURCE];
        let mut changed = Changed::watching(watched.into_iter().flatten().map(|key| self.hash(*key)).collect());
        let mut writer = ChangeWriter::default();
        for logged in &source.log[at..self.captures[SOURCE].at] {
            if let Logged::Echo { seq, .. } = logged {
                base = base.max(*seq);
            }
            for change in source.committed(logged) {
                self.encode(&mut writer, source.fields, change);
                changed.note_changes(CONTACT, &writer.take(), base);
            }
        }
        changed
    }
}
