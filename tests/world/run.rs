//! Drives the arbiter and the appliers' steps against the model: seeded interleavings,
//! crashes, restarts, then quiet and the checks.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::AddAssign;
use std::sync::Arc;

use anechoic::admit::checkpoint::{Saved, verify};
use anechoic::admit::{Admitted, Arbiter, Bugs, ByHand, MemoryStore, Topology};
use anechoic::apply::batch::Routes;
use anechoic::apply::lanes::Flight;
use anechoic::apply::steps::{Action, Event, Limits, Opened, Steps};
use anechoic::audit::resolve::{self, Choice};
use anechoic::change::{
    Body, Captured, Change, ChangeWriter, Changes, Op, Prepared, Quarantined, Record, Rule, SpoolRef,
};
use anechoic::error::{Error, Result};
use anechoic::journal::Tip;
use anechoic::normalize::binding::Role;
use anechoic::normalize::echo::{Echo, Watch};
use anechoic::position::{Position, Seq};
use anechoic::rules::{Merge, OnClash, OnDelete, Policy, Rules, Unique};
use anechoic::schema::{Schema, SystemId};
use anechoic::value::{Datum, Kind, Row, write_datum};
use bytes::Bytes;

use super::check::ensure;
use super::copy::{Chunk, Mark};
use super::log::{Log, place, undecided};
use super::model::{
    CONTACT, Contact, EVENT, FIELDS, Local, Logged, Random, System, Written, bindings, datum, number, schema,
};

/// What goes wrong on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    pub bugs: Bugs,
    /// At a restart the base comes from the marker table.
    pub base_from_marker_table: bool,
    /// What triggers write in a target is taken for ours.
    pub side_effects_dropped: bool,
    /// An XA transaction has the base that it was prepared with.
    pub base_of_prepare: bool,
    /// An XA transaction is journaled when its rows are logged.
    pub journaled_when_prepared: bool,
    /// Of a batch only the last entry is known when it comes back.
    pub echo_of_last_entry: bool,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub changes: u64,
    pub conflicts: u64,
    pub rejected: u64,
    pub quarantined: u64,
    pub crashes: u64,
    pub commits: u64,
    pub held: u64,
    /// Rows of chunks that were journaled, that lost, and that were missed: on their way back.
    pub copied: u64,
    pub lost: u64,
    pub missed: u64,
    pub side_effects: u64,
    /// Differences that users made, in rows which nothing else made a whole value of: see `check_sums`.
    pub differences: u64,
    /// Conflicts that waited, and what persons did.
    pub waited: u64,
    pub by_hand: u64,
    pub decided: u64,
    /// Records that could not both be, by outcome.
    pub clashes: [u64; 6],
    /// Keys that were held when all had come to rest, and those of them that no conflict told of.
    pub left: u64,
    pub stuck: u64,
    /// Restarts from a checkpoint.
    pub restored: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.changes += other.changes;
        self.conflicts += other.conflicts;
        self.rejected += other.rejected;
        self.quarantined += other.quarantined;
        self.crashes += other.crashes;
        self.commits += other.commits;
        self.held += other.held;
        self.copied += other.copied;
        self.lost += other.lost;
        self.missed += other.missed;
        self.side_effects += other.side_effects;
        self.differences += other.differences;
        self.waited += other.waited;
        self.by_hand += other.by_hand;
        self.decided += other.decided;
        self.clashes.iter_mut().zip(other.clashes).for_each(|(sum, n)| *sum += n);
        self.left += other.left;
        self.stuck += other.stuck;
        self.restored += other.restored;
    }
}

#[derive(Clone, Copy, Default)]
pub struct Capture {
    pub at: usize,
    pub base: Seq,
}

#[derive(Debug)]
pub struct Applier {
    steps: Steps,
    /// Transactions under way, the oldest first. None is written before its turn: what a server says of it
    /// until then counts for nothing.
    aloft: VecDeque<Flight>,
    /// Next record to read.
    at: usize,
    chunk: usize,
    /// An answer that waits until this many records are synced.
    waits: Option<(usize, Event)>,
    idle: bool,
}

impl Applier {
    /// The last entry that its system has.
    pub fn passed(&self) -> Seq {
        self.steps.passed()
    }
}

pub struct World {
    pub random: Random,
    pub planted: Planted,
    pub schema: Arc<Schema>,
    pub rules: Arc<Rules>,
    pub names: Vec<Arc<str>>,
    pub systems: Vec<System>,
    pub captures: Vec<Capture>,
    pub appliers: Vec<Option<Applier>>,
    pub arbiter: Arbiter,
    pub log: Log,
    /// The arbiter's last checkpoint, and the records that it covers.
    pub saved: Option<(Vec<u8>, usize)>,
    /// When it is taken: apart, so that the schedules are what they are without it.
    saving: Random,
    pub now: i64,
    pub value: i64,
    pub keys: usize,
    /// Rows were there before, and are copied; perhaps again and again.
    pub loads: bool,
    pub loads_again: bool,
    pub chunk: Option<Chunk>,
    pub mark: Mark,
    /// Those that were journaled, and how many records there were with each.
    pub marks: Vec<(usize, Mark)>,
    /// What the source of the load has to have before it begins.
    pub load_from: Option<Seq>,
    /// Some local transactions are prepared first, and decided later.
    pub xa: bool,
    /// Those that are not decided, as the agent knows them.
    pub prepared: BTreeMap<(Arc<str>, Arc<str>), Prepared>,
    pub refusals: bool,
    pub faults: bool,
    pub limits: Limits,
    pub tally: Tally,
    pub counted: [u64; 3],
}

impl World {
    pub fn new(seed: u64, planted: Planted) -> Self {
        Self::with(seed, planted, None, false, false)
    }

