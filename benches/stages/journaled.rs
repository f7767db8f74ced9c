//! What follows capture: admission, the journal, and the batch that becomes statements.

use anechoic::admit::{Arbiter, Bodies, MemoryStore, Topology};
use anechoic::apply::batch::{Batch, Group, Routes};
use anechoic::apply::mysql::statement::{self, Facts, Form};
use anechoic::apply::sql::Shape;
use anechoic::change::{Body, Captured, Change, ChangeWriter, Changes, Entry, Micros, Record, SpoolRef};
use anechoic::connect::mysql::Flavour;
use anechoic::error::Result;
use anechoic::journal::{self, Journal, Options, Reader, Writer};
use anechoic::position::Seq;
use anechoic::schema::SystemId;
use anechoic::value::{Datum, key_hash};
use bytes::Bytes;

use super::table::{self, Mapping, ROWS, Stage};

/// Nothing of these transactions lies elsewhere.
struct Inline;

impl Bodies for Inline {
    fn chunks(&self, _: &SpoolRef, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        unreachable!("nothing is spooled")
    }
    fn committed_at(&self, _: Seq) -> Result<Option<Micros>> {
        Ok(None)
    }
    fn image(&self, _: Seq, _: u128) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

pub struct Journaled {
    entry: Entry,
    writer: Writer,
    journal: Journal,
    _dir: tempfile::TempDir,
}

/// Of the two systems, with nothing in its index.
pub fn arbiter() -> Arbiter {
    let (config, model) = table::model(Mapping::Plain);
    let systems = config.systems.iter().map(|system| system.name.clone()).collect();
    let topology = Topology::new(systems, model.schema.clone(), &model.bindings, &model.rules);
    Arbiter::new(topology, Box::new(MemoryStore::default()))
}

pub fn admit(arbiter: &mut Arbiter, captured: Captured) -> Vec<Record> {
    arbiter.captured(captured, &Inline).expect("admitted").records
}

impl Journaled {
    pub fn new() -> Journaled {
        let (mut stage, mut first) = (Stage::new(Mapping::Plain), arbiter());
        let mut records = admit(&mut first, stage.transaction());
        let Some(Record::Entry(entry)) = records.pop() else { panic!("nothing was journaled") };
        let dir = tempfile::tempdir().expect("a directory");
        let (writer, journal, _) = journal::open(&Options::new(dir.path(), 64 << 30)).expect("a journal");
        Journaled { entry, writer, journal, _dir: dir }
    }

    /// Without the sync, which is the disk's.
    pub fn append(&mut self) {
        self.entry.seq = self.journal.head() + 1;
        self.writer.append(&Record::Entry(self.entry.clone())).expect("appended");
    }

    pub fn sync(&mut self) {
        self.writer.sync().expect("synced");
    }

    pub fn reader(&self) -> Reader {
        self.journal.reader(1).expect("from the beginning")
    }
}

/// Changes of the next record; none at the journal's end.
pub fn read(reader: &mut Reader) -> usize {
    match reader.next().expect("readable") {
        Some(Record::Entry(Entry { body: Body::Inline(body), .. })) => Changes::new(&body).count(),
        Some(other) => panic!("{other:?}"),
        None => 0,
    }
}

/// A thousand changes of some keys, for MySQL.
pub struct Batched {
    routes: Routes,
    body: Bytes,
}

impl Batched {
    pub fn new(keys: u64) -> Batched {
        let (config, model) = table::model(Mapping::Plain);
        let system = SystemId(1);
        let name = config.systems[system.index()].name.clone();
        let routes = Routes::new(system, name, model.schema.clone(), &model.bindings[system.index()]);
        let Body::Inline(inserts) = Stage::new(Mapping::Plain).transaction().body else { panic!("spooled") };
        let entity = &model.schema.entities[0];
        let (mut writer, mut scratch) = (ChangeWriter::default(), Vec::new());
        for (n, change) in (0..).zip(Changes::new(&inserts)) {
            let key = Datum::Value(anechoic::value::Value::Int(1 + n % keys as i64));
            let hash = key_hash(entity.seed, std::iter::once(key), &mut scratch);
            let mut row = Vec::new();
            anechoic::value::write_datum(&mut row, key);
            let rest = change.image().iter().skip(1);
            rest.for_each(|datum| anechoic::value::write_datum(&mut row, datum));
            writer.push_change(&Change { key_hash: hash, after: Some(anechoic::value::Row(&row)), ..change });
        }
        Batched { routes, body: writer.take().into() }
    }

    pub fn groups(&self) -> Vec<Group> {
        let mut batch = Batch::default();
        batch.reserve(ROWS as usize);
        Changes::new(&self.body).for_each(|change| batch.add(&self.routes, &self.body, &change));
        batch.groups(&self.routes)
    }
}

/// Appends the statement that writes the group to MySQL.
pub fn statement(group: &Group, out: &mut Vec<u8>) {
    let binding = &group.binding;
    let facts = Facts { flavour: Flavour::Mysql, sole_key: true, collations: vec![None] };
    let shape = Shape::of(binding, group.carried, group.added);
    let patterns = statement::write(binding, &shape, group.write, Form::Propose, &facts);
    let (pattern, rows) = (&patterns[0], group.rows());
    let mut datums = Vec::new();
    for chunk in rows.chunks(pattern.rows_max()) {
        pattern.begin(out);
        for (nth, row) in chunk.iter().enumerate() {
            datums.clear();
            datums.extend(row.iter());
            pattern.row(binding, &shape, &datums, nth == 0, out).expect("spelled");
        }
        pattern.end(out);
    }
}
