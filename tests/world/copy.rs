//! Loads in the simulation: rows that were there before, read in chunks while everybody writes.

use std::collections::BTreeMap;

use anechoic::admit::{Changed, Copied};
use anechoic::change::{ChangeWriter, Op};
use anechoic::position::Seq;
use anechoic::schema::SystemId;

use super::model::{CONTACT, Contact, Local, Logged};
use super::run::World;

/// The first system is the authority: what it has is copied.
const SOURCE: usize = 0;

/// A chunk under way: all keys, for there are few.
pub struct Chunk {
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

    /// The next step of the load: low watermark, read, high watermark passed and admitted.
    pub fn load(&mut self) -> Result<(), String> {
        match self.chunk.take() {
            None => {
                let base = self.arbiter.open_chunk(SystemId(SOURCE as u8));
                self.chunk = Some(Chunk { at: self.captures[SOURCE].at, base, read: None });
            }
            Some(Chunk { at, base, read: None }) => {
                let system = &self.systems[SOURCE];
                self.chunk = Some(Chunk { at, base, read: Some((system.rows.clone(), system.log.len())) });
            }
            Some(Chunk { at, base, read: Some((rows, until)) }) => match self.captures[SOURCE].at >= until {
                true => self.admit_chunk(at, base, &rows)?,
                false => self.chunk = Some(Chunk { at, base, read: Some((rows, until)) }),
            },
        }
        Ok(())
    }

    fn admit_chunk(&mut self, at: usize, base: Seq, rows: &BTreeMap<i64, Contact>) -> Result<(), String> {
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
        let copies = self.arbiter.copied(copied, &self.changed(at, base)).map_err(|e| e.full())?;
        self.arbiter.close_chunk(base);
        if std::env::var("ANECHOIC_TRACE").is_ok() {
            println!("chunk at {at} base {base} {rows:?} taken {} lost {:?}", copies.taken, copies.lost);
        }
        self.tally.copied += copies.taken;
        self.tally.lost += copies.lost.len() as u64;
        // What told all of a row makes another try needless.
        self.loaded = copies.lost.iter().all(|lost| lost.told);
        self.log.append(copies.admitted.records);
        Ok(())
    }

    /// What the authority's own log has told behind `at`, where it had this base.
    fn changed(&self, at: usize, mut base: Seq) -> Changed {
        let source = &self.systems[SOURCE];
        let mut changed = Changed::watching((0..self.keys as i64).map(|key| self.hash(key)).collect());
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