    /// One key, and a field of it is a sum in all systems.
    pub fn with_sum(seed: u64, planted: Planted) -> Self {
        Self::with(seed, planted, None, true, false)
    }

    /// The same, of rows that were there before, and are loaded.
    pub fn with_load(seed: u64, planted: Planted) -> Self {
        Self::with(seed, planted, None, true, true)
    }

    /// One field has few values, and some of the systems want none of them twice.
    pub fn with_unique(seed: u64, planted: Planted) -> Self {
        Self::with(seed, planted, Some(Random(!seed)), false, false)
    }

    fn with(seed: u64, planted: Planted, mut unique: Option<Random>, sum: bool, load: bool) -> Self {
        let mut random = Random(seed);
        let pooled = unique.as_mut().map(|random| random.below(FIELDS));
        let schema = schema(pooled);
        let count = 2 + random.below(3);
        let names: Vec<Arc<str>> = (0..count).map(|i| format!("s{i}").into()).collect();
        let uneven = random.percent(50) && !sum;
        let special = random.below(12);
        // Where only differences follow one insert, what they come to is known without the journal.
        let only_added = random.percent(10) && unique.is_none() && !sum;
        let mut rules = rules(&mut random);
        if let Some((random, field)) = unique.as_mut().zip(pooled) {
            rules.merges.retain(|(of, _)| *of != field + 1);
            rules.version = rules.version.filter(|of| *of != field + 1);
            let on_clash = match random.below(3) {
                0 => OnClash::Reject,
                1 => OnClash::Rename("{value}-{system}-{key}".into()),
                _ => OnClash::Manual,
            };
            rules.uniques.push(Unique { field: field + 1, on_clash, chars: None });
        }
        if (only_added || sum) && rules.added() == 0 {
            rules.merges.retain(|(of, _)| *of != 2);
            rules.merges.push((2, Merge::Add));
        }
        if load && seed % 4 < 2 {
            rules.on_delete = Some(OnDelete::UpdateWins);
        }
        let rules = Arc::new(rules);
        let systems: Vec<System> = (0..count)
            .map(|i| {
                let fields = if uneven { 1 + random.below(7) as u8 } else { 7 };
                let role = match (special, i + 1 == count && count > 2) {
                    (0, true) => Role::Source,
                    (1, true) => Role::Target,
                    _ => Role::Both,
                };
                let additive = rules.added() >> 1;
                let triggers = role == Role::Both && !only_added && random.percent(30);
                let inserts = !only_added || i == 0;
                let unique = unique.as_mut().is_some_and(|random| random.percent(75));
                let own = System::new(fields, role, triggers);
                let deletes = if sum { 50 } else { 25 };
                System { additive: additive as u8, deletes, only_added, inserts, pooled, unique, ..own }
            })
            .collect();
        let keys = match unique.as_mut() {
            Some(random) => 2 + random.below(4),
            None if sum => 1,
            None => 1 + random.below(4),
        };
        let changes = if sum { 1 } else { 1 + random.below(12) as u64 };
        let connections = 1 + (seed / 7 % 3) as usize;
        let limits = Limits { changes, bytes: 1 << 20, refused: usize::MAX, window: 1000, connections };
        let refusals = !only_added && random.percent(50) && unique.as_mut().is_none_or(|random| random.percent(30));
        // Fields that the authority has not would have to come from others.
        let loads = !uneven && !only_added && (random.percent(40) || load) && pooled.is_none();
        let mut world = World {
            arbiter: arbiter(&systems, &names, &schema, &rules, planted),
            captures: vec![Capture::default(); count],
            appliers: Vec::new(),
            log: Log { schema: Some(schema.clone()), ..Log::default() },
            saved: None,
            saving: Random(seed ^ 0x5eed),
            random,
            planted,
            schema,
            rules,
            names,
            systems,
            now: 0,
            value: 0,
            keys,
            loads,
            loads_again: seed % 2 == 1,
            chunk: None,
            mark: Mark::default(),
            marks: Vec::new(),
            load_from: None,
            xa: seed.is_multiple_of(3),
            prepared: BTreeMap::new(),
            refusals,
            faults: true,
            limits,
            tally: Tally::default(),
            counted: [0; 3],
        };
        if loads {
            world.fill();
        }
        world.start_appliers();
        world
    }

    fn start_appliers(&mut self) {
        let start = |(i, system): (usize, &System)| {
            let id = SystemId(i as u8);
            let bound = bindings(id, system.role, system.fields, system.triggers, system.enforced(), &self.schema);
            let routes =
                Routes::new(id, self.names[i].clone(), self.schema.clone(), &bound).with_bugs(self.planted.bugs);
            (system.role != Role::Source).then(|| Applier {
                steps: Steps::new(routes, self.limits),
                aloft: VecDeque::new(),
                at: 0,
                chunk: 0,
                waits: None,
                idle: false,
            })
        };
        self.appliers = self.systems.iter().enumerate().map(start).collect();
    }

    /// One schedule: `steps` random steps, then quiet, then the checks.
    pub fn run(&mut self, steps: usize) -> std::result::Result<(), String> {
        for _ in 0..steps {
            self.step()?;
        }
        self.settle()?;
        if let Some(field) = self.systems[0].pooled {
            self.part(field)?;
            self.check_clashes(field)?;
        }
        if std::env::var("ANECHOIC_TRACE").is_ok() {
            println!("{:?}", self.rules);
            for (i, system) in self.systems.iter().enumerate() {
                println!("s{i} {:?} {:#?}", system.role, system.log);
            }
        }
        self.tally.waited = self.log.conflicts;
        self.tally.differences = self.check_sums()?;
        self.check_waiting()?;
        self.check()
    }

    fn step(&mut self) -> std::result::Result<(), String> {
        self.now += 50_000;
        if self.saving.percent(3) {
            self.save()?;
        }
        if self.loads && self.random.percent(10) {
            return self.load();
        }
        let system = self.random.below(self.systems.len());
        self.systems.iter_mut().for_each(|system| system.now = self.now);
        match self.random.below(101) {
            100 if self.systems[0].only_added => {}
            100 => self.by_hand(system)?,
            0..18 => self.write(system),
            18..38 => self.capture(system)?,
            38..50 => self.log.durable = self.log.records.len(),
            50..92 => self.apply(system)?,
            92..95 => {
                self.now += 1_000_000;
                let records = self.arbiter.tick(self.now);
                self.log.append(records);
            }
            95 => self.crash()?,
            96 => {
                self.record_positions();
                self.log.durable = self.log.records.len();
                let needed = self.arbiter.needed_from();
                self.log.drop_below(needed);
            }
            _ if self.refusals => {
                let residue = self.random.below(4) as i64;
                self.systems[system].refuses = self.random.percent(50).then_some(residue);
            }
            _ => {}
        }
        Ok(())
    }

    /// A person decides: a conflict that waits, or a record as somebody has it.
    fn by_hand(&mut self, system: usize) -> std::result::Result<(), String> {
        let open: Vec<_> = self.arbiter.conflicts().cloned().collect();
        let mut writer = ChangeWriter::default();
        let mut resolves = None;
        if open.is_empty() || self.random.percent(30) {
            let here = &self.systems[system];
            let Some((key, row)) = here.rows.iter().next() else { return Ok(()) };
            let (key, row, fields) = (*key, *row, here.fields);
            let change = match self.random.percent(50) {
                true => Local::Contact { op: Op::Delete, key, before: Some(row), after: None },
                false => Local::Contact { op: Op::Insert, key, before: None, after: Some(row) },
            };
            self.encode_whole(&mut writer, fields, &change);
            self.in_part(&mut writer);
        } else {
            let conflict = &open[self.random.below(open.len())];
            if self.random.percent(30) {
                let records = self.arbiter.keep(conflict.id);
                self.log.append(records);
                return Ok(());
            }
            let waiting = conflict.images.as_ref().unwrap();
            writer.push_change(&Changes::new(&waiting.change).next().unwrap());
            resolves = Some(conflict.id);
        }
        self.tally.by_hand += 1;
        let changes = writer.count;
        let body = Body::Inline(writer.take().into());
        let schema = self.schema.clone();
        let by_hand = ByHand { txid: "person".into(), at: self.now, schema, body, changes, resolves };
        let admitted = self.arbiter.by_hand(by_hand, &self.log).map_err(|e| e.full())?;
        if let Some(id) = resolves {
            ensure!(self.arbiter.conflict(id).is_none(), "{id} waits although it was resolved");
        }
        self.log.append(admitted.records);
        Ok(())
    }

    /// Now and then of a row that is there one field alone, as `resolve --set` has it.
    fn in_part(&mut self, writer: &mut ChangeWriter) {
        let whole = writer.bytes.clone();
        let change = Changes::new(&whole).next().unwrap();
        let Some(after) = change.after.filter(|_| self.random.percent(50)) else { return };
        let field = 1 + self.random.below(FIELDS);
        if !after.get(field).is_sent() || !self.truth().0.contains_key(&change.key_hash) {
            return;
        }
        let mut part = Vec::new();
        let kept = |at: usize| at == 0 || at == field;
        after
            .iter()
            .enumerate()
            .for_each(|(at, datum)| write_datum(&mut part, if kept(at) { datum } else { Datum::NotSent }));
        writer.take_back();
        writer.push_change(&Change { op: Op::Update, before: Some(after), after: Some(Row(&part)), ..change });
    }

    fn write(&mut self, system: usize) {
        if self.systems[system].role == Role::Target {
            return;
        }
        let size = 1 + self.random.below(3);
        if self.xa {
            match self.random.below(100) {
                0..25 => {
                    let Self { systems, random, keys, value, .. } = self;
                    return systems[system].prepare_locally(random, *keys, size, value);
                }
                25..55 => return self.decide(system),
                _ => {}
            }
        }
        let done = self.systems[system].write_locally(&mut self.random, self.keys, size, &mut self.value);
        self.tally.changes += done.len() as u64;
    }

    /// One of what the system has prepared.
    fn decide(&mut self, system: usize) {
        let xids: Vec<u64> = self.systems[system].prepared.keys().copied().collect();
        if !xids.is_empty() {
            let xid = xids[self.random.below(xids.len())];
            let committed = self.random.percent(75);
            self.tally.changes += self.systems[system].decide(xid, committed) as u64;
        }
    }

    /// Hands the next transaction of the system's log to the arbiter.
    fn capture(&mut self, system: usize) -> std::result::Result<(), String> {
        let Capture { at, base } = self.captures[system];
        let Some(logged) = self.systems[system].log.get(at) else { return Ok(()) };
        let id = SystemId(system as u8);
        let position = Position::Memory { index: at as u64 + 1 };
        let admitted = match logged.clone() {
            Logged::Echo { seq, rows, .. } => {
                let left = self.side_effects(system, base, seq, &rows);
                self.captures[system].base = base.max(seq);
                let base = self.captures[system].base;
                if !left.is_empty() {
                    self.tally.changes += left.len() as u64;
                    self.tally.side_effects += left.len() as u64;
                    let captured = self.captured(id, position, base, &left);
                    let admitted = self.arbiter.captured(captured, &self.log).map_err(|e| e.full())?;
                    self.captures[system].at += 1;
                    self.admitted(admitted);
                    return self.decide_clashes();
                }
                let mut admitted = self.arbiter.passed(id, position, base, "".into()).map_err(|e| e.full())?;
                // The journal need not hear of every echo at once.
                if self.random.percent(50) {
                    admitted.records.retain(|record| !matches!(record, Record::Position { .. }));
                }
                admitted
            }
            Logged::Decided { .. } if self.planted.journaled_when_prepared => {
                self.arbiter.passed(id, position, base, "".into()).map_err(|e| e.full())?
            }
            Logged::Prepared(_, changes) if self.planted.journaled_when_prepared => {
                let captured = self.captured(id, position, base, &changes);
                self.arbiter.captured(captured, &self.log).map_err(|e| e.full())?
            }
            Logged::Local(changes) => {
                let captured = self.captured(id, position, base, &changes);
                self.arbiter.captured(captured, &self.log).map_err(|e| e.full())?
            }
            Logged::Prepared(xid, changes) => self.prepared(id, xid, position, base, &changes)?,
            Logged::Decided { xid, committed } => self.decided(id, xid, committed, position, base)?,
        };
        self.captures[system].at += 1;
        self.admitted(admitted);
        self.decide_clashes()
    }

    /// As the desk does it: after all that may have shown a marker.
    fn decide_clashes(&mut self) -> std::result::Result<(), String> {
        for admitted in self.arbiter.decide_clashes(self.now, &self.log).map_err(|e| e.full())? {
            for record in &admitted.records {
                if let Record::Conflict(conflict) = record {
                    self.tally.clashes[conflict.outcome as usize - 1] += 1;
                }
            }
            self.log.append(admitted.records);
        }
        Ok(())
    }

    /// As the desk does it: kept, with how far the log was read.
    fn prepared(
        &mut self,
        system: SystemId,
        xid: u64,
        position: Position,
        base: Seq,
        changes: &[Local],
    ) -> std::result::Result<Admitted, String> {
        let name = self.names[system.index()].clone();
        let mut admitted = self.arbiter.passed(system, position.clone(), base, "".into()).map_err(|e| e.full())?;
        let spool = self.spooled(system, changes);
        let prepared = Prepared {
            system: name.clone(),
            xid: xid.to_string().into(),
            position,
            base,
            schema: self.schema.clone(),
            changes: changes.len() as u64,
            spool: Some(spool),
            refused: Vec::new(),
        };
        admitted.records.push(Record::Prepared(prepared.clone()));
        self.prepared.insert((name, prepared.xid.clone()), prepared);
        Ok(admitted)
    }

    /// Takes its place in the order now, with the base of now.
    fn decided(
        &mut self,
        system: SystemId,
        xid: u64,
        committed: bool,
        position: Position,
        base: Seq,
    ) -> std::result::Result<Admitted, String> {
        let (name, xid): (_, Arc<str>) = (self.names[system.index()].clone(), xid.to_string().into());
        let prepared = self.prepared.remove(&(name.clone(), xid.clone()));
        let prepared = prepared.ok_or_else(|| format!("{name} decides {xid}, and nobody knows it"))?;
        self.tally.decided += 1;
        if !committed {
            let mut admitted = self.arbiter.passed(system, position.clone(), base, "".into()).map_err(|e| e.full())?;
            admitted.records.push(Record::Decided { system: name, xid, position, base });
            return Ok(admitted);
        }
        let base = if self.planted.base_of_prepare { prepared.base } else { base };
        let body = Body::Spooled(prepared.spool.expect("every one has changes"));
        let captured = Captured { body, changes: prepared.changes, ..self.captured(system, position, base, &[]) };
        self.arbiter.captured(captured, &self.log).map_err(|e| e.full())
    }

    /// Of the rows of an echo those that are not ours, as the normalizer finds them.
    fn side_effects(&mut self, system: usize, base: Seq, seq: Seq, rows: &[Local]) -> Vec<Local> {
        let (id, here) = (SystemId(system as u8), &self.systems[system]);
        let bound = bindings(id, here.role, here.fields, here.triggers, here.enforced(), &self.schema);
        let Some(watch) = Watch::new(self.names[system].clone(), self.schema.clone(), &bound) else {
            return Vec::new();
        };
        let watch = watch.keys_max(1 + self.random.below(3) as u64);
        let held = self.arbiter.quarantine().filter(|record| record.system == self.names[system]);
        let key = |record: &Quarantined| (Changes::new(&record.change).next().unwrap().key_hash, record.held_seq);
        let held: HashMap<u128, Seq> = held.map(key).collect();
        if std::env::var("ANECHOIC_TRACE").is_ok() {
            println!("s{system} shows echo {base}..{seq} held {held:?} {rows:?}");
        }
        let mut echo = Echo::new(seq, held);
        let from = if self.planted.echo_of_last_entry { seq } else { base + 1 };
        for entry in (from..=seq).filter(|entry| self.log.entries[*entry as usize - 1] >= self.log.dropped) {
            echo.expect(&watch, self.log.entry(entry).clone());
        }
        let chunks = |spool: &SpoolRef, each: &mut dyn FnMut(Bytes) -> Result<()>| {
            self.log.spool[&spool.id].iter().cloned().try_for_each(each)
        };
        if self.planted.side_effects_dropped || !echo.complete(&watch, &chunks).expect("a spool can be read") {
            return Vec::new();
        }
        let mut left: Vec<(Local, Bytes)> = Vec::new();
        for row in rows {
            let mut writer = ChangeWriter::default();
            self.encode_whole(&mut writer, here.fields, row);
            left.push((row.clone(), writer.take().into()));
        }
        let mut found = HashMap::new();
        let sift = |echo: &mut Echo, left: &mut Vec<(Local, Bytes)>| {
            left.retain(|(_, bytes)| !echo.is_ours(&watch, &Changes::new(bytes).next().unwrap()));
        };
        sift(&mut echo, &mut left);
        while echo.next_part(&watch, &chunks, &mut found).expect("a spool can be read") {
            sift(&mut echo, &mut left);
        }
        left.retain(|(_, bytes)| !echo.is_ours_after_all(&Changes::new(bytes).next().unwrap(), &mut found));
        left.into_iter().map(|(row, _)| row).collect()
    }

    /// What the arbiter has seen of each log, for the journal.
    fn record_positions(&mut self) {
        for (name, capture) in self.names.iter().zip(&self.captures) {
            let position = Position::Memory { index: capture.at as u64 };
            let (system, base, identity) = (name.clone(), capture.base, "".into());
            self.log.append(vec![Record::Position { system, position, base, identity }]);
        }
    }

    fn admitted(&mut self, admitted: Admitted) {
        for counts in &admitted.counts {
            self.tally.conflicts += counts.conflicts;
            self.tally.rejected += counts.rejected;
            self.counted[0] += counts.journaled.total();
            self.counted[1] += counts.rejected;
            self.counted[2] += counts.drift;
        }
        self.log.append(admitted.records);
    }

    /// Change by change, each a chunk.
    fn spooled(&mut self, system: SystemId, changes: &[Local]) -> SpoolRef {
        let fields = self.systems[system.index()].fields;
        let mut writer = ChangeWriter::default();
        let chunks = changes.iter().map(|change| {
            self.encode(&mut writer, fields, change);
            Bytes::from(writer.take())
        });
        let chunks = chunks.collect();
        let spool = SpoolRef { id: self.log.spool.len() as u64, bytes: 0 };
        self.log.spool.insert(spool.id, chunks);
        spool
    }

    fn captured(&mut self, system: SystemId, position: Position, base: Seq, changes: &[Local]) -> Captured {
        let body = match self.random.percent(10) {
            true => Body::Spooled(self.spooled(system, changes)),
            false => {
                let (mut writer, fields) = (ChangeWriter::default(), self.systems[system.index()].fields);
                changes.iter().for_each(|change| self.encode(&mut writer, fields, change));
                Body::Inline(writer.take().into())
            }
        };
        // One that is wrongly taken for a change may carry nothing.
        let changes = match &body {
            Body::Inline(bytes) => Changes::new(bytes).count(),
            Body::Spooled(spool) => self.log.spool[&spool.id].iter().map(|chunk| Changes::new(chunk).count()).sum(),
        };
        Captured {
            system,
            txid: format!("{position}").into(),
            position,
            base,
            committed_at: self.systems[system.index()].times[self.captures[system.index()].at],
            hops: 0,
            schema: self.schema.clone(),
            changes: changes as u64,
            body,
            refused: Vec::new(),
        }
    }

    /// As the entity's rules have it carried.
    pub fn encode(&self, writer: &mut ChangeWriter, fields: u8, change: &Local) {
        let start = writer.bytes.len();
        self.encode_whole(writer, fields, change);
        let whole = writer.bytes[start..].to_vec();
        let change = Changes::new(&whole).next().unwrap();
        if change.entity != CONTACT || !self.rules.trims(change.op) {
            return;
        }
        writer.take_back();
        let mut after = Vec::new();
        let changed = self.rules.write_carried(1, change.before.unwrap(), change.after.unwrap(), &mut after);
        if !changed {
            assert!(self.planted.echo_of_last_entry, "nobody but us writes what is there");
            return;
        }
        writer.push_change(&Change { after: Some(Row(&after)), ..change });
    }

    pub fn encode_whole(&self, writer: &mut ChangeWriter, fields: u8, change: &Local) {
        let text = |field: usize| self.schema.entity(CONTACT).fields[field + 1].kind == Kind::Text;
        match change {
            Local::Event(amount) => {
                let row = std::iter::once(datum(Some(*amount), false));
                writer.push(&self.schema, EVENT, Op::Insert, None::<std::iter::Empty<_>>, Some(row));
            }
            Local::Contact { op, key, before, after } => {
                let row = |contact: &Contact| {
                    let contact = *contact;
                    let field = move |i: usize| match fields >> i & 1 == 1 {
                        true => datum(contact[i], text(i)),
                        false => Datum::NotSent,
                    };
                    std::iter::once(datum(Some(*key), false)).chain((0..FIELDS).map(field))
                };
                writer.push(&self.schema, CONTACT, *op, before.as_ref().map(row), after.as_ref().map(row));
            }
        }
    }

    /// One action of a system's applier.
    fn apply(&mut self, system: usize) -> std::result::Result<(), String> {
        let Some(mut applier) = self.appliers[system].take() else { return Ok(()) };
        let result = self.act(system, &mut applier);
        self.appliers[system] = Some(applier);
        result
    }

    fn act(&mut self, system: usize, applier: &mut Applier) -> std::result::Result<(), String> {
        applier.idle = false;
        if let Some((durable, event)) = applier.waits.take() {
            if self.log.durable < durable {
                applier.waits = Some((durable, event));
                applier.idle = true;
                return Ok(());
            }
            applier.steps.event(event, self.now);
            return Ok(());
        }
        if std::env::var("ANECHOIC_TRACE").is_ok_and(|trace| self.faults || trace == "2") {
            println!("s{system} {applier:?}");
        }
        let target = &mut self.systems[system];
        let cut = self.faults && self.random.percent(2);
        let event = match applier.steps.next(0.5) {
            Action::Stop(error) => return Err(format!("applier stopped: {:?}", error.map(|e| e.full()))),
            Action::Wait => {
                applier.idle = true;
                Event::Done
            }
            // It is over at once.
            Action::Pause(_) | Action::Gather(_) => Event::Done,
            Action::Fetch if applier.at < self.log.dropped => Event::Failed(Error::retry("dropped")),
            Action::Fetch => match self.log.records.get(applier.at).filter(|_| applier.at < self.log.durable) {
                Some(record) => {
                    applier.at += 1;
                    Event::Fetched(Some(record.clone()))
                }
                None => Event::Fetched(None),
            },
            // Dropped between the arbiter's answer and here: it is asked anew.
            Action::Seek(from) if self.log.place(from) < self.log.dropped => Event::Failed(Error::retry("dropped")),
            Action::Seek(from) => {
                applier.at = self.log.place(from);
                Event::Done
            }
            Action::Commit if cut => {
                // The outcome is unknown to the agent.
                if self.random.percent(50) {
                    target.commit(self.keys);
                }
                target.open = None;
                Event::Failed(Error::retry("cut while committing"))
            }
            Action::Land if cut => {
                // No later one is committed before its commit is acknowledged.
                if self.random.percent(50) {
                    target.land_unasked(&applier.aloft, self.keys);
                }
                applier.aloft.clear();
                target.open = None;
                Event::Failed(Error::retry("cut while landing"))
            }
            _ if cut => {
                target.open = None;
                Event::Failed(Error::retry("cut"))
            }
            Action::Open => {
                // Until the fence.
                if self.random.percent(50) {
                    target.land_unasked(&applier.aloft, self.keys);
                }
                applier.aloft.clear();
                let marker = target.open();
                let id = SystemId(system as u8);
                let (held, seen, from) = (self.arbiter.held(id), self.arbiter.seen(id), self.arbiter.applies_from(id));
                let opened = Opened { marker, journal: 1, head: self.log.head(), seen, from, held };
                applier.waits = Some((self.log.records.len(), Event::Opened(Box::new(opened))));
                return Ok(());
            }
            Action::Submit(marker) => {
                let flight = Flight { marker, groups: applier.steps.take_groups() };
                ensure!(applier.aloft.len() < self.limits.connections, "no connection of s{system} is free");
                ensure!(
                    applier.aloft.iter().all(|other| apart(other, &flight)),
                    "s{system} writes a key twice at once"
                );
                applier.aloft.push_back(flight);
                // With none before it, it need not wait until it is asked for.
                if applier.aloft.len() == 1 && target.open.is_none() && self.random.percent(30) {
                    target.land_unasked(&applier.aloft, self.keys);
                }
                Event::Done
            }
            Action::Land if target.marker.seq >= applier.aloft.front().map_or(Seq::MAX, |flight| flight.marker.seq) => {
                applier.aloft.pop_front();
                Event::Done
            }
            Action::Land => {
                let flight = applier.aloft.front().expect("lands only while one is under way");
                match target.land(flight, self.random.percent(50)) {
                    // A lock wait, as below.
                    None if self.random.percent(50) => return Ok(()),
                    None => {
                        target.open = None;
                        Event::Failed(Error::retry("lock wait timeout"))
                    }
                    Some(Written::Done) => {
                        let event = answer(target.commit(self.keys));
                        match event {
                            Event::Done => drop(applier.aloft.pop_front()),
                            _ => applier.aloft.clear(),
                        }
                        event
                    }
                    Some(refused) => {
                        target.open = None;
                        applier.aloft.clear();
                        answer(refused)
                    }
                }
            }
            Action::Begin(marker) => {
                ensure!(applier.aloft.is_empty(), "s{system} writes alone what is not alone");
                target.begin(&marker);
                Event::Done
            }
            Action::Chunk { spool, first } => {
                applier.chunk = if first { 0 } else { applier.chunk + 1 };
                Event::Chunk(self.log.spool[&spool.id].get(applier.chunk).cloned())
            }
            Action::Read => return Err("nothing is filtered here".into()),
            // A lock wait, that ends when it is decided or by a timeout.
            Action::Write { .. } if target.blocks(applier.steps.group()) => match self.random.percent(50) {
                true => return Ok(()),
                false => {
                    target.open = None;
                    Event::Failed(Error::retry("lock wait timeout"))
                }
            },
            Action::Write { alone } => {
                let late = !alone && self.random.percent(50);
                answer(target.write(applier.steps.group(), late))
            }
            Action::Quarantine(records, rivals) => {
                self.tally.quarantined += records.len() as u64;
                for record in &records {
                    let records = self.arbiter.quarantined(record, self.now).map_err(|e| e.full())?;
                    self.log.append(records);
                }
                for rival in &rivals {
                    self.arbiter.clashed(&self.names[system], rival);
                }
                self.decide_clashes()?;
                applier.waits = Some((self.log.records.len(), Event::Done));
                return Ok(());
            }
            Action::Commit => answer(target.commit(self.keys)),
            Action::Holder => {
                let (binding, columns, values) = applier.steps.sought();
                let found = target.holder(binding.columns[columns[0]].field - 1, values);
                let fields = target.fields;
                let row = found.map(|(key, row)| {
                    let mut writer = ChangeWriter::default();
                    let change = Local::Contact { op: Op::Insert, key, before: None, after: Some(row) };
                    self.encode_whole(&mut writer, fields, &change);
                    Changes::new(&writer.take()).next().unwrap().image().0.to_vec()
                });
                Event::Holder(row)
            }
            Action::Rollback => {
                target.open = None;
                Event::Done
            }
        };
        applier.steps.event(event, self.now);
        let progress = applier.steps.take_progress();
        self.tally.commits += progress.commits;
        self.tally.held += progress.held;
        ensure!(
            progress.addressed == progress.applied + progress.coalesced + progress.held,
            "the books of s{system} do not balance: {progress:?}"
        );
        Ok(())
    }

    /// The agent dies and starts again from the journal and the markers.
    fn crash(&mut self) -> std::result::Result<(), String> {
        if std::env::var("ANECHOIC_TRACE").is_ok() {
            println!("CRASH at {} of {}", self.log.durable, self.log.records.len());
        }
        self.tally.crashes += 1;
        self.log.crash();
        for (system, applier) in self.systems.iter_mut().zip(&self.appliers) {
            // What was sent may still commit, until the new agent's fence.
            let sent = applier.as_ref().is_some_and(|a| a.steps.is_committing());
            if let Some(applier) = applier.as_ref().filter(|applier| !applier.aloft.is_empty()) {
                if self.random.percent(50) {
                    system.land_unasked(&applier.aloft, self.keys);
                }
            } else if sent && system.open.is_some() && self.random.percent(50) {
                system.commit(self.keys);
            }
            system.open = None;
        }
        self.arbiter = self.fresh();
        let mut at = vec![Capture::default(); self.systems.len()];
        self.prepared.clear();
        let held = self.log.held();
        for record in self.log.snapshot.iter().chain(&self.log.records[self.log.dropped..]) {
            self.arbiter.replay(record, &self.log).map_err(|e| e.full())?;
            undecided(&mut self.prepared, record);
            let Some((system, position, base)) = place(record) else { continue };
            let system = self.names.iter().position(|n| n == system).expect("known");
            let Position::Memory { index } = position else { unreachable!("the model's positions are memory") };
            at[system] = Capture { at: *index as usize, base };
        }
        let orphans = self.arbiter.resume(self.log.head());
        self.restore(&held, &at, &orphans)?;
        self.log.append(orphans);
        self.captures = at;
        self.resume_load();
        if self.planted.base_from_marker_table {
            for (capture, system) in self.captures.iter_mut().zip(&self.systems) {
                capture.base = system.marker.seq;
            }
        }
        self.start_appliers();
        Ok(())
    }

    /// An arbiter that knows nothing yet.
    fn fresh(&self) -> Arbiter {
        arbiter(&self.systems, &self.names, &self.schema, &self.rules, self.planted)
    }

    /// As the desk does it: when the journal has all that the arbiter was told.
    fn save(&mut self) -> std::result::Result<(), String> {
        self.record_positions();
        self.log.durable = self.log.records.len();
        let mut bytes = Vec::new();
        let checkpoint = self.arbiter.checkpoint().map_err(|e| e.full())?;
        checkpoint.write(1, &Tip::default(), &mut bytes).map_err(|e| e.full())?;
        self.saved = Some((bytes, self.log.durable));
        Ok(())
    }

    /// The arbiter from its last checkpoint, which must be what the whole journal makes of it, in place of
    /// that one.
    fn restore(&mut self, held: &[Quarantined], at: &[Capture], told: &[Record]) -> std::result::Result<(), String> {
        let Some((bytes, covered)) = &self.saved else { return Ok(()) };
        let mut arbiter = self.fresh();
        for (system, capture) in at.iter().enumerate() {
            let position = Position::Memory { index: capture.at as u64 };
            arbiter.follow(SystemId(system as u8), position, capture.base, "".into());
        }
        arbiter.keep_held(held);
        verify(&bytes[..]).map_err(|e| e.full())?;
        arbiter.restore(Saved::open(&bytes[..]).map_err(|e| e.full())?).map_err(|e| e.full())?;
        for conflict in self.arbiter.conflicts() {
            arbiter.replay(&Record::Conflict(conflict.clone()), &self.log).map_err(|e| e.full())?;
        }
        for record in &self.log.records[*covered..] {
            arbiter.replay(record, &self.log).map_err(|e| e.full())?;
        }
        let records = arbiter.resume(self.log.head());
        let mut whole = self.fresh();
        for record in &self.log.records {
            whole.replay(record, &self.log).map_err(|e| e.full())?;
        }
        whole.resume(self.log.head());
        let [here, whole] = [&arbiter, &whole].map(|arbiter| arbiter.state().map_err(|e| e.full()));
        if let Some(what) = here?.differs(&whole?) {
            return Err(format!("from its checkpoint the arbiter has another state: {what}"));
        }
        ensure!(records.len() == told.len(), "from its checkpoint the arbiter tells {records:?}, and not {told:?}");
        self.tally.restored += 1;
        self.arbiter = arbiter;
        Ok(())
    }

    /// No more writes or faults, until nothing moves.
    fn settle(&mut self) -> std::result::Result<(), String> {
        self.faults = false;
        self.systems.iter_mut().for_each(|system| system.refuses = None);
        for system in 0..self.systems.len() {
            while !self.systems[system].prepared.is_empty() {
                self.decide(system);
            }
        }
        for round in 0.. {
            ensure!(round < 200, "the agent does not come to rest");
            let before = (self.log.records.len(), self.captures.iter().map(|c| c.at).sum::<usize>());
            // What stays refused is tried again for ever, if less and less often: that is rest, too.
            if self.systems[0].pooled.is_none() || round < 10 {
                self.now += 600_000_000;
            }
            let records = self.arbiter.tick(self.now);
            self.log.append(records);
            self.log.durable = self.log.records.len();
            let mut busy = false;
            for system in 0..self.systems.len() {
                while self.captures[system].at < self.systems[system].log.len() {
                    self.capture(system)?;
                }
                self.log.durable = self.log.records.len();
                for _ in 0..10_000 {
                    self.apply(system)?;
                    self.log.durable = self.log.records.len();
                    let Some(applier) = &self.appliers[system] else { break };
                    let rests = applier.idle && applier.waits.is_none();
                    if rests && applier.at == self.log.records.len() && self.systems[system].open.is_none() {
                        break;
                    }
                }
                // What was written is to come back yet.
                busy |= self.captures[system].at < self.systems[system].log.len();
            }
            if busy || before != (self.log.records.len(), self.captures.iter().map(|c| c.at).sum()) {
                continue;
            }
            if self.is_loaded() {
                return Ok(());
            }
            // What lost is read again, now that its system has seen why.
            self.load()?;
            while self.chunk.is_some() {
                self.load()?;
            }
        }
        unreachable!("returns when nothing moves or not soon enough")
    }

    /// What is left for persons: each record that waits, or is held for good, gets a value of its own.
    fn part(&mut self, field: usize) -> std::result::Result<(), String> {
        self.systems.iter_mut().for_each(|system| system.refuses = None);
        for round in 0.. {
            let open: Vec<_> = self.arbiter.conflicts().filter(|c| c.rule == Rule::Unique).cloned().collect();
            // Some rows lack fields that nobody has any more; that is another matter.
            let held = self.arbiter.quarantine().filter(|held| !held.code.is_empty());
            let held: Vec<Quarantined> = held.cloned().collect();
            if round == 0 {
                self.tally.left += held.len() as u64;
            }
            if open.is_empty() && held.is_empty() {
                return Ok(());
            }
            ensure!(round < 20, "records stay in each other's way: {open:?} {held:?}");
            let name = self.schema.entity(CONTACT).fields[field + 1].name.clone();
            let set = |world: &mut World, change: Bytes, resolves| {
                world.value += 10;
                let (schema, body) = (world.schema.clone(), Body::Inline(change));
                let by_hand = ByHand { txid: "person".into(), at: world.now, schema, body, changes: 1, resolves };
                let admitted = world.arbiter.by_hand(by_hand, &world.log).map_err(|e| e.full())?;
                world.log.append(admitted.records);
                Ok::<(), String>(())
            };
            if let Some(conflict) = open.first() {
                let value = (1000 + self.value).to_string();
                let choice = Choice { id: conflict.id.to_string(), take: None, set: vec![(name, Some(value))] };
                let change = resolve::change(conflict, &choice, &self.schema).map_err(|e| e.full())?;
                set(self, change.ok_or("a choice that changes nothing")?, Some(conflict.id))?;
                ensure!(self.arbiter.conflict(conflict.id).is_none(), "{} waits although it was resolved", conflict.id);
            } else {
                let change = Changes::new(&held[0].change).next().unwrap();
                ensure!(held[0].code == "23505", "held for good: {:?}", held[0]);
                let value = datum(Some(1000 + self.value), true);
                let row = change.image();
                let mut after = Vec::new();
                (0..=FIELDS).for_each(|at| {
                    let kept = if at == field + 1 { value } else { row.get(at) };
                    write_datum(&mut after, if at == 0 || at == field + 1 { kept } else { Datum::NotSent });
                });
                let mut writer = ChangeWriter::default();
                writer.push_change(&Change { op: Op::Update, before: None, after: Some(Row(&after)), ..change });
                set(self, writer.take().into(), None)?;
                self.tally.stuck += 1;
            }
            self.settle()?;
        }
        unreachable!("ends when nothing is held or not soon enough")
    }

    pub fn hash(&self, key: i64) -> u128 {
        let mut writer = ChangeWriter::default();
        self.encode(&mut writer, 7, &Local::Contact { op: Op::Insert, key, before: None, after: Some([None; FIELDS]) });
        Changes::new(&writer.take()).next().unwrap().key_hash
    }
}

/// Whether no record is written by both.
fn apart(one: &Flight, other: &Flight) -> bool {
    let keys = |flight: &Flight| -> HashSet<i64> {
        let contacts = flight.groups.iter().filter(|group| group.binding.entity == CONTACT);
        contacts
            .flat_map(|group| group.rows().iter().filter_map(|row| number(row.get(0))).collect::<Vec<_>>())
            .collect()
    };
    keys(one).is_disjoint(&keys(other))
}

fn answer(written: Written) -> Event {
    match written {
        Written::Done => Event::Done,
        Written::Refused => Event::Failed(Error::data("refused").code("23503")),
        Written::Duplicate => Event::Failed(Error::data("duplicate").code("23505")),
    }
}

/// What an entity may be configured to.
fn rules(random: &mut Random) -> Rules {
    if random.percent(30) {
        return Rules::default();
    }
    let policy = match random.below(3) {
        0 => Policy::Authority,
        1 => Policy::Latest,
        _ => Policy::Manual,
    };
    let on_delete = match random.below(4) {
        0 => Some(OnDelete::UpdateWins),
        1 => Some(OnDelete::DeleteWins),
        _ => None,
    };
    let by_field = random.percent(40);
    let mut merges = Vec::new();
    if random.percent(60) {
        merges.push((2, Merge::Add));
    }
    match random.below(5) {
        0 => merges.push((3, Merge::Max)),
        1 => merges.push((3, Merge::Min)),
        2 => merges.push((3, Merge::Add)),
        3 if by_field => merges.push((3, Merge::Policy(Policy::Latest))),
        _ => {}
    }
    let ranks = if random.percent(30) { vec![3, 2, 1, 0] } else { Vec::new() };
    let version = (policy == Policy::Latest && random.percent(30)).then_some(1);
    Rules { policy, ranks, version, by_field, on_delete, merges, uniques: Vec::new() }
}

fn arbiter(
    systems: &[System],
    names: &[Arc<str>],
    schema: &Arc<Schema>,
    rules: &Arc<Rules>,
    planted: Planted,
) -> Arbiter {
    let bindings: Vec<_> = systems
        .iter()
        .enumerate()
        .map(|(i, s)| bindings(SystemId(i as u8), s.role, s.fields, s.triggers, s.enforced(), schema))
        .collect();
    let rules = [rules.clone(), Arc::default()];
    let topology = Topology::new(names.to_vec(), schema.clone(), &bindings, &rules);
    Arbiter::with_bugs(topology, Box::new(MemoryStore::default()), planted.bugs)
}
